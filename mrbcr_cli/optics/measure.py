"""What is read off a PSF: widths, sampling limits, and how much of its light a volume holds.

Invariant: pure functions of numbers and arrays; a width that cannot be found (the profile does not fall to half within
the volume) is None, never a guess.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.optics.microscope import Microscope

FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))
"""Of a Gaussian."""


def cutoff_per_um(microscope: Microscope) -> float:
    """Highest lateral frequency of the intensity PSF, cycles per um: 2 NA / lambda, summed over what is multiplied."""
    na = microscope.objective.na
    if microscope.kind == "confocal":
        return 2 * na / microscope.excitation_um + 2 * na / microscope.wavelength_um
    if microscope.kind == "two-photon":
        return 4 * na / microscope.excitation_um
    return 2 * na / microscope.wavelength_um


def axial_cutoff_per_um(microscope: Microscope) -> float:
    """Highest axial frequency of the intensity PSF, cycles per um of stage: (n - sqrt(n^2 - NA^2)) / lambda, summed."""
    n, na = microscope.objective.n_immersion, microscope.objective.na
    depth = n - math.sqrt(n**2 - na**2)
    if microscope.kind == "confocal":
        return depth / microscope.excitation_um + depth / microscope.wavelength_um
    if microscope.kind == "two-photon":
        return 2 * depth / microscope.excitation_um
    if microscope.kind == "light-sheet":
        return depth / microscope.wavelength_um + 2 * microscope.na_illumination / microscope.excitation_um
    return depth / microscope.wavelength_um


def nyquist_um(microscope: Microscope) -> float:
    """Largest pixel that records everything the PSF carries laterally."""
    return 0.5 / cutoff_per_um(microscope)


def axial_nyquist_um(microscope: Microscope) -> float:
    """Largest z step that records everything the PSF carries axially."""
    return 0.5 / axial_cutoff_per_um(microscope)


def profile_fwhm(profile: NDArray[Any], step: float) -> float | None:
    """Full width at half of the maximum of a 1-D profile, in the unit of `step`; None where it does not fall to half.

    The maximum and both crossings are found on a cubic spline through the samples.
    """
    from scipy.interpolate import CubicSpline
    from scipy.optimize import brentq, minimize_scalar

    values = np.asarray(profile, np.float64)
    if values.ndim != 1 or len(values) < 4 or not np.isfinite(values).all() or values.max() <= 0:
        return None
    spline = CubicSpline(np.arange(len(values)), values)
    top = int(values.argmax())
    low, high = max(0, top - 1), min(len(values) - 1, top + 1)
    best = minimize_scalar(lambda t: -float(spline(t)), bounds=(low, high), method="bounded", options={"xatol": 1e-9})
    centre, peak = (float(best.x), -float(best.fun)) if -float(best.fun) >= values[top] else (float(top), values[top])
    below = values < peak / 2
    left = np.flatnonzero(below[: math.floor(centre) + 1])
    right = np.flatnonzero(below[math.ceil(centre) :])
    if not len(left) or not len(right):
        return None
    a, b = int(left[-1]), math.ceil(centre) + int(right[0])

    def height(t: float) -> float:
        return float(spline(t)) - peak / 2

    return float(brentq(height, b - 1 if b - 1 > centre else centre, b) - brentq(height, a, min(a + 1, centre))) * step


def psf_fwhm_um(psf_zyx: NDArray[Any], voxel_zyx_um: tuple[float, float, float]) -> tuple[float | None, ...]:
    """FWHM along z, y and x in um through the brightest voxel; None where it cannot be found."""
    peak = np.unravel_index(int(np.argmax(psf_zyx)), psf_zyx.shape)
    widths: list[float | None] = []
    for axis, step in enumerate(voxel_zyx_um):
        line = psf_zyx[tuple(slice(None) if a == axis else int(i) for a, i in enumerate(peak))]
        widths.append(profile_fwhm(line, step))
    return tuple(widths)


def centre_of_mass(psf_zyx: NDArray[Any]) -> tuple[float, ...]:
    """Centre of mass along each axis in voxels from the middle (n - 1) / 2, in float64."""
    values = np.asarray(psf_zyx, np.float64)
    total = values.sum()
    found = []
    for axis, size in enumerate(values.shape):
        others = tuple(a for a in range(values.ndim) if a != axis)
        found.append(float((values.sum(others) * (np.arange(size) - (size - 1) / 2)).sum() / total))
    return tuple(found)
