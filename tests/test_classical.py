"""Richardson-Lucy and Wiener: what must hold for any block, then the bars of the EPFL against scikit-image."""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from scipy import ndimage, signal

from mrbcr_cli.classical import RichardsonLucy, Wiener
from mrbcr_cli.errors import InputError
from mrbcr_cli.imaging_model import ImagingModel
from mrbcr_cli.intensity import IntensityRange
from mrbcr_cli.psf_grid import Psf, prepare_psf
from mrbcr_cli.volume_model import VolumeModel, imaging_model

Array = NDArray[np.float32]


def gaussian_psf(fwhm_px: float, *, planes: int = 1, size: int = 25) -> Psf:
    values = np.zeros((planes, size, size))
    values[planes // 2, size // 2, size // 2] = 1
    sigma = fwhm_px / 2.355
    return prepare_psf(ndimage.gaussian_filter(values, (sigma if planes > 1 else 0, sigma, sigma)), source="gaussian")


def comet_psf() -> Psf:
    """A bright core in the middle with a tail towards larger y and x: nothing like its own mirror image."""
    values = np.zeros((1, 15, 15), np.float32)
    values[0, 7, 7] = 1
    for step in range(1, 6):
        values[0, 7 + step, 7 + step // 2] = 0.5 - 0.08 * step
    return Psf(values / values.sum(), "comet")


def specimen(shape: tuple[int, int, int], seed: int = 0) -> Array:
    """Smooth blobs, filaments and points on a dark ground, 0 to 1000."""
    rng = np.random.default_rng(seed)
    blobs = ndimage.gaussian_filter(rng.random(shape), (0, 6, 6))
    blobs = np.clip(blobs - np.quantile(blobs, 0.7), 0, None)
    threads = np.abs(ndimage.gaussian_filter(rng.normal(size=shape), (0, 5, 5)))
    threads = threads < 0.02 * threads.max()
    points = rng.random(shape) > 0.998
    return (300 * blobs / blobs.max() + 300 * threads + 1000 * points).clip(0, 1000).astype(np.float32)


def blur(image: Array, psf: Psf) -> Array:
    return signal.fftconvolve(image, psf.values_zyx, "same").clip(0, None).astype(np.float32)


def range_of(image: Array) -> IntensityRange:
    return IntensityRange(float(np.percentile(image, 0.1)), float(np.percentile(image, 99.9)))


def psnr(found: Array, truth: NDArray[np.float64]) -> float:
    """Peak signal-to-noise ratio in dB after the least-squares scale: intensities of the bars are in other units."""
    estimate = found.astype(np.float64)
    scale = (estimate * truth).sum() / (estimate * estimate).sum()
    return float(10 * np.log10(truth.max() ** 2 / np.mean((scale * estimate - truth) ** 2)))


@pytest.mark.parametrize("planes", [1, 5])
@pytest.mark.parametrize("options", [{}, {"accelerate": True}, {"tv": 0.01}, {"background": 30.0}])
def test_richardson_lucy_leaves_a_flat_image_flat_up_to_its_borders(planes: int, options: dict[str, float]) -> None:
    psf = gaussian_psf(5, planes=planes)
    flat = np.full((7, 40, 45), 100, np.float32)
    found = RichardsonLucy(psf, iterations=15, **options).restore(flat, IntensityRange(100, 101))
    assert found.shape == flat.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, 100, rtol=2e-4)


@pytest.mark.parametrize("planes", [1, 5])
def test_wiener_leaves_a_flat_image_flat(planes: int) -> None:
    flat = np.full((7, 40, 45), 100, np.float32)
    found = Wiener(gaussian_psf(5, planes=planes), 1e-2).restore(flat, IntensityRange(100, 101))
    np.testing.assert_allclose(found, 100, rtol=1e-5)


@pytest.mark.parametrize("accelerate", [False, True])
def test_richardson_lucy_explains_all_the_light_of_the_data(accelerate: bool) -> None:
    # H^T(d / Hx) x / H^T 1 makes the blurred estimate add up to the data, whatever lies at the border.
    psf = gaussian_psf(4)
    data = np.random.default_rng(0).poisson(blur(specimen((1, 90, 90)), psf)).astype(np.float32)
    inner = np.zeros_like(data)
    inner[:, 20:-20, 20:-20] = data[:, 20:-20, 20:-20]
    found = RichardsonLucy(psf, iterations=10, accelerate=accelerate).restore(inner, range_of(data))
    assert found.min() >= 0
    assert found.sum() == pytest.approx(inner.sum(), rel=1e-3)


def test_a_point_gets_sharper_with_every_ten_iterations() -> None:
    psf = gaussian_psf(6)
    point = np.zeros((1, 61, 61), np.float32)
    point[0, 30, 30] = 1000
    data = blur(point, psf)
    peaks = [data.max()]
    peaks += [RichardsonLucy(psf, iterations=n).restore(data, IntensityRange(0, 30))[0, 30, 30] for n in (10, 20, 30)]
    assert all(later > 1.1 * earlier for earlier, later in pairwise(peaks))


def test_acceleration_gets_closer_in_the_same_number_of_iterations() -> None:
    psf = gaussian_psf(4)
    truth = specimen((1, 96, 96))
    data = blur(truth, psf)
    plain, fast = (
        RichardsonLucy(psf, iterations=15, accelerate=a).restore(data, range_of(data)) for a in (False, True)
    )
    assert psnr(fast, truth.astype(float)) > psnr(plain, truth.astype(float)) + 0.5


def test_total_variation_quiets_noise() -> None:
    psf = gaussian_psf(3)
    data = np.random.default_rng(3).poisson(20, (1, 64, 64)).astype(np.float32)
    spread = [RichardsonLucy(psf, iterations=20, tv=tv).restore(data, range_of(data)).std() for tv in (0, 0.01, 0.05)]
    assert spread[0] > 1.05 * spread[1] > 1.1 * spread[2]


@pytest.mark.parametrize("make", [lambda p: RichardsonLucy(p, iterations=10), lambda p: Wiener(p, 1e-2)])
def test_a_shifted_image_gives_the_shifted_result(make) -> None:  # type: ignore[no-untyped-def]
    psf = gaussian_psf(3)
    data = blur(specimen((1, 140, 140)), psf)
    method = make(psf)
    a = method.restore(np.ascontiguousarray(data[:, 0:110, 0:110]), range_of(data))
    b = method.restore(np.ascontiguousarray(data[:, 7:117, 12:122]), range_of(data))
    difference = np.abs(a[:, 37:80, 42:80] - b[:, 30:73, 30:68])
    assert difference.max() < 1e-3 * range_of(data).width


@pytest.mark.parametrize("size", [16, 17])
@pytest.mark.parametrize("make", [lambda p: RichardsonLucy(p, iterations=30), lambda p: Wiener(p, 1e-4)])
def test_an_even_psf_moves_nothing(size: int, make) -> None:  # type: ignore[no-untyped-def]
    distance = np.hypot(*np.indices((size, size)) - (size - 1) / 2)
    psf = prepare_psf(np.exp(-(distance**2) / 8), source="symmetric about the middle of its grid")
    rows, columns = np.indices((61, 61))
    data = 100 * np.exp(-((rows - 30) ** 2 + (columns - 25) ** 2) / 18).astype(np.float32)[None]
    found = make(psf).restore(data, IntensityRange(0, 100))[0]
    assert ndimage.center_of_mass(np.where(found > 0.3 * found.max(), found, 0)) == pytest.approx((30, 25), abs=0.02)
    assert found.max() > 1.5 * data.max()


@pytest.mark.parametrize("make", [lambda p: RichardsonLucy(p, iterations=60), lambda p: Wiener(p, 1e-4)])
def test_an_asymmetric_psf_is_used_unflipped(make) -> None:  # type: ignore[no-untyped-def]
    truth = specimen((1, 80, 80), seed=2)
    psf = comet_psf()
    data = blur(truth, psf)
    flipped = Psf(np.ascontiguousarray(psf.values_zyx[:, ::-1, ::-1]), "flipped")
    right, wrong = (make(p).restore(data, range_of(data)) for p in (psf, flipped))
    before = psnr(data, truth.astype(float))
    assert psnr(right, truth.astype(float)) > before + 5
    assert psnr(wrong, truth.astype(float)) < before + 1


def test_planes_one_by_one_equal_planes_together() -> None:
    psf = gaussian_psf(4)
    data = blur(specimen((4, 50, 60)), psf)
    for method in (RichardsonLucy(psf, iterations=5, accelerate=True, tv=0.002), Wiener(psf, 1e-2)):
        together = method.restore(data, range_of(data))
        singly = np.concatenate([method.restore(data[z : z + 1], range_of(data)) for z in range(4)])
        np.testing.assert_array_equal(together, singly)


@pytest.mark.parametrize(
    ("make", "tolerance"),
    [
        (lambda p: RichardsonLucy(p, iterations=20), 1e-3),
        (lambda p: RichardsonLucy(p, iterations=20, accelerate=True), 8e-3),
        (lambda p: RichardsonLucy(p, iterations=20, tv=0.005), 2e-2),
        (lambda p: Wiener(p, 1e-2), 1e-3),
    ],
)
@pytest.mark.parametrize("fwhm_px", [2, 4])
def test_a_tile_with_its_halo_equals_the_whole(make, tolerance: float, fwhm_px: float) -> None:  # type: ignore[no-untyped-def]
    """Tolerance: largest difference over the image's range. Its root mean square is at least ten times smaller."""
    psf = gaussian_psf(fwhm_px)
    data = np.random.default_rng(1).poisson(blur(specimen((1, 200, 200)), psf)).astype(np.float32)
    method = make(psf)
    whole = method.restore(data, range_of(data))
    _, hy, hx = method.halo_zyx
    tile = np.ascontiguousarray(data[:, 80 - hy : 130 + hy, 70 - hx : 120 + hx])
    inside = method.restore(tile, range_of(data))[:, hy:-hy, hx:-hx]
    difference = np.abs(inside - whole[:, 80:130, 70:120]) / range_of(data).width
    assert difference.max() < tolerance
    assert np.sqrt(np.mean(difference**2)) < tolerance / 10


def test_a_3d_psf_gathers_light_from_other_planes() -> None:
    psf = gaussian_psf(4, planes=9)
    assert psf.is_3d
    point = np.zeros((15, 40, 40), np.float32)
    point[7, 20, 20] = 10000
    data = blur(point, psf)
    found = RichardsonLucy(psf, iterations=40).restore(data, range_of(data))
    assert found[7].sum() / found.sum() > 1.5 * data[7].sum() / data.sum()
    assert RichardsonLucy(psf).halo_zyx[0] >= 4
    assert RichardsonLucy(gaussian_psf(4)).halo_zyx[0] == 0


def test_wiener_recovers_what_is_almost_without_noise() -> None:
    psf = gaussian_psf(3)
    truth = ndimage.gaussian_filter(specimen((1, 96, 96)), (0, 1.5, 1.5)).astype(np.float32)
    data = blur(truth, psf)
    found = Wiener(psf, 1e-7).restore(data, range_of(data))
    inner = (slice(None), slice(16, -16), slice(16, -16))
    error = np.sqrt(np.mean((found[inner] - truth[inner]) ** 2)) / truth.max()
    assert error < 0.003
    assert error < 0.1 * np.sqrt(np.mean((data[inner] - truth[inner]) ** 2)) / truth.max()


def test_values_below_zero_and_a_camera_offset_are_kept_in_the_image_units() -> None:
    psf = gaussian_psf(3)
    data = blur(specimen((1, 64, 64)), psf)
    plain = RichardsonLucy(psf, iterations=10).restore(data, IntensityRange(0, 500))
    below = RichardsonLucy(psf, iterations=10).restore(data - 50, IntensityRange(-50, 450))
    np.testing.assert_allclose(below + 50, plain, atol=0.01)
    offset = RichardsonLucy(psf, iterations=10, background=None).restore(data + 100, IntensityRange(100, 600))
    assert offset.min() >= 100 - 1e-3
    assert offset.sum() == pytest.approx((data + 100).sum(), rel=0.03)


def test_blocks_of_zeros_and_blocks_smaller_than_the_psf_work() -> None:
    psf = gaussian_psf(6)
    for shape in ((1, 1, 1), (2, 3, 9), (1, 64, 5)):
        for method in (RichardsonLucy(psf, iterations=3, tv=0.01, accelerate=True), Wiener(psf, 1e-2)):
            dark = method.restore(np.zeros(shape, np.float32), IntensityRange(0, 1))
            bright = method.restore(np.full(shape, 5, np.float32), IntensityRange(0, 5))
            assert dark.shape == shape and np.abs(dark).max() == 0
            np.testing.assert_allclose(bright, 5, rtol=1e-3)


def test_a_method_travels_to_another_process_and_leaves_its_input_alone() -> None:
    psf = gaussian_psf(3)
    data = blur(specimen((1, 40, 40)), psf)
    before = data.copy()
    data.flags.writeable = False
    for method in (RichardsonLucy(psf, iterations=4), Wiener(psf, 1e-2)):
        copy = pickle.loads(pickle.dumps(method))
        np.testing.assert_array_equal(
            copy.restore(data, range_of(before)), method.restore(data, range_of(before), ((True, True),) * 3)
        )
    np.testing.assert_array_equal(data, before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"iterations": 0}, "at least 1"),
        ({"tv": 0.5}, "total-variation"),
        ({"background": float("nan")}, "background"),
        ({"background": -1.0}, "background"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        RichardsonLucy(gaussian_psf(3), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("balance", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_balance_is_refused(balance: float) -> None:
    with pytest.raises(InputError, match="balance"):
        Wiener(gaussian_psf(3), balance)


@pytest.mark.parametrize("iterations", [1, 5, 10, 30])
def test_bars_come_out_at_least_as_well_as_with_scikit_image(shared: Path, iterations: int) -> None:
    from skimage.restoration import richardson_lucy

    folder = shared / "data" / "test"
    truth, data, kernel = (tifffile.imread(folder / f"bars-25pct__{n}.tif") for n in ("actual", "data", "kernel"))
    psf = prepare_psf(kernel, source="bars")
    ours = RichardsonLucy(psf, iterations=iterations).restore(data, IntensityRange(0, float(data.max())))
    theirs = richardson_lucy(data / data.max(), kernel / kernel.sum(), num_iter=iterations, clip=False)
    assert psnr(ours, truth.astype(float)) > psnr(theirs, truth.astype(float)) + 0.1


def test_a_real_asymmetric_psf_helps_and_its_mirror_image_helps_less(shared: Path) -> None:
    psf = prepare_psf(tifffile.imread(shared / "data" / "test" / "PSF_RFI_8bit.tif"), source="RFI", background=8)
    middle = psf.radius_zyx[0]
    truth = np.zeros((40, 64, 64), np.float32)
    truth[18:22, 20:40, 30] = 1000
    truth[10, 40, 15:50] = 1000
    data = blur(truth, psf)
    flipped = Psf(np.ascontiguousarray(psf.values_zyx[::-1, ::-1, ::-1]), "flipped")
    right, wrong = (RichardsonLucy(p, iterations=15).restore(data, range_of(data)) for p in (psf, flipped))
    assert middle > 5
    assert psnr(right, truth.astype(float)) > psnr(wrong, truth.astype(float)) + 0.3


@pytest.mark.parametrize("shape", [(9, 33, 50), (1, 40, 31), (24, 20, 17)])
@pytest.mark.parametrize("threads", [1, 3])
def test_volumes_by_planes_are_what_a_whole_fft_makes(shape: tuple[int, int, int], threads: int) -> None:
    """The correction of a volume in pieces, by any number of threads, is that of the plain model, also in place.

    What an earlier iteration left in the spectra does not count, be it not a number.
    """
    rng = np.random.default_rng(3)
    psf = Psf((lambda p: p / p.sum())(rng.random((5, 7, 9), np.float32)), "random")
    data = torch.from_numpy(rng.random(shape, np.float32))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            plain = ImagingModel(psf, shape, torch.device("cpu"), 0.1, 1.0)
            pieces = imaging_model(psf, shape, torch.device("cpu"), 0.1, 1.0)
            assert isinstance(pieces, VolumeModel)
            estimate, weight = plain.start(data), plain.weight()
            expected = plain.correction(estimate, data, weight)
            own_weight = pieces.weight()
            pieces._spectrum.fill_(torch.nan)
            found = pieces.correction(estimate, data, own_weight)
            pieces._spectrum.fill_(torch.nan)
            improved = pieces.improve_(estimate.clone(), data, own_weight)
            pieces.close()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    off = (found - expected).abs() / expected.abs().max()
    assert off[plain.window].max() < 1e-5
    assert off.max() < 1e-4  # where the block sees a hundredth of the light, rounding counts a hundred times
    assert torch.allclose(improved, estimate * found, rtol=1e-6, atol=0)
