"""The intensity PSF of a microscope on a grid of voxels: widefield, confocal, two-photon, light-sheet.

Invariant: one function, `compute_psf`, for every microscope; unaberrated ones go through tables over radius, aberrated
ones through the pupil, in the same unit, and both agree where both apply.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from mrbcr_cli.optics import pupil as pupils
from mrbcr_cli.optics.measure import axial_nyquist_um, nyquist_um, profile_fwhm
from mrbcr_cli.optics.microscope import Grid, Microscope
from mrbcr_cli.optics.radial import energy, gauss_legendre, intensity_table
from mrbcr_cli.optics.sampling import expand, farthest_um, interpolation, radii_um, radius_step_um

Tensor = torch.Tensor
Normalize = Literal["sum", "max", "plane", "none"]


@dataclass(frozen=True, eq=False)
class RadialPsf:
    """A symmetric PSF as a table (nz, nr) of float64 intensities at radii k * `step_um`."""

    table: Tensor
    step_um: float
    nyquist_um: float


def compute_psf(
    microscope: Microscope,
    grid: Grid,
    *,
    normalize: Normalize = "sum",
    z_um: Tensor | None = None,
    waves: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """PSF of `microscope` on `grid`: (nz, ny, nx) of `dtype` on `device`; (..., nz, ny, nx) with batched `waves`.

    `z_um` (nz,), any stage positions, replaces those of the grid.

    `waves` (..., j) replaces the coefficients of `microscope.zernike_waves` (RMS waves, in its order) and is
    differentiable. `normalize`: "sum" 1 over the volume, "max" 1, "plane" so that a whole plane of a widefield PSF
    holds 1 (what leaves the field is missing; other microscopes: the unit of the model), "none" the model's unit.
    """
    z = torch.tensor(grid.offsets_um(0), dtype=torch.float64) if z_um is None else z_um.to("cpu", torch.float64)
    if microscope.zernike_waves or waves is not None:
        psf = _aberrated(microscope, grid, z, waves, dtype, device)
    else:
        psf = _symmetric(microscope, grid, z, dtype, device)
    return _normalized(psf, microscope, grid, normalize)


def _normalized(psf: Tensor, microscope: Microscope, grid: Grid, normalize: Normalize) -> Tensor:
    if normalize == "sum":
        return psf / psf.double().sum((-3, -2, -1), keepdim=True).to(psf.dtype)
    if normalize == "max":
        return psf / psf.amax((-3, -2, -1), keepdim=True)
    if normalize == "plane":
        return psf * (grid.pixel_um**2 / energy(microscope, microscope.wavelength_um))
    return psf


def _symmetric(microscope: Microscope, grid: Grid, z: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    radial = radial_psf(microscope, z, farthest_um(grid), grid.pixel_um, device=device)
    return expand(radial.table, radial.step_um, grid, radial.nyquist_um, dtype)


def radial_psf(
    microscope: Microscope, z_um: Tensor, r_max_um: float, pixel_um: float, device: torch.device | str = "cpu"
) -> RadialPsf:
    """The symmetric PSF at stage positions `z_um` (nz,) out to `r_max_um`; Zernike terms are ignored."""
    limit = nyquist_um(microscope)
    step = radius_step_um(pixel_um, limit)
    r_um = radii_um(r_max_um, step)
    emission, excitation = microscope.wavelength_um, microscope.excitation_um
    if microscope.kind == "two-photon":
        table = intensity_table(microscope, excitation, z_um, r_um, device) ** 2
    elif microscope.kind == "confocal":
        excited = intensity_table(microscope, excitation, z_um, r_um, device)
        wide = radii_um(float(r_um[-1]) + microscope.pinhole_radius_um, step)
        detected = intensity_table(microscope, emission, z_um, wide, device)
        matrix = _pinhole_matrix(r_um.numpy(), microscope.pinhole_radius_um, step, len(wide), limit)
        through = torch.from_numpy(np.ascontiguousarray((matrix @ detected.T.cpu().numpy()).T)).to(device)
        table = excited * through
    else:
        table = intensity_table(microscope, emission, z_um, r_um, device)
        if microscope.kind == "light-sheet":
            table = table * sheet_profile(microscope, z_um).to(device)[:, None]
    return RadialPsf(table, step, limit)


def _pinhole_matrix(
    r_um: np.ndarray, pinhole_um: float, step_um: float, count: int, limit_um: float
) -> object:  # a scipy csr_matrix; scipy is untyped
    """Sparse (nr, count): light of a symmetric spot within the disc of radius `pinhole_um` centred at each radius.

    A circle of radius s around the spot lies in the disc over the angle 2 acos((s^2 + r^2 - R^2) / (2 s r)): a line
    integral over s from |r - R| to r + R, in s = middle - half cos t, which takes the roots at both ends away; and
    whole circles below R - r.
    """
    spans = 2 * pinhole_um / limit_um
    x, w = gauss_legendre(24 + math.ceil(3 * spans))
    inner = np.maximum(pinhole_um - r_um, 0.0)[:, None]
    s_whole, w_whole = inner * (x + 1) / 2, inner * w / 2
    t = math.pi * (x + 1) / 2
    low, high = np.abs(r_um - pinhole_um)[:, None], (r_um + pinhole_um)[:, None]
    half = (high - low) / 2
    s = low + half * (1 - np.cos(t))
    r = r_um[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.where(r > 0, (s**2 + r**2 - pinhole_um**2) / (2 * s * r), 1.0)
    arc = 2 * np.arccos(np.clip(cosine, -1, 1))
    weights = np.concatenate([2 * math.pi * s_whole * w_whole, arc * s * half * np.sin(t) * w * math.pi / 2], axis=1)
    return interpolation(np.concatenate([s_whole, s], axis=1), weights, step_um, count)


def sheet_profile(microscope: Microscope, z_um: Tensor) -> Tensor:
    """Intensity of the light sheet (nz,) at stage positions `z_um`, 1 in its middle (`sheet_um`), float64.

    "gaussian": exp(-2 z^2 / w0^2) with the waist w0 = lambda / (pi NA) of a Gaussian beam of that divergence.
    "swept": a focus of a uniformly filled aperture swept along x, as a scanned sheet is: the integral of the scalar PSF
    along a line at distance z.
    """
    wavelength, na = microscope.excitation_um, microscope.na_illumination
    z = torch.as_tensor(z_um, dtype=torch.float64) - microscope.sheet_um
    if microscope.sheet == "gaussian":
        return torch.exp(-2 * (z * math.pi * na / wavelength) ** 2)
    # By Parseval the line integral is the sum over chords of the pupil of |the Fourier transform of the chord|^2.
    x, w = gauss_legendre(200)
    u = torch.from_numpy(x)
    chords = torch.sqrt(1 - u**2)
    argument = 2 * math.pi * na / wavelength * z.abs()[:, None] * chords[None, :]
    field = 2 * chords * torch.sinc(argument / math.pi)
    profile = (field**2 * torch.from_numpy(w)).sum(1)
    return profile / (4 * chords**2 * torch.from_numpy(w)).sum()


def _aberrated(
    microscope: Microscope, grid: Grid, z: Tensor, waves: Tensor | None, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """Through the pupil. Pinhole and pixel are applied by their exact spectra, on a grid no coarser than Nyquist."""
    indices = [j for j, _ in microscope.zernike_waves]
    if waves is None:
        waves = torch.tensor([c for _, c in microscope.zernike_waves], dtype=torch.float64)
    if waves.shape[-1] != len(indices):
        raise ValueError(f"waves has {waves.shape[-1]} coefficients for {len(indices)} Zernike indices {indices}")
    filtered = grid.sampling == "pixel" or microscope.kind == "confocal"
    fine, margin, axes = _fine_axes(microscope, grid) if filtered else (1, 0, _pixel_axes(grid))

    def spot(wavelength_um: float) -> Tensor:
        # The same path difference is another number of waves of another colour.
        scaled = waves * (microscope.zernike_wavelength_um / wavelength_um)
        return pupils.aberrated_intensity(
            microscope, wavelength_um, z, axes[0], axes[1], indices, scaled, dtype=dtype, device=device
        )

    frequency = [torch.fft.fftfreq(len(a), grid.pixel_um / fine, dtype=torch.float64).to(device) for a in axes]
    if microscope.kind == "confocal":
        radial = torch.hypot(frequency[0][:, None], frequency[1][None, :])
        pinhole = _jinc(2 * math.pi * radial * microscope.pinhole_radius_um)
        psf = spot(microscope.excitation_um) * _filtered(spot(microscope.wavelength_um), pinhole)
    elif microscope.kind == "two-photon":
        psf = spot(microscope.excitation_um) ** 2
    else:
        psf = spot(microscope.wavelength_um)
        if microscope.kind == "light-sheet":
            psf = psf * sheet_profile(microscope, z).to(psf)[:, None, None]
    if grid.sampling == "pixel":
        box = [torch.sinc(f * grid.pixel_um) for f in frequency]
        psf = _filtered(psf, box[0][:, None] * box[1][None, :])
    inside = [slice(margin, len(a) - margin, fine) for a in axes]
    return psf[..., inside[0], inside[1]]


def _pixel_axes(grid: Grid) -> list[Tensor]:
    return [torch.tensor(grid.offsets_um(axis), dtype=torch.float64) for axis in (1, 2)]


def _fine_axes(microscope: Microscope, grid: Grid) -> tuple[int, int, list[Tensor]]:
    """(points a pixel, margin in points, positions in um along y and x): an odd number, so that centres stay points.

    The margin keeps the ends of the periodic transform away from the field.
    """
    limit = nyquist_um(microscope)
    fine = 2 * math.ceil((grid.pixel_um / limit - 1) / 2 - 1e-9) + 1
    pitch = grid.pixel_um / fine
    pinhole_um = microscope.pinhole_radius_um if microscope.kind == "confocal" else 0.0
    margin = math.ceil((pinhole_um + grid.pixel_um + 4 * limit) / pitch)
    axes = []
    for axis in (1, 2):
        offsets = grid.offsets_um(axis)
        count = (len(offsets) - 1) * fine + 1 + 2 * margin
        axes.append(offsets[0] - margin * pitch + torch.arange(count, dtype=torch.float64) * pitch)
    return fine, margin, axes


def _filtered(image: Tensor, transfer: Tensor) -> Tensor:
    spectrum = torch.fft.fft2(image) * transfer.to(image.dtype)
    filtered: Tensor = torch.fft.ifft2(spectrum).real
    return filtered


def _jinc(argument: Tensor) -> Tensor:
    """2 J1(x) / x, 1 at 0: the spectrum of a disc of unit weight."""
    safe = torch.where(argument < 1e-6, torch.ones_like(argument), argument)
    return torch.where(argument < 1e-6, torch.ones_like(argument), 2 * torch.special.bessel_j1(safe) / safe)


@dataclass(frozen=True)
class Focus:
    """The symmetric model's best focus, in um."""

    z_um: float
    """Stage position where the axis is brightest; 0 unless the layers aberrate."""
    fwhm_z_um: float | None
    """On the axis, in stage distance; None where it does not fall to half."""
    fwhm_xy_um: float | None
    """In the plane of best focus."""


