"""Which beads make the PSF: each is used or rejected for its reason, and what spoils some spoils nothing else.

What cannot be measured at all is refused in one line.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.optics.beads import measure_psf
from tests.optics.bead_scenes import VOXEL, centre, check, field, lattice, measured, relative, scene, truth


def test_every_bead_is_used_or_rejected_for_its_reason() -> None:
    psf = measured()
    assert dict(psf.rejected) == {
        "cut by the lateral border": 2,
        "saturated": 2,
        "neighbour in the window": 2,
        "too dim": 2,
        "wrong width": 2,
    }
    assert psf.used == 16 and psf.found == 26


def test_positions_are_those_of_the_beads() -> None:
    psf, places = measured(), field()[1] + centre()
    nearest = [int(np.abs(places - found).max(axis=1).argmin()) for found in psf.positions_zyx]
    assert sorted(nearest) == list(range(16))
    assert np.abs(psf.positions_zyx - places[nearest]).max() < 0.1


def test_beads_near_the_end_of_the_stack_serve_only_where_there_are_no_others() -> None:
    image = np.random.default_rng(6).poisson(scene(lattice(3, 50), [1500] * 9, (33, 150, 150)) + 20)
    short = measure_psf(image[:22], VOXEL, shape_zyx=(21, 25, 25))
    check(short)
    assert short.used == 9 and any("planes of the PSF are 0" in note for note in short.notes)
    assert not short.values_zyx[17:].any() and short.values_zyx[:14].any(axis=(1, 2)).all()
    assert np.abs(relative(short)).max() < 0.03
    places = lattice(3, 50)
    places[:3, 0] += 7
    mixed_image = np.random.default_rng(6).poisson(scene(places, [1500] * 9, (33, 150, 150)) + 20)
    mixed = measure_psf(mixed_image, VOXEL, shape_zyx=(25, 25, 25))
    assert mixed.used == 6 and dict(mixed.rejected) == {"near the first or last plane": 3}
    assert not any("planes of the PSF" in note for note in mixed.notes)


def test_light_of_a_faint_neighbour_is_left_out() -> None:
    places = lattice(3, 50)
    image = scene([*places, places[4] + (0, 9, 1)], [2000] * 9 + [160], (33, 150, 150))
    psf = measure_psf(np.random.default_rng(7).poisson(image + 20), VOXEL, shape_zyx=(25, 29, 29))
    true = truth(psf.values_zyx.shape)
    z, y, x = np.array(psf.values_zyx.shape) // 2
    there = (slice(z - 2, z + 3), slice(y + 7, y + 12), slice(x - 1, x + 4))
    assert psf.used == 9
    assert (psf.values_zyx[there].mean() - true[there].mean()) / true.max() < 0.003


def test_doublet_across_the_axes_is_unlike_the_mean() -> None:
    # Along the axes it is hardly wider than a bead.
    places = lattice(3, 50)
    image = scene([*places, places[4] + (0, 2.5, 2.5)], [2000] * 4 + [1200] + [2000] * 4 + [1200], (33, 150, 150))
    psf = measure_psf(np.random.default_rng(8).poisson(image + 20), VOXEL)
    check(psf)
    assert psf.used == 8 and dict(psf.rejected) == {"unlike the mean": 1}
    assert not (np.abs(psf.positions_zyx - places[4]).max(axis=1) < 4).any()


def test_hot_pixels_are_no_beads() -> None:
    rng = np.random.default_rng(9)
    image = rng.poisson(scene(lattice(3, 50), [800] * 9, (33, 150, 150)) + 20)
    clean = measure_psf(image, VOXEL)
    y, x = rng.integers(0, 150, (2, 60))
    image[:, y, x] += 3000
    psf = measure_psf(image, VOXEL)
    assert any("hot pixel" in note for note in psf.notes) and not any("hot pixel" in note for note in clean.notes)
    assert psf.found <= clean.found + 2 and psf.used >= 6
    assert psf.fwhm_zyx_um == pytest.approx(clean.fwhm_zyx_um, rel=0.02)


def test_slow_background_makes_no_beads() -> None:
    y, x = np.mgrid[:150, :150] / 150
    haze = 200 * x * y + 100 * np.exp(-((y - 0.5) ** 2 + (x - 0.2) ** 2) / 0.05)
    image = np.random.default_rng(10).poisson(scene(lattice(3, 50), [1500] * 9, (33, 150, 150)) + 20 + haze)
    psf = measure_psf(image, VOXEL)
    check(psf)
    assert psf.found == psf.used == 9
    assert np.abs(relative(psf)).max() < 0.04


def test_settings_choose_the_beads() -> None:
    heights = np.linspace(300, 1500, 9)
    image = np.random.default_rng(11).poisson(scene(lattice(3, 50), list(heights), (33, 150, 150)) + 20)
    few = measure_psf(image, VOXEL, max_beads=4)
    assert few.used == 4 and dict(few.rejected) == {"beyond the largest number": 5}
    assert np.abs(few.positions_zyx - (lattice(3, 50) + centre())[:-5:-1]).max() < 0.1
    low = measure_psf(image, VOXEL, saturation=1000)
    assert set(low.rejected) == {"saturated"} and 3 <= low.rejected["saturated"] <= 5
    bright = measure_psf(image, VOXEL, min_snr=0.6 * few.bead_snr)
    assert set(bright.rejected) == {"too dim"} and 2 <= bright.used <= 8


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_clipped_beads_are_found_without_being_told(dtype: type) -> None:
    heights = [100, 110, 120, 130, 140, 150, 700, 800, 900]
    image = np.random.default_rng(12).poisson(scene(lattice(3, 50), heights, (33, 150, 150)) + 5)
    psf = measure_psf(np.minimum(image, 255).astype(dtype), VOXEL)
    assert dict(psf.rejected) == {"saturated": 3}


def empty(seed: int = 13) -> NDArray[Any]:
    return np.random.default_rng(seed).poisson(20.0, (15, 60, 60))


def one_bead() -> NDArray[Any]:
    return np.random.default_rng(14).poisson(scene([(16.2, 30.3, 29.8)], [900], (33, 60, 60)) + 20)


def with_nan() -> NDArray[Any]:
    image = one_bead().astype(float)
    image[3, 4, 5] = np.nan
    return image


@pytest.mark.parametrize(
    ("image", "settings", "says"),
    [
        (with_nan(), {}, "1 of 118800 values are NaN"),
        (np.full((9, 30, 30), 7), {}, "every value is 7"),
        (np.zeros((30, 30)), {}, "shape \\(30, 30\\)"),
        (one_bead() > 50, {}, "not bool"),
        (one_bead()[:3], {}, "3 planes are too few"),
        (empty(), {}, "no bead found"),
        (one_bead()[16:], {}, "none of 1 beads found can be used .*: 1 core outside the stack; record more planes"),
        (one_bead()[:, 25:], {}, "1 cut by the lateral border"),
        (one_bead(), {"min_snr": 1e4}, "none of 1 beads found can be used .*: 1 too dim"),
        (one_bead(), {"saturation": 300.0}, "clipped"),
        (one_bead(), {"shape_zyx": (20, 25, 25)}, "odd"),
        (one_bead(), {"shape_zyx": (25, 61, 25)}, "more than the image's \\(33, 60, 60\\)"),
        (one_bead(), {"shape_zyx": (5, 3, 3)}, "cut the beads, whose FWHM is"),
        (one_bead(), {"bead_diameter_um": 1.0}, "1 um is more than twice the beads' FWHM of 0.4"),
        (one_bead(), {"bead_diameter_um": 0.0}, "0.0 um is impossible"),
        (one_bead(), {"bead_diameter_um": float("nan")}, "nan um is impossible"),
        (one_bead(), {"saturation": float("nan")}, "finite"),
        (one_bead(), {"min_snr": 0.0}, "least SNR"),
        (one_bead(), {"max_beads": 0}, "give 1 or more"),
        (one_bead(), {"voxel_zyx_um": (0.2, 0.0, 0.1)}, "micrometres above 0"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    image: NDArray[Any], settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says) as refusal:
        measure_psf(image, **{"voxel_zyx_um": VOXEL, **settings})
    assert "\n" not in str(refusal.value)


def test_one_bead_is_enough_but_is_told() -> None:
    psf = measure_psf(one_bead(), VOXEL)
    check(psf)
    assert psf.used == 1 and psf.bead_fwhm_sd_zyx_um == (0, 0, 0)
    assert any("Only 1 bead" in note for note in psf.notes)
    assert np.abs(relative(psf)).max() < 0.06
