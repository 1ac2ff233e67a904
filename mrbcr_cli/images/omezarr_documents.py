"""The metadata documents of a zarr group or array, read from a folder or below a URL (zarr is never imported here).

Invariant: no more than 128 MiB of a document are ever in memory, and no pipe or device is opened; None means that there
is no such document, and one that cannot be read is an InputError.
"""

from __future__ import annotations

import json
from typing import Any

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.omezarr_store import each
from mrbcr_cli.places import Place, RemotePath, place

_NODE_FILES = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
MAX_DOCUMENT_BYTES = 128 * 2**20


def is_zarr(path: str | Place) -> bool:
    """True where `path` is a folder with zarr metadata (v2 or v3) in it. Never imports zarr.

    Raises InputError at a URL that cannot be asked, and nothing on a disk.
    """
    folder = place(path)
    if isinstance(folder, RemotePath):
        return bool(read_documents(folder))
    try:
        return folder.is_dir() and any((folder / name).is_file() for name in _NODE_FILES)
    except (OSError, ValueError):
        return False


def read_documents(folder: Place) -> dict[str, bytes]:
    """Those documents that are there, by their names. Raises InputError."""
    read = each(read_document, [folder / name for name in _NODE_FILES])
    return {name: document for name, document in zip(_NODE_FILES, read, strict=True) if document is not None}


def read_document(path: Place) -> bytes | None:
    """One document; None where there is none. Raises InputError."""
    try:
        if isinstance(path, RemotePath):
            document = path.read_bytes(0, MAX_DOCUMENT_BYTES + 1)
        elif path.is_file():  # a pipe would wait, a device never end
            with path.open("rb") as stream:
                document = stream.read(MAX_DOCUMENT_BYTES + 1)
        else:
            return None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror})") from exc
    if len(document) > MAX_DOCUMENT_BYTES:
        raise InputError(f"{path}: larger than {MAX_DOCUMENT_BYTES >> 20} MiB, which no metadata are; refused")
    return document


def parse_document(path: Place, document: bytes) -> dict[str, Any]:
    """The JSON object that a document holds. Raises InputError."""
    try:
        parsed = json.loads(document)
    except (ValueError, RecursionError) as exc:  # ValueError covers bad JSON and bad UTF-8
        raise InputError(f"{path}: not valid JSON ({str(exc).splitlines()[0]}); the store is damaged") from exc
    if not isinstance(parsed, dict):
        raise InputError(f"{path}: holds no JSON object; the store is damaged")
    return parsed
