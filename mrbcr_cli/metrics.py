"""How near a prediction is to the truth: errors, structure, correlation by spatial frequency, and how sure of a mean.

Invariant: pure functions of arrays; what is not defined (a flat truth has no range, a curve never crosses) is NaN or
None, never a warning and never a guess. "Range" is the truth's maximum minus its minimum.

Sources: Wang et al. 2004 (IEEE TIP 13, 600), SSIM; Weigert et al. 2018 (Nat. Methods 15, 1090), the affine fit before
comparing; Nieuwenhuizen et al. 2013 (Nat. Methods 10, 557), ring correlation and 1/7; Koho et al. 2019 (Nat. Commun.
10, 3103), the ring correlation of one image and its calibration; Efron 1979 (Ann. Stat. 7, 1), the bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 1 / 7
"""A ring correlation below this counts as no signal."""
LEAST_FRC_PX = 16
"""Smaller images have too few rings for a correlation curve."""
LEAST_SSIM_PX = 11
"""Size of the window of SSIM."""
RESAMPLES = 2000
CONFIDENCE = 0.95
_SSIM_SIGMA_PX = 1.5
_KOHO = (0.95988146, 0.97979108, 13.90441896, 0.55146136)
"""a, b, c, d of a * exp(c * (x - b)) + d: one-image against two-image ring correlation, fitted by Koho et al."""

Array = NDArray[Any]
Double = NDArray[np.float64]


def psnr(prediction: Array, truth: Array) -> float:
    """Peak signal to noise, dB: 10 log10(range^2 / MSE), any shape and real dtype.

    The peak is the truth's range. Infinite for equal arrays, NaN for a flat truth. Raises ValueError for shapes that
    differ.
    """
    return _decibels(nrmse(prediction, truth))


def nrmse(prediction: Array, truth: Array) -> float:
    """Root mean square error over the truth's range; NaN for a flat truth. Raises ValueError for shapes that differ."""
    return _nrmse(*_doubles(prediction, truth))


def ssim(prediction: Array, truth: Array) -> float:
    """Mean structural similarity of planes (y, x) or stacks (..., y, x), plane by plane, at most 1.

    Gaussian weights of sigma 1.5 px, K 0.01 and 0.03, the truth's range over all planes as dynamic range (Wang et al.
    2004). NaN for a flat truth and for planes narrower than 11 px. Raises ValueError for shapes that differ.
    """
    predicted, true = _doubles(prediction, truth)
    if _is_flat(true) or true.ndim < 2 or min(true.shape[-2:]) < LEAST_SSIM_PX:
        return math.nan
    return _ssim(predicted, true, _range(true))


def pearson(prediction: Array, truth: Array) -> float:
    """Correlation coefficient over all pixels, -1 to 1; NaN where one of both is flat. Raises ValueError for shapes."""
    sums = _Sums()
    sums.add(*_doubles(prediction, truth))
    found = sums.pearson()
    return math.nan if found is None else found


def affine_fit(prediction: Array, truth: Array) -> Double:
    """a * prediction + b with the a, b of least squares to the truth (float64, same shape).

    What remains is the error that no choice of brightness and offset removes ("range-invariant", as Weigert et al.
    2018). A flat prediction becomes the truth's mean. Raises ValueError for shapes that differ.
    """
    predicted, true = _doubles(prediction, truth)
    sums = _Sums()
    sums.add(predicted, true)
    fitted: Double = sums.slope * (predicted - sums.mean_p) + sums.mean_t
    return fitted


def _doubles(prediction: Array, truth: Array) -> tuple[Double, Double]:
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} must have one shape")
    return np.asarray(prediction, np.float64), np.asarray(truth, np.float64)


def _is_flat(image: Double) -> bool:
    return image.size == 0 or float(image.max()) == float(image.min())


def _range(truth: Double) -> float:
    return float(truth.max() - truth.min())


def _nrmse(predicted: Double, true: Double) -> float:
    return math.nan if _is_flat(true) else math.sqrt(float(((predicted - true) ** 2).mean())) / _range(true)


def _decibels(relative_error: float) -> float:
    """PSNR of an NRMSE."""
    return math.inf if relative_error == 0 else -20 * math.log10(relative_error)


