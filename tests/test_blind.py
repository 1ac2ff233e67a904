"""The width of the PSF from the image's own spectrum: right on known blur, refused where nothing can be known."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from scipy import ndimage, signal

from mrbcr_cli.blind import BlindEstimate, estimate_balance, estimate_psf_width, radial_power
from mrbcr_cli.classical import Wiener
from mrbcr_cli.errors import InputError
from mrbcr_cli.intensity import IntensityRange

Array = NDArray[np.float64]


def power_law_specimen(size: int = 320, exponent: float = 2.0, seed: int = 0) -> Array:
    """A positive random image whose power falls as f^-exponent."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = 1
    image = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(size, size))) * frequency ** (-exponent / 2), s=(size, size))
    return (image - image.min()) / (image.max() - image.min())


def photograph(specimen: Array, fwhm_px: float, photons: float, seed: int = 1) -> Array:
    rng = np.random.default_rng(seed)
    blurred = ndimage.gaussian_filter(specimen, fwhm_px / 2.3548, mode="wrap")
    return rng.poisson(photons * blurred / blurred.max()) + 100 + rng.normal(0, 2, blurred.shape)


@pytest.mark.parametrize("photons", [500, 5000])
@pytest.mark.parametrize("exponent", [1.5, 2.5])
def test_widths_of_two_to_six_pixels_are_found(exponent: float, photons: float) -> None:
    specimen = power_law_specimen(exponent=exponent)
    widths = (2, 3, 4, 5, 6)
    found = [estimate_psf_width([photograph(specimen, width, photons)]).fwhm_px for width in widths]
    assert all(later > earlier for earlier, later in pairwise(found))
    errors = [abs(f / w - 1) for f, w in zip(found, widths, strict=True)]
    assert np.median(errors) < 0.1 and max(errors) < 0.3


def test_gain_and_offset_change_nothing() -> None:
    image = photograph(power_law_specimen(), 4, 1000)
    one, other = estimate_psf_width([image]), estimate_psf_width([7 * image - 300])
    assert other.fwhm_px == pytest.approx(one.fwhm_px, rel=1e-3)
    assert other.noise_std == pytest.approx(7 * one.noise_std, rel=1e-2)


def test_integer_planes_and_several_planes_work() -> None:
    images = [np.rint(photograph(power_law_specimen(200, seed=s), 3, 2000)).astype(np.uint16) for s in range(3)]
    found = estimate_psf_width(images)
    assert found.fwhm_px == pytest.approx(3, rel=0.2)
    assert found.tiles == 3 and found.confidence == "high"


@pytest.mark.parametrize("family", ["gaussian", "airy"])
def test_the_estimated_psf_has_the_width_it_says(family: str) -> None:
    estimate = BlindEstimate(5.0, 0.05, "high", family, 0.2, 2.0, 1.0, 4)  # type: ignore[arg-type]
    psf = estimate.psf()
    assert psf.values_zyx.sum() == pytest.approx(1, abs=1e-5) and not psf.is_3d
    profile = psf.values_zyx[0, psf.radius_zyx[1], psf.radius_zyx[2] :]
    half = np.interp(-0.5 * profile[0], -profile[:6], np.arange(6))
    assert 2 * half == pytest.approx(5, rel=0.03)
    assert json.loads(json.dumps(estimate.to_dict()))["fwhm_px"] == 5.0


def test_white_noise_has_the_power_of_its_variance_at_every_frequency() -> None:
    spectrum = radial_power([np.random.default_rng(0).normal(5, 3, (512, 512))])
    assert spectrum.power[2:] == pytest.approx(9, rel=0.25)
    assert np.all(np.diff(spectrum.frequency) > 0)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.random.default_rng(0).poisson(100, (300, 300)), "noise but no structure"),
        (np.full((128, 128), 7), "constant"),
        (np.ones((20, 400)), "too small"),
        (np.full((128, 128), np.nan), "NaN"),
        (photograph(power_law_specimen(), 0.01, 20000), "no blur"),
        (np.add.outer(np.arange(300.0), np.arange(300.0)), "cannot be told|no blur|no structure"),
    ],
    ids=["noise", "constant", "small", "nan", "sharp", "ramp"],
)
def test_what_shows_no_blur_is_refused_with_advice(image: Array, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        estimate_psf_width([image])
    assert "--psf" in str(caught.value)
    with pytest.raises(InputError):
        estimate_psf_width([])


def test_the_estimated_balance_is_near_the_best() -> None:
    truth = power_law_specimen(256)
    psf = BlindEstimate(4.0, 0.05, "high", "gaussian", 0.2, 2.0, 1.0, 4).psf()
    noise = np.random.default_rng(2)
    blurred = signal.fftconvolve(np.pad(truth, 20, mode="wrap"), psf.values_zyx[0], "same")[20:-20, 20:-20]
    for photons in (100, 10000):
        data = noise.poisson(photons * blurred.clip(0)).astype(np.float32)

        def error(balance: float, data: NDArray[np.float32] = data, photons: float = photons) -> float:
            found = Wiener(psf, balance).restore(data[None], IntensityRange(0, 1))[0]
            return float(np.sqrt(np.mean((found / photons - truth)[20:-20, 20:-20] ** 2)))

        balance = estimate_balance([data], psf)
        assert error(balance) < 1.1 * min(error(balance * factor) for factor in (0.1, 0.3, 1, 3, 10))
        assert error(balance) < float(np.sqrt(np.mean((data / photons - truth)[20:-20, 20:-20] ** 2)))


def test_balance_falls_with_the_light() -> None:
    psf = BlindEstimate(3.0, 0.05, "high", "gaussian", 0.2, 2.0, 1.0, 4).psf()
    balances = [estimate_balance([photograph(power_law_specimen(), 3, n)], psf) for n in (50, 500, 5000)]
    assert balances[0] > 3 * balances[1] > 9 * balances[2]


def test_real_sources_blurred_on_purpose(shared: Path) -> None:
    """Median relative error below 15 %; the sources' own blur (1.5 to 2 px) counts as error here."""
    folder = shared / "data" / "train"
    cell = tifffile.imread(folder / "xyc_16bit__cell_dna_nup_mts_actin.tif").astype(float)
    sources = [
        cell[1],
        cell[2],
        tifffile.imread(folder / "membrane2d.tif").astype(float),
        tifffile.imread(folder / "pollen.tif")[16].astype(float),
        tifffile.imread(folder / "BPAE_actin.tif")[:680, :].astype(float).reshape(340, 2, 550, 2).mean(axis=(1, 3)),
    ]
    errors = [
        abs(estimate_psf_width([photograph((s - np.percentile(s, 1)).clip(0), width, photons)]).fwhm_px / width - 1)
        for s in sources
        for width in (2, 4, 6)
        for photons in (300, 3000)
    ]
    assert np.median(errors) < 0.15
