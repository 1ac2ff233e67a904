"""`mrbcr simulate stack`: the parser of its options; no logic.

Invariant: as in `cli.py`: heavy imports happen inside the command that needs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mrbcr_cli import cli_options as o
from mrbcr_cli.cli_help import KINDS, HelpAll, option
from mrbcr_cli.cli_options import given
from mrbcr_cli.console import Reporter, command_line

EPILOG = """\
mrbcr simulate stack -o nuclei.ome.zarr --specimen nuclei --shape 64 1024 1024 --preset 63x/1.4oil
mrbcr simulate stack -o deep.ome.zarr --specimen mixed --shape 32 512 512 --na 1.2 --ni 1.33 --depth 20
mrbcr simulate stack -o seen.ome.tif --source sharp.tif --na 1.2 --ni 1.33 --photons 200"""
_SETTINGS = (
    *o.OPTICS_NAMES,
    *("qe", "gain", "offset", "read_noise", "dark", "bit_depth", "scmos"),
    *("specimen", "source", "shape", "density", "size", "thickness", "photons", "background", "absorption", "phase"),
    *("seed", "truth", "no_truth", "truth_dtype", "truth_fwhm", "compression", "workers"),
)


def stack(
    output: Annotated[
        Path, option(o.OUTPUT, "--output", "-o", metavar="FILE", help="Stack to write: .ome.zarr or .ome.tif.")
    ],
    specimen: Annotated[
        str | None,
        option(
            o.SPECIMEN,
            metavar="KIND,...",
            complete=KINDS,
            help="beads, filaments, membranes, vesicles, nuclei, cytoplasm, targets or mixed, added up; "
            "KIND:STYLE=2 is one style, twice as bright. Default: none; this or --source.",
        ),
    ] = None,
    source: Annotated[
        Path | None,
        option(
            o.SPECIMEN,
            metavar="VOLUME",
            help="A sharp volume of your own (TIFF, OME-Zarr; one channel); sets shape and voxel too. Default: none.",
        ),
    ] = None,
    density: Annotated[
        float | None,
        option(o.SPECIMEN, metavar="X", help="How many structures, against the usual, 0.01 to 100. Default: 1."),
    ] = None,
    size: Annotated[
        float | None,
        option(o.SPECIMEN, metavar="X", help="How large they are, against the usual, 0.2 to 5. Default: 1."),
    ] = None,
    thickness: Annotated[
        float | None,
        option(o.SPECIMEN, metavar="UM", help="Of the specimen, about the middle plane. Default: the stack's depth."),
    ] = None,
    photons: Annotated[
        float | None,
        option(
            o.LIGHT,
            metavar="PHOTONS",
            help="A pixel at the peak (99.99th percentile); brightfield: without specimen. Default: 500.",
        ),
    ] = None,
    background: Annotated[
        float | None, option(o.LIGHT, metavar="PHOTONS", help="A pixel, everywhere. Default: 20.")
    ] = None,
    absorption: Annotated[
        float | None,
        option(o.LIGHT, metavar="SHARE", help="Brightfield: what the densest column absorbs. Default: 0.3."),
    ] = None,
    phase: Annotated[
        float | None,
        option(o.LIGHT, metavar="RADIAN", help="Brightfield: delay of the densest column. Default: 0.3."),
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
    shape: Annotated[
        tuple[int, int, int] | None,
        option(o.SAMPLING, metavar="Z Y X", help="Voxels of the stack. Default: none; needed, except with --source."),
    ] = None,
    pixel: o.Pixel = None,
    z_step: o.ZStep = None,
    qe: o.Qe = None,
    gain: o.Gain = None,
    offset: o.Offset = None,
    read_noise: o.ReadNoise = None,
    dark: o.Dark = None,
    bit_depth: o.BitDepth = None,
    scmos: o.Scmos = None,
    truth: Annotated[
        Path | None,
        option(o.OUTPUT, metavar="FILE", help="The specimen's light as an image. Default: _truth in OUTPUT's name."),
    ] = None,
    no_truth: Annotated[bool | None, option(o.OUTPUT, "--no-truth", help="Do not write the truth.")] = None,
    truth_dtype: Annotated[
        str | None,
        option(
            o.OUTPUT,
            metavar="TYPE",
            complete=("float32", "uint16"),
            rare=True,
            help="float32 or uint16 (rounded). Default: float32.",
        ),
    ] = None,
    truth_fwhm: Annotated[
        float | None,
        option(o.OUTPUT, metavar="UM", rare=True, help="Blur the truth by a Gaussian this wide. Default: not blurred."),
    ] = None,
    compression: o.Compression = None,
    overwrite: o.Overwrite = False,
    seed: o.Seed = None,
    workers: o.Workers = None,
    dry_run: o.DryRun = False,
    config: o.Config = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
    help_all: HelpAll = False,
) -> None:
    """Image a three-dimensional specimen by a microscope and a camera: a stack of any size, with its truth."""
    options = given(dict(locals()), *_SETTINGS)
    reporter = Reporter(quiet=quiet, as_json=as_json)

    from mrbcr_cli.simulate.stack import simulate_stack

    simulate_stack(options, config, output, reporter, command=command_line(), overwrite=overwrite, dry_run=dry_run)
