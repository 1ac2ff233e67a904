"""The records of finished blocks, packed: what a process remembers of a million blocks is about 150 MB.

Invariant: what comes out equals what went in. Order of iteration is that of first insertion, as in a dict.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, MutableMapping
from dataclasses import asdict, dataclass, field
from typing import Any

_STEPS = ("read", "compute", "write")
_PACKED = struct.Struct("<16sqq3d")
"""Checksum, clipped, non-finite, seconds of the steps: what nearly every record of a run consists of."""


@dataclass(frozen=True)
class BlockRecord:
    """What is remembered of a finished block."""

    block: int
    checksum: str
    clipped: int = 0
    """Pixels that left the range of an integer dtype and were clipped."""
    non_finite: int = 0
    """Input pixels that were NaN or infinite."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of reading, computing and writing."""
    notes: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BlockRecord:
        """Rebuild a record from JSON (lists become tuples). Raises TypeError for what is none."""
        return cls(**{**values, "notes": tuple(values.get("notes", ()))})


class Spent:
    """Seconds that the blocks of this process's run took, by step."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(_STEPS, 0.0)

    def add(self, record: BlockRecord) -> None:
        """Count a block that was done now."""
        for step in _STEPS:
            self.seconds[step] += record.seconds.get(step, 0.0)

    def shares(self, available_s: float) -> dict[str, float]:
        """Each step's share of the time that all workers had together; what is left they waited. All 0 without blocks.

        Blocks that are done twice, or workers that begin late, can make it more or less than was available.
        """
        busy = sum(self.seconds.values())
        whole = max(available_s, busy)
        if busy == 0.0:
            return {**self.seconds, "wait": 0.0}
        found = {step: round(taken / whole, 4) for step, taken in self.seconds.items()}
        return {**found, "wait": round(1 - busy / whole, 4)}


class Records(MutableMapping[int, BlockRecord]):
    """A dict of records by block that keeps each as bytes."""

    def __init__(self) -> None:
        self._packed: dict[int, bytes] = {}

    def __getitem__(self, block: int) -> BlockRecord:
        return _unpack(block, self._packed[block])

    def __setitem__(self, block: int, record: BlockRecord) -> None:
        self._packed[block] = _pack(record)

    def __delitem__(self, block: int) -> None:
        del self._packed[block]

    def __contains__(self, block: object) -> bool:
        return block in self._packed

    def __iter__(self) -> Iterator[int]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)


def _pack(record: BlockRecord) -> bytes:
    timed = isinstance(record.seconds, dict) and tuple(record.seconds) == _STEPS
    if timed and not record.notes and isinstance(record.checksum, str) and len(record.checksum) == 32:
        try:
            digest, seconds = bytes.fromhex(record.checksum), tuple(record.seconds.values())
            packed = _PACKED.pack(digest, record.clipped, record.non_finite, *seconds)
            if digest.hex() == record.checksum and _PACKED.unpack(packed)[3:] == seconds:
                return packed
        except (ValueError, struct.error):
            pass  # an odd record, kept as it is
    # The length tells the two kinds apart.
    text = json.dumps(asdict(record), separators=(",", ":")).encode()
    return text if len(text) != _PACKED.size else text + b" "


def _unpack(block: int, data: bytes) -> BlockRecord:
    if len(data) != _PACKED.size:
        return BlockRecord.from_dict(json.loads(data))
    digest, clipped, non_finite, *seconds = _PACKED.unpack(data)
    return BlockRecord(block, digest.hex(), clipped, non_finite, dict(zip(_STEPS, seconds, strict=True)))
