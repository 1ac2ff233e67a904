"""Brightfield transfer functions: what must hold for any optics, then closed forms, brute force, reference files.

Optics and sizes that cannot be are refused in one line.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.optics.brightfield import (
    MAX_WAVES,
    Transmission,
    image_planes,
    point_images,
    transfer_functions_2d,
    transfer_functions_3d,
)
from tests.optics.brightfield_optics import DRY, OIL

Array = NDArray[np.float64]
FILES = {
    "B01_brightfield_dry0.75_cond0.50": (DRY, (0.5, 0.15, 0.15)),
    "B02_brightfield_oil1.40_cond0.90": (OIL, (0.2, 0.1, 0.1)),
}
steady = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@st.composite
def any_optics(draw: st.DrawFn) -> Transmission:
    index = draw(st.sampled_from([1.0, 1.33, 1.515]))
    na = index * draw(st.floats(0.05, 0.985))
    # The condenser from coherent through equal to the objective's to wider.
    na_ill = min(na * draw(st.sampled_from([0.0, 0.01, 0.3, 0.8, 0.999, 1.0, 1.2])), 0.99 * index)
    return Transmission(na, na_ill, draw(st.floats(0.35, 0.9)), index)


def overlap(optics: Transmission, radius: Array) -> Array:
    """Area shared by source and pupil disc at a distance, over the source's area."""
    small, big = sorted((optics.source_radius, optics.pupil_radius))
    d = np.maximum(radius, 1e-12)
    small_angle = np.arccos(np.clip((d**2 + small**2 - big**2) / (2 * d * small), -1, 1))
    big_angle = np.arccos(np.clip((d**2 + big**2 - small**2) / (2 * d * big), -1, 1))
    lens = small**2 * (small_angle - np.sin(2 * small_angle) / 2) + big**2 * (big_angle - np.sin(2 * big_angle) / 2)
    return lens / (math.pi * small**2)


def frequencies(shape_yx: tuple[int, int], pixel_um: float) -> Array:
    fy, fx = (np.fft.fftfreq(n, pixel_um) for n in shape_yx)
    return np.hypot(fy[:, None], fx)


def averaged_source(optics: Transmission, radius: float, z_um: float, oblique: bool) -> complex:
    """Source average of the defocus phasor by half a million points and hard edges: nothing shared with the package."""
    r = (np.arange(500) + 0.5) / 500
    angle = (np.arange(1000) + 0.5) * (math.pi / 1000)
    rho = optics.source_radius * r[:, None]
    q2 = rho**2 + radius**2 + 2 * rho * radius * np.cos(angle)
    inside = q2 < optics.pupil_radius**2
    kz, kz0 = np.sqrt(np.where(inside, optics.wavenumber**2 - q2, 1)), np.sqrt(optics.wavenumber**2 - rho**2)
    values = np.where(inside, np.exp(2j * math.pi * z_um * (kz - kz0)), 0)
    return complex((values * (optics.wavenumber / kz if oblique else 1) * rho).mean() / rho.mean())


# ---------------------------------------------------------------- invariants


@steady
@given(any_optics(), st.floats(0.03, 0.6), st.floats(0.1, 8.0), st.booleans())
def test_symmetries_and_bounds(optics: Transmission, pixel_um: float, waves: float, oblique: bool) -> None:
    z = waves / optics.axial_bandwidth
    a, p = transfer_functions_2d(optics, [-z, 0.0, z], (18, 18), pixel_um, oblique=oblique)
    assert a.dtype == torch.float64 and a.shape == p.shape == (3, 18, 18)
    torch.testing.assert_close(a[0], a[2], rtol=0, atol=0)
    torch.testing.assert_close(p[0], -p[2], rtol=0, atol=0)
    assert not p[1].any()
    for part in (a, p):
        torch.testing.assert_close(part, part.transpose(1, 2), rtol=0, atol=0)
        # A quarter turn about zero frequency.
        turned = torch.rot90(torch.fft.fftshift(part, dim=(1, 2))[:, 1:, 1:], dims=(1, 2))
        torch.testing.assert_close(torch.fft.fftshift(part, dim=(1, 2))[:, 1:, 1:], turned, rtol=0, atol=0)
        outside = frequencies((18, 18), pixel_um) > 1.0000001 * optics.cutoff
        assert not part.numpy()[:, outside].any()
    assert p[:, 0, 0].abs().max() < 1e-6
    if not oblique:
        torch.testing.assert_close(a[:, 0, 0], torch.full((3,), 2.0, dtype=torch.float64), rtol=0, atol=1e-6)
        assert torch.hypot(a, p).max() <= 2 + 1e-6
    assert (torch.hypot(a, p) <= a[1] + 1e-5).all()


