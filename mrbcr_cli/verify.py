"""Hold stored blocks against their checksums: in a working folder, or in an OME-Zarr that is finished.

Invariant: a block passes only if its pixels, read back from disk, have the checksum they were written with; a disk that
cannot be read right now is an error, not damage. A finished store keeps its ledger in level 0, where no reader looks.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mrbcr_cli.capacity import cpu_count
from mrbcr_cli.console import Reporter
from mrbcr_cli.errors import IncompleteError, InputError
from mrbcr_cli.images.omezarr_level import Level, block_checksum, open_level0, write_group
from mrbcr_cli.images.omezarr_meta import UNFINISHED
from mrbcr_cli.places import Place, RemotePath
from mrbcr_cli.remote_output import mark
from mrbcr_cli.resume import read_header
from mrbcr_cli.stream.blocks import Grid
from mrbcr_cli.stream.ledger import FORMAT, LedgerContents, read_ledger
from mrbcr_cli.stream.records import BlockRecord
from mrbcr_cli.whole_file import put_durably_from
from mrbcr_cli.workfolder import Target, begin, drop_partial, standing_run, unfinished_run

KEPT_LEDGER = "mrbcr-blocks.jsonl"
"""In the folder of level 0: chunks are found by their keys there, so no reader lists it and no validator minds."""
_BATCH = 64


def damaged_blocks(
    store: Place, grid: Grid, blocks: Sequence[int], checksums: Callable[[int], Collection[str]], reporter: Reporter
) -> dict[int, str]:
    """Read back blocks; return what is wrong with each whose pixels have none of its checksums.

    Raises IncompleteError where the disk fails (so nothing is known of a block), InputError where there is no store.
    """
    level = open_level0(store)
    name = store.name if isinstance(store, RemotePath) else store.parent.name
    found: dict[int, str] = {}

    def look(number: int) -> tuple[int, str | None]:
        return number, _damage(level, grid, number, checksums(number))

    with (
        ThreadPoolExecutor(cpu_count()) as pool,
        reporter.progress(f"verifying {name}", len(blocks)) as progress,
    ):
        for start in range(0, len(blocks), _BATCH):  # a million futures at once would take more than the pixels
            for number, problem in pool.map(look, blocks[start : start + _BATCH]):
                progress.advance()
                if problem is not None:
                    found[number] = problem
    return found


def _damage(level: Level, grid: Grid, number: int, checksums: Collection[str]) -> str | None:
    region = grid.block(number).core
    try:
        stored = block_checksum(level.read(region))
    except InputError as error:
        if isinstance(error.__cause__, OSError):
            raise IncompleteError(f"{error.__cause__}: cannot be read now, so nothing was marked; try again") from error
        stored = "unreadable"
    if stored in checksums:
        return None
    above = str(level.path.parent)
    files = ", ".join(str(file)[len(above) + 1 :] for file in level.files(region)[:4])
    return f"in {files}"


def damage_text(damaged: Mapping[int, str], most: int = 5) -> str:
    """The damaged blocks in words: numbers and files, of the first few."""
    said = "; ".join(f"block {number} {damaged[number]}" for number in sorted(damaged)[:most])
    return said + (f"; and {len(damaged) - most} more" if len(damaged) > most else "")


def keep_ledger(store: Place, header: Mapping[str, Any], records: Mapping[int, BlockRecord]) -> None:
    """Leave with a finished store what verifying it takes: the header, and each block's record without its times.

    What names this run or this machine stays behind.
    """
    lasting = {name: value for name, value in header.items() if name not in ("ledger", "id", "overwrite", "url")}
    lasting["source"] = {name: value for name, value in header["source"].items() if name != "folder"}
    put_durably_from(store / "0" / KEPT_LEDGER, _lines(lasting, records, timeless=True))


def _lines(
    header: Mapping[str, Any],
    records: Mapping[int, BlockRecord],
    *,
    without: Collection[int] = (),
    timeless: bool = False,
) -> Iterator[bytes]:
    """A whole ledger, in the order of the blocks."""
    yield json.dumps({"ledger": FORMAT, **header}, separators=(",", ":")).encode() + b"\n"
    for number in sorted(set(records).difference(without)):
        record = replace(records[number], seconds={}) if timeless else records[number]
        yield json.dumps(asdict(record), separators=(",", ":")).encode() + b"\n"


def verify_finished(target: Target, reporter: Reporter) -> int:
    """Verify a finished OME-Zarr and return its number of blocks.

    Where blocks are damaged the store goes back into a working folder that counts them as not done, and IncompleteError
    is raised. InputError where the output kept no checksums (TIFF).
    """
    kept = read_ledger(target.path / "0" / KEPT_LEDGER) if target.remote or target.path.is_dir() else None
    if kept is None:
        raise InputError(f"{target.path}: keeps no checksums (OME-TIFF has none), so it cannot be verified")
    run = read_header({**kept.header, "overwrite": False}, target.path)
    missing = {number: "has no checksum" for number in range(len(run.grid)) if number not in kept.records}
    known = [number for number in range(len(run.grid)) if number in kept.records]
    damaged = missing | damaged_blocks(
        target.path, run.grid, known, lambda number: {kept.records[number].checksum}, reporter
    )
    if not damaged:
        reporter.info(f"{target.path}: {len(run.grid)} blocks verified, none is damaged")
        return len(run.grid)
    reporter.event("damaged", output=str(target.path), blocks=sorted(damaged))
    _reopen(Target(target.path, run.format, target.work_dir), kept, damaged)  # type: ignore[arg-type]
    raise IncompleteError(
        f"{target.path}: {len(damaged)} of {len(run.grid)} blocks are damaged ({damage_text(damaged)}); it is back in "
        f"{target.partial if target.remote else target.partial.name}: run the same mrbcr deconvolve command to redo "
        "these alone"
    )


def _reopen(target: Target, kept: LedgerContents, damaged: Collection[int]) -> None:
    """Make a finished store that of an unfinished run again. Raises IncompleteError where one is under way there."""
    if unfinished_run(target) is not None:
        raise IncompleteError(f"{target.partial}: an unfinished run is in the way; end it or remove it first")
    drop_partial(target, standing_run(target))
    run = uuid.uuid4().hex

    def fill(staged: Target) -> None:
        header = {**kept.header, "id": run, "overwrite": False}
        header |= {"url": str(target.path)} if target.remote else {}
        put_durably_from(staged.ledger, _lines(header, kept.records, without=damaged))

    if not begin(target, fill):
        raise IncompleteError(f"{target.partial}: another run has begun there; run mrbcr finish --verify again")
    if not (isinstance(target.path, Path) and isinstance(target.store, Path)):
        mark(target, run)  # without it this ledger is not believed, and with it the output is no image
        return
    # Without its pixels this ledger is not believed, and with them the output is gone: one rename decides.
    target.path.rename(target.store)
    write_group(target.store, target.zarr_version, {UNFINISHED: True})
