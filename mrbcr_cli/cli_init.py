"""`mrbcr init`: print a commented configuration.

Invariant: nothing is written but to stdout, so that no file is ever replaced.
"""

from __future__ import annotations

from typing import Annotated

import typer

from mrbcr_cli.cli_options import Debug
from mrbcr_cli.errors import InputError

COMMANDS = ("deconvolve", "train", "simulate-psf", "simulate-stack", "simulate-pairs")
EPILOG = """\
mrbcr init deconvolve > run.yaml
mrbcr deconvolve cells.tif -o cells_sharp.tif -c run.yaml
mrbcr init simulate-pairs > pairs.yaml"""


def init(
    context: typer.Context,
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND",
            help="deconvolve, train, simulate-psf, simulate-stack or simulate-pairs.",
            autocompletion=lambda: list(COMMANDS),
            show_default=False,
        ),
    ],
    debug: Debug = False,
) -> None:
    """Print a configuration with every option, its default and what it does, for --config of that command."""
    from mrbcr_cli.template import TEMPLATES, yaml_template

    name = "-".join(command)
    if name not in TEMPLATES:
        raise InputError(
            f"init: there is no configuration of {' '.join(command)!r}; there is one of {', '.join(COMMANDS)}"
        )
    found = context.find_root().command
    for word in TEMPLATES[name].words:
        found = found.commands[word]  # type: ignore[attr-defined]  # a group
    print(yaml_template(name, found), end="")