def find_focus(microscope: Microscope) -> Focus:
    """Best focus and FWHM of the symmetric model itself, not of voxels; Zernike terms are ignored."""
    z_limit, r_limit = axial_nyquist_um(microscope), nyquist_um(microscope)
    axial, centre = None, 0.0
    for reach in (8, 32, 256):  # in Nyquist steps; the axis is looked at in eighths of one
        z = torch.arange(-8 * reach, 8 * reach + 1, dtype=torch.float64) * (z_limit / 8)
        line = _at_radii(microscope, z, torch.zeros(1, dtype=torch.float64))[:, 0].numpy()
        axial, centre = profile_fwhm(line, z_limit / 8), float(z[int(line.argmax())])
        if axial is not None:
            break
    r = torch.arange(0, 81, dtype=torch.float64) * (r_limit / 10)
    half = _at_radii(microscope, torch.tensor([centre], dtype=torch.float64), r)[0].numpy()
    lateral = profile_fwhm(np.concatenate([half[:0:-1], half]), r_limit / 10)
    return Focus(centre, axial, lateral)


def with_sheet_in_focus(microscope: Microscope) -> Microscope:
    """The same microscope, a light sheet of it moved to the best focus of the detection, as a user aligns it."""
    if microscope.kind != "light-sheet":
        return microscope
    return replace(microscope, sheet_um=find_focus(replace(microscope, kind="widefield")).z_um)


def _at_radii(microscope: Microscope, z_um: Tensor, r_um: Tensor) -> Tensor:
    """The symmetric PSF at any radii (nz, nr), by interpolation from its table."""
    radial = radial_psf(microscope, z_um, float(r_um.max()), nyquist_um(microscope))
    points = r_um.numpy()[:, None]
    matrix = interpolation(points, np.ones_like(points), radial.step_um, radial.table.shape[1])
    return torch.from_numpy(np.ascontiguousarray((matrix @ radial.table.T.numpy()).T))
