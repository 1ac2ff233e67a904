"""Pixels of TIFF pages by region: which bytes hold them, reading those, decoding those.

Invariant: a read touches only the strips and tiles that meet the region and no segment is decoded twice while it is
in the cache, which is bounded; every failure to read or decode is an InputError that names the file and the plane.
"""

from __future__ import annotations

import math
import os
import struct
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.tiff_picture import picture_size

CACHE_BYTES = 256 * 2**20
_SLACK_BYTES = 2**20
"""What a segment may be longer than its pixels take: headers, tables, tiny tiles."""
JPEG_CODES = {6, 7, 33007, 34892}
# What tifffile and imagecodecs raise on damaged or unsupported data (imagecodecs' own errors are RuntimeErrors).
DECODE_ERRORS = (ValueError, RuntimeError, KeyError, TypeError, IndexError, ImportError, MemoryError, struct.error)

Box = tuple[slice, slice, slice, slice, slice]
"""Separate samples, depth, rows, columns, interleaved samples: the five axes of any TIFF page."""


@dataclass(frozen=True)
class Layout:
    """How the pixels of a page lie in its segments; shared by all pages of the same kind."""

    shape: tuple[int, int, int, int, int]
    """Separate samples, depth, length, width, interleaved samples."""
    dtype: np.dtype[Any]
    """Native byte order."""
    stored_dtype: np.dtype[Any]
    """Byte order of the file."""
    raw: bool
    """The page is one uncompressed, unpredicted run of bytes."""
    segment: tuple[int, int, int]
    """Depth, length and width of a strip or tile."""
    compressed: bool
    nodata: float
    decode: Callable[..., Any]
    jpegheader: bytes | None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def grid(self) -> tuple[int, int, int, int]:
        """Number of segments along separate samples, depth, length, width."""
        depth, length, width = (
            math.ceil(size / step) for size, step in zip(self.shape[1:4], self.segment, strict=True)
        )
        return self.shape[0], depth, length, width

    @property
    def segment_nbytes(self) -> int:
        return math.prod(self.segment) * self.shape[4] * self.dtype.itemsize


@dataclass(frozen=True)
class Plane:
    """One page: its file and where its segments are."""

    path: str
    label: str
    layout: Layout
    offsets: Sequence[int]
    bytecounts: Sequence[int]
    jpegtables: bytes | None = None


def layout_of(keyframe: Any) -> Layout:
    """Return the layout of a tifffile TiffPage (which must be a keyframe)."""
    width = keyframe.shaped[3]
    segment = (
        (keyframe.tiledepth, keyframe.tilelength, keyframe.tilewidth)
        if keyframe.is_tiled
        else (1, keyframe.rowsperstrip, width)
    )
    # By name: tifffile may give the "long long" twin of int64, which other libraries do not recognise.
    dtype = np.dtype(np.dtype(keyframe.dtype).name)
    return Layout(
        shape=tuple(int(size) for size in keyframe.shaped),  # type: ignore[arg-type]
        dtype=dtype.newbyteorder("="),
        stored_dtype=dtype.newbyteorder(keyframe.parent.byteorder),
        raw=bool(keyframe.is_final),
        segment=tuple(max(1, int(size)) for size in segment),  # type: ignore[arg-type]
        compressed=int(keyframe.compression) != 1,
        nodata=keyframe.nodata,
        decode=keyframe.decode,
        jpegheader=keyframe.jpegheader if int(keyframe.compression) in JPEG_CODES else None,
    )


