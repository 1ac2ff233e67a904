"""`mrbcr info`: what an image is, and what deconvolving it would take.

Invariant: nothing is written; of several files each is described or its error said.
"""

from __future__ import annotations

from typing import Annotated

import typer

from mrbcr_cli.cli_options import Axes, Debug, Series, SplitRgb
from mrbcr_cli.console import Reporter
from mrbcr_cli.errors import IncompleteError, MrbcrError


def info(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Image to describe; - reads names from stdin.", show_default=False),
    ],
    axes: Axes = None,
    series: Series = None,
    split_rgb: SplitRgb = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Also how it would be deconvolved: blocks, halo, memory, time.")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="With --plan: try tile and batch sizes, remember the best for this machine."),
    ] = False,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model of the plan. Default: widefield.")] = None,
    tile_size: Annotated[int | None, typer.Option(help="Block size of the plan in px.")] = None,
    workers: Annotated[int | None, typer.Option(help="Workers of the plan.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, one object a file.")] = False,
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
