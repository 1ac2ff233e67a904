"""Writing OME-Zarr: what is written reads back everywhere, blocks never disturb each other, and unfinished looks it."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import dask.array
import numpy as np
import pytest
import yaozarrs
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from mrbcr_cli.errors import InputError
from mrbcr_cli.images import omezarr_level
from mrbcr_cli.images.base import OutputSpec, Region
from mrbcr_cli.images.omezarr import open_omezarr
from mrbcr_cli.images.omezarr_write import (
    ArrayLayout,
    binned_mean,
    block_checksum,
    create_level0,
    finish,
    open_level0,
    plan_layout,
    plan_pyramid,
    pyramid_blocks,
    read_provenance,
)

Version = Literal["0.5", "0.4"]
VERSIONS: tuple[Version, ...] = ("0.5", "0.4")
SCALE = {"T": (2.5, "second"), "C": (None, None), "Z": (0.3, "micrometer"), "Y": (0.1, "micrometer")}
XML = '<?xml version="1.0" encoding="UTF-8"?>\r\n<OME xmlns="x"><!-- µm, kept as is -->\n</OME>'


def make_spec(axes: str, shape: tuple[int, ...], dtype: str = "uint16", **more: Any) -> OutputSpec:
    known = [SCALE.get(axis, (0.1, "micrometer")) for axis in axes]
    return OutputSpec(
        axes,
        shape,
        np.dtype(dtype),
        axes,
        scale=tuple(scale for scale, _ in known),
        units=tuple(unit for _, unit in known),
        **{"name": "cells", "provenance": {"command": "mrbcr deconvolve", "weights": {"sha256": "ab"}}} | more,
    )


def make_pixels(spec: OutputSpec) -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).integers(0, 250, spec.shape).astype(spec.dtype)


def blocks(shape: tuple[int, ...], block: tuple[int, ...]) -> Iterator[Region]:
    ranges = [range(0, size, length) for size, length in zip(shape, block, strict=True)]
    for starts in product(*ranges):
        yield tuple(slice(a, min(a + b, n)) for a, b, n in zip(starts, block, shape, strict=True))


def write_all(root: Path, spec: OutputSpec, block: tuple[int, ...], version: Version) -> np.ndarray[Any, Any]:
    """Create, write and finish a store; return its pixels."""
    layout = plan_layout(spec, block, version)
    data = make_pixels(spec)
    create_level0(root, spec, layout, version)
    level = open_level0(root)
    for region in blocks(spec.shape, block):
        level.write(region, data[region])
    finish(root, spec, layout, version)
    return data


# --- layout -----------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 3000)), min_size=3, max_size=3), st.sampled_from(VERSIONS)
)
def test_every_block_is_whole_files_for_any_size(sizes: list[tuple[int, int]], version: Version) -> None:
    spec = make_spec("ZYX", tuple(size for size, _ in sizes))
    layout = plan_layout(spec, tuple(block for _, block in sizes), version)
    for (size, block), unit, chunk in zip(sizes, layout.unit, layout.chunks, strict=True):
        assert unit % chunk == 0
        assert block >= size or block % unit == 0
        assert block < size or unit <= size + chunk
        if version == "0.5":
            assert unit == block or block >= size
    assert max(layout.chunks[1:]) <= max(2048, *(block for _, block in sizes[1:]))


@pytest.mark.parametrize(("block", "chunk"), [(1024, 512), (1000, 500), (768, 384), (512, 512), (1021, 1021), (64, 64)])
def test_chunks_are_near_512_and_divide_the_block(block: int, chunk: int) -> None:
    layout = plan_layout(make_spec("TZYX", (3, 40, 9000, 9000)), (1, 1, block, block), "0.5")
    assert layout.chunks[2:] == (chunk, chunk)
    assert layout.shards == (1, 1, block, block)
    assert layout.chunks[:2] == (1, 1)


def test_a_block_larger_than_the_image_is_one_file_without_much_waste() -> None:
    layout = plan_layout(make_spec("YX", (997, 300)), (4096, 4096), "0.5")
    assert layout == ArrayLayout((499, 300), (998, 300))


def test_a_block_must_fit_the_axes() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        plan_layout(make_spec("YX", (9, 9)), (1, 9, 9), "0.5")


# --- level 0 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float16", "float32", "float64"])
@pytest.mark.parametrize("compressor", ["blosc-zstd", "zstd", "none"])
def test_blocks_read_back(tmp_path: Path, version: Version, dtype: str, compressor: Any) -> None:
    spec = make_spec("ZYX", (3, 130, 97), dtype)
    layout = replace(plan_layout(spec, (1, 64, 64), version), compressor=compressor)
    data = make_pixels(spec)
    create_level0(tmp_path / "o.zarr", spec, layout, version)
    level = open_level0(tmp_path / "o.zarr")
    for region in blocks(spec.shape, (1, 64, 64)):
        assert level.write(region, data[region]) == block_checksum(data[region])
    np.testing.assert_array_equal(level.read((slice(0, 3), slice(0, 130), slice(0, 97))), data)
    np.testing.assert_array_equal(np.asarray(zarr.open_array(tmp_path / "o.zarr" / "0", mode="r")[...]), data)


def test_creating_costs_nothing_per_chunk_and_is_repeatable(tmp_path: Path) -> None:
    spec = make_spec("ZYX", (100_000, 100_000, 100_000))
    layout = plan_layout(spec, (1, 1024, 1024), "0.5")
    for _ in range(2):
        create_level0(tmp_path / "o.zarr", spec, layout, "0.5")
    assert sum(1 for file in (tmp_path / "o.zarr").rglob("*") if file.is_file()) == 2
    with pytest.raises(FileExistsError):
        create_level0(tmp_path / "o.zarr", replace(spec, dtype=np.dtype("f4")), layout, "0.5")
    with pytest.raises(FileExistsError):
        create_level0(tmp_path / "o.zarr", spec, layout, "0.4")


def test_creating_refuses_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    spec = make_spec("YX", (9, 9))
    with pytest.raises(FileExistsError):
        create_level0(tmp_path, spec, plan_layout(spec, (9, 9), "0.5"), "0.5")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def region_2d(y: tuple[int, int], x: tuple[int, int]) -> Region:
    return slice(*y), slice(*x)


@pytest.fixture(params=VERSIONS)
def level(request: pytest.FixtureRequest, tmp_path: Path) -> omezarr_level.Level:
    """A 100 x 90 uint16 level cut into files of 40 x 40."""
    spec = make_spec("YX", (100, 90))
    create_level0(tmp_path / "o.zarr", spec, plan_layout(spec, (40, 40), request.param), request.param)
    return open_level0(tmp_path / "o.zarr")


def chunk_files(level: omezarr_level.Level) -> list[Path]:
    return sorted(f for f in level.path.rglob("*") if f.is_file() and f.suffix != ".json" and f.name[0] != ".")


@pytest.mark.parametrize(
    "region",
    [
        region_2d((1, 40), (0, 40)),
        region_2d((0, 39), (0, 40)),
        region_2d((0, 40), (80, 89)),
        region_2d((80, 120), (0, 40)),
        region_2d((0, 0), (0, 40)),
    ],
)
def test_a_write_that_cuts_through_files_is_refused(level: omezarr_level.Level, region: Region) -> None:
    shape = tuple(part.stop - part.start for part in region)
    with pytest.raises(ValueError, match="region"):
        level.write(region, np.ones(shape, np.uint16))
    assert chunk_files(level) == []


@pytest.mark.parametrize("block", [np.ones((40, 39), np.uint16), np.ones((40, 40), np.int16), np.ones((40, 40), ">u2")])
def test_a_block_of_another_shape_or_type_is_refused(level: omezarr_level.Level, block: Any) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        level.write(region_2d((0, 40), (0, 40)), block)


def test_several_files_and_the_edge_are_written_at_once(level: omezarr_level.Level) -> None:
    data = np.arange(9000, dtype=np.uint16).reshape(100, 90)
    level.write(region_2d((40, 100), (0, 90)), data[40:])
    np.testing.assert_array_equal(level.read(region_2d((40, 100), (0, 90))), data[40:])
    assert (level.read(region_2d((0, 40), (0, 90))) == 0).all()


def test_zeros_over_old_pixels_are_zeros(level: omezarr_level.Level) -> None:
    region = region_2d((80, 100), (80, 90))
    level.write(region, np.full((20, 10), 9, np.uint16))
    level.write(region, np.zeros((20, 10), np.uint16))
    assert (level.read(region) == 0).all()
    assert chunk_files(level) == []


def test_a_torn_file_of_a_killed_run_is_replaced(level: omezarr_level.Level) -> None:
    for region in (region_2d((0, 40), (0, 40)), region_2d((80, 100), (80, 90))):
        block = np.full(tuple(part.stop - part.start for part in region), 9, np.uint16)
        level.write(region, block)
        for file in chunk_files(level):
            file.write_bytes(file.read_bytes()[:7])
        with pytest.raises(InputError, match="damaged"):
            level.read(region)
        level.write(region, block + 1)
        assert (level.read(region) == 10).all()


def test_a_full_disk_is_an_oserror_and_leaves_the_old_file(
    level: omezarr_level.Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = region_2d((0, 40), (0, 40))
    level.write(region, np.full((40, 40), 5, np.uint16))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as caught:
            level.write(region, np.full((40, 40), 6, np.uint16))
    assert type(caught.value) is OSError
    assert caught.value.errno == errno.ENOSPC
    assert (level.read(region) == 5).all()
    assert len(chunk_files(level)) == 1
    assert not list(level.path.rglob("*.partial"))


def test_data_and_folders_are_synced_before_write_returns(
    level: omezarr_level.Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[tuple[int, int]] = set()
    real = os.fsync

    def note(descriptor: int) -> None:
        status = os.fstat(descriptor)
        synced.add((status.st_dev, status.st_ino))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    level.write(region_2d((0, 40), (0, 40)), np.ones((40, 40), np.uint16))
    (file,) = chunk_files(level)
    for path in (file, *file.parents[: len(file.relative_to(level.path).parts)]):
        assert (path.stat().st_dev, path.stat().st_ino) in synced, path


def test_threads_write_what_one_thread_writes(level: omezarr_level.Level) -> None:
    regions = list(blocks((100, 90), (40, 40)))
    for seed in range(5):
        data = np.random.default_rng(seed).integers(0, 2**16, (100, 90)).astype(np.uint16)
        with ThreadPoolExecutor(8) as pool:
            sums = list(pool.map(level.write, regions, [data[region] for region in regions]))
        np.testing.assert_array_equal(level.read(region_2d((0, 100), (0, 90))), data)
        assert sums == [block_checksum(data[region]) for region in regions]


def _write_in_process(level: omezarr_level.Level, region: Region, block: Any) -> str:
    return level.write(region, block)


def test_processes_write_what_one_process_writes(level: omezarr_level.Level) -> None:
    data = np.random.default_rng(1).integers(0, 2**16, (100, 90)).astype(np.uint16)
    regions = list(blocks((100, 90), (40, 40)))
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_write_in_process, level, region, data[region]) for region in regions]
        sums = [future.result() for future in futures]
    np.testing.assert_array_equal(level.read(region_2d((0, 100), (0, 90))), data)
    assert sums == [block_checksum(data[region]) for region in regions]


def test_pickling_sends_the_path_only(level: omezarr_level.Level) -> None:
    sent = pickle.dumps(level)
    assert len(sent) < 1000
    assert pickle.loads(sent).path == level.path


def test_a_missing_output_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not there"):
        open_level0(tmp_path)


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
