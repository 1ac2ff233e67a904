"""The store that arrays are read through: what comes from a foreign store is held against what its metadata say.

Invariant: no key leads out of the store, by dots or by links; no chunk is read or decoded that takes more memory than
the metadata of its array allow; a file that is cut short is an error, not an absent chunk.
"""

from __future__ import annotations

import asyncio
import math
import stat
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.omezarr_store import plain_store
from mrbcr_cli.places import Place

if TYPE_CHECKING:
    import zarr
    from zarr.abc.store import ByteRequest, Store

MAX_CHUNK_BYTES = 2**30
"""A chunk is decoded whole, in memory."""
_SLACK_BYTES = 2**20
_PIECE_BYTES = 2**20
_FOLDERS_KEPT = 10_000
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
COMPRESSORS = {"blosc", "zstd", "lz4", "gzip", "zlib", "bz2", "lzma", "zfpy", "pcodec"}


def guarded_store(folder: Place, root: Place) -> Store:
    """A read-only store of the array at `folder`, which lies in the store at `root`. See `set_limits`."""
    from zarr.abc.store import RangeByteRequest, Store, SuffixByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype
    from zarr.storage import WrapperStore

    links = Links(folder, root.resolve()) if isinstance(folder, Path) and isinstance(root, Path) else None

    class GuardedStore(WrapperStore[Store]):
        file_bytes = MAX_CHUNK_BYTES
        """Most that a file may hold that is read whole."""
        chunk_bytes: int | None = None
        """Most that a chunk may decode to; None until the array is open."""
        codec = ""

        async def get(
            self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
        ) -> Buffer | None:
            if links is not None:  # many may wait for a slow disk at once
                await asyncio.to_thread(self._check_file, links, key, byte_range is None)
            elif ".." in key.split("/"):
                raise ValueError(f"file {key} leads out of the store; refused")
            found = await self._fetch(key, prototype, byte_range)
            if found is None:
                return None
            wanted = byte_range.end - byte_range.start if isinstance(byte_range, RangeByteRequest) else 1
            if len(found) < wanted:
                raise ValueError(f"file {key} is cut short")
            if byte_range is not None and len(found) > _most(byte_range):
                raise ValueError(f"file {key}: more came than was asked for; does the server take ranges?")
            # The end of a file is the index of a shard: numbers, all ones where its first chunk is absent.
            if self.chunk_bytes is not None and self.codec and not isinstance(byte_range, SuffixByteRequest):
                beyond = await asyncio.to_thread(expands_beyond, self.codec, found, self.chunk_bytes)
                if beyond:
                    raise ValueError(
                        f"a chunk in file {key} would decode to far more than its pixels (a bomb); refused"
                    )
            return found

        async def _fetch(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None) -> Buffer | None:
            if byte_range is not None and links is None and _most(byte_range) > self.file_bytes:
                raise ValueError(f"file {key} is far larger than the pixels it should hold")
            if links is not None or byte_range is not None:
                return await self._store.get(key, prototype, byte_range)
            # At a URL asking for the size first would double the requests: no more than one byte too many is read.
            found = await self._store.get(key, prototype, RangeByteRequest(0, self.file_bytes + 1))
            if found is not None and len(found) > self.file_bytes:
                raise ValueError(f"file {key} is far larger than the pixels it should hold")
            return found

        def _check_file(self, links: Links, key: str, whole: bool) -> None:
            if links.lead_out(key):
                raise ValueError(f"file {key} leads out of the store; copy the data into it (cp -rL)")
            if whole and (size := regular_size(links.folder / key)) is not None and size > self.file_bytes:
                raise ValueError(f"file {key} is far larger than the pixels it should hold")

    return GuardedStore(plain_store(folder, read_only=True))


def _most(part: ByteRequest) -> int:
    """The most bytes that a request of a part asks for."""
    end, start, suffix = (getattr(part, name, None) for name in ("end", "start", "suffix"))
    return end - start if end is not None and start is not None else MAX_CHUNK_BYTES if suffix is None else suffix


class Links:
    """Tells whether a key below `folder` leads out of `inside`; folders that are no links are looked at once."""

    def __init__(self, folder: Path, inside: Path) -> None:
        self.folder, self._inside = folder, inside
        self._plain: set[str] = set()

    def lead_out(self, key: str) -> bool:
        """Whether the key has a step up, or a link on its way that ends elsewhere. Raises RuntimeError for a loop."""
        parts = key.split("/")
        if ".." in parts:
            return True
        for count in range(1, len(parts) + 1):
            part = "/".join(parts[:count])
            if part in self._plain:
                continue
            path = self.folder / part
            if path.is_symlink() and not path.resolve().is_relative_to(self._inside):
                return True
            if count < len(parts):
                if len(self._plain) >= _FOLDERS_KEPT:
                    self._plain.clear()
                self._plain.add(part)
        return False


