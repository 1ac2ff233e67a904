"""Arrays deconvolved: at once into an array of numpy, or lazily as a graph of dask.

Invariant: both cut the image into the same blocks and do them with the same function as the command line, so their
pixels are the same, however a dask array is chunked. A lazy one computes nothing before it is asked to: ranges and
spectra of the whole channels are a task of its graph.
"""

from __future__ import annotations

import functools
import itertools
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import DomainWarning, InputError, MrbcrWarning
from mrbcr_cli.images.array import LABEL, ArrayReader
from mrbcr_cli.images.chunked import chunks_along, chunks_under, put_together
from mrbcr_cli.intensity import IntensityRange
from mrbcr_cli.plan import Outline, check_background, outline
from mrbcr_cli.settings import DeconvolveSettings
from mrbcr_cli.stream.engine import RestoredBlock, method_for, restore_block
from mrbcr_cli.survey import outside_domain, survey_channels

Progress = Callable[[int, int], object]
"""Called with how many blocks are done, and how many there are."""

Chunks = tuple[tuple[int, ...], ...]
SAID_FROM = 0.001
"""Share of clipped pixels from which there is a warning; of lazy arrays nobody counts them."""


class Run:
    """An array whose pixels have been looked at: all that its blocks need. Opaque to dask, as ArrayReader is."""

    def __init__(
        self, made: Outline, ranges: tuple[IntensityRange, ...], order: tuple[int, ...], chunks: Chunks
    ) -> None:
        """`order`: of the canonical axes in the array; `chunks`: those of a dask array, along its own axes."""
        self.made, self.ranges, self.order, self.chunks = made, ranges, order, chunks

    def restore(self, number: int, raw: NDArray[Any]) -> RestoredBlock:
        """Deconvolve block `number`, read with its halo, in canonical axes."""
        grid = self.made.grid
        block = grid.block(number)
        channel = block.core[grid.axes.index("C")].start if "C" in grid.axes else 0
        method = method_for(self.made.methods[channel].spec)
        with _slots(self.made.share.workers), _torch_threads(self.made.share.torch_threads):
            restored = restore_block(
                raw,
                block,
                axes=grid.axes,
                method=method,
                intensity=self.ranges[channel],
                dtype=self.made.dtype,
                nan_policy=self.made.settings.nan_policy,
                label=LABEL,
            )
        for note in method.take_notes():
            warnings.warn(note, MrbcrWarning, stacklevel=2)
        return restored


def deconvolve_now(reader: ArrayReader, settings: DeconvolveSettings, progress: Progress | None) -> NDArray[Any]:
    """Deconvolve an array into a new one, in the order of its axes. Raises InputError."""
    run = _look(reader, outline(reader, settings, "ome-zarr"))
    grid = run.made.grid
    out = np.empty(grid.shape, run.made.dtype)

    def do(number: int) -> RestoredBlock:
        block = grid.block(number)
        restored = run.restore(number, reader.read(block.read))
        out[block.core] = restored.pixels
        return restored

    clipped = 0
    with ThreadPoolExecutor(run.made.share.workers, thread_name_prefix="mrbcr") as pool:
        try:
            futures = [pool.submit(do, number) for number in range(len(grid))]
            for done, future in enumerate(as_completed(futures), start=1):
                clipped += future.result().clipped
                if progress is not None:
                    progress(done, len(grid))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if clipped > SAID_FROM * out.size:
        share = f"{100 * clipped / out.size:.2g} % of the pixels"
        warnings.warn(
            f"{share} left the range of {out.dtype} and were clipped; output_dtype='float32' keeps them",
            MrbcrWarning,
            stacklevel=3,
        )
    return np.ascontiguousarray(reader.as_stored(out))


