"""Metrics: their formulas, what they do not change under, and what they say where nothing is defined."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import fft, ndimage
from skimage.metrics import structural_similarity

from mrbcr_cli.metrics import (
    affine_fit,
    bootstrap_mean,
    frc_resolution_px,
    measure,
    measure_planes,
    nrmse,
    pearson,
    psnr,
    ring_correlation,
    single_image_resolution_px,
    ssim,
)


def pair(shape: tuple[int, ...] = (64, 72), seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """A prediction and its truth: smooth structures, and noise on one of them."""
    rng = np.random.default_rng(seed)
    sigma = (0,) * (len(shape) - 2) + (1.5, 1.5)
    truth = 100 + 900 * ndimage.gaussian_filter(rng.random(shape), sigma)
    return truth + rng.normal(0, 10, shape), truth


def band_limited(cutoff: float, size: int = 256, seed: int = 0) -> NDArray[np.float64]:
    """White noise below `cutoff` (cycles per px), nothing above; standard deviation 1."""
    spectrum = fft.rfft2(np.random.default_rng(seed).normal(size=(size, size)))
    spectrum[np.hypot(fft.fftfreq(size)[:, None], fft.rfftfreq(size)[None, :]) > cutoff] = 0
    image = fft.irfft2(spectrum, s=(size, size))
    return np.asarray(image / image.std())


def test_psnr_and_nrmse_follow_their_formulas() -> None:
    prediction, truth = pair()
    span = truth.max() - truth.min()
    error = np.mean((prediction - truth) ** 2)
    assert psnr(prediction, truth) == pytest.approx(10 * math.log10(span**2 / error))
    assert nrmse(prediction, truth) == pytest.approx(math.sqrt(error) / span)
    assert psnr(truth + 0.1 * span, truth) == pytest.approx(20.0)


def test_ssim_is_that_of_skimage() -> None:
    prediction, truth = pair()
    expected = structural_similarity(
        truth,
        prediction,
        data_range=truth.max() - truth.min(),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert ssim(prediction, truth) == pytest.approx(expected)


def test_pearson_is_that_of_numpy() -> None:
    prediction, truth = pair()
    assert pearson(prediction, truth) == pytest.approx(np.corrcoef(prediction.ravel(), truth.ravel())[0, 1])
    assert pearson(-truth, truth) == pytest.approx(-1.0)


def test_identical_images() -> None:
    _, truth = pair()
    assert psnr(truth, truth) == math.inf and nrmse(truth, truth) == 0.0
    assert ssim(truth, truth) == pytest.approx(1.0) and pearson(truth, truth) == pytest.approx(1.0)
    scores = measure(truth, truth)
    assert scores.psnr_db is None and scores.nrmse == 0.0 and scores.ssim == pytest.approx(1.0)
    assert scores.nrmse_fit is not None and scores.nrmse_fit < 1e-12
    assert scores.frc_px is None, "equal images agree up to the last frequency"


@pytest.mark.parametrize("flat_truth", [True, False])
def test_flat_images_give_none_and_no_warning(flat_truth: bool) -> None:
    _, image = pair()
    flat = np.full_like(image, 7.0)
    scores = measure(image, flat) if flat_truth else measure(flat, image)
    assert scores.pearson is None and scores.frc_px is None
    if flat_truth:
        assert scores.psnr_db is scores.ssim is scores.nrmse is scores.psnr_fit_db is scores.nrmse_fit is None
        assert math.isnan(psnr(image, flat)) and math.isnan(ssim(image, flat)) and math.isnan(pearson(image, flat))
    else:
        assert scores.frc_single_px is None
        assert np.array_equal(affine_fit(flat, image), np.full_like(image, image.mean()))
        assert scores.nrmse_fit == pytest.approx(image.std() / (image.max() - image.min()))
    both = measure(flat, flat)
    assert both.psnr_db is None and both.pearson is None and both.frc_px is None


@pytest.mark.parametrize(("gain", "offset"), [(3.0, 1e4), (0.01, -5.0), (-2.0, 0.0), (1.0, 1e6)])
def test_invariant_scores_forget_an_affine_map(gain: float, offset: float) -> None:
    prediction, truth = pair()
    before, after = measure(prediction, truth), measure(gain * prediction + offset, truth)
    for name in ("psnr_fit_db", "ssim_fit", "nrmse_fit"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-6)
    assert after.psnr_db is not None and after.psnr_fit_db is not None and after.psnr_db < after.psnr_fit_db
    assert before.pearson is not None and after.pearson == pytest.approx(math.copysign(before.pearson, gain))
    assert after.frc_single_px == pytest.approx(before.frc_single_px, rel=1e-6)


def test_no_affine_map_fits_better() -> None:
    prediction, truth = pair()
    best = nrmse(affine_fit(prediction, truth), truth)
    a, b = np.polyfit(prediction.ravel(), truth.ravel(), 1)
    assert best == pytest.approx(nrmse(a * prediction + b, truth))
    for da, db in ((0.01, 0), (-0.01, 0), (0, 1), (0, -1)):
        assert nrmse((a + da) * prediction + b + db, truth) > best


def test_a_stack_is_one_image() -> None:
    prediction, truth = pair((5, 40, 48))
    whole = measure_planes(lambda: zip(prediction, truth, strict=True))
    assert whole.psnr_db == pytest.approx(psnr(prediction, truth))
    assert whole.ssim == pytest.approx(ssim(prediction, truth))
    assert whole.pearson == pytest.approx(pearson(prediction, truth))
    fitted = affine_fit(prediction, truth)
    assert whole.psnr_fit_db == pytest.approx(psnr(fitted, truth))
    assert whole.ssim_fit == pytest.approx(ssim(fitted, truth))
    assert measure(prediction[0], truth[0]) == measure_planes(lambda: [(prediction[0], truth[0])])
    with pytest.raises(ValueError, match="no planes"):
        measure_planes(lambda: [])


def test_shapes_that_differ_are_refused() -> None:
    image = np.zeros((32, 32))
    for function in (psnr, ssim, nrmse, pearson, affine_fit, ring_correlation, measure):
        with pytest.raises(ValueError, match="one shape"):
            function(image, image[1:])
    with pytest.raises(ValueError, match="planes"):
        ring_correlation(image[0], image[0])
    with pytest.raises(ValueError, match="plane"):
        single_image_resolution_px(image[0])


@pytest.mark.parametrize("cutoff", [0.1, 0.2, 0.35])
def test_frc_finds_the_cut_off(cutoff: float) -> None:
    """Two recordings of one band-limited image: they agree below its cut-off, and above it there is only noise."""
    image, rng = band_limited(cutoff), np.random.default_rng(1)
    first, second = (image + 0.3 * rng.normal(size=image.shape) for _ in range(2))
    found = frc_resolution_px(first, second)
    assert found == pytest.approx(1 / cutoff, rel=0.1)
    narrow = frc_resolution_px(first[:, :150], second[:, :150])
    assert narrow is not None and 1 / narrow == pytest.approx(cutoff, abs=2 / 150), "not square: within two rings"
    assert frc_resolution_px(second, first) == pytest.approx(found)


def test_frc_scales_with_the_image() -> None:
    """The same structure on twice as many pixels has twice the resolution in px."""
    rng = np.random.default_rng(2)
    fine = band_limited(0.1)
    coarse = band_limited(0.2, 128)
    resolutions = []
    for image in (fine, coarse):
        first, second = (image + 0.3 * rng.normal(size=image.shape) for _ in range(2))
        resolutions.append(frc_resolution_px(first, second))
    assert resolutions[0] is not None and resolutions[1] is not None
    assert resolutions[0] / resolutions[1] == pytest.approx(2.0, rel=0.1)


def test_frc_of_noise_and_of_small_images() -> None:
    rng = np.random.default_rng(3)
    noise = [rng.normal(size=(128, 128)) for _ in range(2)]
    found = frc_resolution_px(noise[0], noise[1])
    assert found is not None and found > 30, "noise agrees nowhere"
    assert ring_correlation(noise[0][:15], noise[1][:15]) is None
    assert single_image_resolution_px(noise[0][:31]) is None


@pytest.mark.parametrize("cutoff", [0.08, 0.12, 0.18])
def test_single_image_frc_agrees_with_two_images(cutoff: float) -> None:
    """Koho's calibration brings the one-image curve to the two-image one where camera noise is white."""
    image, rng = band_limited(cutoff, 512), np.random.default_rng(4)
    noisy = image + 0.3 * rng.normal(size=image.shape)
    assert single_image_resolution_px(noisy) == pytest.approx(1 / cutoff, rel=0.25)


