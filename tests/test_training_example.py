"""The forward model that the first embedded model was trained with keeps light, resolution and camera statistics."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "training"
SIZE = 192


@pytest.fixture
def fm(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    import forward_model

    yield forward_model
    sys.modules.pop("forward_model")


@pytest.fixture
def specimens(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    import specimens

    yield specimens
    sys.modules.pop("specimens")


def conditions(fm: Any, **changes: Any) -> Any:
    base = fm.Conditions(
        psf=fm.Psf(fwhm_px=3.5),
        haze_fraction=0.0,
        haze_planes=(fm.HazePlane(0.7, 8.0, True), fm.HazePlane(0.3, 25.0, False)),
        peak_electrons=1000.0,
        background_electrons=50.0,
        read_noise_e=1.5,
    )
    return replace(base, **changes)


def plane_of_points(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    plane = np.zeros((SIZE, SIZE), np.float32)
    plane[rng.integers(0, SIZE, 60), rng.integers(0, SIZE, 60)] = 1.0
    return plane


def full_width_px(profile: np.ndarray) -> float:
    """FWHM of a peak centred on index 0 of a periodic profile, by linear interpolation."""
    half = profile[0] / 2
    below = int(np.argmax(profile < half))
    return 2 * float(below - (half - profile[below]) / (profile[below - 1] - profile[below]))


@pytest.mark.parametrize("fwhm_px", [2.0, 3.3, 6.0])
@pytest.mark.parametrize("airy_weight", [0.0, 0.4, 1.0])
def test_psf_has_unit_sum_and_the_stated_width(fm: Any, fwhm_px: float, airy_weight: float) -> None:
    otf = fm.psf_otf(512, fm.Psf(fwhm_px, airy_weight))
    assert complex(otf[0, 0]) == pytest.approx(1.0, abs=1e-5)
    # Zero-padding the spectrum samples the PSF eight times finer along x.
    fine = np.fft.irfft(np.pad(otf.sum(0) - 0.5 * otf[256], (0, 7 * 256)))
    assert full_width_px(fine) / 8 == pytest.approx(fwhm_px, rel=0.04)


def test_pupil_transfers_nothing_beyond_its_cut_off(fm: Any) -> None:
    psf = fm.Psf(4.0, defocus_waves=0.1, coma_waves=0.05)
    otf = np.fft.rfft2(fm.pupil_psf(256, psf))
    fy, fx = np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None]
    outside = np.hypot(fy, fx) > 1.05 * fm.AIRY_FWHM_TIMES_CUTOFF / 4.0
    assert np.abs(otf[outside]).max() < 1e-4


def test_in_focus_light_is_the_same_in_recording_and_target(fm: Any) -> None:
    field = fm.make_field(plane_of_points(), [], conditions(fm, haze_planes=()), np.random.default_rng(1))
    recorded, wanted = float(field.mean.sum()), float(field.target.sum())
    assert recorded == pytest.approx(wanted, rel=1e-3)
    assert field.target.std() > 1.5 * field.mean.std()


def test_haze_carries_its_share_and_leaves_only_a_constant_in_the_target(fm: Any) -> None:
    plane = plane_of_points()
    others = [plane_of_points(1), plane_of_points(2)]
    with_haze = conditions(fm, haze_fraction=0.4)
    haze = fm.haze_map(others, SIZE, with_haze, float(plane.sum()))
    assert float(haze.sum() / (haze.sum() + plane.sum())) == pytest.approx(0.4, abs=1e-3)
    assert haze.min() >= 0
    hazy = fm.make_field(plane, others, with_haze, np.random.default_rng(1), keep_optics=True)
    clear = fm.make_field(plane, others, conditions(fm), np.random.default_rng(1))
    hazy_object = hazy.target - np.median(hazy.target)
    clear_object = clear.target - np.median(clear.target)
    assert np.corrcoef(hazy_object.ravel(), clear_object.ravel())[0, 1] > 0.9999
    assert hazy.haze.min() == 0
    assert hazy.target.min() > clear.target.min()


def test_target_is_never_finer_than_its_stated_resolution(fm: Any) -> None:
    assert fm.target_fwhm_px(2.0) == 1.6
    assert fm.target_fwhm_px(6.0) == 3.0
    point = np.zeros((SIZE, SIZE), np.float32)
    point[0, 0] = 1.0
    setting = conditions(fm, psf=fm.Psf(6.0), haze_planes=(), background_electrons=0.0)
    field = fm.make_field(point, [], setting, np.random.default_rng(0))
    assert full_width_px(field.target[0]) == pytest.approx(3.0, rel=0.03)
    assert field.target.min() >= 0


def test_camera_has_the_mean_and_variance_of_its_noise(fm: Any) -> None:
    setting = conditions(fm, read_noise_e=3.0)
    noisy = fm.record(np.full((500, 500), 120.0, np.float32), setting, np.random.default_rng(0))
    assert noisy.mean() == pytest.approx(120.0, rel=0.01)
    assert noisy.var() == pytest.approx(120.0 + 9.0, rel=0.02)


def test_pairs_are_normalised_by_one_map_and_reproduce(fm: Any) -> None:
    field = fm.make_field(plane_of_points(), [], conditions(fm, haze_planes=()), np.random.default_rng(3))
    whole = [fm.cut_patch(field, SIZE, np.random.default_rng(5), jitter=False, corner_yx=(0, 0)) for _ in range(2)]
    assert np.array_equal(whole[0][0], whole[1][0])
    noisy, target = whole[0]
    assert np.percentile(noisy, 0.1) == pytest.approx(0.0, abs=0.02)
    assert np.percentile(noisy, 99.9) == pytest.approx(1.0, abs=0.05)
    in_electrons = target * (field.high - field.low) + field.low
    assert np.allclose(in_electrons, field.target, atol=1e-2)


def test_a_field_without_light_asks_for_a_constant(fm: Any) -> None:
    nothing = np.zeros((SIZE, SIZE), np.float32)
    setting = conditions(fm, haze_fraction=0.5, background_electrons=0.0, read_noise_e=0.0)
    field = fm.make_field(nothing, [nothing, nothing], setting, np.random.default_rng(0))
    noisy, target = fm.cut_patch(field, 64, np.random.default_rng(0))
    assert np.isfinite(noisy).all()
    assert np.ptp(target) == 0


def test_draws_lie_in_the_domain(fm: Any) -> None:
    rng = np.random.default_rng(11)
    for draw in (fm.draw_conditions(rng) for _ in range(300)):
        assert 2.0 <= draw.psf.fwhm_px <= 6.0
        assert 0.0 <= draw.haze_fraction <= 0.6
        assert 20.0 <= draw.peak_electrons <= 5000.0
        assert 0.0 <= draw.read_noise_e <= 4.0
        assert sum(p.share for p in draw.haze_planes) == pytest.approx(1.0)
        assert all(2.0 * draw.psf.fwhm_px <= p.sigma_px * 1.001 and p.sigma_px <= 40.0 for p in draw.haze_planes)


def test_splat_keeps_light_and_sub_pixel_position(specimens: Any) -> None:
    plane = specimens.splat(32, np.array([10.25]), np.array([20.75]), np.array([2.0]))
    y, x = np.mgrid[0:32, 0:32]
    assert plane.sum() == pytest.approx(2.0)
    assert float((plane * y).sum() / 2) == pytest.approx(10.25)
    assert float((plane * x).sum() / 2) == pytest.approx(20.75)


def test_every_specimen_is_sharp_non_negative_and_seeded(specimens: Any) -> None:
    for kind, _ in specimens.KINDS:
        plane = kind(np.random.default_rng(4), SIZE)
        again = kind(np.random.default_rng(4), SIZE)
        assert plane.shape == (SIZE, SIZE), kind.__name__
        assert plane.dtype == np.float32, kind.__name__
        assert np.array_equal(plane, again), kind.__name__
        assert plane.min() >= 0, kind.__name__
        assert plane.std() > 0, kind.__name__
