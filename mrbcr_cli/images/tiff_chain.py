"""The chain of image file directories of a TIFF, walked without decoding anything.

Invariant: a file that passes has every directory and every tag's value inside it and a chain that ends; one that does
not is an InputError. Source: TIFF 6.0 section 2; the BigTIFF proposal for 64-bit offsets.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from mrbcr_cli.errors import InputError

MAX_CHAIN = 1_000_000
MAX_TAGS = 4096
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Size of a value of each TIFF field type; a type that is not listed has no size that could be checked."""
INTEGERS = {1, 3, 4, 6, 8, 9, 13, 16, 17, 18}
"""Field types that hold whole numbers."""
LAYOUT_TAGS = {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 322, 323, 324, 325, 330, 339, 32997, 32998}
"""Tags that say where and how the pixels lie; each must hold whole numbers."""
PRIVATE_TAGS = 32768
"""From here on tags belong to companies, some of which bend the rules; no pixel depends on them."""
PageKinds = dict[int, tuple[int, ...]]
"""Offset of each directory in the chain -> width, length and compression as its tags state them."""


def check_chain(path: str) -> PageKinds:
    """Walk the chain of image file directories; raises InputError where it is missing, not TIFF, truncated or circular.

    tifffile itself ends the chain quietly where it breaks, which would make a truncated stack a shorter one, and looks
    at a few pages only to tell whether all are of one kind.
    """
    try:
        size = Path(path).stat().st_size
        if Path(path).is_dir():
            raise InputError(f"{path}: is a folder, not a TIFF file")
        if not Path(path).is_file():
            raise InputError(f"{path}: is not a regular file")
        with Path(path).open("rb") as handle:
            header = handle.read(16)
            if size == 0:
                raise InputError(f"{path}: is empty (0 bytes); copy or export it again")
            order = {b"II": "<", b"MM": ">"}.get(header[:2])
            version = struct.unpack(f"{order}H", header[2:4])[0] if order and len(header) >= 4 else 0
            if order is None or version not in (42, 43):
                raise InputError(
                    f"{path}: is not a TIFF file; convert it with bioformats2raw (to OME-Zarr) or save it as OME-TIFF"
                )
            return _walk(handle, path, size, order, big=version == 43)
    except FileNotFoundError as exc:
        raise InputError(f"{path}: no such file") from exc
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror or exc}") from exc


def _walk(handle: Any, path: str, size: int, order: str, *, big: bool) -> PageKinds:
    """Follow the chain from the header; raises InputError where a directory or a tag's value is not in the file."""
    wide = f"{order}u8" if big else f"{order}u4"
    entry = np.dtype([("code", f"{order}u2"), ("type", f"{order}u2"), ("count", wide), ("value", wide)])
    count_bytes, inline_bytes = (8, 8) if big else (2, 4)
    hamamatsu = Path(path).suffix.lower() == ".ndpi"  # a variant with offsets of its own kind
    seen: PageKinds = {}

    def read(at: int, count: int) -> bytes:
        data = b""
        if at + count <= size:  # also keeps absurd offsets from seek
            handle.seek(at)
            data = handle.read(count)
        if len(data) < count:
            raise InputError(
                f"{path}: is truncated: its page {len(seen) + 1} should reach byte {at + count} but the file has {size}"
                "; copy or export it again"
            )
        return data

    offset = int(np.frombuffer(read(inline_bytes, inline_bytes), wide)[0])
    if offset == 0:
        raise InputError(f"{path}: holds no image")
    while offset and len(seen) < MAX_CHAIN:
        if offset in seen:
            raise InputError(f"{path}: is damaged: its chain of pages runs in a circle; export it again")
        tags = int.from_bytes(read(offset, count_bytes), "little" if order == "<" else "big")
        if not 0 < tags <= MAX_TAGS:
            raise InputError(f"{path}: is damaged: page {len(seen) + 1} claims {tags} tags; export it again")
        if hamamatsu:
            return {}
        data = read(offset + count_bytes, tags * entry.itemsize + inline_bytes)
        entries = np.frombuffer(data, entry, count=tags).tolist()
        for code, kind, count, value in entries:
            length = count * TYPE_BYTES.get(kind, 0)
            if code in LAYOUT_TAGS and kind not in INTEGERS:
                raise InputError(
                    f"{path}: is damaged: tag {code} of page {len(seen) + 1} is of type {kind}, no whole number; "
                    "export it again"
                )
            if length > inline_bytes and value + length > size and code < PRIVATE_TAGS:
                raise InputError(
                    f"{path}: is truncated: tag {code} of page {len(seen) + 1} ends at byte {value + length} but the "
                    f"file has {size}; copy or export it again"
                )
        seen[offset] = _page_kind(entries, order, inline_bytes)
        offset = int(np.frombuffer(data, wide, offset=tags * entry.itemsize)[0])
    return seen


def _page_kind(entries: list[tuple[int, int, int, int]], order: str, inline_bytes: int) -> tuple[int, ...]:
    """Width, length and compression; a value shorter than its field is at the field's start in either byte order."""
    stated = {}
    for code, kind, _, value in entries:
        if code in (256, 257, 259):
            short = TYPE_BYTES.get(kind) == 2
            shifted = value >> 8 * (inline_bytes - 2) if order == ">" else value & 0xFFFF
            stated[code] = shifted if short else value
    return tuple(stated.get(code, 0) for code in (256, 257, 259))
