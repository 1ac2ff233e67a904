"""A lazy array of dask read region by region: which chunks lie under a region, and their pixels put together.

Invariant: a chunk that is read is computed alone, in the thread that asks, and the last ones are kept up to a bound; so
memory does not depend on the size of the array.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEPT_BYTES = 256 * 2**20

Number = tuple[int, ...]
"""Of a chunk, along each axis."""


def chunks_along(sizes: Sequence[int], part: slice) -> list[tuple[int, int]]:
    """Along one axis: numbers of the chunks that a slice meets, and where each begins."""
    ends = np.cumsum(sizes)
    first, last = (int(np.searchsorted(ends, at, side="right")) for at in (part.start, part.stop - 1))
    return [(k, int(ends[k]) - sizes[k]) for k in range(first, last + 1) if sizes[k]]


def chunks_under(chunks: Sequence[Sequence[int]], region: Sequence[slice]) -> list[tuple[Number, tuple[int, ...]]]:
    """Numbers of the chunks that a region meets, and where in the array each begins."""
    found = itertools.product(*(chunks_along(sizes, part) for sizes, part in zip(chunks, region, strict=True)))
    return [(tuple(k for k, _ in pairs), tuple(start for _, start in pairs)) for pairs in found]


def put_together(
    region: Sequence[slice], pieces: Sequence[NDArray[Any]], starts: Sequence[Sequence[int]]
) -> NDArray[Any]:
    """The pixels of `region`, from the chunks under it, each with where it begins in the array."""
    out = np.empty([part.stop - part.start for part in region], pieces[0].dtype)
    for piece, start in zip(pieces, starts, strict=True):
        into, out_of = [], []
        for part, at, length in zip(region, start, piece.shape, strict=True):
            low, high = max(at, part.start), min(at + length, part.stop)
            into.append(slice(low - part.start, high - part.start))
            out_of.append(slice(low - at, high - at))
        out[tuple(into)] = piece[tuple(out_of)]
    return out


class ChunkedArray:
    """A dask array to be read from; threads may share it. What it keeps does not travel to other processes."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.forget()
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Let go of the chunks that are kept."""
        self._kept: OrderedDict[Number, NDArray[Any]] = OrderedDict()

    def read(self, region: Sequence[slice]) -> NDArray[Any]:
        """Pixels of a region (not empty) in the order of the array's axes; what computing raises passes through."""
        under = chunks_under(self.data.chunks, region)
        with self._lock:  # one chunk at a time: the libraries below do not promise more
            pieces = [self._chunk(number, start) for number, start in under]
        return put_together(region, pieces, [start for _, start in under])

    def _chunk(self, number: Number, start: tuple[int, ...]) -> NDArray[Any]:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        expected = tuple(sizes[k] for sizes, k in zip(self.data.chunks, number, strict=True))
        # By a slice, not by its blocks: resource_backed_dask_array would forget to open the file again.
        place = tuple(slice(at, at + size) for at, size in zip(start, expected, strict=True))
        chunk = np.asarray(self.data[place].compute(scheduler="synchronous"))
        if chunk.shape != expected:
            raise ValueError(f"a chunk has the shape {chunk.shape} where {expected} was stated")
        self._kept[number] = chunk
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return chunk

    def __getstate__(self) -> Any:
        return self.data

    def __setstate__(self, data: Any) -> None:
        self.__init__(data)  # type: ignore[misc]