def deconvolve_lazily(reader: ArrayReader, array: Any, settings: DeconvolveSettings) -> Any:
    """Return the deconvolved `array` (of dask; `reader` reads it) as one of dask, in its chunks. Raises InputError."""
    import dask.array as da
    from dask.base import tokenize
    from dask.highlevelgraph import HighLevelGraph

    if settings.method == "blind" or (settings.method == "wiener" and settings.balance is None):
        what = "blind estimates the PSF" if settings.method == "blind" else "wiener without balance= estimates it"
        raise InputError(
            f"method {what} from the pixels before the blocks can be laid out, which a lazy array cannot give; "
            "pass an array of numpy (image.compute()), or a PSF" + (" and balance=" * (settings.method == "wiener"))
        )
    made = outline(reader, settings, "ome-zarr")
    grid, order = made.grid, reader.order
    token = tokenize(array.name, reader.fingerprint(), settings.model_dump_json(), str(grid.to_dict()), _facts(made))
    name, looked = f"mrbcr-{token}", f"mrbcr-look-{token}"
    graph: dict[Any, Any] = {looked: (functools.partial(_look, reader, made, array.chunks),)}
    along = functools.cache(
        lambda axis, start, stop: [k for k, _ in chunks_along(array.chunks[axis], slice(start, stop))]
    )
    for number, position in enumerate(np.ndindex(*grid.counts)):
        parts = enumerate(_stored(grid.block(number).read, order))
        numbers = itertools.product(*(along(axis, part.start, part.stop) for axis, part in parts))
        keys = [(array.name, *chunk) for chunk in numbers]
        graph[(name, *_stored(position, order))] = (_do, looked, number, keys)
    steps = [
        tuple(min(step, size - at) for at in range(0, size, step))
        for size, step in zip(grid.shape, grid.block_shape, strict=True)
    ]
    result = da.Array(
        HighLevelGraph.from_collections(name, graph, dependencies=[array]),
        name,
        chunks=_stored(steps, order),
        dtype=made.dtype,
    )
    wanted = [
        sizes if sum(sizes) == total else (1,) * total for sizes, total in zip(array.chunks, result.shape, strict=True)
    ]
    return result.rechunk(tuple(wanted))


def _do(run: Run, number: int, pieces: list[NDArray[Any]]) -> NDArray[Any]:
    """Task of a block: put its pixels together from the chunks under it, and deconvolve them."""
    region = _stored(run.made.grid.block(number).read, run.order)
    starts = [start for _, start in chunks_under(run.chunks, region)]
    raw = put_together(region, pieces, starts).transpose(run.order)
    pixels = run.restore(number, np.ascontiguousarray(raw, dtype=raw.dtype.newbyteorder("="))).pixels
    return np.ascontiguousarray(pixels.transpose(np.argsort(run.order)))


def _look(reader: ArrayReader, made: Outline, chunks: Chunks = ()) -> Run:
    """Measure the channels and warn of what they are. Raises InputError for pixels that the settings refuse."""
    settings, channels, methods = made.settings, made.channels, made.methods
    try:
        ranges, notes, estimates = survey_channels(reader, settings, channels, methods, made.percentiles, None)
    finally:
        reader.close()
    check_background(settings, ranges, reader.info)
    for note in dict.fromkeys([*notes, *(note for method in methods for note in method.notes)]):
        warnings.warn(note, MrbcrWarning, stacklevel=4)
    for text in outside_domain(channels, methods, estimates):
        warnings.warn(text, DomainWarning, stacklevel=4)
    return Run(made, ranges, reader.order, chunks)


def _facts(made: Outline) -> str:
    return repr([method.fingerprint for method in made.methods])


def _stored(values: Sequence[Any], order: Sequence[int]) -> tuple[Any, ...]:
    """One value for each canonical axis, in the order of the array's axes."""
    placed: list[Any] = [None] * len(order)
    for value, axis in zip(values, order, strict=True):
        placed[axis] = value
    return tuple(placed)


@functools.cache
def _slots(workers: int) -> threading.BoundedSemaphore:
    """What keeps this process from doing more blocks at a time than memory and cores allow, whoever asks for them."""
    return threading.BoundedSemaphore(workers)


@dataclass
class _Threads:
    lock: threading.Lock
    users: int = 0
    before: int = 0


_threads = _Threads(threading.Lock())


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """PyTorch with `count` threads for each block; the last to leave puts back what the process had before."""
    import torch

    with _threads.lock:
        if _threads.users == 0:
            _threads.before = torch.get_num_threads()
        _threads.users += 1
    try:
        if torch.get_num_threads() != count:
            torch.set_num_threads(count)
        yield
    finally:
        with _threads.lock:
            _threads.users -= 1
            if _threads.users == 0:
                torch.set_num_threads(_threads.before)
