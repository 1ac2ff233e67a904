"""`mrbcr train`: from settings to a folder with trained weights.

Invariant: the same settings and data give the same run, however often it was stopped; a folder belongs to one run, and
nothing is begun before data, weights and place have been checked.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mrbcr_cli import __version__
from mrbcr_cli.configuration import dump_yaml
from mrbcr_cli.console import Reporter, clock_text
from mrbcr_cli.errors import FingerprintError, IncompleteError, InputError, InterruptedRunError
from mrbcr_cli.intensity import PERCENTILES
from mrbcr_cli.restore import resolve_device, tune_allocator
from mrbcr_cli.simulate.pair import PairsJob, make_pair
from mrbcr_cli.simulate.pairs import plan_pairs
from mrbcr_cli.stream.ledger import LockedError, lock
from mrbcr_cli.stream.pool import workers_for
from mrbcr_cli.stream.signals import stop_on_signal
from mrbcr_cli.train import journal as files
from mrbcr_cli.train.batches import Batches, PairSet, StoredBatches
from mrbcr_cli.train.fields import SimulatedBatches, field_maker
from mrbcr_cli.train.group import Group, join_group, local_rank
from mrbcr_cli.train.journal import Journal
from mrbcr_cli.train.loop import Course, Log, new_run, train
from mrbcr_cli.train.state import Run, read_checkpoint
from mrbcr_cli.train.stored import read_folder_pairs, read_npz_pairs, read_zarr_pairs, unlike_units
from mrbcr_cli.weights import WeightsCard, load_weights, save_weights

if TYPE_CHECKING:
    from mrbcr_cli.train.train_settings import TrainSettings

_PATHS = ("pairs", "input_dir", "target_dir", "npz")
_ON_THE_CARD = ("name", "domain", "trained_on", "licence", "limits")
_DEFAULT_PATCH_PX = 192
_FOREVER = 2**40
"""Training fields there are to draw from."""


@dataclass(frozen=True, eq=False)
class Data:
    """What a run trains on and is judged by."""

    train: PairSet | PairsJob
    validation: PairSet
    largest_patch_px: int
    fingerprint: str
    words: str


@dataclass(frozen=True)
class Machine:
    """Where a run happens; changes none of its numbers beyond rounding."""

    device: str = "auto"
    workers: int | None = None
    """Processes that simulate. None: the cores, at least two."""
    threads: int | None = None
    """Of torch in this process. None: the cores."""


def load_data(settings: TrainSettings) -> Data:
    """Find, read and check the data. Raises InputError."""
    limit = settings.validation_pairs
    if settings.simulate is not None:
        shares = settings.simulate.splits
        wanted = limit if shares[1] > 0 else 0
        job = plan_pairs(settings.simulate.model_copy(update={"count": 1}))
        job = replace(job, counts=(_FOREVER, wanted, 0))
        names = [(s.name, s.shape_yx, [vars(p) for p in s.planes]) for s in job.sources]
        digest = _digest([names, job.source_splits, None if job.psf is None else job.psf.sha256])
        words = f"simulated fields of {settings.field} px, {len(job.sources)} sharp sources"
        return Data(job, PairSet((), (), ()), settings.field, digest, words)
    if settings.pairs:
        train, validation = read_zarr_pairs(settings.pairs, limit)
    elif settings.npz is not None:
        train, validation = read_npz_pairs(settings.npz, settings.validation, limit)
    else:
        if settings.input_dir is None or settings.target_dir is None:
            raise InputError("give --input-dir and --target-dir")
        train, validation = read_folder_pairs(settings.input_dir, settings.target_dir, settings.validation, limit)
    count = len(train.names)
    if settings.batch > count:
        raise InputError(f"--batch {settings.batch} is larger than the {count} training pairs; use at most {count}")
    side = min(min(image.shape) for image in train.recorded)
    sample = hashlib.sha256(np.ascontiguousarray(np.concatenate([i.ravel()[::97] for i in train.target])).tobytes())
    words = f"{count} pairs, {len(validation.names)} held out for validation"
    return Data(train, validation, side, _digest([train.names, validation.names, sample.hexdigest()]), words)


def patch_size(settings: TrainSettings, data: Data) -> int:
    """Patch in px. Raises InputError when the images are smaller."""
    largest = data.largest_patch_px // 16 * 16
    patch = settings.patch or min(_DEFAULT_PATCH_PX, largest)
    if patch > data.largest_patch_px or patch < 32:
        raise InputError(f"patches of {max(patch, 32)} px do not fit images of {data.largest_patch_px} px; see --patch")
    return patch


def make_network(settings: TrainSettings, warn: Callable[[str], None]) -> nn.Module:
    """The network to train, seeded; with the weights of --init, in their shape or grown into a larger one asked for.

    `warn` hears what of the weights finds no room. Raises InputError.
    """
    torch.manual_seed(settings.seed)
    start = None if settings.init is None else load_weights(settings.init)
    if start is not None and start.card.architecture != settings.model:
        raise InputError(
            f"--init {settings.init}: holds a {start.card.architecture!r} network; this run trains {settings.model!r}"
        )
    network: nn.Module
    if settings.model == "published":
        from mrbcr_cli.network.published import Published

        network = Published()
    else:
        from mrbcr_cli.network.growth import grow
        from mrbcr_cli.network.mrbcr import Mrbcr, MrbcrSettings

        try:
            own = {} if start is None else start.card.settings
            asked, held = (MrbcrSettings.from_dict({**own, **more}) for more in (settings.network, {}))
        except (TypeError, ValueError) as error:
            raise InputError(f"--network: {error}") from error
        if start is not None and asked != held:
            try:
                network = grow(start.state_dict, held, asked)
            except ValueError as error:
                raise InputError(
                    f"--init {settings.init}: {error}; leave network out, or ask for a larger one"
                ) from error
            if held.guided and asked.guide_hidden < held.guide_hidden:
                lost = held.guide_hidden - asked.guide_hidden
                warn(f"--init {settings.init}: {lost} of {held.guide_hidden} guide features go, those of least weight")
            return network
        network = Mrbcr(asked)
    if start is not None:
        network.load_state_dict(start.state_dict)
    return network


def run_training(
    settings: TrainSettings, folder: Path, machine: Machine, reporter: Reporter, *, overwrite: bool = False,
    network: nn.Module | None = None, dry_run: bool = False,
) -> Path | None:  # fmt: skip
    """Train, or go on with, the run in `folder`; return the best weights (None: dry run). See `TrainSettings`.

    `network` takes the place of the one that the settings name (for comparisons); it needs `pyramid` and
    `settings_dict`. Raises InputError, FingerprintError for a folder of another run, InterruptedRunError after a
    signal, IncompleteError when training failed; a rerun resumes.
    """
    device = resolve_device(machine.device)
    if device.startswith("cuda") and ":" not in device:
        device = f"cuda:{local_rank()}"
    if settings.tensorboard:
        files.check_tensorboard()
    data = load_data(settings)
    patch = patch_size(settings, data)
    own = network is None
    network = network or make_network(settings, reporter.warn)
    if machine.threads is not None:
        torch.set_num_threads(machine.threads)
    tune_allocator()
    network.to(device)
    with _no_denormals(), join_group(device) as group, stop_on_signal(reporter.warn) as stop:
        fingerprint = _fingerprint(settings, data, group)
        earlier = _earlier_state(folder, fingerprint, overwrite)
        if dry_run:
            reporter.info(f"{folder}: would train {settings.model} on {data.words}, patches of {patch} px on {device}")
            return None
        group.any(False)  # all have looked at the folder before one writes there
        quiet = reporter if group.writes else Reporter(quiet=True)
        run = new_run(network, settings, device)
        if earlier is not None:
            run.load(earlier)
        with (
            _folder_of(folder, settings, group, overwrite),
            _batches(settings, data, machine, group, device) as batches,
        ):
            course = Course(settings, patch, batches, _validation(settings, data, quiet), device, group)
            return _go(course, run, folder, fingerprint, data, quiet, stop, own)


@contextmanager
def _no_denormals() -> Iterator[None]:
    """Tiny numbers become 0 while training, which they would slow down; the process has them back afterwards."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _go(
    course: Course, run: Run, folder: Path, fingerprint: str, data: Data, reporter: Reporter, stop: threading.Event,
    own: bool,
) -> Path:  # fmt: skip
    settings, group = course.settings, course.group
    if run.finished:
        reporter.info(f"{folder}: was finished before; use --overwrite to train it anew")
        return folder / files.BEST
    if run.step:
        reporter.info(f"{folder}: going on from step {run.step}")
    else:
        if isinstance(data.train, PairSet) and group.writes and (unlike := unlike_units(data.train)):
            reporter.warn(unlike)
        reporter.info(f"{folder}: training {settings.model} on {data.words}, on {course.device}")
    length, unit, done = settings.steps, "steps", run.step
    if settings.minutes is not None:
        length, unit, done = round(60 * settings.minutes), "s", int(run.elapsed_s)
    with reporter.progress(f"{folder.name}", length, unit, done) as progress:
        log: Log = _Silent()
        if group.writes:
            log = journal = Journal(
                folder, fingerprint, partial(_save, settings=settings, data=data, own=own),
                patches_a_step=settings.batch * settings.accumulate * group.size, progress=progress,
                say=reporter.info, event=reporter.event, minutes=settings.minutes, tensorboard=settings.tensorboard,
            )  # fmt: skip
            journal.resume(run.step)
        try:
            finished = train(course, run, log, stop.is_set)
        except BrokenProcessPool as error:
            if not stop.is_set():
                raise IncompleteError(
                    f"{folder}: a simulating process was ended from outside; rerun to resume"
                ) from error
            log.keep(run, best=False)
            finished = False
    if not finished:
        raise InterruptedRunError(f"{folder}: stopped at step {run.step}; run the same command to resume")
    best = f", best validation {run.best_psnr:.2f} dB" if course.validation.names else ""
    reporter.info(f"{folder}: {run.step} steps in {clock_text(run.elapsed_s)}{best}")
    return folder / files.BEST


