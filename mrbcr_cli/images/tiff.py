"""The TIFF reader: one series of a file, by region, in canonical axes.

Invariant: only this module turns the stored axis order of a TIFF into TCZYX; `read` returns exactly the pixels that
tifffile.imread would, transposed. Opening has checked that the file holds all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.axes import AxisReading, canonical_order, interpret_axes
from mrbcr_cli.images.base import ImageInfo, Region
from mrbcr_cli.images.tiff_meta import Physical
from mrbcr_cli.images.tiff_pages import PageReader, StoredArray
from mrbcr_cli.images.tiff_source import Source, load_source

WHOLE_BYTES = 64 * 2**20
EDGE_BYTES = 2**20
SAMPLES = 64
SAMPLE_BYTES = 64 * 2**10


def open_tiff(
    path: str | Path, *, series: int | None = None, axes: str | None = None, split_rgb: bool = False
) -> TiffReader:
    """Open one series of a TIFF, BigTIFF, OME-TIFF or ImageJ file; nothing is decoded but a first segment, as a test.

    `series` chooses among several images of a file (default: the first, with a note). `axes` overrides what the file
    says: one letter of TCZYX per stored axis, in stored order; axes of length 1 may be left out. `split_rgb` takes the
    samples of colour pixels as channels.

    Raises InputError for anything that cannot be read to its end as intensities (see `tiff_source.load_source`), for
    axes that cannot be told or do not fit, and for colour pixels without `split_rgb`.
    """
    source = load_source(path, series=series)
    letters, shape = _named(source)
    reading = interpret_axes(
        letters, shape, path=str(path), user=axes, split_rgb=split_rgb, guess=source.format != "ome-tiff"
    )
    return TiffReader(source, shape, reading)


class TiffReader:
    """An open TIFF; fulfils ImageReader. Reads are thread safe and share a cache of at most 256 MiB of segments."""

    def __init__(self, source: Source, shape: Sequence[int], reading: AxisReading) -> None:
        self._source = source
        self._reading = reading
        self._pages = PageReader(source.path)
        try:
            self._stored = StoredArray(shape, source.layout, source.plane, self._pages)
            if self._stored.plane_count != source.plane_count:
                raise ValueError(f"{source.plane_count} planes for {self._stored.plane_count}")
            self.info = _image_info(source, self._stored, reading)
            self._probe()
        except ValueError as exc:
            self._pages.close()
            raise InputError(f"{source.path}: its planes do not make up the shape it states ({exc})") from exc
        except InputError:
            self._pages.close()
            raise

    def read(self, region: Region) -> NDArray[Any]:
        """Return the pixels of `region` (one slice with start and stop per axis of `info.axes`), C order.

        Raises InputError where the data cannot be decoded; ValueError for a region outside the image.
        """
        check_region(region, self.info.shape)
        bounds = dict(zip(self.info.axes, region, strict=True))
        samples = self._samples()
        channels = bounds.get("C", slice(0, 1))
        if samples > 1 and "C" in self._reading.letters:  # channel c of the image is sample c % samples of c // samples
            bounds["C"] = slice(channels.start // samples, -(-channels.stop // samples))
            bounds["S"] = slice(0, samples)
        elif samples > 1:
            bounds["S"] = channels
        stored = self._stored.read([bounds.get(letter, slice(0, 1)) for letter in self._reading.letters])
        return self._canonical(stored, channels)

    def _canonical(self, stored: NDArray[Any], channels: slice) -> NDArray[Any]:
        """Drop the nameless axes, put the others in canonical order and fold samples into channels."""
        kept = [letter for letter in self._reading.letters if letter]
        array = stored.reshape([n for n, letter in zip(stored.shape, self._reading.letters, strict=True) if letter])
        if "S" not in kept:
            order = self.info.axes
        elif "C" in kept:
            order = self.info.axes.replace("C", "CS")
        else:
            order = self.info.axes.replace("C", "S")
        array = array.transpose([kept.index(axis) for axis in order])
        if "CS" in order:
            at, samples = order.index("C"), self._samples()
            array = array.reshape(*array.shape[:at], -1, *array.shape[at + 2 :])
            first = channels.start % samples
            array = array[(slice(None),) * at + (slice(first, first + channels.stop - channels.start),)]
        return np.ascontiguousarray(array)

    def _samples(self) -> int:
        letters = self._reading.letters
        return self._stored.shape[letters.index("S")] if "S" in letters else 1

    def _probe(self) -> None:
        """Decode one pixel, so that a compression that cannot be decoded fails here and not in the first block."""
        if self._source.layout.compressed and self._source.layout.segment_nbytes <= WHOLE_BYTES:
            self._stored.read([slice(0, 1)] * len(self._stored.shape))

    def fingerprint(self) -> str:
        """SHA-256 (hex) of how the file is read and of its contents: all of them up to 64 MiB, else samples.

        Samples are the size, the first and last MiB and 64 evenly spaced pieces of 64 KiB of each file; a change of a
        larger file that keeps its size and misses every sample is not seen.
        """
        source = self._source
        digest = hashlib.sha256(f"mrbcr tiff 1|{source.series}|{'/'.join(self._reading.letters)}".encode())
        for path in source.files:
            hash_file(digest, path)
        return digest.hexdigest()

    def close(self) -> None:
        self._pages.close()


def check_region(region: Region, shape: Sequence[int]) -> None:
    """Raise ValueError unless `region` has one slice per axis with 0 <= start <= stop <= size and step 1."""
    if len(region) != len(shape):
        raise ValueError(f"region of {len(region)} axes for an image of {len(shape)}")
    for part, size in zip(region, shape, strict=True):
        if part.start is None or part.stop is None or part.step not in (None, 1):
            raise ValueError(f"{part} needs an explicit start and stop and step 1")
        if not 0 <= part.start <= part.stop <= size:
            raise ValueError(f"{part} lies outside an axis of length {size}")


def hash_file(digest: Any, path: str) -> None:
    """Add the size and contents (sampled above 64 MiB) of a file to a hashlib object; raises InputError."""
    try:
        with Path(path).open("rb") as handle:
            size = Path(path).stat().st_size
            digest.update(f"|{size}|".encode())
            if size <= WHOLE_BYTES:
                while chunk := handle.read(EDGE_BYTES):
                    digest.update(chunk)
                return
            # What lies between the samples shows only in the time of the last change.
            digest.update(f"|{Path(path).stat().st_mtime_ns}|".encode())
            pieces = [(0, EDGE_BYTES), (size - EDGE_BYTES, EDGE_BYTES)]
            pieces += [((size - SAMPLE_BYTES) * i // (SAMPLES - 1), SAMPLE_BYTES) for i in range(SAMPLES)]
            for offset, count in pieces:
                handle.seek(offset)
                digest.update(handle.read(count))
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror or exc}") from exc


def _named(source: Source) -> tuple[str, tuple[int, ...]]:
    """Return letters and shape with the length-1 axes that our own writer recorded put back."""
    recorded = source.physical.axes
    if recorded is None:
        return source.letters, source.shape
    kept = [
        (letter, size)
        for letter, size in zip(source.full_letters, source.full_shape, strict=True)
        if size != 1 or letter in recorded
    ]
    return "".join(letter for letter, _ in kept), tuple(size for _, size in kept)


def _image_info(source: Source, stored: StoredArray, reading: AxisReading) -> ImageInfo:
    sizes: dict[str, int] = {}
    chunks: dict[str, int] = {}
    for letter, size, chunk in zip(reading.letters, stored.shape, stored.chunks, strict=True):
        if letter:
            key = "C" if letter == "S" else letter
            sizes[key] = sizes.get(key, 1) * size
            chunks[key] = chunks.get(key, 1) * chunk
    axes = canonical_order("".join(sizes))
    names, colors = _channels(source, reading, stored, sizes.get("C", 1))
    physical = source.physical
    return ImageInfo(
        path=source.path,
        format=source.format,
        axes=axes,
        shape=tuple(sizes[axis] for axis in axes),
        dtype=source.layout.dtype,
        chunks=tuple(chunks[axis] for axis in axes),
        stored_axes=reading.stored_axes,
        scale=tuple(None if axis == "C" else physical.scale.get(axis) for axis in axes),
        units=tuple(None if axis == "C" else physical.units.get(axis) for axis in axes),
        channel_names=names,
        channel_colors=colors,
        ome_xml=source.ome_xml,
        series=source.series,
        series_count=source.series_count,
        notes=source.notes + reading.notes + physical.notes,
    )


def _channels(
    source: Source, reading: AxisReading, stored: StoredArray, count: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return names and colours, one per channel; samples of RGB pixels are red, green, blue."""
    names, colors = _fit(source.physical, count)
    samples = stored.shape[reading.letters.index("S")] if "S" in reading.letters else 1
    if samples not in (3, 4) or not source.rgb:
        return names, colors
    words = ("red", "green", "blue", "alpha")[:samples]
    given = source.physical.channel_names if len(source.physical.channel_names) * samples == count else ()
    prefixes = [f"{name} " if name else "" for name in given] or [""] * (count // samples)
    shown = ("FF0000", "00FF00", "0000FF", "FFFFFF")[:samples]
    return tuple(f"{prefix}{word}" for prefix in prefixes for word in words), shown * (count // samples)


def _fit(physical: Physical, count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and colours that the file states for `count` channels; none where it states another number."""
    names, colors = physical.channel_names, physical.channel_colors
    return names if len(names) == count else (), colors if len(colors) == count else ()
