"""Reading OME-Zarr: a region equals the same part of the whole, metadata survive, and damage is refused by name."""

from __future__ import annotations

import json
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
from mrbcr_cli.images.omezarr import is_zarr, open_omezarr

UNITS = {"t": ("time", "second"), "c": ("channel", None), "z": ("space", "micrometer")}


def pixels(shape: tuple[int, ...], dtype: str = "uint16") -> np.ndarray[Any, Any]:
    values = np.arange(int(np.prod(shape))) * 7919 % 60000
    return values.reshape(shape).astype(dtype)


def axis(name: str) -> dict[str, Any]:
    kind, unit = UNITS.get(name, ("space", "micrometer"))
    return {"name": name, "type": kind} | ({"unit": unit} if unit else {})


def multiscale(axes: str, scale: list[float] | None = None, path: str = "0") -> dict[str, Any]:
    transforms = [{"type": "scale", "scale": scale or [1.0] * len(axes)}]
    return {
        "version": "0.4",
        "axes": [axis(name) for name in axes],
        "datasets": [{"path": path, "coordinateTransformations": transforms}],
    }


def put_json(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def make_array(folder: Path, data: np.ndarray[Any, Any], version: str = "0.4", **how: Any) -> None:
    """An array as others write them; `how` goes to zarr."""
    how.setdefault("chunks", tuple(min(n, 5) for n in data.shape))
    with (
        warnings.catch_warnings()
    ):  # zarr warns of codecs and types that v3 does not standardise; files have them all the same
        warnings.simplefilter("ignore")
        array = zarr.create_array(folder, shape=data.shape, dtype=data.dtype, zarr_format=int(version[-1]) - 2, **how)
        array[...] = data


def make_image(
    root: Path, data: np.ndarray[Any, Any], axes: str, version: str = "0.4", *, extra: Any = None, **how: Any
) -> Path:
    make_array(root / "0", data, version, **how)
    ome = {"multiscales": [multiscale(axes)], **(extra or {})}
    if version == "0.4":
        put_json(root / ".zgroup", {"zarr_format": 2})
        put_json(root / ".zattrs", ome)
    else:
        attributes = {"ome": {"version": "0.5", **ome}}
        put_json(root / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes})
    return root


def whole(reader: Any) -> Any:
    return reader.read(tuple(slice(0, n) for n in reader.info.shape))


STORES: dict[str, dict[str, Any]] = {
    "v2": {"version": "0.4", "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "v2-dots": {"version": "0.4", "chunk_key_encoding": {"name": "v2", "separator": "."}},
    "v2-big-endian": {"version": "0.4", "dtype": ">u2"},
    "v2-fortran": {"version": "0.4", "order": "F"},
    "v2-raw": {"version": "0.4", "compressors": None},
    "v2-delta-zlib": {"version": "0.4", "compressors": {"id": "zlib", "level": 1}, "float": True},
    "v3": {"version": "0.5"},
    "v3-sharded": {"version": "0.5", "chunks": (1, 4, 5), "shards": (2, 8, 10)},
    "v3-gzip": {"version": "0.5", "compressors": {"name": "gzip", "configuration": {"level": 1}}},
    "v3-big-endian": {"version": "0.5", "serializer": {"name": "bytes", "configuration": {"endian": "big"}}},
    "v3-numcodecs": {"version": "0.5", "compressors": {"name": "numcodecs.lzma", "configuration": {}}},
    "v3-v2-keys": {"version": "0.5", "chunk_key_encoding": {"name": "v2", "separator": "."}},
}


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


@pytest.mark.parametrize("dtype", ["bool", "complex64", "S4", "U3", "M8[s]"])
def test_types_that_are_no_intensities_are_refused(tmp_path: Path, dtype: str) -> None:
    make_array(tmp_path / "a.zarr", np.zeros((4, 4), dtype), "0.4")
    with pytest.raises(InputError, match="cannot be deconvolved"):
        open_omezarr(tmp_path / "a.zarr")


def test_structured_arrays_and_empty_axes_are_refused(tmp_path: Path) -> None:
    make_array(tmp_path / "s.zarr", np.zeros((4, 4), [("a", "i2"), ("b", "f4")]), "0.4")
    make_array(tmp_path / "z.zarr", np.zeros((0, 4), "u2"), "0.4", chunks=(1, 4))
    for name in ("s", "z"):
        with pytest.raises(InputError):
            open_omezarr(tmp_path / f"{name}.zarr")


@pytest.mark.parametrize("name", ["../secret", "/secret", "0/../../secret", "C:\\secret", "..\\secret", "", 3, "a\0b"])
def test_dataset_paths_may_not_leave_the_store(tmp_path: Path, name: object) -> None:
    make_array(tmp_path / "secret", pixels((8, 9)))
    path = str(tmp_path / "secret") if name == "/secret" else name
    entry = multiscale("yx") | {"datasets": [{"path": path}]}
    root = make_image(tmp_path / "a.zarr", pixels((8, 9)), "yx", extra={"multiscales": [entry]})
    with pytest.raises(InputError, match=r"outside the store|no path"):
        open_omezarr(root)


def test_links_may_not_leave_the_store(tmp_path: Path) -> None:
    make_array(tmp_path / "secret", pixels((8, 9)))
    root = make_image(tmp_path / "a.zarr", pixels((8, 9)), "yx")
    shutil.rmtree(root / "0")
    (root / "0").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="leaves the store"):
        open_omezarr(root)
    (root / "0").unlink()
    (root / "0").symlink_to(root / "0")
    with pytest.raises(InputError):
        open_omezarr(root)


