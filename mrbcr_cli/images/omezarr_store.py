"""The stores that zarr reads and writes arrays through: a folder, or the keys below a URL.

Invariant: a store at a URL is opened anew in every process, and what it raises is what a RemotePath raises: an absent
chunk cannot be mistaken for one that could not be fetched. Nothing here judges what comes back: `omezarr_guard` does.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from mrbcr_cli.places import Place, RemotePath

if TYPE_CHECKING:
    from zarr.abc.store import Store

REQUESTS_AT_ONCE = 16
"""Of a process. They wait for the network and need no core; zarr's own threads are as many as the cores."""

T = TypeVar("T")


def plain_store(folder: Place, *, read_only: bool = False) -> Store:
    """A store of what lies at `folder`."""
    if isinstance(folder, RemotePath):
        return _remote_store(folder, read_only)
    from zarr.storage import LocalStore

    return LocalStore(folder, read_only=read_only)


@functools.cache
def network_threads() -> ThreadPoolExecutor:
    """Threads that wait for remote places."""
    return ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="mrbcr-network")


def each(look: Callable[[Place], T], files: Sequence[Place]) -> Iterator[T]:
    """What `look` finds of each file, in order; of remote files many at a time."""
    if files and isinstance(files[0], RemotePath):
        return network_threads().map(look, files)
    return map(look, files)


def _remote_store(folder: RemotePath, read_only: bool) -> Store:
    from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    class RemoteStore(Store):
        """Single keys alone: this tool's arrays are never listed."""

        supports_writes = True
        supports_deletes = True
        supports_listing = False

        def __eq__(self, other: object) -> bool:
            return type(other) is type(self)

        def with_read_only(self, read_only: bool = False) -> Store:
            return RemoteStore(read_only=read_only)

        async def get(
            self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
        ) -> Buffer | None:
            start: int | None = None
            stop: int | None = None
            if isinstance(byte_range, RangeByteRequest):
                start, stop = byte_range.start, byte_range.end
            elif isinstance(byte_range, OffsetByteRequest):
                start = byte_range.offset
            elif isinstance(byte_range, SuffixByteRequest):
                start = -byte_range.suffix
            try:
                data = await _wait(functools.partial((folder / key).read_bytes, start, stop))
            except FileNotFoundError:
                return None
            return prototype.buffer.from_bytes(data)

        async def get_partial_values(
            self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
        ) -> list[Buffer | None]:
            return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

        async def exists(self, key: str) -> bool:
            return await _wait((folder / key).exists)

        async def set(self, key: str, value: Buffer) -> None:
            self._check_writable()
            await _wait(functools.partial((folder / key).write_bytes, value.to_bytes()))

        async def delete(self, key: str) -> None:
            self._check_writable()
            await _wait(functools.partial((folder / key).unlink, missing_ok=True))

        def list(self) -> AsyncIterator[str]:
            raise NotImplementedError

        def list_prefix(self, prefix: str) -> AsyncIterator[str]:
            raise NotImplementedError

        def list_dir(self, prefix: str) -> AsyncIterator[str]:
            raise NotImplementedError

    return RemoteStore(read_only=read_only)


async def _wait(call: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(network_threads(), call)
