"""The training loop: one optimiser step after another, validated, logged and kept as it goes.

Invariant: step s sees batch s and the learning rate of s, whatever happened before, so a run that was stopped and
resumed has the losses of one that was not. What ends it early (signal, patience) is agreed on by all processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from mrbcr_cli.errors import IncompleteError
from mrbcr_cli.network.guide import guide_of_batch
from mrbcr_cli.train.batches import Batches, normalise
from mrbcr_cli.train.loss import LossSettings, loss_of
from mrbcr_cli.train.state import Average, Run

if TYPE_CHECKING:
    from mrbcr_cli.train.batches import PairSet
    from mrbcr_cli.train.group import Group
    from mrbcr_cli.train.train_settings import TrainSettings

CONTEXT_PX = 16
"""Rim of a patch that is context and does not count."""
BORDER_PX = 64
"""What a patch is smaller by when the network continues it by reflection, so that all steps cost the same."""
UNGUIDED_EVERY = 16
"""In steps."""
_DIVERGED_DB = -300.0
"""PSNR of an output that is not finite."""
_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Log(Protocol):
    """Where the loop reports to."""

    def line(self, values: dict[str, Any], run: Run) -> None:
        """Every `log_every` steps, and after a validation: step, loss, psnr, lr, validation_psnr."""
        ...

    def keep(self, run: Run, *, best: bool) -> None:
        """Write a checkpoint; `best`: the validation was the best so far."""
        ...


@dataclass(frozen=True, eq=False)
class Course:
    """One process's part of a run: what it trains on and how."""

    settings: TrainSettings
    patch_px: int
    batches: Batches
    validation: PairSet
    """May be empty: then the last weights are the best."""
    device: str
    group: Group

    @property
    def loss(self) -> LossSettings:
        """The loss that is descended."""
        return LossSettings(
            self.settings.loss, self.settings.fft_weight, self.settings.gain_floor, self.settings.scale_weights
        )


