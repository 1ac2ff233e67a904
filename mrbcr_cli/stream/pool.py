"""Blocks of work on processes of this machine: a bounded number under way, results as they come.

Invariant: a block is a pure function of its number and of what the processes were started with, so neither the number
of workers nor the order of the blocks shows in the result. With one worker everything runs in this process.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, TypeVar

from mrbcr_cli.errors import IncompleteError

Setup = TypeVar("Setup")
Result = TypeVar("Result")

_IN_FLIGHT = 3
"""Blocks handed out per worker, so that none waits for the driver."""
_POLL_S = 0.5

_setup: object = None
_work: Callable[[Any, int], object] | None = None


def run_blocks(
    work: Callable[[Setup, int], Result],
    setup: Setup,
    blocks: Iterable[int],
    *,
    workers: int,
    on_done: Callable[[int, Result], None],
    stop: threading.Event,
) -> bool:
    """Call `work(setup, block)` for every block, `on_done(block, result)` here for each as it ends.

    `work` is a function of a module and `setup` can be pickled: each process gets it once. Returns False when `stop`
    was set before all were done; blocks under way are finished then. An error of a block ends the run and is raised
    after those under way are done; a worker that died is an IncompleteError.
    """
    if workers == 1:
        return _run_here(work, setup, blocks, on_done, stop)
    remaining = iter(blocks)
    # spawn: a fork would copy torch's and zarr's threads in any state.
    context = multiprocessing.get_context("spawn")
    running: dict[Future[object], int] = {}
    failure: BaseException | None = None
    dropped = False
    with ProcessPoolExecutor(workers, mp_context=context, initializer=partial(_start, work, setup)) as pool:
        exhausted = False
        while True:
            while not exhausted and not stop.is_set() and failure is None and len(running) < _IN_FLIGHT * workers:
                block = next(remaining, None)
                if block is None:
                    exhausted = True
                else:
                    running[pool.submit(_call, block)] = block
            if stop.is_set() or failure is not None:
                for future in [f for f in running if f.cancel()]:
                    del running[future]
                    dropped = True
            if not running:
                break
            done, _ = wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            for future in done:
                block = running.pop(future)
                error = future.exception()
                if error is None:
                    on_done(block, future.result())  # type: ignore[arg-type]
                elif failure is None:
                    failure = error
    if failure is not None:
        raise _explained(failure)
    return exhausted and not dropped


def _run_here(
    work: Callable[[Setup, int], Result],
    setup: Setup,
    blocks: Iterable[int],
    on_done: Callable[[int, Result], None],
    stop: threading.Event,
) -> bool:
    _one_thread()
    for block in blocks:
        if stop.is_set():
            return False
        on_done(block, work(setup, block))
    return True


def _explained(failure: BaseException) -> BaseException:
    if isinstance(failure, BrokenProcessPool):
        return IncompleteError(
            "a worker process died (out of memory?); run the same command to resume, with less --workers"
        )
    return failure


def _start(work: Callable[[Any, int], object], setup: object) -> None:
    global _setup, _work
    _setup, _work = setup, work
    _ignore_interrupts()
    _one_thread()


def _call(block: int) -> object:
    if _work is None:
        raise RuntimeError("the worker was not started")
    return _work(_setup, block)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of the terminal; only the driver decides."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _one_thread() -> None:
    """One thread a worker: sums then come in one order, and workers do not fight for cores."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)
