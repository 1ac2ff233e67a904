"""The working folder of an output that is not finished: OUTPUT.partial, and how it becomes OUTPUT.

Invariant: a ledger stands there only while the pixels it vouches for do: the folder comes with both and goes with both,
by one rename each. OUTPUT appears by one rename, and what stood there before (--overwrite) goes only after that.

Of an output at a URL the folder holds the ledger alone; `remote_output` knows what stands there.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mrbcr_cli import remote_output
from mrbcr_cli.errors import IncompleteError, InputError
from mrbcr_cli.images import SourceSpec, read_provenance
from mrbcr_cli.images.omezarr_documents import is_zarr
from mrbcr_cli.places import Place, RemotePath, place
from mrbcr_cli.stream.ledger import Ledger, LedgerContents, LockedError, hold, read_ledger
from mrbcr_cli.stream.shards import Shard, run_id
from mrbcr_cli.targets import PARTIAL_SUFFIX, LocalTarget, Target
from mrbcr_cli.whole_file import sync

__all__ = ["PARTIAL_SUFFIX", "LocalTarget", "Target"]


def check_target(source: SourceSpec, target: Target) -> None:
    """Refuse an output that is the input, lies inside it, or holds it. Raises InputError."""
    output: Place = target.path.resolve()
    folder = [source.label] if source.planes and Path(source.label).is_dir() else []
    for name in (*source.paths, *folder):
        given: Place = place(name).resolve()
        if output == given:
            raise InputError(f"{target.path}: the output is the input; choose another --output")
        if given in output.parents and (isinstance(given, RemotePath) or given.is_dir()):
            raise InputError(f"{target.path}: the output lies inside the input {name}; choose another --output")
        if output in given.parents:
            raise InputError(f"{target.path}: the input {name} lies inside the output; choose another --output")
    check_place(target)


def check_place(target: Target) -> None:
    """Refuse a place that cannot hold the output or its working folder. Raises InputError."""
    parent = target.partial.parent
    if parent.exists() and not parent.is_dir():
        raise InputError(f"{parent}: is not a folder, so {target.path.name} cannot be written there")
    if target.partial.exists() and not target.partial.is_dir():
        raise InputError(f"{target.partial}: is a file where the working folder must go; move it away")


def finished_before(target: Target, *, resume: bool, overwrite: bool) -> dict[str, Any] | None:
    """Provenance of a finished output of ours that a resuming run may recognise; None when there is none to mind.

    Raises InputError when something else stands there, and with `overwrite` when that is no image at all.
    """
    if isinstance(target.path, RemotePath):
        return remote_output.finished_before(target, resume=resume, overwrite=overwrite)
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
    if isinstance(target.path, RemotePath):
        return contents if remote_output.has_pixels_of(target, contents.header.get("id")) else None
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
    sync(target.partial.parent)
    return True


def begin_there(target: Target, header: dict[str, Any], lay_out: Callable[[], None]) -> bool:
    """Begin a run at a URL: its working folder in one step, then the empty store; False where another was first.

    `lay_out` makes the store, marked True. The ledger is locked meanwhile, so whoever sees it waits.
    """
    with ExitStack() as held:

        def fill(staged: Target) -> None:
            held.enter_context(Ledger(staged.ledger, header))

        if not begin(target, fill):
            return False
        try:
            remote_output.make_room(target, overwrite=bool(header["overwrite"]))
            lay_out()
            remote_output.mark(target, header["id"])
        except BaseException:
            remove_held(target)
            raise
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
            target.partial.rename(target.aside("gone"))
    except LockedError as error:
        raise busy(target) from error
    except FileNotFoundError as error:  # another process removes it too
        if seen is None:
            return
        raise MovedOnError from error
    sync(target.partial.parent)
    clear_away(target)


def remove_held(target: Target) -> None:
    """Remove the working folder whose ledger this process has locked."""
    target.partial.rename(target.aside("gone"))
    clear_away(target)


def _is_ours(name: str) -> bool:
    return name == "replaced" or name.startswith(("image.", "ledger."))


def put_in_place(ready: Place, target: Target) -> None:
    """Rename the finished result to its name; an older output steps aside first and is removed last.

    At a URL it is there already, and only the working folder goes.
    """
    if isinstance(target.path, Path) and isinstance(ready, Path):
        if ready.is_file():
            sync(ready)
        if target.path.exists():
            target.path.rename(target.replaced)
        ready.rename(target.path)
        sync(target.path.parent)
    target.partial.rename(target.aside("gone"))
    sync(target.partial.parent)
    clear_away(target)


def clear_away(target: Target) -> None:
    """Delete working folders that stepped aside or were never begun; what cannot be deleted stays for the next time.

    Some network disks keep files that are open (our own ledger): call it again once that is closed.
    """
    for folder in target.leftovers():
        shutil.rmtree(folder, ignore_errors=True)


class BusyError(IncompleteError):
    """Another process works on the same output."""


def busy(target: Target, shard: Shard | None = None) -> BusyError:
    """The error of a second run on the same output, or of a second process for the same shard."""
    doing = "" if shard is None else f" (as this shard {shard}, or not as a shard)"
    return BusyError(f"{target.partial}: another run is writing there{doing}; wait for it, or choose another --output")
