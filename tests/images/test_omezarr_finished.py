"""Finishing OME-Zarr: each level is the mean of the one above, and the store is valid and reads everywhere.

Until everything is there it looks unfinished; what is not known stays unknown.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import yaozarrs
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.omezarr import open_omezarr
from mrbcr_cli.images.omezarr_write import (
    binned_mean,
    create_level0,
    finish,
    open_level0,
    plan_layout,
    plan_pyramid,
    pyramid_blocks,
    read_provenance,
)
from tests.images.omezarr_outputs import VERSIONS, XML, Version, blocks, make_pixels, make_spec, region_2d, write_all

# --- pyramid ----------------------------------------------------------------------------------------------------------


def exact_mean(block: np.ndarray[Any, Any], steps: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Bin by bin with Python integers, half up: slow and plain."""
    out = np.empty(tuple(-(-n // s) for n, s in zip(block.shape, steps, strict=True)), block.dtype)
    for at in np.ndindex(out.shape):
        values = block[tuple(slice(i * s, i * s + s) for i, s in zip(at, steps, strict=True))].ravel().tolist()
        out[at] = (2 * sum(values) + len(values)) // (2 * len(values))
    return out


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_integer_means_are_exact_for_every_type_and_odd_size(data: st.DataObject) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"])))
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=3, max_size=3)))
    steps = tuple(data.draw(st.sampled_from([1, 2])) if n > 1 else 1 for n in shape)
    limits = np.iinfo(dtype)
    values = st.integers(int(limits.min), int(limits.max))
    count = int(np.prod(shape))
    block = np.array(data.draw(st.lists(values, min_size=count, max_size=count)), dtype).reshape(shape)
    result = binned_mean(block, steps)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, exact_mean(block, steps))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_float_means_keep_type_and_a_constant(dtype: str) -> None:
    block = np.full((5, 7), 60000, dtype)
    result = binned_mean(block, (2, 2))
    assert result.dtype == block.dtype
    assert result.shape == (3, 4)
    assert (result == block[0, 0]).all()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("block", [(2, 256, 256), (1, 150, 1000)])
def test_each_level_is_the_mean_of_the_one_above(tmp_path: Path, version: Version, block: tuple[int, ...]) -> None:
    spec = make_spec("ZYX", (2, 301, 517))
    above = write_all(tmp_path / "o.zarr", spec, block, version)
    levels = plan_pyramid(spec)
    assert [level.shape for level in levels] == [(2, 301, 517), (2, 151, 259), (2, 76, 130)]
    for index in (1, 2):
        array = np.asarray(zarr.open_array(tmp_path / "o.zarr" / str(index), mode="r")[...])
        np.testing.assert_array_equal(array, exact_mean(above, (1, 2, 2)))
        above = array


@pytest.mark.parametrize(
    ("z_um", "z_sizes"),
    [(0.3, [64, 64, 64]), (0.1, [64, 32, 16]), (None, [64, 64, 64])],
    ids=["coarse", "fine", "unknown"],
)
def test_planes_are_merged_only_where_they_are_as_close_as_pixels(z_um: float | None, z_sizes: list[int]) -> None:
    spec = replace(make_spec("ZYX", (64, 1000, 900)), scale=(z_um, 0.1, 0.1))
    assert [level.shape[0] for level in plan_pyramid(spec)] == z_sizes


def test_an_isotropic_stack_is_averaged_in_z_too(tmp_path: Path) -> None:
    spec = replace(make_spec("ZYX", (5, 300, 280)), scale=(0.1, 0.1, 0.1))
    data = write_all(tmp_path / "o.zarr", spec, (4, 128, 128), "0.5")
    array = np.asarray(zarr.open_array(tmp_path / "o.zarr" / "1", mode="r")[...])
    np.testing.assert_array_equal(array, exact_mean(data, (2, 2, 2)))


def test_a_thin_image_is_halved_along_its_long_axis_only() -> None:
    assert [level.shape for level in plan_pyramid(make_spec("YX", (1, 1000)))] == [(1, 1000), (1, 500), (1, 250)]
    assert len(plan_pyramid(make_spec("YX", (256, 256)))) == 1


