"""What the power spectrum of an image tells of the width of its blur: which widths explain it, and which do not.

Invariant: pure functions of square tiles; every width on a fixed grid is fitted, so a claim ("wider than 6 px") is made
by comparing the best fit that keeps to it with the best of all, never from one fitted number alone.

The model of the power at frequency f is that of `blind`: A f^-a T(f, w)^2 S(f)^2 + N, with T the transfer function of
an Airy pattern of FWHM w (Goodman, Introduction to Fourier Optics, 6.4), S that of the pixels and N white noise; the
exponent a is held near 2.25 by a prior (edges give 2: Field 1987, JOSA A 4, 2379; cells in projection fall faster).
Spectra are averaged over tiles (Welch 1967, IEEE Trans. Audio Electroacoust. 15, 70) out to their corners, 0.7 cycles
per pixel: optics of 2 px FWHM pass nothing beyond 0.5, so the corners show the noise even there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.blind import AIRY_FWHM_CUTOFF

Array = NDArray[np.float64]

WIDTHS_PX: Array = np.geomspace(0.5, 28.0, 48)
"""FWHM that are tried."""
EXPONENT = 2.25
EXPONENT_SPREAD = 0.4
MODEL_ERROR = 0.1
"""Relative error that a power law is granted at each frequency."""
_WINDOW_SPREAD = 3.8
"""Values of a spectrum under a Hann window that count as one: (1 + 2 (4/9 + 1/36))^2."""
_TILE_WORTH = 0.9
"""What a tile that overlaps its neighbours by half is worth."""
_ITERATIONS = 25
_LOWEST_TRANSFER = -15.0
"""Of log T: beyond, nothing passes."""
_LINE_FREQUENCY = 0.47
"""Cycles per pixel; beyond, an image within the limits of any model here holds noise alone."""
_STRUCTURE_BELOW = 0.15


@dataclass(frozen=True)
class Spectrum:
    """Mean power of Hann-windowed tiles; white noise of variance v has power v at every frequency."""

    power_yx: Array
    """As fft2 gives it: all of the plane, so that no direction counts more than another."""
    frequency: Array
    """Cycles per pixel of the radial bins, rising to 0.7."""
    power: Array
    """Mean of each bin."""
    samples: Array
    """Independent values in each bin."""
    tiles: int

    @property
    def floor(self) -> float:
        """Power of the noise: the median of the corners."""
        return float(np.median(self.power[self.frequency > 0.5]))

    def structure(self) -> float:
        """By how many standard errors the strongest low frequency stands above the floor."""
        low = self.frequency < _STRUCTURE_BELOW
        floor = self.floor
        if floor <= 0:
            return float("inf") if self.power[low].max() > 0 else 0.0
        return float(((self.power[low] / floor - 1) * np.sqrt(self.samples[low])).max())

    def lines(self) -> float:
        """Largest power beyond 0.47 cycles per pixel over the floor: rows, interlacing and mosaics stand out there."""
        size = self.power_yx.shape[0]
        beyond = _frequency_yx(size) > _LINE_FREQUENCY
        values = self.power_yx[beyond]
        floor = float(np.median(values))
        return float(values.max() / floor) if floor > 0 else 0.0


@dataclass(frozen=True)
class WidthProfile:
    """How well each of `WIDTHS_PX` explains a spectrum."""

    excess: Array
    """Misfit of the best fit of each width over that of the best of all, as a share of the latter; least 0."""
    fwhm_px: float
    """Of the best fit."""
    cutoff_cycles_per_px: float
    """Where the best fit meets the noise; 0.7 where it never does."""

    def least_px(self, level: float) -> float | None:
        """Smallest width whose excess is at most `level`; None where the narrowest explains the spectrum too."""
        return None if self.excess[0] <= level else self._crossing(level, int(np.argmax(self.excess <= level)), -1)

    def most_px(self, level: float) -> float | None:
        """Largest width whose excess is at most `level`; None where the widest explains the spectrum too."""
        last = len(self.excess) - 1 - int(np.argmax(self.excess[::-1] <= level))
        return None if last == len(self.excess) - 1 else self._crossing(level, last, 1)

    def _crossing(self, level: float, inside: int, step: int) -> float:
        low, high = self.excess[inside], self.excess[inside + step]
        share = float((level - low) / (high - low))
        return float(np.exp((1 - share) * _LOG_WIDTHS[inside] + share * _LOG_WIDTHS[inside + step]))


_LOG_WIDTHS: Array = np.log(WIDTHS_PX)


def spectrum_of(tiles: Sequence[Array]) -> Spectrum:
    """Average the power of square tiles of one size; each has its weighted mean taken off first."""
    size = tiles[0].shape[0]
    profile = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2  # Hann, the same from both ends
    window = np.outer(profile, profile)
    total = np.zeros((size, size))
    for values in tiles:
        centred = values - (values * window).sum() / window.sum()
        total += np.abs(np.fft.fft2(centred * window)) ** 2
    power_yx = total / (len(tiles) * (window * window).sum())
    frequency_yx = _frequency_yx(size)
    edges = np.concatenate([np.arange(1.5, 12) / size, np.arange(12.5 / size, 0.7, 2 / 128)])
    index = np.digitize(frequency_yx, edges) - 1
    inside = (index >= 0) & (index < len(edges) - 1)

    def sums(values: Array) -> Array:
        return np.bincount(index[inside], values[inside], len(edges) - 1).astype(np.float64)

    count = sums(np.ones_like(frequency_yx))
    held = count > 0
    worth = 1.0 if len(tiles) == 1 else _TILE_WORTH * len(tiles)
    return Spectrum(
        power_yx=power_yx,
        frequency=sums(frequency_yx)[held] / count[held],
        power=sums(power_yx)[held] / count[held],
        samples=count[held] / 2 * worth / _WINDOW_SPREAD,  # each value is there twice
        tiles=len(tiles),
    )


def _frequency_yx(size: int) -> Array:
    return np.asarray(np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size))))


def profile_widths(spectrum: Spectrum) -> WidthProfile:
    """Fit amplitude, exponent and floor for every width at once (Levenberg-Marquardt on log power, robust weights)."""
    frequency = spectrum.frequency
    log_power = np.log(np.maximum(spectrum.power, 1e-14 * spectrum.power.max()))
    weight = 1 / np.sqrt(1 / spectrum.samples + MODEL_ERROR**2)
    log_transfer = 2 * _log_transfer(frequency)
    problem = _Problem(log_power, weight, np.log(frequency / 0.05), log_transfer)
    floor = float(np.median(log_power[frequency > 0.5]))
    level = np.interp(0.05, frequency, log_power) - log_transfer[:, int(np.argmin(np.abs(frequency - 0.05)))]
    start = np.stack([level, np.full_like(level, EXPONENT), np.full_like(level, floor)], axis=1)
    fitted, cost = problem.solve(start)
    best = int(np.argmin(cost))
    # The 1 keeps a perfect fit (synthetic images) from making every other one infinitely worse.
    excess = (cost - cost[best]) / (cost[best] + 1)
    signal = fitted[best, 0] - fitted[best, 1] * problem.log_frequency + log_transfer[best]
    above = np.flatnonzero(signal > fitted[best, 2])
    return WidthProfile(
        excess=excess,
        fwhm_px=float(np.exp(_LOG_WIDTHS[best] + _parabola(cost, best) * (_LOG_WIDTHS[1] - _LOG_WIDTHS[0]))),
        cutoff_cycles_per_px=float(frequency[above[-1]]) if above.size else float(frequency[0]),
    )


def _parabola(cost: Array, best: int) -> float:
    """Steps from `best` to the minimum of the parabola through it and its neighbours, within half a step."""
    if not 0 < best < len(cost) - 1:
        return 0.0
    before, here, after = cost[best - 1 : best + 2]
    bend = before - 2 * here + after
    return float(np.clip((before - after) / (2 * bend), -0.5, 0.5)) if bend > 0 else 0.0


def _log_transfer(frequency: Array) -> Array:
    """Log of Airy transfer times pixel transfer: (widths, frequencies)."""
    relative = np.clip(frequency[None] * WIDTHS_PX[:, None] / AIRY_FWHM_CUTOFF, 0.0, 1.0)
    transfer = 2 / np.pi * (np.arccos(relative) - relative * np.sqrt(1 - relative**2))
    # A pixel blurs by sinc(fx) sinc(fy): along the diagonal this, along an axis little more.
    pixel = 2 * np.log(np.sinc(frequency / np.sqrt(2)))
    return np.asarray(np.log(np.maximum(transfer, np.exp(_LOWEST_TRANSFER))) + pixel[None])


@dataclass(frozen=True)
class _Problem:
    """The fits of all widths, one a row: parameters are log amplitude, exponent, log floor."""

    log_power: Array
    weight: Array
    log_frequency: Array
    log_transfer: Array

    def _residuals(self, found: Array) -> tuple[Array, Array, Array]:
        """Weighted residuals, share of the signal in the model, and cost (soft L1 and prior)."""
        log_signal = found[:, :1] - found[:, 1:2] * self.log_frequency + self.log_transfer
        model = np.logaddexp(log_signal, found[:, 2:3])
        residuals = (self.log_power - model) * self.weight
        prior = 0.5 * ((found[:, 1] - EXPONENT) / EXPONENT_SPREAD) ** 2
        cost = (np.sqrt(1 + residuals**2) - 1).sum(axis=1) + prior
        return residuals, np.exp(log_signal - model), cost

    def solve(self, start: Array) -> tuple[Array, Array]:
        """Return the parameters and the cost of each row."""
        found, damping = start.copy(), np.full(len(start), 1e-2)
        residuals, share, cost = self._residuals(found)
        for _ in range(_ITERATIONS):
            slopes = np.stack([share, -share * self.log_frequency, 1 - share], axis=2) * self.weight[:, None]
            robust = 1 / np.sqrt(1 + residuals**2)
            curvature = np.einsum("wki,wk,wkj->wij", slopes, robust, slopes)
            gradient = np.einsum("wki,wk,wk->wi", slopes, robust, residuals)
            curvature[:, 1, 1] += 1 / EXPONENT_SPREAD**2
            gradient[:, 1] -= (found[:, 1] - EXPONENT) / EXPONENT_SPREAD**2
            diagonal = np.einsum("wii->wi", curvature)
            damped = curvature + np.einsum("wi,ij->wij", damping[:, None] * diagonal + 1e-6, np.eye(3))
            step = np.linalg.solve(damped, gradient[:, :, None])[:, :, 0]
            tried = found + np.clip(step, -2, 2)
            new_residuals, new_share, new_cost = self._residuals(tried)
            better = new_cost < cost
            found[better], residuals[better], share[better] = tried[better], new_residuals[better], new_share[better]
            cost = np.where(better, new_cost, cost)
            damping = np.where(better, damping / 3, damping * 4)
        return found, cost
