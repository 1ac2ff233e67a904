"""PSF from beads: known PSFs, rendered at known places with all that spoils them, must come back; so must real ones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from scipy import ndimage

from mrbcr_cli.errors import InputError
from mrbcr_cli.optics.bead_finder import ADVICE
from mrbcr_cli.optics.beads import BeadPsf, measure_psf
from mrbcr_cli.psf_grid import prepare_psf

Array = NDArray[np.float64]
Places = Sequence[Sequence[float]]

VOXEL = (0.2, 0.1, 0.1)
# Weight, offset and sigma in voxels (z, y, x): core, a tail to one side as coma has, a lobe above the focus, a halo.
PARTS = (
    (1.0, (0, 0, 0), (2.2, 1.7, 1.5)),
    (0.25, (0.5, 0.6, 2.6), (2.6, 1.9, 1.8)),
    (0.15, (4.5, 0, 0), (2.5, 2.2, 2.2)),
    (0.05, (0, 0, 0), (4, 4.5, 4.5)),
)
SHAPE = (33, 250, 250)


def render(shape: Sequence[int], place: Sequence[float], blur: Places = ((0, 0, 0),), fine: int = 1) -> Array:
    """The PSF at a place, averaged over the offsets in `blur`; with `fine` on a grid of that many times more voxels."""
    image = np.zeros(shape)
    for weight, offset, sigma in PARTS:
        for shift in blur:
            z, y, x = (
                np.exp(-0.5 * ((np.arange(n) / fine - c - o - s) / w) ** 2)
                for n, c, o, s, w in zip(shape, place, offset, shift, sigma, strict=True)
            )
            image += weight / len(blur) * z[:, None, None] * y[:, None] * x
    return image


@cache
def centre() -> Array:
    """Centre of the PSF from its core's: centroid of what rises above half, blurred by 1 voxel; in steps of 1/6."""
    fine = ndimage.gaussian_filter(render((96, 96, 96), (8, 8, 8), fine=6), 6)
    core = np.maximum(fine - fine.max() / 2, 0)
    return np.array([(core * places).sum() / core.sum() for places in np.indices(core.shape)]) / 6 - 8


