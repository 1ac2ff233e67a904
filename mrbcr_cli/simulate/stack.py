"""Carry out a plan of `mrbcr simulate stack`: sample the light, make the blocks, finish image and truth.

Invariant: the same command may be run again after any end of a run and ends with the bytes of an undisturbed one; the
truth takes its name first and the image last, so a stack that is there is complete and has its truth beside it.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mrbcr_cli import __version__
from mrbcr_cli.configuration import load_configuration
from mrbcr_cli.console import Reporter, bytes_text, clock_text
from mrbcr_cli.errors import FingerprintError, IncompleteError, InputError, InterruptedRunError
from mrbcr_cli.images import TIFF_SUFFIXES, OutputFormat, SourceSpec, open_source, output_format, read_provenance
from mrbcr_cli.images.base import OutputSpec
from mrbcr_cli.images.write_array import check_free
from mrbcr_cli.optics.imaging import Kernel
from mrbcr_cli.simulate.stack_blocks import DARK, Job, save_kernel, work_here, work_there
from mrbcr_cli.simulate.stack_grid import PEAK_SHARE, make_grid, sampled_blocks
from mrbcr_cli.simulate.stack_light import VolumeLight
from mrbcr_cli.simulate.stack_plan import StackPlan, describe_plan, plan_stack, provenance, source_of, truth_meaning
from mrbcr_cli.simulate.stack_settings import StackSettings
from mrbcr_cli.stream.ledger import Ledger, LockedError
from mrbcr_cli.stream.pool import RESUME, Submit, Work, drive, workers_for
from mrbcr_cli.stream.records import BlockRecord
from mrbcr_cli.stream.signals import interrupt_on_signal, stop_on_signal
from mrbcr_cli.workfolder import (
    LocalTarget,
    busy,
    check_target,
    drop_partial,
    finished_before,
    put_in_place,
    unfinished_run,
)

COMMAND = "mrbcr simulate stack"
_SUFFIXES = (*TIFF_SUFFIXES, ".zarr")
_FAR_BRIGHTER = 20.0
"""Times the peak: a voxel that bright makes the photons of the peak misleading, and is worth a note."""


@dataclass(frozen=True)
class Places:
    """Where image and truth go."""

    target: LocalTarget
    truth: Path | None
    truth_format: OutputFormat

    @property
    def truth_store(self) -> Path:
        """Level 0 of the truth while it is being written."""
        return self.target.partial / "image.truth.ome.zarr"


def simulate_stack(
    options: dict[str, Any],
    config: Path | None,
    output: Path,
    reporter: Reporter,
    *,
    command: str,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Make a stack. Raises the MrbcrError that says what went wrong and what is left."""
    settings = load_configuration(StackSettings, config, options, COMMAND)
    check_free(output, overwrite=overwrite, suffixes=_SUFFIXES)
    target = LocalTarget(output, output_format(output) or "ome-zarr")
    places = _places(settings, target)
    source = source_of(settings)
    if source is not None:
        for path in (output, places.truth):
            if path is not None:
                check_target(source, replace(target, path=path))
    with interrupt_on_signal():
        try:
            finished_before(target, resume=False, overwrite=overwrite)
            begun = unfinished_run(target)
            began = None if begun is None else begun.header.get("fingerprint")
            truth_done = _truth_done(places, began, overwrite=overwrite)
            plan = plan_stack(settings, source, target)
            if truth_done and began != plan.fingerprint:
                truth_done = _truth_done(places, None, overwrite=overwrite)  # it is another run's
            for note in plan.notes:
                reporter.info(f"note: {note}")
            if dry_run:
                _say_plan(plan, places, reporter)
                return
            _carry_out(plan, places, reporter, command, ours=began == plan.fingerprint, truth_done=truth_done)
        except KeyboardInterrupt as error:
            raise InterruptedRunError(f"{output}: interrupted; {RESUME}") from error
        except LockedError as error:
            raise busy(target) from error
        except OSError as error:
            raise IncompleteError(
                f"{output}: cannot write ({error.strerror or error}); what is done is kept, {RESUME}"
            ) from error


