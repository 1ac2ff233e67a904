"""The working folder of an output that is not finished: OUTPUT.partial, and how it becomes OUTPUT.

Invariant: a ledger stands there only while the pixels it vouches for do: the folder comes with both and goes with both,
by one rename each. OUTPUT appears by one rename, and what stood there before (--overwrite) goes only after that.
"""

from __future__ import annotations

import errno
import glob
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrbcr_cli.errors import IncompleteError, InputError
from mrbcr_cli.images import OutputFormat, SourceSpec, read_provenance
from mrbcr_cli.images.omezarr_meta import is_zarr
from mrbcr_cli.stream.ledger import LedgerContents, LockedError, hold, read_ledger
from mrbcr_cli.stream.shards import Shard, run_id
from mrbcr_cli.whole_file import sync

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

    def aside(self, kind: str) -> Path:
        """A new name beside the output for a working folder that is being made ("begin") or removed ("gone")."""
        return self.path.with_name(f".{self.path.name}.{kind}.{uuid.uuid4().hex[:12]}")

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


class MovedOnError(Exception):
    """The working folder is no longer that which was looked at: look again."""


def standing_run(target: Target) -> tuple[Any, Any]:
    """What tells the run that now stands in the working folder from any other; (None, None) where there is none."""
    contents = read_ledger(target.ledger)
    return (None, None) if contents is None else run_id(contents.header)


def begin(target: Target, fill: Callable[[Target], None]) -> bool:
    """Make the working folder, filled by `fill`, in one step; False where another process was first.

    `fill` gets a target whose working folder is the one to fill. Raises OSError where the disk does not take it.
    """
    staged = Target(target.aside("begin"), target.format)
    try:
        staged.partial.mkdir(parents=True)
        fill(staged)
        sync(staged.partial)
        staged.partial.rename(target.partial)
    except OSError as error:
        shutil.rmtree(staged.partial, ignore_errors=True)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    except BaseException:
        shutil.rmtree(staged.partial, ignore_errors=True)
        raise
    sync(target.path.parent)
    return True


def drop_partial(target: Target, seen: tuple[Any, Any] | None = None) -> None:
    """Remove the working folder; with `seen` only if that run (`standing_run`) stands in it still, else MovedOnError.

    Raises InputError for files that are not ours, IncompleteError when another run is writing there.
    """
    if not target.partial.exists():
        return
    try:
        names = [p.name for p in target.partial.iterdir()]
        strangers = [name for name in names if not _is_ours(name)]
        if strangers:
            raise InputError(f"{target.partial}: holds files that are not mrbcr's ({strangers[0]}); move it away")
        with hold(target.ledger, create=True):
            if seen is not None and standing_run(target) != seen:
                raise MovedOnError
            gone = target.aside("gone")
            target.partial.rename(gone)
    except LockedError as error:
        raise busy(target) from error
    except FileNotFoundError as error:  # another process removes it too
        if seen is None:
            return
        raise MovedOnError from error
    sync(target.path.parent)
    clear_away(target)


def _is_ours(name: str) -> bool:
    return name == "replaced" or name.startswith(("image.", "ledger."))


def put_in_place(ready: Path, target: Target) -> None:
    """Rename the finished result to its name; an older output steps aside first and is removed last."""
    if ready.is_file():
        sync(ready)
    if target.path.exists():
        target.path.rename(target.replaced)
    ready.rename(target.path)
    sync(target.path.parent)
    target.partial.rename(target.aside("gone"))
    sync(target.path.parent)
    clear_away(target)


def clear_away(target: Target) -> None:
    """Delete working folders that stepped aside or were never begun; what cannot be deleted stays for the next time.

    Some network disks keep files that are open (our own ledger): call it again once that is closed.
    """
    for kind in ("gone", "begin"):
        for folder in target.path.parent.glob(f".{glob.escape(target.path.name)}.{kind}.*"):
            shutil.rmtree(folder, ignore_errors=True)


def busy(target: Target, shard: Shard | None = None) -> IncompleteError:
    """The error of a second run on the same output, or of a second process for the same shard."""
    doing = "" if shard is None else f" (as this shard {shard}, or not as a shard)"
    return IncompleteError(
        f"{target.partial}: another run is writing there{doing}; wait for it, or choose another --output"
    )
