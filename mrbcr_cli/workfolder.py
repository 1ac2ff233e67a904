"""The working folder of an output that is not finished: OUTPUT.partial, and how it becomes OUTPUT.

Invariant: a ledger exists only while the pixels it vouches for do; it is the first thing removed and the last thing
relied on. OUTPUT appears by one rename, and what stood there before (--overwrite) goes only after that.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrbcr_cli.errors import IncompleteError, InputError
from mrbcr_cli.images import OutputFormat, SourceSpec, read_provenance
from mrbcr_cli.images.omezarr_meta import is_zarr
from mrbcr_cli.stream.ledger import LedgerContents, LockedError, lock, read_ledger

PARTIAL_SUFFIX = ".partial"


@dataclass(frozen=True)
class Target:
    """Where a result goes."""

    path: Path
    format: OutputFormat

    @property
    def partial(self) -> Path:
        """Working folder of an unfinished run, beside the output (so that the last step is a rename)."""
        return self.path.with_name(self.path.name + PARTIAL_SUFFIX)

    @property
    def store(self) -> Path:
        """Level 0 while it is being written."""
        return self.partial / "image.ome.zarr"

    @property
    def ledger(self) -> Path:
        """Which blocks are done."""
        return self.partial / "ledger.jsonl"

    @property
    def replaced(self) -> Path:
        """The former output, for the moment between two renames."""
        return self.partial / "replaced"

    @property
    def zarr_version(self) -> Any:
        """OME-Zarr version of the store."""
        return "0.4" if self.format == "ome-zarr-0.4" else "0.5"


def check_target(source: SourceSpec, target: Target) -> None:
    """Refuse an output that is the input, lies inside it, or holds it. Raises InputError."""
    output = target.path.resolve()
    folder = [source.label] if source.planes and Path(source.label).is_dir() else []
    for name in (*source.paths, *folder):
        given = Path(name).resolve()
        if output == given:
            raise InputError(f"{target.path}: the output is the input; choose another --output")
        if given in output.parents and given.is_dir():
            raise InputError(f"{target.path}: the output lies inside the input {name}; choose another --output")
        if output in given.parents:
            raise InputError(f"{target.path}: the input {name} lies inside the output; choose another --output")
    check_place(target)


def check_place(target: Target) -> None:
    """Refuse a place that cannot hold the output or its working folder. Raises InputError."""
    parent = target.path.parent
    if parent.exists() and not parent.is_dir():
        raise InputError(f"{parent}: is not a folder, so {target.path.name} cannot be written there")
    if target.partial.exists() and not target.partial.is_dir():
        raise InputError(f"{target.partial}: is a file where the working folder must go; move it away")


def finished_before(target: Target, *, resume: bool, overwrite: bool) -> dict[str, Any] | None:
    """Provenance of a finished output of ours that a resuming run may recognise; None when there is none to mind.

    Raises InputError when something else stands there, and with `overwrite` when that is no image at all.
    """
    if target.replaced.exists() and not target.path.exists():
        target.replaced.rename(target.path)  # killed between the two renames: the former output is still the output
    if not target.path.exists():
        return None
    if overwrite:
        if target.path.is_dir() and not is_zarr(target.path) and any(target.path.iterdir()):
            raise InputError(f"{target.path}: is a folder that holds no OME-Zarr; move it away, it is not overwritten")
        return None
    found = read_provenance(target.path)
    if found is None or not resume:
        raise InputError(f"{target.path}: exists; use --overwrite to replace it, or another --output")
    return dict(found)


def unfinished_run(target: Target) -> LedgerContents | None:
    """What the ledger of an unfinished run says; None where there is none, or the pixels it vouches for are gone.

    Raises InputError when the ledger cannot be read.
    """
    try:
        contents = read_ledger(target.ledger)
    except OSError as error:
        raise InputError(f"{target.ledger}: cannot be read ({error.strerror or error}); move it away") from error
    if contents is None or not isinstance(contents.header.get("grid"), dict):
        return None
    level0 = target.store / "0"
    return contents if (level0 / "zarr.json").is_file() or (level0 / ".zarray").is_file() else None


def drop_partial(target: Target) -> None:
    """Remove the working folder, its ledger first. Raises InputError for files that are not ours, IncompleteError when
    another run is writing there.
    """
    if not target.partial.exists():
        return
    ours = {"ledger.jsonl", "image.ome.zarr", "replaced"}
    strangers = [p.name for p in target.partial.iterdir() if p.name not in ours and not p.name.startswith("image.")]
    if strangers:
        raise InputError(f"{target.partial}: holds files that are not mrbcr's ({strangers[0]}); move it away")
    if target.ledger.exists():
        with target.ledger.open("rb") as held:
            try:
                lock(held)
            except LockedError as error:
                raise busy(target) from error
            target.ledger.unlink()
        _sync_folder(target.partial)
    shutil.rmtree(target.partial)


def put_in_place(ready: Path, target: Target) -> None:
    """Rename the finished result to its name; an older output steps aside first and is removed last."""
    if ready.is_file():
        with ready.open("rb") as data:
            os.fsync(data.fileno())
    if target.path.exists():
        target.path.rename(target.replaced)
    ready.rename(target.path)
    _sync_folder(target.path.parent)
    target.ledger.unlink()
    _sync_folder(target.partial)
    shutil.rmtree(target.partial)


def busy(target: Target) -> IncompleteError:
    """The error of a second run on the same output."""
    return IncompleteError(f"{target.partial}: another run is writing there; wait for it, or choose another --output")


def _sync_folder(folder: Path) -> None:
    """Put renames and removals in a folder on disk (where the system can)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
