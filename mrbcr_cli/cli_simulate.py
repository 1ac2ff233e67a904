"""`mrbcr simulate`: the parser of its commands; no logic.

Invariant: as in `cli.py`: heavy imports happen inside the command that needs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrbcr_cli import cli_options as o
from mrbcr_cli.cli_help import HelpAll, option
from mrbcr_cli.cli_options import given
from mrbcr_cli.cli_simulate_pairs import EPILOG as PAIRS_EPILOG
from mrbcr_cli.cli_simulate_pairs import pairs
from mrbcr_cli.cli_simulate_stack import EPILOG as STACK_EPILOG
from mrbcr_cli.cli_simulate_stack import stack
from mrbcr_cli.console import Reporter, command_line

simulate_app = typer.Typer(
    help="Make point spread functions, stacks and training pairs from the numbers of a microscope.",
    no_args_is_help=True,
)
simulate_app.command("pairs", epilog=PAIRS_EPILOG)(pairs)
simulate_app.command("stack", epilog=STACK_EPILOG)(stack)
BEADS = "Beads (measured instead of computed)"


@simulate_app.command(
    "psf",
    epilog="mrbcr simulate psf -o psf.ome.tif --preset 63x/1.4oil --ns 1.33 --depth 5 --wavelength 520\n"
    "mrbcr simulate psf -o psf.ome.tif --like cells.ome.tif --figure psf.png\n"
    "mrbcr simulate psf -o psf.ome.tif --from-beads beads.tif --bead-diameter 0.1",
)
def psf(
    output: Annotated[
        Path,
        option(o.OUTPUT, "--output", "-o", metavar="FILE", help="PSF to write: .ome.tif, .ome.zarr or .npz."),
    ],
    from_beads: Annotated[
        Path | None,
        option(BEADS, metavar="IMAGE", help="Measure the PSF from this image of beads. Default: none."),
    ] = None,
    bead_diameter: Annotated[
        float | None,
        option(BEADS, metavar="UM", help="Of the beads: divided out. Default: taken for points."),
    ] = None,
    min_snr: Annotated[
        float | None, option(BEADS, metavar="X", help="Beads below this signal to noise are rejected. Default: 8.")
    ] = None,
    saturation: Annotated[
        float | None,
        option(BEADS, metavar="COUNTS", help="From which a bead is clipped. Default: found in the image."),
    ] = None,
    voxel: Annotated[
        tuple[float, float, float] | None,
        option(BEADS, "--voxel", metavar="Z Y X", help="Of the bead image, um. Default: as the file says."),
    ] = None,
    preset: o.PresetName = None,
    microscope: o.MicroscopeKind = None,
    na: o.Na = None,
    like: o.Like = None,
    channel: o.Channel = None,
    model: o.ModelName = None,
    zernike: o.ZernikeText = None,
    pinhole_au: o.PinholeAu = None,
    na_illumination: o.NaIllumination = None,
    sheet: o.Sheet = None,
    fresnel: o.Fresnel = None,
    aplanatic: o.Aplanatic = None,
    wavelength: o.Wavelength = None,
    wavelength_ex: o.WavelengthEx = None,
    ni: o.Ni = None,
    ns: o.Ns = None,
    ng: o.Ng = None,
    tg: o.Tg = None,
    depth: o.Depth = None,
    ni_design: o.NiDesign = None,
    ng_design: o.NgDesign = None,
    tg_design: o.TgDesign = None,
    working_distance: o.WorkingDistance = None,
    pixel: o.Pixel = None,
    z_step: o.ZStep = None,
    shape: Annotated[
        tuple[int, int, int] | None,
        option(
            o.SAMPLING,
            metavar="Z Y X",
            help="Voxels; odd: one is the middle. Default: 33 planes, as wide as their light; beads: by the data.",
        ),
    ] = None,
    sampling: Annotated[
        str | None,
        option(
            o.SAMPLING,
            metavar="NAME",
            complete=("pixel", "point"),
            rare=True,
            help="pixel (mean over it) or point (value at its centre). Default: pixel; confocal, two-photon: point.",
        ),
    ] = None,
    centring: Annotated[
        str | None,
        option(
            o.SAMPLING,
            metavar="NAME",
            complete=("voxel", "between"),
            rare=True,
            help="Centre of even sizes: voxel (index n/2) or between (half-way). Default: even is refused.",
        ),
    ] = None,
    normalize: Annotated[
        str | None,
        option(o.OUTPUT, metavar="NAME", complete=("sum", "max"), help="sum or max is 1. Default: sum."),
    ] = None,
    figure: Annotated[
        Path | None,
        option(o.OUTPUT, metavar="PNG", help="Also draw the three sections and profiles. Default: none."),
    ] = None,
    overwrite: o.Overwrite = False,
    config: o.Config = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
    help_all: HelpAll = False,
) -> None:
    """Compute a point spread function from the objective's numbers, or measure it from beads."""
    options = given(dict(locals()), *o.OPTICS_NAMES, "shape", "sampling", "centring", "normalize")
    beads = given(dict(locals()), "bead_diameter", "min_snr", "saturation", "voxel", "shape", "normalize")
    reporter = Reporter(quiet=quiet, as_json=as_json)

    from mrbcr_cli.simulate.psf_command import write_bead_psf, write_psf

    if from_beads is None:
        write_psf(options, config, output, figure, reporter, command=command_line(), overwrite=overwrite, extra=beads)
    else:
        write_bead_psf(
            from_beads, beads, options, config, output, figure, reporter, command=command_line(), overwrite=overwrite
        )
