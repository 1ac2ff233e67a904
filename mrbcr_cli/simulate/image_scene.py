"""From the planes of a scene to the light a camera sees and the target: the optics of a pair, on any torch device.

Invariant: light and target of an `Imaged` scene are linear in the photons until the camera counts them, and wrap around
at the ends of the field. Nothing random happens here, so a field can be exposed again and again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrbcr_cli.optics.brightfield import Transmission, transfer_functions_2d
from mrbcr_cli.optics.measure import FWHM_PER_SIGMA
from mrbcr_cli.optics.microscope import Grid, Microscope
from mrbcr_cli.optics.psf import compute_psf

if TYPE_CHECKING:
    from mrbcr_cli.simulate.conditions import Conditions, StoredFocus

BRIGHTEST = 2e-4
"""Share of the pixels whose mean is "the peak"."""
_DEPTH_OF_FOCUS = 0.75
"""Planes nearer than this many axial FWHM are in focus; light of the others is haze."""


@dataclass(frozen=True, eq=False)
class StoredPsfPlanes:
    """A PSF from a file, on the pixels of the pairs."""

    values_zyx: NDArray[np.float32]
    focus: StoredFocus
    name: str
    sha256: str


@dataclass(frozen=True, eq=False)
class Imaged:
    """A scene as the optics show it: float32 (field, field) each, not negative, in any unit of light.

    The camera sees `signal` (with `haze`, the light of planes out of focus, in it); the target shows `sharp`.
    """

    signal: Tensor
    haze: Tensor
    sharp: Tensor
    transmitted: bool = False
    """The unit is the bright field, which is the peak and needs no background."""

    def cut(self, window: tuple[slice, slice]) -> Imaged:
        """A piece of the field."""
        return Imaged(self.signal[window], self.haze[window], self.sharp[window], self.transmitted)

    def haze_share(self) -> float:
        """Light from out of focus over all light."""
        total = float(self.signal.sum())
        return float(self.haze.sum()) / total if total > 0 else 0.0

    def peak(self) -> float:
        """The light that counts as the peak: the mean of the brightest pixels; 1 in transmission."""
        if self.transmitted:
            return 1.0
        count = max(1, round(BRIGHTEST * self.signal.numel()))
        return float(self.signal.flatten().topk(count).values.mean())

    def photons(self, peak_photons: float, background_photons: float, peak: float) -> tuple[Tensor, Tensor]:
        """Mean photons recorded, and those of the target, where `peak` light gives `peak_photons`.

        The target keeps what cannot be told from an offset: background, and the darkest haze of this piece.
        """
        if self.transmitted:
            return peak_photons * self.signal, peak_photons * self.sharp
        scale = peak_photons / peak if peak > 0 else 0.0
        light = background_photons + scale * self.signal
        return light, background_photons + scale * (self.sharp + self.haze.min())


def image_scene(
    scene: Tensor, conditions: Conditions, stored: StoredPsfPlanes | None, device: torch.device | str
) -> Imaged:
    """Image the planes of a scene (n, field, field), float32, on `device`."""
    spectra = torch.fft.rfft2(scene.to(device))
    if isinstance(conditions.optics, Transmission):
        return _transmitted(scene, spectra, conditions, conditions.optics)
    return _emitted(spectra, conditions, stored)


def _emitted(spectra: Tensor, conditions: Conditions, stored: StoredPsfPlanes | None) -> Imaged:
    field_px = spectra.shape[-2]
    planes = torch.fft.irfft2(spectra * _otfs(conditions, stored, field_px, spectra.device), s=(field_px, field_px))
    near = torch.tensor([abs(z) <= _DEPTH_OF_FOCUS * conditions.fwhm_z_um for z in conditions.z_um])
    in_focus, haze = planes[near].sum(0).clamp_(min=0), planes[~near].sum(0).clamp_(min=0)
    haze *= _haze_factor(in_focus, haze, conditions.haze)
    return Imaged(in_focus + haze, haze, _sharp(spectra, conditions))


def _sharp(spectra: Tensor, conditions: Conditions) -> Tensor:
    """What the target shows of a scene (its planes' half spectra): the plane of focus at the target's resolution."""
    field_px = spectra.shape[-2]
    axial = np.exp(-4 * math.log(2) * (np.asarray(conditions.z_um) / conditions.target_fwhm_z_um) ** 2)
    weights = torch.tensor(axial, dtype=torch.float32, device=spectra.device)
    plane = (weights[:, None, None] * spectra).sum(0)
    blur = gaussian_otf(field_px, conditions.target_fwhm_px / FWHM_PER_SIGMA).to(spectra.device)
    sharp: Tensor = torch.fft.irfft2(plane * blur, s=(field_px, field_px))
    return sharp.clamp_(min=0)


def _haze_factor(in_focus: Tensor, haze: Tensor, wanted: float | None) -> float:
    """What the light from outside the focus is multiplied by to carry the wanted share of all."""
    near, far = float(in_focus.double().sum()), float(haze.double().sum())
    if wanted is None:
        return 1.0
    if near <= 0 or far <= 0:  # nothing in focus to be a share of: an empty patch
        return 0.0
    return wanted / (1 - wanted) * near / far


def _otfs(conditions: Conditions, stored: StoredPsfPlanes | None, field_px: int, device: torch.device) -> Tensor:
    if stored is not None:
        return centred_spectra(_stored_planes(conditions, stored, field_px).to(device), field_px)
    microscope = conditions.optics
    if not isinstance(microscope, Microscope):
        raise TypeError("the optics of an emitting specimen are a Microscope")
    return plane_otfs(microscope, conditions.stage_um, conditions.pixel_um, field_px, device)


def focus_psf(
    conditions: Conditions, stored: StoredPsfPlanes | None, size_px: int, device: torch.device | str = "cpu"
) -> Tensor | None:
    """The PSF of the plane of focus, (size, size), float32, not negative, sum 1, origin in the middle of an odd size.

    What lies beyond is cut off. None for transmitted light, whose image is not its specimen blurred by one PSF.
    """
    if isinstance(conditions.optics, Transmission):
        return None
    stage_um = conditions.stage_um[len(conditions.stage_um) // 2]
    spectrum = _otfs(replace(conditions, stage_um=(stage_um,)), stored, size_px, torch.device(device))[0]
    psf = torch.fft.fftshift(torch.fft.irfft2(spectrum, s=(size_px, size_px))).clamp_(min=0)
    found: Tensor = psf / psf.sum()
    return found


def plane_otfs(
    microscope: Microscope,
    stage_um: Sequence[float],
    pixel_um: float,
    field_px: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Transfer functions at stage positions, complex64 (n, field, field // 2 + 1); 1 at zero frequency in best focus.

    The middle position is that of best focus. A widefield plane loses no light by being out of focus, so each sums to
    1, however much of its PSF leaves the field (it re-enters on the other side, as the neighbours' light would). Other
    microscopes keep their axial profile.
    """
    scanned = microscope.kind in ("confocal", "two-photon")
    size = field_px - 1 if field_px % 2 == 0 else field_px
    grid = Grid((1, size, size), pixel_um, 1.0, "point" if scanned else "pixel")
    stage = torch.tensor(stage_um, dtype=torch.float64)
    psf = compute_psf(microscope, grid, normalize="none", z_um=stage, device=device)
    focus = len(psf) // 2
    sums = psf.sum((1, 2), keepdim=True)
    spectra = centred_spectra(psf / (sums if microscope.kind == "widefield" else sums[focus]), field_px)
    if microscope.zernike_waves:
        spectra *= _shift_back(psf[focus], field_px)
    return spectra


def _shift_back(psf_yx: Tensor, field_px: int) -> Tensor:
    """Phase ramp that brings the core of the in-focus PSF (centroid of its square) to the origin.

    The tilts of `conditions` did so for the centroid of all its light; this is what is left for the core, which is what
    shows, so that recorded image and target are in register.
    """
    weight = psf_yx.double() ** 2
    y, x = (
        float((weight.sum(1 - axis) * (torch.arange(n, device=weight.device) - n // 2)).sum() / weight.sum())
        for axis, n in enumerate(weight.shape)
    )
    f_y = torch.fft.fftfreq(field_px, dtype=torch.float64, device=weight.device)[:, None]
    f_x = torch.fft.rfftfreq(field_px, dtype=torch.float64, device=weight.device)[None, :]
    ramp = torch.exp(2j * math.pi * (f_y * y + f_x * x))
    # The highest frequency of an even size has no sign; its ramp must be real.
    if field_px % 2 == 0:
        ramp[field_px // 2], ramp[:, -1] = ramp[field_px // 2].real + 0j, ramp[:, -1].real + 0j
    return ramp.to(torch.complex64)


def _stored_planes(conditions: Conditions, stored: StoredPsfPlanes, field_px: int) -> Tensor:
    """Planes of the file at the stage positions of the scene; beyond its ends the outermost."""
    values = stored.values_zyx
    centre = len(values) // 2
    steps = [round(s / stored.focus.z_step_um) for s in conditions.stage_um]
    chosen = values[[min(max(centre + k, 0), len(values) - 1) for k in steps]]
    crop = [max(0, (n - (field_px - 1)) // 2) for n in chosen.shape[1:]]
    chosen = chosen[:, crop[0] : chosen.shape[1] - crop[0], crop[1] : chosen.shape[2] - crop[1]]
    return torch.from_numpy(chosen / values[centre].sum())


def centred_spectra(psf: Tensor, field_px: int) -> Tensor:
    """Spectra (n, field, field // 2 + 1), complex64, of odd-sized planes (n, y, x) whose middle pixel is the origin."""
    ny, nx = psf.shape[1:]
    field = torch.zeros((len(psf), field_px, field_px), dtype=torch.float32, device=psf.device)
    field[:, :ny, :nx] = psf
    spectra: Tensor = torch.fft.rfft2(field.roll((-(ny // 2), -(nx // 2)), dims=(1, 2)))
    return spectra


def gaussian_otf(size_px: int, sigma_px: float) -> Tensor:
    """Spectrum of a Gaussian sampled at the pixels, (size, size // 2 + 1): aliases included, so it does not ring."""

    def sampled(f: NDArray[np.floating]) -> NDArray[np.float64]:
        aliases = np.exp(-2.0 * (math.pi * sigma_px * (f[:, None] - np.array([-1.0, 0.0, 1.0]))) ** 2).sum(1)
        values: NDArray[np.float64] = aliases / aliases[0]
        return values

    rows, columns = sampled(np.fft.fftfreq(size_px)), sampled(np.fft.rfftfreq(size_px))
    return torch.from_numpy((rows[:, None] * columns[None, :]).astype(np.float32))


def _transmitted(scene: Tensor, spectra: Tensor, conditions: Conditions, optics: Transmission) -> Imaged:
    """A weak absorbing and refracting specimen in transmitted light, and its sharp transmission; bright field 1.

    Absorption and phase are those of a light path through all planes where the specimen is densest.
    """
    field_px, device = scene.shape[-1], spectra.device
    absorbed, shifted = transfer_functions_2d(
        optics, conditions.stage_um, (field_px, field_px), conditions.pixel_um, oblique=True
    )
    column = float(np.percentile(scene.sum(0).cpu().numpy(), 99.9))
    if column > 0:
        spectra = spectra / column
    half = field_px // 2 + 1
    transfer = conditions.phase_rad * shifted[..., :half] - conditions.absorption * absorbed[..., :half]
    blurred = (spectra * transfer.to(device, torch.complex64)).sum(0)
    contrast = torch.fft.irfft2(blurred, s=(field_px, field_px))
    sharp = torch.exp(-2.0 * conditions.absorption * _sharp(spectra, conditions))
    signal = (1.0 + contrast).clamp_(min=0)
    return Imaged(signal, torch.zeros_like(signal), sharp, transmitted=True)
