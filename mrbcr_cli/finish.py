"""The end of a run: pyramid and metadata or the TIFF, atomic rename. `mrbcr finish` does it for runs in shards.

Invariant: what the end needs comes from the header of the run and its ledgers alone, so an output is the same however
many processes made its blocks, and whichever of them ends it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from mrbcr_cli.console import Reporter
from mrbcr_cli.errors import FingerprintError, IncompleteError, InputError, InterruptedRunError
from mrbcr_cli.images import find_source, open_source, read_provenance
from mrbcr_cli.places import Place, RemoteError, RemotePath, place
from mrbcr_cli.remote_output import look, orphan
from mrbcr_cli.resume import RunRecord, read_header
from mrbcr_cli.stream.ledger import LedgerContents, LockedError, read_ledger
from mrbcr_cli.stream.records import BlockRecord
from mrbcr_cli.stream.shards import RunLedger, Shard, ranges_text, runs_of
from mrbcr_cli.stream.signals import interrupt_on_signal
from mrbcr_cli.verify import damage_text, damaged_blocks, keep_ledger, verify_finished
from mrbcr_cli.workfolder import (
    PARTIAL_SUFFIX,
    Target,
    busy,
    clear_away,
    drop_partial,
    put_in_place,
    standing_run,
    unfinished_run,
)


@dataclass(frozen=True)
class Outcome:
    """What became of one input, or of the output of shards."""

    output: Place
    status: str
    """ "done", "unchanged" (it was done before), "verified", "shard" (its share is done) or "planned" (--dry-run)."""
    summary: dict[str, Any]


def complete(
    header: Mapping[str, Any],
    records: Mapping[int, BlockRecord],
    target: Target,
    reporter: Reporter,
    *,
    source_xml: str | None,
    of_process: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Make the output of a run whose blocks are all done, and rename it into place; return the figures of the run.

    The output keeps them, and beside its seconds what only the process knows that did the blocks (`of_process`).

    Raises IncompleteError where what was written cannot be read back, OSError where the disk does not take it.
    """
    run = read_header(header, target.ledger)
    figures = figures_of(run, records)
    known = {key: figures[key] for key in ("pixels", "clipped", "clipped_fraction", "non_finite", "notes")}
    known["run"] = {"seconds": figures["seconds"], **(of_process or {})}
    spec = replace(run.spec, source_ome_xml=source_xml, provenance={**run.spec.provenance, **known})
    try:
        if target.format != "ome-tiff":
            keep_ledger(target.store, header, records)  # before the metadata that make it an image
        ready = _build(run, spec, target, reporter, mark=header["id"] if target.remote else True)
    except InputError as error:  # what was written cannot be read back
        if isinstance(error.__cause__, RemoteError):
            raise error.__cause__ from error
        raise IncompleteError(
            f"{error}; mrbcr finish --verify {target.path} finds the blocks to be done again"
        ) from error
    put_in_place(ready, target)
    return figures


def _build(run: RunRecord, spec: Any, target: Target, reporter: Reporter, *, mark: object) -> Place:
    """Write the pyramid and metadata, or the TIFF; return what is to be renamed to the output."""
    from mrbcr_cli.images import omezarr_write

    if target.format == "ome-tiff":
        from mrbcr_cli.images.tiff_write import write_ome_tiff

        level0 = omezarr_write.open_level0(target.store)
        ready = target.partial / ("image" + "".join(PurePath(target.path.name).suffixes[-2:]))
        with reporter.progress(f"{spec.name} TIFF", math.prod(spec.shape), unit="pixels") as progress:
            write_ome_tiff(
                ready,
                spec,
                level0.read,
                compression=run.compression,
                progress=lambda n: progress.advance(n / 1e6, steps=n),
            )
        return ready
    layout = omezarr_write.plan_layout(spec, run.grid.block_shape, target.zarr_version)
    blocks = omezarr_write.pyramid_blocks(spec, layout)
    with reporter.progress(f"{spec.name} pyramid", blocks, unit="files") as progress:
        omezarr_write.finish(
            target.store, spec, layout, target.zarr_version, progress=lambda n: progress.advance(steps=n), mark=mark
        )
    return target.store


