"""The TIFF reader: reads what tifffile reads, by region; refuses what cannot be read to its end as intensities."""

from __future__ import annotations

import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.axes import interpret_axes, parse_axes
from mrbcr_cli.images.tiff import TiffReader, open_tiff
from mrbcr_cli.images.tiff_pages import SegmentCache

UM = "micrometer"
# Pixel sizes stated independently of the reader: (Z, Y, X) in micrometres (nanometres for the PSF) from each file's
# OME-XML attributes or from ImageJ's Image > Properties (spacing; 1 / XResolution); None where the file is silent.
SIZES: dict[str, tuple[float | None, float | None, float | None]] = {
    "io/CMU-1-Small-Region.ome.tiff": (None, 0.499, 0.499),
    "io/yeast_3d_mito_T4.ome.tif": (0.25, 0.0655, 0.0655),
    "io/4D-series.ome.tif": (None, None, None),
    "io/xyz_calibrated_16bit__golgi_bfa.tif": (0.3876, 0.351435, 0.351435),
    "io/xyzc_8bit_spheres.tif": (2.0, 1.0, 1.0),
    "io/img3d.tif": (None, None, None),
    "test/Bead_Image1_crop.tif": (0.125, 0.0224919, 0.0224919),
    "test/DeconvolutionSampleVerticalGrid1AU-crop.tif": (0.125, 0.0219647, 0.0219647),
    "test/celegans.tif": (None, 0.0426137, 0.0426137),
    "test/bars-25pct__data.tif": (None, None, None),
    "train/pollen.tif": (None, None, None),
    "train/render_20nm.tif": (None, 0.02, 0.02),
    "train/maize_clsm.tif": (None, None, None),
    "train/xy_16bit__rat_hippocampal_neuron.tif": (None, 0.16, 0.16),
    "train/xyc_16bit__cell_dna_nup_mts_actin.tif": (None, 0.132492, 0.132492),
}
COLOUR = {"rand_uint16.ome.tiff", "xyc_16bit__hela-cells.tif"}


def whole(reader: TiffReader) -> NDArray[Any]:
    return reader.read(tuple(slice(0, size) for size in reader.info.shape))


def in_order(array: NDArray[Any], stored: str, axes: str) -> NDArray[Any]:
    return array.transpose([stored.index(axis) for axis in axes])


def test_every_real_file_opens_as_tifffile_reads_it(shared: Path) -> None:
    files = [p for folder in ("io", "test", "train") for p in sorted((shared / "data" / folder).glob("*.tif*"))]
    assert len(files) > 30
    for path in files:
        if path.name in COLOUR:
            with pytest.raises(InputError, match="--split-rgb"):
                open_tiff(path)
        reader = open_tiff(path, split_rgb=path.name in COLOUR)
        info = reader.info
        expected = tifffile.imread(path)
        assert info.dtype == expected.dtype.newbyteorder("="), path
        np.testing.assert_array_equal(whole(reader), in_order(expected, info.stored_axes, info.axes), str(path))
        assert len(info.scale) == len(info.units) == len(info.chunks) == len(info.axes) == len(info.shape)
        reader.close()


@pytest.mark.parametrize("name", sorted(SIZES))
def test_pixel_sizes_of_real_files(shared: Path, name: str) -> None:
    info = open_tiff(shared / "data" / name).info
    for axis, size in zip("ZYX", SIZES[name], strict=True):
        assert info.scale_of(axis) == (None if size is None else pytest.approx(size, rel=1e-5)), axis
        assert info.unit_of(axis) == (None if size is None else UM), axis


def test_a_real_psf_in_nanometres_and_real_channels(shared: Path) -> None:
    info = open_tiff(shared / "data/test/PSF_RFI_8bit.tif").info
    assert (info.scale_of("Z"), info.unit_of("Z"), info.unit_of("X")) == (300.0, "nanometer", "nanometer")
    info = open_tiff(shared / "data/io/xyzc_8bit_spheres.tif").info
    assert (info.axes, info.stored_axes, info.shape) == ("CZYX", "ZCYX", (2, 25, 50, 50))
    assert info.channel_colors == ("FF0000", "00FF00")


