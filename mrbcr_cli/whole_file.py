"""Files that appear whole or not at all.

Invariant: a reader, or a run that comes after any end of this one, finds the former file or the new one under the
name, never a part; the bytes are on disk before the name is theirs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PARTIAL = ".partial"


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write what takes the place of `path` to; nothing changes there where the block raises. Raises OSError.

    One writer at a time: what it writes to lies beside `path`, under its name and `.partial`.
    """
    partial = path.with_name(path.name + PARTIAL)
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
