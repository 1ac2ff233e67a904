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
TYPE_BYTES = np.array([0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8, 0])
"""Size of a value of each TIFF field type (TIFF 6.0 section 2, BigTIFF 16 to 18); 0 where the type is unknown."""

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
        handle.seek(at)
        data: bytes = handle.read(count)
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
        entries = np.frombuffer(data, entry, count=tags)
        lengths = entries["count"].astype(np.float64) * TYPE_BYTES[np.minimum(entries["type"], len(TYPE_BYTES) - 1)]
        ends = np.where(lengths > inline_bytes, entries["value"] + lengths, 0)
        if ends.max() > size:
            tag = int(entries["code"][ends.argmax()])
            raise InputError(
                f"{path}: is truncated: tag {tag} of page {len(seen) + 1} ends at byte {int(ends.max())} but the file "
                f"has {size}; copy or export it again"
            )
        seen[offset] = _page_kind(entries, order, inline_bytes)
        offset = int(np.frombuffer(data, wide, offset=tags * entry.itemsize)[0])
    return seen


def _page_kind(entries: Any, order: str, inline_bytes: int) -> tuple[int, ...]:
    """Width, length and compression; a value shorter than its field is at the field's start in either byte order."""
    kind = []
    for code in (256, 257, 259):
        value = 0
        for entry in entries[entries["code"] == code]:
            short = order == ">" and TYPE_BYTES[min(int(entry["type"]), len(TYPE_BYTES) - 1)] == 2
            value = int(entry["value"]) >> 8 * (inline_bytes - 2) if short else int(entry["value"])
        kind.append(value)
    return tuple(kind)
