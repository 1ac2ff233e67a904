"""The engine: one function that does a block, wherever it runs; `drive` sees to it that all are done.

Invariant: `run_block` depends on the job and the block number alone, writes only the shards the block owns, each by one
rename, and returns after they are on disk; so blocks may run in any order, anywhere, again, and twice at once.
"""

from __future__ import annotations

import errno
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError, MrbcrError
from mrbcr_cli.images import SourceSpec, open_source
from mrbcr_cli.images.base import ImageReader
from mrbcr_cli.intensity import IntensityRange
from mrbcr_cli.places import RemoteError, place
from mrbcr_cli.stream.blocks import Block, Grid
from mrbcr_cli.stream.records import BlockRecord

if TYPE_CHECKING:
    from mrbcr_cli.restore import Method

NanPolicy = Literal["refuse", "zero", "keep"]

_METHODS_KEPT = 8
_LARGEST = float(np.finfo(np.float32).max) / 16
"""float64 input beyond this is clipped to it, so that the method's arithmetic stays finite."""


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
    guard: str | None = None
    """A file that is there for as long as somebody wants these blocks; None where nothing outlives the run.

    A worker on another machine may finish a block after its run was killed and another one begun in the same place.
    """
    folder: str | None = None
    """The working folder, always on a disk; None where it holds the store."""

    @property
    def working_folder(self) -> Path:
        """Where processes that do blocks of the run leave signs for each other."""
        return Path(self.store).parent if self.folder is None else Path(self.folder)


class AbandonedError(RuntimeError):
    """The run that wanted the block is over; it was not written."""


class RefusedError(InputError):
    """The run as a whole cannot be done as it was asked for; where no block was done yet, nothing is kept."""


class NonFiniteError(RefusedError):
    """A block holds NaN or infinity and the policy is to refuse."""


def run_block(job: Job, number: int) -> BlockRecord:
    """Read, deconvolve and write block `number`; return its record once the pixels are on disk.

    Raises InputError (NonFiniteError) for input that is refused, OSError for a disk that is full or gone,
    AbandonedError where nobody wants the block any more.
    """
    import torch

    if torch.get_num_threads() != job.torch_threads:
        torch.set_num_threads(job.torch_threads)
    block = job.grid.block(number)
    started = time.perf_counter()
    raw = _workplace.reader(job).read(block.read)
    read_done = time.perf_counter()
    channel = block.core[job.grid.axes.index("C")].start if "C" in job.grid.axes else 0
    method = method_for(job.methods[channel])
    restored = restore_block(
        raw,
        block,
        axes=job.grid.axes,
        method=method,
        intensity=job.ranges[channel],
        dtype=np.dtype(job.dtype),
        nan_policy=job.nan_policy,
        label=job.source.label,
    )
    compute_done = time.perf_counter()
    if job.guard is not None and not Path(job.guard).exists():
        raise AbandonedError(f"block {number}: the run that wanted it is over")
    checksum = _workplace.store(job).write(block.core, restored.pixels)
    return BlockRecord(
        block=number,
        checksum=checksum,
        clipped=restored.clipped,
        non_finite=restored.non_finite,
        seconds={
            "read": round(read_done - started, 4),
            "compute": round(compute_done - read_done, 4),
            "write": round(time.perf_counter() - compute_done, 4),
        },
        notes=method.take_notes(),
    )


@dataclass(frozen=True)
class RestoredBlock:
    """The core of a block, deconvolved."""

    pixels: NDArray[Any]
    """In the block's axes and the dtype of the output."""
    clipped: int
    non_finite: int
    """NaN or infinite pixels of the input."""


def restore_block(
    raw: NDArray[Any],
    block: Block,
    *,
    axes: str,
    method: Method,
    intensity: IntensityRange,
    dtype: np.dtype[Any],
    nan_policy: NanPolicy,
    label: str,
) -> RestoredBlock:
    """Deconvolve `raw`, the pixels of `block.read` in `axes`, and return those of `block.core` as `dtype`.

    Raises NonFiniteError, naming the image by `label`, where the policy refuses what it holds.
    """
    bad = _not_finite(raw, block, axes, nan_policy, label)
    values, shift = _prepare(raw, bad, intensity.low if method.affine else 0.0)
    restored = method.restore(_to_zyx(values, axes), intensity.shifted(-shift), _zyx_borders(block, axes))
    pixels, clipped = to_dtype(restored.reshape(values.shape)[block.crop], dtype, shift)
    if bad is None:
        return RestoredBlock(pixels, clipped, 0)
    bad = bad[block.crop]
    if nan_policy == "keep":
        pixels[bad] = raw[block.crop][bad]
    return RestoredBlock(pixels, clipped, int(bad.sum()))


def to_dtype(values: NDArray[np.float32], dtype: np.dtype[Any], shift: float = 0.0) -> tuple[NDArray[Any], int]:
    """Return float32 values + shift as `dtype`, integers rounded to nearest, and how many had to be clipped.

    Values that are not finite (an overflow in half precision) count as clipped and become the nearest end, NaN the low
    one.
    """
    # float32 cannot hold large offsets, nor the ends of the wide integer types; float64 can, up to 64 bits.
    wide = shift != 0.0 or dtype.itemsize >= 4
    exact = values.astype(np.float64) + shift if wide else values
    if dtype.kind == "f":
        info: Any = np.finfo(dtype)
        low, top = float(info.min), float(info.max)
    else:
        info = np.iinfo(dtype)
        exact = np.rint(exact)
        low, top = float(info.min), float(info.max)
        if dtype.itemsize == 8:
            top = float(np.nextafter(top, 0))  # the end itself rounds up to a power of 2 that does not fit
    outside = ~((exact >= low) & (exact <= top))
    clipped = int(outside.sum())
    if clipped:
        exact = np.clip(np.nan_to_num(exact, nan=low, posinf=top, neginf=low), low, top)
    return exact.astype(dtype), clipped


