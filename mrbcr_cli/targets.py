"""Where a result goes, and where its working folder lies until it is there.

Invariant: the working folder is on a disk that can lock and append: beside an output on a disk, so that the last step
is a rename; for one at a URL in a folder of the user's choice, under a name that no other URL has.
"""

from __future__ import annotations

import glob
import hashlib
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrbcr_cli.images import OutputFormat
from mrbcr_cli.places import Place, RemotePath, refuse_mangled

PARTIAL_SUFFIX = ".partial"


@dataclass(frozen=True)
class Target:
    """Where a result goes."""

    path: Place
    format: OutputFormat
    work_dir: Path | None = None
    """Where the working folder of an output at a URL lies; None: here."""

    def __post_init__(self) -> None:
        refuse_mangled(self.path)

    @property
    def remote(self) -> bool:
        """Whether the output is at a URL."""
        return isinstance(self.path, RemotePath)

    @property
    def _beside(self) -> Path:
        """The output, or at a URL a name on a disk that stands for it: working folders lie beside it."""
        if isinstance(self.path, Path):
            return self.path
        short = hashlib.sha256(str(self.path).encode()).hexdigest()[:8]
        return (self.work_dir or Path()) / f"{self.path.name}-{short}"

    @property
    def partial(self) -> Path:
        """Working folder of an unfinished run, beside the output (so that the last step is a rename)."""
        return self._beside.with_name(self._beside.name + PARTIAL_SUFFIX)

    @property
    def store(self) -> Place:
        """Level 0 while it is being written; at a URL it is written where it stays."""
        return self.path if isinstance(self.path, RemotePath) else self.partial / "image.ome.zarr"

    @property
    def ledger(self) -> Path:
        """Which blocks are done."""
        return self.partial / "ledger.jsonl"

    @property
    def replaced(self) -> Path:
        """The former output, for the moment between two renames."""
        return self.partial / "replaced"

    def aside(self, kind: str) -> Path:
        """A new name beside the output for a working folder that is being made ("begin") or removed ("gone")."""
        return self._beside.with_name(f".{self._beside.name}.{kind}.{uuid.uuid4().hex[:12]}")

    def leftovers(self) -> list[Path]:
        """Working folders that stepped aside."""
        name = glob.escape(self._beside.name)
        return [path for kind in ("gone", "begin") for path in self._beside.parent.glob(f".{name}.{kind}.*")]

    @property
    def zarr_version(self) -> Any:
        """OME-Zarr version of the store."""
        return "0.4" if self.format == "ome-zarr-0.4" else "0.5"


@dataclass(frozen=True)
class LocalTarget(Target):
    """One of a command that writes to disks alone."""

    path: Path

    @property
    def store(self) -> Path:
        """Level 0 while it is being written."""
        return self.partial / "image.ome.zarr"
