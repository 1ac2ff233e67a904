"""The loop that has all blocks of a run done: a bounded number under way, each failure tried again, none twice in vain.

Invariant: a block leaves the loop once, as done (`on_done` has its record), as failed, or as left over when the run was
stopped; what is kept in memory grows with the blocks under way and those that failed, not with the image.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mrbcr_cli.console import clock_text
from mrbcr_cli.errors import IncompleteError, InputError, MrbcrError
from mrbcr_cli.stream.cluster import Clients
from mrbcr_cli.stream.crew import Crew
from mrbcr_cli.stream.engine import Job, RefusedError, describe, is_fatal
from mrbcr_cli.stream.records import BlockRecord

GIVE_UP_AFTER = 16
"""Failures in a row, with no block done between them, after which a run stops trying."""
_TICK_S = 1.0
_SAY_IDLE_S = 60.0
_GATHER_S = 60.0
_ALL_ANSWER_S = 120.0


class WorkersDiedError(MrbcrError):
    """So many workers died over a block that it is not given to another."""


class SchedulerLostError(IncompleteError):
    """The dask scheduler is gone, and with it all that was under way."""


@dataclass
class DriveResult:
    """How a drive ended."""

    failed: dict[int, str] = field(default_factory=dict)
    interrupted: bool = False
    """It was asked to stop and blocks are left."""
    fatal: BaseException | None = None
    """Why it stopped before its end (a full disk, refused input, nothing but failures)."""
    redone: set[int] = field(default_factory=set)
    """Blocks that were begun again, after an error or with a worker that was lost."""


def drive(
    clients: Clients,
    job: Job,
    remaining: Iterator[int],
    at_most: int,
    on_done: Callable[[BlockRecord], None],
    stop: threading.Event,
) -> DriveResult:
    """Run the blocks of `remaining` on the workers of `clients`, at most `at_most` at a time.

    `on_done` is called in this thread for each record (it writes the ledger; its OSError ends the run). When `stop` is
    set no new block is begun, and those under way are waited for.
    """
    inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
    try:
        crew = Crew(clients, job, inbox.put)
    except InputError as error:
        return DriveResult(fatal=error if isinstance(error, RefusedError) else RefusedError(str(error)))
    clients.on_lost = lambda worker, keys: inbox.put(("lost", worker, keys))
    try:
        loop = _Loop(crew, inbox, remaining, at_most, on_done, stop)
        if clients.remote and not loop.ready():
            return loop.result
        return loop.run()
    finally:
        clients.on_lost = None
        crew.close()


class _Loop:
    """The state of a drive."""

    def __init__(
        self,
        crew: Crew,
        inbox: queue.SimpleQueue[tuple[Any, ...]],
        remaining: Iterator[int],
        at_most: int,
        on_done: Callable[[BlockRecord], None],
        stop: threading.Event,
    ) -> None:
        self.result = DriveResult()
        self._crew, self._clients = crew, crew.clients
        self._inbox, self._remaining, self._at_most = inbox, remaining, at_most
        self._on_done, self._stop = on_done, stop
        self._running: dict[str, tuple[int, Any]] = {}
        """Key of a task: its block and its future."""
        self._again: deque[int] = deque()
        self._failed_on: dict[int, list[str]] = {}
        """The workers that a block failed on so far, one entry a try."""
        self._failures_in_a_row = 0
        self._submitted = 0
        self._next_tick = time.monotonic() + _TICK_S
        self._idle_since = self._said_idle = time.monotonic()

    def ready(self) -> bool:
        """Wait for the first workers and their answers; False when the run ends before that, as `result` says."""
        deadline = None
        while not self._stop.is_set() and self.result.fatal is None:
            self._tick()
            if self._crew.slots and deadline is None:
                deadline = time.monotonic() + _ALL_ANSWER_S
            if deadline is not None and (self._crew.asked == 0 or time.monotonic() > deadline):
                return True
            for message in self._messages(0.2):
                self._heard(message, at_start=True)
        self.result.interrupted = self.result.fatal is None
        return False

    def run(self) -> DriveResult:
        """Do the blocks."""
        while True:
            self._fill()
            if not self._running:
                break
            done = [message[1] for message in self._messages(_TICK_S) if self._heard(message, at_start=False)]
            self._settle(done)
            if time.monotonic() >= self._next_tick:
                self._tick()
        if self.result.fatal is None and self._stop.is_set():
            left = bool(self._again) or next(self._remaining, None) is not None
            self.result.interrupted = self.result.interrupted or left
        return self.result

    def _fill(self) -> None:
        window = self._clients.window(self._at_most, self._crew.slots, self._submitted)
        while len(self._running) < window and self.result.fatal is None and not self._stop.is_set():
            number = self._again.popleft() if self._again else next(self._remaining, None)
            if number is None:
                return
            self._submit(number)

    def _submit(self, number: int) -> None:
        from mrbcr_cli.stream.worker import work_on

        self._submitted += 1
        # A key of its own for each try: one that is given up may still be running, and must not answer for the next.
        key = f"block-{number}-{self._crew.token}-{self._submitted}"
        tried = self._failed_on.get(number)
        others = self._crew.others(set(tried)) if tried else []
        elsewhere = {"workers": others, "allow_other_workers": True} if others else {}
        limit_s, threads = self._clients.block_timeout_s, self._crew.torch_threads
        future = self._crew.client.submit(
            work_on, self._crew.token, number, limit_s, threads, pure=False, key=key, **elsewhere
        )
        self._running[key] = (number, future)
        future.add_done_callback(lambda _: self._inbox.put(("done", key)))

    def _messages(self, wait_s: float) -> list[tuple[Any, ...]]:
        """What has come in; waits for the first, then takes all there are."""
        try:
            found = [self._inbox.get(timeout=wait_s)]
        except queue.Empty:
            return []
        while not self._inbox.empty():
            found.append(self._inbox.get())
        return found

    def _heard(self, message: tuple[Any, ...], *, at_start: bool) -> bool:
        """Act on a message; True for that of a finished task, which is left to `_settle`."""
        kind, *about = message
        if kind == "checked":
            try:
                self._crew.answered(about[0], at_start=at_start)
            except RefusedError as error:
                self.result.fatal = self.result.fatal or error
        elif kind == "lost":
            self._lost(*about)
        return bool(kind == "done")

    def _lost(self, worker: str, keys: frozenset[str]) -> None:
        """Say that a worker is gone. The scheduler gives its blocks to others; we count them."""
        numbers = sorted(self._running[key][0] for key in keys if key in self._running)
        if numbers:
            self.result.redone.update(numbers)
            named = ", ".join(map(str, numbers))
            self._clients.warn(
                f"worker {worker} was lost (ended, out of memory, or longer than --block-timeout at a block); "
                f"redoing block{'s' * (len(numbers) > 1)} {named}"
            )

    def _settle(self, keys: list[str]) -> None:
        """Hand finished blocks on, and see what becomes of the others."""
        tasks = [self._running.pop(key) for key in keys if key in self._running]
        finished = [task for task in tasks if task[1].status == "finished"]
        outcomes = [*zip(finished, self._gather([future for _, future in finished]), strict=True)]
        outcomes += [(task, _why(task[1])) for task in tasks if task not in finished]
        for (number, future), value in outcomes:
            if isinstance(value, BlockRecord):
                self._done(value)
            elif isinstance(value, BaseException):
                self._failed(number, value, "", not isinstance(value, WorkersDiedError))
            else:
                self._failed(number, value.error, value.worker, value.may_pass)
            future.release()

    def _gather(self, futures: list[Any]) -> list[Any]:
        """The results of finished tasks, or for each why it cannot be had (its worker died with it)."""
        client = self._crew.client
        if not futures:
            return []
        try:
            loop = client.loop.asyncio_loop
            asked = asyncio.run_coroutine_threadsafe(client.gather(futures, asynchronous=True), loop)
            return list(asked.result(timeout=_GATHER_S))
        except Exception as error:  # of the scheduler, the network, or the task
            if len(futures) > 1:
                return [result for future in futures for result in self._gather([future])]
            return [error]

    def _done(self, record: BlockRecord) -> None:
        try:
            self._on_done(record)
        except OSError as problem:
            self._failed(record.block, problem, "", True, ours=True)
        else:
            self._failures_in_a_row = 0
            self._failed_on.pop(record.block, None)

    def _failed(self, number: int, error: BaseException, worker: str, may_pass: bool, *, ours: bool = False) -> None:
        """Decide what becomes of a block that was not done: tried again, failed, or the end of the run."""
        if self._crew.client.status != "running":
            error = SchedulerLostError("the dask scheduler is gone")
            self.result.fatal = self.result.fatal or error
        self._failures_in_a_row += 1
        tried = [*self._failed_on.get(number, ()), worker]
        # On other machines a disk that is full or gone may be that of one worker: another one has a say, too.
        alone = ours or not self._clients.remote or isinstance(error, RefusedError) or len(tried) > 1
        if (is_fatal(error) and alone) or self._failures_in_a_row >= GIVE_UP_AFTER:
            self.result.fatal = self.result.fatal or error
        if not may_pass or len(tried) >= self._clients.tries:
            self.result.failed[number] = describe(error)
        elif self.result.fatal is None:
            self._failed_on[number] = tried
            self._again.append(number)
            self.result.redone.add(number)
            if self._clients.remote:
                self._clients.warn(f"block {number} failed on {worker or 'a worker'} ({describe(error)}); trying again")

    def _tick(self) -> None:
        """Look after the workers, once in a while."""
        self._next_tick = time.monotonic() + _TICK_S
        if not self._clients.remote:
            return
        try:
            self._clients.tend()
            self._crew.look()
            if self._stop.is_set() or self.result.fatal is not None:
                self._drop_waiting()
        except RefusedError as error:
            self.result.fatal = self.result.fatal or error
            return
        except (OSError, TimeoutError, RuntimeError) as error:
            if self._crew.client.status == "running":
                return  # busy: the next look will tell
            self.result.fatal = self.result.fatal or SchedulerLostError(f"the dask scheduler is gone ({error})")
            self._running.clear()
            return
        now = time.monotonic()
        if self._crew.slots:
            self._idle_since = self._said_idle = now
        elif now - self._said_idle >= _SAY_IDLE_S:
            self._said_idle = now
            self._clients.say(f"no worker for {clock_text(now - self._idle_since)}; {self._clients.where_to_look}")

    def _drop_waiting(self) -> None:
        """Take back the blocks that no worker has begun."""
        begun = {key for keys in self._crew.client.processing().values() for key in keys}
        for key in self._running.keys() - begun:
            number, future = self._running[key]
            if future.status == "pending":
                del self._running[key]
                future.cancel()
                self._again.append(number)


def _why(future: Any) -> BaseException:
    """Why a task has no result."""
    from distributed import KilledWorker

    error: BaseException | None = future.exception() if future.status == "error" else None
    if isinstance(error, KilledWorker):
        return WorkersDiedError(
            f"{error.allowed_failures + 1} workers died over it (out of memory, a crash, or --block-timeout)"
        )
    return error or RuntimeError(f"the block was {future.status}")
