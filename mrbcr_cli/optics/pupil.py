"""PSFs of any pupil, aberrated or not: a matrix Fourier transform from the pupil to any pixel pitch.

Invariant: differentiable in the Zernike coefficients and batched over them; the disc's edge is antialiased and the
pupil is sampled finely enough that its periodic images stay outside the field. Symmetric PSFs: see `radial.py`.

Sources: matrix Fourier transform: Soummer et al., Opt. Express 15:15935 (2007); vectorial pupils as in Richards & Wolf
(1959) and, for an isotropic emitter, summed over three dipoles: Backer & Moerner, J. Phys. Chem. B 118:8313 (2014).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mrbcr_cli.optics.layers import axial_root, critical_angles, fixed_path_um, transmissions
from mrbcr_cli.optics.microscope import Microscope
from mrbcr_cli.optics.zernike import polynomial

Tensor = torch.Tensor

_LEAST_SAMPLES = 192
_EDGE_POINTS = 16
_MARGIN = 1.2
_NEARLY_CRITICAL = 0.97
_BATCH_BYTES = 2**27


@dataclass(frozen=True, eq=False)
class Pupil:
    """A sampled pupil: `amplitudes` (c, n, n) complex (rows y, columns x) with `shares` (c,) of their intensities."""

    amplitudes: Tensor
    shares: tuple[float, ...]
    axis: Tensor
    """Coordinates (n,) of rows and columns in units of the NA, from -1 to 1."""
    axial: Tensor
    """n cos(theta) at each sample, (n, n): what 1 um of stage takes from the path."""
    rho: Tensor
    phi: Tensor


def sample_count(microscope: Microscope, wavelength_um: float, reach_um: float, z_max_um: float) -> int:
    """Samples across the pupil, so that light of the periodic images does not reach the field.

    2 NA / lambda * (FOV / 2 + |z| tan(alpha)) * 2, with a margin; twice that where supercritical light has a kink.
    """
    objective = microscope.objective
    tangent = objective.na / math.sqrt(objective.n_immersion**2 - objective.na**2)
    # The layers count double: their phase turns fastest at the edge, where samples are cut by the disc.
    spread_um = reach_um + z_max_um * tangent + 2 * _path_spread_um(microscope)
    count = math.ceil(_MARGIN * 4 * objective.na / wavelength_um * spread_um)
    least = _LEAST_SAMPLES * (2 if critical_angles(objective) else 1)
    if objective.depth_um > 0 and objective.na > _NEARLY_CRITICAL * objective.ns:
        count *= 2  # some rays leave the emitter almost sideways
    return max(least, count) // 2 * 2


def _path_spread_um(microscope: Microscope) -> float:
    """How far the mismatch of the layers alone carries a ray sideways: the slope of the path against q."""
    na = microscope.objective.na
    q = torch.linspace(0, na, 513, dtype=torch.float64)
    slopes = fixed_path_um(microscope.objective, q).real.diff().abs() * 512 / na
    # At a critical angle the slope has no bound; the few rays beside it are left to the doubling above.
    return float(slopes.quantile(0.99) if na > _NEARLY_CRITICAL * microscope.objective.ns else slopes.max())


def make_pupil(microscope: Microscope, wavelength_um: float, samples: int, device: torch.device | str = "cpu") -> Pupil:
    """Sample the unaberrated pupil: transmission, apodisation, layers; complex128 on `device`.

    Components: one for scalar models; for the vectorial one the fields x and y at the camera of dipoles along x, y and
    z (five, since x of y and y of x agree).
    """
    axis = ((torch.arange(samples, dtype=torch.float64) + 0.5) * 2 / samples - 1).to(device)
    y, x = axis[:, None], axis[None, :]
    rho = torch.sqrt(x**2 + y**2).clamp_max(1.0)
    phi = torch.atan2(y.expand(samples, samples), x.expand(samples, samples))
    objective, k = microscope.objective, 2 * math.pi / wavelength_um
    q = objective.na * rho
    cos = torch.sqrt(1 - (q / objective.n_immersion) ** 2)
    base = _coverage(axis) * torch.exp(1j * k * fixed_path_um(objective, q))
    shares: tuple[float, ...] = (1.0,)
    if microscope.model == "vectorial":
        ts, tp, cos_s, sin_s = transmissions(microscope, q)
        c, s = torch.cos(phi), torch.sin(phi)
        base = base / torch.sqrt(cos)
        parts = [ts * s**2 + tp * cos_s * c**2, (tp * cos_s - ts) * s * c, ts * c**2 + tp * cos_s * s**2]
        parts += [tp * sin_s * c, tp * sin_s * s]
        amplitudes, shares = torch.stack([base * part for part in parts]), (1.0, 2.0, 1.0, 1.0, 1.0)
    else:
        amplitudes = (base / torch.sqrt(cos) if microscope.aplanatic else base)[None]
    return Pupil(amplitudes, shares, axis, axial_root(microscope, q), rho, phi)


def _coverage(axis: Tensor) -> Tensor:
    """Share of each sample's square that lies in the unit disc, (n, n)."""
    step = float(axis[1] - axis[0])
    y, x = axis[:, None], axis[None, :]
    distance = torch.sqrt(x**2 + y**2)
    covered = (distance < 1).double()
    rows, columns = torch.nonzero((distance - 1).abs() < step, as_tuple=True)
    inner = ((torch.arange(_EDGE_POINTS, dtype=torch.float64, device=axis.device) + 0.5) / _EDGE_POINTS - 0.5) * step
    # Exact along y: the chord of each thin column, clipped to the square.
    half = torch.sqrt((1 - (axis[columns][:, None] + inner) ** 2).clamp_min(0.0))
    bottom = axis[rows][:, None] - step / 2
    low, high = torch.maximum(-half, bottom), torch.minimum(half, bottom + step)
    covered[rows, columns] = ((high - low).clamp_min(0.0) / step).mean(1)
    return (covered + covered.T) / 2  # the chords are exact along one axis only; the mean treats both alike


