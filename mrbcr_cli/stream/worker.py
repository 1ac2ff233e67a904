"""What runs in the process of a dask worker: the jobs it was told of, blocks, the check before the first, the watchdog.

Invariant: a task carries the name of its job and a number, not the job; and what a block raises comes back as a value
that any process can read, with the worker it happened on. Nothing here depends on where the worker is.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import pickle
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distributed import WorkerPlugin, get_worker

from mrbcr_cli import __version__
from mrbcr_cli.capacity import cpu_count
from mrbcr_cli.errors import MrbcrError
from mrbcr_cli.stream import engine
from mrbcr_cli.stream.engine import Job, describe, forget_run, may_pass
from mrbcr_cli.stream.records import BlockRecord

CHECK_PREFIX = "image.check-"
"""Of the files that are written to see whether two machines share a folder. The working folder knows `image.*` as
ours."""
_SETTLE_S = 5.0
"""A network disk may show a new file to another machine only after its cache of names has run out."""

OURS = "MRBCR_WORKER"
"""Set in the environment of worker processes that this tool started: "local", or "slurm-N" with N in a job."""

_jobs: dict[str, Job] = {}


@dataclass(frozen=True)
class BlockFailure:
    """A block that was not done, and why."""

    number: int
    worker: str
    """Address of the worker it failed on."""
    error: Exception
    may_pass: bool
    """Whether another try may fare better; told where the causes of the error are still known."""


@dataclass(frozen=True)
class WorkerReport:
    """What a worker says of itself before it gets blocks."""

    worker: str
    host: str
    version: str
    cores: int
    """That its process may use; others on its host may use the same ones."""
    threads: int
    """Blocks it does at a time."""
    wrote: str | None
    """Name of the file it left in the working folder."""
    trouble: str | None
    """Why it cannot do blocks; None where it can."""


class JobPlugin(WorkerPlugin):
    """Tells workers of a job: those that are there, and each that comes later, before its first task."""

    def __init__(self, token: str, job: Job) -> None:
        self.name = f"mrbcr-{token}"
        self._token, self._job = token, job

    def setup(self, worker: Any) -> None:
        """Remember the job."""
        prepare_process(str(worker.name))
        _jobs[self._token] = self._job

    def teardown(self, worker: Any) -> None:
        """Forget the job, and close what it had open here."""
        if _jobs.pop(self._token, None) is not None:
            forget_run(self._job.run)


@functools.cache
def prepare_process(worker_name: str) -> None:
    """Set a process up that was started by us and does nothing but blocks: its allocator and its GPU. Once."""
    ours = os.environ.get(OURS, "")
    if not ours:
        return
    from mrbcr_cli.restore import tune_allocator

    tune_allocator()
    count = int(ours.removeprefix("slurm-")) if ours.startswith("slurm-") else 1
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    number = worker_name.rpartition("-")[2]  # dask-jobqueue numbers the processes of a job
    if count > 1 and len(gpus) == count and number.isdigit():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(number) % count]


def work_on(token: str, number: int, limit_s: float | None, torch_threads: int | None) -> BlockRecord | BlockFailure:
    """Do block `number` of the job that is known as `token`; a process in which it takes over `limit_s` is ended.

    `torch_threads` takes the place of the job's own number where that cannot know the machine.
    """
    try:
        job = _job(token)
        if torch_threads is not None:
            job = replace(job, torch_threads=torch_threads)
        with _watchdog.limit(limit_s):
            return engine.run_block(job, number)
    except Exception as error:
        return BlockFailure(number, _address(), _readable(error), may_pass(error))


def check_worker(token: str, marker: str) -> WorkerReport:
    """See whether this worker can do blocks: it has the input, the models, and the folder where `marker` lies."""
    wrote, trouble = None, None
    try:
        job = _job(token)
        folder = job.working_folder
        if not appears(folder / marker):
            trouble = f"does not see the working folder {folder}; it must lie on a disk that all workers share"
        else:
            wrote = f"{CHECK_PREFIX}{uuid.uuid4().hex}"
            (folder / wrote).write_bytes(b"")
            engine.try_out(job)
    except (MrbcrError, OSError) as error:
        trouble = f"cannot do blocks: {describe(error)}"
    worker = get_worker()
    threads = worker.state.nthreads
    return WorkerReport(worker.address, platform.node(), __version__, cpu_count(), threads, wrote, trouble)


def appears(path: Path) -> bool:
    """Whether a file that another machine wrote is there, or comes within a few seconds."""
    deadline = time.monotonic() + _SETTLE_S
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _job(token: str) -> Job:
    try:
        return _jobs[token]
    except KeyError:
        raise RuntimeError("the worker was not told of this run") from None


def _address() -> str:
    try:
        return str(get_worker().address)
    except ValueError:
        return ""  # called outside a worker


def _readable(error: Exception) -> Exception:
    """The error, or what is left of it where another process could not read it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever an exception of another library does when it is taken apart
        return RuntimeError(describe(error))
    return error


class _Watchdog:
    """Ends this process when a block takes too long: a thread that hangs cannot be ended, a process can.

    The timer is faulthandler's, a thread of C: it fires even where a library hangs with Python's lock held.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deadlines: dict[int, float] = {}

    @contextlib.contextmanager
    def limit(self, seconds: float | None) -> Iterator[None]:
        """End the process unless the body is left within so many seconds; None: never."""
        if seconds is None:
            yield
            return
        me = threading.get_ident()
        self._set(me, time.monotonic() + seconds)
        try:
            yield
        finally:
            self._set(me, None)

    def _set(self, thread: int, deadline: float | None) -> None:
        with self._lock:
            if deadline is None:
                self._deadlines.pop(thread, None)
            else:
                self._deadlines[thread] = deadline
            if not self._deadlines:
                faulthandler.cancel_dump_traceback_later()
                return
            left = max(min(self._deadlines.values()) - time.monotonic(), 0.001)
            faulthandler.dump_traceback_later(left, exit=True, file=_log())


def _log() -> Any:
    """Where the stacks of a hung worker go: its log, but not a person's terminal."""
    global _nowhere
    log = sys.__stderr__
    if log is not None and os.environ.get(OURS) != "local":
        return log
    if _nowhere is None:
        _nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - as long as the process lives
    return _nowhere


_nowhere: Any = None
_watchdog = _Watchdog()
