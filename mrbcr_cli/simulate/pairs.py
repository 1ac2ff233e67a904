"""`mrbcr simulate pairs`: from settings to a finished set of training pairs.

Invariant: the same settings and sources give the same bytes, whatever the number of workers and however often the run
was interrupted; the output appears under its name only when all of it is there.
"""

from __future__ import annotations

import glob
import hashlib
import json
import threading
import time
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mrbcr_cli import __version__
from mrbcr_cli.capacity import cpu_count
from mrbcr_cli.console import Reporter, clock_text
from mrbcr_cli.errors import FingerprintError, IncompleteError, InputError
from mrbcr_cli.images.pairs_store import SHARD, create_pairs, finish_pairs, read_info, read_pairs, write_shard
from mrbcr_cli.images.write_array import check_free
from mrbcr_cli.simulate.conditions import StoredFocus, check_extremes
from mrbcr_cli.simulate.image_scene import StoredPsfPlanes
from mrbcr_cli.simulate.npz import check_npz
from mrbcr_cli.simulate.pair import PairsJob, make_pair
from mrbcr_cli.simulate.pairs_settings import PairsSettings
from mrbcr_cli.simulate.sources import SPLITS, apportion, find_sources, split_sources
from mrbcr_cli.stream.ledger import Ledger, LockedError, read_ledger
from mrbcr_cli.stream.pool import RESUME, Work, drive, workers_for
from mrbcr_cli.stream.records import BlockRecord
from mrbcr_cli.stream.signals import stop_on_signal
from mrbcr_cli.workfolder import LocalTarget, busy, check_place, drop_partial, finished_before, put_in_place

_SHEET = 16
_IN_FLIGHT = 2
"""Shards handed out per worker, so that none waits for the driver."""
_MUCH_SATURATED = 1e-3


@dataclass(frozen=True)
class PairsTarget:
    """Where the pairs go."""

    target: LocalTarget
    npz: Path | None = None
    figure: Path | None = None

    @property
    def path(self) -> Path:
        """The Zarr group."""
        return self.target.path


@dataclass(frozen=True)
class _ShardTask:
    job: PairsJob
    store: Path


def plan_pairs(settings: PairsSettings) -> PairsJob:
    """Find the sources, read the PSF, share out the splits. Raises InputError for whatever is wrong with them."""
    from mrbcr_cli.specimens import split_kind

    for kind in settings.specimen:
        split_kind(kind)
    check_extremes(settings)
    sources = find_sources(settings.source, settings.patch) if settings.source else ()
    splits = split_sources([s.name for s in sources], settings.splits, settings.seed) if sources else ()
    train, validation, test = apportion(settings.count, settings.splits)
    return PairsJob(settings, sources, splits, (train, validation, test), _stored_psf(settings))


def _stored_psf(settings: PairsSettings) -> StoredPsfPlanes | None:
    if settings.psf is None:
        return None
    if settings.microscope not in ("widefield", "confocal", "two-photon", "light-sheet"):
        raise InputError(f"--psf is an intensity PSF; --microscope {settings.microscope} has none")
    from mrbcr_cli.optics.measure import psf_fwhm_um
    from mrbcr_cli.psf_files import load_psf, read_stored_psf

    stored = read_stored_psf(settings.psf)
    scale = tuple(stored.scale_zyx_um)
    psf = load_psf(settings.psf, image_scale_zyx_um=scale, is_3d=stored.values.ndim == 3)
    values = psf.values_zyx
    voxel = _psf_voxel(settings, scale, len(values))
    axial, *lateral = psf_fwhm_um(values, voxel)
    if None in lateral:
        raise InputError(f"{settings.psf}: its width cannot be found (it does not fall to half within the file)")
    focus = StoredFocus(voxel[1], voxel[0], len(values), float(np.mean([w for w in lateral if w])), axial)
    return StoredPsfPlanes(values, focus, settings.psf.name, psf.fingerprint())


def _psf_voxel(
    settings: PairsSettings, scale_zyx_um: tuple[float | None, ...], planes: int
) -> tuple[float, float, float]:
    """Voxel of a PSF file in um: what it says, or --pixel. Raises InputError where neither tells."""
    z, y, x = scale_zyx_um
    if y is None and settings.pixel is not None and settings.pixel[0] == settings.pixel[1]:
        y = x = settings.pixel[0]
    if y is None or x is None:
        raise InputError(f"{settings.psf}: does not say its pixel size; give it as --pixel (um)")
    if z is None and planes > 1:
        raise InputError(f"{settings.psf}: does not say its z step; save it as .npz with psf and scale_zyx_um")
    return (z if z is not None else y, y, x)  # of a single plane the step means nothing


