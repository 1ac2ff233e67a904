"""What an image's own spectrum tells: the width of the PSF that blurred it, and its noise against its structure.

Invariant: the estimates depend on the sample planes alone and are the same for the same planes; an estimate that the
data do not support is an InputError, never a default.

The model: a specimen's power falls as a power of the frequency, P(f) = A f^-a |H(f)|^2 + N, with H the transfer
function of the PSF and N the white floor of the noise. A power law is straight in log-log and a transfer function is
not, which tells the two apart; a is held near 2 (edges; Field 1987, JOSA A 4, 2379) by a wide prior.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.optics.measure import FWHM_PER_SIGMA

if TYPE_CHECKING:
    from mrbcr_cli.psf_grid import Psf

Family = Literal["gaussian", "airy"]
Array = NDArray[np.float64]

TILE_PX = 256
MIN_PLANE_PX = 48
MAX_TILES = 96
EXPONENT = 2.0
EXPONENT_SPREAD = 0.7
MODEL_ERROR = 0.15
"""Relative error that the power law itself is granted at each frequency."""
LOWEST_FREQUENCY = 0.015
"""Cycles per pixel; below, the specimen's layout and the tile's window rule."""
LEAST_FWHM_PX = 1.2
MOST_RELATIVE_ERROR = 0.3
HIGH_CONFIDENCE = 0.1
MOST_EXPONENT_OFFSET = 2.5
"""Beyond, the spectrum is no specimen's (ramps, single large spots)."""
LEAST_CUTOFF = 0.05
"""Cycles per pixel; structure that ends below says nothing of a PSF that a microscope could have."""
LEAST_GAIN = 4.0
"""By how much blur must lower the cost of the fit (half a chi-square) to be believed; 4 is beyond the 99 % level."""
AIRY_FWHM_CUTOFF = 1.029
"""FWHM times cut-off frequency of an in-focus Airy pattern: 0.5145 lambda/NA times 2 NA/lambda."""
ADVICE = "give a measured or computed PSF: --method richardson-lucy --psf FILE"
BALANCE_ADVICE = "give the ratio of noise to structure: --balance (usually 1e-4 to 0.1)"


@dataclass(frozen=True)
class BlindEstimate:
    """The in-focus PSF that explains how an image's spectrum falls off."""

    fwhm_px: float
    relative_error: float
    """One standard error of the width over the width, as the fit sees it."""
    confidence: Literal["high", "low"]
    """"high" where the relative error is below 0.1."""
    family: Family
    """The shape whose spectrum fits better."""
    cutoff_cycles_per_px: float
    """Frequency where the specimen's power falls to that of the noise; finer detail is lost (0.5: none)."""
    exponent: float
    """a in the specimen's power f^-a."""
    noise_std: float
    """Of a pixel, in the image's units."""
    tiles: int
    """How many pieces of the image were averaged."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return asdict(self)

    def psf(self) -> Psf:
        """Return the estimated PSF (2-D) on the image's grid."""
        from mrbcr_cli.psf_grid import prepare_psf

        source = f"blind estimate ({self.family}, FWHM {self.fwhm_px:.2f} px)"
        radius = int(np.ceil((3 if self.family == "gaussian" else 6) * self.fwhm_px)) + 1
        offsets = np.arange(-radius, radius + 1)
        # The fitted width is that of the recorded image, so it holds the pixels' own blur already.
        values = _profile(self.family, np.hypot(offsets[:, None], offsets[None]), self.fwhm_px)
        one = (1.0, 1.0, 1.0)
        return prepare_psf(values, source=source, image_scale_zyx_um=one, psf_scale_zyx_um=one, background=0.0)


@dataclass(frozen=True)
class RadialPower:
    """Power spectrum averaged over tiles and directions; white noise of variance v has power v at every frequency."""

    frequency: Array
    """Cycles per pixel, rising, at most 0.5."""
    power: Array
    samples: Array
    """Number of values averaged in each bin."""
    tiles: int
    tile_px: int


