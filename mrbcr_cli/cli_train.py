"""`mrbcr train`: the parser of the command; no logic.

Invariant: as in `cli.py`: heavy imports happen inside the command that needs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mrbcr_cli import cli_options as o
from mrbcr_cli.cli_options import given
from mrbcr_cli.console import Reporter

DATA, NETWORK, COURSE, LOSS = "Data (one kind)", "Network", "Course", "Loss"
EPILOG = (
    "Examples:  mrbcr train -o run1 --pairs pairs.zarr --steps 20000   ·   "
    "mrbcr train -o run1 --input-dir blurred/ --target-dir sharp/ --init widefield --lr 5e-4   ·   "
    "mrbcr train -o run1 -c examples/training/widefield.yaml --source 'sharp/*.tif'   ·   "
    "torchrun --nproc-per-node 4 -m mrbcr_cli train -o run1 -c train.yaml"
)


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


def train(
    output: Annotated[
        Path | None,
        _option(
            o.OUTPUT, "Folder of the run: weights, checkpoint, log, curves. The same command resumes.", "--output", "-o"
        ),
    ] = None,
    simulate: Annotated[
        Path | None,
        _option(
            DATA, "Simulate endless data as it trains: YAML of `simulate pairs` settings.", "--simulate", metavar="YAML"
        ),
    ] = None,
    source: Annotated[
        list[str] | None, _option(DATA, "Sharp images for --simulate: file, folder or glob; repeat.", metavar="PATH")
    ] = None,
    pairs: Annotated[
        list[Path] | None, _option(DATA, "Zarr of `mrbcr simulate pairs`; repeat.", metavar="ZARR")
    ] = None,
    input_dir: Annotated[Path | None, _option(DATA, "Folder of recorded images (TIFF, OME-Zarr).")] = None,
    target_dir: Annotated[Path | None, _option(DATA, "Folder of their truths, with the same names.")] = None,
    npz: Annotated[Path | None, _option(DATA, "NPZ with the arrays low and gt, (n, y, x).", metavar="NPZ")] = None,
    validation: Annotated[
        float | None, _option(DATA, "Share of the images of folders and NPZ that is held out. Default: 0.1.")
    ] = None,
    validation_pairs: Annotated[int | None, _option(DATA, "Pairs looked at in a validation. Default: 96.")] = None,
    model: Annotated[str | None, _option(NETWORK, "mrbcr, or published (the released one). Default: mrbcr.")] = None,
    init: Annotated[
        str | None, _option(NETWORK, "Start from an embedded model or a weights file (fine-tuning).", metavar="WEIGHTS")
    ] = None,
    name: Annotated[str | None, _option(NETWORK, "Name on the weights card. Default: trained.")] = None,
    steps: Annotated[int | None, _option(COURSE, "Optimiser steps. Default: 30000.")] = None,
    minutes: Annotated[
        float | None,
        _option(COURSE, "Length by the clock, minutes, instead of --steps; such a run cannot be repeated exactly."),
    ] = None,
    batch: Annotated[int | None, _option(COURSE, "Patches a step and process. Default: 8.")] = None,
    accumulate: Annotated[int | None, _option(COURSE, "Batches whose gradients add up to a step. Default: 1.")] = None,
    patch: Annotated[
        int | None, _option(COURSE, "Patch, px, a multiple of 16. Default: 192, or what the pairs have.")
    ] = None,
    lr: Annotated[float | None, _option(COURSE, "Highest learning rate. Default: 0.002.")] = None,
    warmup: Annotated[float | None, _option(COURSE, "Share of the run that warms up. Default: 0.02.")] = None,
    weight_decay: Annotated[float | None, _option(COURSE, "AdamW weight decay. Default: 0.0001.")] = None,
    clip: Annotated[float | None, _option(COURSE, "Largest norm of the gradient. Default: 1.")] = None,
    ema: Annotated[float | None, _option(COURSE, "Memory of the average of the weights. Default: 0.999.")] = None,
    patience: Annotated[
        int | None, _option(COURSE, "Validations without a better PSNR before it ends; 0 never. Default: 0.")
    ] = None,
    every: Annotated[int | None, _option(COURSE, "Steps between validations and checkpoints. Default: 1000.")] = None,
    log_every: Annotated[int | None, _option(COURSE, "Steps between lines of the log. Default: 100.")] = None,
    pool: Annotated[int | None, _option(COURSE, "Simulated fields kept at a time. Default: 512.")] = None,
    fresh: Annotated[float | None, _option(COURSE, "Fields replaced by new ones a step. Default: 0.25.")] = None,
    loss: Annotated[
        str | None, _option(LOSS, "mse, charbonnier, log (mean PSNR) or gain (over smoothing). Default: mse.")
    ] = None,
    fft_weight: Annotated[float | None, _option(LOSS, "Weight of the spectral term. Default: 0.05.")] = None,
    scale_weights: Annotated[
        tuple[float, float, float] | None,
        _option(LOSS, "Weights of the three scales. Default: 1 1 1.", metavar="FULL HALF QUARTER"),
    ] = None,
    precision: Annotated[
        str | None, _option(o.RUN, "fp32, bf16 or fp16, of the network but not the loss. Default: fp32.")
    ] = None,
    device: Annotated[str, _option(o.RUN, "auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int | None, _option(o.RUN, "Torch threads of a process. Default: the cores.")] = None,
    workers: Annotated[
        int | None, _option(o.RUN, "Processes that simulate; 1: within this one. Default: the cores, at least 2.")
    ] = None,
    seed: o.Seed = None,
    tensorboard: Annotated[
        bool | None, _option(o.OUTPUT, "Also write TensorBoard events (tensorboard package).", "--tensorboard")
    ] = None,
    overwrite: o.Overwrite = False,
    dry_run: o.DryRun = False,
    template: o.PrintConfig = False,
    config: o.Config = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Train the network on pairs of recorded and sharp images, or on images simulated as it trains."""
    from mrbcr_cli.configuration import dump_yaml, load_configuration, read_yaml
    from mrbcr_cli.errors import InputError
    from mrbcr_cli.train.train_settings import TrainSettings

    values = locals()
    names = [n for n in TrainSettings.model_fields if n not in ("simulate",)]
    overrides = given(values, *[n for n in names if n in values])
    if simulate is not None or source:
        inside = read_yaml(simulate) if simulate is not None else read_yaml(config).get("simulate") if config else {}
        if not isinstance(inside, dict):
            raise InputError("--source needs the settings of a simulation: give --simulate, or simulate: in --config")
        overrides["simulate"] = {**inside, **({"source": source} if source else {})}
    settings = load_configuration(TrainSettings, config, overrides, "mrbcr train")
    if template:
        print(dump_yaml(settings), end="")
        return
    if output is None:
        raise InputError("--output is missing; name the folder of the run")
    from mrbcr_cli.train.command import Machine, run_training

    reporter = Reporter(quiet=quiet, as_json=as_json)
    best = run_training(
        settings, output, Machine(device, workers, threads), reporter, overwrite=overwrite, dry_run=dry_run
    )
    if best is not None:
        reporter.data(str(best))
        reporter.event("trained", weights=str(best))
