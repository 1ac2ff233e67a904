"""The geometry of blocks: which pixels a task reads, keeps and writes.

Invariant: the cores of all blocks tile the output exactly once, and every block's core starts at a multiple of the
block shape, so that a block owns whole shards of the output. A block is a pure function of the grid and its number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mrbcr_cli.images.base import Region

Borders = tuple[tuple[bool, bool], ...]
"""For each axis whether the read region ends at the true border of the image (low side, high side)."""


@dataclass(frozen=True)
class Block:
    """One task. Regions are in canonical axis order: `read` in input, `core` in output, `crop` in read coordinates."""

    number: int
    core: Region
    read: Region
    crop: Region
    at_border: Borders


@dataclass(frozen=True)
class Grid:
    """All blocks of one run, numbered in C order of their position.

    `input_shape`, `offset` and the lists in `picks` tell which part of the input is selected: along an axis in `picks`
    output index k is input index picks[axis][k]; along the others it is k + offset.
    """

    axes: str
    input_shape: tuple[int, ...]
    shape: tuple[int, ...]
    block_shape: tuple[int, ...]
    halo: tuple[int, ...]
    offset: tuple[int, ...]
    picks: dict[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        lengths = {len(self.axes), *map(len, (self.input_shape, self.shape, self.block_shape, self.halo, self.offset))}
        if len(lengths) != 1:
            raise ValueError(f"every field of a grid needs one value for each of the axes {self.axes}")
        if min(self.shape) < 1 or min(self.block_shape) < 1 or min(self.halo) < 0:
            raise ValueError(f"shape {self.shape}, block {self.block_shape} or halo {self.halo} is not possible")
        for axis in self.picks:
            k = self.axes.index(axis)
            if self.block_shape[k] != 1 or self.halo[k] != 0:
                raise ValueError(f"axis {axis} is picked plane by plane, so its blocks are 1 thick without halo")

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of blocks along each axis."""
        return tuple(-(-size // step) for size, step in zip(self.shape, self.block_shape, strict=True))

    def __len__(self) -> int:
        return math.prod(self.counts)

    def block(self, number: int) -> Block:
        """Return block `number`. Raises IndexError outside 0 .. len(self) - 1."""
        if not 0 <= number < len(self):
            raise IndexError(f"block {number} of a grid of {len(self)}")
        position: list[int] = []
        rest = number
        for count in reversed(self.counts):
            rest, k = divmod(rest, count)
            position.insert(0, k)
        core, read, crop, border = [], [], [], []
        for k, axis in enumerate(self.axes):
            start = position[k] * self.block_shape[k]
            stop = min(start + self.block_shape[k], self.shape[k])
            core.append(slice(start, stop))
            if axis in self.picks:
                start = self.picks[axis][start]
                stop = start + 1
            else:
                start, stop = start + self.offset[k], stop + self.offset[k]
            low, high = max(start - self.halo[k], 0), min(stop + self.halo[k], self.input_shape[k])
            read.append(slice(low, high))
            crop.append(slice(start - low, stop - low))
            border.append((low == 0, high == self.input_shape[k]))
        return Block(number, tuple(core), tuple(read), tuple(crop), tuple(border))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; `from_dict` reads it back."""
        return {
            "axes": self.axes,
            "input_shape": list(self.input_shape),
            "shape": list(self.shape),
            "block_shape": list(self.block_shape),
            "halo": list(self.halo),
            "offset": list(self.offset),
            "picks": {axis: list(indices) for axis, indices in self.picks.items()},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Grid:
        """Inverse of `to_dict`. Raises KeyError, TypeError or ValueError on anything else."""
        fields = ("input_shape", "shape", "block_shape", "halo", "offset")
        return cls(
            axes=str(values["axes"]),
            picks={str(axis): tuple(int(i) for i in v) for axis, v in values["picks"].items()},
            **{name: tuple(int(i) for i in values[name]) for name in fields},
        )


def round_up(value: int, step: int) -> int:
    """Return the smallest multiple of `step` that is not below `value`."""
    return -(-value // step) * step


def balanced_tile(size_px: int, largest_px: int, alignment_px: int) -> int:
    """Return the multiple of `alignment_px` that cuts `size_px` into the fewest equal tiles not above `largest_px`."""
    largest_px = max(largest_px // alignment_px, 1) * alignment_px
    count = -(-size_px // largest_px)
    return min(round_up(-(-size_px // count), alignment_px), largest_px)