@dataclass(frozen=True)
class _Fit:
    family: Family
    log_amplitude: float
    exponent: float
    fwhm_px: float
    floor: float
    cost: float
    relative_error: float
    gain: float


def estimate_psf_width(planes: Sequence[NDArray[Any]]) -> BlindEstimate:
    """Estimate the PSF's in-plane width from sample planes (each (Y, X), any real dtype, the same pixel size).

    The noise is taken to be white: an image that was smoothed, scaled up or compressed with loss misleads the estimate.
    Blur that the specimen itself has (defocus, soft structures) counts as blur.

    Raises InputError when the planes are too small, hold no structure, or show no blur that the fit can tell.
    """
    spectrum = radial_power(planes)
    _refuse_noise(spectrum)
    families: tuple[Family, ...] = ("gaussian", "airy")
    fit = min((_fit(spectrum, family) for family in families), key=lambda found: found.cost)
    if fit.gain < LEAST_GAIN or fit.fwhm_px < LEAST_FWHM_PX:
        raise InputError(f"the image's spectrum shows no blur that could be told from its structure; {ADVICE}")
    cutoff = _cutoff(fit)
    plausible = abs(fit.exponent - EXPONENT) <= MOST_EXPONENT_OFFSET and cutoff >= LEAST_CUTOFF
    if not (plausible and fit.relative_error <= MOST_RELATIVE_ERROR):
        raise InputError(
            f"the image's blur cannot be told from its noise and structure (best guess: {fit.fwhm_px:.1f} px wide, "
            f"uncertain by {100 * min(fit.relative_error, 9.99):.0f} %); {ADVICE}"
        )
    return BlindEstimate(
        fwhm_px=fit.fwhm_px,
        relative_error=fit.relative_error,
        confidence="high" if fit.relative_error < HIGH_CONFIDENCE else "low",
        family=fit.family,
        cutoff_cycles_per_px=cutoff,
        exponent=fit.exponent,
        noise_std=float(np.sqrt(fit.floor)),
        tiles=spectrum.tiles,
    )


def estimate_balance(planes: Sequence[NDArray[Any]], psf: Psf) -> float:
    """Return the noise-to-structure ratio that `classical.Wiener` needs, from sample planes (Y, X) and the PSF.

    The radial power is fitted by A T(f) + N with T = |H|^2 / |G|^2 (for a 3-D PSF its mean along the axial frequency,
    which is what a plane of a stack shows); the balance is N / A, kept within 1e-6 and 10.

    Raises InputError when the planes are too small or hold no structure.
    """
    import torch

    from mrbcr_cli.classical import gradient_power
    from mrbcr_cli.imaging_model import transfer_function

    spectrum = radial_power(planes, BALANCE_ADVICE)
    _refuse_noise(spectrum, BALANCE_ADVICE)
    tile = spectrum.tile_px
    shape = (64, tile, tile) if psf.is_3d else (tile, tile)
    with torch.inference_mode():
        transfer = transfer_function(psf, shape, torch.device("cpu"))
        ratio = transfer.abs().square() / gradient_power(shape, torch.device("cpu")).clamp(min=1e-6)
        plane = (ratio.mean(dim=0) if psf.is_3d else ratio).numpy().astype(np.float64)
    index, used = _bins(tile)
    shape_of_structure = _mean_per_bin(plane, index, used, spectrum.frequency.size)
    low = spectrum.frequency > LOWEST_FREQUENCY
    structure, power = shape_of_structure[low], spectrum.power[low]
    columns = np.stack([structure, np.ones_like(structure)])
    model = power
    for _ in range(30):  # reweighted least squares: errors are relative to the power, which spans decades
        amplitude, floor = _two_parts(columns / model, power / model, np.sqrt(spectrum.samples[low].clip(1, 400)))
        model = np.maximum(amplitude * structure + floor, 1e-3 * power)
    if amplitude <= 0:
        raise InputError(f"the image shows nothing but noise to this PSF; {BALANCE_ADVICE}")
    return float(np.clip(floor / amplitude, 1e-6, 10.0))


