"""Richardson-Lucy and Wiener that know the true PSF, background and noise of an image: the peers of a network.

Invariant: light is in photo-electrons with the background in it, in and out; the peers are given what a user never
knows exactly, and every doubt goes to their benefit.

Sources: Snyder, Hammoud and White 1993 (J. Opt. Soc. Am. A 10, 1014), read noise in Richardson-Lucy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.classical import RichardsonLucy, Wiener
from mrbcr_cli.intensity import IntensityRange
from mrbcr_cli.metrics import affine_fit, psnr
from mrbcr_cli.optics.measure import FWHM_PER_SIGMA
from mrbcr_cli.psf_grid import Psf

ITERATIONS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200)
BALANCES = tuple(float(f"{10.0 ** (k / 3):.3g}") for k in range(-13, 7))
"""4.64e-5 to 100, three a decade."""

Image = NDArray[np.float32]
Kind = Literal["richardson-lucy", "wiener"]
KINDS: tuple[Kind, ...] = ("richardson-lucy", "wiener")


@dataclass(frozen=True)
class Setting:
    """One way to run an explicit method."""

    kind: Kind
    value: float
    """Iterations, or the Wiener balance."""
    blurred: bool
    """Whether the result is shown through the target's Gaussian, at its resolution."""

    def text(self) -> str:
        """In words."""
        count = f"{self.value:.0f} iteration{'s' * (self.value != 1)}"
        what = count if self.kind == "richardson-lucy" else f"balance {self.value:.3g}"
        return what + (" + target's Gaussian" if self.blurred else "")


_VALUES: dict[Kind, tuple[float, ...]] = {"richardson-lucy": tuple(map(float, ITERATIONS)), "wiener": BALANCES}
ALL_SETTINGS: dict[Kind, tuple[Setting, ...]] = {
    kind: tuple(Setting(kind, value, blurred) for blurred in (False, True) for value in _VALUES[kind]) for kind in KINDS
}
"""Every setting tried: as it is, and at the target's resolution."""


@dataclass(frozen=True, eq=False)
class Problem:
    """An image to deconvolve and all that is true of it."""

    electrons_yx: Image
    psf_yx: NDArray[Any]
    """Odd sizes, origin in the middle, not negative, sum 1."""
    background_e: float
    """Electrons a pixel that the specimen did not emit."""
    read_noise_e: float
    target_fwhm_px: float


def richardson_lucy(
    electrons_yx: Image, psf_yx: NDArray[Any], background_e: float, iterations: Sequence[int], read_noise_e: float = 0.0
) -> list[Image]:
    """Estimates (y, x; float32 electrons, background included) after each number of iterations (ascending, from 1).

    Read noise: its variance is added to data and model, which makes nearly a Poisson variable of them (Snyder et al.
    1993), and taken off again. `psf_yx`: odd, not negative, sum 1; `background_e`: 0 or more.
    """
    variance = read_noise_e**2
    data = np.asarray(electrons_yx, np.float32) + np.float32(variance)
    high = max(float(data.max()), variance + background_e, 1e-6)
    method = RichardsonLucy(_psf(psf_yx), background=background_e + variance)
    found = method.snapshots(data[None], IntensityRange(0.0, high), iterations)
    return [image[0] - np.float32(variance) for image in found]


def wiener(electrons_yx: Image, psf_yx: NDArray[Any], balances: Sequence[float]) -> list[Image]:
    """Estimates (y, x; float32 electrons, background included) for each balance (above 0); may fall below 0."""
    data = np.asarray(electrons_yx, np.float32)[None]
    psf, unused = _psf(psf_yx), IntensityRange(0.0, 1.0)
    return [Wiener(psf, balance).restore(data, unused)[0] for balance in balances]


def through_gaussian(image_yx: Image, fwhm_px: float) -> Image:
    """The image (y, x) through a Gaussian sampled at the pixels, as the target is; beyond its border it is mirrored."""
    from scipy import ndimage

    blurred: Image = ndimage.gaussian_filter(image_yx, fwhm_px / FWHM_PER_SIGMA, mode="reflect", truncate=5.0)
    return blurred


def run_settings(problem: Problem, settings: Sequence[Setting]) -> dict[Setting, Image]:
    """The estimates (y, x; float32 electrons) of any settings, each method run as rarely as it can be."""
    plain: dict[tuple[Kind, float], Image] = {}
    counts = sorted({round(s.value) for s in settings if s.kind == "richardson-lucy"})
    if counts:
        found = richardson_lucy(
            problem.electrons_yx, problem.psf_yx, problem.background_e, counts, problem.read_noise_e
        )
        plain |= {("richardson-lucy", float(n)): image for n, image in zip(counts, found, strict=True)}
    balances = sorted({s.value for s in settings if s.kind == "wiener"})
    found = wiener(problem.electrons_yx, problem.psf_yx, balances)
    plain |= {("wiener", balance): image for balance, image in zip(balances, found, strict=True)}
    images = {}
    for setting in settings:
        image = plain[setting.kind, setting.value]
        images[setting] = through_gaussian(image, problem.target_fwhm_px) if setting.blurred else image
    return images


Criterion = Literal["psnr_db", "psnr_fit_db"]
CRITERIA: tuple[Criterion, ...] = ("psnr_db", "psnr_fit_db")
"""What settings are chosen by: PSNR as it is, and after the affine fit, which forgives brightness and offset."""
Tried = Mapping[Setting, tuple[float, float]]
"""PSNR and PSNR after the fit (dB) of settings on one image."""


def try_settings(
    estimates: Mapping[Setting, NDArray[Any]], truth_yx: NDArray[Any]
) -> dict[Setting, tuple[float, float]]:
    """Both criteria of every estimate, in any unit that it shares with the truth."""
    return {
        setting: (psnr(image, truth_yx), psnr(affine_fit(image, truth_yx), truth_yx))
        for setting, image in estimates.items()
    }


@dataclass(frozen=True)
class Choice:
    """The settings that a set of images asks for, by one criterion: one for all, and each image's own (an oracle)."""

    criterion: Criterion
    common: Setting
    """Highest mean over the set."""
    own: tuple[Setting, ...]
    """One per image, in order."""
    means_db: dict[Setting, float]
    """Of every setting tried."""

    def at_edge(self) -> bool:
        """Whether the common setting is the first or last of those tried, so that the best may lie beyond."""
        values = [s.value for s in self.means_db if s.blurred == self.common.blurred]
        return self.common.value in (values[0], values[-1])


def choose(kind: Kind, tried: Sequence[Tried], criterion: Criterion = "psnr_db") -> Choice:
    """Choose among `ALL_SETTINGS[kind]`; an image whose truth is flat (NaN) has no say and gets the common setting.

    Raises ValueError without images.
    """
    settings, column = ALL_SETTINGS[kind], CRITERIA.index(criterion)
    table = np.array([[image[s][column] for s in settings] for image in tried])
    if table.size == 0:
        raise ValueError("no images to choose a setting by")
    usable = np.isfinite(table).all(1)
    means = table[usable].mean(0) if usable.any() else np.zeros(len(settings))
    common = int(means.argmax())
    own = [int(row.argmax()) if good else common for row, good in zip(table, usable, strict=True)]
    by_setting = {s: float(mean) for s, mean in zip(settings, means, strict=True)}
    return Choice(criterion, settings[common], tuple(settings[k] for k in own), by_setting)


def _psf(psf_yx: NDArray[Any]) -> Psf:
    return Psf(np.asarray(psf_yx, np.float32)[None], "the true PSF")
