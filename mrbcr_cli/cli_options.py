"""Options that several commands share: their names, units and help, once.

Invariant: a number's unit is in its help; every default is None here, so that a YAML file can be told from the command
line; the real default is in the settings and said in the help.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

IMAGE, OPTICS, LAYERS, LIGHT, SAMPLING, SPECIMEN, CAMERA, OUTPUT, RUN, TALK = (
    "Image and selection",
    "Microscope",
    "Layers (Gibson-Lanni)",
    "Light",
    "Sampling",
    "Specimen",
    "Camera",
    "Output",
    "Running",
    "Messages",
)


def _option(panel: str, *names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


Quiet = Annotated[bool, _option(TALK, "--quiet", "-q", help="Warnings and errors only.")]
Json = Annotated[bool, _option(TALK, "--json", help="Events as JSON lines on stdout.")]
Debug = Annotated[bool, _option(TALK, "--debug", help="Show the traceback of an error.")]
Axes = Annotated[
    str | None,
    _option(IMAGE, help="Axes in the order on disk, e.g. TZCYX, for files that do not say. Default: as the file says."),
]
Series = Annotated[
    int | None,
    _option(IMAGE, help="Which image of a file that holds several, from 0. Default: 0."),
]
SplitRgb = Annotated[
    bool | None,
    _option(IMAGE, "--split-rgb", help="Treat red, green and blue as three channels."),
]
Overwrite = Annotated[bool, _option(OUTPUT, "--overwrite", help="Replace an existing output.")]
DryRun = Annotated[bool, _option(RUN, "--dry-run", help="Check everything, write nothing.")]
PrintConfig = Annotated[bool, _option(RUN, "--print-config", help="Print the settings as YAML and stop.")]
Config = Annotated[
    Path | None,
    _option(RUN, "--config", "-c", help="YAML with any of these options; those given here win."),
]
MicroscopeKind = Annotated[
    str | None,
    _option(
        OPTICS,
        help="widefield, confocal, two-photon, light-sheet or brightfield. Default: what --like says, else widefield.",
    ),
]
ModelName = Annotated[
    str | None,
    _option(OPTICS, "--model", help="vectorial, scalar or born-wolf (paraxial). Default: vectorial."),
]
PresetName = Annotated[
    str | None,
    _option(OPTICS, help="Objective: 10x/0.3, 20x/0.75, 40x/1.2w, 63x/1.4oil or 100x/1.49tirf; other options win."),
]
Like = Annotated[
    Path | None,
    _option(OPTICS, metavar="IMAGE", help="Take optics and pixel size from this image's OME metadata."),
]
Channel = Annotated[int | None, _option(OPTICS, help="Channel of --like, from 0. Default: 0.")]
Na = Annotated[float | None, _option(OPTICS, help="Numerical aperture of the objective.")]
NaIllumination = Annotated[
    float | None,
    _option(OPTICS, help="NA of the light sheet (default 0.1) or of the condenser (brightfield; default 0.7 NA)."),
]
Sheet = Annotated[
    str | None, _option(OPTICS, help="Light sheet: gaussian, or swept (a uniform aperture). Default: gaussian.")
]
PinholeAu = Annotated[
    float | None, _option(OPTICS, help="Confocal pinhole diameter in Airy units (1.22 lambda/NA). Default: 1.")
]
Fresnel = Annotated[
    bool | None,
    _option(OPTICS, "--fresnel/--no-fresnel", help="Losses at the coverslip's faces (vectorial). Default: yes."),
]
Aplanatic = Annotated[
    bool | None,
    _option(OPTICS, "--aplanatic/--uniform", help="Scalar: amplitude 1/sqrt(cos) over the pupil. Default: uniform."),
]
ZernikeText = Annotated[
    str | None,
    _option(
        OPTICS,
        metavar="J=W,...",
        help="Aberrations, e.g. 4=0.1,11=-0.05: OSA/ANSI index = RMS waves of the emission (two-photon: excitation).",
    ),
]
Ni = Annotated[
    float | None,
    _option(LAYERS, help="Index of the immersion. Default: 1.0 below NA 0.95, else 1.515; announced."),
]
Ns = Annotated[float | None, _option(LAYERS, help="Index of the sample. Default: as the immersion.")]
Ng = Annotated[float | None, _option(LAYERS, help="Index of the coverslip. Default: 1.515.")]
Tg = Annotated[float | None, _option(LAYERS, help="Thickness of the coverslip, um. Default: 170.")]
Depth = Annotated[float | None, _option(LAYERS, help="Emitter below the coverslip, um. Default: 0.")]
NiDesign = Annotated[float | None, _option(LAYERS, help="Immersion index of the lens's design. Default: as --ni.")]
NgDesign = Annotated[float | None, _option(LAYERS, help="Coverslip index of the design. Default: as --ng.")]
TgDesign = Annotated[float | None, _option(LAYERS, help="Coverslip thickness of the design, um. Default: as --tg.")]
WorkingDistance = Annotated[
    float | None, _option(LAYERS, help="Immersion layer of the design, um; matters off design only. Default: 150.")
]
Wavelength = Annotated[
    float | None, _option(LIGHT, help="Emission (or transmitted) wavelength in vacuum, nm. Default: 520; announced.")
]
WavelengthEx = Annotated[
    float | None,
    _option(LIGHT, "--wavelength-ex", help="Excitation in vacuum, nm: confocal, two-photon, light-sheet."),
]
Pixel = Annotated[
    float | None, _option(SAMPLING, help="Pixel in the specimen, um. Default: that of --like, else just below Nyquist.")
]
ZStep = Annotated[
    float | None,
    _option(SAMPLING, help="Distance of planes (stage), um. Default: that of --like, else just below Nyquist."),
]
Qe = Annotated[float | None, _option(CAMERA, help="Quantum efficiency, electrons per photon. Default: 0.8.")]
Gain = Annotated[float | None, _option(CAMERA, help="Counts per electron. Default: 2.")]
Offset = Annotated[float | None, _option(CAMERA, help="Camera offset, counts. Default: 100.")]
ReadNoise = Annotated[float | None, _option(CAMERA, help="Read noise, electrons RMS. Default: 1.6.")]
Dark = Annotated[float | None, _option(CAMERA, help="Dark current, electrons per exposure. Default: 0.")]
BitDepth = Annotated[int | None, _option(CAMERA, help="Bits of the counts, 1 to 16. Default: 16.")]
Scmos = Annotated[
    bool | None, _option(CAMERA, "--scmos", help="Per-pixel maps of offset, gain and read noise, drawn from the seed.")
]
Seed = Annotated[int | None, _option(RUN, help="Seed: the same gives the same bytes. Default: 0.")]
ShardText = Annotated[
    str | None,
    _option(
        RUN,
        "--shard",
        metavar="I/N",
        help="Do share I of N alone, I from 0 to N-1; auto: as SLURM says of its job array. Shards may run at once; "
        "mrbcr finish OUTPUT ends the run.",
    ),
]
Workers = Annotated[int | None, _option(RUN, help="Processes at a time. Default: the cores. Changes no byte.")]

OutputPlace = Annotated[
    str,
    _option(OUTPUT, "--output", "-o", help="File to write (.ome.zarr, .ome.tif), or a folder; OME-Zarr also to a URL."),
]
WorkDir = Annotated[
    Path | None,
    _option(
        OUTPUT,
        "--work-dir",
        metavar="FOLDER",
        envvar="MRBCR_WORK_DIR",
        help="Of an OUTPUT at a URL: where its working folder (what is done) lies; for shards and --cluster on a "
        "disk that all share. Default: here.",
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
