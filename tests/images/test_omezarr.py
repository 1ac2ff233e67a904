"""Reading OME-Zarr: a region equals the same part of the whole, and metadata survive.

What metadata do not say is left unknown and told, or asked of the user; it is never guessed.
"""

from __future__ import annotations

import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.omezarr import open_omezarr
from tests.images.omezarr_files import STORES, make_array, make_image, multiscale, pixels, put_json, whole


@pytest.mark.parametrize("name", STORES)
def test_every_store_reads_its_own_pixels(tmp_path: Path, name: str) -> None:
    how = dict(STORES[name])
    data = pixels((4, 17, 23), "float32" if how.pop("float", False) else how.pop("dtype", "uint16"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = open_omezarr(make_image(tmp_path / "a.zarr", data, "zyx", **how))
        read = whole(reader)
    assert reader.info.axes == reader.info.stored_axes == "ZYX"
    assert reader.info.format == f"ome-zarr-{how['version']}"
    assert read.dtype == reader.info.dtype == data.dtype.newbyteorder("=")
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, data)
    assert reader.info.chunks == ((1, 4, 5) if "sharded" in name else (4, 5, 5))


@pytest.fixture(scope="module")
def transposed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A store whose order on disk is XCYZ, and its pixels in canonical order CZYX."""
    data = pixels((13, 2, 11, 6))
    root = make_image(tmp_path_factory.mktemp("t") / "a.zarr", data, "xcyz", version="0.5", chunks=(4, 1, 5, 3))
    return open_omezarr(root), data.transpose(1, 3, 2, 0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_region_equals_that_part_of_the_whole(transposed: tuple[Any, Any], data: st.DataObject) -> None:
    reader, expected = transposed
    region = []
    for size in expected.shape:
        start = data.draw(st.integers(0, size - 1))
        region.append(slice(start, data.draw(st.integers(start + 1, size))))
    read = reader.read(tuple(region))
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, expected[tuple(region)])


def test_a_stored_order_that_is_not_canonical_is_transposed(transposed: tuple[Any, Any]) -> None:
    info = transposed[0].info
    assert (info.axes, info.stored_axes) == ("CZYX", "XCYZ")
    assert info.shape == (2, 6, 11, 13)
    assert info.chunks == (1, 3, 5, 4)


def test_threads_read_what_one_thread_reads(transposed: tuple[Any, Any]) -> None:
    reader, expected = transposed
    regions = [(slice(c, c + 1), slice(z, z + 1), slice(2, 9), slice(1, 12)) for c in range(2) for z in range(6)] * 8
    with ThreadPoolExecutor(6) as pool:
        for region, read in zip(regions, pool.map(reader.read, regions), strict=True):
            np.testing.assert_array_equal(read, expected[region])


@pytest.mark.parametrize("region", [(slice(0, 3),) * 3, (slice(0, 1), slice(0, 1), slice(0, 12), slice(0, 1))])
def test_a_region_outside_the_image_is_a_caller_error(transposed: tuple[Any, Any], region: Any) -> None:
    with pytest.raises(ValueError, match="does not lie inside"):
        transposed[0].read(region)


@pytest.mark.parametrize("series", [0, 1, 2])
def test_a_real_container_equals_what_zarr_reads(shared: Path, series: int) -> None:
    root = shared / "data" / "io" / "CMU-1-Small-Region.ome.zarr"
    reader = open_omezarr(root, series=series)
    direct = zarr.open_array(root / str(series) / "0", mode="r")
    assert reader.info.shape == direct.shape
    assert reader.info.axes == "TCZYX"
    assert (reader.info.series, reader.info.series_count) == (series, 3)
    region = (slice(0, 1), slice(1, 3), slice(0, 1), slice(100, 413), slice(37, 301))
    np.testing.assert_array_equal(reader.read(region), direct[region])
    assert reader.info.channel_names == ("Channel 0", "Channel 1", "Channel 2")
    assert reader.info.channel_colors == ("FF0000", "00FF00", "0000FF")
    assert reader.info.ome_xml is not None
    assert reader.info.ome_xml.encode() == (root / "OME" / "METADATA.ome.xml").read_bytes()


def test_a_real_container_says_that_there_are_several_images(shared: Path) -> None:
    info = open_omezarr(shared / "data" / "io" / "CMU-1-Small-Region.ome.zarr").info
    assert any("3 images" in note and "--series" in note for note in info.notes)
    assert info.scale == (None, None, None, 0.499, 0.499)
    assert info.units == (None, None, None, "micrometer", "micrometer")
    with pytest.raises(InputError, match="no image 3"):
        open_omezarr(shared / "data" / "io" / "CMU-1-Small-Region.ome.zarr", series=3)


def test_scales_of_level_and_image_multiply(tmp_path: Path) -> None:
    entry = multiscale("tczyx", [1.0, 1.0, 2.0, 0.1, 0.1])
    entry["coordinateTransformations"] = [{"type": "scale", "scale": [5.0, 1.0, 0.5, 2.0, 3.0]}]
    entry["axes"][3]["unit"] = "µm"
    root = make_image(tmp_path / "a.zarr", pixels((1, 2, 3, 8, 9)), "tczyx", extra={"multiscales": [entry]})
    info = open_omezarr(root).info
    assert info.scale == pytest.approx((5.0, None, 1.0, 0.2, 0.3))
    assert info.units == ("second", None, "micrometer", "micrometer", "micrometer")
    assert info.notes == ()


def test_a_transformation_that_is_not_understood_leaves_the_size_unknown_and_says_so(tmp_path: Path) -> None:
    entry = multiscale("yx", [0.1, -0.1])
    info = open_omezarr(make_image(tmp_path / "a.zarr", pixels((8, 9)), "yx", extra={"multiscales": [entry]})).info
    assert info.scale == (None, None)
    assert any("not understood" in note for note in info.notes)


@pytest.mark.parametrize("axes", [["t", "c", "z", "y", "x"], None])
def test_older_versions_name_axes_by_letter_or_not_at_all(tmp_path: Path, axes: list[str] | None) -> None:
    entry = multiscale("tczyx") | {"axes": axes, "version": "0.3" if axes else "0.2"}
    root = make_image(tmp_path / "a.zarr", pixels((1, 2, 1, 8, 9)), "tczyx", extra={"multiscales": [entry]})
    assert open_omezarr(root).info.axes == "TCZYX"


def test_a_version_that_names_axes_elsewhere_needs_the_users_word(tmp_path: Path) -> None:
    entry = multiscale("tczyx") | {"axes": None, "version": "0.6"}
    root = make_image(tmp_path / "a.zarr", pixels((1, 2, 1, 8, 9)), "tczyx", extra={"multiscales": [entry]})
    with pytest.raises(InputError, match="do not name the axes"):
        open_omezarr(root)
    assert open_omezarr(root, axes="TCZYX").info.shape == (1, 2, 1, 8, 9)


def test_custom_axis_names_need_the_users_word(tmp_path: Path) -> None:
    entry = multiscale("zyx", [0.3, 0.1, 0.1])
    entry["axes"][0]["name"] = "plane"
    root = make_image(tmp_path / "a.zarr", pixels((3, 8, 9)), "zyx", extra={"multiscales": [entry]})
    with pytest.raises(InputError, match="--axes ZYX"):
        open_omezarr(root)
    assert open_omezarr(root, axes="zyx").info.scale == (0.3, 0.1, 0.1)


def test_axes_that_the_user_renames_lose_their_size(tmp_path: Path) -> None:
    entry = multiscale("tyx", [30.0, 0.1, 0.1])
    root = make_image(tmp_path / "a.zarr", pixels((3, 8, 9)), "tyx", extra={"multiscales": [entry]})
    info = open_omezarr(root, axes="ZYX").info
    assert info.scale == (None, 0.1, 0.1)
    assert info.units == (None, "micrometer", "micrometer")


@pytest.mark.parametrize("axes", ["ZY", "ZZX", "ZCT", "QYX", "TZYX"])
def test_axes_that_do_not_fit_are_refused(tmp_path: Path, axes: str) -> None:
    root = make_image(tmp_path / "a.zarr", pixels((3, 8, 9)), "zyx")
    with pytest.raises(InputError, match=r"ax[ie]s"):
        open_omezarr(root, axes=axes)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_bare_arrays_open_where_their_axes_are_plain(tmp_path: Path, version: str) -> None:
    make_array(tmp_path / "three.zarr", pixels((3, 8, 9)), version)
    make_array(tmp_path / "four.zarr", pixels((2, 3, 8, 9)), version)
    info = open_omezarr(tmp_path / "three.zarr").info
    assert info.axes == "ZYX"
    assert any("no OME metadata" in note for note in info.notes)
    with pytest.raises(InputError, match="--axes"):
        open_omezarr(tmp_path / "four.zarr")
    assert open_omezarr(tmp_path / "four.zarr", axes="CZYX").info.axes == "CZYX"


def test_dimension_names_name_the_axes_of_a_bare_array(tmp_path: Path) -> None:
    make_array(tmp_path / "a.zarr", pixels((2, 3, 8, 9)), "0.5", dimension_names=["t", "c", "y", "x"])
    assert open_omezarr(tmp_path / "a.zarr").info.axes == "TCYX"


def test_images_are_found_in_containers_plates_and_subgroups(tmp_path: Path) -> None:
    shapes = [(8, 9), (9, 9), (10, 9)]
    container, plate, group = tmp_path / "c.zarr", tmp_path / "p.zarr", tmp_path / "g.zarr"
    put_json(container / ".zattrs", {"bioformats2raw.layout": 3})
    wells = [{"path": "A/1"}, {"path": "A/2"}, {"path": "B/1"}]
    put_json(plate / ".zattrs", {"plate": {"wells": wells}})
    put_json(plate / "A" / "1" / ".zattrs", {"well": {"images": [{"path": "0"}, {"path": "1"}]}})
    put_json(plate / "B" / "1" / ".zattrs", {"well": {"images": [{"path": "0"}]}})
    put_json(group / ".zgroup", {"zarr_format": 2})
    for i, shape in enumerate(shapes):
        make_image(container / str(i), pixels(shape), "yx")
        make_image(plate / ("A/1/0", "A/1/1", "B/1/0")[i], pixels(shape), "yx")
        make_image(group / f"image{(2, 10, 11)[i]}", pixels(shape), "yx")
    for root in (container, plate, group):
        for i, shape in enumerate(shapes):
            info = open_omezarr(root, series=i).info
            assert (info.shape, info.series_count) == (shape, 3)
    assert any("1 of the 3 wells" in note for note in open_omezarr(plate).info.notes)


def test_a_group_with_one_array_and_no_metadata_opens_it(tmp_path: Path) -> None:
    put_json(tmp_path / "a.zarr" / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {}})
    make_array(tmp_path / "a.zarr" / "data", pixels((8, 9)), "0.5")
    info = open_omezarr(tmp_path / "a.zarr").info
    assert info.shape == (8, 9)
    assert any("'data'" in note for note in info.notes)
    make_array(tmp_path / "a.zarr" / "more", pixels((8, 9)), "0.5")
    with pytest.raises(InputError, match="several arrays"):
        open_omezarr(tmp_path / "a.zarr")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_fingerprint_follows_content_and_neither_path_nor_time(tmp_path: Path, version: str) -> None:
    first = make_image(tmp_path / "a.zarr", pixels((4, 17, 23)), "zyx", version)
    before = open_omezarr(first).fingerprint()
    copy = Path(shutil.copytree(first, tmp_path / "b.zarr"))
    for file in copy.rglob("*"):
        os.utime(file, (0, 0))
    assert open_omezarr(copy).fingerprint() == before
    array = zarr.open_array(copy / "0", mode="r+")
    array[2, 3, 4] = 11
    changed = open_omezarr(copy).fingerprint()
    assert changed != before
    array[2, 3, 4] = int(pixels((4, 17, 23))[2, 3, 4])
    document = copy / (".zattrs" if version == "0.4" else "zarr.json")
    document.write_text(document.read_text().replace("micrometer", "nanometer"))
    assert open_omezarr(copy).fingerprint() not in (before, changed)


def test_the_fingerprint_of_a_huge_sparse_store_lists_nothing(tmp_path: Path) -> None:
    root = tmp_path / "a.zarr"
    zarr.create_array(root, shape=(10**6, 2**20, 2**20), chunks=(1, 64, 64), dtype="u2", zarr_format=3)
    array = zarr.open_array(root, mode="r+")
    reader = open_omezarr(root)
    empty = reader.fingerprint()
    array[0, :1, :1] = 5
    assert open_omezarr(root).fingerprint() != empty


def test_channel_metadata_that_do_not_fit_are_dropped_with_a_note(tmp_path: Path) -> None:
    extra = {"omero": {"channels": [{"label": "DAPI", "color": "#0000ff"}, {"label": None, "color": "bad"}]}}
    fits = open_omezarr(make_image(tmp_path / "a.zarr", pixels((2, 8, 9)), "cyx", extra=extra)).info
    assert (fits.channel_names, fits.channel_colors) == (("DAPI", ""), ("0000FF", "FFFFFF"))
    info = open_omezarr(make_image(tmp_path / "b.zarr", pixels((3, 8, 9)), "cyx", extra=extra)).info
    assert (info.channel_names, info.channel_colors) == ((), ())
    assert any("2 channels" in note for note in info.notes)
