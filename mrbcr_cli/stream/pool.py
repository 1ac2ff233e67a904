"""Work on processes of this machine: a bounded number of tasks under way, results as they come.

Invariant: which process does a task, and when, changes nothing of its result; a task that was begun is waited for and
its result handed over, and `drive` returns only when all tasks are done.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

from mrbcr_cli.errors import IncompleteError, InterruptedRunError, MrbcrError

RESUME = "run the same command to resume"

Work = Callable[..., Any]
Submit = Callable[..., Future[Any]]

_work: Work | None = None


@contextmanager
def workers_for(count: int, make: Callable[[], Work], here: Callable[[], Work] | None = None) -> Iterator[Submit]:
    """A function that has tasks done: by `count` processes, or in this one where one is enough.

    `make` is called once in every process and returns what does a task there; `here` takes its place in this process.
    `make` can be pickled and is small: a process that dies while it is handed more than a pipe holds would leave this
    one waiting for ever.
    """
    if count == 1:
        work = (here or make)()

        def at_once(*arguments: Any) -> Future[Any]:
            future: Future[Any] = Future()
            try:
                future.set_result(work(*arguments))
            except Exception as error:
                future.set_exception(error)
            return future

        yield at_once
        return
    # spawn: a fork would copy torch's and zarr's threads in any state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(make,)) as pool:

        def there(*arguments: Any) -> Future[Any]:
            with _deaf_to_ctrl_c():
                return pool.submit(_call, *arguments)

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


def _begin(make: Callable[[], Work]) -> None:
    """Set a worker process up. It ends with its parent."""
    global _work
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # the parent decides; SIGTERM is its way to end a worker
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            wait_for([parent.sentinel])
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
    _work = make()


def _call(*arguments: Any) -> Any:
    if _work is None:
        raise RuntimeError("the worker was not set up")
    return _work(*arguments)


def drive(
    tasks: Iterable[tuple[Any, ...]],
    submit: Submit,
    window: int,
    on_done: Callable[[Any], None],
    stopped: Callable[[], bool],
    path: Path,
    kept: Path,
) -> None:
    """Have tasks done, at most `window` under way; `on_done` gets their results in this thread.

    No task is begun after a failure or once `stopped` says so; those under way are waited for. Then raises
    IncompleteError or InterruptedRunError, which name the output `path` and where what is done is `kept`.
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
        raise IncompleteError(f"{path}: stopped ({_why(failure)}); finished blocks are kept, {RESUME}") from failure
    if interrupted:
        raise InterruptedRunError(f"{path}: interrupted; finished blocks are kept in {kept.name}, {RESUME}")


def _why(error: BaseException) -> str:
    """A failure in one line."""
    if isinstance(error, BrokenProcessPool):
        return "a worker process was ended from outside, perhaps for its memory; --workers takes fewer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return text if isinstance(error, MrbcrError) else f"{type(error).__name__}: {text}"
