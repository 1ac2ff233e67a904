"""`mrbcr finish`: the parser of the command; no logic.

Invariant: as in `cli.py`: heavy imports happen inside the command that needs them.
"""

from __future__ import annotations

from typing import Annotated

import typer

from mrbcr_cli import cli_options as o
from mrbcr_cli.cli_help import option
from mrbcr_cli.console import Reporter

EPILOG = """\
mrbcr deconvolve big.zarr -o sharp.ome.zarr --shard 0/2
mrbcr deconvolve big.zarr -o sharp.ome.zarr --shard 1/2  # at once or in turn, here or elsewhere
mrbcr finish sharp.ome.zarr
mrbcr finish sharp.ome.zarr --verify"""


def finish(
    output: Annotated[
        str,
        typer.Argument(metavar="OUTPUT", help="What --output of the shards named.", show_default=False),
    ],
    verify: Annotated[
        bool,
        option(
            o.RUN,
            "--verify",
            help="First hold every block against its checksum; damaged ones are named and count as not done. Also for "
            "an OME-Zarr that is finished.",
        ),
    ] = False,
    work_dir: o.WorkDir = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """End a run whose blocks were done in shards: pyramid and metadata, or the TIFF, then one rename.

    Every job of an array runs `mrbcr deconvolve IN -o OUTPUT --shard I/N`, and works in OUTPUT.partial; needs no GPU,
    model or input here. Exit 3 with the numbers of what is missing, and of the shards to run again, where blocks are
    not done; nothing that is done is lost.
    """
    from mrbcr_cli.finish import finish_output
    from mrbcr_cli.places import place

    reporter = Reporter(quiet=quiet, as_json=as_json)
    done = finish_output(place(output), reporter, verify=verify, work_dir=work_dir)
    reporter.event(done.status, output=str(done.output), **done.summary)
    reporter.data(str(done.output))