def _not_finite(
    raw: NDArray[Any], block: Block, axes: str, nan_policy: NanPolicy, label: str
) -> NDArray[np.bool_] | None:
    """Where the block is not finite; None where it is everywhere. Raises NonFiniteError as the policy says."""
    if raw.dtype.kind != "f":
        return None
    bad: NDArray[np.bool_] = ~np.isfinite(raw)
    if not bad.any():
        return None
    if nan_policy == "refuse":
        where = ", ".join(f"{axis}={s.start}:{s.stop}" for axis, s in zip(axes, block.read, strict=True))
        raise NonFiniteError(
            f"{label}: {int(bad.sum())} pixels are NaN or infinite near {where}; use --nan-policy zero or keep to go on"
        )
    return bad


def _prepare(raw: NDArray[Any], bad: NDArray[np.bool_] | None, low: float) -> tuple[NDArray[np.float32], float]:
    """Return the block as finite float32, and what was subtracted from it.

    Types that hold more digits than float32 have the low end of the range subtracted first, in float64.
    """
    shift = low if raw.dtype.itemsize >= 4 and raw.dtype != np.float32 else 0.0
    exact = raw if bad is None else np.where(bad, 0, raw)
    if shift != 0.0:
        exact = exact.astype(np.float64) - shift
    if raw.dtype == np.float64:
        exact = np.clip(exact, -_LARGEST, _LARGEST)
    return exact.astype(np.float32), shift


def _to_zyx(values: NDArray[np.float32], axes: str) -> NDArray[np.float32]:
    planes = values.shape[axes.index("Z")] if "Z" in axes else 1
    return values.reshape(planes, *values.shape[-2:])


def _zyx_borders(block: Block, axes: str) -> tuple[tuple[bool, bool], ...]:
    by_axis = dict(zip(axes, block.at_border, strict=True))
    return tuple(by_axis.get(axis, (True, True)) for axis in "ZYX")


class _Workplace:
    """What a worker process keeps open: the reader and store of the runs it works for, and the methods, which stay."""

    def __init__(self) -> None:
        self._opening = threading.Lock()
        self._readers: dict[tuple[str, SourceSpec], ImageReader] = {}
        self._stores: dict[tuple[str, str], Any] = {}
        self._methods: dict[MethodSpec, Method] = {}

    def reader(self, job: Job) -> ImageReader:
        key = (job.run, job.source)
        with self._opening:
            if key not in self._readers:
                self._readers[key] = open_source(job.source)
            return self._readers[key]

    def store(self, job: Job) -> Any:
        from mrbcr_cli.images.omezarr_write import open_level0

        key = (job.run, job.store)
        with self._opening:
            if key not in self._stores:
                self._stores[key] = open_level0(place(job.store))
            return self._stores[key]

    def method(self, spec: MethodSpec) -> Method:
        with self._opening:
            if spec not in self._methods:
                while len(self._methods) >= _METHODS_KEPT:
                    del self._methods[next(iter(self._methods))]
                self._methods[spec] = spec.build()
            return self._methods[spec]

    def close(self, run: str | None) -> None:
        with self._opening:
            gone = {key: reader for key, reader in self._readers.items() if run in (None, key[0])}
            self._readers = {key: reader for key, reader in self._readers.items() if key not in gone}
            self._stores = {key: store for key, store in self._stores.items() if run not in (None, key[0])}
        for reader in gone.values():
            reader.close()


_workplace = _Workplace()


def method_for(spec: MethodSpec) -> Method:
    """The method of a recipe, built once in each process."""
    return _workplace.method(spec)


def forget_run(run: str | None = None) -> None:
    """Close what a run (None: every run) left open in this process, when none of its blocks is under way.

    Methods stay warm.
    """
    _workplace.close(run)


def try_out(job: Job) -> None:
    """Do all of a block but its pixels: open the input and read one of it, open the output, build the methods.

    Raises what `run_block` would.
    """
    first = job.grid.block(0).read
    _workplace.reader(job).read(tuple(slice(part.start, part.start + 1) for part in first))
    _workplace.store(job)
    for spec in dict.fromkeys(job.methods):
        method_for(spec)


def may_pass(error: BaseException) -> bool:
    """Tell whether a second try of the block may fare better: not where the input itself is at fault."""
    return not isinstance(error, MrbcrError) or isinstance(error.__cause__, OSError)


def is_fatal(error: BaseException) -> bool:
    """Tell whether no other block can fare better: the disk is full or read-only, or the input is refused."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
    return isinstance(error, RefusedError) or (isinstance(error, OSError) and error.errno in full)


def describe(error: BaseException) -> str:
    """Return an exception in one line: its own words when it is one of ours, else with its type."""
    text = " ".join(str(error).split())
    return text if isinstance(error, MrbcrError | RemoteError) else f"{type(error).__name__}: {text}"