def aberrated_intensity(
    microscope: Microscope,
    wavelength_um: float,
    z_um: Sequence[float] | Tensor,
    y_um: Sequence[float] | Tensor,
    x_um: Sequence[float] | Tensor,
    indices: Sequence[int] = (),
    waves: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Intensity of the widefield PSF at points z (nz,), y (ny,), x (nx,) in um: (..., nz, ny, nx) of `dtype`.

    `waves` (..., j) are RMS waves of the Zernike polynomials `indices` (OSA/ANSI), differentiable; leading axes are
    batches. The unit is that of `radial.intensity_table`. float64 computes in complex128, float32 in complex64 after
    the phases were found in float64.
    """
    z, y, x = (torch.as_tensor(v, dtype=torch.float64, device=device) for v in (z_um, y_um, x_um))
    reach = math.hypot(float(y.abs().max()), float(x.abs().max()))
    samples = sample_count(microscope, wavelength_um, reach, float(z.abs().max()))
    pupil = make_pupil(microscope, wavelength_um, samples, device)
    unit = math.pi**2 * (microscope.objective.n_immersion / microscope.objective.na) ** 4
    unit *= 2 if microscope.model == "vectorial" else 4
    if waves is None:
        waves = torch.zeros(len(indices), dtype=torch.float64, device=device)
    batch = waves.shape[:-1]
    flat = waves.reshape(math.prod(batch), len(indices)).to(device=device, dtype=torch.float64)
    basis = [polynomial(j, pupil.rho, pupil.phi) for j in indices]
    modes = torch.stack(basis) if basis else torch.zeros((0, samples, samples), dtype=torch.float64, device=device)
    images = [_planes(microscope, wavelength_um, pupil, torch.tensordot(c, modes, 1), z, y, x, dtype) for c in flat]
    return torch.stack(images).reshape(*batch, len(z), len(y), len(x)) / unit


def _planes(
    microscope: Microscope,
    wavelength_um: float,
    pupil: Pupil,
    waves: Tensor,
    z: Tensor,
    y: Tensor,
    x: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """One PSF (nz, ny, nx): sum over components of |Ey @ pupil @ Ex|^2, a few planes at a time."""
    complex_type = torch.complex64 if dtype == torch.float32 else torch.complex128
    k, na = 2 * math.pi / wavelength_um, microscope.objective.na
    step = float(pupil.axis[1] - pupil.axis[0])
    to_y = torch.exp(1j * k * na * y[:, None] * pupil.axis[None, :]).to(complex_type)
    to_x = (torch.exp(1j * k * na * pupil.axis[:, None] * x[None, :]) * step**2).to(complex_type)
    amplitudes = pupil.amplitudes * torch.exp(2j * math.pi * waves)
    shares = torch.tensor(pupil.shares, dtype=dtype, device=z.device)
    per_plane = 16 * len(pupil.shares) * len(pupil.axis) * max(len(pupil.axis), len(x))
    many = max(1, _BATCH_BYTES // per_plane)
    slabs = []
    for start in range(0, len(z), many):
        stage = torch.exp(-1j * k * z[start : start + many, None, None, None] * pupil.axial)
        field = to_y @ ((amplitudes * stage).to(complex_type) @ to_x)
        intensity = field.real**2 + field.imag**2
        slabs.append(torch.einsum("zcyx,c->zyx", intensity, shares))
    return torch.cat(slabs)
