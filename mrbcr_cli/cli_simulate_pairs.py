"""`mrbcr simulate pairs`: the parser of the command; no logic.

Invariant: as in `cli.py`: heavy imports happen inside the command that needs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mrbcr_cli import cli_options as o
from mrbcr_cli.cli_options import given
from mrbcr_cli.console import Reporter

SOURCES, TARGET = "Structures", "LocalTarget"


def _range(panel: str, text: str) -> Any:
    return typer.Option(metavar="LOW:HIGH", help=text, rich_help_panel=panel)


def _text(panel: str, text: str, **more: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=panel, **more)


Span = str | None


def pairs(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Zarr group to write (.zarr).", rich_help_panel=o.OUTPUT),
    ] = None,
    count: Annotated[int | None, _text(o.OUTPUT, "Number of pairs. Default: 2000.")] = None,
    patch: Annotated[int | None, _text(o.OUTPUT, "Size of a patch, px. Default: 128.")] = None,
    splits: Annotated[
        tuple[float, float, float] | None,
        _text(
            o.OUTPUT,
            "Shares of the pairs; sources are split, never patches. Default: 0.8 0.1 0.1.",
            metavar="TRAIN VAL TEST",
        ),
    ] = None,
    npz: Annotated[
        Path | None,
        _text(o.OUTPUT, "Also as train/train.npz ... with low and gt, as DeBCR reads them.", metavar="FOLDER"),
    ] = None,
    figure: Annotated[Path | None, _text(o.OUTPUT, "Also a contact sheet of 16 pairs.", metavar="PNG")] = None,
    source: Annotated[
        list[str] | None,
        _text(SOURCES, "Sharp images: file, folder or quoted glob of TIFF or OME-Zarr; repeat.", metavar="PATH"),
    ] = None,
    specimen: Annotated[
        str | None,
        _text(
            SOURCES,
            "Procedural kinds, comma-separated: beads, filaments, membranes, vesicles, nuclei, cytoplasm, targets, "
            "mixed; of one style: beads:doublets. Default: all where there is no --source.",
        ),
    ] = None,
    procedural: Annotated[
        float | None, _text(SOURCES, "Share of pairs from procedural specimens. Default: 1; with --source 0; both 0.5.")
    ] = None,
    scale: Annotated[Span, _range(SOURCES, "How many times sources are shrunk. Default: 1:2.5.")] = None,
    rotate: Annotated[bool | None, _text(SOURCES, "Turn sources by any angle. Default: yes.")] = None,
    flip: Annotated[bool | None, _text(SOURCES, "Mirror sources. Default: yes.")] = None,
    gamma: Annotated[Span, _range(SOURCES, "Exponent on the intensities of sources. Default: 0.8:1.6.")] = None,
    planes: Annotated[int | None, _text(SOURCES, "Most planes of a scene, odd. Default: 13.")] = None,
    thickness: Annotated[Span, _range(SOURCES, "Thickness of a scene, um. Default: 1:10.")] = None,
    microscope: Annotated[
        str | None,
        _text(o.OPTICS, "widefield, confocal, two-photon, light-sheet or brightfield. Default: widefield."),
    ] = None,
    model: Annotated[str | None, _text(o.OPTICS, "vectorial or scalar. Default: vectorial.")] = None,
    psf: Annotated[Path | None, _text(o.OPTICS, "A PSF file instead of drawn optics (TIFF, npy, npz).")] = None,
    na: Annotated[Span, _range(o.OPTICS, "Numerical aperture. Default: 0.5:1.4.")] = None,
    pinhole_au: Annotated[Span, _range(o.OPTICS, "Confocal pinhole, Airy units. Default: 1.")] = None,
    na_illumination: Annotated[
        Span, _range(o.OPTICS, "NA of the sheet (0.1) or condenser (0.4 to 0.9 of the NA).")
    ] = None,
    aberration: Annotated[Span, _range(o.OPTICS, "RMS waves over random Zernike terms 3, 5 to 12. Default: 0.")] = None,
    ni: Annotated[Span, _range(o.LAYERS, "Index of the immersion. Default: air, water or oil by the NA.")] = None,
    ns: Annotated[Span, _range(o.LAYERS, "Index of the sample. Default: as the immersion.")] = None,
    depth: Annotated[Span, _range(o.LAYERS, "Depth below the coverslip, um. Default: 0.")] = None,
    defocus: Annotated[Span, _range(o.LAYERS, "Focus off the target plane, um. Default: 0.")] = None,
    wavelength: Annotated[Span, _range(o.LIGHT, "Emission, nm. Default: 450:680.")] = None,
    wavelength_ex: Annotated[
        Span, _range(o.LIGHT, "Excitation, nm. Default: 0.92 of the emission (two-photon: twice it).")
    ] = None,
    photons: Annotated[
        Span, _range(o.LIGHT, "Photons at the peak, drawn by factors. Default: 20:5000; brightfield 1000:30000.")
    ] = None,
    background: Annotated[Span, _range(o.LIGHT, "Background over the peak. Default: 0:0.5.")] = None,
    haze: Annotated[Span, _range(o.LIGHT, "Share of light from out of focus (widefield). Default: 0:0.6.")] = None,
    absorption: Annotated[
        Span, _range(o.LIGHT, "Brightfield: amplitude absorption of the densest path. Default: 0.05:0.3.")
    ] = None,
    phase: Annotated[Span, _range(o.LIGHT, "Brightfield: phase of the densest path, rad. Default: 0:0.3.")] = None,
    fwhm: Annotated[Span, _range(o.SAMPLING, "In-focus FWHM, px; decides the pixel. Default: 2:6.")] = None,
    pixel: Annotated[Span, _range(o.SAMPLING, "Pixel, um, instead of --fwhm.")] = None,
    qe: Annotated[Span, _range(o.CAMERA, "Quantum efficiency, electrons per photon. Default: 0.8.")] = None,
    gain: Annotated[Span, _range(o.CAMERA, "Counts per electron. Default: 1:4.")] = None,
    offset: Annotated[Span, _range(o.CAMERA, "Camera offset, counts. Default: 100.")] = None,
    read_noise: Annotated[Span, _range(o.CAMERA, "Read noise, electrons RMS. Default: 0:4.")] = None,
    dark: Annotated[Span, _range(o.CAMERA, "Dark current, electrons per exposure. Default: 0.")] = None,
    bit_depth: o.BitDepth = None,
    scmos: Annotated[float | None, _text(o.CAMERA, "Share of pairs with per-pixel camera maps. Default: 0.2.")] = None,
    target_resolution: Annotated[
        Span, _range(TARGET, "LocalTarget FWHM over the PSF's, laterally and axially. Default: 0.5.")
    ] = None,
    target_least: Annotated[float | None, _text(TARGET, "Finest target FWHM, px. Default: 1.6.")] = None,
    seed: o.Seed = None,
    workers: o.Workers = None,
    overwrite: o.Overwrite = False,
    dry_run: o.DryRun = False,
    template: o.PrintConfig = False,
    config: o.Config = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Make training pairs: what a microscope and camera record, and what it should be restored to."""
    arguments = dict(locals())
    apart = ("output", "npz", "figure", "workers", "overwrite", "dry_run", "template", "config", "as_json", "quiet")
    options = given(arguments, *(name for name in arguments if name not in (*apart, "debug")))

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


EPILOG = (
    "LOW:HIGH is drawn anew for each pair; one number is fixed.   Examples:  "
    "mrbcr simulate pairs -o pairs.zarr --source 'sharp/*.tif' --count 2000 --figure pairs.png   ·   "
    "mrbcr simulate pairs --print-config > pairs.yaml   ·   mrbcr simulate pairs -o pairs.zarr -c pairs.yaml"
)
