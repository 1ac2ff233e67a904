"""Arrays in .npy and .npz files, as numpy.save and numpy.savez write them.

Invariant: no pickle is ever loaded, and an array is allocated only after its header was held against the bytes that
are there; whatever is wrong is an InputError that names the file.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError

_PIECE_BYTES = 2**24
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_numpy(
    path: Path, *, max_bytes: int | None = None, only: Iterable[str] | None = None
) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Return the array of a .npy file, or the arrays of a .npz by name (those in `only`, if given).

    `max_bytes` bounds what all arrays together may take. Raises InputError: missing, damaged, pickled, too large.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file, or not a regular one")
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                return _read_archive(file, path, max_bytes, None if only is None else set(only))
            file.seek(0)
            return _read_array(file, path.stat().st_size, max_bytes, str(path))
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (
        Exception
    ) as error:  # a header is a Python literal, an archive is anything: each can raise nearly all there is
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: cannot be read as a numpy file ({reason}); save it with numpy.save") from error


def _read_archive(file: IO[bytes], path: Path, max_bytes: int | None, only: set[str] | None) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if not member.filename.endswith(".npy") or (only is not None and name not in only):
                continue
            with archive.open(member) as stream:
                arrays[name] = _read_array(stream, member.file_size, max_bytes, f"{path}: {name!r}")
            if max_bytes is not None:
                max_bytes -= arrays[name].nbytes
    return arrays


def _read_array(stream: IO[bytes], size: int, max_bytes: int | None, where: str) -> NDArray[Any]:
    """Read an array of which header and data together have `size` bytes."""
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise InputError(f"{where}: is of .npy version {version}; save it again with numpy.save")
    shape, fortran, dtype = _HEADERS[version](stream)
    if dtype.hasobject:
        raise InputError(f"{where}: holds a Python pickle, which can run code when opened; save plain numbers")
    if not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 32:
        raise InputError(f"{where}: states a shape that is none; the file is damaged")
    count = math.prod(shape)
    if count * dtype.itemsize > size:
        raise InputError(f"{where}: states {count * dtype.itemsize} bytes but holds {size}; it is truncated or damaged")
    if max_bytes is not None and count * dtype.itemsize > max_bytes:
        raise InputError(f"{where}: holds {count * dtype.itemsize >> 20} MiB, more than there is use for here")
    data = bytearray()  # numpy makes arrays of it that may be written to, without a copy
    while piece := stream.read(min(_PIECE_BYTES, count * dtype.itemsize - len(data))):
        data += piece
    array: NDArray[Any] = np.frombuffer(data, dtype, count=count)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
