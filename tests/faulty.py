"""A method with a fault, for tests of clusters: at one block, once or always, it raises, hangs or kills its process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from mrbcr_cli import carry_out as carried_out
from mrbcr_cli.stream.engine import Job

Kind = Literal["kill", "hang", "raise", "memory", "none"]


@dataclass(frozen=True)
class FaultySpec:
    """Wraps the recipe of a method; as a MethodSpec it is picklable and built on the worker."""

    inner: Any
    kind: Kind
    at: float
    """The block whose first pixel has this value."""
    marker: str | None
    """A file that is made when the fault strikes, which it does only while there is none; None: always.

    Beside it a file MARKER.built has a line for each time the method was built.
    """

    def build(self) -> Any:
        """Make the method."""
        if self.marker is not None:
            with Path(self.marker + ".built").open("a") as built:
                built.write(f"{os.getpid()}\n")
        return Faulty(self.inner.build(), self)


class Faulty:
    """The method: that of `inner`, but for the fault."""

    def __init__(self, inner: Any, spec: FaultySpec) -> None:
        self._inner, self._spec = inner, spec

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def restore(self, block_zyx: Any, intensity: Any, at_border: Any) -> Any:
        """Fail at the block, else as `inner`."""
        if self._spec.kind != "none" and block_zyx[0, 0, 0] == self._spec.at and self._strikes():
            if self._spec.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self._spec.kind == "hang":
                threading.Event().wait()
            raise MemoryError("no memory left") if self._spec.kind == "memory" else RuntimeError("a fault of the test")
        return self._inner.restore(block_zyx, intensity, at_border)

    def _strikes(self) -> bool:
        if self._spec.marker is None:
            return True
        try:
            Path(self._spec.marker).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


@contextmanager
def fault(kind: Kind, at: float, marker: Path | None) -> Iterator[None]:
    """Runs begun in this process have the fault."""
    real = carried_out._job

    def job(*arguments: Any) -> Job:
        made = real(*arguments)
        name = None if marker is None else str(marker)
        return replace(made, methods=tuple(FaultySpec(spec, kind, at, name) for spec in made.methods))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(carried_out, "_job", job)
        yield