def _two_parts(columns: Array, target: Array, weight: Array) -> tuple[float, float]:
    from scipy.optimize import nnls

    scale = np.abs(columns).max(axis=1)
    found, _ = nnls((columns / scale[:, None] * weight).T, target * weight)
    return float(found[0] / scale[0]), float(found[1] / scale[1])


def radial_power(planes: Sequence[NDArray[Any]], advice: str = ADVICE) -> RadialPower:
    """Return the mean power spectrum of Hann-windowed tiles of the planes; only the most varied tiles if many.

    `advice` ends the error messages. Raises InputError for planes below 48 pixels and for values that are not finite.
    """
    if not planes:
        raise InputError(f"there is no plane to estimate from; {advice}")
    smallest = min(min(plane.shape) for plane in planes)
    if smallest < MIN_PLANE_PX:
        raise InputError(f"planes of {smallest} pixels are too small to estimate from; {advice}")
    tile = min(TILE_PX, smallest - smallest % 2)
    corners = [
        (number, y, x)
        for number, plane in enumerate(planes)
        for y in _starts(plane.shape[0], tile)
        for x in _starts(plane.shape[1], tile)
    ]
    if len(corners) > MAX_TILES:
        spread = [float(np.var(planes[n][y : y + tile, x : x + tile].astype(np.float64))) for n, y, x in corners]
        corners = [corners[k] for k in sorted(np.argsort(spread, kind="stable")[-MAX_TILES:])]
    profile = np.hanning(tile + 1)[:-1]
    window = np.outer(profile, profile)
    total = np.zeros((tile, tile // 2 + 1))
    for number, y, x in corners:
        values = planes[number][y : y + tile, x : x + tile].astype(np.float64)
        if not np.isfinite(values).all():
            raise InputError(f"the sampled planes hold NaN or infinite values; {advice}")
        values -= (values * window).sum() / window.sum()
        total += np.abs(np.fft.rfft2(values * window)) ** 2
    total /= len(corners) * (window * window).sum()
    index, used = _bins(tile)
    count = tile // 4
    frequency = np.hypot(np.fft.fftfreq(tile)[:, None], np.fft.rfftfreq(tile)[None])
    return RadialPower(
        frequency=_mean_per_bin(frequency, index, used, count),
        power=_mean_per_bin(total, index, used, count),
        samples=np.bincount(index[used], minlength=count).astype(np.float64) * len(corners),
        tiles=len(corners),
        tile_px=tile,
    )


def _starts(size: int, tile: int) -> list[int]:
    """Return evenly spread starts of the fewest tiles that cover `size`."""
    return [int(start) for start in np.linspace(0, size - tile, -(-size // tile))]


def _bins(tile: int) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return the radial bin of each value of rfft2, and which lie within 0.5 cycles per pixel."""
    frequency = np.hypot(np.fft.fftfreq(tile)[:, None], np.fft.rfftfreq(tile)[None])
    count = tile // 4
    index = np.floor(frequency * 2 * count).astype(np.intp)
    return index, index < count


def _mean_per_bin(values: Array, index: NDArray[np.intp], used: NDArray[np.bool_], count: int) -> Array:
    totals = np.bincount(index[used], values[used], count)
    return np.asarray(totals / np.bincount(index[used], minlength=count))


def _refuse_noise(spectrum: RadialPower, advice: str = ADVICE) -> None:
    """Raise InputError where no frequency stands out of the floor."""
    low = spectrum.power[spectrum.frequency > LOWEST_FREQUENCY]
    if not low.max() > 0:
        raise InputError(f"the image is constant: nothing to estimate from; {advice}")
    quarter = max(2, low.size // 4)
    if low[:quarter].mean() < 1.5 * np.median(low[-quarter:]):
        raise InputError(f"the image shows noise but no structure to estimate from; {advice}")


def _fit(spectrum: RadialPower, family: Family) -> _Fit:
    """Fit amplitude, exponent, width and floor to the logarithm of the power, from several starting widths."""
    from scipy.optimize import least_squares

    keep = (spectrum.frequency > LOWEST_FREQUENCY) & (spectrum.power > 0)
    frequency, log_power = spectrum.frequency[keep], np.log(spectrum.power[keep])
    # A Hann window leaves about half of the values independent.
    weight = 1 / np.sqrt(2 / spectrum.samples[keep] + MODEL_ERROR**2)
    log_floor = float(np.median(log_power[-max(2, log_power.size // 8) :]))

    def residuals(width_px: float, amplitude: float, exponent: float, floor: float) -> Array:
        log_signal = amplitude - exponent * np.log(frequency / 0.05) + 2 * _log_transfer(family, frequency, width_px)
        misfit = (log_power - np.logaddexp(log_signal, floor)) * weight
        return np.append(misfit, (exponent - EXPONENT) / EXPONENT_SPREAD)

    def solve(function: Callable[[Array], Array], start: list[float]) -> Any:
        return least_squares(function, start, loss="soft_l1", x_scale=[0.3, 1.0, 0.5, 0.3][-len(start) :])

    level = float(np.interp(0.05, frequency, log_power))
    starts = [
        [np.log(width), level - 2 * float(_log_transfer(family, np.array([0.05]), width)[0]), EXPONENT, log_floor]
        for width in (1.2, 2.5, 4.0, 7.0, 12.0)
    ]
    found = min((solve(lambda t: residuals(_width(t[0]), *t[1:]), start) for start in starts), key=lambda r: r.cost)
    sharp = solve(lambda t: residuals(0.0, *t), [level, EXPONENT, log_floor])
    information = found.jac.T @ found.jac
    variance = float(np.linalg.pinv(information)[0, 0]) if information[0, 0] > 1e-9 else float("inf")
    return _Fit(
        family=family,
        log_amplitude=float(found.x[1]),
        exponent=float(found.x[2]),
        fwhm_px=_width(found.x[0]),
        floor=float(np.exp(found.x[3])),
        cost=float(found.cost),
        relative_error=float(np.sqrt(variance)),
        gain=float(sharp.cost - found.cost),
    )


def _width(log_width: float) -> float:
    """Return a FWHM in pixels that stays within what a tile can show."""
    return float(np.exp(np.clip(log_width, np.log(0.2), np.log(100.0))))


def _log_transfer(family: Family, frequency: Array, fwhm_px: float) -> Array:
    """Return log |H| of a PSF of this width (0: no blur) at `frequency` in cycles per pixel; at least -40."""
    if fwhm_px == 0:
        return np.zeros_like(frequency)
    if family == "gaussian":
        return np.asarray(np.maximum(-2 * (np.pi * fwhm_px / FWHM_PER_SIGMA * frequency) ** 2, -40.0))
    # Incoherent transfer function of a circular aperture (Goodman, Introduction to Fourier Optics, 6.4).
    relative = np.clip(frequency * fwhm_px / AIRY_FWHM_CUTOFF, 0.0, 1.0)
    transfer = 2 / np.pi * (np.arccos(relative) - relative * np.sqrt(1 - relative**2))
    return np.asarray(np.log(np.maximum(transfer, np.exp(-40.0))))


def _profile(family: Family, distance_px: Array, fwhm_px: float) -> Array:
    """Return the PSF of this family and width at `distance_px` from its centre, 1 at the centre."""
    if family == "gaussian":
        return np.asarray(np.exp(-0.5 * (distance_px * FWHM_PER_SIGMA / fwhm_px) ** 2))
    from scipy.special import j1

    # (2 J1(v) / v)^2 with v = pi * cut-off * distance.
    v = np.maximum(np.pi * AIRY_FWHM_CUTOFF / fwhm_px * distance_px, 1e-9)
    return np.asarray((2 * j1(v) / v) ** 2)


def _cutoff(fit: _Fit) -> float:
    frequency = np.linspace(LOWEST_FREQUENCY, 0.5, 500)
    log_signal = fit.log_amplitude - fit.exponent * np.log(frequency / 0.05)
    log_signal += 2 * _log_transfer(fit.family, frequency, fit.fwhm_px)
    above = log_signal > np.log(fit.floor)
    return float(frequency[above][-1]) if above.any() else LOWEST_FREQUENCY
