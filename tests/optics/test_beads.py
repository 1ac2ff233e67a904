"""PSF from beads: known PSFs must come back, and so must real ones.

Gain, offset, orientation, window and the size of the beads do not change what is measured.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tifffile

from mrbcr_cli.errors import InputError
from mrbcr_cli.optics.beads import measure_psf
from tests.optics.bead_scenes import (
    VOXEL,
    centre,
    check,
    correlation,
    field,
    lattice,
    measured,
    relative,
    render,
    scene,
    truth,
)


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
