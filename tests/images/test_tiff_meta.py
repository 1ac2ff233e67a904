"""What TIFF files say of themselves: OME-XML, ImageJ's description, resolution tags, files that belong together."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.tiff import TiffReader, open_tiff
from mrbcr_cli.images.tiff_meta import unit_name

UM = "micrometer"


def whole(reader: TiffReader) -> NDArray[Any]:
    return reader.read(tuple(slice(0, size) for size in reader.info.shape))


OME = """<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0"
 DimensionOrder="XYZCT" Type="uint8" SizeX="16" SizeY="8" SizeZ="1" SizeC="2" SizeT="1" {attributes}>
<Channel ID="Channel:0:0" {first}/><Channel ID="Channel:0:1"/>{data}</Pixels></Image></OME>"""


def write_ome(path: Path, attributes: str = "", first: str = "", data: str = "<TiffData/>", planes: int = 2) -> Path:
    xml = OME.format(attributes=attributes, first=first, data=data)
    image = np.arange(planes * 128, dtype=np.uint8).reshape(planes, 8, 16)
    tifffile.imwrite(path, image, photometric="minisblack", metadata=None, description=xml.encode())
    return path


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ('PhysicalSizeX="0.1"', (0.1, UM)),
        ('PhysicalSizeX="65" PhysicalSizeXUnit="nm"', (65.0, "nanometer")),
        ('PhysicalSizeX="650" PhysicalSizeXUnit="Å"', (650.0, "angstrom")),
        ('PhysicalSizeX="0.1" PhysicalSizeXUnit="µm"', (0.1, UM)),
        ('PhysicalSizeX="1e-4" PhysicalSizeXUnit="mm"', (1e-4, "millimeter")),
        ('PhysicalSizeX="1" PhysicalSizeXUnit="pixel"', (None, None)),
        ('PhysicalSizeX="0"', (None, None)),
        ('PhysicalSizeX="nan"', (None, None)),
        ("", (None, None)),
    ],
)
def test_ome_sizes_and_units(tmp_path: Path, attributes: str, expected: Any) -> None:
    info = open_tiff(write_ome(tmp_path / "a.ome.tif", attributes)).info
    assert (info.scale_of("X"), info.unit_of("X")) == expected


def test_ome_channels_and_time(tmp_path: Path) -> None:
    path = write_ome(tmp_path / "a.ome.tif", first='Name="DAPI" Color="-16776961"')
    info = open_tiff(path).info
    assert (info.format, info.axes) == ("ome-tiff", "CYX")
    assert (info.channel_names, info.channel_colors) == (("DAPI", ""), ("FF0000", "FFFFFF"))
    assert info.ome_xml is not None and 'Name="DAPI"' in info.ome_xml


def test_missing_planes_and_companions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing"):
        open_tiff(write_ome(tmp_path / "short.ome.tif", planes=1))
    parts = "".join(
        f'<TiffData IFD="0" FirstC="{c}" PlaneCount="1"><UUID FileName="{c}.ome.tif">urn:uuid:{c}</UUID></TiffData>'
        for c in range(2)
    )
    for c in range(2):
        write_ome(tmp_path / f"{c}.ome.tif", data=parts, planes=1)
    reader = open_tiff(tmp_path / "0.ome.tif")
    assert reader.info.shape == (2, 8, 16)
    assert "2 files" in reader.info.notes[0]
    np.testing.assert_array_equal(whole(reader)[1], tifffile.imread(tmp_path / "0.ome.tif", is_ome=False))
    (tmp_path / "1.ome.tif").unlink()
    with pytest.raises(InputError, match=r"1\.ome\.tif"):
        open_tiff(tmp_path / "0.ome.tif")


def test_a_renamed_ome_tiff_reads_itself(tmp_path: Path) -> None:
    data = '<TiffData IFD="0" PlaneCount="2"><UUID FileName="old.ome.tif">urn:uuid:1</UUID></TiffData>'
    write_ome(tmp_path / "new.ome.tif", data=data)
    expected = whole(open_tiff(tmp_path / "new.ome.tif"))
    tifffile.imwrite(tmp_path / "old.ome.tif", np.zeros((2, 8, 16), np.uint8), metadata=None)
    np.testing.assert_array_equal(whole(open_tiff(tmp_path / "new.ome.tif")), expected)
    assert expected.any()


def test_a_file_cut_inside_its_metadata_is_not_read_as_a_plain_one(tmp_path: Path) -> None:
    """libtiff writes the description behind the pixels: without it a channel stack would pass for a z stack."""
    path = write_ome(tmp_path / "a.ome.tif")
    with tifffile.TiffFile(path) as tif:
        tag = tif.pages.first.tags[270]
        entry, text = tag.offset, tif.pages.first.description.encode()
    data = bytearray(path.read_bytes())
    data[entry + 8 : entry + 12] = len(data).to_bytes(4, "little")
    path.write_bytes(data + text + b"\0")
    assert open_tiff(path).info.axes == "CYX"
    path.write_bytes((data + text)[:-20])
    with pytest.raises(InputError, match="truncated: tag 270 of page 1"):
        open_tiff(path)


def test_a_companion_file_describes_the_image(tmp_path: Path) -> None:
    pointer = '<OME xmlns="x"><BinaryOnly MetadataFile="set.companion.ome" UUID="urn:uuid:9"/></OME>'
    image = np.arange(256, dtype=np.uint8).reshape(2, 8, 16)
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, image, photometric="minisblack", metadata=None, description=pointer)
    with pytest.raises(InputError, match=r"set\.companion\.ome"):
        open_tiff(path)
    data = '<TiffData IFD="0" PlaneCount="2"><UUID FileName="a.ome.tif">urn:uuid:9</UUID></TiffData>'
    xml = OME.format(attributes='PhysicalSizeX="0.2"', first="", data=data)
    (tmp_path / "set.companion.ome").write_text(xml)
    reader = open_tiff(path)
    assert (reader.info.axes, reader.info.scale_of("X"), reader.info.ome_xml) == ("CYX", 0.2, xml)
    np.testing.assert_array_equal(whole(reader), image)


def test_entities_in_ome_xml_are_refused(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE OME [<!ENTITY a "aaaa">]><OME xmlns="x">&a;</OME>'
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((8, 8), np.uint8), metadata=None, description=bomb)
    with pytest.raises(InputError, match="document type"):
        open_tiff(tmp_path / "a.ome.tif")


@pytest.mark.parametrize(
    ("resolution", "unit", "size"),
    [
        ((1e5, 5e4), 3, 0.1),
        ((254000, 254000), 2, 0.1),
        ((72, 72), 2, None),
        ((300, 300), 2, None),
        ((118.11, 118.11), 3, None),
        ((1, 1), 3, None),
    ],
)
def test_print_resolutions_are_no_pixel_sizes(tmp_path: Path, resolution: Any, unit: int, size: float | None) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), np.uint8), resolution=resolution, resolutionunit=unit)
    info = open_tiff(tmp_path / "a.tif").info
    assert info.scale_of("X") == (None if size is None else pytest.approx(size))
    assert info.scale_of("Y") == (None if size is None else pytest.approx(size * resolution[0] / resolution[1]))
    assert bool(info.notes) == (size is not None)


@pytest.mark.parametrize("unit", ["um", "micron", "\\u00B5m", "microns"])
def test_imagej_hyperstacks(tmp_path: Path, unit: str) -> None:
    image = np.random.default_rng(8).integers(0, 99, (2, 3, 4, 20, 30), np.uint16)
    meta = {"axes": "TZCYX", "unit": unit, "spacing": 0.3, "finterval": 2.5}
    tifffile.imwrite(tmp_path / "a.tif", image, imagej=True, resolution=(10, 20), metadata=meta)
    info = open_tiff(tmp_path / "a.tif").info
    assert (info.format, info.axes, info.stored_axes) == ("imagej-tiff", "TCZYX", "TZCYX")
    assert info.scale == (2.5, None, 0.3, 0.05, 0.1)
    assert info.units == ("second", None, UM, UM, UM)


def test_tifffile_stays_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = write_ome(tmp_path / "short.ome.tif", planes=1)
    with caplog.at_level(logging.DEBUG), pytest.raises(InputError):
        open_tiff(image)
    assert not caplog.records
    assert not logging.getLogger("tifffile").filters


def test_unit_words() -> None:
    for word in ("µm", "μm", "um", "micron", "\\u00B5m", "Micrometers"):
        assert unit_name(word) == UM
    assert [unit_name(word) for word in ("mm", "Å", "sec", "ms", "furlong", None)] == [
        "millimeter", "angstrom", "second", "millisecond", None, None,
    ]  # fmt: skip