def test_a_link_to_the_store_itself_is_fine(tmp_path: Path) -> None:
    root = make_image(tmp_path / "a.zarr", pixels((8, 9)), "yx")
    (tmp_path / "link.zarr").symlink_to(root)
    assert open_omezarr(tmp_path / "link.zarr").info.shape == (8, 9)


@pytest.mark.parametrize("document", ["{", "[]", '{"multiscales": 3}', '{"multiscales": [{}]}', "[" * 100_000])
def test_damaged_documents_are_refused(tmp_path: Path, document: str) -> None:
    root = make_image(tmp_path / "a.zarr", pixels((8, 9)), "yx")
    (root / ".zattrs").write_text(document)
    with pytest.raises(InputError, match=r"a\.zarr") as caught:
        open_omezarr(root)
    assert len(str(caught.value).splitlines()) <= 2


def test_a_dataset_that_is_not_there_is_refused(tmp_path: Path) -> None:
    root = make_image(tmp_path / "a.zarr", pixels((8, 9)), "yx")
    shutil.rmtree(root / "0")
    with pytest.raises(InputError, match="not there"):
        open_omezarr(root)


def test_an_unknown_codec_is_refused_when_opening(tmp_path: Path) -> None:
    root = make_image(tmp_path / "a.zarr", pixels((8, 9)), "yx")
    document = json.loads((root / "0" / ".zarray").read_text())
    put_json(root / "0" / ".zarray", document | {"compressor": {"id": "jxl-from-mars"}})
    with pytest.raises(InputError, match="zarr cannot open this array"):
        open_omezarr(root)


@pytest.mark.parametrize("path", ["missing.zarr", "empty", "file.zarr"])
def test_what_is_no_store_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.zarr").write_bytes(b"PK")
    assert not is_zarr(tmp_path / path)
    with pytest.raises(InputError):
        open_omezarr(tmp_path / path)


def damaged(path: Path, how: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "empty": b"",
            "half": content[:middle],
            "minus one": content[:-1],
            "garbage": bytes(range(256)) * (len(content) // 256 + 1),
        }[how]
    )


@pytest.mark.parametrize("how", ["empty", "half", "minus one", "garbage"])
@pytest.mark.parametrize("name", ["v2", "v2-raw", "v3", "v3-sharded", "v3-gzip", "v3-start-index"])
def test_a_damaged_chunk_is_an_error_that_names_array_and_region(tmp_path: Path, name: str, how: str) -> None:
    if name == "v3-start-index":
        shards = {"shape": (2, 8, 10), "index_location": "start"}
        store: dict[str, Any] = {"version": "0.5", "chunks": (1, 4, 5), "shards": shards, "compressors": None}
    else:
        store = dict(STORES[name])
    root = make_image(tmp_path / "a.zarr", pixels((2, 8, 10)), "zyx", **store)
    files = [f for f in (root / "0").rglob("*") if f.is_file() and not f.name.startswith(".") and f.suffix != ".json"]
    damaged(max(files), how)
    with pytest.raises(InputError, match=r"a\.zarr.*\[0:2, 0:8, 0:10\]"):
        whole(open_omezarr(root))
    assert np.array_equal(
        whole(open_omezarr(make_image(tmp_path / "b.zarr", pixels((2, 8, 10)), "zyx", **store))), pixels((2, 8, 10))
    )


def test_a_missing_chunk_is_the_fill_value(tmp_path: Path) -> None:
    root = make_image(
        tmp_path / "a.zarr",
        pixels((10, 10)) + 1,
        "yx",
        fill_value=7,
        chunk_key_encoding=STORES["v2"]["chunk_key_encoding"],
    )
    (root / "0" / "1" / "1").unlink()
    read = whole(open_omezarr(root))
    assert (read[5:, 5:] == 7).all()
    np.testing.assert_array_equal(read[:5], pixels((10, 10))[:5] + 1)


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