def figures_of(run: RunRecord, records: Mapping[int, BlockRecord]) -> dict[str, Any]:
    """What is known at the end of a run, JSON-able; the same for any order in which its blocks were done."""
    seconds = dict.fromkeys(("read", "compute", "write"), 0.0)
    clipped = non_finite = 0
    notes = dict.fromkeys(run.notes)
    for number in sorted(records):
        record = records[number]
        clipped, non_finite = clipped + record.clipped, non_finite + record.non_finite
        notes |= dict.fromkeys(record.notes)
        for name in seconds:
            seconds[name] += record.seconds.get(name, 0.0)
    pixels = math.prod(run.grid.shape)
    return {
        "fingerprint": run.fingerprint,
        "blocks": len(run.grid),
        "pixels": pixels,
        "clipped": clipped,
        "clipped_fraction": clipped / pixels,
        "non_finite": non_finite,
        "seconds": {name: round(taken, 3) for name, taken in seconds.items()},
        "notes": list(notes),
    }


def finish_output(output: Place, reporter: Reporter, *, verify: bool = False, work_dir: Path | None = None) -> Outcome:
    """Make OUTPUT of a working folder whose blocks are all done; with `verify` hold each against its checksum first.

    An output that is finished is left alone, or verified. Raises IncompleteError (exit 3) for blocks that are missing
    or damaged or another run at work, FingerprintError (exit 4) for an input that has changed or an output of another
    run, InputError (exit 2) where there is nothing to finish.
    """
    target = _target_of(output, work_dir)
    with interrupt_on_signal():
        try:
            contents = unfinished_run(target)
            if contents is None:
                return _finished_before(target, reporter, verify)
            target = replace(target, format=contents.header.get("format", "ome-zarr"))
            return _finish_run(contents, target, reporter, verify)
        except LockedError as error:
            raise busy(target) from error
        except KeyboardInterrupt as error:
            raise InterruptedRunError(f"{target.path}: interrupted; run mrbcr finish again") from error
        except RemoteError as error:
            raise IncompleteError(
                f"{target.path}: cannot be reached ({error.strerror}); what is done is kept, run mrbcr finish again"
            ) from error
        except OSError as error:
            raise IncompleteError(
                f"{target.path}: cannot write ({error.strerror or error}); what is done is kept, run mrbcr finish again"
            ) from error


def _target_of(output: Place, work_dir: Path | None) -> Target:
    """The target that an argument names: an output, or its working folder, also one of a URL."""
    if isinstance(output, Path) and output.name.endswith(PARTIAL_SUFFIX):
        contents = read_ledger(output / "ledger.jsonl")
        if contents is not None and isinstance(url := contents.header.get("url"), str):
            return Target(place(url), "ome-zarr", output.parent)
        output = output.with_name(output.name.removesuffix(PARTIAL_SUFFIX))
    return Target(output, "ome-zarr", work_dir)


def _finished_before(target: Target, reporter: Reporter, verify: bool) -> Outcome:
    record = read_provenance(target.path) if target.path.exists() else None
    if record is None:
        if isinstance(target.path, RemotePath) and look(target.path).kind == "unfinished":
            raise orphan(target)
        raise InputError(f"{target.path}: no unfinished run ({target.partial.name}) and no output of mrbcr is there")
    if target.remote and standing_run(target)[0] == record.get("fingerprint"):
        end_of_earlier_run(target)
    if verify:
        checked = verify_finished(target, reporter)
        return Outcome(target.path, "verified", {"fingerprint": record.get("fingerprint"), "blocks": checked})
    reporter.info(f"{target.path}: already done, nothing to do")
    return Outcome(target.path, "unchanged", {"fingerprint": record.get("fingerprint")})