def test_real_series_are_chosen_by_number(shared: Path) -> None:
    path = shared / "data/io/CMU-1-Small-Region.ome.tiff"
    first, second = open_tiff(path), open_tiff(path, series=1)
    assert (first.info.series_count, first.info.shape, second.info.shape) == (3, (3, 2967, 2220), (3, 463, 387))
    assert "--series" in first.info.notes[0]
    assert not second.info.notes
    assert first.fingerprint() != second.fingerprint()
    np.testing.assert_array_equal(whole(second), tifffile.imread(path, series=1, level=0))
    with pytest.raises(InputError, match="no series 3; it holds 3 series"):
        open_tiff(path, series=3)


@pytest.mark.parametrize("name", ["io/toxo.dv", "io/xyz__multiple_images.czi"])
def test_other_formats_are_refused(shared: Path, name: str) -> None:
    with pytest.raises(InputError, match="bioformats2raw"):
        open_tiff(shared / "data" / name)


LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "big-endian": {"byteorder": ">"},
    "bigtiff": {"bigtiff": True},
    "strips": {"rowsperstrip": 7},
    "strips-deflate-predictor": {"rowsperstrip": 7, "compression": "zlib", "predictor": True},
    "strips-lzw-big-endian": {"rowsperstrip": 13, "compression": "lzw", "byteorder": ">"},
    "plane-packbits": {"compression": "packbits"},
    "tiles": {"tile": (16, 32)},
    "tiles-zstd-big-endian": {"tile": (32, 16), "compression": "zstd", "byteorder": ">"},
    "tiles-lzma": {"tile": (64, 64), "compression": "lzma"},
    "tiles-jpeg2000": {"tile": (32, 32), "compression": "jpeg2000"},
    "volume-tiles": {"tile": (2, 16, 16), "volumetric": True, "compression": "zlib"},
    "imagej": {"imagej": True, "metadata": {"axes": "TZCYX"}},
    "ome-pyramid": {"ome": True, "tile": (16, 16), "metadata": {"axes": "TZCYX"}},
}
STORED = (2, 3, 2, 41, 53)


