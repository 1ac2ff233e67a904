"""Train the first embedded `widefield` model: simulated pairs made on the fly, a plain torch loop, two files of output.

Invariant: a run is described by its command line and seed; a run that is resumed continues weights, optimiser, average,
random states and the clock of the schedule from its last checkpoint.

    python examples/training/widefield_v0.py --sources DIR --out OUT --minutes 90 --threads 1
    python examples/training/widefield_v0.py --sources DIR --out OUT --minutes 90 --threads 1 --resume
    python examples/training/widefield_v0.py --sources DIR --out OUT --contact-sheet sheet.png

Recipe. Specimens: half from the sharp images in DIR (sources.py; split by image), half procedural (specimens.py), now
and then the sum of two. Imaging: forward_model.py; PSF FWHM 2-6 px, haze 0-60 % of the light, 20-5,000 electrons at
the peak, read noise 0-4 e-, any background. A ring of fields of 384 px is kept, one is replaced at every step, and a
step takes 16 patches of 128 px (fresh noise, range jitter, flips) from 16 random fields. Loss: over the three scales,
MSE + 0.1 * mean |rfft2| of the error (orthonormal), each patch in units of its own contrast. AdamW 2e-3, linear warm-up
and cosine to zero over the wall time (or --steps, which makes a run reproducible), gradient norm clipped at 1, EMA.
OUT holds last.pt (state to resume), widefield.safetensors (averaged weights) and train.jsonl (the log).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import forward_model as fm
import numpy as np
import sources as real
import specimens
import torch
import validation as val
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[2]))  # a clone that was not installed

from mrbcr_cli.network.mrbcr import Mrbcr, MrbcrSettings

FIELD_PX = 384
FORMAT = 1


def draw_specimen(rng: np.random.Generator, sources: list[real.Source], size: int) -> fm.Image:
    """A sharp plane from one of the two worlds; one in 50 is empty, one in seven the sum of two."""
    if rng.random() < 0.02:
        return np.zeros((size, size), np.float32)
    plane = np.zeros((size, size), np.float32)
    for _ in range(2 if rng.random() < 0.15 else 1):
        one = real.draw(rng, sources, size) if rng.random() < 0.5 else specimens.draw(rng, size)
        plane += one * np.float32(rng.uniform(0.3, 1.0))
    return plane


class Ring:
    """Endless training data: `slots` imaged fields, one replaced at every step.

    Haze comes from the specimen itself, moved (the same structures above and below), or from other fields' specimens.
    """

    def __init__(self, sources: list[real.Source], slots: int, rng: np.random.Generator) -> None:
        self.sources, self.rng = sources, rng
        self.planes = [draw_specimen(rng, sources, FIELD_PX) for _ in range(min(slots, 8))]
        self.fields = [self._field() for _ in range(slots)]
        self.next = 0

    def _field(self) -> fm.Field:
        rng = self.rng
        plane = draw_specimen(rng, self.sources, FIELD_PX)
        self.planes[int(rng.integers(len(self.planes)))] = plane
        conditions = fm.draw_conditions(rng)
        others = [self._other(plane) for _ in conditions.haze_planes]
        return fm.make_field(plane, others, conditions, rng)

    def _other(self, plane: fm.Image) -> fm.Image:
        rng = self.rng
        other = plane if rng.random() < 0.5 else self.planes[int(rng.integers(len(self.planes)))]
        shift = rng.normal(0, 12, 2) if other is plane else rng.uniform(0, FIELD_PX, 2)
        return np.roll(other, tuple(int(s) for s in shift), axis=(0, 1))

    def refresh(self) -> None:
        """Replace the oldest field."""
        self.fields[self.next] = self._field()
        self.next = (self.next + 1) % len(self.fields)

    def batch(self, count: int, size: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, (count, 1, size, size) float32, in normalised units."""
        chosen = self.rng.integers(0, len(self.fields), count)
        pairs = [fm.cut_patch(self.fields[i], size, self.rng) for i in chosen]
        stacked = torch.from_numpy(np.stack([np.stack(p) for p in pairs]))
        return stacked[:, :1].contiguous(), stacked[:, 1:].contiguous()