def fingerprint(job: PairsJob) -> str:
    """SHA-256 of all that decides the bytes: settings, sources, PSF, version."""
    sources = [(s.name, s.shape_yx, [vars(p) for p in s.planes]) for s in job.sources]
    values = {
        "settings": job.settings.model_dump(mode="json", exclude={"source", "psf"}),
        "sources": sources,
        "psf": None if job.psf is None else job.psf.sha256,
        "version": __version__,
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def simulate_pairs(
    settings: PairsSettings,
    target: PairsTarget,
    reporter: Reporter,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> None:
    """Make the pairs. Raises InputError before anything is written; later errors leave a run to resume."""
    workers = cpu_count() if workers is None else workers
    if workers < 1:
        raise InputError(f"--workers must be 1 or more, not {workers}")
    before = _check_names(target, overwrite=overwrite)
    _check_apart(settings, target)
    job = plan_pairs(settings)
    mark = fingerprint(job)
    if before is not None:
        if before.get("fingerprint") != mark:
            raise FingerprintError(f"{target.path}: made otherwise before; use --overwrite or another name")
        reporter.info(f"{target.path}: already done, nothing to do")
    elif not dry_run:
        _carry_out(job, target.target, reporter, mark, workers)
    facts = describe(job, target)
    if dry_run:
        reporter.event("planned", **facts)
        reporter.info(f"would write {facts['pairs']} pairs of {settings.patch} px, about {facts['bytes'] / 1e6:.0f} MB")
        return
    extras = _extras(target if before is None else _without_existing(target, reporter), reporter)
    reporter.event("done", **facts, **extras)
    reporter.data(str(target.path))


def _check_names(target: PairsTarget, *, overwrite: bool) -> dict[str, Any] | None:
    """Check every name; return what a finished set of ours at the output says of itself. Raises InputError."""
    check_free(target.path, overwrite=True, suffixes=(".zarr",))
    check_place(target.target)
    if target.path.exists() and not target.path.is_dir():
        raise InputError(f"{target.path}: is a file, not a Zarr group; move it away")
    before = finished_before(target.target, resume=True, overwrite=overwrite)
    anew = overwrite or before is not None  # beside a finished set, what exists of these is left alone: `_extras`
    if target.figure is not None:
        check_free(target.figure, overwrite=anew, suffixes=(".png",))
    if target.npz is not None:
        check_npz(target.npz, overwrite=anew)
    return before


def _check_apart(settings: PairsSettings, target: PairsTarget) -> None:
    """Refuse an output that is an input, or lies where the sources are looked for: it would be a source next time."""
    outputs = [p.resolve() for p in (target.path, target.npz, target.figure) if p is not None]
    for pattern in settings.source:
        source = Path(pattern)
        folder = source if source.is_dir() else source.parent
        for output in outputs:
            if output == source.resolve() or (source.is_dir() and folder.resolve() in output.parents):
                raise InputError(
                    f"{output.name}: would be written over or among the sources of {pattern}; write elsewhere"
                )
            if glob.has_magic(pattern) and output.parent == folder.resolve() and fnmatch(output.name, source.name):
                raise InputError(f"{output.name}: matches the sources of {pattern}; write it elsewhere")
    if settings.psf is not None and settings.psf.resolve() in outputs:
        raise InputError(f"{settings.psf}: is the PSF itself; write elsewhere")


def describe(job: PairsJob, target: PairsTarget) -> dict[str, Any]:
    """JSON-able facts of a job."""
    settings = job.settings
    per_pair = settings.patch**2 * (4 + settings.camera_dtype.itemsize)
    return {
        "output": str(target.path),
        "pairs": settings.count,
        "splits": split_bounds(job),
        "sources": {s.name: split for s, split in zip(job.sources, job.source_splits, strict=True)},
        "bytes": settings.count * per_pair,
    }


def split_bounds(job: PairsJob) -> dict[str, tuple[int, int]]:
    """First pair and the one after the last, for every split."""
    stops = [int(v) for v in np.cumsum(job.counts)]
    return {name: (stop - count, stop) for name, stop, count in zip(SPLITS, stops, job.counts, strict=True)}


def _carry_out(job: PairsJob, target: LocalTarget, reporter: Reporter, mark: str, workers: int) -> None:
    started = time.monotonic()
    settings = job.settings
    shards = -(-settings.count // SHARD)
    try:
        before = read_ledger(target.ledger)
        if before is None or before.header.get("fingerprint") != mark or not target.store.is_dir():
            drop_partial(target)
        target.partial.mkdir(parents=True, exist_ok=True)
        with (
            stop_on_signal(reporter.info) as stop,  # before the ledger shows that a run is under way
            Ledger(target.ledger, {"fingerprint": mark, "version": __version__}) as ledger,
        ):
            if not target.store.exists():  # made under the lock: another run may have begun meanwhile
                create_pairs(target.store, settings.count, settings.patch, settings.camera_dtype)
            if ledger.records:
                reporter.info(f"resuming {target.path.name}: {len(ledger.records)} of {shards} shards are done")
            _run(_ShardTask(job, target.store), ledger, shards, target, reporter, workers, stop)
            if len(ledger.records) != shards:
                raise IncompleteError(f"{target.path}: not all shards are done; {RESUME}")
            finish_pairs(target.store, split_bounds(job), _provenance(job, mark))
            put_in_place(target.store, target)
    except LockedError as error:
        raise busy(target) from error
    except OSError as error:
        raise IncompleteError(f"{target.path}: cannot be written ({error.strerror or error}); {RESUME}") from error
    saturated = sum(r.clipped for r in ledger.records.values()) / (settings.count * settings.patch**2)
    if saturated > _MUCH_SATURATED:
        reporter.warn(
            f"{100 * saturated:.2g} % of the recorded pixels are saturated: lower --photons, --gain or --offset, "
            "or raise --bit-depth"
        )
    seconds = time.monotonic() - started
    reporter.info(f"{target.path}: {settings.count} pairs of {settings.patch} px in {clock_text(seconds)}")


def _run(
    task: _ShardTask,
    ledger: Ledger,
    shards: int,
    target: LocalTarget,
    reporter: Reporter,
    workers: int,
    stop: threading.Event,
) -> None:
    count = task.job.settings.count
    remaining = [k for k in range(shards) if k not in ledger.records]
    done = min(count, (shards - len(remaining)) * SHARD)
    workers = min(workers, len(remaining) or 1)
    with (
        workers_for(workers, partial(_shard_work, task)) as submit,
        reporter.progress(target.path.name, count, unit="pairs", done=done) as progress,
    ):

        def on_done(record: BlockRecord) -> None:
            ledger.append(record)
            progress.advance(steps=min(SHARD, count - record.block * SHARD))

        tasks = ((shard,) for shard in remaining)
        drive(tasks, submit, _IN_FLIGHT * workers, on_done, stop.is_set, target.path, target.partial)


def _shard_work(task: _ShardTask) -> Work:
    """What does a shard in this process, on one thread: sums come in one order, workers do not fight for cores."""
    import torch

    torch.set_num_threads(1)
    return partial(_make_shard, task)


def _make_shard(task: _ShardTask, shard: int) -> BlockRecord:
    """Make and write the pairs of one shard; return the BLAKE2b of their pixels and how many are saturated."""
    first = shard * SHARD
    pairs = [make_pair(task.job, index) for index in range(first, min(first + SHARD, task.job.settings.count))]
    blurred, sharp = np.stack([p.blurred for p in pairs]), np.stack([p.sharp for p in pairs])
    write_shard(task.store, first, blurred, sharp, [p.record for p in pairs])
    digest = hashlib.blake2b(blurred.tobytes(), digest_size=16)
    digest.update(sharp.tobytes())
    saturated = int(np.count_nonzero(blurred == 2**task.job.settings.bit_depth - 1))
    return BlockRecord(shard, digest.hexdigest(), clipped=saturated)


def _provenance(job: PairsJob, mark: str) -> dict[str, Any]:
    return {
        "version": __version__,
        # Not the command as typed: with the name of the output in it no two outputs would be the same bytes.
        "command": "mrbcr simulate pairs -c SETTINGS.yaml",
        "fingerprint": mark,
        "settings": job.settings.model_dump(mode="json"),
        "sources": [{"name": s.name, "split": split} for s, split in zip(job.sources, job.source_splits, strict=True)],
        "psf": None if job.psf is None else {"name": job.psf.name, "sha256": job.psf.sha256},
        "units": "camera counts, in blurred and in sharp",
    }


def _without_existing(target: PairsTarget, reporter: Reporter) -> PairsTarget:
    """The same target without the extra files that are there already: a repeated command changes nothing."""
    from mrbcr_cli.simulate.npz import npz_files

    there = {
        "figure": target.figure is not None and target.figure.exists(),
        "npz": target.npz is not None and any(p.exists() for p in npz_files(target.npz).values()),
    }
    for name in (name for name, exists in there.items() if exists):
        reporter.warn(f"{getattr(target, name)}: exists and is left as it is; --overwrite makes it again")
    return replace(target, **{name: None for name, exists in there.items() if exists})  # type: ignore[arg-type]


def _extras(target: PairsTarget, reporter: Reporter) -> dict[str, Any]:
    """The NPZ files and the contact sheet, from the finished store."""
    made: dict[str, Any] = {}
    info = read_info(target.path)
    if target.npz is not None:
        from mrbcr_cli.simulate.npz import write_npz

        try:
            made["npz"] = [str(p) for p in write_npz(target.path, info, target.npz)]
        except OSError as error:
            raise IncompleteError(f"{target.npz}: cannot be written ({error.strerror or error})") from error
        for path in made["npz"]:
            reporter.data(path)
    if target.figure is not None:
        from mrbcr_cli.figures import pairs_figure

        numbers = np.unique(np.linspace(0, info.count - 1, min(_SHEET, info.count)).round().astype(int))
        parts = [read_pairs(target.path, int(k), int(k) + 1) for k in numbers]
        blurred, sharp = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        pairs_figure(target.figure, blurred, sharp, [caption(part[2][0]) for part in parts])
        made["figure"] = str(target.figure)
    return made


def caption(record: dict[str, Any]) -> str:
    """What a pair is, in two short lines."""
    conditions, origin = record["conditions"], record["origin"]
    what = origin["specimen"]["kind"] if "specimen" in origin else str(origin["pieces"][0]["source"])[:18]
    return (
        f"{record['index']} {what}\n{conditions['photons']:.0f} photons, FWHM {conditions['fwhm_px']:.1f} px, "
        f"haze {100 * record['haze_share']:.0f} %"
    )