def _ssim(predicted: Double, true: Double, span: float) -> float:
    """Of planes (..., y, x) of at least 11 px, with the dynamic range `span`."""
    from skimage import metrics

    similarity: Any = metrics.structural_similarity
    planes = zip(predicted.reshape(-1, *true.shape[-2:]), true.reshape(-1, *true.shape[-2:]), strict=True)
    options = {"gaussian_weights": True, "sigma": _SSIM_SIGMA_PX, "use_sample_covariance": False}
    return float(np.mean([similarity(t, p, data_range=span, **options) for p, t in planes]))


@dataclass(frozen=True, eq=False)
class RingCorrelation:
    """Correlation by spatial frequency: rings of one frequency step, from the lowest to Nyquist."""

    frequency: Double
    """Cycles per px, middle of each ring."""
    correlation: Double
    """-1 to 1."""

    def crossing(self, threshold: float = THRESHOLD) -> float | None:
        """Frequency where the median of three neighbouring rings first falls below the threshold; None if never."""
        if len(self.correlation) < 3:
            return None
        padded = np.pad(self.correlation, 1, mode="edge")
        smooth = np.median([padded[:-2], padded[1:-1], padded[2:]], axis=0)
        below = np.flatnonzero(smooth < threshold)
        if len(below) == 0:
            return None
        k = int(below[0])
        if k == 0:
            return float(self.frequency[0])
        share = (smooth[k - 1] - threshold) / (smooth[k - 1] - smooth[k])
        return float(self.frequency[k - 1] + share * (self.frequency[k] - self.frequency[k - 1]))


def ring_correlation(first_yx: Array, second_yx: Array) -> RingCorrelation | None:
    """Fourier ring correlation of two planes (y, x) of one shape (Nieuwenhuizen et al. 2013, equation 1).

    Means are taken off and a Hann window is laid over both. None where a plane is flat or narrower than 16 px. Raises
    ValueError for shapes that differ or have not two axes.
    """
    first, second = _doubles(first_yx, second_yx)
    if first.ndim != 2:
        raise ValueError(f"a ring correlation needs planes (y, x), not {first.ndim} axes")
    if min(first.shape) < LEAST_FRC_PX or _is_flat(first) or _is_flat(second):
        return None
    return _correlate(first, second, np.hanning)


def _correlate(first: Double, second: Double, window: Any) -> RingCorrelation:
    from scipy import fft

    height, width = first.shape
    taper = window(height)[:, None] * window(width)[None, :]
    a, b = (fft.rfft2((image - image.mean()) * taper) for image in (first, second))
    radius = np.hypot(fft.fftfreq(height)[:, None], fft.rfftfreq(width)[None, :])
    # The half spectrum holds every column but the first (and the last of an even width) for two.
    weight = np.full(a.shape, 2.0)
    weight[:, 0] = 1.0
    if width % 2 == 0:
        weight[:, -1] = 1.0
    step = 1 / min(height, width)
    ring = np.rint(radius / step).astype(int)
    count = min(height, width) // 2 + 1

    def total(values: Double) -> Double:
        sums = np.bincount(ring.ravel(), (weight * values).ravel(), minlength=count)
        return np.asarray(sums[1:count], np.float64)

    cross, power = total((a * b.conj()).real), total(abs(a) ** 2) * total(abs(b) ** 2)
    correlation = np.where(power > 0, cross / np.sqrt(np.where(power > 0, power, 1.0)), 0.0)
    return RingCorrelation(np.arange(1, count) * step, correlation)


def frc_resolution_px(first_yx: Array, second_yx: Array) -> float | None:
    """Resolution in px of two planes: one over the frequency where their ring correlation falls below 1/7.

    None where it never does, or is not defined (see `ring_correlation`). Of a prediction and its truth, which are no
    two recordings of the same thing, it says up to which frequency the prediction follows the truth.
    """
    return two_image_resolution_px(ring_correlation(first_yx, second_yx))


