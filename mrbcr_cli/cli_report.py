"""`mrbcr report`: a page on a finished output; parse and call.

Invariant: as in `cli.py`: heavy imports happen inside the command that needs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrbcr_cli import cli_options as o
from mrbcr_cli.console import Reporter

EPILOG = (
    "Examples:  mrbcr report cells_sharp.ome.zarr   ·   mrbcr report sharp.ome.tif --input /archive/cells.tif -o "
    "sharp.html --preview sharp.png"
)


def report(
    output: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="What mrbcr deconvolve wrote; also at a URL.", show_default=False)
    ],
    source: Annotated[
        str | None,
        typer.Option("--input", help="Its input. Default: where the output says that it was.", rich_help_panel=o.IMAGE),
    ] = None,
    channels: Annotated[
        str | None,
        typer.Option(help="Channels of the output to show, e.g. 0,2; at most 4.", rich_help_panel=o.IMAGE),
    ] = None,
    t: Annotated[
        str | None,
        typer.Option(
            "--t",
            help="Time points to show, e.g. 0,10; channels times time points at most 12. Default: evenly spread.",
            rich_help_panel=o.IMAGE,
        ),
    ] = None,
    psf: Annotated[
        Path | None,
        typer.Option(
            help="PSF (TIFF, npy, npz) to blur the output again with. Default: that of the run, else one simulated "
            "from the input's metadata.",
            rich_help_panel=o.IMAGE,
        ),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.html",
            help="The page. Default: OUTPUT_report.html beside OUTPUT; of one at a URL, here.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Also a picture of before and after.", rich_help_panel=o.OUTPUT),
    ] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Write a page on a finished output: before and after, profiles, spectra, resolution, residual, provenance.

    One file of a few megabytes that needs no network and opens in any browser. An image of any size is read from its
    pyramid or in samples, within bounded memory.
    """
    from mrbcr_cli.places import place
    from mrbcr_cli.report.command import Choice, write_request
    from mrbcr_cli.report.request import page_beside, requests_for

    reporter = Reporter(quiet=quiet, as_json=as_json)
    where = place(output)
    (request,) = requests_for([where], page or page_beside(where), preview)
    write_request(where, request, reporter, Choice(source, psf, channels, t))
    for path in request.paths:
        reporter.data(str(path))
