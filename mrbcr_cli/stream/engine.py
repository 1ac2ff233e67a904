"""The engine: one function that does a block wherever it runs, and one loop that keeps a bounded number under way.

Invariant: `run_block` depends on the job and the block number alone, writes only the shards the block owns, and returns
after they are on disk; so blocks may run in any order, anywhere, and again. Memory is bounded by the window, not by the
size of the image.
"""

from __future__ import annotations

import errno
import functools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError, MrbcrError
from mrbcr_cli.images import SourceSpec, open_source
from mrbcr_cli.images.base import ImageReader
from mrbcr_cli.intensity import IntensityRange
from mrbcr_cli.stream.blocks import Block, Grid
from mrbcr_cli.stream.ledger import BlockRecord

if TYPE_CHECKING:
    from mrbcr_cli.restore import Method

NanPolicy = Literal["refuse", "zero", "keep"]

GIVE_UP_AFTER = 16
"""Failures in a row, with no block done between them, after which a run stops trying."""


class MethodSpec(Protocol):
    """A hashable, picklable recipe for a Method."""

    def build(self) -> Method:
        """Make the method on this worker."""
        ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Job:
    """Everything a worker needs to do any block of one run; small and picklable."""

    run: str
    """Fingerprint of the run; workers keep readers and stores open under it."""
    source: SourceSpec
    store: str
    grid: Grid
    methods: tuple[MethodSpec, ...]
    """One per output channel."""
    ranges: tuple[IntensityRange, ...]
    """One per output channel."""
    dtype: str
    nan_policy: NanPolicy
    torch_threads: int


class NonFiniteError(InputError):
    """A block holds NaN or infinity and the policy is to refuse."""


def run_block(job: Job, number: int) -> BlockRecord:
    """Read, deconvolve and write block `number`; return its record once the pixels are on disk.

    Raises InputError (NonFiniteError) for input that is refused, OSError for a disk that is full or gone.
    """
    import torch

    if torch.get_num_threads() != job.torch_threads:
        torch.set_num_threads(job.torch_threads)
    block = job.grid.block(number)
    started = time.perf_counter()
    raw = _reader(job.run, job.source).read(block.read)
    values, bad = _finite(raw, job, block)
    read_done = time.perf_counter()
    channel = block.core[job.grid.axes.index("C")].start if "C" in job.grid.axes else 0
    method = _method(job.methods[channel])
    restored = method.restore(_to_zyx(values, job.grid.axes), job.ranges[channel], _zyx_borders(block, job.grid.axes))
    restored = restored.reshape(values.shape)
    if bad is not None and job.nan_policy == "keep":
        restored[bad] = raw[bad]
    kept, clipped = to_dtype(restored[block.crop], np.dtype(job.dtype))
    compute_done = time.perf_counter()
    checksum = _store(job.run, job.store).write(block.core, kept)
    return BlockRecord(
        block=number,
        checksum=checksum,
        clipped=clipped,
        non_finite=0 if bad is None else int(bad[block.crop].sum()),
        seconds={
            "read": round(read_done - started, 4),
            "compute": round(compute_done - read_done, 4),
            "write": round(time.perf_counter() - compute_done, 4),
        },
        notes=method.take_notes(),
    )


def to_dtype(values: NDArray[np.float32], dtype: np.dtype[Any]) -> tuple[NDArray[Any], int]:
    """Return float32 values as `dtype`, integers rounded to nearest and clipped, and how many were clipped."""
    if dtype.kind == "f":
        if dtype.itemsize >= values.dtype.itemsize:
            return values.astype(dtype), 0
        top = float(np.finfo(dtype).max)
        return np.clip(values, -top, top).astype(dtype), int((np.abs(values) > top).sum())
    info = np.iinfo(dtype)
    # float32 cannot hold the ends of the wide integer types; float64 can, up to 64 bits, where the end is a power of 2.
    rounded = np.rint(values.astype(np.float64) if dtype.itemsize >= 4 else values)
    clipped = int(((rounded < info.min) | (rounded > info.max)).sum())
    top = float(info.max) if dtype.itemsize < 8 else float(np.nextafter(float(info.max), 0))
    return np.clip(rounded, info.min, top).astype(dtype), clipped


