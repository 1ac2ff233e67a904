"""PSFs that are symmetric about the optical axis, as tables of radius and depth: three small matrix products.

Invariant: a table holds intensities in float64, converged to about 1e-6 of the maximum whatever the NA, indices, depth
and distance; it knows nothing of pixels.

Sources: Richards & Wolf, Proc. R. Soc. A 253:358 (1959); Gibson & Lanni, J. Opt. Soc. Am. A 8:1601 (1991); Aguet, PhD
thesis, EPFL 2009, ch. 3, for an isotropic emitter: |I0|^2 + 2 |I1|^2 + |I2|^2.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from scipy import special

from mrbcr_cli.optics.layers import axial_root, critical_angles, fixed_path_um, transmissions
from mrbcr_cli.optics.microscope import Microscope, Objective

Tensor = torch.Tensor


def _axis(values: Tensor | np.ndarray | list[float]) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


@lru_cache(maxsize=64)
def gauss_legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [-1, 1]; kept, because finding them costs more than using them."""
    x, w = special.roots_legendre(count)
    return x, w


def quadrature(microscope: Microscope, wavelength_um: float, r_max_um: float, z_max_um: float) -> tuple[Tensor, Tensor]:
    """Nodes (angle in the immersion, rad) and weights over the aperture, float64.

    Gauss-Legendre on each side of a critical angle, where a square root has its branch point: u^2 in place of the
    distance from it takes the root away. The number of nodes follows the phase across the aperture: half a node a
    radian, by the steepest slope, and 40 in reserve.
    """
    objective = microscope.objective
    ends = [0.0, *critical_angles(objective), math.asin(objective.na / objective.n_immersion)]
    angles, weights = [], []
    for index, (low, high) in enumerate(pairwise(ends)):
        kinks = (index > 0, index < len(ends) - 2)
        theta, _ = _stretched(np.linspace(0, 1, 257), low, high, *kinks)
        q = objective.n_immersion * torch.sin(_axis(theta))
        parts = (q * r_max_um, axial_root(microscope, q) * z_max_um, fixed_path_um(objective, q).real)
        phase = 2 * math.pi / wavelength_um * sum(float(part.diff().abs().max()) * 256 for part in parts)
        x, w = gauss_legendre(40 + 16 * math.ceil(0.55 * phase / 16))
        theta, slope = _stretched((x + 1) / 2, low, high, *kinks)
        angles.append(theta)
        weights.append(w / 2 * slope)
    return _axis(np.concatenate(angles)), _axis(np.concatenate(weights))


def _stretched(
    u: np.ndarray, low: float, high: float, kink_low: bool, kink_high: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Angle and its slope for u in [0, 1]; with vanishing slope at the ends that are branch points."""
    length = high - low
    if kink_low and kink_high:
        return low + length * u**2 * (3 - 2 * u), length * 6 * u * (1 - u)
    if kink_low:
        return low + length * u**2, length * 2 * u
    if kink_high:
        return high - length * (1 - u) ** 2, length * 2 * (1 - u)
    return low + length * u, np.full_like(u, length)


def intensity_table(
    microscope: Microscope, wavelength_um: float, z_um: Tensor, r_um: Tensor, device: torch.device | str = "cpu"
) -> Tensor:
    """Intensity of the widefield PSF at stage positions `z_um` (nz,) and radii `r_um` (nr,): float64 (nz, nr).

    The unit is such that `energy` is the integral over a plane. z > 0: the focus is deeper in the sample than the
    emitter. Aberrations are left out: see `pupil.py`.
    """
    z_um, r_um = _axis(z_um), _axis(r_um)
    theta, weight = quadrature(microscope, wavelength_um, float(r_um.abs().max()), float(z_um.abs().max()))
    k = 2 * math.pi / wavelength_um
    q = microscope.objective.n_immersion * torch.sin(theta)
    path = fixed_path_um(microscope.objective, q)
    stage = torch.exp(1j * k * (path[None, :] - z_um[:, None] * axial_root(microscope, q)[None, :]))
    argument = (k * q[:, None] * r_um.abs()[None, :]).numpy()
    orders = _orders(microscope, theta, q)
    bessel = _bessel(argument, len(orders))
    total: Tensor | None = None
    for amplitude, values, share in zip(orders, bessel, (1.0, 2.0, 1.0), strict=False):
        field = (stage * (weight * amplitude)[None, :]).to(device)
        kernel = torch.from_numpy(values).to(device)
        real_imag = torch.cat([field.real, field.imag]) @ kernel
        part = (real_imag**2).reshape(2, len(z_um), len(r_um)).sum(0) * share
        total = part if total is None else total + part
    if total is None:
        raise ValueError("a model without field components")
    return total


def _orders(microscope: Microscope, theta: Tensor, q: Tensor) -> list[Tensor]:
    """Amplitudes over the angle that go with J0, J1, J2 (one for the scalar models), complex128."""
    cos, sin = torch.cos(theta), torch.sin(theta)
    if microscope.model != "vectorial":
        scalar = torch.sqrt(cos) * sin if microscope.aplanatic else cos * sin
        return [scalar.to(torch.complex128)]
    ts, tp, cos_s, sin_s = transmissions(microscope, q)
    share = torch.sqrt(cos) * sin
    return [share * (ts + tp * cos_s), share * tp * sin_s, share * (ts - tp * cos_s)]


def _bessel(argument: np.ndarray, count: int) -> list[np.ndarray]:
    """J0 alone, or J0, J1 and J2; J2 from the recurrence, by its series where that would cancel."""
    j0 = special.j0(argument)
    if count == 1:
        return [j0]
    j1 = special.j1(argument)
    small = argument < 1e-2
    safe = np.where(small, 1.0, argument)
    j2 = np.where(small, argument**2 / 8 * (1 - argument**2 / 12), 2 * j1 / safe - j0)
    return [j0, j1, j2]


def energy(microscope: Microscope, wavelength_um: float) -> float:
    """Integral of the intensity over a whole plane (any), in the unit of `intensity_table` times um^2.

    Parseval for the Hankel transform: 2 pi integral |I|^2 r dr = 2 pi integral |a|^2 / (k^2 n^2 sin cos) dtheta.
    """
    theta, weight = quadrature(microscope, wavelength_um, 1.0, 0.0)
    k = 2 * math.pi / wavelength_um
    objective: Objective = microscope.objective
    q = objective.n_immersion * torch.sin(theta)
    decay = torch.exp(-2 * k * fixed_path_um(objective, q).imag)
    density = sum(
        share * amplitude.abs() ** 2
        for amplitude, share in zip(_orders(microscope, theta, q), (1.0, 2.0, 1.0), strict=False)
    )
    measure = k**2 * objective.n_immersion**2 * torch.sin(theta) * torch.cos(theta)
    return float(2 * math.pi * (weight * decay * density / measure).sum())
