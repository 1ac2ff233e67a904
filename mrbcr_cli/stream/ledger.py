"""The ledger: which blocks are done, as append-only JSON lines next to the output.

Invariant: a block stands in the ledger only after its pixels are on disk, and the first line names the run it belongs
to; so whatever else is found in the output, only what the ledger says is done. A torn last line is ignored.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

FORMAT = 1


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


@dataclass(frozen=True)
class LedgerContents:
    """What a ledger file says."""

    header: dict[str, Any]
    records: dict[int, BlockRecord]
    sound_bytes: int
    """Length of the file up to the end of its last whole line."""


def read_ledger(path: Path) -> LedgerContents | None:
    """Read a ledger; None when there is no file or not even a whole header line. Unreadable lines are skipped."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    sound = data.rfind(b"\n") + 1
    lines = list(_json_lines(data[:sound]))
    if not lines or lines[0].get("ledger") != FORMAT:
        return None
    records = {}
    for line in lines[1:]:
        try:
            record = BlockRecord(**{**line, "notes": tuple(line.get("notes", ()))})
        except TypeError:
            continue  # a line of another kind: the block counts as not done and is redone
        records[record.block] = record
    return LedgerContents(lines[0], records, sound)


def _json_lines(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


class LockedError(Exception):
    """Another process holds the ledger."""


def lock(file: IO[bytes]) -> None:
    """Hold a file for this process until it is closed. Raises LockedError when another holds it.

    Where the file system has no locks (some network disks) nothing is held; the ledger then relies on the user.
    """
    try:
        import fcntl
    except ImportError:
        return  # not POSIX
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockedError from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


class Ledger:
    """An open ledger that one process appends to, locked against others; a context manager."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        """Open `path` for appending; write the header when the file is new, cut a torn last line when it is not.

        Raises LockedError when another process has it open.
        """
        path.touch()
        self._held = path.open("rb")
        try:
            lock(self._held)
        except LockedError:
            self._held.close()
            raise
        contents = read_ledger(path)
        self.records: dict[int, BlockRecord] = {} if contents is None else dict(contents.records)
        self._file: IO[bytes] = path.open("r+b" if contents is not None else "wb")
        if contents is None:
            self._write({"ledger": FORMAT, **header})
        else:
            self._file.truncate(contents.sound_bytes)
            self._file.seek(contents.sound_bytes)

    def append(self, record: BlockRecord) -> None:
        """Add a finished block and put it on disk. Raises OSError when the disk is full."""
        self._write(asdict(record))
        self.records[record.block] = record

    def _write(self, value: dict[str, Any]) -> None:
        start = self._file.tell()
        try:
            self._file.write(json.dumps(value, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
        except OSError:
            self._file.seek(start)
            raise
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file and let go of the lock."""
        self._file.close()
        self._held.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
