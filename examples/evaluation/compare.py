"""m-rBCR against the released network and a U-Net: the same recipe, data and time, from random weights.

Invariant: all runs have the same settings, data, seed and machine and differ in the network alone, and in how long they
go: all for the same minutes (`--minutes`), m-rBCR and the released one also for the same steps (`--steps`). A run that
was stopped goes on where it was; one that is finished is not made again. Scores are those of `mrbcr evaluate`.

    python examples/evaluation/compare.py -o results/compare --pairs pairs.zarr --test-pairs test.zarr --minutes 60
    python examples/evaluation/compare.py -o results/compare -c examples/training/widefield.yaml --source sharp/train \\
        --test-pairs test.zarr --minutes 60 --steps 6000

The folder gets runs/ (one folder a run, as of `mrbcr train`), compare.json, compare.md and compare.png. Minutes count
the optimiser steps with the waiting for data, not validations. Of each run the weights of the best validation are
tested. `init` and `name` of the YAML are left out. Time is only fair where nothing else runs on the machine; and one
recipe suits one network better than another: what it was chosen for is m-rBCR.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import recording as rec
import torch
from numpy.typing import NDArray
from torch import nn
from unet import UNet, multiply_adds_a_pixel, parameter_count

from mrbcr_cli.configuration import read_yaml
from mrbcr_cli.console import Reporter
from mrbcr_cli.errors import InputError, MrbcrError
from mrbcr_cli.evaluation.evaluate_pairs import INPUT, is_empty, read_pair, select_pairs
from mrbcr_cli.evaluation.networks import EvaluatedNetwork
from mrbcr_cli.intensity import PERCENTILES
from mrbcr_cli.metrics import Mean, Scores, bootstrap_mean, measure
from mrbcr_cli.restore import Restorer, resolve_device
from mrbcr_cli.train import journal as files
from mrbcr_cli.train.command import Machine, make_network, run_training
from mrbcr_cli.train.state import read_checkpoint
from mrbcr_cli.train.train_settings import TrainSettings

Architecture = Literal["mrbcr", "published", "unet"]
ARCHITECTURES: tuple[Architecture, ...] = ("mrbcr", "published", "unet")
SAME_STEPS: tuple[Architecture, ...] = ("mrbcr", "published")


@dataclass(frozen=True)
class Plan:
    """One training."""

    architecture: Architecture
    minutes: float | None
    steps: int | None

    @property
    def name(self) -> str:
        """Of its folder and in the tables."""
        return f"{self.architecture} {self.length}"

    @property
    def length(self) -> str:
        """How long it goes."""
        return f"{self.steps} steps" if self.minutes is None else f"{self.minutes:g} min"

    @property
    def folder(self) -> str:
        """Of its run."""
        return self.name.replace(" ", "-")


def make_plans(minutes: float | None, steps: int | None, architectures: Sequence[Architecture]) -> list[Plan]:
    """All networks for the same time, m-rBCR and the released one for the same steps."""
    plans = [Plan(a, minutes, None) for a in architectures] if minutes is not None else []
    return plans + [Plan(a, None, steps) for a in SAME_STEPS if steps is not None and a in architectures]


def settings_of(plan: Plan, recipe: Mapping[str, Any]) -> TrainSettings:
    """The recipe with the plan's length and network. A U-Net has a network of its own and none of the settings."""
    values = {k: v for k, v in recipe.items() if k not in ("init", "name", "model", "minutes")}
    if plan.architecture != "mrbcr":
        values.pop("network", None)
    length = {"steps": plan.steps} if plan.minutes is None else {"minutes": plan.minutes}
    model = "published" if plan.architecture == "published" else "mrbcr"
    return TrainSettings(**{**values, **length, "model": model, "name": plan.folder})


