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
from collections.abc import MutableMapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from mrbcr_cli.places import Place
from mrbcr_cli.stream.records import BlockRecord, Records

FORMAT = 1


@dataclass(frozen=True)
class LedgerContents:
    """What a ledger file says."""

    header: dict[str, Any]
    records: MutableMapping[int, BlockRecord]
    sound_bytes: int
    """Length of the file up to the end of its last whole line."""


def read_ledger(path: Place) -> LedgerContents | None:
    """Read a ledger; None when there is no file or not even a whole header line. Unreadable lines are skipped."""
    header: dict[str, Any] | None = None
    records, sound = Records(), 0
    try:
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break  # torn
                sound += len(line)
                value = _json_object(line)
                if value is None:
                    continue
                if header is None:
                    if value.get("ledger") != FORMAT:
                        return None
                    header = value
                else:
                    _take(records, value)
    except FileNotFoundError:
        return None
    return None if header is None else LedgerContents(header, records, sound)


def _take(records: MutableMapping[int, BlockRecord], line: dict[str, Any]) -> None:
    """Add what a line after the header says."""
    if isinstance(taken_back := line.get("redo"), int):
        records.pop(taken_back, None)
        return
    with contextlib.suppress(TypeError):  # a line of another kind: the block counts as not done and is redone
        record = BlockRecord.from_dict(line)
        records[record.block] = record


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


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
            self.records: MutableMapping[int, BlockRecord] = Records() if contents is None else contents.records
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
