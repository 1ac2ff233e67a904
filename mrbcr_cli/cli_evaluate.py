"""`mrbcr evaluate`: the parser of the command; no logic.

Invariant: as in `cli.py`: heavy imports happen inside the command that needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from mrbcr_cli import cli_options as o
from mrbcr_cli.console import Reporter
from mrbcr_cli.errors import InputError

FILES, PAIRS = "Files", "Pairs"
MANY = ("--truth", "--input")
"""Options that take every file up to the next option, as a shell's glob gives them."""

EPILOG = (
    "Examples:  mrbcr evaluate restored/*.tif --truth truth/*.tif --figures figures   ·   "
    "mrbcr evaluate restored/ --truth truth/ --input raw/ -o scores.json   ·   "
    "mrbcr evaluate --pairs pairs.zarr -m widefield -m mine.safetensors -o scores.json --report scores.md"
)


class ManyValues(TyperCommand):
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


def _text(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


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
        _text(FILES, "Their truths, in the same order, or a folder with the same names.", metavar="TRUTH..."),
    ] = None,
    input_: Annotated[
        list[str] | None,
        _text(
            FILES,
            "What the predictions were made from, scored and drawn beside them. Default: none.",
            "--input",
            metavar="INPUT...",
        ),
    ] = None,
    per: Annotated[
        str | None, _text(FILES, "One result per image (all planes together) or per plane. Default: image.")
    ] = None,
    axes: Annotated[
        str | None,
        _text(FILES, "Axes in the order on disk, e.g. TZCYX, for files that do not say. Default: as they say."),
    ] = None,
    pairs: Annotated[
        Path | None, _text(PAIRS, "Zarr of mrbcr simulate pairs to evaluate models on.", metavar="ZARR")
    ] = None,
    model: Annotated[
        list[str] | None,
        _text(PAIRS, "Embedded model or weights file; repeat to compare. Default: widefield.", "--model", "-m"),
    ] = None,
    split: Annotated[str | None, _text(PAIRS, "train, validation or test. Default: test.")] = None,
    limit: Annotated[int | None, _text(PAIRS, "Only the first so many pairs. Default: all of the split.")] = None,
    baselines: Annotated[
        bool | None,
        _text(
            PAIRS,
            "Also Richardson-Lucy and Wiener with the true PSF and background, at the best setting for the set and for "
            "each image. Default: yes.",
            "--baselines/--no-baselines",
        ),
    ] = None,
    psf: Annotated[
        Path | None,
        _text(PAIRS, "PSF of the baselines (TIFF, npy, npz). Default: the pairs' own; needed where it was a file."),
    ] = None,
    device: Annotated[str | None, _text(PAIRS, "auto, cpu, cuda or cuda:N, for models. Default: auto.")] = None,
    output: Annotated[
        Path | None, _text(o.OUTPUT, "All scores and totals, .json. Default: not written.", "--output", "-o")
    ] = None,
    csv: Annotated[
        Path | None, _text(o.OUTPUT, "One line an image and method, .csv. Default: not written.", metavar="FILE.csv")
    ] = None,
    report: Annotated[
        Path | None, _text(o.OUTPUT, "Tables in Markdown, .md. Default: not written.", metavar="FILE.md")
    ] = None,
    figures: Annotated[
        Path | None,
        _text(o.OUTPUT, "Folder for a PNG an image: methods, truth, errors. Default: none.", metavar="FOLDER"),
    ] = None,
    figure_count: Annotated[
        int | None, _text(o.OUTPUT, "Most figures drawn, spread evenly over the images. Default: 8.")
    ] = None,
    overwrite: o.Overwrite = False,
    seed: Annotated[int | None, _text(o.RUN, "Seed of the confidence intervals. Default: 0.")] = None,
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
