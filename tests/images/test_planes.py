"""A folder of planes is one stack, whatever order its files come in; planes that do not agree are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.planes import open_planes

IMAGE = np.random.default_rng(0).integers(0, 2**16, (12, 20, 30), np.uint16)


def write(folder: Path, names: list[str], compression: str | None = None) -> list[Path]:
    for name, plane in zip(names, IMAGE, strict=False):
        tifffile.imwrite(folder / name, plane, compression=compression)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_the_order_is_natural_and_hidden_files_are_left_out(tmp_path: Path, compression: str | None) -> None:
    paths = write(tmp_path, [f"img_{i + 1}.tif" for i in range(12)], compression)
    (tmp_path / ".hidden.tif").write_text("rubbish")
    reader = open_planes([*reversed(paths), tmp_path / ".hidden.tif"])
    assert (reader.info.format, reader.info.axes, reader.info.shape) == ("planes", "ZYX", (12, 20, 30))
    assert "--axes" in reader.info.notes[0]
    np.testing.assert_array_equal(reader.read((slice(0, 12), slice(0, 20), slice(0, 30))), IMAGE)
    region = (slice(3, 11), slice(4, 17), slice(8, 9))
    np.testing.assert_array_equal(reader.read(region), IMAGE[region])
    assert open_planes(paths).fingerprint() == reader.fingerprint()


def test_the_user_names_the_axis(tmp_path: Path) -> None:
    paths = write(tmp_path, ["a.tif", "b.tif"])
    reader = open_planes(paths, axes="tyx")
    assert (reader.info.axes, reader.info.notes) == ("TYX", ())
    assert reader.fingerprint() != open_planes(paths).fingerprint()
    for axes in ("YX", "YXZ", "TZYX", "QYX"):
        with pytest.raises(InputError, match="--axes"):
            open_planes(paths, axes=axes)


@pytest.mark.parametrize("pattern", ["cell_t{t:03d}_c{c}_z{z:02d}.tif", "z{z}-T{t}-ch{c}.tif"])
def test_indices_in_the_names_order_the_planes(tmp_path: Path, pattern: str) -> None:
    places = [(t, c, z) for t in range(2) for c in range(2) for z in range(3)]
    paths = write(tmp_path, [pattern.format(t=t, c=c, z=z * 5) for t, c, z in places])
    for axes in (None, "TCZYX"):
        reader = open_planes(paths, axes=axes)
        assert (reader.info.axes, reader.info.shape) == ("TCZYX", (2, 2, 3, 20, 30))
        whole = reader.read(tuple(slice(0, size) for size in reader.info.shape))
        np.testing.assert_array_equal(whole, IMAGE.reshape(2, 2, 3, 20, 30))
    assert open_planes(paths[:-1]).info.axes == "ZYX"  # a gap: the names decide nothing


def test_planes_that_do_not_agree_are_named(tmp_path: Path) -> None:
    paths = write(tmp_path, ["a.tif", "b.tif", "c.tif"])
    for other in (IMAGE[0, :10], IMAGE[0].astype(np.float32)):
        tifffile.imwrite(paths[1], other)
        with pytest.raises(InputError, match=r"b\.tif: is .* but a\.tif is 20 x 30 uint16"):
            open_planes(paths)
    tifffile.imwrite(paths[1], IMAGE[:3], photometric="minisblack")
    with pytest.raises(InputError, match=r"b\.tif: holds 3 x 20 x 30 .* themselves"):
        open_planes(paths)
    tifffile.imwrite(paths[1], np.zeros((20, 30, 3), np.uint8), photometric="rgb")
    with pytest.raises(InputError, match=r"b\.tif: holds colour"):
        open_planes(paths)
    paths[1].write_bytes(paths[0].read_bytes()[:-1])
    with pytest.raises(InputError, match=r"b\.tif: is truncated"):
        open_planes(paths)
    with pytest.raises(InputError, match="no TIFF planes"):
        open_planes([])


def test_the_fingerprint_sees_every_plane(tmp_path: Path) -> None:
    paths = write(tmp_path, ["a.tif", "b.tif", "c.tif"])
    before = open_planes(paths).fingerprint()
    tifffile.imwrite(paths[2], IMAGE[5])
    assert open_planes(paths).fingerprint() != before
