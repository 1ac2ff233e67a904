"""Microscopes' own formats: the pixels that other programs read, nothing lost of what the file says, nothing trusted.

CZI and DV files are real ones; the LIF and ND2 files are the smallest that can be written (`foreign_files`), read by
the same plug-ins.
"""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrbcr_cli.cli import run
from mrbcr_cli.errors import InputError
from mrbcr_cli.images import find_source, foreign, open_source
from mrbcr_cli.images.base import ImageReader
from tests.helpers import deconvolve, pixels, tiny_weights
from tests.images.foreign_files import write_lif, write_nd2

for plugin in ("bioio_nd2", "bioio_lif", "bioio_dv"):
    pytest.importorskip(plugin, reason="the extra [formats] is not installed")

CZI, DV = "xyz__multiple_images.czi", "toxo.dv"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60000, (2, 3, 40, 50)).astype(np.uint16)


def opened(path: Path, **how: Any) -> ImageReader:
    return open_source(find_source(str(path), **how))


def whole(reader: ImageReader) -> np.ndarray:
    return reader.read(tuple(slice(0, size) for size in reader.info.shape))


def test_czi_has_the_pixels_of_another_library(shared: Path) -> None:
    pytest.importorskip("bioio_czi")
    czi = pytest.importorskip("pylibCZIrw.czi")
    path = shared / "data" / "io" / CZI
    for series in (0, 1):
        reader = opened(path, series=series)
        info = reader.info
        assert (info.axes, info.shape, info.series_count) == ("TCZYX", (1, 1, 2, 251, 251), 2)
        assert info.scale[2:] == pytest.approx((0.3, 0.195644, 0.195644), rel=1e-5)
        assert info.units[2:] == ("micrometer",) * 3
        assert info.channel_names == ("ChA",)
        assert info.ome_xml is not None and "PhysicalSizeX" in info.ome_xml
        with czi.open_czi(str(path)) as other:
            for z in (0, 1):
                plane = other.read(plane={"T": 0, "C": 0, "Z": z}, scene=series)
                assert np.array_equal(whole(reader)[0, 0, z], plane[..., 0])


def test_dv_has_the_pixels_of_another_library(shared: Path) -> None:
    mrc = pytest.importorskip("mrc")
    reader = opened(shared / "data" / "io" / DV)
    assert (reader.info.axes, reader.info.shape) == ("TCZYX", (1, 2, 17, 128, 128))
    assert reader.info.scale[2:] == pytest.approx((0.3, 0.13262, 0.13262))
    assert np.array_equal(whole(reader)[0], mrc.imread(str(shared / "data" / "io" / DV)).reshape(2, 17, 128, 128))


def test_lif_is_read_series_by_series(tmp_path: Path, image: np.ndarray) -> None:
    write_lif(tmp_path / "a.lif", {"one": image, "two": image[:1, :, ::-1]})
    first, second = opened(tmp_path / "a.lif"), opened(tmp_path / "a.lif", series=1)
    assert np.array_equal(whole(first)[0], image)
    assert np.array_equal(whole(second)[0], image[:1, :, ::-1])
    assert first.info.scale == pytest.approx((None, None, 0.3, 0.1, 0.1))
    assert first.info.channel_names == ("Green", "Red")
    assert "--series" in first.info.notes[0] and not second.info.notes
    assert first.fingerprint() != second.fingerprint()
    with pytest.raises(InputError, match="no image 2; it has 2"):
        opened(tmp_path / "a.lif", series=2)


def test_nd2_is_read_and_says_what_was_never_recorded(tmp_path: Path, image: np.ndarray) -> None:
    write_nd2(tmp_path / "a.nd2", image.transpose(1, 0, 2, 3))
    reader = opened(tmp_path / "a.nd2")
    assert (reader.info.axes, reader.info.stored_axes) == ("CZYX", "ZCYX")
    assert np.array_equal(whole(reader), image)
    assert reader.info.scale == pytest.approx((None, 0.3, 0.1, 0.1))
    assert reader.info.channel_names == ("channel 0", "channel 1")
    assert reader.info.ome_xml is not None and not reader.info.notes
    write_nd2(tmp_path / "stopped.nd2", image.transpose(1, 0, 2, 3), recorded=2)
    assert "1 of its 3 planes were never recorded" in opened(tmp_path / "stopped.nd2").info.notes[0]