def _places(settings: StackSettings, target: LocalTarget) -> Places:
    """Name the truth after the image, unless it has a name. Raises InputError for a name that cannot be written."""
    if settings.no_truth:
        return Places(target, None, target.format)
    name = target.path.name
    truth = settings.truth
    if truth is None:
        stem = SourceSpec((name,), name).stem
        truth = target.path.with_name(f"{stem}_truth{name[len(stem) :]}")
    check_free(truth, overwrite=True, suffixes=_SUFFIXES)
    if truth.resolve() == target.path.resolve():
        raise InputError(f"{truth}: is the name of the stack itself; choose another --truth")
    if _disk_of(truth) != _disk_of(target.path):
        raise InputError(f"{truth}: is on another disk than {target.path}; choose a --truth beside it")
    return Places(target, truth, output_format(truth) or "ome-zarr")


def _disk_of(path: Path) -> int:
    """The device of the folder that a file will be in, or of the first one above that exists."""
    return next(parent for parent in path.absolute().parents if parent.exists()).stat().st_dev


def _truth_done(places: Places, began: str | None, *, overwrite: bool) -> bool:
    """Tell whether the unfinished run has put its truth in place already. Raises InputError where another stands."""
    if places.truth is None or not places.truth.exists():
        return False
    found = read_provenance(places.truth) or {}
    if began is not None and found.get("fingerprint") == began:
        return True
    check_free(places.truth, overwrite=overwrite, suffixes=_SUFFIXES)
    return False


def _say_plan(plan: StackPlan, places: Places, reporter: Reporter) -> None:
    facts = describe_plan(plan, places.target, places.truth)
    reporter.event("planned", **facts)
    truth = f", its truth {bytes_text(facts['truth_bytes'])}" if places.truth is not None else ""
    reporter.data(
        f"{places.target.path}: would write {'x'.join(map(str, plan.spec.shape))} ZYX {plan.spec.dtype}, "
        f"{bytes_text(facts['bytes'])}{truth}, in {facts['blocks']} blocks of "
        f"{'x'.join(map(str, facts['block_shape']))}, {plan.workers} at a time, about "
        f"{bytes_text(plan.expected_bytes)} of memory"
    )


def _carry_out(
    plan: StackPlan, places: Places, reporter: Reporter, command: str, *, ours: bool, truth_done: bool
) -> None:
    from mrbcr_cli.images.omezarr_write import create_level0, plan_layout

    target, started = places.target, time.monotonic()
    ours = ours and (places.truth is None or truth_done or places.truth_store.is_dir())
    if not ours:
        if target.ledger.exists():
            reporter.info(f"{target.partial.name}: an unfinished run of other settings; starting anew")
        truth_done = False
        drop_partial(target)
    target.partial.mkdir(parents=True, exist_ok=True)
    header = {
        "fingerprint": plan.fingerprint,
        "version": __version__,
        "grid": plan.job.grid.to_dict(),
        "command": command,
    }
    layouts = {store: plan_layout(spec, plan.job.grid.block_shape, "0.5") for store, spec in _stores(plan, places)}
    with Ledger(target.ledger, header) as ledger:
        for store, spec in _stores(plan, places):
            if store == target.store or not truth_done:
                create_level0(store, spec, layouts[store], "0.5")
        resumed = len(ledger.records)
        if resumed:
            reporter.info(f"resuming {target.path.name}: {resumed} of {len(plan.job.grid)} blocks are done")
        _warn_of_full_disk(plan, places, resumed, reporter)
        scale = _make_blocks(plan, places, ledger, reporter)
        _raise_if_source_changed(plan, target)
        summary = _summary(plan, ledger.records, resumed)
        facts = {**provenance(plan, command, scale), **summary}
        for store, spec in reversed(_stores(plan, places)):
            if store == target.store or not truth_done:
                told = facts if store == target.store else {**facts, "kind": "truth", "values": truth_meaning(plan)}
                _finish(store, replace(spec, provenance=told), layouts[store], places, plan, reporter)
    _say_done(plan, places, facts, time.monotonic() - started, reporter)


def _raise_if_source_changed(plan: StackPlan, target: LocalTarget) -> None:
    """Blocks that were made while the user's volume changed do not belong together."""
    if not isinstance(plan.job.light, VolumeLight):
        return
    reader = open_source(plan.job.light.source)
    try:
        same = reader.fingerprint() == plan.specimen["fingerprint"]
    finally:
        reader.close()
    if not same:
        target.ledger.unlink()
        raise FingerprintError(
            f"{plan.job.light.source.label}: changed while it was read; run the same command to start again"
        )


def _stores(plan: StackPlan, places: Places) -> list[tuple[Path, OutputSpec]]:
    image = (places.target.store, plan.spec)
    return [image] if places.truth is None else [image, (places.truth_store, plan.truth_spec)]