class _Silent:
    """The log of processes that write nothing."""

    def line(self, values: dict[str, Any], run: Run) -> None:
        """Nothing."""

    def keep(self, run: Run, *, best: bool) -> None:
        """Nothing."""


@contextmanager
def _batches(settings: TrainSettings, data: Data, machine: Machine, group: Group, device: str) -> Iterator[Batches]:
    if isinstance(data.train, PairSet):
        yield StoredBatches(data.train, seed=settings.seed, stream=group.rank, device=device)
        return
    from mrbcr_cli.capacity import cpu_count

    workers = max(2, cpu_count()) if machine.workers is None else machine.workers
    make = partial(field_maker, data.train, settings.field, group.rank, device, settings.loss == "gain")
    with workers_for(workers, make) as submit:
        yield SimulatedBatches(
            data.train, submit, field_px=settings.field, capacity=settings.pool, fresh=settings.fresh,
            stream=group.rank, device=device, seed=settings.seed, ahead=4 * workers if workers > 1 else 1,
            peers=settings.loss == "gain",
        )  # fmt: skip


def _validation(settings: TrainSettings, data: Data, reporter: Reporter) -> PairSet:
    """Held-out pairs; of a simulation, made now from the held-out sources."""
    if isinstance(data.train, PairSet):
        return data.validation
    count = data.train.counts[1]
    if not count:
        reporter.warn("no source is held out (splits): the last weights count as the best")
        return data.validation
    pairs = [make_pair(data.train, _FOREVER + k) for k in range(count)]
    names = tuple(f"simulated {k}" for k in range(count))
    return PairSet(tuple(p.blurred.astype(np.float32) for p in pairs), tuple(p.sharp for p in pairs), names)


