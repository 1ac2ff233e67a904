"""Camera statistics on a million pixels, and what no camera has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mrbcr_cli.errors import InputError
from mrbcr_cli.optics.camera import Camera, expose, make_scmos_maps, mean_counts


@pytest.mark.parametrize(
    ("photons", "camera"),
    [
        (50.0, Camera(quantum_efficiency=0.7, gain_adu=2.1, offset_adu=100.0, read_noise_e=1.6)),
        (3.0, Camera(quantum_efficiency=0.9, gain_adu=8.0, offset_adu=400.0, read_noise_e=3.0, dark_e=1.5)),
        (4000.0, Camera(quantum_efficiency=0.5, gain_adu=0.5, offset_adu=0.0, read_noise_e=0.0)),
    ],
)
def test_mean_and_variance(photons: float, camera: Camera) -> None:
    """Within 1 % of gain, offset, read noise and photon count, over 10^6 pixels (1/12 is the rounding)."""
    counts = expose(np.full((1000, 1000), photons), camera, np.random.default_rng(1)).astype(np.float64)
    electrons = camera.quantum_efficiency * photons + camera.dark_e
    assert counts.mean() - camera.offset_adu == pytest.approx(camera.gain_adu * electrons, rel=0.01)
    expected = camera.gain_adu**2 * (electrons + camera.read_noise_e**2) + 1 / 12
    assert counts.var() == pytest.approx(expected, rel=0.01)
    assert float(mean_counts(np.array([photons]), camera)[0]) == pytest.approx(counts.mean(), rel=0.01)


def test_photon_transfer_curve_is_straight() -> None:
    """Variance against mean: slope the gain, intercept the read noise, no curvature."""
    camera = Camera(quantum_efficiency=0.8, gain_adu=1.7, offset_adu=120.0, read_noise_e=2.0)
    rng = np.random.default_rng(2)
    levels = np.linspace(5, 3000, 20)
    means, variances = [], []
    for level in levels:
        counts = expose(np.full(300_000, level), camera, rng).astype(np.float64)
        means.append(counts.mean() - camera.offset_adu)
        variances.append(counts.var())
    slope, intercept = np.polyfit(means, variances, 1)
    assert slope == pytest.approx(camera.gain_adu, rel=0.01)
    assert intercept == pytest.approx(camera.gain_adu**2 * 4.0 + 1 / 12, abs=0.01 * max(variances))
    residual = np.array(variances) - np.polyval([slope, intercept], means)
    assert np.abs(residual).max() < 0.015 * max(variances)


def test_clips_at_the_bit_depth_and_at_zero() -> None:
    bright = expose(np.full(1000, 1e6), Camera(bit_depth=12), np.random.default_rng(0))
    assert bright.dtype == np.uint16 and bright.min() == bright.max() == 4095
    dark = expose(np.zeros(1000), Camera(offset_adu=0.0, read_noise_e=5.0, bit_depth=8), np.random.default_rng(0))
    assert dark.dtype == np.uint8 and dark.min() == 0


def test_same_generator_same_bytes() -> None:
    image = np.random.default_rng(0).random((64, 64)) * 100
    first, again, other = (expose(image, Camera(), np.random.default_rng(s)) for s in (7, 7, 8))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_scmos_maps_show_in_the_statistics_of_each_pixel() -> None:
    camera = Camera(read_noise_e=2.0, offset_adu=100.0, gain_adu=2.0)
    maps = make_scmos_maps(camera, (8, 8), np.random.default_rng(3))
    rng = np.random.default_rng(4)
    frames = np.stack([expose(np.full((8, 8), 20.0), camera, rng, maps) for _ in range(20_000)]).astype(np.float64)
    electrons = 0.8 * 20.0
    assert np.allclose(frames.mean(0), maps.offset_adu + maps.gain_adu * electrons, rtol=0.01)
    expected = maps.gain_adu**2 * (electrons + maps.variance_e2) + 1 / 12
    assert np.allclose(frames.var(0), expected, rtol=0.06)
    assert np.array_equal(maps.crop(slice(2, 4), slice(1, 3)).gain_adu, maps.gain_adu[2:4, 1:3])
    many = make_scmos_maps(camera, (400, 400), np.random.default_rng(5))
    assert float(np.median(np.sqrt(many.variance_e2))) == pytest.approx(2.0, rel=0.05)
    assert float(many.offset_adu.std()) > 0.5 and float(many.gain_adu.std()) > 0.01


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quantum_efficiency": 0.0}, "quantum efficiency"),
        ({"quantum_efficiency": 1.2}, "quantum efficiency"),
        ({"gain_adu": 0.0}, "gain"),
        ({"offset_adu": -1.0}, "offset"),
        ({"read_noise_e": -1.0}, "read noise"),
        ({"dark_e": float("nan")}, "dark"),
        ({"bit_depth": 0}, "bit depth"),
        ({"bit_depth": 32}, "bit depth"),
    ],
)
def test_impossible_cameras(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Camera(**change)


def test_negative_light_is_a_bug_of_the_caller() -> None:
    for image in (np.array([-1.0]), np.array([np.nan])):
        with pytest.raises(ValueError, match="not negative"):
            expose(image, Camera(), np.random.default_rng(0))
