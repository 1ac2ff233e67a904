"""The intensity range of a channel: the one affine map that all its blocks share, and the spectrum of the whole.

Invariant: both depend on the pixels, the shape and the seed, never on the file format, the chunks or the tiles;
so a TIFF and a Zarr of the same pixels get the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (0.1, 99.9)
"""Of a channel: what a network sees as 0 and 1, and what is shown as black and white."""
EXACT_PIXELS = 1 << 24
"""Channels of at most this many pixels are measured whole."""
SEARCHED_PIXELS = 1 << 29
"""Of a channel whose sample shows no contrast, at most this many more are looked at (a few seconds of reading)."""
SEARCHED_PIECES = 1 << 14
SAMPLE_BOXES = 256
SAMPLE_BOX_PX = 128
SEED = 20240901
LARGEST_PRECISION_ERROR = 0.005
"""Of the range: beyond it a channel is computed in float32 whatever was asked for."""


@dataclass(frozen=True)
class IntensityRange:
    """Intensities that the method sees as 0 and 1, in image units; `how` says where they come from."""

    low: float
    high: float
    how: str = "given"
    guide: tuple[float, ...] | None = None
    """Spectrum of the channel, normalised by this range, as guided networks want it (see `network.guide`)."""
    precision_error: float | None = None
    """What the reduced precision that was asked for costs on a probe tile, in units of the range (`precision.py`)."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"an intensity range needs finite LOW < HIGH, not {self.low} {self.high}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> IntensityRange:
        """Rebuild a range from JSON (lists become tuples). Raises TypeError or ValueError for anything else."""
        guide = values.get("guide")
        return cls(**{**values, "guide": None if guide is None else tuple(float(v) for v in guide)})

    @property
    def needs_fp32(self) -> bool:
        """Whether the reduced precision that was asked for is too coarse for this channel."""
        return self.precision_error is not None and self.precision_error > LARGEST_PRECISION_ERROR

    @property
    def width(self) -> float:
        """high - low, > 0."""
        return self.high - self.low

    def shifted(self, by: float) -> IntensityRange:
        """The same range for intensities that have had `by` added."""
        return self if by == 0.0 else replace(self, low=self.low + by, high=self.high + by)


@dataclass(frozen=True)
class ChannelSurvey:
    """The range of a channel and what else was seen on the way."""

    range: IntensityRange
    non_finite: int
    """NaN or infinite pixels among those looked at."""
    looked_at: int
    notes: tuple[str, ...] = ()


def survey_channel(
    shape_tzyx: tuple[int, int, int, int],
    read_tzyx: Callable[[tuple[slice, slice, slice, slice]], NDArray[Any]],
    percentiles: tuple[float, float] = PERCENTILES,
) -> ChannelSurvey:
    """Measure robust percentiles of one channel: exactly when it is small, else over boxes drawn with a fixed seed.

    `read_tzyx` returns the pixels of a region of this channel (any real dtype). Non-finite pixels are counted and left
    out. A channel without contrast gets a range of width 1, and a note.
    """
    exact = int(np.prod(shape_tzyx, dtype=object)) <= EXACT_PIXELS
    regions = _all_planes(shape_tzyx) if exact else survey_boxes(shape_tzyx)
    samples, bad, seen = [], 0, 0
    for region in regions:
        values = read_tzyx(region).ravel()
        seen += values.size
        if values.dtype.kind == "f":
            finite = np.isfinite(values)
            bad += int(values.size - finite.sum())
            values = values[finite]
        samples.append(values)
    pixels = np.concatenate(samples)
    how = f"percentiles {percentiles[0]:g} and {percentiles[1]:g}" + ("" if exact else f" of {seen} sampled pixels")
    if pixels.size == 0:
        return ChannelSurvey(IntensityRange(0, 1, "no finite pixel"), bad, seen, ("no finite pixel was found",))
    low, high = (float(v) for v in np.percentile(pixels, percentiles))
    notes: tuple[str, ...] = ()
    if not low < high:
        # A few bright objects on nothing: the sample may have missed them all, so everything is looked at.
        low, high = float(pixels.min()), float(pixels.max())
        for region in () if exact else _pieces(shape_tzyx):
            plane = read_tzyx(region)
            finite = plane[np.isfinite(plane)] if plane.dtype.kind == "f" else plane
            if finite.size:
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        how = "minimum and maximum"
        notes = ("almost all pixels are equal: the range is the minimum and maximum",)
    if not low < high:
        return ChannelSurvey(IntensityRange(low, low + 1, "constant"), bad, seen, ("all pixels seen are equal",))
    return ChannelSurvey(IntensityRange(low, high, how), bad, seen, notes)


def with_guide(found: IntensityRange, windows: Sequence[NDArray[Any]]) -> IntensityRange:
    """The range, and with it the spectrum of the channel that the windows (Y, X) are of."""
    from mrbcr_cli.network.guide import guide_of_windows

    return replace(found, guide=guide_of_windows(windows, found.low, found.high))


def _all_planes(shape_tzyx: tuple[int, int, int, int]) -> list[tuple[slice, slice, slice, slice]]:
    frames, planes, height, width = shape_tzyx
    return [
        (slice(t, t + 1), slice(z, z + 1), slice(0, height), slice(0, width))
        for t in range(frames)
        for z in range(planes)
    ]


def _pieces(shape_tzyx: tuple[int, int, int, int]) -> Iterator[tuple[slice, slice, slice, slice]]:
    """All planes in pieces that fit memory, or where they are more than SEARCHED_PIXELS as many, evenly spread."""
    frames, planes, height, width = shape_tzyx
    # Square where a plane is larger than a piece, so that a chunk of the file meets few of them.
    rows = height if height * width <= EXACT_PIXELS else min(height, math.isqrt(EXACT_PIXELS))
    columns = min(width, max(1, EXACT_PIXELS // rows))
    down, across = -(-height // rows), -(-width // columns)
    count = frames * planes * down * across
    most = min(max(1, SEARCHED_PIXELS // (rows * columns)), SEARCHED_PIECES)
    for k in range(min(count, most)):
        index = k if count <= most else k * (count - 1) // max(1, most - 1)
        index, column = divmod(index, across)
        index, row = divmod(index, down)
        t, z = divmod(index, planes)
        yield (
            slice(t, t + 1),
            slice(z, z + 1),
            slice(row * rows, min((row + 1) * rows, height)),
            slice(column * columns, min((column + 1) * columns, width)),
        )


def survey_boxes(shape_tzyx: tuple[int, int, int, int]) -> list[tuple[slice, slice, slice, slice]]:
    """Where a large channel is looked at: seeded boxes, in file order so that a reader's cache serves neighbours."""
    rng = np.random.default_rng(SEED)
    starts = []
    for _ in range(SAMPLE_BOXES):
        sizes = (1, 1, min(SAMPLE_BOX_PX, shape_tzyx[2]), min(SAMPLE_BOX_PX, shape_tzyx[3]))
        corner = tuple(int(rng.integers(0, n - size + 1)) for n, size in zip(shape_tzyx, sizes, strict=True))
        starts.append((corner, sizes))
    boxes = []
    for corner, sizes in sorted(starts):
        t, z, y, x = (slice(a, a + n) for a, n in zip(corner, sizes, strict=True))
        boxes.append((t, z, y, x))
    return boxes
