"""`mrbcr simulate stack`: the parser of its options; no logic.

Invariant: as in `cli.py`: heavy imports happen inside the command that needs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrbcr_cli import cli_options as o
from mrbcr_cli.cli_options import given
from mrbcr_cli.console import Reporter, command_line

EPILOG = (
    "Examples:  mrbcr simulate stack -o nuclei.ome.zarr --specimen nuclei --shape 64 1024 1024 --preset 63x/1.4oil "
    "--ns 1.33 --depth 3   ·   mrbcr simulate stack -o seen.ome.tif --source sharp.tif --na 1.2 --ni 1.33 --photons 200"
)
_SETTINGS = (
    *o.OPTICS_NAMES,
    *("qe", "gain", "offset", "read_noise", "dark", "bit_depth", "scmos"),
    *("specimen", "source", "shape", "density", "size", "thickness", "photons", "background", "absorption", "phase"),
    *("seed", "truth", "no_truth", "truth_dtype", "truth_fwhm", "compression", "workers"),
)


def stack(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Stack to write: .ome.zarr or .ome.tif.", rich_help_panel=o.OUTPUT)
    ],
    specimen: Annotated[
        str | None,
        typer.Option(
            metavar="KIND[:STYLE][=LIGHT],...",
            help="beads, filaments, membranes, vesicles, nuclei, cytoplasm, targets or mixed; several are added up, "
            "each LIGHT times as bright as usual (default 1).",
            rich_help_panel=o.SPECIMEN,
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="VOLUME",
            help="A sharp volume of your own instead (TIFF, OME-Zarr; one channel); it also sets shape and voxel.",
            rich_help_panel=o.SPECIMEN,
        ),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(
            help="How many structures, against the usual, 0.01 to 100. Default: 1.", rich_help_panel=o.SPECIMEN
        ),
    ] = None,
    size: Annotated[
        float | None,
        typer.Option(help="How large they are, against the usual, 0.2 to 5. Default: 1.", rich_help_panel=o.SPECIMEN),
    ] = None,
    thickness: Annotated[
        float | None,
        typer.Option(
            help="Thickness of the specimen, um, about the middle plane. Default: the stack's depth.",
            rich_help_panel=o.SPECIMEN,
        ),
    ] = None,
    photons: Annotated[
        float | None,
        typer.Option(
            help="Photons a pixel at the peak (99.99th percentile); brightfield: without specimen. Default: 500.",
            rich_help_panel=o.LIGHT,
        ),
    ] = None,
    background: Annotated[
        float | None, typer.Option(help="Photons a pixel everywhere. Default: 20.", rich_help_panel=o.LIGHT)
    ] = None,
    absorption: Annotated[
        float | None,
        typer.Option(
            help="Brightfield: share of the light that the densest column absorbs. Default: 0.3.",
            rich_help_panel=o.LIGHT,
        ),
    ] = None,
    phase: Annotated[
        float | None,
        typer.Option(help="Brightfield: delay of the densest column, radian. Default: 0.3.", rich_help_panel=o.LIGHT),
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
        typer.Option(
            metavar="Z Y X",
            help="Size of the stack, voxels. No default: needed, except with --source.",
            rich_help_panel=o.SAMPLING,
        ),
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
        typer.Option(
            metavar="NAME",
            help="The specimen's light as an image of its own. Default: OUTPUT with _truth in its name.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    no_truth: Annotated[
        bool | None, typer.Option("--no-truth", help="Do not write the truth.", rich_help_panel=o.OUTPUT)
    ] = None,
    truth_dtype: Annotated[
        str | None, typer.Option(help="float32 or uint16 (rounded). Default: float32.", rich_help_panel=o.OUTPUT)
    ] = None,
    truth_fwhm: Annotated[
        float | None,
        typer.Option(
            help="Blur the truth by a Gaussian of this FWHM along z, y and x, um. Default: not blurred.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    compression: Annotated[
        str | None, typer.Option(help="Of TIFF: zstd, deflate or none. Default: zstd.", rich_help_panel=o.OUTPUT)
    ] = None,
    overwrite: o.Overwrite = False,
    seed: o.Seed = None,
    workers: o.Workers = None,
    dry_run: o.DryRun = False,
    config: o.Config = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Image a three-dimensional specimen by a microscope and a camera: a stack of any size, with its truth."""
    options = given(dict(locals()), *_SETTINGS)
    reporter = Reporter(quiet=quiet, as_json=as_json)

    from mrbcr_cli.simulate.stack import simulate_stack

    simulate_stack(options, config, output, reporter, command=command_line(), overwrite=overwrite, dry_run=dry_run)
