"""A series of single-plane TIFF files, read as one stack.

Invariant: every file holds one 2-D plane of the same shape and pixel type, checked when the stack is opened; the
order of the planes is the natural order of the names ("2" before "10"), and so does not depend on the file system.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.axes import format_shape, parse_axes
from mrbcr_cli.images.base import CANONICAL_AXES, ImageInfo, Region
from mrbcr_cli.images.tiff import check_region, hash_file
from mrbcr_cli.images.tiff_pages import PageReader, Plane, StoredArray
from mrbcr_cli.images.tiff_source import Source, load_source

# An index in a file name: t, c (ch) or z followed by digits, set off from other letters ("_t001_c0_z05", "z12").
INDEX = re.compile(r"(?<![A-Za-z])(t|ch|c|z)[-=]?(\d+)(?!\d)", re.IGNORECASE)


def open_planes(paths: Sequence[Path], *, axes: str | None = None) -> PlanesReader:
    """Open TIFF files of one plane each as a stack; hidden files are left out, the order is the natural one of names.

    The stack's axes are `axes` if given (three letters, such as "TYX"; four or five where the names carry indices such
    as _t001_c0_z05), else those that the names tell without doubt, else Z with a note.

    Raises InputError: no file, a file that holds more than one plane or cannot be read, planes that differ in shape or
    pixel type (names the first that does), axes that do not fit.
    """
    files = sorted((Path(path) for path in paths if not Path(path).name.startswith(".")), key=natural_key)
    if not files:
        raise InputError("no TIFF planes to read: the folder or pattern matches no file")
    planes: list[Plane] = []
    first = load_source(files[0])
    for path in files:
        source = first if path == files[0] else load_source(path)
        planes.append(_single_plane(source, first, path))
    lead, places, notes = _arrange(files, axes)
    ordered = [plane for _, plane in sorted(zip(places, planes, strict=True), key=lambda pair: pair[0])]
    return PlanesReader(first, ordered, lead, notes)


def natural_key(path: Path) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sort key that orders digits in names by value: a2 before a10."""
    parts = re.split(r"(\d+)", path.name.lower())
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts), str(path)


class PlanesReader:
    """A stack of plane files; fulfils ImageReader. Reads are thread safe; each opens only the files that it needs."""

    def __init__(
        self, first: Source, planes: Sequence[Plane], lead: Sequence[tuple[str, int]], notes: Sequence[str]
    ) -> None:
        self._planes = list(planes)
        self._pages = PageReader(self._planes[0].path)
        length, width = first.layout.shape[2:4]
        axes = "".join(letter for letter, _ in lead) + "YX"
        shape = (*(size for _, size in lead), length, width)
        self._stored = StoredArray(shape, first.layout, self._planes.__getitem__, self._pages)
        physical = first.physical
        self.info = ImageInfo(
            path=str(Path(first.path).parent),
            format="planes",
            axes=axes,
            shape=shape,
            dtype=first.layout.dtype,
            chunks=self._stored.chunks,
            stored_axes=axes,
            scale=tuple(None if axis == "C" else physical.scale.get(axis) for axis in axes),
            units=tuple(None if axis == "C" else physical.units.get(axis) for axis in axes),
            notes=(*notes, *physical.notes),
        )

    def read(self, region: Region) -> NDArray[Any]:
        """Return the pixels of `region`; raises InputError where a file is damaged, ValueError for a bad region."""
        check_region(region, self.info.shape)
        return np.ascontiguousarray(self._stored.read(region))

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the axes and of every file's size and contents (sampled above 64 MiB), in stack order."""
        digest = hashlib.sha256(f"mrbcr planes 1|{self.info.axes}|{self.info.shape}".encode())
        for plane in self._planes:
            hash_file(digest, plane.path)
        return digest.hexdigest()

    def close(self) -> None:
        self._pages.close()


def _single_plane(source: Source, first: Source, path: Path) -> Plane:
    layout = source.layout
    if source.plane_count != 1 or source.series_count != 1 or layout.shape[1] != 1 or len(source.files) != 1:
        raise InputError(
            f"{path}: holds {format_shape(source.shape)} pixels in {source.series_count} series, not one plane; "
            "give such files themselves (FOLDER/*.tif) to process each by itself"
        )
    if layout.shape[0] * layout.shape[4] != 1:
        raise InputError(f"{path}: holds colour pixels (RGB); save the planes as greyscale")
    if layout.shape != first.layout.shape or layout.dtype != first.layout.dtype:
        raise InputError(
            f"{path}: is {format_shape(layout.shape[2:4])} {layout.dtype}, but {Path(first.path).name} is "
            f"{format_shape(first.layout.shape[2:4])} {first.layout.dtype}; planes of a stack must agree: "
            "give the files themselves to process each by itself"
        )
    return source.plane(0)


def _arrange(files: Sequence[Path], axes: str | None) -> tuple[list[tuple[str, int]], list[int], list[str]]:
    """Return the leading axes with their sizes, the place of each file in the stack, and notes."""
    wanted = None if axes is None else parse_axes(axes, where=f"{files[0].parent}: --axes")
    if wanted is not None and (not wanted.endswith("YX") or len(wanted) < 3):
        raise InputError(
            f"{files[0].parent}: --axes {axes!r} must name the stack's axes first and end in YX, as in ZYX"
        )
    indices = _name_indices(files)
    if wanted is not None and len(wanted) == 3:
        return [(wanted[0], len(files))], list(range(len(files))), []
    if wanted is not None and set(wanted[:-2]) != set(indices):
        raise InputError(
            f"{files[0].parent}: --axes {axes!r} needs file names that number each of {', '.join(wanted[:-2])}, as in "
            f"img_t001_c0_z05.tif; they number {', '.join(indices) or 'none of them'} without gaps"
        )
    if not indices:
        note = f"The {len(files)} planes are taken as Z. Give --axes TYX or CYX to choose otherwise."
        return [("Z", len(files))], list(range(len(files))), [note]
    lead = [(letter, len(set(indices[letter]))) for letter in CANONICAL_AXES if letter in indices]
    ranks = {letter: {value: i for i, value in enumerate(sorted(set(indices[letter])))} for letter, _ in lead}
    sizes = [size for _, size in lead]
    places = [
        int(np.ravel_multi_index([ranks[letter][indices[letter][i]] for letter, _ in lead], sizes))
        for i in range(len(files))
    ]
    named = ", ".join(f"{letter} {size}" for letter, size in lead)
    note = f"The file names order the {len(files)} planes as {named}. Give --axes to choose otherwise."
    return lead, places, [note]


def _name_indices(files: Sequence[Path]) -> dict[str, list[int]]:
    """Return letter -> index of each file, for letters that every name numbers once; empty unless they fill a grid."""
    found = [[(word[0].upper(), int(number)) for word, number in INDEX.findall(path.stem)] for path in files]
    letters = sorted(letter for letter, _ in found[0])
    if any(sorted(letter for letter, _ in each) != letters or len(dict(each)) != len(each) for each in found):
        return {}
    values = {letter: [dict(each)[letter] for each in found] for letter in letters}
    varying = {letter: each for letter, each in values.items() if len(set(each)) > 1}
    if not varying or len(set(zip(*varying.values(), strict=True))) != len(files):
        return {}
    complete = math.prod(len(set(each)) for each in varying.values()) == len(files)
    return varying if complete else {}
