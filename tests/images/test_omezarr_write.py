"""Writing OME-Zarr block by block: what is written reads back, and blocks never disturb each other.

Every block is whole files, so that threads, processes and a killed run leave what one thread would.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from mrbcr_cli.errors import InputError
from mrbcr_cli.images import omezarr_level
from mrbcr_cli.images.base import Region
from mrbcr_cli.images.omezarr_write import (
    ArrayLayout,
    block_checksum,
    create_level0,
    open_level0,
    plan_layout,
)
from tests.images.omezarr_outputs import VERSIONS, Version, blocks, make_pixels, make_spec, region_2d

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