def _finish_run(contents: LedgerContents, target: Target, reporter: Reporter, verify: bool) -> Outcome:
    from mrbcr_cli.images.omezarr_write import kept_source_xml

    run = read_header(contents.header, target.ledger)
    try:
        ledger = RunLedger(target.ledger, contents.header)
    except FileNotFoundError as error:
        raise IncompleteError(f"{target.partial}: another run has just ended there; run mrbcr finish again") from error
    with ledger:
        if isinstance(target.path, Path) and target.path.exists() and not run.overwrite:
            before = read_provenance(target.path) or {}
            if before.get("fingerprint") != run.fingerprint:
                raise FingerprintError(
                    f"{target.path}: exists, made from another input, model or settings; move it away to finish "
                    f"{target.partial.name}"
                )
        _raise_if_missing(ledger, run, target, reporter)
        _check_input(run, reporter)
        if verify:
            _verify_run(ledger, run, target, reporter)
        summary = complete(contents.header, ledger.records, target, reporter, source_xml=kept_source_xml(target.store))
    clear_away(target)
    reporter.info(f"{target.path}: finished, {len(run.grid)} blocks" + (", each verified" if verify else ""))
    return Outcome(target.path, "done", {**summary, "verified": verify})


def _raise_if_missing(ledger: RunLedger, run: RunRecord, target: Target, reporter: Reporter) -> None:
    missing = [number for number in range(len(run.grid)) if number not in ledger.records]
    if not missing:
        return
    shards = shards_of(missing, ledger.shards, len(run.grid))
    reporter.event(
        "missing",
        output=str(target.path),
        blocks=list(runs_of(missing)),
        shards={str(count): indices for count, indices in shards.items()},
    )
    said = "run the deconvolve command again"
    if shards:
        alternatives = (f"{ranges_text(indices)} of {count}" for count, indices in shards.items())
        said = "run again the shards " + ", or ".join(alternatives)
    raise IncompleteError(
        f"{target.path}: {len(missing)} of {len(run.grid)} blocks are not done ({ranges_text(missing)}); "
        f"{said}, then mrbcr finish"
    )


def shards_of(missing: Iterable[int], known: Iterable[Shard], total: int) -> dict[int, list[int]]:
    """For each partition that is in use: the indices of its shards that blocks are missing of."""
    wanted = list(missing)
    return {
        count: sorted({((number + 1) * count - 1) // total for number in wanted})
        for count in sorted({shard.count for shard in known})
    }


def _verify_run(ledger: RunLedger, run: RunRecord, target: Target, reporter: Reporter) -> None:
    damaged = damaged_blocks(target.store, run.grid, range(len(run.grid)), ledger.checksums, reporter)
    if not damaged:
        return
    ledger.take_back(damaged)
    reporter.event("damaged", output=str(target.path), blocks=sorted(damaged))
    raise IncompleteError(
        f"{target.path}: {len(damaged)} of {len(run.grid)} blocks are damaged and count as not done "
        f"({damage_text(damaged)}); run the deconvolve command again to redo them"
    )


def _check_input(run: RunRecord, reporter: Reporter) -> None:
    """Refuse to finish what was read from an input that is now another; where it cannot be seen from here, say so."""
    how = {name: run.source[name] for name in ("series", "axes", "split_rgb")}
    text = run.source["text"]
    try:
        with contextlib.chdir(run.source.get("folder", ".")):
            reader = open_source(find_source(text, **how))
            try:
                now = reader.fingerprint()
            finally:
                reader.close()
    except (InputError, OSError) as error:
        reporter.warn(f"the input cannot be looked at from here, so not held against what was read ({error})")
        return
    if now != run.input_fingerprint:
        raise FingerprintError(
            f"{text}: has changed since its blocks were done; put it back, or deconvolve again with --no-resume"
        )


def end_of_earlier_run(target: Target) -> None:
    """Remove all that a run left that was killed after its last rename."""
    drop_partial(target)
    clear_away(target)
