"""`mrbcr evaluate`: the parser of the command; no logic.

Invariant: as in `cli.py`: heavy imports happen inside the command that needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mrbcr_cli import cli_options as o
from mrbcr_cli.cli_help import DEVICES, Taught, complete_model, option
from mrbcr_cli.console import Reporter
from mrbcr_cli.errors import InputError

FILES, PAIRS = "Files", "Pairs"
MANY = ("--truth", "--input")
"""Options that take every file up to the next option, as a shell's glob gives them."""

EPILOG = """\
mrbcr evaluate restored/*.tif --truth truth/*.tif --figures figures
mrbcr evaluate restored/ --truth truth/ --input raw/ -o scores.json
mrbcr evaluate --pairs pairs.zarr -m widefield -m mine.safetensors -o scores.json --report scores.md"""


class ManyValues(Taught):
    """A command whose `MANY` options take several values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse `--truth a b` as `--truth a --truth b`."""
        return super().parse_args(ctx, spread(args))


def spread(arguments: Sequence[str]) -> list[str]:
    """Repeat each option of `MANY` before every word that follows it, up to the next option."""
    words: list[str] = []
    option: str | None = None
    for position, word in enumerate(arguments):
        if word == "--":
            return [*words, *arguments[position:]]
        if word in MANY:
            option = word
        elif word.startswith("-") and len(word) > 1:
            words.append(word)
            option = None
        else:
            words += [word] if option is None else [option, word]
    return words


def evaluate(
    predictions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PREDICTION]...",
            help="Images to judge, or a folder of them: TIFF, OME-TIFF, OME-Zarr, any axes; - reads names from stdin. "
            "Not with --pairs.",
            show_default=False,
        ),
    ] = None,
    truth: Annotated[
        list[str] | None,
        option(
            FILES,
            metavar="TRUTH...",
            help="Their truths, in the same order; or a folder, same names. Default: none.",
        ),
    ] = None,
    input_: Annotated[
        list[str] | None,
        option(
            FILES,
            "--input",
            metavar="INPUT...",
            help="What the predictions were made from, scored and drawn beside them. Default: none.",
        ),
    ] = None,
    per: Annotated[
        str | None,
        option(
            FILES,
            metavar="NAME",
            complete=("image", "plane"),
            help="One result per image (all planes together) or per plane. Default: image.",
        ),
    ] = None,
    axes: Annotated[
        str | None,
        option(FILES, metavar="AXES", help="Order of the axes on disk, e.g. TZCYX. Default: as the files say."),
    ] = None,
    pairs: Annotated[
        Path | None,
        option(PAIRS, metavar="ZARR", help="Pairs of mrbcr simulate pairs to evaluate models on. Default: none."),
    ] = None,
    model: Annotated[
        list[str] | None,
        option(
            PAIRS,
            "--model",
            "-m",
            metavar="MODEL",
            complete=complete_model,
            help="Embedded model or weights file; repeat to compare. Default: widefield.",
        ),
    ] = None,
    split: Annotated[
        str | None,
        option(
            PAIRS,
            metavar="NAME",
            complete=("train", "validation", "test"),
            help="train, validation or test. Default: test.",
        ),
    ] = None,
    limit: Annotated[
        int | None, option(PAIRS, metavar="N", help="Only the first so many pairs. Default: all of the split.")
    ] = None,
    baselines: Annotated[
        bool | None,
        option(
            PAIRS,
            "--baselines/--no-baselines",
            help="Also Richardson-Lucy and Wiener with the true PSF, at their best settings. Default: yes.",
        ),
    ] = None,
    psf: Annotated[
        Path | None,
        option(
            PAIRS,
            metavar="FILE",
            help="PSF of the baselines (TIFF, npy, npz). Default: the pairs' own.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        option(PAIRS, metavar="NAME", complete=DEVICES, help="Of models: auto, cpu, cuda or cuda:N. Default: auto."),
    ] = None,
    output: Annotated[
        Path | None,
        option(o.OUTPUT, "--output", "-o", metavar="FILE", help="All scores and totals, .json. Default: none."),
    ] = None,
    csv: Annotated[
        Path | None, option(o.OUTPUT, metavar="FILE", help="One line an image and method, .csv. Default: none.")
    ] = None,
    report: Annotated[
        Path | None, option(o.OUTPUT, metavar="FILE", help="Tables in Markdown, .md. Default: none.")
    ] = None,
    figures: Annotated[
        Path | None,
        option(o.OUTPUT, metavar="FOLDER", help="A PNG an image: methods, truth, errors. Default: none."),
    ] = None,
    figure_count: Annotated[
        int | None,
        option(o.OUTPUT, metavar="N", help="Most figures drawn, spread evenly over the images. Default: 8."),
    ] = None,
    overwrite: o.Overwrite = False,
    seed: Annotated[int | None, option(o.RUN, metavar="N", help="Of the confidence intervals. Default: 0.")] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Score images against their truth; or models on simulated pairs, against methods that know the true PSF.

    PSNR, SSIM and NRMSE take the truth's maximum minus minimum as range; "fit" is after the least-squares a p + b.
    """
    of_files = {"PREDICTION": predictions, "--truth": truth, "--input": input_, "--per": per, "--axes": axes}
    of_pairs = {
        **{"--model": model, "--split": split, "--limit": limit, "--baselines": baselines, "--psf": psf},
        "--device": device,
    }
    for name, value in (of_files if pairs is not None else of_pairs).items():
        if value:
            other = "cannot be given with --pairs" if pairs is not None else "needs --pairs"
            raise InputError(f"{name}: {other}; evaluate either files or pairs")
    seed = 0 if seed is None else seed
    if seed < 0:
        raise InputError(f"--seed must be 0 or more, not {seed}")
    reporter = Reporter(quiet=quiet, as_json=as_json)

    from mrbcr_cli.restore import tune_allocator

    tune_allocator()  # before torch takes its first block
    from mrbcr_cli.evaluation.command import Outputs, run_files, run_pairs
    from mrbcr_cli.stdin_names import expand_names

    count = 8 if figure_count is None else figure_count
    outputs = Outputs(output, csv, report, figures, count, overwrite)
    if pairs is None:
        run_files(
            *(expand_names(predictions or []), truth or [], input_ or [], outputs, reporter),
            per=per or "image",
            axes=axes,
            seed=seed,
        )
        return
    run_pairs(
        pairs,
        model or ["widefield"],
        outputs,
        reporter,
        split=split or "test",
        limit=limit,
        baselines=baselines is not False,
        psf=psf,
        seed=seed,
        device=device or "auto",
    )
