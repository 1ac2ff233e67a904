"""The size that an image file within a TIFF segment states of itself, read from its first bytes.

Invariant: pure, from bytes to numbers; nothing is decoded. Sources: ITU-T T.81 (JPEG), T.800 (JPEG 2000), PNG 1.2.
"""

from __future__ import annotations

import struct


def picture_size(data: bytes) -> tuple[int, int] | None:
    """(length, width) that a JPEG, JPEG 2000 or PNG states; None for anything else."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        width, length = struct.unpack(">II", data[16:24])
        return length, width
    if (at := data.find(b"\xff\x4f\xff\x51", 0, 4096)) >= 0 and len(data) >= at + 24:
        right, bottom, left, top = struct.unpack(">IIII", data[at + 8 : at + 24])
        return max(0, bottom - top), max(0, right - left)
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    while at + 9 <= len(data) and data[at] == 0xFF:
        if 0xC0 <= data[at + 1] <= 0xCF and data[at + 1] not in (0xC4, 0xC8, 0xCC):
            length, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return length, width
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