def loss_of(network: Mrbcr, inputs: Tensor, targets: Tensor, *, fft_weight: float, charbonnier: bool) -> Tensor:
    """Sum over the three scales of MSE (or Charbonnier) + fft_weight * mean |rfft2 of the error|, orthonormal.

    Errors count in units of the patch's own contrast (at least a quarter of the range), as PSNR does.
    """
    contrast = targets.amax(dim=(2, 3), keepdim=True) - targets.amin(dim=(2, 3), keepdim=True)
    contrast = contrast.clamp_min(0.25)
    total = inputs.new_zeros(())
    outputs, wanted = network(inputs), network.pyramid(targets)
    for output, target in zip(outputs, wanted, strict=True):
        error = (output - target) / contrast
        total = total + ((error.square() + 1e-6).sqrt().mean() if charbonnier else error.square().mean())
        spectrum = torch.view_as_real(torch.fft.rfft2(error, norm="ortho"))
        # abs() of a complex zero has no gradient; the small constant keeps it finite.
        total = total + fft_weight * (spectrum.square().sum(-1) + 1e-10).sqrt().mean()
    return total


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up over the first 2 % of the run, then cosine to zero."""
    if progress < 0.02:
        return peak * max(progress / 0.02, 0.01)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, (progress - 0.02) / 0.98)))


class Average:
    """Exponential moving average of the weights, with a shorter memory in the first steps."""

    def __init__(self, network: Mrbcr, decay: float) -> None:
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: Mrbcr, step: int) -> None:
        keep = min(self.decay, (1.0 + step) / (10.0 + step))
        for key, value in network.state_dict().items():
            if value.is_floating_point():
                self.state[key].lerp_(value, 1.0 - keep)
            else:
                self.state[key].copy_(value)


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write beside and rename, so that a kill leaves the previous checkpoint."""
    part = path.with_name(path.name + ".part")
    torch.save(state, part)
    part.replace(path)


def save_weights(average: Average, settings: MrbcrSettings, path: Path, args: argparse.Namespace, log: Log) -> None:
    """The averaged weights as safetensors; with the tool's own card where its writer is at hand."""
    network = Mrbcr(settings)
    network.load_state_dict(average.state)
    network.eval()
    from safetensors.torch import save_file

    part = path.with_name(path.name + ".part")
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, part, metadata=card(network, args, log))
    part.replace(path)


def card(network: Mrbcr, args: argparse.Namespace, log: Log) -> dict[str, str]:
    """Metadata for the file: strings only, as safetensors asks."""
    return {
        "architecture": network.architecture,
        "settings": json.dumps(network.settings_dict),
        "normalisation": json.dumps({"kind": "percentile", "low": fm.PERCENTILES[0], "high": fm.PERCENTILES[1]}),
        "recipe": "examples/training/widefield_v0.py "
        f"--minutes {args.minutes} --batch {args.batch} --patch {args.patch} --lr {args.lr} --seed {args.seed}",
        "last_validation": json.dumps(log.last_validation),
    }


