"""The intensity PSF of a microscope on a grid of voxels: widefield, confocal, two-photon, light-sheet.

Invariant: one function, `compute_psf`, for every microscope; unaberrated ones go through tables over radius, aberrated
ones through the pupil, in the same unit, and both agree where both apply.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.polynomial.legendre import leggauss

from mrbcr_cli.optics import pupil as pupils
from mrbcr_cli.optics.measure import nyquist_um
from mrbcr_cli.optics.microscope import Grid, Microscope
from mrbcr_cli.optics.radial import energy, intensity_table
from mrbcr_cli.optics.sampling import expand, farthest_um, interpolation, pixel_nodes, radii_um, radius_step_um

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
    waves: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """PSF of `microscope` on `grid`: (nz, ny, nx) of `dtype` on `device`; (..., nz, ny, nx) with batched `waves`.

    `waves` (..., j) replaces the coefficients of `microscope.zernike_waves` (RMS waves, in its order) and is
    differentiable. `normalize`: "sum" 1 over the volume, "max" 1, "plane" so that a whole plane of a widefield PSF
    holds 1 (what leaves the field is missing; other microscopes: the unit of the model), "none" the model's unit.
    """
    if microscope.zernike_waves or waves is not None:
        psf = _aberrated(microscope, grid, waves, dtype, device)
    else:
        psf = _symmetric(microscope, grid, dtype, device)
    return _normalized(psf, microscope, grid, normalize)


def _normalized(psf: Tensor, microscope: Microscope, grid: Grid, normalize: Normalize) -> Tensor:
    if normalize == "sum":
        return psf / psf.double().sum((-3, -2, -1), keepdim=True).to(psf.dtype)
    if normalize == "max":
        return psf / psf.amax((-3, -2, -1), keepdim=True)
    if normalize == "plane":
        return psf * (grid.pixel_um**2 / energy(microscope, microscope.wavelength_um))
    return psf


def _symmetric(microscope: Microscope, grid: Grid, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    z_um = torch.tensor(grid.offsets_um(0), dtype=torch.float64)
    radial = radial_psf(microscope, z_um, farthest_um(grid), grid.pixel_um, device=device)
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
    x, w = leggauss(24 + math.ceil(3 * spans))
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
    """Intensity of the light sheet (nz,) at distances `z_um` from the focal plane, 1 in it, float64.

    "gaussian": exp(-2 z^2 / w0^2) with the waist w0 = lambda / (pi NA) of a Gaussian beam of that divergence.
    "swept": a focus of a uniformly filled aperture swept along x, as a scanned sheet is: the integral of the scalar PSF
    along a line at distance z.
    """
    wavelength, na = microscope.excitation_um, microscope.na_illumination
    z = torch.as_tensor(z_um, dtype=torch.float64)
    if microscope.sheet == "gaussian":
        return torch.exp(-2 * (z * math.pi * na / wavelength) ** 2)
    # The line spread of a uniform aperture is int sqrt(1-u^2)-weighted cosines: |FT of each chord|^2 summed over chords.
    x, w = leggauss(200)
    u = torch.from_numpy(x)
    chords = torch.sqrt(1 - u**2)
    argument = 2 * math.pi * na / wavelength * z.abs()[:, None] * chords[None, :]
    field = 2 * chords * torch.sinc(argument / math.pi)
    profile = (field**2 * torch.from_numpy(w)).sum(1)
    return profile / (4 * chords**2 * torch.from_numpy(w)).sum()


def _aberrated(
    microscope: Microscope, grid: Grid, waves: Tensor | None, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    indices = [j for j, _ in microscope.zernike_waves]
    if waves is None:
        waves = torch.tensor([c for _, c in microscope.zernike_waves], dtype=torch.float64)
    if waves.shape[-1] != len(indices):
        raise ValueError(f"waves has {waves.shape[-1]} coefficients for {len(indices)} Zernike indices {indices}")
    if microscope.kind == "confocal":
        return _aberrated_confocal(microscope, grid, indices, waves, dtype, device)
    nodes, weights = pixel_nodes(grid, nyquist_um(microscope))
    y, x = (
        (torch.tensor(grid.offsets_um(axis), dtype=torch.float64)[:, None] + torch.from_numpy(nodes)).ravel()
        for axis in (1, 2)
    )
    z = torch.tensor(grid.offsets_um(0), dtype=torch.float64)
    wavelength = microscope.excitation_um if microscope.kind == "two-photon" else microscope.wavelength_um
    # Coefficients are waves of the emission; the same path difference is another number of waves of the excitation.
    waves = waves * (microscope.wavelength_um / wavelength)
    fine = pupils.aberrated_intensity(microscope, wavelength, z, y, x, indices, waves, dtype=dtype, device=device)
    if microscope.kind == "two-photon":
        fine = fine**2
    share = torch.from_numpy(weights).to(device=device, dtype=dtype)
    ny, nx = grid.shape_zyx[1:]
    cells = fine.reshape(*fine.shape[:-2], ny, len(nodes), nx, len(nodes))
    psf = torch.einsum("...yixj,i,j->...yx", cells, share, share)
    if microscope.kind == "light-sheet":
        psf = psf * sheet_profile(microscope, z).to(psf)[:, None, None]
    return psf


def _aberrated_confocal(
    microscope: Microscope,
    grid: Grid,
    indices: list[int],
    waves: Tensor,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Tensor:
    """Excitation times pinholed emission on a grid finer than Nyquist; pinhole and pixel by their exact spectra."""
    limit = nyquist_um(microscope)
    fine = 2 * math.ceil(grid.pixel_um / limit / 2 - 0.5) + 1  # odd, so that pixel centres stay on the grid
    pitch = grid.pixel_um / fine
    margin = math.ceil((microscope.pinhole_radius_um + grid.pixel_um + 4 * limit) / pitch)
    axes = []
    for axis in (1, 2):
        offsets = grid.offsets_um(axis)
        count = (len(offsets) - 1) * fine + 1 + 2 * margin
        axes.append(offsets[0] - margin * pitch + torch.arange(count, dtype=torch.float64) * pitch)
    z = torch.tensor(grid.offsets_um(0), dtype=torch.float64)
    spots = []
    for wavelength in (microscope.excitation_um, microscope.wavelength_um):
        scaled = waves * (microscope.wavelength_um / wavelength)
        spots.append(
            pupils.aberrated_intensity(microscope, wavelength, z, *axes, indices, scaled, dtype=dtype, device=device)
        )
    frequency = [torch.fft.fftfreq(len(a), pitch, dtype=torch.float64).to(device) for a in axes]
    radial = torch.hypot(frequency[0][:, None], frequency[1][None, :])
    product = spots[0] * _filtered(spots[1], _jinc(2 * math.pi * radial * microscope.pinhole_radius_um))
    if grid.sampling == "pixel":
        box = [torch.sinc(f * grid.pixel_um) for f in frequency]
        product = _filtered(product, box[0][:, None] * box[1][None, :])
    inside = [slice(margin, len(a) - margin, fine) for a in axes]
    return product[..., inside[0], inside[1]]


def _filtered(image: Tensor, transfer: Tensor) -> Tensor:
    spectrum = torch.fft.fft2(image) * transfer.to(image.dtype)
    return torch.fft.ifft2(spectrum).real


def _jinc(argument: Tensor) -> Tensor:
    """2 J1(x) / x, 1 at 0: the spectrum of a disc of unit weight."""
    safe = torch.where(argument < 1e-6, torch.ones_like(argument), argument)
    return torch.where(argument < 1e-6, torch.ones_like(argument), 2 * torch.special.bessel_j1(safe) / safe)