def test_bootstrap_is_deterministic_and_covers() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(size=50)
    assert bootstrap_mean(values, 1) == bootstrap_mean(values, 1)
    assert bootstrap_mean(values, 1) != bootstrap_mean(values, 2)
    held = 0
    for _ in range(300):
        found = bootstrap_mean(rng.exponential(size=60), 0, resamples=400)
        assert found is not None and found.low is not None and found.high is not None
        assert found.low < found.mean < found.high and found.count == 60
        held += found.low <= 1.0 <= found.high
    assert 0.88 <= held / 300 <= 0.99


def test_bootstrap_runs_do_not_show() -> None:
    """More numbers than one run of draws holds: the same interval as in one run."""
    values = np.random.default_rng(6).normal(size=5000)
    found = bootstrap_mean(values, 3, resamples=1000)
    rng = np.random.Generator(np.random.Philox(3))
    means = values[rng.integers(0, 5000, (1000, 5000))].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    assert found is not None and found.low == pytest.approx(low) and found.high == pytest.approx(high)


def test_bootstrap_of_few() -> None:
    assert bootstrap_mean(np.array([])) is None
    one = bootstrap_mean(np.array([3.0]))
    assert one is not None and (one.mean, one.low, one.high, one.count) == (3.0, None, None, 1)
    same = bootstrap_mean(np.full(9, 2.0))
    assert same is not None and (same.low, same.high) == (2.0, 2.0)
