"""Mutations of a TIFF at the level of its fields: entries of directories, their values, descriptions, pointers.

Invariant: works on bytes alone, with a parser of its own (TIFF 6.0 section 2, BigTIFF), never with tifffile.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

from tests.fuzz import mutate

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
DESCRIPTION = 270
# Tags that decide the pixels, tags of vendors whose formats tifffile parses, and tags of metadata.
CODES = (
    *(254, 255, 256, 257, 258, 259, 262, 266, 270, 273, 277, 278, 279, 282, 283, 284, 296, 305, 306, 317, 320, 322),
    *(323, 324, 325, 330, 338, 339, 340, 347, 513, 514, 529, 530, 32997, 32998, 33432, 33550, 33628, 33629, 33723),
    *(33918, 33922, 34118, 34361, 34362, 34377, 34412, 34665, 34682, 34735, 37706, 42112, 42113, 50838, 50839),
    *(51123, 51159, 65420, 65426),
)  # fmt: skip
VALUES = (
    *(0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 64, 128, 255, 256, 1000, 4096, 32767, 32773, 32946, 33003, 34712),
    *(34887, 34925, 34933, 50000, 50002, 52546, 65535, 65536, 10**6, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40),
    *(2**63 - 1, 2**64 - 1),
)  # fmt: skip
DESCRIPTIONS = (
    b"ImageJ=1.53t\nimages=999999999\nslices=999999999\nhyperstack=true\n",
    b"ImageJ=1.53t\nimages=3\nchannels=0\nslices=-3\nframes=1e9\n",
    b"ImageJ=\nimages=\n",
    b'{"shape": [1000000, 1000000]}',
    b'{"shape": [3, 32, 48], "axes": "QQQ"}',
    b'{"shape": "x"}',
    b"shape=(3,32,48)",
    b"<OME></OME>",
    b"<OME" + b"<a>" * 5000 + b"</OME>",
    b'<?xml version="1.0"?><OME><Image><Pixels SizeX="999999999" SizeY="999999999" SizeZ="9999999" SizeC="1" '
    b'SizeT="1" Type="uint16" DimensionOrder="XYZCT"><TiffData/></Pixels></Image></OME>',
    b'<?xml version="1.0"?><OME><Image><Pixels SizeX="48" SizeY="32" SizeZ="3" SizeC="1" SizeT="1" Type="uint16" '
    b'DimensionOrder="XYZCT"><TiffData IFD="-1" PlaneCount="99999999"/></Pixels></Image></OME>',
    b'<OME><BinaryOnly MetadataFile="../../../../etc/passwd" UUID="x"/></OME>',
    b"Aperio Image Library\n|AppMag = 20|MPP = x",
    b"SCANIMAGE.SI.VERSION_MAJOR = 5\nSI.x = __import__('os').system('touch owned')",
    b"<MetaData><PlaneInfo></PlaneInfo></MetaData>",
    b"ImageDescription {'Summary': {}}",
    b"state.config=1\rstate.x=[1",
)


@dataclass(frozen=True)
class Entry:
    """One entry of a directory: where its bytes are and what they say."""

    at: int
    code: int
    kind: int
    count: int
    value_at: int
    """Where the value is: in the entry where it fits, else where the entry points."""


@dataclass(frozen=True)
class Structure:
    """The entries and the places of the pointers to the next directory of a file that is still sound."""

    order: str
    big: bool
    entries: tuple[Entry, ...]
    next_at: tuple[int, ...]
    directories: tuple[int, ...]

    @property
    def wide(self) -> str:
        """struct code of a count or offset."""
        return self.order + ("Q" if self.big else "I")


def parse(data: bytes) -> Structure:
    """The structure of a sound TIFF."""
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    wide, width = (order + "Q", 8) if big else (order + "I", 4)
    offset = struct.unpack_from(wide, data, width)[0]
    entries: list[Entry] = []
    pointers, directories = [width], []
    while offset:
        directories.append(offset)
        count = struct.unpack_from(order + ("Q" if big else "H"), data, offset)[0]
        at = offset + (8 if big else 2)
        for _ in range(count):
            code, kind = struct.unpack_from(order + "HH", data, at)
            number = struct.unpack_from(wide, data, at + 4)[0]
            value_at = at + 4 + width
            if number * SIZES.get(kind, 1) > width:
                value_at = struct.unpack_from(wide, data, value_at)[0]
            entries.append(Entry(at, code, kind, number, value_at))
            at += 4 + 2 * width
        pointers.append(at)
        offset = struct.unpack_from(wide, data, at)[0]
    return Structure(order, big, tuple(entries), tuple(pointers), tuple(directories))


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A TIFF with one to three fields, descriptions, pointers or plain bytes changed."""
    found = parse(data)
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        how = rng.random()
        if how < 0.5:
            _field(changed, found, rng)
        elif how < 0.7:
            _describe(changed, found, rng)
        elif how < 0.78:
            _pointer(changed, found, rng)
        elif how < 0.9:
            near = rng.choice((0, *found.directories))
            changed = bytearray(mutate.data(bytes(changed), rng, min(near, len(changed) - 1), near + 300))
        else:
            changed = bytearray(mutate.data(bytes(changed), rng))
        if len(changed) < len(data):
            break  # the places no longer hold
    return bytes(changed)


