"""The TIFF writer: what goes in comes back, the OME-XML is valid, memory stays bounded, a failure is loud."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import ome_types
import pytest
import tifffile
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.images import tiff_write
from mrbcr_cli.images.base import OutputSpec, Region
from mrbcr_cli.images.tiff import open_tiff
from mrbcr_cli.images.tiff_write import check_tiff_dtype, read_provenance, read_source_xml, write_ome_tiff

SOURCE_XML = '<?xml version="1.0"?>\r\n<!-- kept -->\t<OME Name=\'µ & "é"\'/>\n'
PROVENANCE = {"command": "mrbcr deconvolve a b", "range": [0.5, 1e9], "note": "µ <&> ]]>\n\x07"}


def make_spec(shape: tuple[int, ...], dtype: str, axes: str = "TCZYX", stored: str | None = None) -> OutputSpec:
    scale = {"T": 2.5, "C": None, "Z": 0.3, "Y": 65.5, "X": 1 / 3}
    units = {"T": "millisecond", "C": None, "Z": "micrometer", "Y": "nanometer", "X": "angstrom"}
    count = shape[axes.index("C")] if "C" in axes else 1
    return OutputSpec(
        axes=axes,
        shape=shape,
        dtype=np.dtype(dtype),
        stored_axes=stored or axes,
        scale=tuple(scale[axis] for axis in axes),
        units=tuple(units[axis] for axis in axes),
        channel_names=tuple(f"Alexa {i} µ<&>" for i in range(count)),
        channel_colors=("FF00AA", "00FF00", "0000FF")[:count],
        name="cells & µ",
        source_ome_xml=SOURCE_XML,
        provenance=PROVENANCE,
    )


def ramp(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    return (np.arange(np.prod(shape)).reshape(shape) % 251 - (100 if dtype.startswith("int") else 0)).astype(dtype)


@pytest.mark.parametrize("compression", ["zstd", "deflate", "none"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
@pytest.mark.parametrize("shape", [(2, 3, 2, 33, 57), (1, 1, 2, 64, 64)])
def test_everything_comes_back(tmp_path: Path, shape: tuple[int, ...], dtype: str, compression: Any) -> None:
    path, spec, image = tmp_path / "out.ome.tif", make_spec(shape, dtype, stored="ZCTYX"), ramp(shape, dtype)
    write_ome_tiff(path, spec, lambda region: image[region], compression=compression, tile_px=32)
    reader = open_tiff(path)
    info = reader.info
    np.testing.assert_array_equal(reader.read(tuple(slice(0, n) for n in info.shape)), image)
    for name in ("axes", "shape", "dtype", "stored_axes", "scale", "units", "channel_names", "channel_colors"):
        assert getattr(info, name) == getattr(spec, name), name
    assert info.notes == ()
    assert read_provenance(path) == PROVENANCE
    assert read_source_xml(path) == SOURCE_XML
    reader.close()


@pytest.mark.parametrize(("axes", "stored"), [("YX", "XY"), ("CYX", "YXC"), ("ZYX", "ZYX"), ("TZYX", "ZTYX")])
def test_axes_and_order_survive(tmp_path: Path, axes: str, stored: str) -> None:
    shape = {"T": 3, "C": 2, "Z": 4, "Y": 20, "X": 30}
    size = tuple(shape[axis] for axis in axes)
    path, spec, image = tmp_path / "out.tif", make_spec(size, "uint16", axes, stored), ramp(size, "uint16")
    write_ome_tiff(path, spec, lambda region: image[region])
    reader = open_tiff(path)
    order = "".join(axis for axis in stored if axis not in "YX") + "YX"
    assert (reader.info.axes, reader.info.stored_axes) == (axes, order)
    np.testing.assert_array_equal(reader.read(tuple(slice(0, n) for n in size)), image)
    with tifffile.TiffFile(path) as tif:
        assert (tif.series[0].axes, tif.series[0].shape) == (order, tuple(shape[axis] for axis in order))
    np.testing.assert_array_equal(tifffile.imread(path), image.transpose([axes.index(axis) for axis in order]))
    reader.close()


def test_the_ome_xml_is_valid_and_complete(tmp_path: Path) -> None:
    path, shape = tmp_path / "out.ome.tif", (2, 3, 4, 20, 30)
    write_ome_tiff(path, make_spec(shape, "uint16"), lambda region: ramp(shape, "uint16")[region])
    ome = ome_types.from_tiff(path)  # its models refuse what the schema does
    pixels = ome.images[0].pixels
    assert (pixels.size_t, pixels.size_c, pixels.size_z, pixels.size_y, pixels.size_x) == shape
    assert (pixels.physical_size_y, pixels.physical_size_y_unit.value) == (65.5, "nm")
    assert (pixels.time_increment, pixels.time_increment_unit.value) == (2.5, "ms")
    assert [channel.name for channel in pixels.channels] == ["Alexa 0 µ<&>", "Alexa 1 µ<&>", "Alexa 2 µ<&>"]
    assert pixels.channels[0].color is not None
    assert pixels.channels[0].color.as_rgb_tuple()[:3] == (0xFF, 0x00, 0xAA)
    kept = {note.namespace: note.value for note in ome.structured_annotations.comment_annotations}
    assert kept["mrbcr/source-ome-xml"] == SOURCE_XML


def test_unknown_scale_stays_unknown(tmp_path: Path) -> None:
    spec = OutputSpec("TYX", (2, 16, 16), np.dtype("uint8"), "TYX", (None, None, 4.0), (None, None, None))
    write_ome_tiff(tmp_path / "a.tif", spec, lambda region: np.zeros([part.stop - part.start for part in region], "u1"))
    info = open_tiff(tmp_path / "a.tif").info
    assert (info.scale, info.units) == ((None, None, 4.0), (None, None, None))
    assert (info.channel_names, info.channel_colors) == ((), ())


def test_the_resolution_tags_say_pixels_per_centimetre(tmp_path: Path) -> None:
    spec = OutputSpec("YX", (16, 16), np.dtype("uint8"), "YX", (0.2, 100.0), ("micrometer", "nanometer"))
    write_ome_tiff(tmp_path / "a.tif", spec, lambda region: np.zeros((16, 16), np.uint8))
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert tif.pages.first.resolutionunit == 3
        assert tif.pages.first.resolution == pytest.approx((1e5, 5e4), rel=1e-6)


def test_each_pixel_is_asked_for_once_in_bounded_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_write, "STRIPE_BYTES", 4 * 64 * 64 * 2)
    shape = (3, 150, 1000)
    image, asked, largest, reported = ramp(shape, "uint16"), np.zeros(shape, int), 0, []

    def read(region: Region) -> NDArray[Any]:
        nonlocal largest
        asked[region] += 1
        largest = max(largest, image[region].nbytes)
        return image[region]

    spec = make_spec(shape, "uint16", "ZYX")
    write_ome_tiff(tmp_path / "a.tif", spec, read, tile_px=64, progress=reported.append)
    assert (asked == 1).all()
    assert largest <= 4 * 64 * 64 * 2
    assert sum(reported) == image.size
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), image)


def test_stripes_of_very_wide_images_stay_below_the_limit(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def read(region: Region) -> NDArray[Any]:
        assert np.prod([part.stop - part.start for part in region]) * 4 <= tiff_write.STRIPE_BYTES
        raise Enough

    spec = make_spec((1000, 200_000, 200_000), "float32", "ZYX")
    with pytest.raises(Enough):
        write_ome_tiff(tmp_path / "a.tif", spec, read)


@pytest.mark.parametrize(("planes", "big"), [(10, False), (2000, True)])
def test_bigtiff_is_chosen_by_the_uncompressed_size(tmp_path: Path, planes: int, big: bool) -> None:
    class Enough(Exception):
        pass

    def read(region: Region) -> NDArray[Any]:
        raise Enough

    with pytest.raises(Enough):
        write_ome_tiff(tmp_path / "a.tif", make_spec((planes, 2048, 2048), "uint16", "ZYX"), read)
    header = (tmp_path / "a.tif").read_bytes()[:4]
    assert 43 in header if big else 42 in header


@pytest.mark.parametrize("dtype", ["int64", "uint64", "float16", "complex64", "bool"])
def test_pixel_types_that_ome_lacks_are_refused_first(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(InputError, match="float32"):
        check_tiff_dtype(dtype)
    with pytest.raises(InputError, match=dtype):
        write_ome_tiff(tmp_path / "a.tif", make_spec((2, 2), dtype, "YX"), lambda region: np.zeros((2, 2), dtype))
    assert not (tmp_path / "a.tif").exists()


@pytest.mark.parametrize("tile_px", [0, -512, 100])
def test_tile_sizes_must_be_multiples_of_16(tmp_path: Path, tile_px: int) -> None:
    with pytest.raises(InputError, match="multiple of 16"):
        write_ome_tiff(
            tmp_path / "a.tif",
            make_spec((2, 2), "uint8", "YX"),
            lambda region: np.zeros((2, 2), np.uint8),
            tile_px=tile_px,
        )


def test_units_that_ome_lacks_are_refused(tmp_path: Path) -> None:
    spec = OutputSpec("YX", (2, 2), np.dtype("u1"), "YX", (1.0, 1.0), ("furlong", "furlong"))
    with pytest.raises(InputError, match="furlong"):
        write_ome_tiff(tmp_path / "a.tif", spec, lambda region: np.zeros((2, 2), np.uint8))
    assert not (tmp_path / "a.tif").exists()


def test_a_full_disk_and_a_failing_reader_pass_through(tmp_path: Path) -> None:
    def full(region: Region) -> NDArray[Any]:
        raise OSError(errno.ENOSPC, "No space left on device")

    def broken(region: Region) -> NDArray[Any]:
        raise InputError("plane 3 cannot be decoded")

    spec = make_spec((4, 64, 64), "uint16", "ZYX")
    with pytest.raises(OSError, match="No space") as caught:
        write_ome_tiff(tmp_path / "a.tif", spec, full)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(InputError, match="plane 3"):
        write_ome_tiff(tmp_path / "b.tif", spec, broken)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_enospc_of_the_file_itself_is_raised(compression: Any) -> None:
    image = np.random.default_rng(0).integers(0, 2**16, (2, 256, 256), np.uint16)
    with pytest.raises(OSError) as caught:
        write_ome_tiff(
            Path("/dev/full"), make_spec(image.shape, "uint16", "ZYX"), lambda r: image[r], compression=compression
        )
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(("shape", "dtype"), [((4, 4), "float32"), ((4, 5), "uint16"), ((1, 4, 4), "uint16")])
def test_pixels_of_another_shape_or_type_are_a_bug(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(ValueError, match="read returned"):
        write_ome_tiff(tmp_path / "a.tif", make_spec((4, 4), "uint16", "YX"), lambda region: np.zeros(shape, dtype))


def test_provenance_of_other_files_is_none(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "plain.tif", np.zeros((4, 4), np.uint8))
    tifffile.imwrite(tmp_path / "other.ome.tif", np.zeros((4, 4), np.uint8), ome=True)
    (tmp_path / "text.tif").write_text("hello")
    (tmp_path / "empty.tif").touch()
    for path in (*tmp_path.iterdir(), tmp_path / "absent.tif", tmp_path):
        assert read_provenance(path) is None
        assert read_source_xml(path) is None