def _warn_of_full_disk(plan: StackPlan, places: Places, done: int, reporter: Reporter) -> None:
    """Noise hardly shrinks by compression: warn where the disk cannot hold half of it."""
    wanted = sum(math.prod(spec.shape) * spec.dtype.itemsize for _, spec in _stores(plan, places))
    wanted = wanted * (len(plan.job.grid) - done) // len(plan.job.grid)
    free = shutil.disk_usage(places.target.partial).free
    if free < wanted / 2:
        reporter.warn(f"{bytes_text(free)} are free on the disk, for {bytes_text(wanted)} before compression")


def _make_blocks(plan: StackPlan, places: Places, ledger: Ledger, reporter: Reporter) -> dict[str, Any]:
    """Have all blocks made that the ledger lacks; return the scale of light. Raises what ends the run early."""
    grid, target = plan.job.grid, places.target
    known = _read_scale(target)
    missing = [number for number in range(len(grid)) if number not in ledger.records]
    if known is not None and not missing:
        return known
    label = target.path.name
    with (
        stop_on_signal(reporter.info) as stop,
        workers_for(plan.workers, _work(plan.job, plan.workers), partial(work_here, plan.job)) as submit,
        reporter.progress(label, len(grid), done=len(ledger.records)) as progress,
    ):
        if known is None:
            known = _sample_light(plan, places, submit, stop.is_set)
            _write_scale(target, known)
            ratio = known["brightest"] / known["photons"] if known["photons"] else 1.0
            if not plan.job.transmitted and ratio > _FAR_BRIGHTER:
                reporter.warn(
                    f"the brightest voxel looked at gets {known['brightest']:.3g} photons, {ratio:.0f} times the peak "
                    "(the 99.99th percentile): the specimen is sparse; lower --photons if that is too much"
                )

        def on_done(record: BlockRecord) -> None:
            ledger.append(record)
            voxels = math.prod(s.stop - s.start for s in grid.block(record.block).core)
            progress.advance(voxels / 1e6)
            reporter.event("block", output=str(target.path), number=record.block, seconds=record.seconds)

        tasks = (("render", number, known["factor"]) for number in missing)
        drive(tasks, submit, plan.workers, on_done, stop.is_set, target.path, target.partial)
    return known


def _work(job: Job, workers: int) -> Callable[[], Work]:
    """What a worker process begins with. The kernel, which is large, goes to it by a file."""
    kernel = job.folder / "image.kernel.npz"
    if workers > 1:
        save_kernel(kernel, job.kernel)
    return partial(work_there, replace(job, kernel=Kernel(np.ones((1, 1, 1), np.float32), None)), kernel)


def _sample_light(plan: StackPlan, places: Places, submit: Submit, stopped: Callable[[], bool]) -> dict[str, Any]:
    """Look at a few blocks, and return what turns their light into photons. Raises InputError where there is none."""
    job, grid = plan.job, plan.job.grid
    if job.transmitted:
        flat = make_grid((1, *grid.shape[1:]), (1, *grid.block_shape[1:]))  # type: ignore[arg-type]
        numbers, method = sampled_blocks(flat), "sample_columns"
        looked_at = sum(math.prod(s.stop - s.start for s in flat.block(n).core) for n in numbers)
    else:
        numbers, method = sampled_blocks(grid), "sample"
        looked_at = sum(math.prod(s.stop - s.start for s in grid.block(n).core) for n in numbers)
    count = max(1, math.ceil(PEAK_SHARE * looked_at))
    found: list[Any] = []
    tasks = ((method, n, count) for n in numbers)
    drive(tasks, submit, plan.workers, found.append, stopped, places.target.path, places.target.partial)
    values = np.sort(np.concatenate(found))[::-1]
    peak, brightest = float(values[min(count, len(values)) - 1]), float(values[0])
    if not peak > 0:
        places.target.ledger.unlink()
        shutil.rmtree(places.target.partial)
        raise InputError(
            f"the specimen has no light in {len(numbers)} of {len(grid)} blocks looked at; raise --density or --size, "
            "or choose another --seed"
        )
    factor = (1.0 if job.transmitted else job.photons) / peak
    return {
        "photons": job.photons,
        "background": job.background,
        "factor": factor,
        "peak": peak,
        "peak_is": (
            "99.99th percentile of the columns' light"
            if job.transmitted
            else "99.99th percentile of the noise-free image without background"
        ),
        "brightest": brightest * factor,
        "sampled_blocks": list(numbers),
        "of": "bright field" if job.transmitted else "peak",
    }