def _fingerprint(settings: TrainSettings, data: Data, group: Group) -> str:
    # Paths may change, their contents not; what the card says plays no part.
    values = settings.model_dump(mode="json", exclude={"simulate", "tensorboard", *_PATHS, *_ON_THE_CARD})
    simulate: dict[str, Any] | None = None
    if settings.simulate is not None:
        simulate = settings.simulate.model_dump(mode="json", exclude={"source", "psf"})
    init = None if settings.init is None else load_weights(settings.init).sha256
    return _digest([values, simulate, init, data.fingerprint, group.size, __version__])


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def _earlier_state(folder: Path, fingerprint: str, overwrite: bool) -> dict[str, Any] | None:
    """The checkpoint to go on from; None for a new run. Raises InputError, FingerprintError for anything else there."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file; --output is a folder")
    strangers = [p.name for p in folder.iterdir() if p.name not in files.FILES and not p.name.endswith(".partial")]
    if strangers:
        raise InputError(
            f"{folder}: holds files that are not of a training run ({strangers[0]}); choose another --output"
        )
    checkpoint = folder / files.CHECKPOINT
    if overwrite or not checkpoint.exists():
        return None
    state = read_checkpoint(checkpoint)
    if state["fingerprint"] != fingerprint:
        raise FingerprintError(
            f"{folder}: belongs to a run with other settings or data (see its {files.SETTINGS}); "
            "choose another --output, or use --overwrite"
        )
    return state


@contextmanager
def _folder_of(folder: Path, settings: TrainSettings, group: Group, overwrite: bool) -> Iterator[None]:
    """Hold the folder against other runs while this one writes there; `overwrite`: forget the run that was there."""
    if not group.writes:
        yield
        return
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock(stack.enter_context((folder / files.LOCK).open("ab")))
            if overwrite:
                (folder / files.CHECKPOINT).unlink(missing_ok=True)
            (folder / files.SETTINGS).write_text(dump_yaml(settings), encoding="utf-8")
        except LockedError as error:
            raise IncompleteError(
                f"{folder}: another run is writing there; wait for it, or choose another --output"
            ) from error
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from error
        yield


def _save(path: Path, run: Run, *, settings: TrainSettings, data: Data, own: bool) -> None:
    """The averaged weights with their card; those of a network that is not ours without."""
    from datetime import UTC, datetime

    if not own:
        from safetensors.torch import save_file

        save_file({k: v.detach().cpu().contiguous() for k, v in run.average.state.items()}, path)
        return

    reached = f"; held-out pairs {run.last_psnr:.2f} dB" if np.isfinite(run.last_psnr) else ""
    told = {"steps", "minutes", "batch", "lr", "loss", "gain_floor", "fft_weight", "seed"}
    recipe = settings.model_dump(mode="json", include=told)
    network: Any = run.network
    card = WeightsCard(
        name=settings.name,
        architecture=settings.model,
        settings=network.settings_dict,
        normalisation={"kind": "percentile", "low": PERCENTILES[0], "high": PERCENTILES[1]},
        domain=settings.domain or "as the training data",
        trained_on=settings.trained_on or data.words,
        licence=settings.licence,
        limits=None if settings.limits is None else {k: list(v) for k, v in settings.limits.items()},
        created_by=f"mrbcr {__version__}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        notes=f"mrbcr train, step {run.step} of {json.dumps(recipe)}{reached}",
    )
    save_weights(path, run.average.state, card)