def network_of(plan: Plan, settings: TrainSettings, unet_kernel: int) -> nn.Module:
    """Random weights, by the seed."""
    if plan.architecture != "unet":
        return make_network(settings, print)
    torch.manual_seed(settings.seed)
    return UNet(kernel=unet_kernel)


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished run."""

    plan: Plan
    network: EvaluatedNetwork
    parameters: int
    multiply_adds_a_pixel: float
    steps: int
    minutes: float
    patches_a_second: float
    validation_db: float
    curve: list[tuple[float, float]]
    """Minutes and validation PSNR (dB)."""


def train_all(
    plans: Sequence[Plan], recipe: Mapping[str, Any], root: Path, machine: Machine, reporter: Reporter, unet_kernel: int
) -> list[Trained]:
    """Train, or go on with, every plan under `root`. Raises what `run_training` raises; run again to resume."""
    done = []
    for plan in plans:
        settings, folder = settings_of(plan, recipe), root / plan.folder
        network = network_of(plan, settings, unet_kernel)
        best = run_training(settings, folder, machine, reporter, network=network)
        if best is None:
            raise InputError(f"{folder}: nothing was trained")
        done.append(read_run(plan, settings, folder, best, network_of(plan, settings, unet_kernel), machine.device))
    return done


def read_run(
    plan: Plan, settings: TrainSettings, folder: Path, best: Path, network: nn.Module, device: str
) -> Trained:  # fmt: skip
    """A run from its folder, its best weights in `network` as a method."""
    from safetensors.torch import load_file

    network.load_state_dict(load_file(best))
    counters = read_checkpoint(folder / files.CHECKPOINT)["counters"]
    elapsed = max(float(counters["elapsed_s"]), 1e-9)
    rows = files.read_log(folder / files.LOG)
    bare: Any = network
    cost = multiply_adds_a_pixel(network)
    method = Restorer(network, bare.default_halo_px, resolve_device(device), "fp32", 1)
    return Trained(
        plan=plan,
        network=EvaluatedNetwork(plan.name, method, PERCENTILES, {"kind": "network"}),
        parameters=parameter_count(network),
        multiply_adds_a_pixel=cost,
        steps=int(counters["step"]),
        minutes=elapsed / 60,
        patches_a_second=counters["step"] * settings.batch * settings.accumulate / elapsed,
        validation_db=float(counters["best_psnr"]),
        curve=[(r["elapsed_s"] / 60, r["validation_psnr"]) for r in rows if "validation_psnr" in r],
    )


Method = Callable[[NDArray[Any]], NDArray[Any]]


def score_all(root: Path, methods: Mapping[str, Method], split: str, limit: int | None) -> dict[str, list[Scores]]:
    """Scores of every method, the input among them, on the pairs of a split that have something to see."""
    _, numbers = select_pairs(root, split, limit)
    scores: dict[str, list[Scores]] = {name: [] for name in (INPUT, *methods)}
    for number in numbers:
        pair = read_pair(root, number)
        if is_empty(pair):
            continue
        scores[INPUT].append(measure(pair.blurred, pair.sharp))
        for name, method in methods.items():
            scores[name].append(measure(method(pair.blurred), pair.sharp))
    return scores


def column(scores: Sequence[Scores], metric: str) -> NDArray[np.float64]:
    """(n,), NaN where it is not defined."""
    values = [getattr(s, metric) for s in scores]
    return np.array([np.nan if v is None else v for v in values], np.float64)


@dataclass(frozen=True)
class Difference:
    """First minus second on the same pairs, with its 95 % bootstrap interval; and the share of pairs won."""

    first: str
    second: str
    metric: str
    mean: Mean | None
    won: float


def differences(scores: Mapping[str, Sequence[Scores]], plans: Sequence[Plan], seed: int) -> list[Difference]:
    """m-rBCR minus each other network that was trained as long."""
    found = []
    for length in dict.fromkeys(p.length for p in plans):
        same = {p.architecture: p.name for p in plans if p.length == length}
        for other in [a for a in same if a != "mrbcr" and "mrbcr" in same]:
            for metric in ("psnr_db", "ssim"):
                gap = column(scores[same["mrbcr"]], metric) - column(scores[same[other]], metric)
                gap = gap[np.isfinite(gap)]
                won = float((gap > 0).mean()) if len(gap) else float("nan")
                found.append(Difference(same["mrbcr"], same[other], metric, bootstrap_mean(gap, seed), won))
    return found


def markdown(trained: Sequence[Trained], scores: Mapping[str, Sequence[Scores]], gaps: Sequence[Difference]) -> str:
    """Both tables."""
    head = ["network", "parameters", "multiply-adds a pixel", "steps", "minutes", "patches/s", "PSNR (dB)", "SSIM"]
    rows: list[list[str]] = []
    by_name = {t.plan.name: t for t in trained}
    for name, several in scores.items():
        t = by_name.get(name)
        made = [""] * 5
        if t is not None:
            made = [f"{v:,.0f}" for v in (t.parameters, t.multiply_adds_a_pixel, t.steps)]
            made += [f"{v:.1f}" for v in (t.minutes, t.patches_a_second)]
        means = [float(np.nanmean(column(several, m))) for m in ("psnr_db", "ssim")]
        rows.append([name, *made, f"{means[0]:.2f}", f"{means[1]:.3f}"])
    parts = ["# Networks trained alike", "", f"Tested on {len(scores[INPUT])} pairs.", "", rec.table(head, rows)]
    if gaps:
        lines = [[f"{g.first} - {g.second}", g.metric, _interval(g.mean), f"{100 * g.won:.0f} %"] for g in gaps]
        parts += ["", "Differences, pair by pair (95 % bootstrap interval):", ""]
        parts += [rec.table(["difference", "metric", "mean", "better in"], lines)]
    return "\n".join(parts)


def _interval(mean: Mean | None) -> str:
    if mean is None:
        return "-"
    return f"{mean.mean:+.3f}" + ("" if mean.low is None else f" [{mean.low:+.3f}, {mean.high:+.3f}]")


def figure(trained: Sequence[Trained], scores: Mapping[str, Sequence[Scores]], path: Path) -> None:
    """Validation over time, and test PSNR against cost."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = fig.subplots(1, 2)
    for t in trained:
        left.plot(*zip(*t.curve, strict=True), ".-", label=t.plan.name) if t.curve else None
        right.plot(t.multiply_adds_a_pixel, np.nanmean(column(scores[t.plan.name], "psnr_db")), "o", label=t.plan.name)
    left.set(xlabel="minutes", ylabel="validation PSNR (dB)")
    right.set(xscale="log", xlabel="multiply-adds a pixel", ylabel="test PSNR (dB)")
    right.legend(fontsize=7)
    fig.savefig(path, dpi=110)


