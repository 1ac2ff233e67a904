"""Workers of `mrbcr simulate stack`: processes that make blocks, and the loop that keeps a bounded number under way.

Invariant: which worker does a task, and when, changes nothing of its result; a failure or a signal ends the run with
what is done kept.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from mrbcr_cli.errors import IncompleteError, InterruptedRunError, MrbcrError
from mrbcr_cli.optics.imaging import Kernel
from mrbcr_cli.restore import tune_allocator
from mrbcr_cli.simulate.stack_blocks import BlockMaker, Job, begin, save_kernel, work
from mrbcr_cli.workfolder import Target

RESUME = "run the same command to resume"

Submit = Callable[..., Future[Any]]


@contextmanager
def workers_for(job: Job, count: int) -> Iterator[Submit]:
    """A function that has BlockMaker methods done: by processes, or in this one where one is enough."""
    if count == 1:
        tune_allocator()
        maker = BlockMaker(job)

        def here(method: str, *arguments: Any) -> Future[Any]:
            future: Future[Any] = Future()
            try:
                future.set_result(getattr(maker, method)(*arguments))
            except Exception as error:
                future.set_exception(error)
            return future

        yield here
        return
    # By a file: a process that dies while it is handed more than a pipe holds would leave this one waiting for ever.
    kernel = job.folder / "image.kernel.npz"
    save_kernel(kernel, job.kernel)
    small = replace(job, kernel=Kernel(np.ones((1, 1, 1), np.float32), None))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=begin, initargs=(small, kernel)) as pool:

        def there(method: str, *arguments: Any) -> Future[Any]:
            with _deaf_to_ctrl_c():
                return pool.submit(work, method, *arguments)

        yield there


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that are begun here never see Ctrl-C, which a terminal sends to all: this process decides."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def drive(
    tasks: Iterable[tuple[Any, ...]],
    submit: Submit,
    window: int,
    on_done: Callable[[Any], None],
    stopped: Callable[[], bool],
    target: Target,
) -> None:
    """Have tasks done, at most `window` under way; `on_done` gets their results in this thread.

    No task is begun after a failure or once `stopped` says so; those under way are waited for. Then raises
    IncompleteError or InterruptedRunError.
    """
    remaining = iter(tasks)
    running: set[Future[Any]] = set()
    failure: BaseException | None = None
    interrupted = False
    while True:
        while failure is None and not interrupted and len(running) < window:
            task = next(remaining, None)
            if task is None:
                break
            if stopped():
                interrupted = True
                break
            try:
                running.add(submit(*task))
            except BrokenProcessPool as error:
                failure = error
        if not running:
            break
        finished, running = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            problem = future.exception()
            if problem is None:
                on_done(future.result())
            else:
                failure = failure or problem
    if isinstance(failure, BrokenProcessPool) and stopped():
        failure, interrupted = None, True  # the scheduler's signal went to the workers too
    if failure is not None:
        raise IncompleteError(
            f"{target.path}: stopped ({why(failure)}); finished blocks are kept, {RESUME}"
        ) from failure
    if interrupted:
        raise InterruptedRunError(
            f"{target.path}: interrupted; finished blocks are kept in {target.partial.name}, {RESUME}"
        )


def why(error: BaseException) -> str:
    """A failure in one line."""
    if isinstance(error, BrokenProcessPool):
        return "a worker process was ended from outside, perhaps for its memory; --workers takes fewer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return text if isinstance(error, MrbcrError) else f"{type(error).__name__}: {text}"
