"""The workers of one run: told of its job, tried out before they get blocks, counted while they come and go.

Invariant: the job travels once to each worker, also to one that comes later or comes again; a worker that was found
unable to do blocks is either the end of the run (it was there at the start) or is sent away.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrbcr_cli import __version__
from mrbcr_cli.places import place
from mrbcr_cli.stream.engine import Job, RefusedError, describe

if TYPE_CHECKING:
    from mrbcr_cli.stream.cluster import Clients
    from mrbcr_cli.stream.worker import WorkerReport

_MOST_SENT_AWAY = 3
_FORGET_S = 10.0


class Crew:
    """The workers of one run. `tell` gets ("checked", address) when a worker has answered."""

    def __init__(self, clients: Clients, job: Job, tell: Callable[[tuple[Any, ...]], None]) -> None:
        """Start the workers, where this has not been done, and tell them of the job. Raises RefusedError."""
        from mrbcr_cli.stream.worker import CHECK_PREFIX, JobPlugin

        self.clients = clients
        self.client = clients.get()
        self.token = uuid.uuid4().hex[:12]
        self.torch_threads: int | None = None
        """None: as the job says."""
        self._tell = tell
        self._folder = job.working_folder.absolute()
        self._marker = self._folder / f"{CHECK_PREFIX}{self.token}"
        """There while the run goes on: workers that see it share the folder, and no block is written without it."""
        self._asked: dict[str, Any] = {}
        self._fit: dict[str, WorkerReport] = {}
        self._threads: dict[str, int] = {}
        self._sent_away = 0
        if clients.remote:
            self._marker.write_bytes(b"")
        else:
            self._threads = {"": clients.threads}
        try:
            told = replace(_from_root(job), guard=str(self._marker) if clients.remote else None)
            self.client.register_plugin(JobPlugin(self.token, told))
        except Exception as error:  # what a worker raises when it cannot read the job
            self.close()
            raise RefusedError(
                f"--cluster: a worker cannot take a job ({describe(error)}); "
                f"install mrbcr {__version__} in the environment of the workers"
            ) from error

    def close(self) -> None:
        """Have the workers forget the job, and remove what the checks left."""
        if self.clients.remote:
            self._marker.unlink(missing_ok=True)
        with suppress(
            Exception
        ):  # the scheduler may be gone, and the workers with it; one that hangs is not waited for
            forgetting = self.client.scheduler.unregister_worker_plugin(name=f"mrbcr-{self.token}")
            asyncio.run_coroutine_threadsafe(forgetting, self.client.loop.asyncio_loop).result(timeout=_FORGET_S)

    @property
    def slots(self) -> int:
        """Blocks that the workers which are here now do at a time."""
        return sum(self._threads.values())

    @property
    def asked(self) -> int:
        """How many workers have not answered yet."""
        return len(self._asked)

    def others(self, avoided: set[str]) -> list[str]:
        """Addresses of the workers to try a block on that failed on those `avoided`; empty where it does not matter."""
        return [address for address in self._threads if address not in avoided] if self.clients.remote else []

    def look(self) -> None:
        """See who is here, and try out those who are new. Raises OSError where the scheduler is gone."""
        from mrbcr_cli.stream.worker import check_worker

        if not self.clients.remote:
            return
        self._threads = dict(self.client.nthreads())
        for address in self._threads.keys() - self._asked.keys() - self._fit.keys():
            future = self.client.submit(
                check_worker,
                self.token,
                self._marker.name,
                pure=False,
                key=f"check-{uuid.uuid4().hex}",
                workers=[address],
                allow_other_workers=False,
                priority=10,
            )
            self._asked[address] = future
            future.add_done_callback(lambda _, address=address: self._tell(("checked", address)))
        for address in self._asked.keys() - self._threads.keys():
            del self._asked[address]  # gone before it answered
        self._fit = {address: report for address, report in self._fit.items() if address in self._threads}

    def answered(self, address: str, *, at_start: bool) -> None:
        """Take the answer of a worker. Raises RefusedError where it cannot do blocks and the run should end."""
        future = self._asked.pop(address, None)
        if future is None:
            return
        trouble, report = _answer(future)
        if report is not None and report.wrote is not None and trouble is None:
            trouble = self._share_a_folder(report.wrote)
        if report is not None and report.wrote is not None:
            (self._folder / report.wrote).unlink(missing_ok=True)
        if trouble is None and report is not None:
            self._fit[address] = report
            self._share_cores()
            return
        said = f"--cluster: worker {address} on {report.host if report else 'an unknown host'} {trouble}"
        if at_start or self.clients.kind == "address" or self._sent_away == _MOST_SENT_AWAY:
            raise RefusedError(said)
        self._sent_away += 1
        self.clients.warn(f"{said}; it is sent away")
        self._threads.pop(address, None)
        self.client.retire_workers([address])

    def _share_a_folder(self, name: str) -> str | None:
        """What is wrong where a worker's file does not appear here; None when it does."""
        from mrbcr_cli.stream.worker import appears

        if appears(self._folder / name):
            return None
        return f"writes to a folder {self._folder} of its own; it must lie on a disk that all workers share"

    def _share_cores(self) -> None:
        """Give the cores of each host of somebody else's cluster to the workers on it, evenly."""
        if self.clients.kind != "address":
            return
        on_host: dict[str, int] = {}
        for report in self._fit.values():
            on_host[report.host] = on_host.get(report.host, 0) + report.threads
        self.torch_threads = max(1, min(r.cores // on_host[r.host] for r in self._fit.values()))


def _answer(future: Any) -> tuple[str | None, WorkerReport | None]:
    """What a worker said, as (trouble, report)."""
    from mrbcr_cli.stream.worker import WorkerReport

    try:
        report = future.result(timeout=60)
    except Exception as error:  # anything that a foreign environment may raise
        return f"cannot do blocks: {describe(error)}", None
    if not isinstance(report, WorkerReport):
        return f"answered {report!r}", None
    if report.version != __version__:
        return f"has mrbcr {report.version}, this is {__version__}; install the same", report
    return report.trouble, report


def _from_root(job: Job) -> Job:
    """The job with paths that mean the same in any folder a worker was started in."""
    source = replace(job.source, paths=tuple(map(_absolute, job.source.paths)))
    folder = None if job.folder is None else _absolute(job.folder)
    return replace(job, source=source, store=_absolute(job.store), folder=folder)


def _absolute(text: str) -> str:
    where = place(text)
    return str(where.absolute() if isinstance(where, Path) else where)