class Log:
    """One JSON object a line in a file, the same in words on stderr."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last_validation: dict[str, Any] = {}

    def write(self, **values: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")
        words = " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sources", type=Path, required=True, help="folder of sharp images")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=90.0, help="wall time of the whole schedule")
    parser.add_argument("--steps", type=int, help="length of the schedule in steps instead of minutes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--fft-weight", type=float, default=0.1)
    parser.add_argument("--charbonnier", action="store_true")
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--slots", type=int, default=96, help="imaged fields kept")
    parser.add_argument("--every-minutes", type=float, default=5.0, help="between validations and checkpoints")
    parser.add_argument("--no-baseline", action="store_true", help="leave out Richardson-Lucy on the validation set")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--contact-sheet", type=Path, help="write 16 pairs as a PNG and stop")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    args.out.mkdir(parents=True, exist_ok=True)
    log = Log(args.out / "train.jsonl")
    everything = real.load_sources(args.sources)
    training = [s for s in everything if s.recipe.split == "train"]
    held_out = [s for s in everything if s.recipe.split == "validation"]
    if args.contact_sheet:
        val.contact_sheet(Ring(training, 16, np.random.default_rng(args.seed)).fields, args.contact_sheet, args.patch)
        return 0
    return train(args, log, training, held_out)


def train(args: argparse.Namespace, log: Log, training: list[real.Source], held_out: list[real.Source]) -> int:
    """The loop; returns the exit status."""
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    settings = MrbcrSettings()
    network = Mrbcr(settings).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.lr, weight_decay=1e-4)
    average = Average(network, args.ema)
    step, before_s = 0, 0.0
    checkpoint = args.out / "last.pt"
    if args.resume and checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=False)  # our own file; holds the generators' states
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average.state = state["average"]
        step, before_s = state["step"], state["elapsed_s"]
        torch.set_rng_state(state["torch_rng"])
        rng.bit_generator.state = state["numpy_rng"]
    cases = val.make_cases(held_out, draw_specimen, FIELD_PX, args.patch)
    log.write(event="start", step=step, parameters=sum(p.numel() for p in network.parameters()), cases=len(cases))
    log.write(event="baseline", **val.input_figures(cases))
    if not args.no_baseline and not (args.resume and step):
        log.write(event="baseline", **val.richardson_lucy_figures(cases))
    ring = Ring(training, args.slots, rng)

    start = last_report = time.monotonic()
    data_s, losses = 0.0, []
    while True:
        elapsed_s = before_s + time.monotonic() - start
        progress = step / args.steps if args.steps else elapsed_s / (60.0 * args.minutes)
        if progress >= 1.0:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, args.lr)
        mark = time.monotonic()
        ring.refresh()
        inputs, targets = ring.batch(args.batch, args.patch)
        data_s += time.monotonic() - mark
        inputs = inputs.to(memory_format=torch.channels_last)
        loss = loss_of(network, inputs, targets, fft_weight=args.fft_weight, charbonnier=args.charbonnier)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        if torch.isfinite(norm):
            optimizer.step()
            average.update(network, step)
        step += 1
        losses.append(float(loss.detach()))
        now = time.monotonic()
        if now - last_report > 60.0 * args.every_minutes or step in (20, 200):
            took_s = now - last_report
            log.write(
                event="train",
                step=step,
                minutes=(before_s + now - start) / 60,
                loss=float(np.mean(losses)),
                lr=optimizer.param_groups[0]["lr"],
                patches_per_s=len(losses) * args.batch / took_s,
                data_share=data_s / took_s,
            )
            validate_and_save(args, log, network, average, optimizer, rng, cases, step, before_s + now - start)
            last_report, data_s, losses = time.monotonic(), 0.0, []
    validate_and_save(args, log, network, average, optimizer, rng, cases, step, elapsed_s)
    log.write(event="done", step=step, minutes=elapsed_s / 60)
    return 0


def validate_and_save(
    args: argparse.Namespace,
    log: Log,
    network: Mrbcr,
    average: Average,
    optimizer: torch.optim.Optimizer,
    rng: np.random.Generator,
    cases: list[val.Case],
    step: int,
    elapsed_s: float,
) -> None:
    """Log the averaged weights' figures on the held-out cases, then write the checkpoint and the weights."""
    averaged = Mrbcr(network.settings).to(memory_format=torch.channels_last).eval()
    averaged.load_state_dict(average.state)
    with torch.inference_mode():
        log.last_validation = val.network_figures(averaged, cases)
    log.write(event="validation", step=step, **log.last_validation)
    state = {
        "format": FORMAT,
        "network": network.state_dict(),
        "average": average.state,
        "optimizer": optimizer.state_dict(),
        "step": step,
        "elapsed_s": elapsed_s,
        "torch_rng": torch.get_rng_state(),
        "numpy_rng": rng.bit_generator.state,
        "command": vars(args) | {"pid": os.getpid()},
    }
    save_atomically(state, args.out / "last.pt")
    save_weights(average, network.settings, args.out / "widefield.safetensors", args, log)
    val.picture(averaged, cases, args.out / "validation.png")


if __name__ == "__main__":
    raise SystemExit(main())
