"""What the noise of an image tells without knowing its camera: signal over noise at the peak, light, and what is no
photograph at all (labels, clipped values).

Invariant: every figure is the same after any affine change of the intensities with positive gain; one that the pixels
do not support is None.

Noise is read off a filter that annuls planes and passes what optics does not (Immerkaer 1996, CVIU 64, 300), and
fitted against the local mean: its slope is the gain, counts per photo-electron (photon transfer: Janesick 2007; Foi et
al. 2008, IEEE TIP 17, 1737).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_KERNEL = np.array([1.0, -2.0, 1.0]) / np.sqrt(6.0)
"""Along y and x: together they leave the variance of white noise as it is."""
_LEVEL_SIGMA_PX = 1.5
_PEAK_SIGMA_PX = 0.8
_BRIGHTEST = 2e-4
"""Share of the pixels whose mean is "the peak", as in `simulate pairs`."""
_DARKEST = 0.005
_BINS = (*np.linspace(0, 0.9, 10), 0.95, 0.98, 0.99, 0.995, 0.998, 1.0)
_FEWEST_IN_BIN = 40
_LEAST_SLOPE = 4.0
"""Standard errors above 0 that a slope needs to be called a gain."""
_LARGEST_SNR = 1e4
_LEAST_SATURATED = 1e-4


@dataclass(frozen=True)
class Noise:
    """Noise against signal."""

    snr_peak: float | None
    """(Peak - darkest) over the standard deviation of the noise at the peak; at most 1e4."""
    electrons_peak: float | None
    """Peak above the darkest level, in photo-electrons (detected photons)."""
    relative_error: float | None
    """Of `electrons_peak`: one standard error of the gain over the gain."""


def measure_noise(tiles: Sequence[Array]) -> Noise:
    """Fit noise variance against local mean over all pixels of the tiles (each (Y, X), at least 16 px)."""
    from scipy import ndimage

    inside = (slice(3, -3), slice(3, -3))
    level, residual, fine = [], [], []
    for tile in tiles:
        level.append(ndimage.gaussian_filter(tile, _LEVEL_SIGMA_PX)[inside].ravel())
        fine.append(ndimage.gaussian_filter(tile, _PEAK_SIGMA_PX)[inside].ravel())
        high = ndimage.correlate1d(ndimage.correlate1d(tile, _KERNEL, 0), _KERNEL, 1)
        residual.append(high[inside].ravel())
    levels, residuals, peaks = (np.concatenate(values) for values in (level, residual, fine))
    count = max(1, round(_BRIGHTEST * peaks.size))
    peak = float(np.partition(peaks, -count)[-count:].mean())
    dark = float(np.quantile(levels, _DARKEST))
    means, variances, weights = _binned(levels, residuals)
    if not peak > dark or not variances.size or not variances.max() > 0:
        return Noise(_LARGEST_SNR if peak > dark else None, None, None)
    slope, error, at_peak = _line(means, variances, weights, peak)
    # Where few pixels are bright the line is uncertain there; the brightest bins still say what noise there is.
    at_peak = max(at_peak, 0.5 * float(variances.max()))
    snr = min((peak - dark) / np.sqrt(at_peak), _LARGEST_SNR)
    if slope < _LEAST_SLOPE * error or slope <= 0:
        return Noise(float(snr), None, None)
    return Noise(float(snr), (peak - dark) / slope, error / slope)


def _binned(levels: Array, residuals: Array) -> tuple[Array, Array, Array]:
    """Return mean level, noise variance and number of pixels of each bin of the levels."""
    order = np.argsort(levels, kind="stable")
    bounds = np.round(np.asarray(_BINS) * levels.size).astype(np.intp)
    rows = []
    for first, stop in pairwise(bounds.tolist()):
        if stop - first < _FEWEST_IN_BIN:
            continue
        chosen = order[first:stop]
        squares = residuals[chosen] ** 2
        plain = float(np.minimum(squares, np.quantile(squares, 0.999)).mean())
        robust = float(np.median(np.abs(residuals[chosen])) / 0.6745) ** 2
        # The median leaves structure and hot pixels out; of single photons on nothing it sees the nothing.
        rows.append((float(levels[chosen].mean()), robust if robust > 0.5 * plain else plain, float(stop - first)))
    means, variances, counts = np.array(rows).reshape(-1, 3).T
    return means, variances, counts


def _line(means: Array, variances: Array, counts: Array, at: float) -> tuple[float, float, float]:
    """Weighted line through the variances: slope, its standard error, and the value at `at`."""
    model = variances.copy()
    slope = error = middle = height = 0.0
    for _ in range(15):
        # Variance of a variance from the median of n pixels of which about a third are independent.
        weight = counts / (2 * 2.7 * 3 * np.maximum(model, 0.02 * variances.max()) ** 2)
        middle, height = (float((weight * v).sum() / weight.sum()) for v in (means, variances))
        spread = float((weight * (means - middle) ** 2).sum())
        if spread <= 0:
            return 0.0, float("inf"), height
        slope = float((weight * (means - middle) * (variances - height)).sum() / spread)
        error = float(1 / np.sqrt(spread))
        model = height + slope * (means - middle)
    return slope, error, height + max(slope, 0.0) * (at - middle)


def saturated_share(planes: Sequence[NDArray[Any]]) -> float:
    """Share of the pixels at the largest value where that is a plateau, else 0.

    A plateau holds more than ten times what lies within the next fiftieth of the range below.
    """
    finite = [p[np.isfinite(p)] if p.dtype.kind == "f" else p.ravel() for p in planes]
    finite = [p for p in finite if p.size]
    total = sum(p.size for p in finite)
    if total == 0:
        return 0.0
    high, low = max(float(p.max()) for p in finite), min(float(p.min()) for p in finite)
    at_top = sum(int(np.count_nonzero(p == high)) for p in finite)
    if high <= low or at_top < _LEAST_SATURATED * total:
        return 0.0
    near = sum(int(np.count_nonzero(p > high - (high - low) / 50)) for p in finite) - at_top
    return at_top / total if at_top > 10 * near else 0.0


def looks_drawn(tiles: Sequence[Array]) -> bool:
    """Whether the pixels are areas of equal values with jumps between them, as in masks and label images."""
    values = np.stack(tiles)
    distinct, counts = np.unique(values, return_counts=True)
    background = distinct[np.argmax(counts)]
    here, right, below = values[:, :-1, :-1], values[:, :-1, 1:], values[:, 1:, :-1]
    drawn = here != background
    if not drawn.any():
        return False
    same = float(np.mean((here == right)[drawn] & (here == below)[drawn]))
    if len(distinct) == 2:
        return same > 0.5
    jumps = np.abs(here - right)[here != right]
    # A smooth image of few grey levels has areas of equal values too, but steps of one level between them.
    return same > 0.6 and jumps.size > 0 and float(np.median(jumps)) > 0.08 * float(np.ptp(distinct))
