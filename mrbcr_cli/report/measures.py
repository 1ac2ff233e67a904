"""What is measured of a pair: intensities, spectra, ring correlation, and the output re-blurred against the input.

Invariant: pure functions of arrays that return JSON-able values; what cannot be measured is {"why": a sentence}, never
a guess. The numbers are those of `metrics` and `blind`, which name their sources.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli import metrics
from mrbcr_cli.blind import radial_power
from mrbcr_cli.errors import InputError

Array = NDArray[Any]
Json = dict[str, Any]

QUANTILES = (0, 0.1, 0.5, 1, 2, 5, 10, 25, 50, 75, 90, 95, 98, 99, 99.5, 99.8, 99.9, 99.95, 99.99, 100)
"""Percentiles that a page keeps, so that its grey scale can be moved."""
BINS = 160


def finite(values: Array) -> NDArray[np.float64]:
    """The finite values, flat, as float64."""
    flat = np.asarray(values).ravel()
    return np.asarray(flat[np.isfinite(flat)] if flat.dtype.kind == "f" else flat, np.float64)


def quantiles(before: Array, after: Array) -> Json:
    """The percentiles QUANTILES of each and of both together; zeros where nothing is finite."""
    b, a = finite(before), finite(after)
    both = np.concatenate([b, a])

    def of(values: NDArray[np.float64]) -> list[float]:
        return [float(q) for q in np.percentile(values, QUANTILES)] if values.size else [0.0] * len(QUANTILES)

    return {"before": of(b), "after": of(a), "both": of(both)}


def histogram(before: Array, after: Array) -> Json:
    """Counts of pixels in common bins from the 0.01 to the 99.99 percentile of both; the ends take what lies beyond.

    Bins of integers hold whole numbers of levels. `edges` has one value more than the counts.
    """
    b, a = finite(before), finite(after)
    both = np.concatenate([b, a])
    if not both.size:
        return {"why": "no pixel is finite"}
    low, high = (float(v) for v in np.percentile(both, (0.01, 99.99)))
    if before.dtype.kind in "iu" and after.dtype.kind in "iu":
        low, high = np.floor(low) - 0.5, np.ceil(high) + 0.5
        step = max(1.0, np.ceil((high - low) / BINS))
        edges = low + step * np.arange(int(np.ceil((high - low) / step)) + 1)
    else:
        edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    counts = [np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0] for v in (b, a)]
    return {
        "edges": [float(e) for e in edges],
        "before": [int(n) for n in counts[0]],
        "after": [int(n) for n in counts[1]],
        "pixels": int(b.size),
    }


def spectrum(before_yx: Array, after_yx: Array) -> Json:
    """Radial power of both (`blind.radial_power`), frequencies in cycles per px."""
    try:
        powers = [radial_power([plane], "") for plane in (before_yx, after_yx)]
    except InputError as error:
        return {"why": str(error).rstrip("; ")}
    return {
        "frequency": [float(f) for f in powers[0].frequency],
        "before": [float(p) for p in powers[0].power],
        "after": [float(p) for p in powers[1].power],
        "tile_px": powers[0].tile_px,
    }


def ring_correlation(before_yx: Array, after_yx: Array) -> Json:
    """Ring correlation of each plane with itself (`metrics.single_image_correlation`) and its resolution in px.

    Frequencies are in cycles per px of the image, twice as fine as those of the quarter images; `*_px` is calibrated
    (Koho et al. 2019) and None where the curve never falls below 1/7.
    """
    if not all(np.isfinite(plane).all() for plane in (before_yx, after_yx)):
        return {"why": "the place that is measured holds NaN or infinite values"}
    curves = [metrics.single_image_correlation(plane) for plane in (before_yx, after_yx)]
    if curves[0] is None and curves[1] is None:
        return {"why": "the planes are flat, or narrower than 32 px"}
    found: Json = {"threshold": metrics.THRESHOLD}
    for name, curve in zip(("before", "after"), curves, strict=True):
        found[f"{name}_px"] = metrics.koho_resolution_px(curve)
        if curve is not None:
            found["frequency"] = [float(f) / 2 for f in curve.frequency]
        found[name] = None if curve is None else [float(v) for v in curve.correlation]
    return found


def reblur(after_zyx: Array, psf_zyx: NDArray[np.float32]) -> NDArray[np.float64]:
    """The middle of a block of the output under the PSF: (y, x), smaller than the block by the PSF's radius.

    The block has as many planes as the PSF. Convolution, origin in the PSF's middle voxel.
    """
    from scipy.signal import fftconvolve

    blurred = fftconvolve(np.asarray(after_zyx, np.float64), np.asarray(psf_zyx, np.float64), mode="valid")
    return np.asarray(blurred[0])


def residual(before_yx: Array, reblurred_yx: NDArray[np.float64]) -> tuple[NDArray[np.float64], Json]:
    """The re-blurred output, scaled to the input by least squares (`metrics.affine_fit`), and figures of what is left.

    `rms`: of input minus fit, in the image's unit; `relative`: over the input's standard deviation; `correlation`:
    of both; `neighbours`: correlation of the residual with itself one pixel on, near 0 for noise of a camera and near 1
    where structure is left.
    """
    before = np.asarray(before_yx, np.float64)
    fitted = metrics.affine_fit(reblurred_yx, before)
    left = before - fitted
    spread = float(reblurred_yx.std())
    gain = float((fitted.max() - fitted.min()) / np.ptp(reblurred_yx)) if spread > 0 else 0.0
    pairs = [(left[1:], left[:-1]), (left[:, 1:], left[:, :-1])]
    neighbours = [metrics.pearson(*pair) for pair in pairs if pair[0].size > 1]
    known = [value for value in neighbours if np.isfinite(value)]
    deviation = float(before.std())
    similar = metrics.pearson(reblurred_yx, before)
    return fitted, {
        "gain": gain,
        "offset": float(fitted.mean() - gain * reblurred_yx.mean()),
        "rms": float(left.std()),
        "relative": float(left.std()) / deviation if deviation > 0 else None,
        "correlation": similar if np.isfinite(similar) else None,
        "neighbours": float(np.mean(known)) if known else None,
    }