def new_run(network: nn.Module, settings: TrainSettings, device: str) -> Run:
    """A run at step 0 on a network that is already on the device."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr)
    scaler = torch.amp.GradScaler(device.split(":")[0], enabled=settings.precision == "fp16")
    return Run(network, Average(network, settings.ema), optimizer, scaler)


def train(course: Course, run: Run, log: Log, stopped: Callable[[], bool]) -> bool:
    """Train until the end, early or not, or until `stopped`; return whether the run is finished.

    Raises IncompleteError when the gradient is not finite.
    """
    settings, group = course.settings, course.group
    wrapped = group.wrap(run.network, course.device)
    while not run.finished:
        # The tally is empty at a checkpoint after a validation; a stop keeps it, and the next line is as it would be.
        if group.any(stopped()):
            log.keep(run, best=False)
            return False
        began = time.monotonic()
        progress = _progress(run, settings)
        loss, psnr = _one_step(course, run, wrapped, progress)
        run.tally.add(loss, psnr)
        run.step += 1
        run.elapsed_s = group.same(run.elapsed_s + time.monotonic() - began)
        last = _progress(run, settings) >= 1.0
        if last or run.step % settings.every == 0:
            _validate_and_keep(course, run, log, progress, last)
        elif run.step % settings.log_every == 0:
            log.line(_line(run, settings, progress), run)
    return True


def _progress(run: Run, settings: TrainSettings) -> float:
    """Share of the run that is done, 0 to 1."""
    if settings.minutes is not None:
        return min(1.0, run.elapsed_s / (60.0 * settings.minutes))
    return min(1.0, run.step / settings.steps)


def learning_rate(progress: float, settings: TrainSettings) -> float:
    """Linear warm-up, then cosine to zero."""
    warmup = settings.warmup
    if progress < warmup:
        return settings.lr * max(progress / warmup, 0.01)
    return settings.lr * 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (1.0 - warmup)))


def _one_step(course: Course, run: Run, wrapped: nn.Module, progress: float) -> tuple[float, float]:
    """Descend once; return loss and mean PSNR (dB) over the patches of all processes."""
    settings, group = course.settings, course.group
    rate = learning_rate(progress, settings)
    for parameters in run.optimizer.param_groups:
        parameters["lr"] = rate
    run.optimizer.zero_grad(set_to_none=True)
    loss_sum, errors = 0.0, []
    for part in range(settings.accumulate):
        with group.no_sync(wrapped, part + 1 < settings.accumulate):
            loss, error = _forward(course, wrapped, run.step * settings.accumulate + part, progress)
            run.scaler.scale(loss / settings.accumulate).backward()  # type: ignore[no-untyped-call]
        loss_sum += float(loss.detach()) / settings.accumulate
        errors.append(error)
    run.scaler.unscale_(run.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(run.network.parameters(), settings.clip)
    if not torch.isfinite(norm) and not run.scaler.is_enabled():
        raise IncompleteError(
            f"the gradient is not finite at step {run.step}; resume from the last checkpoint with a smaller --lr"
        )
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.average.update(run.network, run.step)
    psnr = float((-10.0 * torch.cat(errors).clamp_min(1e-12).log10()).mean())
    return group.mean(loss_sum), group.mean(psnr)


def _forward(course: Course, network: nn.Module, number: int, progress: float) -> tuple[Tensor, Tensor]:
    settings = course.settings
    # Evenly spread over the run, and known from the number alone.
    bordered = math.floor((number + 1) * settings.bordered) > math.floor(number * settings.bordered)
    bordered = bordered and course.patch_px - BORDER_PX >= 32
    size = course.patch_px - BORDER_PX if bordered else course.patch_px
    batch = course.batches.batch(number, settings.batch, size)
    inputs = batch.inputs.contiguous(memory_format=torch.channels_last)
    kind = _PRECISIONS.get(settings.precision)
    reduced = kind is not None and progress < 1.0 - settings.exact
    # Every so often it is told nothing, so that it knows what to do where nothing is known of the whole image.
    guide = None if number % UNGUIDED_EVERY == UNGUIDED_EVERY - 1 else guide_of_batch(inputs)
    with torch.autocast(course.device.split(":")[0], kind or torch.bfloat16, enabled=reduced):
        outputs = run_network(network, inputs, guide, bordered=bordered)
    rim = 0 if bordered or course.patch_px < 96 else CONTEXT_PX
    recorded = scales_of(network, inputs) if course.loss.kind == "gain" else ()
    peers = () if batch.peers is None else scales_of(network, batch.peers)
    return loss_of(outputs, scales_of(network, batch.targets), course.loss, rim, recorded, peers)


def _bare(network: nn.Module) -> Any:
    """The network itself, where it is wrapped for a distributed run."""
    return network.module if hasattr(network, "module") else network


def run_network(network: nn.Module, inputs: Tensor, guide: Tensor | None, *, bordered: bool) -> Sequence[Tensor]:
    """Outputs at one or more scales; `guide`: of each input, see `guide.py`; `bordered`: the inputs are whole."""
    if getattr(_bare(network), "architecture", None) == "mrbcr":
        outputs: Sequence[Tensor] = network(inputs, (bordered,) * 4, guide)
    else:
        outputs = network(inputs)
    return outputs


def scales_of(network: nn.Module, targets: Tensor) -> Sequence[Tensor]:
    """The targets at the scales of the outputs."""
    pyramid: Sequence[Tensor] = _bare(network).pyramid(targets)
    return pyramid


def _validate_and_keep(course: Course, run: Run, log: Log, progress: float, last: bool) -> None:
    settings = course.settings
    values = _line(run, settings, progress)
    best = True
    if course.validation.recorded:
        psnr = validate(course, run)
        best = psnr > run.best_psnr
        run.last_psnr = psnr
        run.best_psnr = max(run.best_psnr, psnr)
        run.since_best = 0 if best else run.since_best + 1
        values["validation_psnr"] = psnr
    run.finished = last or 0 < settings.patience <= run.since_best
    log.line(values, run)
    log.keep(run, best=best)


def _line(run: Run, settings: TrainSettings, progress: float) -> dict[str, Any]:
    tally = run.tally
    count = max(tally.steps, 1)
    values = {
        "step": run.step,
        "loss": tally.loss / count,
        "psnr": tally.psnr / count,
        "lr": learning_rate(progress, settings),
    }
    run.tally = type(tally)()
    return values


@torch.no_grad()
def validate(course: Course, run: Run) -> float:
    """Mean PSNR (dB, against the range of the truth) of the averaged weights on the held-out pairs."""
    weights = {k: v.clone() for k, v in run.network.state_dict().items()}
    run.network.load_state_dict(run.average.state)
    run.network.eval()
    values = []
    try:
        for recorded, target in zip(course.validation.recorded, course.validation.target, strict=True):
            tensors = [torch.from_numpy(image)[None, None].to(course.device) for image in (recorded, target)]
            inputs, truth, _ = normalise(tensors[0], tensors[1], None)
            found = run_network(run.network, inputs, guide_of_batch(inputs), bordered=True)[0].float()
            span = float(truth.max() - truth.min())
            error = float((found - truth).square().mean())
            values.append(
                10.0 * math.log10(max(span, 1e-6) ** 2 / max(error, 1e-12)) if error < math.inf else _DIVERGED_DB
            )
    finally:
        run.network.load_state_dict(weights)
        run.network.train()
    return course.group.same(sum(values) / len(values))
