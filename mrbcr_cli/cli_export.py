"""`mrbcr export`: the parser of the command; no logic.

Invariant: as in `cli.py`: heavy imports happen inside the command that needs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrbcr_cli import cli_options as o
from mrbcr_cli.cli_help import complete_model, option
from mrbcr_cli.console import Reporter

EPILOG = """\
mrbcr export widefield -o widefield.onnx
mrbcr export mine.safetensors -o mine.zip --author 'Ada Lovelace'
mrbcr deconvolve cells.tif -o sharp.tif -m mine.zip  # a package is a model of this tool as well"""


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Embedded model, weights file or package.",
            autocompletion=complete_model,
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, option(o.OUTPUT, "--output", "-o", metavar="FILE", help="File to write: .onnx, .zip or .safetensors.")
    ],
    format: Annotated[
        str | None,
        option(
            o.OUTPUT,
            "--format",
            metavar="NAME",
            complete=("onnx", "bioimageio", "safetensors"),
            help="onnx, bioimageio or safetensors. Default: as the output's name says.",
        ),
    ] = None,
    author: Annotated[
        list[str] | None,
        option(
            o.OUTPUT,
            "--author",
            metavar="NAME",
            help="Of the weights, for bioimageio; repeat. Default: the developers, of embedded models.",
        ),
    ] = None,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Write a model for other programs: one ONNX file, or a BioImage Model Zoo package (needs the \\[export] extra).

    Both take images as they are recorded, of any size and batch, and return them in the same unit: percentiles and
    power spectrum are measured in the graph. What is written has been run: ONNX Runtime agrees with mrbcr to 1e-4 of
    the intensity range, and bioimageio.core reproduces the package's test output.
    """
    from mrbcr_cli.export import export as write_export

    reporter = Reporter(quiet=quiet, as_json=as_json)
    write_export(model, output, reporter, asked=format, authors=author or (), overwrite=overwrite)
    reporter.data(str(output))
