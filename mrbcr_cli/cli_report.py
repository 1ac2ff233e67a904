"""`mrbcr report`: a page on a finished output; parse and call.

Invariant: as in `cli.py`: heavy imports happen inside the command that needs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrbcr_cli import cli_options as o
from mrbcr_cli.cli_help import option
from mrbcr_cli.console import Reporter

EPILOG = """\
mrbcr report cells_sharp.ome.zarr
mrbcr report sharp.ome.tif --input /archive/cells.tif -o sharp.html --preview sharp.png  # the input has moved
mrbcr deconvolve cells.tif -o cells_sharp.ome.zarr --report cells.html  # at once"""


def report(
    output: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="What mrbcr deconvolve wrote; also at a URL.", show_default=False)
    ],
    source: Annotated[
        str | None,
        option(o.IMAGE, "--input", metavar="FILE", help="Its input. Default: where the output says that it was."),
    ] = None,
    channels: Annotated[
        str | None,
        option(o.IMAGE, metavar="LIST", help="Channels of the output, from 0, e.g. 0,2. Default: the first 4."),
    ] = None,
    t: Annotated[
        str | None,
        option(
            o.IMAGE,
            "--t",
            metavar="LIST",
            help="Time points, from 0, e.g. 0,10; with channels at most 12 views. Default: evenly spread.",
        ),
    ] = None,
    psf: Annotated[
        Path | None,
        option(
            o.IMAGE,
            metavar="FILE",
            help="PSF to blur the output again with. Default: that of the run, else one by the input's metadata.",
        ),
    ] = None,
    page: Annotated[
        Path | None,
        option(
            o.OUTPUT,
            "--output",
            "-o",
            metavar="HTML",
            help="The page. Default: OUTPUT_report.html beside OUTPUT; of one at a URL, here.",
        ),
    ] = None,
    preview: Annotated[
        Path | None, option(o.OUTPUT, metavar="PNG", help="Also a picture of before and after. Default: none.")
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
