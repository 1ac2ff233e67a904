"""`mrbcr info`: what an image is, and what deconvolving it would take.

Invariant: nothing is written; of several files each is described or its error said.
"""

from __future__ import annotations

from typing import Annotated

import typer

from mrbcr_cli.cli_help import option
from mrbcr_cli.cli_options import PLAN, Axes, Debug, JsonFacts, Model, Series, SplitRgb
from mrbcr_cli.console import Reporter
from mrbcr_cli.errors import IncompleteError, MrbcrError

EPILOG = """\
mrbcr info cells.ome.tif
mrbcr info big.zarr --plan
mrbcr info big.zarr --plan --measure  # once on a machine: later runs there take the fastest tiles"""


def info(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Images to describe: TIFF, OME-TIFF, OME-Zarr; folder or quoted glob of planes; - reads names from "
            "stdin.",
            show_default=False,
        ),
    ],
    axes: Axes = None,
    series: Series = None,
    split_rgb: SplitRgb = None,
    plan: Annotated[
        bool, option(PLAN, "--plan", help="Also how it would be deconvolved: blocks, halo, memory, time.")
    ] = False,
    measure: Annotated[
        bool,
        option(PLAN, "--measure", help="Try tile and batch sizes too; remember the best for this machine."),
    ] = False,
    model: Model = None,
    tile_size: Annotated[
        int | None, option(PLAN, metavar="PX", help="Width of a block. Default: by the memory.")
    ] = None,
    workers: Annotated[
        int | None, option(PLAN, metavar="N", help="Blocks at a time. Default: the cores that memory allows.")
    ] = None,
    as_json: JsonFacts = False,
    debug: Debug = False,
) -> None:
    """Show an image's axes, sizes, chunks and metadata; with --plan what deconvolving it would take."""
    from mrbcr_cli.describe import describe_image, print_description
    from mrbcr_cli.settings import load_settings
    from mrbcr_cli.stdin_names import expand_names

    given = {"axes": axes, "series": series, "split_rgb": split_rgb, "model": model, "tile_size": tile_size}
    options = {name: value for name, value in {**given, "workers": workers}.items() if value is not None}
    settings, reporter = load_settings(None, options), Reporter()
    failed: list[MrbcrError] = []
    files = expand_names(files)
    for name in files:
        try:
            facts = describe_image(name, settings, plan=plan or measure, measure=measure, say=reporter.info)
            print_description(facts, as_json=as_json)
        except MrbcrError as error:
            if len(files) == 1:
                raise
            reporter.error(str(error))
            failed.append(error)
    if failed:
        raise IncompleteError(f"{len(failed)} of {len(files)} files could not be described")
