"""An output at a URL: what stands there, how a run begins there, and what must not be there before it ends.

Invariant: nothing is renamed there; a store whose group is marked UNFINISHED is no image to any reader, and one PUT of
its group ends that. The mark is the id of the run, so a working folder (on a disk, here) vouches for its pixels alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.omezarr_level import write_group
from mrbcr_cli.images.omezarr_meta import UNFINISHED, Node, read_node
from mrbcr_cli.images.omezarr_write import read_provenance
from mrbcr_cli.places import RemoteError, RemotePath
from mrbcr_cli.stream.ledger import read_ledger
from mrbcr_cli.targets import Target

_WAIT_S = 0.5


@dataclass(frozen=True)
class Standing:
    """What stands at a URL."""

    kind: Literal["nothing", "finished", "unfinished", "zarr", "other"]
    """Ours where it is finished or unfinished; "other": keys that are no zarr."""
    mark: Any = None
    """Of an unfinished store: the id of its run; True while it is being laid out and no block can be in it."""
    node: Node | None = None


def look(path: RemotePath) -> Standing:
    """See what stands at a URL. Raises RemoteError where it cannot be asked, InputError for damaged metadata."""
    node = _node(path)
    if node is None:
        return Standing("other" if path.exists() else "nothing")
    if mark := node.attributes.get(UNFINISHED):
        return Standing("unfinished", mark, node)
    return Standing("zarr" if read_provenance(path) is None else "finished", node=node)


def _node(path: RemotePath) -> Node | None:
    try:
        return read_node(path)
    except InputError as error:  # of an input; this is the output
        raise (error.__cause__ if isinstance(error.__cause__, RemoteError) else error) from error


def finished_before(target: Target, *, resume: bool, overwrite: bool) -> dict[str, Any] | None:
    """As `workfolder.finished_before`; raises InputError also for an unfinished store whose ledger is elsewhere."""
    path = _url(target)
    standing = look(path)
    if standing.kind == "nothing":
        if path.lacks_bucket():
            raise InputError(f"{path}: there is no {path.root}; make it first, or choose another --output")
        return None
    if standing.kind == "other":
        raise InputError(f"{path}: holds other things than an OME-Zarr; remove them, or choose another --output")
    if overwrite:
        return None
    if standing.kind == "unfinished":
        if standing.mark is not True and standing.mark != run_in(target):
            raise orphan(target)
        return None
    if standing.kind == "zarr" or not resume:
        raise InputError(f"{path}: exists; use --overwrite to replace it, or another --output")
    return read_provenance(path)


def has_pixels_of(target: Target, run: Any) -> bool:
    """Whether the store at the URL is the unfinished one of that run. Raises RemoteError."""
    standing = look(_url(target))
    return standing.kind == "unfinished" and standing.mark == run and _node(_url(target) / "0") is not None


def run_in(target: Target) -> Any:
    """Id of the run in the working folder; None where there is none."""
    contents = read_ledger(target.ledger)
    return None if contents is None else contents.header.get("id")


def orphan(target: Target) -> InputError:
    """The error of an unfinished store whose ledger is elsewhere."""
    return InputError(
        f"{target.path}: is an unfinished output of mrbcr, and its working folder is not {target.partial.absolute()}; "
        "give the --work-dir that its run has, or once nothing writes there start again with --overwrite"
    )


def mark(target: Target, run: Any) -> None:
    """Say of the store at a URL that it is the unfinished one of a run."""
    write_group(target.store, target.zarr_version, {UNFINISHED: run})


def await_other() -> None:
    """Leave another process the time to lay out the store it has begun."""
    time.sleep(_WAIT_S)


def goes_first(target: Target) -> bool:
    """Whether an output stands at the URL that a run with --overwrite removes when it begins. Raises RemoteError."""
    return isinstance(target.path, RemotePath) and look(target.path).kind in ("finished", "zarr")


def take_away(target: Target) -> None:
    """Remove the unfinished store of the run in the working folder, and no other."""
    standing = look(_url(target))
    if standing.kind == "unfinished" and standing.mark == run_in(target):
        _url(target).remove_tree()


def make_room(target: Target, *, overwrite: bool) -> None:
    """Remove the store that stands where a new one begins; from the first step on it is no image to any reader."""
    path = _url(target)
    standing = look(path)
    if standing.kind == "nothing":
        return
    if standing.node is None or (standing.kind != "unfinished" and not overwrite):
        raise InputError(f"{path}: exists since a moment ago; choose another --output, or --overwrite")
    old: Any = "0.5" if standing.node.zarr_format == 3 else "0.4"
    if standing.kind != "unfinished" or standing.mark is not True:
        write_group(path, old, {UNFINISHED: True})
    names = ("zarr.json",) if old == "0.5" else (".zattrs", ".zgroup")
    path.remove_tree(keep=[path / name for name in names])
    path.remove_tree()


def _url(target: Target) -> RemotePath:
    if isinstance(target.path, Path):
        raise TypeError(f"{target.path} is no URL")
    return target.path
