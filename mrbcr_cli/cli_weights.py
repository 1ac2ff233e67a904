"""`mrbcr weights`: list, inspect and convert network weights.

Invariant: looking at a weights file never runs code from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrbcr_cli.cli_help import complete_model, option
from mrbcr_cli.cli_options import OUTPUT, Debug, JsonFacts, Overwrite

weights_app = typer.Typer(help="List, inspect and convert network weights.", no_args_is_help=True)


@weights_app.command("list", epilog="mrbcr weights list")
def weights_list(as_json: JsonFacts = False, debug: Debug = False) -> None:
    """List the models inside the package."""
    from mrbcr_cli.describe import print_table
    from mrbcr_cli.weights import weights_table

    print_table(weights_table(), as_json=as_json)


@weights_app.command("show", epilog="mrbcr weights show widefield")
def weights_show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Embedded model or weights file.",
            autocompletion=complete_model,
            show_default=False,
        ),
    ],
    as_json: JsonFacts = False,
    debug: Debug = False,
) -> None:
    """Show the card of a weights file: domain, training, halo, SHA-256."""
    from mrbcr_cli.describe import print_facts
    from mrbcr_cli.weights import describe_weights

    print_facts(describe_weights(name), as_json=as_json)


@weights_app.command(
    "convert",
    epilog="pip install 'mrbcr[convert]'\nmrbcr weights convert their_checkpoint/ -o theirs.safetensors --name theirs",
)
def weights_convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT_DIR", help="Folder with checkpoint, *.index, *.data-*.", show_default=False),
    ],
    output: Annotated[
        Path, option(OUTPUT, "--output", "-o", metavar="FILE", help="Weights file to write (.safetensors).")
    ],
    name: Annotated[
        str | None, option(OUTPUT, "--name", metavar="NAME", help="Name in the card. Default: the folder's.")
    ] = None,
    licence: Annotated[
        str, option(OUTPUT, "--licence", metavar="TEXT", help="Licence of the weights, for the card. Default: unknown.")
    ] = "unknown",
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Convert a TensorFlow checkpoint of the authors' m-rBCR or DeBCR (needs the \\[convert] extra)."""
    from datetime import UTC, datetime

    from mrbcr_cli.weights_convert import convert_checkpoint

    now = datetime.now(UTC).isoformat(timespec="seconds")
    convert_checkpoint(checkpoint, output, created=now, name=name, licence=licence, overwrite=overwrite)
    print(output)