def single_image_resolution_px(image_yx: Array) -> float | None:
    """Resolution in px of one plane (y, x) by Koho et al. 2019; None where the curve never crosses 1/7.

    x, the crossing of `single_image_correlation` over its Nyquist, becomes 2 px / (x f(x)), f the authors' fit to
    two-image measurements. Limits: it takes neighbouring pixels' noise for independent, as on a camera; an image that
    was smoothed, deconvolved or denoised is not so, and comes out finer than it is or without a crossing.
    """
    return koho_resolution_px(single_image_correlation(image_yx))


def single_image_correlation(image_yx: Array) -> RingCorrelation | None:
    """Ring correlation of one plane (y, x) with itself: even rows and columns against odd ones, even-odd against
    odd-even, the mean of both (Koho et al. 2019); frequencies in cycles per pixel of these quarter images.

    None for planes narrower than 32 px or with a flat quarter. Raises ValueError for more or fewer than two axes.
    """
    image = np.asarray(image_yx, np.float64)
    if image.ndim != 2:
        raise ValueError(f"a ring correlation needs a plane (y, x), not {image.ndim} axes")
    if min(image.shape) < 2 * LEAST_FRC_PX:
        return None
    height, width = (n // 2 * 2 for n in image.shape)
    quarters = [image[y:height:2, x:width:2] for y, x in ((0, 0), (1, 1), (0, 1), (1, 0))]
    if any(_is_flat(quarter) for quarter in quarters):
        return None
    return mean_correlation([_correlate(quarters[k], quarters[k + 1], np.hamming) for k in (0, 2)])


def mean_correlation(curves: Sequence[RingCorrelation | None]) -> RingCorrelation | None:
    """Mean of curves of images of one size, those that are None left out; None without any."""
    known = [curve for curve in curves if curve is not None]
    if not known:
        return None
    return RingCorrelation(known[0].frequency, np.mean([curve.correlation for curve in known], axis=0))


def two_image_resolution_px(curve: RingCorrelation | None) -> float | None:
    """One over the frequency where the curve falls below 1/7, px; None where it never does."""
    crossing = None if curve is None else curve.crossing()
    return None if crossing is None else 1 / crossing


def koho_resolution_px(curve: RingCorrelation | None) -> float | None:
    """Calibrated resolution, px, of a curve of `single_image_correlation`; None where it never falls below 1/7."""
    crossing = None if curve is None else curve.crossing()
    if crossing is None:
        return None
    a, b, c, d = _KOHO
    x = 2 * crossing
    return 2 / (x * (a * math.exp(c * (x - b)) + d))


@dataclass(frozen=True)
class Scores:
    """All that is said of one prediction; None where it is not defined. `_fit`: after `affine_fit`."""

    psnr_db: float | None
    ssim: float | None
    nrmse: float | None
    psnr_fit_db: float | None
    ssim_fit: float | None
    nrmse_fit: float | None
    pearson: float | None
    frc_px: float | None
    frc_single_px: float | None


NO_SCORES = Scores(*(None,) * 9)

Planes = Callable[[], Iterable[tuple[Array, Array]]]
"""Planes (y, x) of prediction and truth, all of one shape, afresh at every call: an image need not fit in memory."""


def measure(prediction_yx: Array, truth_yx: Array) -> Scores:
    """All scores of one plane (y, x). Infinite PSNR (an exact match) is None, and its NRMSE 0."""
    return measure_planes(lambda: [(prediction_yx, truth_yx)])


def measure_planes(planes: Planes) -> Scores:
    """All scores of a stack as one image: one range, one affine fit, mean SSIM of planes, FRC of their mean curves.

    Passes over the planes twice. Raises ValueError without planes and for shapes that differ.
    """
    sums = _Sums()
    for prediction, truth in planes():
        sums.add(*_doubles(prediction, truth))
    if sums.count == 0:
        raise ValueError("no planes to measure")
    ssims: list[tuple[float, float]] = []
    curves: list[tuple[RingCorrelation | None, RingCorrelation | None]] = []
    fit_error = 0.0
    for prediction, truth in planes():
        predicted, true = _doubles(prediction, truth)
        fitted = sums.slope * (predicted - sums.mean_p) + sums.mean_t
        fit_error += float(((fitted - true) ** 2).sum())
        if sums.span > 0 and min(true.shape) >= LEAST_SSIM_PX:
            ssims.append((_ssim(predicted, true, sums.span), _ssim(fitted, true, sums.span)))
        curves.append((ring_correlation(predicted, true), single_image_correlation(predicted)))
    errors = [math.sqrt(e / sums.count) / sums.span if sums.span > 0 else None for e in (sums.error, fit_error)]
    plain_db, fit_db = (None if not e else _decibels(e) for e in errors)
    plain_ssim, fit_ssim = (float(np.mean(v)) for v in zip(*ssims, strict=True)) if ssims else (None, None)
    two_image, one_image = (mean_correlation(c) for c in zip(*curves, strict=True))
    return Scores(
        *(plain_db, plain_ssim, errors[0], fit_db, fit_ssim, errors[1], sums.pearson()),
        *(two_image_resolution_px(two_image), koho_resolution_px(one_image)),
    )


class _Sums:
    """Ranges, means and moments of predictions and truths, plane by plane; exact against large offsets (Chan 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.error = self.mean_p = self.mean_t = 0.0
        self._pp = self._tt = self._pt = 0.0
        self._ends_p, self._ends_t = (math.inf, -math.inf), (math.inf, -math.inf)

    def add(self, predicted: Double, true: Double) -> None:
        """Take a plane into account."""
        n, old = predicted.size, self.count
        self.count += n
        self.error += float(((predicted - true) ** 2).sum())
        self._ends_p = (min(self._ends_p[0], float(predicted.min())), max(self._ends_p[1], float(predicted.max())))
        self._ends_t = (min(self._ends_t[0], float(true.min())), max(self._ends_t[1], float(true.max())))
        mean_p, mean_t = float(predicted.mean()), float(true.mean())
        p, t = predicted - mean_p, true - mean_t
        dp, dt = mean_p - self.mean_p, mean_t - self.mean_t
        share = n * old / self.count
        self._pp += float((p * p).sum()) + dp * dp * share
        self._tt += float((t * t).sum()) + dt * dt * share
        self._pt += float((p * t).sum()) + dp * dt * share
        self.mean_p += dp * n / self.count
        self.mean_t += dt * n / self.count

    @property
    def span(self) -> float:
        """Range of the truth."""
        return self._ends_t[1] - self._ends_t[0]

    @property
    def slope(self) -> float:
        """Of the least-squares line from prediction to truth; 0 for a flat prediction."""
        return self._pt / self._pp if self._ends_p[0] < self._ends_p[1] and self._pp > 0 else 0.0

    def pearson(self) -> float | None:
        """None where one of both is flat."""
        norm = math.sqrt(self._pp) * math.sqrt(self._tt)
        flat = self._ends_p[0] == self._ends_p[1] or self.span == 0 or norm == 0
        return None if flat else min(1.0, max(-1.0, self._pt / norm))


@dataclass(frozen=True)
class Mean:
    """A mean over images and the interval that holds it with 95 % confidence (None for fewer than two)."""

    mean: float
    low: float | None
    high: float | None
    count: int


def bootstrap_mean(values: Array, seed: int = 0, *, resamples: int = RESAMPLES) -> Mean | None:
    """Mean of (n,) numbers and its 95 % percentile bootstrap interval; None without any.

    The same numbers and seed give the same interval (Philox).
    """
    numbers = np.asarray(values, np.float64).ravel()
    if numbers.size == 0:
        return None
    mean = float(numbers.mean())
    if numbers.size == 1:
        return Mean(mean, None, None, 1)
    rng = np.random.Generator(np.random.Philox(seed))
    # In runs of bounded memory; one stream of draws, so the runs change nothing.
    run = max(1, 2**22 // numbers.size)
    means = [
        numbers[rng.integers(0, numbers.size, (min(run, resamples - k), numbers.size))].mean(1)
        for k in range(0, resamples, run)
    ]
    tail = 50 * (1 - CONFIDENCE)
    low, high = (float(v) for v in np.percentile(np.concatenate(means), (tail, 100 - tail)))
    return Mean(mean, low, high, int(numbers.size))
