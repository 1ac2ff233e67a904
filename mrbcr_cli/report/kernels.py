"""Which PSF an output is to be re-blurred with: that of its method, or one simulated from the input's metadata.

Invariant: a PSF is the one that the output says it was made with (by its hash), or computed from recorded numbers
alone; where neither is to be had the page says why, and nothing is assumed in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.base import ImageInfo
from mrbcr_cli.psf_grid import Psf

LARGEST_SIMULATED_PX = 129


@dataclass(frozen=True, eq=False)
class Kernel:
    """A PSF to re-blur with, or why there is none."""

    psf: Psf | None
    said: str
    """What it is and where it comes from, or why there is none; a sentence for the page."""


def kernel_for(record: Mapping[str, Any], channel: Mapping[str, Any], info: ImageInfo, psf_file: Path | None) -> Kernel:
    """The PSF of an output channel. `record`: the output's provenance, `channel`: its entry there, `info`: the input's.

    `psf_file` replaces the path that the output names. Raises InputError for a file given that cannot be used.
    """
    method = channel.get("method")
    if psf_file is not None or method in ("richardson-lucy", "wiener"):
        return _from_file(record, channel, info, psf_file)
    if method == "blind":
        from mrbcr_cli.blind import BlindEstimate

        try:
            estimate = BlindEstimate(**channel["estimate"])
        except (KeyError, TypeError):
            return Kernel(None, "the output does not record the PSF that was estimated")
        return Kernel(estimate.psf(), f"the PSF that was estimated from the image: FWHM {estimate.fwhm_px:.2f} px")
    return _simulated(info, int(channel.get("channel", 0)))


def _from_file(record: Mapping[str, Any], channel: Mapping[str, Any], info: ImageInfo, psf_file: Path | None) -> Kernel:
    from mrbcr_cli.methods import psf_for

    settings = record.get("settings", {})
    path = psf_file or Path(str(record.get("folder", "."))) / str(settings.get("psf") or channel.get("psf"))
    try:
        psf = psf_for(info, path, settings.get("psf_voxel_um"))
    except InputError as error:
        if psf_file is not None:
            raise
        return Kernel(None, f"the PSF of the run cannot be read ({error}); mrbcr report --psf names it")
    known = channel.get("psf_sha256")
    if known is not None and psf.fingerprint() != known:
        if psf_file is None:
            return Kernel(None, f"{path.name} is no longer the PSF that the run used; mrbcr report --psf names it")
        return Kernel(psf, f"{path.name}, as given, which is not the PSF that the run used")
    return Kernel(psf, f"{path.name}, the PSF that the run used" if known is not None else f"{path.name}, as given")


def _simulated(info: ImageInfo, channel: int) -> Kernel:
    from mrbcr_cli.images.ome_optics import RecordedOptics, read_optics

    seen = RecordedOptics()
    if info.ome_xml is not None:
        try:
            seen = read_optics(info.ome_xml, path=info.path, series=info.series, channel=channel)
        except InputError as error:
            return Kernel(None, f"the optics in the input's metadata cannot be read ({error})")
    pixel_um = info.scale_um("X")
    missing = [
        name
        for name, value in (
            ("numerical aperture", seen.na),
            ("emission wavelength", seen.emission_nm),
            ("pixel size", pixel_um),
        )
        if value is None
    ]
    if missing or pixel_um is None or seen.na is None or seen.emission_nm is None:
        return Kernel(
            None,
            f"no PSF is known: the method uses none, and the input's metadata do not say {_listed(missing)} "
            "to simulate one with; mrbcr report --psf FILE gives one",
        )
    if seen.microscope == "brightfield":
        return Kernel(None, "in transmitted light an image is no convolution with one PSF")
    try:
        return _computed(info, seen, pixel_um)
    except InputError as error:
        return Kernel(None, f"no PSF can be simulated from the metadata ({error})")


def _computed(info: ImageInfo, seen: Any, pixel_um: float) -> Kernel:
    from mrbcr_cli.optics.microscope import Grid, Microscope
    from mrbcr_cli.optics.psf import compute_psf
    from mrbcr_cli.psf_grid import prepare_psf
    from mrbcr_cli.simulate.optics_settings import OpticsSettings, set_up

    step_um = info.scale_um("Z") or pixel_um
    setup = set_up(OpticsSettings(), seen, (step_um, pixel_um, pixel_um))
    if not isinstance(setup.optics, Microscope):
        return Kernel(None, "in transmitted light an image is no convolution with one PSF")
    size = min(2 * setup.half_width_px(0.0) + 1, LARGEST_SIMULATED_PX)
    sampling: Any = "point" if setup.kind in ("confocal", "two-photon") else "pixel"
    values = compute_psf(setup.optics, Grid((1, size, size), pixel_um, step_um, sampling)).numpy()
    one = (1.0, 1.0, 1.0)
    psf = prepare_psf(
        values, source="simulated", image_scale_zyx_um=one, psf_scale_zyx_um=one, is_3d=False, background=0.0
    )
    assumed = "".join(f"; {note.partition(';')[0]}" for note in setup.notes)
    return Kernel(
        psf,
        f"simulated in focus from the input's metadata: {setup.kind}, NA {seen.na:g}, {seen.emission_nm:g} nm, "
        f"{pixel_um:.4g} um pixels{assumed}. Light from out of focus is not in it, so haze that was removed stays in "
        "the residual",
    )


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