@pytest.fixture(scope="module", params=LAYOUTS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A TZCYX image (seen as TCZYX) in one of many layouts, and its reader."""
    path = tmp_path_factory.mktemp("layout") / "image.tif"
    image = np.random.default_rng(1).integers(0, 2**16, STORED, np.uint16)
    options = dict(LAYOUTS[request.param])
    options.setdefault("metadata", {"axes": "TZCYX"})
    if options.pop("volumetric", False):
        tifffile.imwrite(
            path, image[:, :, 0], volumetric=True, photometric="minisblack", **{**options, "metadata": {"axes": "TZYX"}}
        )
        image = image[:, :, :1]
    elif request.param == "ome-pyramid":
        with tifffile.TiffWriter(path, ome=True) as writer:
            writer.write(image, subifds=1, tile=(16, 16), metadata={"axes": "TZCYX"})
            writer.write(image[..., ::2, ::2], subfiletype=1, tile=(16, 16))
    else:
        tifffile.imwrite(path, image, photometric="minisblack", **options)
    reader = open_tiff(path)
    full = image.transpose(0, 2, 1, 3, 4)
    yield reader, full if "C" in reader.info.axes else full[:, 0]
    reader.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_region_is_that_part_of_the_whole(written: Any, data: st.DataObject) -> None:
    reader, full = written
    assert reader.info.shape == full.shape
    region = []
    for size in full.shape:
        start = data.draw(st.integers(0, size - 1))
        region.append(slice(start, data.draw(st.integers(start + 1, size))))
    np.testing.assert_array_equal(reader.read(tuple(region)), full[tuple(region)])


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("options", [{}, {"tile": (16, 16)}, {"rowsperstrip": 5, "compression": "zlib"}])
def test_split_colours_read_by_region(tmp_path: Path, planar: str, options: dict[str, Any]) -> None:
    image = np.random.default_rng(2).integers(0, 255, (4, 3, 30, 40), np.uint8)  # Z, sample, Y, X
    stored = image if planar == "separate" else image.transpose(0, 2, 3, 1)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar, **options)
    with pytest.raises(InputError, match="RGB"):
        open_tiff(tmp_path / "a.tif")
    reader = open_tiff(tmp_path / "a.tif", split_rgb=True)
    full = image.transpose(1, 0, 2, 3)
    assert (reader.info.axes, reader.info.shape) == ("CZYX", full.shape)
    assert reader.info.channel_names == ("red", "green", "blue")
    region = (slice(1, 3), slice(1, 4), slice(3, 20), slice(17, 39))
    np.testing.assert_array_equal(reader.read(region), full[region])


def test_samples_fold_into_existing_channels(tmp_path: Path) -> None:
    image = np.random.default_rng(3).integers(0, 255, (2, 4, 20, 30, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", metadata={"axes": "CZYXS"})
    reader = open_tiff(tmp_path / "a.tif", split_rgb=True)
    full = image.transpose(0, 4, 1, 2, 3).reshape(6, 4, 20, 30)
    for first in range(6):
        for last in range(first + 1, 7):
            region = (slice(first, last), slice(1, 3), slice(0, 20), slice(4, 9))
            np.testing.assert_array_equal(reader.read(region), full[region])


@pytest.mark.parametrize(
    "dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", ">u2", ">i4", ">f4", ">f8"]
)
def test_every_real_and_integer_type(tmp_path: Path, dtype: str) -> None:
    image = (np.random.default_rng(4).random((3, 20, 30)) * 100).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", image, byteorder=">" if dtype[0] == ">" else "<", photometric="minisblack")
    reader = open_tiff(tmp_path / "a.tif")
    assert reader.info.dtype == np.dtype(dtype).newbyteorder("=")
    assert reader.info.dtype.isnative
    pixels = whole(reader)
    assert pixels.dtype.isnative
    np.testing.assert_array_equal(pixels, image)


@pytest.mark.parametrize("dtype", ["complex64", "bool"])
def test_complex_and_boolean_are_refused(tmp_path: Path, dtype: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), dtype))
    with pytest.raises(InputError, match="not intensities"):
        open_tiff(tmp_path / "a.tif")


def test_palettes_are_refused_unless_they_are_a_ramp(tmp_path: Path) -> None:
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (3, 1))
    ramp[1] = 0
    tifffile.imwrite(tmp_path / "ramp.tif", image, photometric="palette", colormap=ramp)
    tifffile.imwrite(tmp_path / "map.tif", image, photometric="palette", colormap=ramp[:, ::-1])
    np.testing.assert_array_equal(whole(open_tiff(tmp_path / "ramp.tif")), image)
    with pytest.raises(InputError, match="palette"):
        open_tiff(tmp_path / "map.tif")


@pytest.mark.parametrize("name", sorted({"contiguous", "strips-deflate-predictor", "tiles", "imagej", "bigtiff"}))
def test_truncated_files_are_refused_before_computing(tmp_path: Path, name: str) -> None:
    options = {"metadata": {"axes": "TZCYX"}, **LAYOUTS[name]}
    image = np.random.default_rng(5).integers(0, 2**16, STORED, np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack", **options)
    data = (tmp_path / "a.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        end = max(o + c for p in tif.pages for o, c in zip(p.dataoffsets, p.databytecounts, strict=True))
    for cut in (3, 6, 100, len(data) // 4, len(data) // 2, end - 1):
        (tmp_path / "cut.tif").write_bytes(data[:cut])
        with pytest.raises(InputError, match=r"cut\.tif: (is truncated|is damaged|holds|is not a TIFF|cannot be read)"):
            open_tiff(tmp_path / "cut.tif")


def test_damaged_data_name_the_plane(tmp_path: Path) -> None:
    image = np.random.default_rng(6).integers(0, 9, (3, 64, 64), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", image, compression="zlib", photometric="minisblack")
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        offset, count = tif.pages[1].dataoffsets[0], tif.pages[1].databytecounts[0]
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[offset : offset + count] = b"\xff" * count
    (tmp_path / "a.tif").write_bytes(data)
    reader = open_tiff(tmp_path / "a.tif")
    np.testing.assert_array_equal(reader.read((slice(2, 3), slice(0, 64), slice(0, 64)))[0], image[2])
    for _ in range(2):  # a failure is not kept in the cache as if it were pixels
        with pytest.raises(InputError, match=r"a\.tif: plane 2 of 3 cannot be decoded"):
            whole(reader)


def test_what_is_no_tiff_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.tif").touch()
    (tmp_path / "text.tif").write_bytes(b"II*\0 not really a TIFF file, only text that begins like one")
    (tmp_path / "short.tif").write_bytes(b"II")
    (tmp_path / "none.tif").write_bytes(b"II*\0" + bytes(4))
    (tmp_path / "circle.tif").write_bytes(b"II*\0" + struct.pack("<IHHHIII", 8, 1, 256, 3, 1, 7, 8))
    for name, words in {
        "empty.tif": "is empty", "text.tif": "truncated|damaged", "short.tif": "not a TIFF", "none.tif": "no image",
        "circle.tif": "circle", "absent.tif": "no such file", ".": "is a folder",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=words) as caught:
            open_tiff(tmp_path / name)
        assert len(str(caught.value).splitlines()) <= 2


def test_compressions_that_nobody_knows_fail_when_opened(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((32, 32), np.uint8), compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tif:
        tif.pages.first.tags[259].overwrite(64999)
    with pytest.raises(InputError, match=r"a\.tif"):
        open_tiff(tmp_path / "a.tif")


def test_axes_are_the_users_to_override(tmp_path: Path) -> None:
    image = np.random.default_rng(7).integers(0, 99, (5, 6, 20, 30), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack")
    with pytest.raises(InputError, match="--axes"):
        open_tiff(tmp_path / "a.tif")
    for axes, order in {"ZTYX": (1, 0, 2, 3), "CTYX": (1, 0, 2, 3), "tcyx": (0, 1, 2, 3), "YXZT": (3, 2, 0, 1)}.items():
        reader = open_tiff(tmp_path / "a.tif", axes=axes)
        np.testing.assert_array_equal(whole(reader), image.transpose(order))
        assert reader.info.stored_axes == axes.upper()
    for bad in ("ZYX", "QZYX", "ZZYX", "TCZY", "", "TCZYX"):
        with pytest.raises(InputError, match="5 x 6 x 20 x 30") as caught:
            open_tiff(tmp_path / "a.tif", axes=bad)
        assert "T, C, Z, Y, X" in str(caught.value) or "named twice" in str(caught.value)
    assert (
        open_tiff(tmp_path / "a.tif", axes="TZYX").fingerprint()
        != open_tiff(tmp_path / "a.tif", axes="ZTYX").fingerprint()
    )


def test_axis_letters() -> None:
    assert parse_axes(" zyx ", shape=(4, 1, 5, 6)) == "ZYX"
    assert interpret_axes("QYX", (3, 4, 5), path="a").letters == ("Z", "Y", "X")
    assert interpret_axes("QYX", (1, 4, 5), path="a").letters == ("", "Y", "X")
    assert interpret_axes("QYX", (1, 4, 5), path="a", user="YX").letters == ("", "Y", "X")
    assert interpret_axes("CYXS", (2, 4, 5, 3), path="a", split_rgb=True).stored_axes == "CYX"
    assert interpret_axes("SYX", (3, 4, 5), path="a", split_rgb=True).stored_axes == "CYX"
    for found, shape in (("QQYX", (2, 3, 4, 5)), ("QZYX", (2, 3, 4, 5)), ("ZY", (2, 3))):
        with pytest.raises(InputError, match="give --axes"):
            interpret_axes(found, shape, path="a")


def test_a_contiguous_imagej_stack_needs_one_directory_only(tmp_path: Path) -> None:
    """ImageJ writes stacks above 4 GB as one page followed by the pixels of all."""
    image = np.random.default_rng(9).integers(0, 99, (6, 20, 30), np.uint16)
    text = "ImageJ=1.53t\nimages=6\nslices=6\nunit=micron\nspacing=0.5\n"
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image[0], metadata=None, description=text, byteorder=">")
    with tifffile.TiffFile(path) as tif:
        end = tif.pages.first.dataoffsets[0] + image[0].nbytes
    path.write_bytes(path.read_bytes()[:end] + image[1:].astype(">u2").tobytes())
    reader = open_tiff(path)
    assert (reader.info.axes, reader.info.shape, reader.info.scale_of("Z")) == ("ZYX", (6, 20, 30), 0.5)
    np.testing.assert_array_equal(whole(reader), image)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="truncated"):
        open_tiff(path)


def test_pages_of_several_kinds_are_series(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for shape in ((2, 8, 16), (5, 7)):
            writer.write(np.zeros(shape, np.uint8), metadata=None, photometric="minisblack")
    assert open_tiff(tmp_path / "a.tif").info.shape == (2, 8, 16)
    assert open_tiff(tmp_path / "a.tif", series=1).info.shape == (5, 7)


def test_the_fingerprint_follows_contents_and_not_the_name(tmp_path: Path) -> None:
    image = np.zeros((64, 64), np.uint16)
    prints = []
    for name, value in (("a", 0), ("b", 0), ("c", 1)):
        image[33, 7] = value
        tifffile.imwrite(tmp_path / f"{name}.tif", image)
        prints.append(open_tiff(tmp_path / f"{name}.tif").fingerprint())
    assert prints[0] == prints[1] != prints[2]


def test_threads_share_a_reader(tmp_path: Path) -> None:
    image = np.random.default_rng(10).integers(0, 2**16, (4, 128, 128), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(32, 32), compression="zlib", photometric="minisblack")
    reader = open_tiff(tmp_path / "a.tif")
    regions = [
        (slice(z, z + 1), slice(y, y + 50), slice(x, x + 50)) for z in range(4) for y in (0, 40) for x in (9, 70)
    ]
    with ThreadPoolExecutor(8) as pool:
        for region, pixels in zip(regions * 5, pool.map(reader.read, regions * 5), strict=True):
            np.testing.assert_array_equal(pixels, image[region])


def test_the_cache_is_bounded_and_decodes_once() -> None:
    cache, made, gate = SegmentCache(max_bytes=250), [], threading.Event()

    def make(key: int) -> NDArray[Any]:
        made.append(key)
        gate.wait(5)
        return np.full(100, key, np.uint8)

    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(cache.get, 0, lambda: make(0)) for _ in range(4)]
        gate.set()
        assert all(each.result() is waiting[0].result() for each in waiting)
    assert made == [0]
    for key in (1, 2, 2, 1, 0):
        cache.get(key, lambda key=key: make(key))  # type: ignore[misc]
    assert made == [0, 1, 2, 0]  # two of 100 bytes fit: 0 was dropped for 2
    cache.get(9, lambda: np.zeros(1000, np.uint8))
    cache.get(9, lambda: pytest.fail("the last segment is kept, whatever its size"))


def test_a_compressed_plane_is_decoded_once_for_many_blocks(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((64, 64), np.uint16), compression="zlib")
    reader = open_tiff(tmp_path / "a.tif")
    whole(reader)
    (tmp_path / "a.tif").write_bytes(bytes(9999))  # what is decoded needs no file any more
    assert reader.read((slice(5, 9), slice(3, 60))).all()


def test_a_region_outside_the_image_is_a_bug(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((8, 8), np.uint16))
    reader = open_tiff(tmp_path / "a.tif")
    for region in ((slice(0, 9), slice(0, 8)), (slice(0, 8),), (slice(None), slice(0, 8)), (slice(-1, 4), slice(0, 8))):
        with pytest.raises(ValueError, match=r"outside|axes|explicit"):
            reader.read(region)


def test_a_page_of_another_size_inside_a_stack_is_refused(tmp_path: Path) -> None:
    """tifffile looks at three pages only to call a stack uniform, and would crop this one."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for page in range(20):
            image = np.zeros((30 + (page == 9), 20), np.uint8)
            writer.write(image, metadata=None, photometric="minisblack", compression="zlib")
    with pytest.raises(InputError, match="plane 10 of 20 differs"):
        open_tiff(tmp_path / "a.tif")
