"""The two ways of `mrbcr simulate psf`, from options to a file and what is said of it.

Invariant: names and options are checked before anything is computed, and nothing is written before everything worked.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.configuration import load_configuration
from mrbcr_cli.console import Reporter
from mrbcr_cli.errors import InputError
from mrbcr_cli.images.write_array import check_free, write_array
from mrbcr_cli.simulate.optics_settings import LARGEST_PIXEL_UM
from mrbcr_cli.simulate.psf_file import MadePsf, PsfSettings, make_psf, output_spec, summary_lines

COMMAND = "mrbcr simulate psf"
_BEADS_ONLY = ("bead_diameter", "min_snr", "saturation", "voxel")
_BOTH = ("shape", "normalize")
_APART = ("values_zyx", "notes", "voxel_zyx_um", "fwhm_zyx_um")


def write_psf(
    options: dict[str, Any],
    config: Path | None,
    output: Path,
    figure: Path | None,
    reporter: Reporter,
    *,
    command: str,
    overwrite: bool,
    extra: dict[str, Any],
) -> None:
    """Compute a PSF and write it. Raises InputError before anything is written."""
    strangers = [name for name in _BEADS_ONLY if name in extra]
    if strangers:
        raise InputError(
            f"--{strangers[0].replace('_', '-')} belongs to --from-beads IMAGE; leave it out, or name the image"
        )
    settings = load_configuration(PsfSettings, config, options, COMMAND)
    _check_names(output, figure, settings.like, overwrite=overwrite)
    _deliver(make_psf(settings, reporter.info), output, figure, reporter, command)


def write_bead_psf(
    beads: Path,
    bead_options: dict[str, Any],
    options: dict[str, Any],
    config: Path | None,
    output: Path,
    figure: Path | None,
    reporter: Reporter,
    *,
    command: str,
    overwrite: bool,
) -> None:
    """Measure a PSF from an image of beads and write it. Raises InputError before anything is written."""
    strangers = [name for name in options if name not in _BOTH]
    if strangers or config is not None:
        name = strangers[0].replace("_", "-") if strangers else "config"
        raise InputError(f"--{name} means nothing with --from-beads: the PSF is measured; leave it out")
    if bead_options.get("normalize", "sum") not in ("sum", "max"):
        raise InputError(f"--normalize must be sum or max, not {bead_options['normalize']!r}")
    _check_names(output, figure, beads, overwrite=overwrite)
    _deliver(_measure(beads, dict(bead_options)), output, figure, reporter, command)


def _measure(path: Path, options: dict[str, Any]) -> MadePsf:
    from mrbcr_cli.optics.beads import measure_psf

    image, voxel, notes = _read_beads(path, options.pop("voxel", None))
    normalize = options.pop("normalize", "sum")
    names = {"shape": "shape_zyx", "bead_diameter": "bead_diameter_um"}
    try:
        found = measure_psf(image, voxel, **{names.get(name, name): value for name, value in options.items()})
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    values = found.values_zyx / found.values_zyx.max() if normalize == "max" else found.values_zyx
    facts = {
        "microscope": "measured",
        "beads": path.name,
        "voxel_zyx_um": list(voxel),
        "shape_zyx": list(values.shape),
        "fwhm_zyx_um": tuple(found.fwhm_zyx_um),
        "fwhm_from": "beads",
        "normalize": normalize,
        **{f.name: getattr(found, f.name) for f in fields(found) if f.name not in _APART},
    }
    return MadePsf(values.astype(np.float32), "ZYX", voxel, _plain(facts), (*notes, *found.notes), ())


def _read_beads(
    path: Path, given_voxel: tuple[float, float, float] | None
) -> tuple[NDArray[Any], tuple[float, float, float], tuple[str, ...]]:
    from mrbcr_cli.images import find_source, open_source

    reader = open_source(find_source(str(path)))
    try:
        info = reader.info
        if info.size("C") > 1 or info.size("T") > 1:
            raise InputError(
                f"{path}: has {info.size('C')} channels and {info.size('T')} time points; save one of each"
            )
        region = tuple(slice(0, n) for n in info.shape)
        image = reader.read(region).reshape(info.size("Z"), *info.shape[-2:])
        stored = tuple(info.scale_um(axis) for axis in "ZYX")
        notes = info.notes
    finally:
        reader.close()
    if given_voxel is not None:
        if not all(0 < v <= LARGEST_PIXEL_UM for v in given_voxel):
            raise InputError(
                f"--voxel must be three lengths in um, above 0 and up to 20, not {' '.join(map(str, given_voxel))}"
            )
        return image, given_voxel, notes
    flat = (stored[0] or stored[1] if image.shape[0] == 1 else stored[0], stored[1], stored[2])
    if None in flat:
        raise InputError(f"{path}: does not say its voxel size; give --voxel Z Y X in um")
    return image, flat, notes  # type: ignore[return-value]


def _plain(value: Any) -> Any:
    """JSON-able: numpy numbers and mappings as Python's."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "items"):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _check_names(output: Path, figure: Path | None, source: Path | None, *, overwrite: bool) -> None:
    for name in (output, figure):
        if source is not None and name is not None and name.resolve() == source.resolve():
            raise InputError(f"{name}: is the image that is read; choose another name")
    check_free(output, overwrite=overwrite)
    if figure is not None:
        check_free(figure, overwrite=overwrite, suffixes=(".png",))
        if figure.resolve() == output.resolve():
            raise InputError(f"{figure}: is the name of the PSF itself")


def _deliver(made: MadePsf, output: Path, figure: Path | None, reporter: Reporter, command: str) -> None:
    name = output.name.split(".")[0]
    write_array(output, output_spec(made, name, command), made.array)
    lines = summary_lines(made)
    if "used" in made.facts:
        lines.append(bead_line(made.facts))
    for line in lines:
        reporter.info(line)
    for note in made.notes:
        reporter.info(f"note: {note}")
    for warning in made.warnings:
        reporter.warn(warning)
    if figure is not None:
        from mrbcr_cli.figures import psf_figure

        psf_figure(figure, made.responses, made.voxel_zyx_um, name, lines)
    reporter.event("psf", output=str(output), notes=[*made.notes], warnings=[*made.warnings], **made.facts)
    reporter.data(str(output))


def bead_line(facts: dict[str, Any]) -> str:
    """How many beads were used and why others were not."""
    rejected = ", ".join(f"{count} {reason}" for reason, count in facts["rejected"].items()) or "none"
    return f"beads: {facts['used']} used of {facts['found']} found; rejected: {rejected}"