def _put(changed: bytearray, code: str, at: int, number: int) -> None:
    size = struct.calcsize(code)
    if 0 <= at <= len(changed) - size:
        changed[at : at + size] = struct.pack(code, number & (256**size - 1))


def _field(changed: bytearray, found: Structure, rng: random.Random) -> None:
    """Change code, type, count, offset or value of an entry."""
    entry = rng.choice(found.entries)
    number = rng.choice((*VALUES, len(changed), len(changed) - 1, entry.at, rng.choice(found.directories)))
    what = rng.choice(("value", "value", "value", "value", "code", "type", "count", "offset"))
    if what == "code":
        _put(changed, found.order + "H", entry.at, rng.choice(CODES))
    elif what == "type":
        _put(changed, found.order + "H", entry.at + 2, rng.choice((0, *SIZES, 14, 99, 65535)))
    elif what == "count":
        _put(changed, found.wide, entry.at + 4, number)
    elif what == "offset":
        _put(changed, found.wide, entry.at + (12 if found.big else 8), number)
    else:
        size = SIZES.get(entry.kind, 1)
        code = {1: "B", 2: "H", 4: "I", 8: "Q"}[size]
        _put(changed, found.order + code, entry.value_at + size * rng.randrange(max(1, min(entry.count, 64))), number)


def _describe(changed: bytearray, found: Structure, rng: random.Random) -> None:
    """Put a mutated or hostile description at the end of the file."""
    entries = [e for e in found.entries if e.code in (DESCRIPTION, 305)] or [rng.choice(found.entries)]
    entry = rng.choice(entries[:2])
    if rng.random() < 0.6 and entry.kind == 2:
        words = bytes(changed[entry.value_at : entry.value_at + entry.count]).decode("latin-1")
        described = mutate.text(words, rng).encode("utf-8", "replace")
    else:
        described = rng.choice(DESCRIPTIONS)
    described += b"\0" * (16 - len(described) % 8)
    at = len(changed)
    changed += described
    _put(changed, found.order + "H", entry.at, DESCRIPTION)
    _put(changed, found.order + "H", entry.at + 2, 2)
    _put(changed, found.wide, entry.at + 4, len(described))
    _put(changed, found.wide, entry.at + (12 if found.big else 8), at)


def _pointer(changed: bytearray, found: Structure, rng: random.Random) -> None:
    """Point the chain of directories (or the SubIFDs) somewhere else: back, to itself, beyond the end."""
    subs = [e.value_at for e in found.entries if e.code == 330]
    at = rng.choice((*found.next_at, *subs))
    _put(changed, found.wide, at, rng.choice((*found.directories, 0, 1, 8, at, len(changed), 2**32 - 1, 2**63)))