def truth(shape: Sequence[int]) -> Array:
    psf = render(shape, np.array(shape) // 2 - centre())
    return psf / psf.sum()


def true_fwhm_um() -> Array:
    """Counted in samples of 1/40 voxel on the lines through the centre."""
    widths = []
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = 40 * 24
        start = -centre()
        start[axis] += 12
        line = render(shape, start, fine=40).ravel()
        widths.append(np.count_nonzero(line > line.max() / 2) / 40 * VOXEL[axis])
    return np.array(widths)


def scene(places: Places, heights: Sequence[float], shape: Sequence[int] = SHAPE, blur: Places = ((0, 0, 0),)) -> Array:
    """Beads without noise; each is rendered within 18 voxels."""
    image = np.zeros(shape)
    for place, height in zip(places, heights, strict=True):
        low = [max(0, round(c) - 18) for c in place]
        box = tuple(slice(a, min(n, round(c) + 19)) for a, c, n in zip(low, place, shape, strict=True))
        local = np.array(place) - low
        image[box] += height * render(image[box].shape, local, blur)
    return image


def lattice(count: int, step: int, seed: int = 1) -> Array:
    """Places of count x count beads, off the voxels' centres."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(*[step // 2 + step * np.arange(count)] * 2, indexing="ij")
    flat = np.stack([np.full(count**2, 16), y.ravel(), x.ravel()], axis=1)
    return flat + rng.uniform(-0.5, 0.5, flat.shape) + rng.integers(-2, 3, flat.shape) * (0, 1, 1)


@cache
def field() -> tuple[NDArray[np.uint16], Array]:
    """A 12-bit image of 25 beads (5 x 5), and the places of the 16 that are good.

    Not good: two doublets closer than the resolution, one bead with a neighbour in its window (which is none of the
    25), two saturated ones, two dim ones and two cut by the border.
    """
    rng = np.random.default_rng(2)
    places = list(lattice(5, 50))
    heights = list(rng.uniform(500, 2500, 25))
    for bad, apart in ((3, 3.6), (14, 4.0)):
        places.append(places[bad] + (0, 0, apart))
        heights.append(heights[bad])
    places.append(places[10] + (1, 12, 3))
    heights.append(heights[10] * 0.8)
    heights[6] = heights[18] = 9000.0
    heights[8] = heights[16] = 22.0
    places[0] = np.array([16, 2.2, 30.4])
    places[24] = np.array([16, 225.0, 246.7])
    clean = scene(places, heights) + 20
    image = np.minimum(rng.poisson(clean) + 100, 4095).astype(np.uint16)
    good = [n for n in range(25) if n not in (0, 3, 6, 8, 10, 14, 16, 18, 24)]
    return image, np.array(places)[good]


@cache
def measured() -> BeadPsf:
    return measure_psf(field()[0], VOXEL)


def check(psf: BeadPsf) -> None:
    """What holds for every result."""
    values = psf.values_zyx
    assert values.dtype == np.float32 and values.ndim == 3 and all(size % 2 for size in values.shape)
    assert values.min() == 0 and values.sum(dtype=float) == pytest.approx(1, abs=1e-5)
    assert set(psf.rejected) <= set(ADVICE) and all(count > 0 for count in psf.rejected.values())
    assert psf.found == psf.used + sum(psf.rejected.values()) and psf.positions_zyx.shape == (psf.used, 3)
    # The tool's own reader of PSFs finds nothing to move: it only cuts away empty borders.
    again = prepare_psf(values, source="beads", is_3d=len(values) > 1, background=0).values_zyx
    cut = tuple(slice((a - b) // 2, (a + b) // 2) for a, b in zip(values.shape, again.shape, strict=True))
    assert np.allclose(again, values[cut] / values[cut].sum(), atol=1e-6)


def correlation(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def relative(psf: BeadPsf) -> Array:
    return np.array(psf.fwhm_zyx_um, float) / true_fwhm_um() - 1


def test_the_known_psf_comes_back() -> None:
    psf = measured()
    check(psf)
    true = truth(psf.values_zyx.shape)
    assert correlation(psf.values_zyx, true) > 0.998
    assert psf.values_zyx.max() == pytest.approx(true.max(), rel=0.05)
    for axis in range(3):
        assert correlation(np.flip(psf.values_zyx, axis), true) < 0.998, f"as good when mirrored along {axis}"
    assert np.abs(relative(psf)).max() < 0.03
    assert np.array(psf.bead_fwhm_median_zyx_um, float) == pytest.approx(np.array(psf.fwhm_zyx_um, float), rel=0.03)
    assert all(0 < sd < 0.05 * width for sd, width in zip(psf.bead_fwhm_sd_zyx_um, psf.fwhm_zyx_um, strict=True))
    assert psf.snr > 2 * psf.bead_snr > 100


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


def test_same_image_same_psf() -> None:
    again = measure_psf(field()[0].copy(), VOXEL)
    assert again.values_zyx.tobytes() == measured().values_zyx.tobytes()
    assert again.positions_zyx.tobytes() == measured().positions_zyx.tobytes()


@pytest.mark.parametrize(("gain", "offset"), [(1, 5000), (0.037, -3.0)])
def test_gain_and_offset_do_not_matter(gain: float, offset: float) -> None:
    psf = measure_psf(field()[0] * gain + offset, VOXEL)
    assert psf.rejected == measured().rejected
    assert np.abs(psf.values_zyx - measured().values_zyx).max() < 1e-4 * measured().values_zyx.max()
    assert np.allclose(psf.positions_zyx, measured().positions_zyx, atol=1e-3)
    assert (psf.snr, psf.bead_snr) == pytest.approx((measured().snr, measured().bead_snr), rel=1e-3)


def test_transposed_image_gives_the_transposed_psf() -> None:
    psf = measure_psf(field()[0].transpose(0, 2, 1), (0.2, 0.3, 0.1))
    assert np.abs(psf.values_zyx.transpose(0, 2, 1) - measured().values_zyx).max() < 1e-4 * psf.values_zyx.max()
    z, y, x = np.array(measured().fwhm_zyx_um, float)
    assert psf.fwhm_zyx_um == pytest.approx((z, 3 * x, y), rel=1e-3)
    assert np.allclose(psf.positions_zyx[:, [0, 2, 1]], measured().positions_zyx, atol=1e-3)


def test_chosen_window_and_voxel_size_are_kept() -> None:
    psf = measure_psf(field()[0], (0.5, 0.1, 0.1), shape_zyx=(21, 25, 23))
    check(psf)
    assert psf.values_zyx.shape == (21, 25, 23) and psf.voxel_zyx_um == (0.5, 0.1, 0.1)
    assert psf.fwhm_zyx_um[0] == pytest.approx(2.5 * measured().fwhm_zyx_um[0], rel=0.01)


def test_single_plane_gives_a_2d_psf() -> None:
    places = lattice(4, 50) * (0, 1, 1)
    image = np.random.default_rng(3).poisson(scene(places, [1500] * 16, (1, 200, 200)) + 30)
    psf = measure_psf(image, VOXEL)
    check(psf)
    true = render(psf.values_zyx.shape, (0, *(np.array(psf.values_zyx.shape) // 2 - centre())[1:]))
    assert psf.values_zyx.shape[0] == 1 and psf.used == 16
    assert psf.fwhm_zyx_um[0] is None and psf.bead_fwhm_sd_zyx_um[0] is None
    assert correlation(psf.values_zyx, true) > 0.998
    assert np.abs(relative(psf)[1:]).max() < 0.03
    assert np.all(psf.positions_zyx[:, 0] == 0)


@pytest.mark.parametrize("diameter_um", [0.2, 0.4])
def test_division_by_the_bead_gives_the_point(diameter_um: float) -> None:
    reach = diameter_um / 2
    steps = (np.arange(8) - 3.5) / 4 * reach
    ball = [np.array(p) / VOXEL for p in itertools.product(steps, repeat=3) if sum(q * q for q in p) < reach**2]
    image = np.random.default_rng(4).poisson(scene(lattice(4, 50), [1500] * 16, (33, 200, 200), ball) + 20)
    wide, sharp = measure_psf(image, VOXEL), measure_psf(image, VOXEL, bead_diameter_um=diameter_um)
    check(sharp)
    assert relative(wide)[1:].min() > 0.03 * (diameter_um / 0.2) ** 2
    assert np.abs(relative(sharp)).max() < 0.04
    assert correlation(sharp.values_zyx, truth(sharp.values_zyx.shape)) > 0.998
    assert np.allclose(wide.positions_zyx, sharp.positions_zyx)
    assert sharp.bead_fwhm_median_zyx_um == pytest.approx(wide.bead_fwhm_median_zyx_um)
    assert any("diameter" in note for note in wide.notes) and not any("diameter" in note for note in sharp.notes)


def test_division_in_a_single_plane_takes_the_projection() -> None:
    steps = (np.arange(16) - 7.5) / 8 * 2
    disc = [(0.0, y, x) for y, x in itertools.product(steps, repeat=2) if y * y + x * x < 4]
    # The thickness of a ball of 4 voxels above each point of its disc, by repeating the points.
    ball = [p for p in disc for _ in range(round(3 * np.sqrt(4 - p[1] ** 2 - p[2] ** 2)))]
    points = lattice(3, 50) * (0, 1, 1)
    image = np.random.default_rng(5).poisson(scene(points, [4000] * 9, (1, 150, 150), ball) + 20)
    sharp = measure_psf(image, VOXEL, bead_diameter_um=0.4)
    check(sharp)
    assert relative(measure_psf(image, VOXEL))[1:].min() > 0.1
    assert np.abs(relative(sharp)[1:]).max() < 0.04


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


CONFOCAL_VOXEL = (0.125, 0.0225, 0.0225)


def test_real_confocal_beads(shared: Path) -> None:
    image = tifffile.imread(shared / "data/test/Bead_Image1_crop.tif")
    psf = measure_psf(image, CONFOCAL_VOXEL)
    check(psf)
    assert psf.used == psf.found == 4 and not psf.rejected
    # Voxels above half of the top in the brightest bead, counted on bars of 3 x 3 lines.
    bars = (
        image[:, 81:84, 74:77].mean(axis=(1, 2)),
        image[23:26, :, 74:77].mean(axis=(0, 2)),
        image[23:26, 81:84].mean(axis=(0, 1)),
    )
    for width, bar, um in zip(psf.fwhm_zyx_um, bars, CONFOCAL_VOXEL, strict=True):
        assert width is not None and abs(width / um - np.count_nonzero(bar > bar.max() / 2)) <= 1
    assert all(sd < 0.03 * width for sd, width in zip(psf.bead_fwhm_sd_zyx_um, psf.fwhm_zyx_um, strict=True))
    places = psf.positions_zyx[np.argsort(psf.positions_zyx[:, 1])]
    assert np.abs(places - [(24, 36, 125), (24, 73, 29), (24, 82, 75), (24, 111, 44)]).max() < 1.5
    assert psf.snr > 200


def test_halves_of_the_real_image_agree(shared: Path) -> None:
    image = tifffile.imread(shared / "data/test/Bead_Image1_crop.tif")
    right, left = image.copy(), image.copy()
    right[:, :, :58] = left[:, :, 58:] = image.min()
    one, other = (measure_psf(half, CONFOCAL_VOXEL, shape_zyx=(27, 51, 27)) for half in (right, left))
    assert (one.used, other.used) == (2, 2)
    assert correlation(one.values_zyx, other.values_zyx) > 0.99
    for axis in (0, 2):
        assert correlation(one.values_zyx, np.flip(other.values_zyx, axis)) < 0.97


def test_large_real_bead_is_measured_as_it_is(shared: Path) -> None:
    image = tifffile.imread(shared / "data/test/bead-25pct__data.tif")
    kernel = tifffile.imread(shared / "data/test/bead-25pct__kernel.tif").astype(float)
    psf = measure_psf(image, (1, 1, 1))
    check(psf)
    assert psf.used == psf.found == 1
    kernel_px = np.count_nonzero(kernel[32, 32] > kernel.max() / 2)
    assert psf.fwhm_zyx_um[1] > 4 * kernel_px and psf.fwhm_zyx_um[1] == pytest.approx(psf.fwhm_zyx_um[2], rel=0.02)
    divided = measure_psf(image, (1, 1, 1), bead_diameter_um=10)
    assert divided.fwhm_zyx_um[1] < 0.8 * psf.fwhm_zyx_um[1]
    assert any("10 um is large" in note for note in divided.notes)
    with pytest.raises(InputError, match="more than twice"):
        measure_psf(image, (1, 1, 1), bead_diameter_um=22)