@steady
@given(any_optics(), st.integers(1, 40), st.integers(1, 40), st.floats(0.02, 1.0))
def test_in_focus_absorption_is_the_overlap_on_any_grid(
    optics: Transmission, height: int, width: int, pixel_um: float
) -> None:
    a, _ = transfer_functions_2d(optics, [0.0], (height, width), pixel_um)
    radius = frequencies((height, width), pixel_um)
    # Where the coherent edge lies within rounding of a sample either side is right.
    clear = abs(radius - optics.pupil_radius) > 1e-5 * optics.pupil_radius
    assert np.abs(a[0].numpy() - 2 * overlap(optics, radius))[clear].max(initial=0) < 2e-6


@settings(steady, max_examples=6)
@given(any_optics(), st.floats(0.05, 0.95), st.floats(-4.0, 4.0), st.booleans())
def test_every_frequency_agrees_with_a_sum_over_source_points(
    optics: Transmission, share: float, waves: float, oblique: bool
) -> None:
    radius, z = share * optics.cutoff, waves / optics.axial_bandwidth
    pixel_um = 1 / (4 * radius)
    a, p = transfer_functions_2d(optics, [z], (4, 4), pixel_um, oblique=oblique)
    expected = 2 * averaged_source(optics, radius, z, oblique)
    assert abs(complex(a[0, 0, 1], p[0, 0, 1]) - expected) < 3e-4


@pytest.mark.parametrize("optics", [DRY, OIL, Transmission(0.95, 0.95, 0.5, 1.0)])
def test_far_from_focus_too(optics: Transmission) -> None:
    """Thirty waves of defocus: low frequencies carry what is left, and turn many times over the source."""
    z, step = 30 / optics.axial_bandwidth, 0.005 * optics.cutoff
    a, p = transfer_functions_2d(optics, [z], (1, 200), 1 / (200 * step))
    for k in (1, 2, 4, 10, 60):
        expected = 2 * averaged_source(optics, k * step, z, False)
        assert abs(complex(a[0, 0, k], p[0, 0, k]) - expected) < 1e-4


@pytest.mark.parametrize("optics", [DRY, OIL, Transmission(0.3, 0.3, 0.5, 1.0)])
@pytest.mark.parametrize("pixel_um", [0.05, 0.1])
def test_transfer_ends_at_the_cutoff(optics: Transmission, pixel_um: float) -> None:
    a, p = transfer_functions_2d(optics, [0.0, 0.7], (127, 127), pixel_um)
    radius = frequencies((127, 127), pixel_um)
    cutoff = (optics.na + optics.na_illumination) / optics.wavelength_um
    assert optics.cutoff == pytest.approx(cutoff, rel=1e-12)
    assert not a.numpy()[:, radius > 1.02 * cutoff].any() and not p.numpy()[:, radius > 1.02 * cutoff].any()
    assert (a.numpy()[0, radius < 0.9 * cutoff] > 1e-3).all()


@pytest.mark.parametrize("na_ill", [0.0, 1e-5])
def test_coherent_limit(na_ill: float) -> None:
    optics = Transmission(1.2, na_ill, 0.5, 1.33)
    z = np.array([-3.0, -0.4, 0.0, 0.4, 3.0])
    a, p = transfer_functions_2d(optics, z, (64, 64), 0.1)
    radius = frequencies((64, 64), 0.1)
    kz = np.sqrt(np.maximum((1.33 / 0.5) ** 2 - radius**2, 0))
    defocus = 2 * math.pi * z[:, None, None] * (kz - 1.33 / 0.5)
    inside = radius < 1.2 / 0.5
    assert np.abs(a.numpy() - 2 * np.cos(defocus) * inside).max() < 1e-6
    assert np.abs(p.numpy() - 2 * np.sin(defocus) * inside).max() < 1e-6