class Files:
    """Reads byte ranges, thread safe: the main file stays open, others (of a multi-file image) open for each read."""

    def __init__(self, main: str) -> None:
        self._main = main
        self._lock = threading.Lock()
        self._descriptor = _open(main)
        self._finalizer = weakref.finalize(self, os.close, self._descriptor)

    def read(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of each (offset, count); raises InputError where the file ends before or cannot be read."""
        descriptor = None
        try:
            descriptor = self._descriptor if path == self._main else _open(path)
            return [self._read_at(descriptor, offset, count) for offset, count in ranges]
        except EOFError as exc:
            raise InputError(f"{path}: is truncated: {exc}; copy or export it again") from exc
        except OSError as exc:
            raise InputError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
        finally:
            if descriptor not in (None, self._descriptor):
                os.close(descriptor)

    def _read_at(self, descriptor: int, offset: int, count: int) -> bytes:
        data = self._pread(descriptor, offset, count)
        if len(data) == count:
            return data
        parts = [data]  # Linux returns at most 2 GiB at a time
        while (missing := count - sum(map(len, parts))) > 0:
            part = self._pread(descriptor, offset + count - missing, missing)
            if not part:
                raise EOFError(f"{count} bytes expected at offset {offset}")
            parts.append(part)
        return b"".join(parts)

    def _pread(self, descriptor: int, offset: int, count: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(descriptor, count, offset)
        with self._lock:  # Windows has no pread
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.read(descriptor, count)

    def close(self) -> None:
        self._finalizer()


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))


class SegmentCache:
    """The decoded segments used last, up to a number of bytes (and always the very last one); thread safe.

    A segment wanted by several threads at once is decoded by the first, the others wait for it.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._nbytes = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[Any, Future[NDArray[Any] | None]] = OrderedDict()

    def get(self, key: Any, make: Callable[[], NDArray[Any] | None]) -> NDArray[Any] | None:
        """Return the segment of `key`, made by `make` unless it is here; a failure is raised and not kept."""
        with self._lock:
            future = self._entries.get(key)
            mine = future is None
            if future is None:
                future = self._entries[key] = Future()
            self._entries.move_to_end(key)
        if not mine:
            return future.result()
        try:
            segment = make()
        except BaseException as exc:
            with self._lock:
                self._entries.pop(key, None)
            future.set_exception(exc)
            raise
        future.set_result(segment)
        with self._lock:
            self._nbytes += _nbytes(segment)
            self._evict(key)
        return segment

    def _evict(self, keep: Any) -> None:
        for key in list(self._entries):
            if self._nbytes <= self._max_bytes:
                return
            if key != keep and self._entries[key].done():
                self._nbytes -= _nbytes(self._entries.pop(key).result())


def _nbytes(segment: NDArray[Any] | None) -> int:
    return 0 if segment is None else segment.nbytes


class PageReader:
    """Reads boxes of planes through one set of files and one cache."""

    def __init__(self, main: str, cache_bytes: int = CACHE_BYTES) -> None:
        self._files = Files(main)
        self._cache = SegmentCache(cache_bytes)

    def read(self, plane: Plane, box: Box, out: NDArray[Any]) -> None:
        """Fill `out` (five axes, the size of `box`) with the pixels of `box`."""
        if plane.layout.raw:
            self._read_raw(plane, box, out)
        else:
            self._read_segments(plane, box, out)

    def close(self) -> None:
        self._files.close()

    def _read_raw(self, plane: Plane, box: Box, out: NDArray[Any]) -> None:
        layout = plane.layout
        if plane.offsets[0] == 0:
            out[...] = layout.nodata  # never written (a sparse TIFF)
            return
        _, depth, length, width, samples = layout.shape
        samples_box, depth_box, rows, columns, contig = box
        pixel = samples * layout.dtype.itemsize
        wanted = columns.stop - columns.start
        # Whole rows in one read unless the box takes a small part of them: then one short read a row.
        whole = wanted * 4 >= width
        for s in range(samples_box.start, samples_box.stop):
            for d in range(depth_box.start, depth_box.stop):
                row0 = plane.offsets[0] + ((s * depth + d) * length + rows.start) * width * pixel
                count = rows.stop - rows.start
                if whole:
                    ranges = [(row0, count * width * pixel)]
                else:
                    start = row0 + columns.start * pixel
                    ranges = [(start + row * width * pixel, wanted * pixel) for row in range(count)]
                data = b"".join(self._files.read(plane.path, ranges))
                shape = (count, width if whole else wanted, samples)
                array = np.frombuffer(data, layout.stored_dtype).reshape(shape)
                if whole:
                    array = array[:, columns]
                out[s - samples_box.start, d - depth_box.start] = array[:, :, contig]

    def _read_segments(self, plane: Plane, box: Box, out: NDArray[Any]) -> None:
        for index, origin in _segments_meeting(plane.layout, box):
            segment = self._cache.get(
                (plane.path, plane.offsets[index], index, plane.label), partial(self._decode, plane, index)
            )
            size = (1, *plane.layout.segment, plane.layout.shape[4])
            target, source = _overlap(box, origin, size)
            if segment is None:
                out[target] = plane.layout.nodata
                continue
            found = segment[None][source]
            if found.shape != out[target].shape:
                raise InputError(f"{plane.path}: {plane.label} has a segment of the wrong size; the file is damaged")
            out[target] = found

    def _decode(self, plane: Plane, index: int) -> NDArray[Any] | None:
        offset, count = plane.offsets[index], plane.bytecounts[index]
        if offset == 0 or count == 0:
            return None  # a segment that was never written: TIFF calls this sparse, its pixels are "no data"
        if count > 2 * plane.layout.segment_nbytes + _SLACK_BYTES:
            raise InputError(
                f"{plane.path}: {plane.label} has a segment of {count} bytes, more than its pixels; damaged"
            )
        data = self._files.read(plane.path, [(offset, count)])[0]
        _check_picture(data, plane)
        kwargs: dict[str, Any] = {}
        if plane.jpegtables is not None or plane.layout.jpegheader is not None:
            kwargs = {"jpegtables": plane.jpegtables, "jpegheader": plane.layout.jpegheader}
        try:
            segment, _, _ = plane.layout.decode(data, index, **kwargs)
        except DECODE_ERRORS as exc:
            reason = " ".join(str(exc).split())[:200] or type(exc).__name__
            raise InputError(
                f"{plane.path}: {plane.label} cannot be decoded ({reason}); "
                "the file is damaged or its compression is not supported"
            ) from exc
        return None if segment is None else np.asarray(segment)


def _check_picture(data: bytes, plane: Plane) -> None:
    """Refuse a JPEG, JPEG 2000 or PNG whose own header states more pixels than its segment: it would be decoded whole.

    Other codecs are told how many bytes to make.
    """
    stated = picture_size(data)
    _, length, width = plane.layout.segment
    if stated is not None and stated[0] * stated[1] > 2 * max(length * width, _SLACK_BYTES):
        raise InputError(
            f"{plane.path}: {plane.label} has a segment that claims {stated[1]} x {stated[0]} pixels, "
            f"where the file has {width} x {length}; the file is damaged"
        )


def _segments_meeting(layout: Layout, box: Box) -> Iterator[tuple[int, tuple[int, int, int, int, int]]]:
    """Yield (index, first pixel) of each segment that meets `box`, in file order."""
    _, depths, lengths, widths = layout.grid
    spans = [
        range(part.start // step, math.ceil(part.stop / step)) if part.stop > part.start else range(0)
        for part, step in zip(box[:4], (1, *layout.segment), strict=True)
    ]
    for s in spans[0]:
        for d in spans[1]:
            for y in spans[2]:
                for x in spans[3]:
                    index = ((s * depths + d) * lengths + y) * widths + x
                    step = layout.segment
                    yield index, (s, d * step[0], y * step[1], x * step[2], 0)


def _overlap(box: Box, origin: tuple[int, ...], size: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return where the segment at `origin` falls in the output of `box`, and which part of the segment that is."""
    target, source = [], []
    for part, first, length in zip(box, origin, size, strict=True):
        start, stop = max(part.start, first), min(part.stop, first + length)
        target.append(slice(start - part.start, stop - part.start))
        source.append(slice(start - first, stop - first))
    return tuple(target), tuple(source)


class StoredArray:
    """An image of planes as one array in its stored axis order, read by region.

    `shape` is the stored shape. Its last axes are those of a page that are longer than 1, the others count planes.
    """

    def __init__(self, shape: Sequence[int], layout: Layout, plane: Callable[[int], Plane], reader: PageReader) -> None:
        self.shape = tuple(int(size) for size in shape)
        self.layout = layout
        self._plane = plane
        self._reader = reader
        self._page_axis = _page_axes(self.shape, layout.shape)
        self.plane_count = math.prod(
            size for size, axis in zip(self.shape, self._page_axis, strict=True) if axis is None
        )

    @property
    def chunks(self) -> tuple[int, ...]:
        """Stored region that decodes by itself, one length per stored axis."""
        sizes = (1, *self.layout.segment, self.layout.shape[4])
        return tuple(
            1 if axis is None else min(size, sizes[axis])
            for size, axis in zip(self.shape, self._page_axis, strict=True)
        )

    def read(self, region: Sequence[slice]) -> NDArray[Any]:
        """Return the pixels of `region` (one slice per stored axis, explicit bounds), native byte order."""
        out = np.empty([part.stop - part.start for part in region], self.layout.dtype)
        if out.size == 0:
            return out
        box = [slice(0, 1)] * 5
        for part, axis in zip(region, self._page_axis, strict=True):
            if axis is not None:
                box[axis] = part
        lead = [i for i, axis in enumerate(self._page_axis) if axis is None]
        lead_shape = [self.shape[i] for i in lead]
        box_shape = [part.stop - part.start for part in box]
        pages = out.reshape([out.shape[i] for i in lead] + box_shape)  # page axes come last, so this is a view
        for position in np.ndindex(*pages.shape[: len(lead)]):
            place = [region[i].start + p for i, p in zip(lead, position, strict=True)]
            index = int(np.ravel_multi_index(place, lead_shape)) if lead else 0
            self._reader.read(self._plane(index), tuple(box), pages[position])  # type: ignore[arg-type]
        return out


def _page_axes(shape: tuple[int, ...], page: tuple[int, ...]) -> tuple[int | None, ...]:
    """Map each stored axis to an axis of the page (0 to 4), or None where it counts planes.

    Raises ValueError where the page's axes are not the last ones of `shape`.
    """
    left = [axis for axis, size in enumerate(page) if size > 1]
    axes: list[int | None] = []
    for size in reversed(shape):
        if size == 1 or not left:
            axes.append(None)
        elif page[left[-1]] == size:
            axes.append(left.pop())
        else:
            raise ValueError(f"pages of {page} do not make up an image of {shape}")
    if left:
        raise ValueError(f"pages of {page} do not make up an image of {shape}")
    return tuple(reversed(axes))