def regular_size(path: Path) -> int | None:
    """Bytes of a file; None where there is none. Raises ValueError for a pipe or device, which would never end."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{path.name} is no regular file")
    return status.st_size


def set_limits(store: Any, array: zarr.Array[Any], where: Place) -> None:
    """Bound what the store of an opened array reads and decodes by the array's chunks.

    Raises InputError for chunks that would not fit memory and for data compressed twice, which cannot be bounded.
    """
    item = array.dtype.itemsize
    chunk = math.prod(array.chunks) * item
    if chunk > MAX_CHUNK_BYTES:
        raise InputError(
            f"{where}: its chunks of {chunk >> 20} MiB must be decoded whole, more than memory should have to hold; "
            "if they are right, write them again in smaller chunks"
        )
    codecs = [name for name in _codec_names(array) if name in COMPRESSORS]
    if len(codecs) > 1:
        raise InputError(
            f"{where}: compressed more than once ({', '.join(codecs)}); write it again with one compressor"
        )
    unit = math.prod(array.shards or array.chunks) * item
    # The index of a shard: 16 bytes a chunk.
    store.file_bytes = (
        2 * unit + 16 * math.prod(array.shards or array.chunks) // max(1, math.prod(array.chunks)) + _SLACK_BYTES
    )
    store.chunk_bytes = 4 * chunk + _SLACK_BYTES
    store.codec = codecs[0] if codecs else ""


def _codec_names(array: zarr.Array[Any]) -> list[str]:
    if array.metadata.zarr_format == 2:
        used = [*(array.metadata.filters or ()), *([array.metadata.compressor] if array.metadata.compressor else [])]
        return [str(codec.codec_id) for codec in used]
    return _names_in(array.metadata.to_dict().get("codecs", ()))


def _names_in(codecs: Any) -> list[str]:
    found: list[str] = []
    for codec in codecs:
        name = str(codec.get("name", "")).removeprefix("numcodecs.")
        if name == "sharding_indexed":
            found += _names_in(codec["configuration"]["codecs"])
        else:
            found.append(name)
    return found


def expands_beyond(codec: str, chunk: Any, limit: int) -> bool:
    """Whether a compressed chunk would decode to more than `limit` bytes, by its header or by counting.

    The formats that state their size are believed, since their decoders allocate just that and stop there.
    """
    data = memoryview(chunk.as_numpy_array() if hasattr(chunk, "as_numpy_array") else chunk).cast("B")
    if codec == "zstd":
        return _zstd_bytes(data, limit) > limit
    if codec == "blosc":  # nbytes of the header: github.com/Blosc/c-blosc, README_HEADER
        return len(data) >= 16 and int.from_bytes(data[4:8], "little") > limit
    if codec == "lz4":  # numcodecs puts the size first
        return len(data) >= 4 and int.from_bytes(data[:4], "little") > limit
    if codec in ("gzip", "zlib", "bz2", "lzma"):
        return _counts_beyond(codec, data, limit)
    return False


def _zstd_bytes(data: memoryview, limit: int) -> int:
    """Size that a Zstandard frame states (RFC 8878, 3.1.1); where it states none, that of decoding up to the limit."""
    if len(data) < 6 or data[:4] != _ZSTD_MAGIC:
        return 0  # not for us to say: the decoder refuses it
    flag, single, dictionary = data[4] >> 6, data[4] >> 5 & 1, data[4] & 3
    at = 5 + (0 if single else 1) + (0, 1, 2, 4)[dictionary]
    length = (single, 2, 4, 8)[flag]
    if length:
        return int.from_bytes(data[at : at + length], "little") + (256 if length == 2 else 0)
    import imagecodecs

    try:
        imagecodecs.zstd_decode(bytes(data), out=limit)
    except RuntimeError as error:
        return limit + 1 if "too small" in str(error) else 0
    return 0


def _counts_beyond(codec: str, data: memoryview, limit: int) -> bool:
    """Decode piece by piece, keeping nothing. Damage is left to the decoder proper to report."""
    import bz2
    import lzma

    total = 0
    rest = bytes(data)
    try:
        while rest:
            decoder: Any = {"bz2": bz2.BZ2Decompressor, "lzma": lzma.LZMADecompressor}.get(codec, _Inflate)()
            piece = rest
            while not decoder.eof:
                total += len(decoder.decompress(piece, _PIECE_BYTES))
                if total > limit:
                    return True
                piece = decoder.unconsumed_tail if isinstance(decoder, _Inflate) else b""
                if not piece and getattr(decoder, "needs_input", True) and not decoder.eof:
                    return False
            rest = decoder.unused_data
    except (zlib.error, OSError, lzma.LZMAError, EOFError):
        return False
    return False


class _Inflate:
    """zlib's decoder for gzip or zlib data, with the interface of those of bz2 and lzma."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(wbits=47)

    def decompress(self, data: bytes, most: int) -> bytes:
        return self._decoder.decompress(data, most)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    @property
    def unconsumed_tail(self) -> bytes:
        return self._decoder.unconsumed_tail