def test_the_centre_of_every_bin_is_where_its_pixels_are(tmp_path: Path) -> None:
    write_all(tmp_path / "o.zarr", make_spec("ZYX", (1, 600, 700)), (1, 512, 512), "0.5")
    document = json.loads((tmp_path / "o.zarr" / "zarr.json").read_text())
    datasets = document["attributes"]["ome"]["multiscales"][0]["datasets"]
    for index, dataset in enumerate(datasets):
        transforms = {t["type"]: t[t["type"]] for t in dataset["coordinateTransformations"]}
        pixels = 2**index
        centres_um = 0.1 * np.arange(pixels).mean()
        assert transforms["scale"] == pytest.approx([0.3, 0.1 * pixels, 0.1 * pixels])
        assert transforms.get("translation", [0, 0, 0]) == pytest.approx([0, centres_um, centres_um])


# --- the finished store -----------------------------------------------------------------------------------------------

COMBINATIONS = {
    "YX": (301, 270),
    "ZYX": (3, 301, 270),
    "CYX": (2, 301, 270),
    "TYX": (2, 301, 270),
    "TCZYX": (2, 3, 2, 270, 301),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("axes", COMBINATIONS)
def test_a_finished_store_is_valid_and_reads_everywhere(tmp_path: Path, version: Version, axes: str) -> None:
    shape = COMBINATIONS[axes]
    named = {"channel_names": ("DAPI", "GFP", "Cy5")[: shape[axes.index("C")]]} if "C" in axes else {}
    spec = make_spec(axes, shape, **named, source_ome_xml=XML)
    root = tmp_path / "o.zarr"
    data = write_all(root, spec, (*(1,) * (len(axes) - 2), 256, 256), version)

    yaozarrs.validate_zarr_store(str(root))
    np.testing.assert_array_equal(np.asarray(dask.array.from_zarr(root / "0")), data)
    np.testing.assert_array_equal(np.asarray(zarr.open_group(root, mode="r")["0"][...]), data)

    reader = open_omezarr(root)
    info = reader.info
    assert (info.axes, info.shape, info.dtype) == (axes, shape, spec.dtype)
    assert (info.scale, info.units) == (spec.scale, spec.units)
    assert info.channel_names == spec.channel_names
    assert info.format == f"ome-zarr-{version}"
    assert info.ome_xml == XML
    assert info.notes == ()
    np.testing.assert_array_equal(reader.read(tuple(slice(0, n) for n in shape)), data)
    assert read_provenance(root) == spec.provenance


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_known_stays_unknown(tmp_path: Path, version: Version) -> None:
    spec = replace(make_spec("CYX", (2, 20, 30), "float32"), scale=(None,) * 3, units=(None,) * 3)
    write_all(tmp_path / "o.zarr", spec, (1, 20, 30), version)
    info = open_omezarr(tmp_path / "o.zarr").info
    assert info.scale == info.units == (None, None, None)
    assert info.channel_names == ()
    assert info.ome_xml is None
    assert "unit" not in (tmp_path / "o.zarr" / ("zarr.json" if version == "0.5" else ".zattrs")).read_text()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_store_looks_unfinished_until_it_is(
    tmp_path: Path, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "o.zarr"
    spec = make_spec("YX", (700, 600), source_ome_xml=XML)
    layout = plan_layout(spec, (256, 256), version)
    create_level0(root, spec, layout, version)
    data = make_pixels(spec)
    for region in blocks(spec.shape, (256, 256)):
        open_level0(root).write(region, data[region])

    class Killed(Exception):
        pass

    def unfinished() -> None:
        assert read_provenance(root) is None
        assert not any("multiscales" in f.read_text() for f in (*root.glob("zarr.json"), *root.glob(".zattrs")))
        with pytest.raises(InputError, match="unfinished"):
            open_omezarr(root)

    unfinished()
    seen = 0

    def killed_at_third(n: int) -> None:
        nonlocal seen
        seen += n
        unfinished()
        if seen == 3:
            raise Killed

    with pytest.raises(Killed):
        finish(root, spec, layout, version, progress=killed_at_third)
    (root / "0" / ".0.77.partial").write_bytes(b"left by a killed process")
    total: list[int] = []
    finish(root, spec, layout, version, progress=total.append)
    assert sum(total) == pyramid_blocks(spec, layout)
    assert not list(root.rglob("*.partial"))
    np.testing.assert_array_equal(open_omezarr(root).read(region_2d((0, 700), (0, 600))), data)

    fresh = tmp_path / "fresh.zarr"
    write_all(fresh, spec, (256, 256), version)
    resumed = {file.relative_to(root): file.read_bytes() for file in root.rglob("*") if file.is_file()}
    assert resumed == {file.relative_to(fresh): file.read_bytes() for file in fresh.rglob("*") if file.is_file()}

    seen = 0
    with pytest.raises(Killed):  # a store that was complete is not while it is being made again
        finish(root, spec, layout, version, progress=killed_at_third)
    unfinished()


def test_display_windows_span_the_pixels(tmp_path: Path) -> None:
    spec = make_spec("CYX", (2, 300, 300), "float32", channel_colors=("FF0000", "00FF00"))
    layout = plan_layout(spec, (1, 300, 300), "0.5")
    create_level0(tmp_path / "o.zarr", spec, layout, "0.5")
    level = open_level0(tmp_path / "o.zarr")
    ramp = np.linspace(-3, 5, 300, dtype=np.float32)
    level.write((slice(0, 1), slice(0, 300), slice(0, 300)), np.broadcast_to(ramp, (1, 300, 300)).copy())
    level.write((slice(1, 2), slice(0, 300), slice(0, 300)), np.full((1, 300, 300), np.nan, np.float32))
    finish(tmp_path / "o.zarr", spec, layout, "0.5")
    channels = json.loads((tmp_path / "o.zarr" / "zarr.json").read_text())["attributes"]["ome"]["omero"]["channels"]
    assert [channel["color"] for channel in channels] == ["FF0000", "00FF00"]
    assert channels[0]["window"]["start"] == pytest.approx(-3, abs=0.1)
    assert channels[0]["window"]["end"] == pytest.approx(5, abs=0.1)
    for channel in channels:
        window = channel["window"]
        assert window["min"] <= window["start"] < window["end"] <= window["max"]


def test_provenance_that_is_no_json_fails_before_anything_is_computed(tmp_path: Path) -> None:
    spec = make_spec("YX", (300, 300), provenance={"range": float("nan")})
    layout = plan_layout(spec, (300, 300), "0.5")
    create_level0(tmp_path / "o.zarr", spec, layout, "0.5")
    with pytest.raises(ValueError, match="JSON"):
        finish(tmp_path / "o.zarr", spec, layout, "0.5")
    assert not (tmp_path / "o.zarr" / "1").exists()


@pytest.mark.parametrize("document", [None, "{", "[]", "3", '{"attributes": 3}', '{"attributes": {"ome": null}}'])
def test_foreign_things_have_no_provenance(tmp_path: Path, document: str | None) -> None:
    for name in ("zarr.json", ".zattrs"):
        folder = tmp_path / name.strip(".")
        folder.mkdir()
        if document is not None:
            (folder / name).write_text(document)
        assert read_provenance(folder) is None
    assert read_provenance(tmp_path / "missing") is None
    assert read_provenance("a\0b") is None


def test_a_shard_that_begins_with_a_chunk_of_zeros_is_read_back(tmp_path: Path) -> None:
    """Its index begins with ones, which are no header of compressed data."""
    image = np.zeros((1, 1024, 1024), np.uint16)
    image[0, 600:, 600:] = 7
    spec = make_spec("ZYX", image.shape)
    layout = plan_layout(spec, (1, 1024, 1024), "0.5")
    root = tmp_path / "a.ome.zarr"
    create_level0(root, spec, layout, "0.5")
    open_level0(root).write((slice(0, 1), slice(0, 1024), slice(0, 1024)), image)
    finish(root, spec, layout, "0.5")
    part = (slice(0, 1), slice(590, 700), slice(590, 700))  # of one chunk alone, so the index is asked for
    assert np.array_equal(open_omezarr(root).read(part), image[part])