def _scale_file(target: LocalTarget) -> Path:
    return target.partial / "image.scale.json"


def _read_scale(target: LocalTarget) -> dict[str, Any] | None:
    """What an earlier, unfinished run of the same fingerprint found."""
    try:
        found = json.loads(_scale_file(target).read_bytes())
    except (OSError, ValueError):
        return None  # none, or torn: it is found again
    return found if isinstance(found, dict) and "factor" in found else None


def _write_scale(target: LocalTarget, scale: dict[str, Any]) -> None:
    from mrbcr_cli.whole_file import put_durably

    put_durably(_scale_file(target), json.dumps(scale).encode())


def _summary(plan: StackPlan, records: Mapping[int, BlockRecord], resumed: int) -> dict[str, Any]:
    dark = sum(int(note.split()[0]) for r in records.values() for note in r.notes if note.endswith(DARK))
    voxels = math.prod(plan.spec.shape)
    saturated = sum(r.clipped for r in records.values())
    return {"saturated": saturated, "saturated_fraction": saturated / voxels, "below_zero_light": dark}


def _finish(store: Path, spec: OutputSpec, layout: Any, places: Places, plan: StackPlan, reporter: Reporter) -> None:
    """Complete image or truth, and give it its name."""
    from mrbcr_cli.images import omezarr_write

    target, is_image = places.target, store == places.target.store
    path = target.path if is_image else places.truth
    if path is None:
        raise ValueError("there is no truth to finish")
    wanted = target.format if is_image else places.truth_format
    label = path.name
    if wanted == "ome-tiff":
        from mrbcr_cli.images.tiff_write import write_ome_tiff

        level0 = omezarr_write.open_level0(store)
        ready = target.partial / f"image.{'stack' if is_image else 'truth'}.tif"
        pixels = math.prod(spec.shape)
        with reporter.progress(f"{label} TIFF", pixels, unit="pixels") as progress:
            write_ome_tiff(
                ready,
                spec,
                level0.read,
                compression=plan.settings.compression,
                progress=lambda n: progress.advance(n / 1e6, steps=n),
            )
    else:
        ready, blocks = store, omezarr_write.pyramid_blocks(spec, layout)
        with reporter.progress(f"{label} pyramid", blocks, unit="files") as progress:
            omezarr_write.finish(store, spec, layout, "0.5", progress=lambda n: progress.advance(steps=n))
    if is_image:
        put_in_place(ready, target)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)  # --overwrite; the stack it belonged to is replaced next
    ready.replace(path)


def _say_done(plan: StackPlan, places: Places, facts: dict[str, Any], seconds: float, reporter: Reporter) -> None:
    size = "x".join(map(str, plan.spec.shape))
    speed = math.prod(plan.spec.shape) / 1e6 / max(seconds, 1e-9)
    path, light = places.target.path, facts["light"]
    reporter.info(f"{path}: {size} ZYX in {clock_text(seconds)} ({speed:.2f} Mvoxel/s)")
    psf = facts["psf"]
    reporter.info(
        f"PSF: light up to {psf['reach_um']:.3g} um out of focus ({psf['reach_planes']} planes) and "
        f"{psf['half_width_px'] * plan.setup.pixel_um:.3g} um sideways"
    )
    what = "bright field" if plan.job.transmitted else f"peak, brightest voxel looked at {light['brightest']:.4g}"
    reporter.info(f"light: {light['photons']:g} photons at the {what}; background {light['background']:g}")
    if places.truth is not None:
        reporter.info(f"truth: {places.truth.name}, {truth_meaning(plan)}")
    if facts["saturated"]:
        reporter.warn(
            f"{100 * facts['saturated_fraction']:.3g} % of the pixels are saturated; lower --photons or --gain"
        )
    if facts["below_zero_light"]:
        reporter.warn(
            f"{facts['below_zero_light']} pixels came out below no light and were set to none: the specimen is too "
            "strong for weak-object imaging; lower --absorption or --phase"
        )
    truth = None if places.truth is None else str(places.truth)
    told = {name: value for name, value in facts.items() if name != "kind"}
    reporter.event("stack", output=str(path), truth=truth, seconds=round(seconds, 3), **told)
    reporter.data(str(path))
