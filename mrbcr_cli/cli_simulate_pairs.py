"""`mrbcr simulate pairs`: the parser of the command; no logic.

Invariant: as in `cli.py`: heavy imports happen inside the command that needs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from mrbcr_cli import cli_options as o
from mrbcr_cli.cli_help import KINDS, MICROSCOPES, HelpAll, option
from mrbcr_cli.cli_options import given
from mrbcr_cli.console import Reporter

EPILOG = """\
mrbcr simulate pairs -o pairs.zarr --source 'sharp/*.tif' --count 2000 --figure pairs.png
mrbcr simulate pairs -o pairs.zarr --na 1.2:1.4 --ni 1.515 --photons 100  # LOW:HIGH: drawn for each pair
mrbcr init simulate-pairs > pairs.yaml
mrbcr simulate pairs -o pairs.zarr -c pairs.yaml"""
SOURCES, TARGET = "Structures", "Target"


def _range(panel: str, help: str, *, rare: bool = False) -> Any:
    return option(panel, metavar="LOW:HIGH", help=help, rare=rare)


Span = str | None


def pairs(
    output: Annotated[
        Path | None,
        option(o.OUTPUT, "--output", "-o", metavar="ZARR", help="Zarr group to write. Default: none; needed."),
    ] = None,
    count: Annotated[int | None, option(o.OUTPUT, metavar="N", help="Number of pairs. Default: 2000.")] = None,
    patch: Annotated[int | None, option(o.OUTPUT, metavar="PX", help="Size of a patch. Default: 128.")] = None,
    splits: Annotated[
        tuple[float, float, float] | None,
        option(
            o.OUTPUT,
            metavar="SHARES",
            help="Training, validation, test; sources are split, never patches. Default: 0.8 0.1 0.1.",
        ),
    ] = None,
    npz: Annotated[
        Path | None,
        option(o.OUTPUT, metavar="FOLDER", help="Also train/train.npz ... with low and gt, as DeBCR. Default: none."),
    ] = None,
    figure: Annotated[
        Path | None, option(o.OUTPUT, metavar="PNG", help="Also a contact sheet of 16 pairs. Default: none.")
    ] = None,
    source: Annotated[
        list[str] | None,
        option(
            SOURCES,
            metavar="PATH",
            help="Sharp images: file, folder or quoted glob of TIFF or OME-Zarr; repeat. Default: none.",
        ),
    ] = None,
    specimen: Annotated[
        str | None,
        option(
            SOURCES,
            metavar="KIND,...",
            complete=KINDS,
            help="beads, filaments, membranes, vesicles, nuclei, cytoplasm, targets, mixed; one style: beads:doublets. "
            "Default: all where there is no --source.",
        ),
    ] = None,
    procedural: Annotated[
        float | None,
        option(SOURCES, metavar="SHARE", help="Pairs of specimens. Default: 1; with --source 0; with both 0.5."),
    ] = None,
    scale: Annotated[Span, _range(SOURCES, "How many times sources are shrunk. Default: 1:2.5.")] = None,
    rotate: Annotated[
        bool | None, option(SOURCES, "--rotate/--no-rotate", help="Turn sources by any angle. Default: yes.", rare=True)
    ] = None,
    flip: Annotated[
        bool | None, option(SOURCES, "--flip/--no-flip", help="Mirror sources. Default: yes.", rare=True)
    ] = None,
    gamma: Annotated[
        Span, _range(SOURCES, "Exponent on the intensities of sources. Default: 0.8:1.6.", rare=True)
    ] = None,
    planes: Annotated[
        int | None, option(SOURCES, metavar="N", help="Most planes of a scene, odd. Default: 13.", rare=True)
    ] = None,
    thickness: Annotated[Span, _range(SOURCES, "Of a scene, um. Default: 1:10.")] = None,
    microscope: Annotated[
        str | None,
        option(
            o.OPTICS,
            metavar="KIND",
            complete=MICROSCOPES,
            help="widefield, confocal, two-photon, light-sheet or brightfield. Default: widefield.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        option(
            o.OPTICS,
            metavar="NAME",
            complete=("vectorial", "scalar"),
            help="vectorial or scalar. Default: vectorial.",
            rare=True,
        ),
    ] = None,
    psf: Annotated[
        Path | None,
        option(o.OPTICS, metavar="FILE", help="A PSF instead of drawn optics (TIFF, npy, npz). Default: none."),
    ] = None,
    na: Annotated[Span, _range(o.OPTICS, "Numerical aperture. Default: 0.5:1.4.")] = None,
    pinhole_au: Annotated[Span, _range(o.OPTICS, "Confocal pinhole, Airy units. Default: 1.")] = None,
    na_illumination: Annotated[
        Span,
        _range(o.OPTICS, "NA of sheet or condenser. Default: sheet 0.1; condenser 0.4 to 0.9 of the NA.", rare=True),
    ] = None,
    aberration: Annotated[Span, _range(o.OPTICS, "RMS waves over random Zernike terms 3, 5 to 12. Default: 0.")] = None,
    ni: Annotated[Span, _range(o.LAYERS, "Index of the immersion. Default: air, water or oil by the NA.")] = None,
    ns: Annotated[Span, _range(o.LAYERS, "Index of the sample. Default: as the immersion.")] = None,
    depth: Annotated[Span, _range(o.LAYERS, "Depth below the coverslip, um. Default: 0.")] = None,
    defocus: Annotated[Span, _range(o.LAYERS, "Focus off the target plane, um. Default: 0.")] = None,
    wavelength: Annotated[Span, _range(o.LIGHT, "Emission, nm. Default: 450:680.")] = None,
    wavelength_ex: Annotated[
        Span, _range(o.LIGHT, "Excitation, nm. Default: 0.92 of the emission; two-photon twice it.", rare=True)
    ] = None,
    photons: Annotated[
        Span, _range(o.LIGHT, "Photons at the peak, drawn by factors. Default: 20:5000; brightfield 1000:30000.")
    ] = None,
    background: Annotated[Span, _range(o.LIGHT, "Background over the peak. Default: 0:0.5.")] = None,
    haze: Annotated[Span, _range(o.LIGHT, "Share of light from out of focus (widefield). Default: 0:0.6.")] = None,
    absorption: Annotated[
        Span, _range(o.LIGHT, "Brightfield: amplitude absorption of the densest path. Default: 0.05:0.3.", rare=True)
    ] = None,
    phase: Annotated[
        Span, _range(o.LIGHT, "Brightfield: phase of the densest path, rad. Default: 0:0.3.", rare=True)
    ] = None,
    fwhm: Annotated[Span, _range(o.SAMPLING, "In-focus FWHM, px; decides the pixel. Default: 2:6.")] = None,
    pixel: Annotated[Span, _range(o.SAMPLING, "Pixel, um, instead of --fwhm. Default: none.")] = None,
    qe: Annotated[Span, _range(o.CAMERA, "Electrons per photon. Default: 0.8.", rare=True)] = None,
    gain: Annotated[Span, _range(o.CAMERA, "Counts per electron. Default: 1:4.")] = None,
    offset: Annotated[Span, _range(o.CAMERA, "Counts without light. Default: 100.")] = None,
    read_noise: Annotated[Span, _range(o.CAMERA, "Read noise, electrons RMS. Default: 0:4.")] = None,
    dark: Annotated[Span, _range(o.CAMERA, "Dark current, electrons per exposure. Default: 0.", rare=True)] = None,
    bit_depth: o.BitDepth = None,
    scmos: Annotated[
        float | None,
        option(o.CAMERA, metavar="SHARE", help="Of pairs with per-pixel camera maps. Default: 0.2.", rare=True),
    ] = None,
    target_resolution: Annotated[
        Span, _range(TARGET, "FWHM of the target over the PSF's, laterally and axially. Default: 0.5.")
    ] = None,
    target_least: Annotated[
        float | None, option(TARGET, metavar="PX", help="Finest FWHM of the target. Default: 1.6.", rare=True)
    ] = None,
    seed: o.Seed = None,
    workers: o.Workers = None,
    overwrite: o.Overwrite = False,
    dry_run: o.DryRun = False,
    template: o.PrintConfig = False,
    config: o.Config = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
    help_all: HelpAll = False,
) -> None:
    """Make training pairs: what a microscope and camera record, and what it should be restored to."""
    arguments = dict(locals())
    apart = ("output", "npz", "figure", "workers", "overwrite", "dry_run", "template", "config", "as_json", "quiet")
    options = given(arguments, *(name for name in arguments if name not in (*apart, "debug", "help_all")))

    from mrbcr_cli.configuration import dump_yaml, load_configuration
    from mrbcr_cli.errors import InputError
    from mrbcr_cli.simulate.pairs_settings import PairsSettings

    settings = load_configuration(PairsSettings, config, options, "mrbcr simulate pairs")
    if template:
        print(dump_yaml(settings), end="")
        return
    if output is None:
        raise InputError("--output: name the Zarr group to write, e.g. -o pairs.zarr")

    from mrbcr_cli.simulate.pairs import PairsTarget, simulate_pairs
    from mrbcr_cli.workfolder import LocalTarget

    simulate_pairs(
        settings,
        PairsTarget(LocalTarget(output, "ome-zarr"), npz, figure),
        Reporter(quiet=quiet, as_json=as_json),
        workers=workers,
        overwrite=overwrite,
        dry_run=dry_run,
    )