def _finite(raw: NDArray[Any], job: Job, block: Block) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Return the block as float32 without NaN or infinity, and where they were (None when there were none)."""
    values = raw.astype(np.float32)
    if raw.dtype.kind != "f":
        return values, None
    bad = ~np.isfinite(values)
    if not bad.any():
        return values, None
    if job.nan_policy == "refuse":
        where = ", ".join(f"{axis}={s.start}:{s.stop}" for axis, s in zip(job.grid.axes, block.read, strict=True))
        raise NonFiniteError(
            f"{job.source.label}: {int(bad.sum())} pixels are NaN or infinite near {where}; "
            "use --nan-policy zero or keep to go on"
        )
    values[bad] = 0
    return values, bad


def _to_zyx(values: NDArray[np.float32], axes: str) -> NDArray[np.float32]:
    planes = values.shape[axes.index("Z")] if "Z" in axes else 1
    return values.reshape(planes, *values.shape[-2:])


def _zyx_borders(block: Block, axes: str) -> tuple[tuple[bool, bool], ...]:
    by_axis = dict(zip(axes, block.at_border, strict=True))
    return tuple(by_axis.get(axis, (True, True)) for axis in "ZYX")


# Each worker process keeps what is costly to open: the last few readers and stores, and the methods.
_opening = threading.Lock()


@functools.lru_cache(maxsize=2)
def _open_reader(run: str, source: SourceSpec) -> ImageReader:
    return open_source(source)


@functools.lru_cache(maxsize=2)
def _open_store(run: str, root: str) -> Any:
    from pathlib import Path

    from mrbcr_cli.images.omezarr_write import open_level0

    return open_level0(Path(root))


@functools.lru_cache(maxsize=8)
def _build_method(spec: MethodSpec) -> Method:
    return spec.build()


def _reader(run: str, source: SourceSpec) -> ImageReader:
    with _opening:  # lru_cache alone would let two threads open the same file
        return _open_reader(run, source)


def _store(run: str, root: str) -> Any:
    with _opening:
        return _open_store(run, root)


def _method(spec: MethodSpec) -> Method:
    with _opening:
        return _build_method(spec)


def forget_run() -> None:
    """Close what the last runs left open in this process (readers and stores; methods stay warm)."""
    with _opening:
        _open_reader.cache_clear()
        _open_store.cache_clear()


@dataclass
class DriveResult:
    """How a drive ended."""

    done: int = 0
    failed: dict[int, str] = None  # type: ignore[assignment]
    interrupted: bool = False
    fatal: BaseException | None = None
    """Why it stopped before its end (a full disk, refused input, nothing but failures)."""

    def __post_init__(self) -> None:
        self.failed = self.failed or {}


def drive(
    client: Any,
    job: Job,
    todo: Iterator[int],
    window: int,
    on_done: Callable[[BlockRecord], None],
    stop: threading.Event,
) -> DriveResult:
    """Run the blocks of `todo` on a dask client, at most `window` under way, each failure tried once more.

    `on_done` is called in this thread for each record (it writes the ledger; its OSError ends the run). When `stop` is
    set no new block is begun, and those under way are waited for.
    """
    from distributed import as_completed

    result = DriveResult()
    tries: dict[int, int] = {}
    in_a_row = 0

    def submit(number: int) -> Any:
        future = client.submit(
            run_block, job, number, pure=False, key=f"{job.run[:12]}-{number}-{tries.get(number, 0)}"
        )
        numbers[future.key] = number
        return future

    numbers: dict[str, int] = {}
    running = as_completed([submit(n) for n in islice(todo, window)])
    for future in running:
        number = numbers.pop(future.key)
        error = future.exception() if future.status == "error" else None
        retry = False
        if future.status == "finished":
            try:
                on_done(future.result())
            except OSError as problem:
                result.fatal = result.fatal or problem
            result.done += 1
            in_a_row = 0
        else:
            error = error or RuntimeError(f"block {number} was {future.status}")
            in_a_row += 1
            if is_fatal(error):
                result.fatal = result.fatal or error
            retry = result.fatal is None and tries.get(number, 0) == 0 and not isinstance(error, MrbcrError)
            if not retry:
                result.failed[number] = describe(error)
            if in_a_row >= GIVE_UP_AFTER:
                result.fatal = result.fatal or error
        future.release()
        if result.fatal is not None or stop.is_set():
            result.interrupted = stop.is_set()
            continue
        if retry:
            tries[number] = 1
            running.add(submit(number))
        else:
            following = next(todo, None)
            if following is not None:
                running.add(submit(following))
    result.interrupted = stop.is_set()
    return result


def is_fatal(error: BaseException) -> bool:
    """Tell whether no other block can fare better: the disk is full or read-only, or the input is refused."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
    return isinstance(error, NonFiniteError) or (isinstance(error, OSError) and error.errno in full)


def describe(error: BaseException) -> str:
    """Return an exception in one line: its own words when it is one of ours, else with its type."""
    text = " ".join(str(error).split())
    return text if isinstance(error, MrbcrError) else f"{type(error).__name__}: {text}"
