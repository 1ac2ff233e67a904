"""Geometry: the cores of all blocks tile the output exactly once, whatever the sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrbcr_cli.stream.blocks import Grid, balanced_tile


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    input_shape = tuple(draw(st.integers(1, 23)) for _ in range(4))
    offset_z = draw(st.integers(0, input_shape[1] - 1))
    picks = tuple(draw(st.permutations(range(input_shape[0]))))[: draw(st.integers(1, input_shape[0]))]
    shape = (len(picks), draw(st.integers(1, input_shape[1] - offset_z)), *input_shape[2:])
    return Grid(
        axes="CZYX",
        input_shape=input_shape,
        shape=shape,
        block_shape=(1, *(draw(st.integers(1, 9)) for _ in range(3))),
        halo=(0, *(draw(st.integers(0, 5)) for _ in range(3))),
        offset=(0, offset_z, 0, 0),
        picks={"C": picks},
    )


@given(grids())
@settings(max_examples=150, deadline=None)
def test_cores_tile_the_output_and_crops_cut_them_out_of_what_is_read(grid: Grid) -> None:
    image = np.arange(np.prod(grid.input_shape)).reshape(grid.input_shape)
    wanted = image[list(grid.picks["C"])][:, grid.offset[1] : grid.offset[1] + grid.shape[1]]
    written = np.zeros(grid.shape, int)
    result = np.full(grid.shape, -1)
    for number in range(len(grid)):
        block = grid.block(number)
        written[block.core] += 1
        result[block.core] = image[block.read][block.crop]
        for k, (low, high) in enumerate(block.at_border):
            assert low == (block.read[k].start == 0)
            assert high == (block.read[k].stop == grid.input_shape[k])
        assert all(s.start % step == 0 for s, step in zip(block.core, grid.block_shape, strict=True))
    assert (written == 1).all()
    assert np.array_equal(result, wanted)


@given(grids())
@settings(max_examples=30, deadline=None)
def test_a_grid_survives_json(grid: Grid) -> None:
    import json

    assert Grid.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid


@given(st.integers(1, 5000), st.integers(16, 2048), st.sampled_from([1, 4, 8]))
def test_balanced_tiles_are_aligned_and_no_more_than_needed(size: int, largest: int, alignment: int) -> None:
    tile = balanced_tile(size, largest, alignment)
    whole = largest // alignment * alignment
    assert tile % alignment == 0
    assert tile <= whole
    assert -(-size // tile) == -(-size // whole)


def test_a_grid_of_a_petabyte_costs_nothing() -> None:
    grid = Grid("ZYX", (100_000,) * 3, (100_000,) * 3, (1, 1024, 1024), (0, 96, 96), (0, 0, 0), {})
    last = grid.block(len(grid) - 1)
    assert last.core[0] == slice(99_999, 100_000)
    assert last.core[2].stop == 100_000


def test_impossible_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="not possible"):
        Grid("YX", (8, 8), (8, 8), (0, 8), (0, 0), (0, 0), {})
    with pytest.raises(ValueError, match="every field"):
        Grid("YX", (8, 8), (8, 8, 1), (8, 8), (0, 0), (0, 0), {})
    with pytest.raises(ValueError, match="picked plane by plane"):
        Grid("CYX", (3, 8, 8), (2, 8, 8), (2, 8, 8), (0, 0, 0), (0, 0, 0), {"C": (0, 2)})
    with pytest.raises(IndexError):
        Grid("YX", (8, 8), (8, 8), (8, 8), (0, 0), (0, 0), {}).block(1)
