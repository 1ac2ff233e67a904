"""Carry out a plan: working folder, blocks, pyramid or TIFF, atomic rename.

Invariant: while a run is under way all it writes is in OUTPUT.partial; OUTPUT appears by one rename, complete with its
metadata, and what stood there before (--overwrite) goes only then. Killed at any moment, the next run continues.
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
from mrbcr_cli.images import OutputFormat, SourceSpec, read_provenance
from mrbcr_cli.intensity import IntensityRange
from mrbcr_cli.plan import Plan, make_plan, provenance
from mrbcr_cli.settings import DeconvolveSettings
from mrbcr_cli.stream.blocks import Grid
from mrbcr_cli.stream.cluster import Clients
from mrbcr_cli.stream.engine import DriveResult, Job, describe, drive, forget_run
from mrbcr_cli.stream.ledger import BlockRecord, Ledger, LedgerContents, read_ledger
from mrbcr_cli.stream.signals import stop_on_signal

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
    def zarr_version(self) -> Any:
        """OME-Zarr version of the store."""
        return "0.4" if self.format == "ome-zarr-0.4" else "0.5"


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
    _check_target(source, target)
    before = None if settings.overwrite else _finished_before(target, settings)
    contents = read_ledger(target.ledger) if settings.resume else None
    plan = make_plan(source, settings, target.format, known_ranges=_ranges_of(contents, settings))
    if before is not None:
        if before.get("fingerprint") != plan.fingerprint:
            raise FingerprintError(
                f"{target.path}: exists, made from another input, model or settings; "
                "use --overwrite or another --output"
            )
        reporter.info(f"{target.path}: already done, nothing to do")
        return Outcome(target.path, "unchanged", {"fingerprint": plan.fingerprint})
    plan = _adopt(plan, contents, settings, target)
    for note in plan.notes:
        reporter.info(f"note: {note}")
    if dry_run:
        return Outcome(target.path, "planned", describe_plan(plan, target))
    try:
        return _carry_out(plan, target, settings, reporter, clients, command)
    except OSError as error:
        raise IncompleteError(
            f"{target.path}: cannot write ({error.strerror or error}); what is done is kept, "
            "run the same command to resume"
        ) from error
    finally:
        forget_run()


def _check_target(source: SourceSpec, target: Target) -> None:
    output = target.path.resolve()
    for name in source.paths:
        given = Path(name).resolve()
        if output == given:
            raise InputError(f"{target.path}: the output is the input; choose another --output")
        if given in output.parents and given.is_dir():
            raise InputError(f"{target.path}: the output lies inside the input {name}; choose another --output")
        if output in given.parents:
            raise InputError(f"{target.path}: the input {name} lies inside the output; choose another --output")
    parent = target.path.parent
    if parent.exists() and not parent.is_dir():
        raise InputError(f"{parent}: is not a folder, so {target.path.name} cannot be written there")


def _finished_before(target: Target, settings: DeconvolveSettings) -> dict[str, Any] | None:
    """Provenance of a finished output of ours that a resuming run may recognise; None when nothing is there."""
    if not target.path.exists():
        return None
    found = read_provenance(target.path)
    if found is None or not settings.resume:
        raise InputError(f"{target.path}: exists; use --overwrite to replace it, or another --output")
    return dict(found)


def _ranges_of(contents: LedgerContents | None, settings: DeconvolveSettings) -> tuple[IntensityRange, ...] | None:
    if contents is None or settings.overwrite or settings.range is not None:
        return None
    try:
        return tuple(IntensityRange(**r) for r in contents.header["ranges"])
    except (KeyError, TypeError, ValueError):
        return None


def _adopt(plan: Plan, contents: LedgerContents | None, settings: DeconvolveSettings, target: Target) -> Plan:
    """Take over the block grid of the unfinished run that is to be resumed, or refuse to mix two runs."""
    if contents is None or settings.overwrite:
        return plan
    if contents.header.get("fingerprint") != plan.fingerprint:
        raise FingerprintError(
            f"{target.partial}: holds an unfinished run of another input, model or settings; "
            "use --overwrite or --no-resume to drop it, or another --output"
        )
    grid = Grid.from_dict(contents.header["grid"])
    if settings.tile_size is not None and grid.block_shape != plan.grid.block_shape:
        raise FingerprintError(
            f"{target.partial}: was begun with blocks of {grid.block_shape[-2]} x {grid.block_shape[-1]} px; "
            "leave --tile-size out to resume it, or use --no-resume to start again"
        )
    return replace(plan, grid=grid)


def _carry_out(
    plan: Plan, target: Target, settings: DeconvolveSettings, reporter: Reporter, clients: Clients, command: str
) -> Outcome:
    from mrbcr_cli.images.omezarr_write import create_level0, plan_layout

    started = time.monotonic()
    if target.partial.exists() and (settings.overwrite or not settings.resume or read_ledger(target.ledger) is None):
        _refuse_foreign_partial(target)
        shutil.rmtree(target.partial)
    target.partial.mkdir(parents=True, exist_ok=True)
    record = provenance(plan, settings, command, __version__)
    layout = plan_layout(plan.spec, plan.grid.block_shape, target.zarr_version)
    create_level0(target.store, plan.spec, layout, target.zarr_version)
    header = {
        "fingerprint": plan.fingerprint,
        "grid": plan.grid.to_dict(),
        "ranges": [asdict(r) for r in plan.ranges],
        "command": command,
    }
    job = Job(
        run=plan.fingerprint,
        source=plan.source,
        store=str(target.store),
        grid=plan.grid,
        methods=tuple(m.spec for m in plan.methods),
        ranges=plan.ranges,
        dtype=plan.spec.dtype.name,
        nan_policy=settings.nan_policy,
        torch_threads=plan.torch_threads,
    )
    with Ledger(target.ledger, header) as ledger:
        resumed = len(ledger.records)
        if resumed:
            reporter.info(f"resuming {target.path.name}: {resumed} of {len(plan.grid)} blocks are done")
        result = _drive(plan, job, ledger, reporter, clients)
        records = dict(ledger.records)
    _raise_if_unfinished(result, plan, target)
    summary = _summary(plan, records, resumed, time.monotonic() - started)
    spec = replace(
        plan.spec, provenance={**record, **{k: summary[k] for k in ("clipped_fraction", "non_finite", "notes")}}
    )
    _finish(plan, target, settings, spec, layout, reporter)
    summary["seconds"]["total"] = round(time.monotonic() - started, 3)
    _say_done(target, plan, summary, reporter)
    return Outcome(target.path, "done", summary)


def _drive(plan: Plan, job: Job, ledger: Ledger, reporter: Reporter, clients: Clients) -> DriveResult:
    todo = (n for n in range(len(plan.grid)) if n not in ledger.records)
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
            reporter.event("block", number=record.block, seconds=record.seconds)
            for note in record.notes:
                if note not in shown:
                    shown.add(note)
                    reporter.warn(note)

        return drive(clients.get(), job, iter(todo), clients.window(plan.workers), on_done, stop)


def _raise_if_unfinished(result: DriveResult, plan: Plan, target: Target) -> None:
    resume = "run the same command to resume"
    if isinstance(result.fatal, InputError):
        shutil.rmtree(target.partial)  # refused input leaves nothing behind
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
        "workers": plan.workers,
        "seconds": {**seconds, "blocks_wall": round(wall_s, 3)},
        "notes": list(dict.fromkeys([*plan.notes, *(note for r in records.values() for note in r.notes)])),
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
    _put_in_place(ready, target)


def _put_in_place(ready: Path, target: Target) -> None:
    """Rename the finished result to its name; an older output steps aside first and is removed last."""
    aside = target.partial / "replaced"
    if target.path.exists():
        target.path.rename(aside)
    ready.rename(target.path)
    shutil.rmtree(target.partial)


def _refuse_foreign_partial(target: Target) -> None:
    """Do not delete a folder that is not ours, whatever it is called."""
    ours = {"ledger.jsonl", "image.ome.zarr", "replaced"}
    strangers = [p.name for p in target.partial.iterdir() if p.name not in ours and not p.name.startswith("image.")]
    if strangers:
        raise InputError(f"{target.partial}: holds files that are not mrbcr's ({strangers[0]}); move it away")


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
        "workers": plan.workers,
        "torch_threads": plan.torch_threads,
        "expected_memory_bytes": plan.expected_bytes,
        "megapixels_with_halo": round(plan.read_megapixels, 3),
        "channels": [m.description for m in plan.methods],
        "ranges": [asdict(r) for r in plan.ranges],
        "fingerprint": plan.fingerprint,
        "notes": list(plan.notes),
    }
    return described if target is None else {"output": str(target.path), "format": target.format, **described}


def _say_done(target: Target, plan: Plan, summary: dict[str, Any], reporter: Reporter) -> None:
    speed = summary["pixels"] / 1e6 / max(summary["seconds"]["total"], 1e-9)
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