@pytest.mark.parametrize("name", ["a.lif", "a.nd2"])
def test_any_region_is_that_of_the_whole(tmp_path: Path, image: np.ndarray, name: str) -> None:
    path = made(tmp_path / name, image)
    reader = opened(path)
    expected, rng = whole(reader), random.Random(0)
    for _ in range(20):
        starts = [rng.randrange(size) for size in expected.shape]
        region = tuple(slice(a, rng.randrange(a, n) + 1) for a, n in zip(starts, expected.shape, strict=True))
        part = reader.read(region)
        assert part.flags["C_CONTIGUOUS"]
        assert np.array_equal(part, expected[region])
    with pytest.raises(ValueError, match="outside"):
        reader.read(tuple(slice(0, size + 1) for size in expected.shape))
    reader.close()


def made(path: Path, image: np.ndarray) -> Path:
    """The image (C, Z, Y, X) in the format of the name."""
    if path.suffix == ".lif":
        write_lif(path, {"one": image})
    else:
        write_nd2(path, image.transpose(1, 0, 2, 3))
    return path


@pytest.mark.parametrize("name", ["a.lif", "a.nd2"])
def test_what_the_file_says_is_in_the_output(
    tmp_path: Path, weights: Path, image: np.ndarray, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A LIF or ND2 of some pixels gives the result of an OME-TIFF of the same, and keeps scale and channel names."""
    import tifffile

    source = made(tmp_path / name, image)
    tifffile.imwrite(tmp_path / "same.ome.tif", image, metadata={"axes": "CZYX"})
    out = tmp_path / "out"
    assert deconvolve(source, tmp_path / "same.ome.tif", "-o", out, "-m", weights, "-q", "--workers", 2) == 0
    result = pixels(out / "a.ome.zarr")
    assert np.array_equal(result.reshape(image.shape), pixels(out / "same.ome.zarr"))
    info = opened(out / "a.ome.zarr").info
    assert [info.scale_um(axis) for axis in "ZYX"] == pytest.approx([0.3, 0.1, 0.1])
    assert info.channel_names == opened(source).info.channel_names
    assert info.ome_xml == opened(source).info.ome_xml
    capsys.readouterr()
    assert run(["info", str(source), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == source.suffix[1:]


def test_real_files_are_deconvolved_and_resumed(
    shared: Path, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bioio_czi")
    args = (shared / "data" / "io" / CZI, "-m", weights, "-q", "--no-domain-check")
    for name in ("o.ome.zarr", "o.ome.tif"):
        assert deconvolve(*args, "-o", tmp_path / name) == 0
        assert deconvolve(*args, "-o", tmp_path / name) == 0
        info = opened(tmp_path / name).info
        assert info.scale_um("X") == pytest.approx(0.195644, rel=1e-5)
        assert info.channel_names == ("ChA",)
    assert "unexpected" not in capsys.readouterr().err
    assert np.array_equal(pixels(tmp_path / "o.ome.zarr").squeeze(), pixels(tmp_path / "o.ome.tif").squeeze())


def test_workers_open_it_by_its_source(tmp_path: Path, image: np.ndarray) -> None:
    source = pickle.loads(pickle.dumps(find_source(str(made(tmp_path / "a.nd2", image)))))
    assert source.stem == "a"
    assert np.array_equal(whole(open_source(source)), image)


@pytest.mark.parametrize("name", ["a.lif", "a.nd2"])
def test_damaged_files_are_refused_in_a_line(
    tmp_path: Path, image: np.ndarray, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made(tmp_path / name, image).read_bytes()
    for part in (0, 3, 200, len(data) // 2, len(data) - 1):
        (tmp_path / f"cut{Path(name).suffix}").write_bytes(data[:part])
        assert run(["deconvolve", str(tmp_path / f"cut{Path(name).suffix}"), "-o", str(tmp_path / "o.ome.zarr")]) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said and "cut." in said and len(said.strip().splitlines()) <= 2
    assert not (tmp_path / "o.ome.zarr").exists()


def test_a_damaged_czi_is_refused_in_a_line(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("bioio_czi")
    data = (shared / "data" / "io" / CZI).read_bytes()
    for part in (20, 600, len(data) // 2):
        (tmp_path / "cut.czi").write_bytes(data[:part])
        assert run(["deconvolve", str(tmp_path / "cut.czi"), "-o", str(tmp_path / "o.ome.zarr")]) == 2
        said = capsys.readouterr().err
        assert "cut.czi" in said and "Traceback" not in said


def test_a_name_alone_makes_no_format(tmp_path: Path, image: np.ndarray) -> None:
    """Above all an XML that calls itself LIF, in which Leica's format would name other files to be read."""
    (tmp_path / "a.lif").write_bytes("<LMSDataContainerHeader/>".encode("utf-16"))
    with pytest.raises(InputError, match="is no Leica LIF file"):
        opened(tmp_path / "a.lif")
    made(tmp_path / "b.nd2", image).rename(tmp_path / "b.dv")
    with pytest.raises(InputError, match="is no DeltaVision file"):
        opened(tmp_path / "b.dv")


def stub(monkeypatch: pytest.MonkeyPatch, dims: str, shape: tuple[int, ...], **more: Any) -> None:
    """Let the plug-in of LIF return an image of these axes."""
    import dask.array as da
    import xarray
    from bioio_base.types import PhysicalPixelSizes

    class Reader:
        scenes = ("only",)
        physical_pixel_sizes = PhysicalPixelSizes(None, 0.0, float("nan"))
        channel_names = None
        time_interval = None
        xarray_dask_data = xarray.DataArray(da.zeros(shape, dtype="uint8", chunks=-1), dims=list(dims))
        mosaic_xarray_dask_data = xarray.DataArray(da.ones((8, 8), dtype="uint8"), dims=["Y", "X"])

        def __init__(self, path: Path, **options: Any) -> None: ...
        def set_scene(self, index: int) -> None: ...
        @property
        def ome_metadata(self) -> Any:
            raise KeyError("odd")

    monkeypatch.setattr(foreign, "_plugin", lambda name: type("module", (), {"Reader": Reader}))


@pytest.mark.parametrize(
    ("dims", "shape", "options", "axes", "said"),
    [
        ("VTCZYX", (1, 1, 2, 3, 8, 8), {}, "TCZYX", ""),
        ("HZYX", (2, 3, 8, 8), {}, None, "2 images along H"),
        ("YXS", (8, 8, 3), {}, None, "--split-rgb"),
        ("YXS", (8, 8, 3), {"split_rgb": True}, "CYX", ""),
        ("CYXS", (1, 8, 8, 3), {"split_rgb": True}, "CYX", ""),
        ("CYXS", (2, 8, 8, 3), {"split_rgb": True}, None, "2 channels of colour"),
        ("MYX", (4, 8, 8), {}, "YX", ""),
        ("ZYX", (3, 40000, 40000), {}, None, "can only be decoded whole"),
        ("ZYX", (0, 8, 8), {}, None, "no pixels"),
        ("ZYX", (3, 8, 8), {"axes": "TYX"}, "TYX", ""),
    ],
)
def test_axes_of_all_kinds(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dims: str,
    shape: tuple[int, ...],
    options: dict[str, Any],
    axes: str | None,
    said: str,
) -> None:
    (tmp_path / "a.lif").write_bytes(b"\x70\0\0\0")
    stub(monkeypatch, dims, shape)
    if axes is None:
        with pytest.raises(InputError, match=said):
            opened(tmp_path / "a.lif", **options)
        return
    reader = opened(tmp_path / "a.lif", **options)
    assert reader.info.axes == axes
    assert whole(reader).shape == reader.info.shape
    assert set(reader.info.scale) == {None}
    assert any("not kept" in note for note in reader.info.notes)
    assert ("M" in dims) == any("tiles" in note for note in reader.info.notes)