def test_a_condenser_beyond_the_objective_acts_as_one_of_its_na() -> None:
    wide, equal = Transmission(0.5, 0.8, 0.5, 1.0), Transmission(0.5, 0.5, 0.5, 1.0)
    for found, expected in zip(
        transfer_functions_2d(wide, [0.0, 2.0], (32, 32), 0.2),
        transfer_functions_2d(equal, [0.0, 2.0], (32, 32), 0.2),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert wide.cutoff == equal.cutoff == 2.0


def test_pixels_need_not_be_square_and_output_has_the_dtype_asked_for() -> None:
    whole, _ = transfer_functions_2d(OIL, [0.3], (40, 40), 0.1)
    oblong, _ = transfer_functions_2d(OIL, [0.3], (20, 40), (0.2, 0.1), dtype=torch.float32)
    assert oblong.dtype == torch.float32
    kept = torch.arange(20) - 20 * (torch.arange(20) >= 10)
    torch.testing.assert_close(oblong[0], whole[0, kept].float())


@pytest.mark.parametrize(
    "values",
    [
        {"na": 0.0},
        {"na": 1.6},
        {"na": math.nan},
        {"na_illumination": -0.1},
        {"na_illumination": 1.6},
        {"wavelength_um": 550.0},
        {"wavelength_um": math.nan},
        {"immersion_index": 0.9},
    ],
)
def test_impossible_optics_are_refused_in_one_line(values: dict[str, float]) -> None:
    usual = {"na": 0.75, "na_illumination": 0.5, "wavelength_um": 0.55, "immersion_index": 1.515}
    with pytest.raises(InputError, match="give") as caught:
        Transmission(**(usual | values))
    assert "\n" not in str(caught.value) and f"{next(iter(values.values())):g}" in str(caught.value)


def test_impossible_sizes_are_refused() -> None:
    slice_ = torch.zeros(1, 8, 8)
    far = 1.1 * MAX_WAVES / DRY.axial_bandwidth
    for call in (
        lambda: transfer_functions_2d(DRY, [0.0], (0, 8), 0.1),
        lambda: transfer_functions_2d(DRY, [0.0], (8, 8), -0.1),
        lambda: transfer_functions_2d(DRY, [], (8, 8), 0.1),
        lambda: transfer_functions_2d(DRY, [math.nan], (8, 8), 0.1),
        lambda: transfer_functions_2d(DRY, [far], (8, 8), 0.1),
        lambda: transfer_functions_3d(DRY, (4, 8, 8), (0.0, 0.1, 0.1)),
        lambda: transfer_functions_3d(DRY, (4, 8, 8), (0.5, 0.1, 0.1), window="box"),  # type: ignore[arg-type]
        lambda: transfer_functions_3d(DRY, (4, 8, 8), (0.5, 0.1, 0.1), pupils="soft"),  # type: ignore[arg-type]
        lambda: image_planes(slice_, slice_[0], DRY, (0.5, 0.1, 0.1)),
        lambda: image_planes(slice_, slice_.double(), DRY, (0.5, 0.1, 0.1)),
        lambda: image_planes(slice_.int(), slice_.int(), DRY, (0.5, 0.1, 0.1)),
        lambda: image_planes(slice_, slice_, DRY, (0.5, 0.1, 0.1), focus_um=[]),
        lambda: point_images(DRY, [0.0], (8, 9), 0.1),
        lambda: point_images(DRY, [0.0], (9, 9), 0.1, "mean"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- reference files


@pytest.mark.parametrize("name", FILES)
def test_overlap_files(shared: Path, name: str) -> None:
    optics, (_, _, dx) = FILES[name]
    expected = np.load(shared / "psf" / f"{name}__analytic.npz")["absorption_tf_2d_infocus"]
    found, phase = transfer_functions_2d(optics, [0.0], expected.shape[1:], dx / 2)
    assert np.abs(found.numpy() - expected).max() < 1e-6 and not phase.any()


@pytest.mark.parametrize("name", FILES)
def test_waveorder_files(shared: Path, name: str) -> None:
    """Its discretisation reproduces its numbers; the exact discs differ by what the coarse pupils cost."""
    optics, voxel = FILES[name]
    stored = np.load(shared / "psf" / f"{name}__waveorder.npz")
    for pupils, limits in (("grid", (3e-6, 3e-6)), ("exact", (0.1, 0.015))):
        found = transfer_functions_3d(
            optics,
            stored["real_potential_tf_re"].shape,
            voxel,
            window="hann-symmetric",
            pupils=pupils,  # type: ignore[arg-type]
        )
        for part, kind, limit in zip(found, ("real", "imag"), limits, strict=True):
            expected = stored[f"{kind}_potential_tf_re"] + 1j * stored[f"{kind}_potential_tf_im"]
            assert np.abs(part.numpy() - expected).max() < limit * np.abs(expected).max()


@pytest.mark.parametrize("name", FILES)
def test_waveorder_pupils_approach_the_exact_ones_as_the_field_grows(name: str) -> None:
    optics, voxel = FILES[name]
    exact = transfer_functions_3d(optics, (16, 48, 48), voxel)
    errors = []
    for times in (1, 4):
        coarse = transfer_functions_3d(optics, (16, 48 * times, 48 * times), voxel, pupils="grid")
        kept = (np.arange(48) - 48 * (np.arange(48) >= 24)) * times
        errors.append(
            [
                float((part[:, kept][:, :, kept] - true).abs().max() / true.abs().max())
                for part, true in zip(coarse, exact, strict=True)
            ]
        )
    assert max(errors[1]) < 0.02 and all(late < early / 3 for early, late in zip(*errors, strict=True))
