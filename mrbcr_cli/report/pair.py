"""An output beside its input: the same places of both, read at any resolution.

Invariant: places are named in the output's coordinates (t, c, z, y, x from 0), and both sides return the same place;
what a read decodes is known before it is done (`Side.cost_bytes`), so that callers can keep to a budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.images.base import ImageInfo, ImageReader, Region
from mrbcr_cli.stream.blocks import Grid

Array = NDArray[Any]

TILE_PIXELS = 1 << 23
"""Read at a time for an overview."""
SAMPLE_PX = 128
"""Of a chunk that stands for its surroundings where not all of a plane is read."""


@dataclass(frozen=True)
class Spot:
    """A plane of the output: time point, channel and plane, from 0."""

    t: int
    c: int
    z: int = 0


@dataclass(frozen=True)
class Window:
    """A rectangle of a plane, in full-resolution pixels."""

    y: int
    x: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Along y and x."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)


@dataclass(frozen=True, eq=False)
class Overview:
    """A whole plane, small: float32 means, NaN where nothing finite was seen."""

    pixels_yx: NDArray[np.float32]
    level: int
    """Of the pyramid; 0: full resolution."""
    share_read: float
    """Of the plane's pixels that went into it (those of its level); below 1 where it was sampled."""


class Side:
    """One image of a pair, with the levels of its pyramid, finest first."""

    def __init__(self, levels: tuple[ImageReader, ...], grid: Grid | None) -> None:
        self.levels = levels
        self._grid = grid

    @property
    def info(self) -> ImageInfo:
        """Of the finest level."""
        return self.levels[0].info

    def input_index(self, axis: str, value: int) -> int:
        """Where an output index along T, C or Z lies in this image."""
        grid = self._grid
        if grid is None or axis not in grid.axes:
            return value
        return grid.picks[axis][value] if axis in grid.picks else value + grid.offset[grid.axes.index(axis)]

    def read(self, spot: Spot, window: Window, depth: int = 1) -> Array:
        """Full-resolution pixels (z, y, x) of `depth` planes from `spot` on, as stored. Raises InputError."""
        return self._read(0, spot, *window.slices, depth)

    def read_plane(self, spot: Spot, window: Window) -> Array:
        """Full-resolution pixels (y, x)."""
        plane: Array = self.read(spot, window)[0]
        return plane

    def cost_bytes(self, spot: Spot, window: Window, depth: int = 1) -> int:
        """Bytes that are decoded for `read`: whole chunks."""
        return met_bytes(self.info, self._region(0, spot, *window.slices, depth))

    def overview(self, spot: Spot, longest_px: int, budget_bytes: int) -> Overview:
        """A plane as means of squares, at most `longest_px` a side, from the level of the pyramid that fits.

        Where no level is small enough to be read whole for `budget_bytes`, chunks are sampled evenly.
        """
        level = self._level_for(longest_px)
        while level + 1 < len(self.levels) and self._plane_bytes(level, spot) > budget_bytes:
            level += 1  # a coarser picture of all rather than a sample
        info = self.levels[level].info
        size = (info.size("Y"), info.size("X"))
        step = max(1, math.ceil(max(size) / longest_px))
        y, x = _sample(info, step, self._plane_bytes(level, spot), budget_bytes)
        share = _covered(y, size[0]) * _covered(x, size[1])
        return Overview(self._means(level, spot, y, x), level, share)

    def overview_bytes(self, spot: Spot, longest_px: int) -> int:
        """Bytes that are decoded for an overview that is not sampled."""
        return self._plane_bytes(self._level_for(longest_px), spot)

    def _means(self, level: int, spot: Spot, y: list[slice], x: list[slice]) -> NDArray[np.float32]:
        out = np.empty((len(y), len(x)), np.float32)
        for at_y in _runs(y, TILE_PIXELS // min(self.levels[level].info.size("X"), 4096)):
            for at_x in _runs(x, 4096):
                span_y = slice(y[at_y.start].start, y[at_y.stop - 1].stop)
                span_x = slice(x[at_x.start].start, x[at_x.stop - 1].stop)
                pixels = self._read(level, spot, span_y, span_x, 1)[0]
                edges = [s.start - span_y.start for s in y[at_y]], [s.start - span_x.start for s in x[at_x]]
                out[at_y, at_x] = _box_means(pixels, *edges)
        return out

    def _level_for(self, longest_px: int) -> int:
        """The coarsest level that still has half of the wanted pixels a side."""
        for level in reversed(range(len(self.levels))):
            info = self.levels[level].info
            if 2 * max(info.size("Y"), info.size("X")) >= longest_px:
                return level
        return 0

    def _plane_bytes(self, level: int, spot: Spot) -> int:
        info = self.levels[level].info
        whole = slice(0, info.size("Y")), slice(0, info.size("X"))
        return met_bytes(info, self._region(level, spot, *whole, 1))

    def _region(self, level: int, spot: Spot, y: slice, x: slice, depth: int) -> Region:
        info, full = self.levels[level].info, self.info
        z, planes = self.input_index("Z", spot.z), info.size("Z")
        if planes != full.size("Z"):  # a pyramid that is coarser in Z too
            z = min(z * planes // full.size("Z"), planes - 1)
        t, c = self.input_index("T", spot.t), self.input_index("C", spot.c)
        by_axis = {"T": slice(t, t + 1), "C": slice(c, c + 1), "Z": slice(z, z + depth), "Y": y, "X": x}
        return tuple(by_axis[axis] for axis in info.axes)

    def _read(self, level: int, spot: Spot, y: slice, x: slice, depth: int) -> Array:
        pixels = self.levels[level].read(self._region(level, spot, y, x, depth))
        return pixels.reshape(depth, *pixels.shape[-2:])


@dataclass(frozen=True, eq=False)
class Pair:
    """An input and the output that was made of it, open; close it, or use it in a `with`."""

    before: Side
    after: Side

    @property
    def info(self) -> ImageInfo:
        """Of the output."""
        return self.after.info

    @property
    def plane(self) -> Window:
        """A whole plane."""
        return Window(0, 0, self.info.size("Y"), self.info.size("X"))

    def cost_bytes(self, spot: Spot, window: Window, depth: int = 1) -> int:
        """Bytes that the dearer side decodes for a read."""
        return max(side.cost_bytes(spot, window, depth) for side in (self.before, self.after))

    def close(self) -> None:
        """Close both images."""
        for side in (self.before, self.after):
            for level in side.levels:
                level.close()

    def __enter__(self) -> Pair:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def levels_of(reader: ImageReader) -> tuple[ImageReader, ...]:
    """The image and, of an OME-Zarr, the coarser levels of its pyramid."""
    coarser = getattr(reader, "coarser", None)
    return (reader, *(coarser() if coarser is not None else ()))


def met_bytes(info: ImageInfo, region: Region) -> int:
    """Uncompressed bytes of the chunks that a region meets."""
    sizes = [
        min(-(-part.stop // chunk) * chunk, size) - part.start // chunk * chunk
        for part, chunk, size in zip(region, info.chunks, info.shape, strict=True)
    ]
    return int(math.prod(sizes)) * info.dtype.itemsize


def _sample(info: ImageInfo, step: int, whole_bytes: int, budget_bytes: int) -> tuple[list[slice], list[slice]]:
    """Which intervals along y and x go into each pixel of an overview.

    All of `step` pixels each where the budget allows, else one within each of the chunks that it does, spread evenly.
    """
    chunks = [info.chunks[info.axes.index(axis)] for axis in "YX"]
    sizes = [info.size(axis) for axis in "YX"]
    counts = [-(-size // chunk) for size, chunk in zip(sizes, chunks, strict=True)]
    if whole_bytes <= budget_bytes:
        return _steps(sizes[0], step), _steps(sizes[1], step)
    allowed = max(1, int(counts[0] * counts[1] * budget_bytes / whole_bytes))
    ratio = math.sqrt(allowed / (counts[0] * counts[1]))
    rows = min(counts[0], max(1, round(counts[0] * ratio), allowed // counts[1]))
    columns = min(counts[1], max(1, allowed // rows))
    taken = (rows, columns)
    found = [
        _steps(size, step) if n == count else _in_chunks(size, chunk, count, n)
        for size, chunk, count, n in zip(sizes, chunks, counts, taken, strict=True)
    ]
    return found[0], found[1]


def _steps(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _in_chunks(size: int, chunk: int, count: int, taken: int) -> list[slice]:
    starts = [int((k + 0.5) * count / taken) * chunk for k in range(taken)]
    return [slice(start, min(start + min(chunk, SAMPLE_PX), size)) for start in starts]


def _covered(parts: list[slice], size: int) -> float:
    return float(sum(part.stop - part.start for part in parts)) / size


def _runs(parts: list[slice], most_px: int) -> Iterator[slice]:
    """Cut a list of intervals into runs that touch each other and are at most `most_px` long (or one interval)."""
    start = 0
    for k in range(1, len(parts) + 1):
        ends = k == len(parts) or parts[k].start != parts[k - 1].stop
        if ends or parts[k].stop - parts[start].start > most_px:
            yield slice(start, k)
            start = k


def _box_means(pixels: Array, starts_y: list[int], starts_x: list[int]) -> NDArray[np.float32]:
    """Means over boxes that begin at the given rows and columns; of what is finite."""
    values = pixels.astype(np.float64)
    count: Any = np.outer(np.diff([*starts_y, pixels.shape[0]]), np.diff([*starts_x, pixels.shape[1]]))
    if pixels.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        values[~finite] = 0.0
        count = np.add.reduceat(np.add.reduceat(finite.astype(np.float64), starts_y, 0), starts_x, 1)
    sums = np.add.reduceat(np.add.reduceat(values, starts_y, 0), starts_x, 1)
    return np.where(count > 0, sums / np.maximum(count, 1), np.nan).astype(np.float32)
