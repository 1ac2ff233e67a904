"""`mrbcr train`: the parser of the command; no logic.

Invariant: as in `cli.py`: heavy imports happen inside the command that needs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mrbcr_cli import cli_options as o
from mrbcr_cli.cli_help import DEVICES, PRECISIONS, HelpAll, complete_model, option
from mrbcr_cli.cli_options import given
from mrbcr_cli.console import Reporter

DATA, NETWORK, COURSE, LOSS = "Data (one kind)", "Network", "Course", "Loss"
EPILOG = """\
mrbcr train -o run1 --pairs pairs.zarr --steps 20000
mrbcr train -o run1 --input-dir blurred/ --target-dir sharp/ --init widefield --lr 5e-4
mrbcr train -o run1 -c train.yaml --source 'sharp/*.tif'  # train.yaml: mrbcr init train
torchrun --nproc-per-node 4 -m mrbcr_cli train -o run1 -c train.yaml  # four GPUs or processes"""


def train(
    output: Annotated[
        Path | None,
        option(
            o.OUTPUT,
            "--output",
            "-o",
            metavar="FOLDER",
            help="Of the run: weights, checkpoint, log, curves; the same command resumes. Default: none; needed.",
        ),
    ] = None,
    simulate: Annotated[
        Path | None,
        option(
            DATA,
            "--simulate",
            metavar="YAML",
            help="Simulate endless data as it trains; settings of simulate pairs. Default: none.",
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        option(
            DATA,
            metavar="PATH",
            help="Sharp images for --simulate: file, folder or quoted glob; repeat. Default: none.",
        ),
    ] = None,
    pairs: Annotated[
        list[Path] | None, option(DATA, metavar="ZARR", help="Pairs of mrbcr simulate pairs; repeat. Default: none.")
    ] = None,
    input_dir: Annotated[
        Path | None, option(DATA, metavar="FOLDER", help="Recorded images (TIFF, OME-Zarr). Default: none.")
    ] = None,
    target_dir: Annotated[
        Path | None, option(DATA, metavar="FOLDER", help="Their truths, with the same names. Default: none.")
    ] = None,
    npz: Annotated[
        Path | None, option(DATA, metavar="NPZ", help="File with arrays low and gt, (n, y, x). Default: none.")
    ] = None,
    validation: Annotated[
        float | None,
        option(DATA, metavar="SHARE", help="Of the images of folders and NPZ: held out. Default: 0.1."),
    ] = None,
    validation_pairs: Annotated[
        int | None, option(DATA, metavar="N", help="Pairs looked at in a validation. Default: 96.")
    ] = None,
    model: Annotated[
        str | None,
        option(
            NETWORK,
            metavar="NAME",
            complete=("mrbcr", "published"),
            help="mrbcr, or published (the authors' released one). Default: mrbcr.",
        ),
    ] = None,
    init: Annotated[
        str | None,
        option(
            NETWORK,
            metavar="MODEL",
            complete=complete_model,
            help="Start from an embedded model or a weights file; a larger network in -c grows from it. Default: none.",
        ),
    ] = None,
    name: Annotated[str | None, option(NETWORK, metavar="TEXT", help="On the weights card. Default: trained.")] = None,
    steps: Annotated[int | None, option(COURSE, metavar="N", help="Optimiser steps. Default: 30000.")] = None,
    minutes: Annotated[
        float | None,
        option(
            COURSE, metavar="MINUTES", help="Length by the clock instead; not to be repeated exactly. Default: none."
        ),
    ] = None,
    batch: Annotated[int | None, option(COURSE, metavar="N", help="Patches a step and process. Default: 8.")] = None,
    accumulate: Annotated[
        int | None,
        option(COURSE, metavar="N", help="Batches whose gradients add up to a step. Default: 1.", rare=True),
    ] = None,
    patch: Annotated[
        int | None,
        option(COURSE, metavar="PX", help="Patch, a multiple of 16. Default: 192, or what the pairs have."),
    ] = None,
    lr: Annotated[float | None, option(COURSE, metavar="X", help="Highest learning rate. Default: 0.002.")] = None,
    warmup: Annotated[
        float | None, option(COURSE, metavar="SHARE", help="Of the run that warms up. Default: 0.02.", rare=True)
    ] = None,
    weight_decay: Annotated[
        float | None, option(COURSE, metavar="X", help="Weight decay of AdamW. Default: 0.0001.", rare=True)
    ] = None,
    clip: Annotated[
        float | None, option(COURSE, metavar="X", help="Largest norm of the gradient. Default: 1.", rare=True)
    ] = None,
    ema: Annotated[
        float | None,
        option(COURSE, metavar="SHARE", help="Memory of the average of the weights. Default: 0.999.", rare=True),
    ] = None,
    patience: Annotated[
        int | None,
        option(COURSE, metavar="N", help="Validations without a better PSNR before it ends; 0 never. Default: 0."),
    ] = None,
    every: Annotated[
        int | None, option(COURSE, metavar="N", help="Steps between validations and checkpoints. Default: 1000.")
    ] = None,
    log_every: Annotated[
        int | None, option(COURSE, metavar="N", help="Steps between lines of the log. Default: 100.")
    ] = None,
    pool: Annotated[
        int | None, option(COURSE, metavar="N", help="Simulated fields kept at a time. Default: 512.", rare=True)
    ] = None,
    fresh: Annotated[
        float | None,
        option(COURSE, metavar="X", help="Fields replaced by new ones a step. Default: 0.25.", rare=True),
    ] = None,
    loss: Annotated[
        str | None,
        option(
            LOSS,
            metavar="NAME",
            complete=("mse", "charbonnier", "log", "gain"),
            help="mse, charbonnier, log (mean PSNR) or gain (over explicit methods). Default: mse.",
        ),
    ] = None,
    gain_floor: Annotated[
        float | None,
        option(
            LOSS,
            metavar="X",
            help="Of loss gain: share of their error below which little more is gained. Default: 0.3.",
            rare=True,
        ),
    ] = None,
    fft_weight: Annotated[
        float | None, option(LOSS, metavar="X", help="Weight of the spectral term. Default: 0.05.")
    ] = None,
    scale_weights: Annotated[
        tuple[float, float, float] | None,
        option(
            LOSS,
            metavar="X X X",
            help="Weights of the loss at full, half and quarter size. Default: 1 1 1.",
            rare=True,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        option(
            o.RUN,
            metavar="NAME",
            complete=PRECISIONS,
            help="fp32, bf16 or fp16, of the network but not the loss. Default: fp32.",
        ),
    ] = None,
    device: Annotated[
        str, option(o.RUN, metavar="NAME", complete=DEVICES, help="auto, cpu, cuda or cuda:N. Default: auto.")
    ] = "auto",
    threads: Annotated[
        int | None, option(o.RUN, metavar="N", help="Torch threads of a process. Default: the cores.")
    ] = None,
    workers: Annotated[
        int | None,
        option(o.RUN, metavar="N", help="Processes that simulate; 1: within this one. Default: the cores, at least 2."),
    ] = None,
    seed: o.Seed = None,
    tensorboard: Annotated[
        bool | None,
        option(o.OUTPUT, "--tensorboard", help="Also TensorBoard events (pip install 'mrbcr\\[tensorboard]')."),
    ] = None,
    overwrite: o.Overwrite = False,
    dry_run: o.DryRun = False,
    template: o.PrintConfig = False,
    config: o.Config = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
    help_all: HelpAll = False,
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
