"""Feeds a worker process with cases and watches it: a death, a hang or a swollen process is charged to its case.

Invariant: every case ends in exactly one result, whatever it does to the worker.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

HANG_S = 10.0
"""CPU seconds a case may take."""
WALL_S = 300.0
"""Seconds by the clock: many more, since the machine may be busy with other work."""
_SHOWN = [part for kind in ("UserWarning", "RuntimeWarning") for part in ("-W", f"always::{kind}")]
COMMAND = (sys.executable, *_SHOWN, "-m", "tests.fuzz.worker")
LIVES = 1500
"""Cases a worker runs before it is replaced, so that a slow leak is seen but does not add up."""


class Worker:
    """A worker process and what it last did."""

    def __init__(self, base: Path, command: Sequence[str] = COMMAND, hang_s: float = HANG_S) -> None:
        self._hang_s = hang_s
        base.mkdir(parents=True, exist_ok=True)
        self.log = base / "worker.log"
        self.log.write_text("")
        self.cases = 0
        self._open = True
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
        self._process = subprocess.Popen(
            [*command, str(base)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=Path(__file__).parents[2], text=True,
        )  # fmt: skip
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        if self._answer(600.0, 3600.0) is None:
            raise RuntimeError(f"the worker does not start; see {self.log}")

    def run(self, case: str) -> dict[str, Any]:
        """Run a case; where the worker dies or hangs that is the result, and the worker is of no further use."""
        self.cases += 1
        assert self._process.stdin is not None
        self.log.write_text("")
        self._process.stdin.write(case.replace(":", " ") + "\n")
        self._process.stdin.flush()
        result = self._answer(self._hang_s, WALL_S)
        if result is not None:
            return result
        code = self._exit_code()
        what = f"the process died ({code})" if code is not None else f"more than {self._hang_s:g} s"
        self.close()
        return {"case": case, "code": None, "faults": [what], "said": self.log.read_text()[-3000:]}

    def _answer(self, cpu_s: float, wall_s: float) -> dict[str, Any] | None:
        waited, started = 0.0, self._cpu_s()
        while waited < wall_s and self._cpu_s() - started < cpu_s:
            if self._selector.select(0.5):
                assert self._process.stdout is not None
                line = self._process.stdout.readline()
                self._open = bool(line)
                return json.loads(line) if line else None
            waited += 0.5
        return None

    def _exit_code(self) -> int | None:
        """How it ended, waited for where its end of the pipe is closed already; None where it still runs."""
        try:
            return self._process.wait(0 if self._open else 5)
        except subprocess.TimeoutExpired:
            return None

    def _cpu_s(self) -> float:
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def alive(self) -> bool:
        """Whether it can take another case."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        if self.alive:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def run_cases(cases: Iterable[str], base: Path) -> Iterator[dict[str, Any]]:
    """The result of each case, in order."""
    worker: Worker | None = None
    try:
        for case in cases:
            if worker is not None and (not worker.alive or worker.cases >= LIVES):
                worker.close()
                worker = None
            worker = worker or Worker(base)
            yield worker.run(case)
    finally:
        if worker is not None:
            worker.close()
