"""The ledger: which blocks are done, as append-only JSON lines next to the output.

Invariant: a block stands in the ledger only after its pixels are on disk, and the first line names the run it belongs
to; so whatever else is found in the output, only what the ledger says is done. A torn last line is ignored; a block
that was found damaged is taken back by a line of its own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from mrbcr_cli.places import Place

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


def read_ledger(path: Place) -> LedgerContents | None:
    """Read a ledger; None when there is no file or not even a whole header line. Unreadable lines are skipped."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    sound = data.rfind(b"\n") + 1
    lines = list(_json_lines(data[:sound]))
    if not lines or lines[0].get("ledger") != FORMAT:
        return None
    records: dict[int, BlockRecord] = {}
    for line in lines[1:]:
        if isinstance(taken_back := line.get("redo"), int):
            records.pop(taken_back, None)
            continue
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


def lock(file: IO[bytes], *, shared: bool = False) -> None:
    """Hold a file for this process until it is closed, alone or with others that share it. Raises LockedError when
    another process is in the way.

    Where the file system has no locks (some network disks) nothing is held; the ledger then relies on the user.
    """
    try:
        import fcntl
    except ImportError:
        return  # not POSIX
    try:
        fcntl.flock(file.fileno(), (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockedError from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def hold(path: Path, *, shared: bool = False, create: bool = False) -> IO[bytes]:
    """Open and lock the file that stands at `path` once the lock is there; close it to let go.

    Raises LockedError when another process is in the way, FileNotFoundError where there is no file (and no `create`).
    """
    while True:
        # For writing, because NFS grants a lock of its own to no other kind.
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
        file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            lock(file, shared=shared)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return file
        except FileNotFoundError:
            pass  # removed while we waited for it
        except BaseException:
            file.close()
            raise
        file.close()


class Ledger:
    """An open ledger that one process appends to, locked against others; a context manager."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        """Open `path` for appending; write the header when the file is new, cut a torn last line when it is not.

        Raises LockedError when another process has it open.
        """
        # Unbuffered: what a full disk did not take must not be written at some later time.
        self._file = hold(path, create=True)
        try:
            contents = read_ledger(path)
            self.header = {"ledger": FORMAT, **header} if contents is None else contents.header
            """The first line of the file: as it was found, or as it was given when the file is new."""
            self.records: dict[int, BlockRecord] = {} if contents is None else dict(contents.records)
            self._end = 0 if contents is None else contents.sound_bytes
            self._file.truncate(self._end)
            if contents is None:
                self._write(self.header)
        except BaseException:
            self._file.close()
            raise

    def append(self, record: BlockRecord) -> None:
        """Add a finished block and put it on disk. Raises OSError when the disk is full."""
        self._write(asdict(record))
        self.records[record.block] = record

    def take_back(self, block: int) -> None:
        """Say that a block is not done after all. Raises OSError when the disk is full."""
        self._write({"redo": block})
        self.records.pop(block, None)

    def _write(self, value: dict[str, Any]) -> None:
        """Add a line, or (OSError) leave the file as it was."""
        left = memoryview(json.dumps(value, separators=(",", ":")).encode() + b"\n")
        try:
            self._file.seek(self._end)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError:
            with contextlib.suppress(OSError):  # a torn line is ignored anyway
                self._file.truncate(self._end)
            raise
        self._end = self._file.tell()

    def close(self) -> None:
        """Close the file and let go of the lock."""
        self._file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