def read_recipe(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that all runs share. Raises InputError."""
    recipe = dict(read_yaml(args.config)) if args.config is not None else {}
    if args.pairs:
        recipe.pop("simulate", None)
        recipe["pairs"] = tuple(args.pairs)
    elif args.source:
        if not isinstance(recipe.get("simulate"), dict):
            raise InputError("--source needs the settings of a simulation: simulate: in the YAML")
        recipe["simulate"] = {**recipe["simulate"], "source": args.source}
    for name in ("batch", "patch", "every", "seed", "lr"):
        if getattr(args, name) is not None:
            recipe[name] = getattr(args, name)
    return recipe


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Networks trained alike, and what came of it.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder; the same command resumes")
    parser.add_argument("--pairs", type=Path, action="append", help="Zarr of mrbcr simulate pairs to train on")
    parser.add_argument("-c", "--config", type=Path, help="YAML of mrbcr train: the recipe")
    parser.add_argument("--source", action="append", help="sharp images, where the YAML simulates")
    parser.add_argument("--test-pairs", type=Path, required=True, help="Zarr of held-out pairs")
    parser.add_argument("--split", default="test", help="of the test pairs")
    parser.add_argument("--limit", type=int, help="test on so many pairs")
    parser.add_argument("--minutes", type=float, help="training time of every network")
    parser.add_argument("--steps", type=int, help="steps of mrbcr and published")
    parser.add_argument("--networks", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--unet-kernel", type=int, default=3, help="3, or CSBDeep's 5")
    for name, kind in (("batch", int), ("patch", int), ("every", int), ("seed", int), ("lr", float)):
        parser.add_argument(f"--{name}", type=kind, help="as of mrbcr train; over the YAML")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--workers", type=int)
    args = parser.parse_args(argv)
    if args.minutes is None and args.steps is None:
        parser.error("give --minutes, --steps or both")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """See the module text."""
    args = parse(argv)
    try:
        select_pairs(args.test_pairs, args.split, args.limit)
        plans = make_plans(args.minutes, args.steps, args.networks)
        machine = Machine(args.device, args.workers, args.threads)
        trained = train_all(plans, read_recipe(args), args.output / "runs", machine, Reporter(), args.unet_kernel)
        methods = {t.plan.name: t.network.restore for t in trained}
        scores = score_all(args.test_pairs, methods, args.split, args.limit)
    except MrbcrError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
    gaps = differences(scores, plans, seed=0)
    text = markdown(trained, scores, gaps)
    means = {n: {m: float(np.nanmean(column(s, m))) for m in ("psnr_db", "ssim")} for n, s in scores.items()}
    kept = ("parameters", "multiply_adds_a_pixel", "steps", "minutes", "patches_a_second", "validation_db", "curve")
    runs = [{"name": t.plan.name, **asdict(t.plan), **{f"run_{k}": getattr(t, k) for k in kept}} for t in trained]
    for run in runs:
        run["run_validation_db"] = run["run_validation_db"] if np.isfinite(run["run_validation_db"]) else None
    values = {"runs": runs, "means": means, "differences": [asdict(g) for g in gaps]}
    rec.write_results(args.output / "compare", values, text)
    figure(trained, scores, args.output / "compare.png")
    print(text)


if __name__ == "__main__":
    main()
