"""Carry out a plan: working folder, blocks, pyramid or TIFF, atomic rename.

Invariant: the same command may be run again after any end of a run, and ends with the pixels of an undisturbed one;
blocks that are done are not done again.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mrbcr_cli import __version__
from mrbcr_cli.console import Reporter, clock_text
from mrbcr_cli.errors import FingerprintError, IncompleteError, InputError, InterruptedRunError
from mrbcr_cli.images import SourceSpec
from mrbcr_cli.intensity import IntensityRange
from mrbcr_cli.plan import Plan, make_plan, provenance
from mrbcr_cli.settings import DeconvolveSettings
from mrbcr_cli.stream.blocks import Grid
from mrbcr_cli.stream.cluster import Clients
from mrbcr_cli.stream.drive import DriveResult, drive
from mrbcr_cli.stream.engine import Job, RefusedError, describe, forget_run
from mrbcr_cli.stream.ledger import BlockRecord, Ledger, LedgerContents, LockedError
from mrbcr_cli.stream.signals import stop_on_signal
from mrbcr_cli.workfolder import Target, busy, check_target, drop_partial, finished_before, put_in_place, unfinished_run


@dataclass(frozen=True)
class Outcome:
    """What became of one input."""

    output: Path
    status: str
    """ "done", "unchanged" (it was done before) or "planned" (--dry-run)."""
    summary: dict[str, Any]


def deconvolve_file(
    source: SourceSpec,
    target: Target,
    settings: DeconvolveSettings,
    reporter: Reporter,
    *,
    clients: Clients,
    command: str,
    dry_run: bool = False,
) -> Outcome:
    """Deconvolve one image. Raises the MrbcrError that says what went wrong and what is left."""
    check_target(source, target)
    before = finished_before(target, resume=settings.resume, overwrite=settings.overwrite)
    contents = unfinished_run(target) if settings.resume else None
    plan = make_plan(source, settings, target.format, known_ranges=_ranges_of(contents, settings))
    ours = contents is not None and contents.header.get("fingerprint") == plan.fingerprint
    if before is not None:
        if before.get("fingerprint") != plan.fingerprint:
            raise FingerprintError(
                f"{target.path}: exists, made from another input, model or settings; "
                "use --overwrite or another --output"
            )
        if ours:
            drop_partial(target)  # all that a run left that was killed after its last rename
        reporter.info(f"{target.path}: already done, nothing to do")
        return Outcome(target.path, "unchanged", {"fingerprint": plan.fingerprint})
    if contents is not None and ours:
        plan = _adopt(plan, contents, settings, target)
    elif contents is not None and not settings.overwrite:
        raise FingerprintError(
            f"{target.partial}: holds an unfinished run of another input, model or settings; "
            "use --overwrite or --no-resume to drop it, or another --output"
        )
    for note in plan.notes:
        reporter.info(f"note: {note}")
    for warning in plan.warnings:
        reporter.warn(f"{source.label}: {warning}")
        reporter.event("warning", input=source.label, output=str(target.path), message=warning)
    if dry_run:
        return Outcome(target.path, "planned", describe_plan(plan, target))
    try:
        if not ours:
            drop_partial(target)
        return _carry_out(plan, target, settings, reporter, clients, command)
    except LockedError as error:
        raise busy(target) from error
    except OSError as error:
        raise IncompleteError(
            f"{target.path}: cannot write ({error.strerror or error}); what is done is kept, "
            "run the same command to resume"
        ) from error
    finally:
        forget_run()


def _ranges_of(contents: LedgerContents | None, settings: DeconvolveSettings) -> tuple[IntensityRange, ...] | None:
    if contents is None or settings.range is not None:
        return None
    try:
        return tuple(IntensityRange.from_dict(r) for r in contents.header["ranges"])
    except (KeyError, TypeError, ValueError):
        return None


def _adopt(plan: Plan, contents: LedgerContents, settings: DeconvolveSettings, target: Target) -> Plan:
    """Take over the block grid and the notes of the unfinished run of the same fingerprint that is to be resumed.

    Raises FingerprintError when it was begun by another version, or with another tile size than is asked for now.
    """
    began = contents.header.get("version")
    if began != __version__:
        raise FingerprintError(
            f"{target.partial}: was begun by mrbcr {began}, this is {__version__}; use --no-resume to start again"
        )
    grid = Grid.from_dict(contents.header["grid"])
    if settings.tile_size is not None and grid.block_shape != plan.grid.block_shape:
        raise FingerprintError(
            f"{target.partial}: was begun with blocks of {grid.block_shape[-2]} x {grid.block_shape[-1]} px; "
            "leave --tile-size out to resume it, or use --no-resume to start again"
        )
    notes = tuple(dict.fromkeys([*map(str, contents.header.get("notes", [])), *plan.notes]))
    judged: dict[str, Any] = {}
    if settings.domain_check:
        judged = {"domain": tuple(contents.header.get("domain", ())), "warnings": contents.header.get("warnings", ())}
    return replace(plan.with_grid(grid, settings), notes=notes, **judged)


def _carry_out(
    plan: Plan, target: Target, settings: DeconvolveSettings, reporter: Reporter, clients: Clients, command: str
) -> Outcome:
    from mrbcr_cli.images.omezarr_write import create_level0, plan_layout

    started = time.monotonic()
    target.partial.mkdir(parents=True, exist_ok=True)
    record = provenance(plan, settings, command, __version__)
    layout = plan_layout(plan.spec, plan.grid.block_shape, target.zarr_version)
    header = {
        "fingerprint": plan.fingerprint,
        "version": __version__,
        "grid": plan.grid.to_dict(),
        "ranges": [asdict(r) for r in plan.ranges],
        "notes": list(plan.notes),
        "domain": list(plan.domain),
        "warnings": list(plan.warnings),
        "command": command,
    }
    with Ledger(target.ledger, header) as ledger:
        create_level0(target.store, plan.spec, layout, target.zarr_version)
        resumed = len(ledger.records)
        if resumed:
            reporter.info(f"resuming {target.path.name}: {resumed} of {len(plan.grid)} blocks are done")
        result = _drive(plan, _job(plan, target, settings), target, ledger, reporter, clients)
        _raise_if_unfinished(result, plan, target, len(ledger.records))
        _raise_if_input_changed(plan, target)
        summary = _summary(plan, ledger.records, resumed, time.monotonic() - started)
        summary["blocks_redone"] = len(result.redone)
        known = {key: summary[key] for key in ("clipped_fraction", "non_finite", "notes")}
        spec = replace(plan.spec, provenance={**record, **known})
        try:
            _finish(plan, target, settings, spec, layout, reporter)
        except InputError as error:  # what was written cannot be read back
            raise IncompleteError(f"{error}; use --no-resume to compute it again") from error
    summary["seconds"]["total"] = round(time.monotonic() - started, 3)
    _say_done(target, plan, summary, reporter)
    return Outcome(target.path, "done", summary)


def _job(plan: Plan, target: Target, settings: DeconvolveSettings) -> Job:
    return Job(
        run=plan.fingerprint,
        source=plan.source,
        store=str(target.store),
        grid=plan.grid,
        methods=tuple(m.spec for m in plan.methods),
        ranges=plan.ranges,
        dtype=plan.spec.dtype.name,
        nan_policy=settings.nan_policy,
        torch_threads=plan.share.torch_threads,
    )


def _drive(plan: Plan, job: Job, target: Target, ledger: Ledger, reporter: Reporter, clients: Clients) -> DriveResult:
    remaining = (n for n in range(len(plan.grid)) if n not in ledger.records)
    label = plan.source.stem
    shown: set[str] = set()
    with (
        stop_on_signal(reporter.info) as stop,
        reporter.progress(label, len(plan.grid), done=len(ledger.records)) as progress,
    ):

        def on_done(record: BlockRecord) -> None:
            ledger.append(record)
            pixels = math.prod(s.stop - s.start for s in plan.grid.block(record.block).core)
            progress.advance(pixels / 1e6)
            reporter.event("block", output=str(target.path), number=record.block, seconds=record.seconds)
            for note in record.notes:
                if note not in shown:
                    shown.add(note)
                    reporter.warn(note)

        return drive(clients, job, iter(remaining), plan.share.workers, on_done, stop)


def _raise_if_unfinished(result: DriveResult, plan: Plan, target: Target, done: int) -> None:
    resume = "run the same command to resume"
    if isinstance(result.fatal, RefusedError) and done == 0:
        # Refused input leaves nothing behind, unless work was done by then; the ledger goes first, its lock is ours.
        target.ledger.unlink()
        shutil.rmtree(target.partial)
        raise result.fatal
    if result.interrupted:
        raise InterruptedRunError(
            f"{target.path}: interrupted; finished blocks are kept in {target.partial.name}, {resume}"
        )
    if result.fatal is not None:
        raise IncompleteError(f"{target.path}: stopped ({describe(result.fatal)}); finished blocks are kept, {resume}")
    if result.failed:
        number, why = next(iter(result.failed.items()))
        raise IncompleteError(
            f"{target.path}: {len(result.failed)} of {len(plan.grid)} blocks failed (block {number}: {why}); "
            f"the others are kept, {resume}"
        )


def _raise_if_input_changed(plan: Plan, target: Target) -> None:
    """Pixels that were read while the input changed or was out of reach are not to be trusted."""
    from mrbcr_cli.images import open_source

    reader = open_source(plan.source)
    try:
        same = reader.fingerprint() == plan.input_fingerprint
    finally:
        reader.close()
    if not same:
        target.ledger.unlink()
        raise FingerprintError(f"{plan.source.label}: changed while it was read; run the same command to start again")


def _summary(plan: Plan, records: dict[int, BlockRecord], resumed: int, wall_s: float) -> dict[str, Any]:
    pixels = math.prod(plan.grid.shape)
    seconds = {
        name: round(sum(r.seconds.get(name, 0.0) for r in records.values()), 3) for name in ("read", "compute", "write")
    }
    clipped = sum(r.clipped for r in records.values())
    return {
        "fingerprint": plan.fingerprint,
        "blocks": len(plan.grid),
        "blocks_resumed": resumed,
        "pixels": pixels,
        "clipped": clipped,
        "clipped_fraction": clipped / pixels,
        "non_finite": sum(r.non_finite for r in records.values()),
        "workers": plan.share.workers,
        "seconds": {**seconds, "blocks_wall": round(wall_s, 3)},
        "notes": list(
            dict.fromkeys([*plan.notes, *plan.warnings, *(note for r in records.values() for note in r.notes)])
        ),
    }


def _finish(
    plan: Plan, target: Target, settings: DeconvolveSettings, spec: Any, layout: Any, reporter: Reporter
) -> None:
    from mrbcr_cli.images import omezarr_write

    if target.format == "ome-tiff":
        from mrbcr_cli.images.tiff_write import write_ome_tiff

        level0 = omezarr_write.open_level0(target.store)
        ready = target.partial / ("image" + "".join(target.path.suffixes[-2:]))
        pixels = math.prod(spec.shape)
        with reporter.progress(f"{plan.source.stem} TIFF", pixels, unit="pixels") as progress:
            write_ome_tiff(
                ready,
                spec,
                level0.read,
                compression=settings.compression,
                progress=lambda n: progress.advance(n / 1e6, steps=n),
            )
    else:
        ready = target.store
        blocks = omezarr_write.pyramid_blocks(spec, layout)
        with reporter.progress(f"{plan.source.stem} pyramid", blocks, unit="files") as progress:
            omezarr_write.finish(
                target.store, spec, layout, target.zarr_version, progress=lambda n: progress.advance(steps=n)
            )
    put_in_place(ready, target)


def describe_plan(plan: Plan, target: Target | None) -> dict[str, Any]:
    """Return a plan as JSON-able facts, for --dry-run and `mrbcr info --plan`."""
    described: dict[str, Any] = {
        "input": plan.source.label,
        "axes": plan.grid.axes,
        "shape": list(plan.grid.shape),
        "dtype": plan.spec.dtype.name,
        "blocks": len(plan.grid),
        "block_shape": list(plan.grid.block_shape),
        "halo": list(plan.grid.halo),
        "workers": plan.share.workers,
        "torch_threads": plan.share.torch_threads,
        "expected_memory_bytes": plan.expected_bytes,
        "megapixels_with_halo": round(plan.read_megapixels, 3),
        "channels": [m.description for m in plan.methods],
        "ranges": [asdict(r) for r in plan.ranges],
        "fingerprint": plan.fingerprint,
        "notes": list(plan.notes),
        "domain": list(plan.domain),
        "warnings": list(plan.warnings),
    }
    return described if target is None else {"output": str(target.path), "format": target.format, **described}


def _say_done(target: Target, plan: Plan, summary: dict[str, Any], reporter: Reporter) -> None:
    fresh = summary["pixels"] * (1 - summary["blocks_resumed"] / summary["blocks"])
    speed = fresh / 1e6 / max(summary["seconds"]["total"], 1e-9)
    reporter.info(
        f"{target.path}: {'x'.join(map(str, plan.grid.shape))} {plan.grid.axes} in "
        f"{clock_text(summary['seconds']['total'])} ({speed:.2f} Mpixel/s)"
    )
    if summary["clipped"]:
        share = 100 * summary["clipped_fraction"]
        reporter.info(
            f"{share:.2g} % of the pixels left the range of {plan.spec.dtype} and were clipped; "
            "--output-dtype float32 keeps them"
        )
    if summary["non_finite"]:
        reporter.warn(f"{summary['non_finite']} pixels of the input were NaN or infinite")
