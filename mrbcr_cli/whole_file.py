"""Files that appear whole or not at all.

Invariant: a reader, or a run that comes after any end of this one, finds the former file or the new one under the
name, never a part; the bytes are on disk before the name is theirs. At a URL one PUT is both.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mrbcr_cli.errors import IncompleteError
from mrbcr_cli.places import Place, RemotePath

PARTIAL = ".partial"
"""Suffix of a file being written; only a killed process leaves one behind."""


@contextmanager
def replacing(path: Path, partial: Path | None = None) -> Iterator[IO[bytes]]:
    """A file to write what takes the place of `path` to; nothing changes there where the block raises. Raises OSError.

    What is written lies in `partial` until it is whole: by default beside `path`, under its name and `.partial`, which
    is for one writer at a time.
    """
    partial = path.with_name(path.name + PARTIAL) if partial is None else partial
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def replace_text(path: Path, text: str) -> None:
    """Put UTF-8 text under a name. Raises OSError."""
    with replacing(path) as file:
        file.write(text.encode())


def write_text(path: Path, text: str) -> None:
    """Put UTF-8 text under a name that a user gave; its folder is made where it is missing.

    Raises IncompleteError where the disk does not take it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, text)
    except OSError as error:
        raise IncompleteError(f"{path}: cannot be written ({error.strerror or error})") from error


def put_durably(path: Place, data: bytes | memoryview) -> None:
    """Put bytes under a name, whose folder is made where it is missing; any number of writers. Raises OSError."""
    put_durably_from(path, (data,))


def put_durably_from(path: Place, parts: Iterable[bytes | memoryview]) -> None:
    """`put_durably` for data that come in parts."""
    if isinstance(path, RemotePath):
        path.write_bytes(b"".join(parts))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")) as file:
        for part in parts:
            file.write(part)


def sync(path: Place) -> None:
    """Make a file, or the names in a folder, durable where the system can (Windows and some network disks cannot)."""
    if os.name == "nt" or isinstance(path, RemotePath):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
