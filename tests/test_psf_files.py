"""PSF files: whatever comes in, what comes out is odd, centred, not negative and adds up to 1, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from mrbcr_cli.errors import InputError
from mrbcr_cli.psf_files import load_psf, read_stored_psf
from mrbcr_cli.psf_grid import Psf, prepare_psf

Array = NDArray[np.float64]
UNKNOWN = (None, None, None)


def gaussian(shape: tuple[int, ...], centre: tuple[float, ...], sigma_px: float = 2.0) -> Array:
    squared = sum((grid - c) ** 2 for grid, c in zip(np.indices(shape), centre, strict=True))
    return np.asarray(np.exp(-squared / (2 * sigma_px**2)))


def centroid(psf: Psf) -> Array:
    """Offset of the centroid from the middle voxel, in voxels."""
    return np.array(ndimage.center_of_mass(psf.values_zyx.astype(float))) - np.array(psf.radius_zyx)


def check(psf: Psf) -> None:
    assert psf.values_zyx.dtype == np.float32 and psf.values_zyx.ndim == 3
    assert all(size % 2 for size in psf.values_zyx.shape)
    assert psf.values_zyx.min() >= 0
    assert psf.values_zyx.sum(dtype=float) == pytest.approx(1, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(24, 33),
    width=st.integers(24, 33),
    dy=st.floats(-3, 3),
    dx=st.floats(-3, 3),
    ratio=st.floats(0.6, 1.8),
    gain=st.sampled_from([1e-9, 1.0, 1e9]),
)
def test_any_size_offset_and_voxel_size_is_centred_and_keeps_its_width(
    height: int, width: int, dy: float, dx: float, ratio: float, gain: float
) -> None:
    values = gain * gaussian((height, width), ((height - 1) / 2 + dy, (width - 1) / 2 + dx))
    psf = prepare_psf(
        values, source="x", image_scale_zyx_um=(None, 0.1 * ratio, 0.1 * ratio), psf_scale_zyx_um=(None, 0.1, 0.1)
    )
    check(psf)
    assert np.abs(centroid(psf)).max() < 0.12
    sigma_px = np.sqrt(
        np.sum(psf.values_zyx[0].sum(axis=0) * (np.arange(psf.values_zyx.shape[2]) - psf.radius_zyx[2]) ** 2)
    )
    assert sigma_px * ratio == pytest.approx(2, rel=0.06)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(["u1", ">u2", "i4", "<f4", ">f8"]),
)
def test_any_positive_array_becomes_a_psf(shape: tuple[int, int, int], seed: int, dtype: str) -> None:
    values = np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)
    values[-1, -1, -1], values[0, 0, 0] = 120, 0 if values.size > 1 else 120
    check(prepare_psf(values, source="random"))


@pytest.mark.parametrize("origin", [(5, 5), (3, 8), (0, 0), (10, 2)])
def test_a_delta_stays_a_delta_wherever_it_is(origin: tuple[int, int]) -> None:
    values = np.zeros((11, 11))
    values[origin] = 3
    psf = prepare_psf(values, source="delta")
    assert psf.values_zyx.shape == (1, 1, 1) and psf.values_zyx.max() == 1


def test_a_centred_psf_is_not_interpolated_and_not_flipped() -> None:
    values = np.zeros((9, 9))
    values[4, 4], values[6, 4], values[4, 7] = 10, 1, 2
    found = prepare_psf(values, source="x").values_zyx[0]
    assert found.shape == (5, 7)
    np.testing.assert_allclose(found[2], np.array([0, 0, 0, 10, 0, 0, 2]) / 13, atol=1e-6)
    np.testing.assert_allclose(found[:, 3], np.array([0, 0, 10, 0, 1]) / 13, atol=1e-6)


def test_coarser_image_voxels_average_the_psf() -> None:
    values = np.zeros((15, 15))
    values[6:9, 6:9] = 1
    psf = prepare_psf(values, source="x", image_scale_zyx_um=(None, 0.3, 0.3), psf_scale_zyx_um=(None, 0.1, 0.1))
    middle = psf.radius_zyx[1]
    assert psf.values_zyx[0, middle, middle] > 0.85
    assert any("resampled" in note for note in psf.notes)


def test_voxel_sizes_within_one_percent_count_as_equal_and_unknown_ones_are_told() -> None:
    values = gaussian((21, 21), (10, 10))
    same = prepare_psf(values, source="x", image_scale_zyx_um=(None, 0.1, 0.1), psf_scale_zyx_um=(1.0, 0.1005, 0.1))
    assert same.notes == ()
    unknown = prepare_psf(values, source="x", image_scale_zyx_um=(None, 0.1, 0.1))
    np.testing.assert_array_equal(same.values_zyx, unknown.values_zyx)
    assert any("unknown for the PSF" in note for note in unknown.notes)
    assert same.fingerprint() == unknown.fingerprint() != prepare_psf(values**2, source="x").fingerprint()


def test_the_background_and_hot_pixels_of_a_measured_psf_are_removed() -> None:
    clean = 2000 * gaussian((21, 41, 41), (10, 20, 20))
    measured = clean + np.random.default_rng(0).normal(100, 5, clean.shape)
    measured[3, 5, 5] = measured[17, 36, 8] = 6000
    psf, truth = prepare_psf(measured, source="bead"), prepare_psf(clean, source="computed")
    check(psf)
    assert any("looks measured" in note for note in psf.notes)
    assert not any("looks measured" in note for note in truth.notes)
    assert psf.values_zyx.max() == pytest.approx(truth.values_zyx.max(), rel=0.05)
    assert np.abs(centroid(psf)).max() < 0.1
    raw = prepare_psf(measured, source="bead", background=0)
    assert raw.values_zyx.max() < 0.5 * psf.values_zyx.max()


def test_small_negative_values_become_zero_with_a_note() -> None:
    values = gaussian((1, 25, 25), (0, 12, 12))
    values[0, 3, 3] = -0.01
    psf = prepare_psf(values, source="x")
    check(psf)
    assert any("negative" in note for note in psf.notes)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((5, 9, 9), np.nan), "NaN"),
        (np.where(np.indices((9, 9))[0] == 4, np.inf, 1.0), "NaN or infinite"),
        (np.zeros((9, 9)), "zero everywhere"),
        (np.full((9, 9), 3), "one value"),
        (-gaussian((9, 9), (4, 4)), "add up to"),
        (gaussian((17, 17), (8, 4)) - 0.8 * gaussian((17, 17), (8, 12)), "not negative"),
        (gaussian((9, 9), (4, 4)).astype(complex), "complex"),
        (gaussian((9, 9), (4, 4)) > 0.5, "boolean"),
        (np.ones(9), "two or three axes"),
        (np.ones((2, 3, 9, 9)), "two or three axes"),
        (np.zeros((0, 9, 9)), "two or three axes"),
        (np.array([["a", "b"]]), "real numbers"),
    ],
)
def test_what_is_no_psf_is_refused(values: NDArray[Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        prepare_psf(values, source="file.tif")
    assert "file.tif" in str(caught.value) and str(caught.value).count("\n") <= 1


def test_a_psf_larger_than_the_image_is_refused_also_after_resampling() -> None:
    values = gaussian((9, 21, 21), (4, 10, 10))
    kept = prepare_psf(values, source="x", image_shape_zyx=(9, 21, 21))
    check(kept)
    for shape in ((8, 64, 64), (9, 20, 64), (64, 64, 20)):
        with pytest.raises(InputError, match="larger than the image"):
            prepare_psf(values, source="x", image_shape_zyx=shape)
    fine = (0.1, 0.05, 0.05)
    with pytest.raises(InputError, match="larger than the image"):
        prepare_psf(
            values, source="x", image_scale_zyx_um=fine, psf_scale_zyx_um=(0.1, 0.1, 0.1), image_shape_zyx=(9, 40, 40)
        )
    with pytest.raises(InputError, match="voxel sizes"):
        prepare_psf(values, source="x", image_scale_zyx_um=(1e-6,) * 3, psf_scale_zyx_um=(1.0,) * 3)
    with pytest.raises(InputError, match="impossible"):
        prepare_psf(values, source="x", image_scale_zyx_um=(0.1, 0.1, -0.1))


def test_a_3d_psf_for_a_2d_image_is_refused_and_one_plane_can_be_chosen() -> None:
    values = gaussian((9, 15, 15), (3, 7, 7))
    with pytest.raises(InputError, match="3-D PSF"):
        prepare_psf(values, source="x", is_3d=False)
    focus = prepare_psf(values, source="x", is_3d=False, plane="focus")
    third = prepare_psf(values, source="x", is_3d=False, plane=3)
    np.testing.assert_array_equal(focus.values_zyx, third.values_zyx)
    assert not focus.is_3d
    check(focus)
    with pytest.raises(InputError, match="no plane 9"):
        prepare_psf(values, source="x", plane=9)
    check(prepare_psf(values[3:4], source="x", is_3d=False))


def test_files_of_every_kind_give_the_same_psf(tmp_path: Path) -> None:
    values = gaussian((5, 15, 15), (2, 7, 7)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "b.npz", anything=values)
    np.savez_compressed(tmp_path / "c.npz", psf=values, other=values * 2, scale_zyx_um=[0.2, 0.1, 0.1])
    tifffile.imwrite(tmp_path / "d.tif", values, imagej=True, metadata={"axes": "ZYX"})
    read = [
        load_psf(tmp_path / name, image_scale_zyx_um=(0.2, 0.1, 0.1), is_3d=True)
        for name in ("a.npy", "b.npz", "c.npz", "d.tif")
    ]
    assert len({psf.fingerprint() for psf in read}) == 1
    assert read[2].notes == ()
    assert read_stored_psf(tmp_path / "c.npz").scale_zyx_um == (0.2, 0.1, 0.1)


def test_the_voxel_size_in_a_tiff_is_used_and_can_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "psf.ome.tif"
    meta = {
        "axes": "ZYX",
        "PhysicalSizeX": 50,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 50,
        "PhysicalSizeYUnit": "nm",
    }
    values = gaussian((7, 31, 31), (3, 15, 15)).astype(np.float32)
    tifffile.imwrite(path, values, metadata={**meta, "PhysicalSizeZ": 0.2, "PhysicalSizeZUnit": "µm"})
    image = (0.2, 0.1, 0.1)
    halved = load_psf(path, image_scale_zyx_um=image, is_3d=True)
    kept = load_psf(path, image_scale_zyx_um=image, is_3d=True, psf_scale_zyx_um=image)
    assert halved.values_zyx.shape[2] < 0.7 * kept.values_zyx.shape[2]
    assert halved.values_zyx.shape[0] == kept.values_zyx.shape[0]


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    values = gaussian((15, 15), (7, 7))
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", first=values, second=values)
    np.savez(tmp_path / "scale.npz", psf=values, scale_zyx_um=[1.0, 2.0])
    whole = (tmp_path / "two.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    np.save(tmp_path / "good.npy", values)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:300])
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.tif").write_text("not a TIFF")
    tifffile.imwrite(tmp_path / "channels.tif", np.ones((3, 8, 8), "u2"), imagej=True, metadata={"axes": "CYX"})
    for name in ("missing.tif", "objects.npy", "two.npz", "scale.npz", "cut.npz", "cut.npy", "empty.npy", "text.tif",
                 "channels.tif"):  # fmt: skip
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            load_psf(tmp_path / name, image_scale_zyx_um=UNKNOWN, is_3d=True)


@pytest.mark.parametrize(
    ("name", "background"), [("bars-25pct__kernel", False), ("pollen_psf", False), ("pycudadecon__psf", True),
                             ("PSF_RFI_8bit", False)]
)  # fmt: skip
def test_real_psfs_load(shared: Path, name: str, background: bool) -> None:
    psf = load_psf(shared / "data" / "test" / f"{name}.tif", image_scale_zyx_um=UNKNOWN, is_3d=True)
    check(psf)
    assert any("looks measured" in note for note in psf.notes) == background


def test_a_psf_full_of_nan_is_refused(shared: Path) -> None:
    with pytest.raises(InputError, match="NaN"):
        load_psf(shared / "data" / "test" / "NaN_psf.tif", image_scale_zyx_um=UNKNOWN, is_3d=True)
