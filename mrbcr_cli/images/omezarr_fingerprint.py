"""The fingerprint of an array on disk or at a URL: cheap for any size, and another one when pixels change.

Invariant: no path is part of it, so a copy has the same one; up to 64 MiB it is that of the bytes wherever they lie,
beyond that of a sample of what the place says of its files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.omezarr_guard import regular_size
from mrbcr_cli.images.omezarr_store import each
from mrbcr_cli.places import Place, RemotePath

if TYPE_CHECKING:
    import zarr

_SAMPLES = 256
_SIZES = 2048
_WHOLE_BYTES = 64 * 2**20
_HEAD_BYTES = 4096


def fingerprint(documents: Iterable[bytes], array: zarr.Array[Any], folder: Place, root: Place) -> str:
    """SHA-256 of documents and of the chunk files of the array at `folder`: whole up to 64 MiB, else a sample.

    Positions are sampled evenly over the chunk grid: sizes of up to 2048 files, and the first and last 4 KiB (a shard
    keeps the index of its chunks at its end) and the time of change of up to 256 that exist. At a URL, where each look
    is a request, it is the checksums that the place keeps (ETag), or else times of change, of all 2048.
    """
    digest = hashlib.sha256()
    for part in documents:
        _update(digest, part)
    present: list[tuple[Place, int, str]] = []
    for file, size, stamp in _looked_at(list(_chunk_files(array, folder, _SIZES)), root):
        _update(digest, b"absent" if size is None else str(size).encode())
        if size is not None:
            present.append((file, size, stamp))
    sampled = math.prod(_file_grid(array)) > _SIZES or sum(size for _, size, _ in present) > _WHOLE_BYTES
    if not sampled:
        for content in each(_whole, [file for file, _, _ in present]):
            _update(digest, content)
        return digest.hexdigest()
    if isinstance(root, RemotePath):
        for _, _, stamp in present:
            _update(digest, stamp.encode())
        return digest.hexdigest()
    for i in _evenly(len(present), _SAMPLES):
        sample = Path(str(present[i][0]))
        _update(digest, _ends(sample, present[i][1]))
        # What lies between the sampled bytes shows only in the time of the last change.
        _update(digest, str(sample.stat().st_mtime_ns).encode())
    return digest.hexdigest()


def _looked_at(files: list[Place], root: Place) -> Iterator[tuple[Place, int | None, str]]:
    """Each file with its size (None: absent), and at a URL with what tells its bytes from others."""
    for file, found in zip(files, each(lambda file: _facts(file, root), files), strict=True):
        yield (file, None, "") if found is None else (file, *found)


def _facts(file: Place, root: Place) -> tuple[int, str] | None:
    try:
        if isinstance(file, RemotePath):
            stamp = file.stamp()
            return None if stamp is None else (stamp[0] or 0, stamp[1])
        if file.is_symlink() and not (isinstance(root, Path) and file.resolve().is_relative_to(root)):
            raise InputError(f"{file}: is a link that leaves the store; copy the data into the store (cp -rL)")
        size = regular_size(file)
        return None if size is None else (size, "")
    except (RuntimeError, ValueError) as exc:  # a loop of links; a pipe
        raise InputError(f"{file}: cannot be read ({exc})") from exc
    except OSError as exc:
        raise InputError(f"{file}: cannot be read ({exc.strerror})") from exc


def _chunk_files(array: zarr.Array[Any], folder: Place, most: int) -> Iterator[Place]:
    """Files of up to `most` positions spread evenly over the grid of chunks (of shards where there are any)."""
    grid = _file_grid(array)
    for i in _evenly(int(math.prod(grid)), most):
        position: list[int] = []
        for count in reversed(grid):  # big integers: np.unravel_index overflows on the largest grids
            i, at = divmod(i, count)
            position.append(at)
        yield folder / array.metadata.encode_chunk_key(tuple(reversed(position)))


def _file_grid(array: zarr.Array[Any]) -> tuple[int, ...]:
    """How many files (chunks, or shards where there are any) the array has along each axis."""
    unit = array.shards or array.chunks
    return tuple(-(-size // step) for size, step in zip(array.shape, unit, strict=True))


def _whole(file: Place) -> bytes:
    try:
        # That of a server may be larger than it said.
        return file.read_bytes(0, _WHOLE_BYTES) if isinstance(file, RemotePath) else file.read_bytes()
    except OSError as exc:
        raise InputError(f"{file}: cannot be read ({exc.strerror})") from exc


def _evenly(count: int, most: int) -> Iterator[int]:
    """Up to `most` different indices below `count`, first and last among them."""
    if count <= most:
        return iter(range(count))
    return (i * (count - 1) // (most - 1) for i in range(most))


def _ends(file: Path, size: int) -> bytes:
    try:
        with file.open("rb") as handle:
            head = handle.read(_HEAD_BYTES)
            handle.seek(max(0, size - _HEAD_BYTES))
            return head + handle.read(_HEAD_BYTES)
    except OSError as exc:
        raise InputError(f"{file}: cannot be read ({exc.strerror})") from exc


def _update(digest: hashlib._Hash, part: bytes) -> None:
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)
