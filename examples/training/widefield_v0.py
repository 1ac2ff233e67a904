"""Train the first embedded `widefield` model: simulated pairs made on the fly, a plain torch loop, two files of output.

Invariant: a run is described by its command line and seed; a run that is resumed continues weights, optimiser, average,
random states and the clock of the schedule from its last checkpoint.

    python examples/training/widefield_v0.py --sources DIR --out OUT --minutes 90 --threads 1
    python examples/training/widefield_v0.py --sources DIR --out OUT --minutes 90 --threads 1 --resume
    python examples/training/widefield_v0.py --sources DIR --out OUT --contact-sheet sheet.png

MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4000000000 before the command keeps glibc from handing memory back at every
step (10 % faster here). Wants 0.8 GB of memory and reading localisation tables wants the asdf package.

Recipe. Specimens: half from the sharp images in DIR (sources.py; split by image), half procedural (specimens.py), now
and then the sum of two. Imaging: forward_model.py; PSF FWHM 2-6 px, haze 0-60 % of the light, 20-5,000 electrons at
the peak, read noise 0-4 e-, any background. A ring of 96 fields of 384 px is kept, one is replaced every second step;
a step takes 8 patches of 192 px (fresh noise, range jitter, flips) from random fields and its loss on the inner 160 px;
every fourth step takes 128 px with the image border around it, which costs the same. Loss: over the three scales,
MSE + 0.05 * mean |rfft2| of the error (orthonormal), each patch in units of its own contrast. AdamW, linear warm-up and
cosine to zero over the wall time (or --steps, which makes a run reproducible), gradient norm clipped at 1, average of
the weights (0.999), bfloat16 for the first 80 % of the run.
OUT holds last.pt (state to resume), widefield.safetensors (averaged weights) and train.jsonl (the log).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forward_model as fm
import numpy as np
import sources as real
import specimens
import torch
import validation as val
from safetensors.torch import load_file
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[2]))  # a clone that was not installed

from mrbcr_cli.network.mrbcr import Mrbcr, MrbcrSettings
from mrbcr_cli.weights import WeightsCard, save_weights

FIELD_PX = 384
CONTEXT_PX = 16
"""Rim of a training patch that is context and not judged."""
VALIDATION_PX = 128


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


def loss_of(
    network: Mrbcr, inputs: Tensor, targets: Tensor, args: argparse.Namespace, *, bordered: bool, half: bool = False
) -> Tensor:
    """Sum over the three scales of MSE (or Charbonnier) + weight * mean |rfft2 of the error|, orthonormal norm.

    Errors count in units of the patch's own contrast (at least a quarter of the range), as PSNR does. A `bordered`
    patch is an image of its own, continued by reflection; of any other the outer 16 px are context and do not count.
    `half` runs the network in bfloat16, never the loss.
    """
    contrast = targets.amax(dim=(2, 3), keepdim=True) - targets.amin(dim=(2, 3), keepdim=True)
    contrast = contrast.clamp_min(0.25)
    total = inputs.new_zeros(())
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=half):
        outputs = network(inputs, (bordered,) * 4)
    for level, (output, target) in enumerate(zip(outputs, network.pyramid(targets), strict=True)):
        rim = 0 if bordered else CONTEXT_PX >> level
        inner = np.s_[..., rim : target.shape[-2] - rim, rim : target.shape[-1] - rim]
        error = (output[inner].float() - target[inner]) / contrast
        total = total + ((error.square() + 1e-6).sqrt().mean() if args.charbonnier else error.square().mean())
        spectrum = torch.view_as_real(torch.fft.rfft2(error, norm="ortho"))
        # The square root has no gradient at zero; the small constant keeps it finite.
        total = total + args.fft_weight * (spectrum.square().sum(-1) + 1e-10).sqrt().mean()
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


def card(network: Mrbcr, args: argparse.Namespace, log: Log) -> WeightsCard:
    """What the weights file says of itself."""
    recipe = (
        f"examples/training/widefield_v0.py --minutes {args.minutes:g} --batch {args.batch} --patch {args.patch} "
        f"--lr {args.lr:g} --fft-weight {args.fft_weight:g} --bf16-until {args.bf16_until:g} --seed {args.seed}"
        + (" --init WEIGHTS_OF_AN_EARLIER_RUN" if args.init else "")
    )
    return WeightsCard(
        name="widefield",
        architecture="mrbcr",
        settings=network.settings_dict,
        normalisation={"kind": "percentile", "low": fm.PERCENTILES[0], "high": fm.PERCENTILES[1]},
        domain="widefield fluorescence: in-focus PSF FWHM 2 to 6 px, out-of-focus haze 0 to 60 % of the light, "
        "20 to 5,000 photons at the peak, read noise 0 to 4 e-, any offset and background level",
        trained_on="simulated pairs: procedural specimens, and sharp images of NEUBIAS (CC-BY-4.0), "
        "BioImageAnalysisNotebooks (CC-BY-4.0) and locan (BSD-3-Clause), split by image",
        licence="MIT",
        created_by=f"mrbcr {version()}",
        created=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        notes=f"First, simple model. {recipe}. Held-out simulated cases: {json.dumps(log.last_validation)}",
    )


def version() -> str:
    try:
        return importlib.metadata.version("mrbcr")
    except importlib.metadata.PackageNotFoundError:
        return "of a source folder"


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
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--patch", type=int, default=192, help="px, a multiple of 16, 96 or more")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--fft-weight", type=float, default=0.05)
    parser.add_argument("--charbonnier", action="store_true")
    parser.add_argument("--bf16-until", type=float, default=0.8, help="share of the run in bfloat16 (faster steps)")
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--slots", type=int, default=96, help="imaged fields kept")
    parser.add_argument("--every-minutes", type=float, default=5.0, help="between validations and checkpoints")
    parser.add_argument("--no-baseline", action="store_true", help="leave out Richardson-Lucy on the validation set")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--init", type=Path, help="start from the weights of this safetensors file")
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
        val.contact_sheet(
            Ring(training, 16, np.random.default_rng(args.seed)).fields, args.contact_sheet, VALIDATION_PX
        )
        return 0
    return train(args, log, training, held_out)


@dataclass
class Run:
    """All that changes in a run and must survive a restart."""

    network: Mrbcr
    average: Average
    optimizer: torch.optim.Optimizer
    rng: np.random.Generator
    step: int = 0
    elapsed_s: float = 0.0
    """Over all restarts; the clock of the schedule."""

    def save(self, path: Path) -> None:
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "torch_rng": torch.get_rng_state(),
            "numpy_rng": json.dumps(self.rng.bit_generator.state),
        }
        part = path.with_name(path.name + ".part")
        torch.save(state, part)
        part.replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.state = state["average"]
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        torch.set_rng_state(state["torch_rng"])
        self.rng.bit_generator.state = json.loads(state["numpy_rng"])


def new_run(args: argparse.Namespace) -> Run:
    torch.manual_seed(args.seed)
    network = Mrbcr(MrbcrSettings())
    if args.init:
        network.load_state_dict(load_file(args.init))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.lr, weight_decay=1e-4)
    run = Run(network, Average(network, args.ema), optimizer, np.random.default_rng(args.seed))
    if args.resume and (args.out / "last.pt").is_file():
        run.load(args.out / "last.pt")
    return run


def one_step(run: Run, ring: Ring, args: argparse.Namespace, progress: float) -> tuple[float, float]:
    """Draw a batch, descend once; return the loss and the seconds that the data took."""
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(progress, args.lr)
    mark = time.monotonic()
    if run.step % 2 == 0:
        ring.refresh()
    bordered = run.step % 4 == 3  # as large when continued by its border as the others with their context
    inputs, targets = ring.batch(args.batch, args.patch - 64 if bordered else args.patch)
    data_s = time.monotonic() - mark
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    loss = loss_of(run.network, inputs, targets, args, bordered=bordered, half=progress < args.bf16_until)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
    if not torch.isfinite(norm):
        raise SystemExit(
            f"gradient is not finite at step {run.step}; resume from the last checkpoint with a smaller --lr"
        )
    run.optimizer.step()
    run.average.update(run.network, run.step)
    run.step += 1
    return float(loss.detach()), data_s


def train(args: argparse.Namespace, log: Log, training: list[real.Source], held_out: list[real.Source]) -> int:
    """The loop; returns the exit status."""
    run = new_run(args)
    cases = val.make_cases(held_out, draw_specimen, FIELD_PX, VALIDATION_PX)
    log.write(event="start", step=run.step, parameters=sum(p.numel() for p in run.network.parameters()))
    if run.step == 0:
        log.write(event="baseline", **val.input_figures(cases))
        if not args.no_baseline:
            log.write(event="baseline", **val.richardson_lucy_figures(cases))
    ring = Ring(training, args.slots, run.rng)
    before_s, start = run.elapsed_s, time.monotonic()
    mark, losses, data_s = start, list[float](), 0.0
    while True:
        run.elapsed_s = before_s + time.monotonic() - start
        progress = run.step / args.steps if args.steps else run.elapsed_s / (60.0 * args.minutes)
        took_s = time.monotonic() - mark
        if losses and (took_s > 60.0 * args.every_minutes or run.step in (20, 200) or progress >= 1.0):
            log.write(
                event="train",
                step=run.step,
                minutes=run.elapsed_s / 60,
                loss=float(np.mean(losses)),
                lr=run.optimizer.param_groups[0]["lr"],
                patches_per_s=len(losses) * args.batch / took_s,
                data_share=data_s / took_s,
            )
            validate_and_save(run, args, log, cases)
            mark, losses, data_s = time.monotonic(), [], 0.0
        if progress >= 1.0:
            break
        loss, seconds = one_step(run, ring, args, progress)
        losses.append(loss)
        data_s += seconds
    log.write(event="done", step=run.step, minutes=run.elapsed_s / 60)
    return 0


def validate_and_save(run: Run, args: argparse.Namespace, log: Log, cases: list[val.Case]) -> None:
    """Write the checkpoint, the averaged weights, their figures on the held-out cases and a picture of them."""
    run.save(args.out / "last.pt")
    averaged = Mrbcr(run.network.settings)
    averaged.load_state_dict(run.average.state)
    averaged.eval()
    with torch.inference_mode():
        log.last_validation = val.network_figures(averaged, cases)
    log.write(event="validation", step=run.step, **log.last_validation)
    save_weights(args.out / "widefield.safetensors", averaged.state_dict(), card(averaged, args, log))
    val.picture(averaged, cases, args.out / "validation.png")


if __name__ == "__main__":
    raise SystemExit(main())
