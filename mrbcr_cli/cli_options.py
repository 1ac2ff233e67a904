"""Options that several commands share: their names, units and help, once.

Invariant: a number's unit is in its help; every default is None here, so that a YAML file can be told from the command
line; the real default is in the settings and said in the help.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from mrbcr_cli.cli_help import COMPRESSIONS, MESSAGES, MICROSCOPES, PRESETS, complete_model, option

IMAGE, OPTICS, LAYERS, LIGHT, SAMPLING, SPECIMEN, CAMERA, OUTPUT, PLAN, RUN, TALK = (
    "Image and selection",
    "Microscope",
    "Layers (Gibson-Lanni)",
    "Light",
    "Sampling",
    "Specimen",
    "Camera",
    "Output",
    "Plan",
    "Running",
    MESSAGES,
)


Quiet = Annotated[bool, option(TALK, "--quiet", "-q", help="Warnings and errors only.")]
Json = Annotated[bool, option(TALK, "--json", help="Events as JSON lines on stdout.")]
JsonFacts = Annotated[bool, option(TALK, "--json", help="JSON on stdout.")]
Debug = Annotated[bool, option(TALK, "--debug", help="Show the traceback of an error.")]
Axes = Annotated[
    str | None,
    option(IMAGE, metavar="AXES", help="Order of the axes on disk, e.g. TZCYX. Default: as the file says."),
]
Series = Annotated[
    int | None,
    option(IMAGE, metavar="N", help="Which image of a file that holds several, from 0. Default: 0."),
]
SplitRgb = Annotated[
    bool | None,
    option(IMAGE, "--split-rgb", help="Treat red, green and blue as three channels."),
]
Overwrite = Annotated[bool, option(OUTPUT, "--overwrite", help="Replace an existing output.")]
DryRun = Annotated[bool, option(RUN, "--dry-run", help="Check everything, write nothing.")]
PrintConfig = Annotated[bool, option(RUN, "--print-config", help="Print the settings as YAML and stop.")]
Config = Annotated[
    Path | None,
    option(RUN, "--config", "-c", metavar="YAML", help="File with any of these options (mrbcr init). Default: none."),
]
MicroscopeKind = Annotated[
    str | None,
    option(
        OPTICS,
        metavar="KIND",
        complete=MICROSCOPES,
        help="widefield, confocal, two-photon, light-sheet or brightfield. Default: as --like says, else widefield.",
    ),
]
ModelName = Annotated[
    str | None,
    option(
        OPTICS,
        "--model",
        metavar="NAME",
        complete=("vectorial", "scalar", "born-wolf"),
        help="vectorial, scalar or born-wolf (paraxial). Default: vectorial.",
    ),
]
PresetName = Annotated[
    str | None,
    option(
        OPTICS,
        metavar="NAME",
        complete=PRESETS,
        help="Objective: 10x/0.3, 20x/0.75, 40x/1.2w, 63x/1.4oil or 100x/1.49tirf. Default: none.",
    ),
]
Like = Annotated[
    Path | None,
    option(OPTICS, metavar="IMAGE", help="Take optics and pixel from this image's OME metadata. Default: none."),
]
Channel = Annotated[int | None, option(OPTICS, metavar="N", help="Channel of --like, from 0. Default: 0.")]
Na = Annotated[
    float | None, option(OPTICS, metavar="NA", help="Numerical aperture. Default: of --like or --preset; else needed.")
]
NaIllumination = Annotated[
    float | None,
    option(OPTICS, metavar="NA", help="NA of light sheet or condenser. Default: sheet 0.1; condenser 0.7 of --na."),
]
Sheet = Annotated[
    str | None,
    option(
        OPTICS,
        metavar="NAME",
        rare=True,
        complete=("gaussian", "swept"),
        help="Light sheet: gaussian, or swept (a uniform aperture). Default: gaussian.",
    ),
]
PinholeAu = Annotated[
    float | None,
    option(OPTICS, metavar="AU", help="Confocal pinhole, diameter in Airy units (1.22 lambda/NA). Default: 1."),
]
Fresnel = Annotated[
    bool | None,
    option(
        OPTICS, "--fresnel/--no-fresnel", rare=True, help="Losses at the coverslip's faces (vectorial). Default: yes."
    ),
]
Aplanatic = Annotated[
    bool | None,
    option(
        OPTICS, "--aplanatic/--uniform", rare=True, help="Scalar: amplitude 1/sqrt(cos) over the pupil. Default: no."
    ),
]
ZernikeText = Annotated[
    str | None,
    option(
        OPTICS,
        metavar="J=W,...",
        help="Aberrations, e.g. 4=0.1,11=-0.05: OSA/ANSI index = RMS waves of the emission (two-photon: excitation). "
        "Default: none.",
    ),
]
Ni = Annotated[
    float | None,
    option(LAYERS, metavar="INDEX", help="Of the immersion. Default: 1.0 below NA 0.95, else 1.515."),
]
Ns = Annotated[float | None, option(LAYERS, metavar="INDEX", help="Index of the sample. Default: as the immersion.")]
Ng = Annotated[float | None, option(LAYERS, metavar="INDEX", rare=True, help="Index of the coverslip. Default: 1.515.")]
Tg = Annotated[float | None, option(LAYERS, metavar="UM", rare=True, help="Thickness of the coverslip. Default: 170.")]
Depth = Annotated[float | None, option(LAYERS, metavar="UM", help="Emitter below the coverslip. Default: 0.")]
NiDesign = Annotated[
    float | None,
    option(LAYERS, metavar="INDEX", rare=True, help="Index of the immersion the lens is made for. Default: as --ni."),
]
NgDesign = Annotated[
    float | None,
    option(LAYERS, metavar="INDEX", rare=True, help="Index of the coverslip the lens is made for. Default: as --ng."),
]
TgDesign = Annotated[
    float | None,
    option(LAYERS, metavar="UM", rare=True, help="Coverslip that the lens is made for. Default: as --tg."),
]
WorkingDistance = Annotated[
    float | None,
    option(
        LAYERS, metavar="UM", rare=True, help="Immersion layer of the design; matters off design only. Default: 150."
    ),
]
Wavelength = Annotated[
    float | None,
    option(LIGHT, metavar="NM", help="Emission (or transmitted) in vacuum. Default: of --like, else 520; announced."),
]
WavelengthEx = Annotated[
    float | None,
    option(
        LIGHT,
        "--wavelength-ex",
        metavar="NM",
        help="Excitation in vacuum: confocal, two-photon, light-sheet. Default: of --like, else none.",
    ),
]
Pixel = Annotated[
    float | None,
    option(SAMPLING, metavar="UM", help="Pixel in the specimen. Default: of --like, else just below Nyquist."),
]
ZStep = Annotated[
    float | None,
    option(SAMPLING, metavar="UM", help="Distance of planes (stage). Default: of --like, else just below Nyquist."),
]
Qe = Annotated[float | None, option(CAMERA, metavar="SHARE", help="Electrons per photon. Default: 0.8.")]
Gain = Annotated[float | None, option(CAMERA, metavar="X", help="Counts per electron. Default: 2.")]
Offset = Annotated[float | None, option(CAMERA, metavar="COUNTS", help="Counts without light. Default: 100.")]
ReadNoise = Annotated[float | None, option(CAMERA, metavar="ELECTRONS", help="Read noise, RMS. Default: 1.6.")]
Dark = Annotated[float | None, option(CAMERA, metavar="ELECTRONS", help="Dark current, an exposure. Default: 0.")]
BitDepth = Annotated[int | None, option(CAMERA, metavar="BITS", help="Of the counts, 1 to 16. Default: 16.")]
Scmos = Annotated[
    bool | None, option(CAMERA, "--scmos", help="Per-pixel maps of offset, gain and read noise, drawn from the seed.")
]
Seed = Annotated[int | None, option(RUN, metavar="N", help="Seed; the same gives the same bytes. Default: 0.")]
ShardText = Annotated[
    str | None,
    option(
        RUN,
        "--shard",
        metavar="I/N",
        help="Do share I of N (I from 0); auto: as SLURM says. mrbcr finish ends the run. Default: all.",
    ),
]
Workers = Annotated[
    int | None, option(RUN, metavar="N", help="Processes at a time; changes no byte. Default: the cores.")
]
Model = Annotated[
    str | None,
    option(PLAN, "--model", "-m", metavar="MODEL", complete=complete_model, help="Of the plan. Default: widefield."),
]
Compression = Annotated[
    str | None,
    option(OUTPUT, metavar="NAME", complete=COMPRESSIONS, help="Of TIFF: zstd, deflate or none. Default: zstd."),
]

OutputPlace = Annotated[
    str,
    option(OUTPUT, "--output", "-o", metavar="FILE", help="Output (.ome.zarr, .ome.tif; a URL), or folder."),
]
WorkDir = Annotated[
    Path | None,
    option(
        OUTPUT,
        "--work-dir",
        metavar="FOLDER",
        envvar="MRBCR_WORK_DIR",
        show_envvar=False,
        help="What is done lies here while OUTPUT is at a URL. Default: MRBCR_WORK_DIR, else here.",
    ),
]

OPTICS_NAMES = (
    *("microscope", "model", "preset", "like", "channel", "na", "na_illumination", "sheet", "pinhole_au", "fresnel"),
    *("aplanatic", "zernike", "ni", "ns", "ng", "tg", "depth", "ni_design", "ng_design", "tg_design"),
    *("working_distance", "wavelength", "wavelength_ex", "pixel", "z_step"),
)
"""The options that make an OpticsSettings."""


def given(values: dict[str, Any], *names: str) -> dict[str, Any]:
    """Those of `names` that the user gave (are not None), out of a command's arguments."""
    return {name: values[name] for name in names if values.get(name) is not None}
