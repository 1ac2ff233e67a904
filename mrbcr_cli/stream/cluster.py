"""Where blocks run: a dask client, whatever its workers are: threads here, processes here, jobs of SLURM, somebody's.

Invariant: this module and its parts (cluster_local, cluster_slurm) are the only ones that know how workers come to be;
what they run is `engine.run_block`, and nothing of its result depends on where.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from mrbcr_cli.cluster_settings import ClusterSettings
from mrbcr_cli.errors import InputError

_LISTEN_S = 5.0
_ANSWER_S = 15.0

Lost = Callable[[str, frozenset[str]], None]
"""Called with the address of a worker that is gone and the keys of the tasks it had."""


class Clients:
    """A dask client, made when the first block needs one and kept warm for the next file."""

    def __init__(
        self,
        settings: ClusterSettings,
        threads: int,
        say: Callable[[str], None] = lambda _: None,
        warn: Callable[[str], None] = lambda _: None,
        device: str = "auto",
    ) -> None:
        self.kind = settings.kind
        self.remote = self.kind != "threads"
        """Whether workers are other processes, which can die, and may lie on other machines."""
        self.threads = threads
        """Blocks that the workers of this machine do at a time: the most that any file of the batch may use."""
        self.tries = 3 if self.remote else 2
        """Times that a block is tried before it counts as failed."""
        self.block_timeout_s = settings.block_timeout
        self.say, self.warn = say, warn
        self.on_lost: Lost | None = None
        self._settings, self._device = settings, device
        self._open: tuple[AbstractContextManager[Any], Any] | None = None
        self._tend: Callable[[], None] = lambda: None

    @property
    def where_to_look(self) -> str:
        """What to tell someone who waits for workers."""
        if self.kind == "slurm":
            return "the jobs wait in the queue (squeue), or end at once (see slurm-*.out)"
        return f"start some: dask worker {self._settings.cluster}" if self.kind == "address" else "they start again"

    def check(self) -> None:
        """Find out, within seconds and before anything is planned, whether workers can be had. Raises InputError."""
        if self.kind == "slurm":
            from mrbcr_cli.stream.cluster_slurm import check_slurm

            check_slurm()
        elif self.kind == "address":
            _check_listens(_address(self._settings.cluster or ""))

    def get(self) -> Any:
        """The client. Raises InputError where the workers cannot be had."""
        if self._open is None:
            manager = self._manager()
            client = manager.__enter__()
            self._open = (manager, client)
            if self.remote:
                client.subscribe_topic("all", self._event)
                self._say_dashboard(client)
        return self._open[1]

    def window(self, at_most: int, slots: int, submitted: int) -> int:
        """How many blocks to keep under way so that no more than `at_most` of the `slots` run at a time.

        Some more wait ready, so that no worker idles. Those of our own schedulers wait in the scheduler, as soon as it
        has seen enough tasks to do so (`submitted`), and do not share the fate of the worker they would wait in.
        """
        if self.kind == "address":
            cap = self._settings.workers or slots
            return max(1, min(cap, slots) if cap < slots else slots + -(-slots // 8))
        if at_most < slots:
            return at_most
        if self.kind == "threads":
            return 2 * slots
        return max(1, 2 * slots if submitted > 2 * slots else slots)

    def tend(self) -> None:
        """Keep the workers coming; to be called now and then. Raises RefusedError where none will."""
        self._tend()

    def close(self) -> None:
        """Stop the workers that are ours."""
        if self._open is not None:
            (manager, client), self._open = self._open, None
            if self.remote and client.status == "running":
                client.unsubscribe_topic("all")
            manager.__exit__(None, None, None)

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _manager(self) -> AbstractContextManager[Any]:
        if self.kind == "address":
            return quietly(address_client(_address(self._settings.cluster or "")))
        if self.kind == "slurm":
            from mrbcr_cli.stream.cluster_slurm import SlurmJobs

            jobs = SlurmJobs(self._settings)
            self._tend = jobs.tend
            return quietly(jobs.client(), "dask_jobqueue")
        from mrbcr_cli.stream.cluster_local import processes_client, threads_client

        if self.kind == "local":
            return quietly(processes_client(self.threads, self._device))
        return threads_client(self.threads)

    def _event(self, event: tuple[float, Any]) -> None:
        """What the scheduler says of itself; comes in a thread of dask."""
        about = event[1]
        if self.on_lost is not None and isinstance(about, dict) and about.get("action") == "remove-worker":
            self.on_lost(str(about.get("worker")), frozenset(about.get("processing-tasks", ())))

    def _say_dashboard(self, client: Any) -> None:
        try:
            link = client.dashboard_link
        except KeyError:
            return  # a scheduler without one
        ours_without = self.kind != "address" and importlib.util.find_spec("bokeh") is None
        if link and not ours_without:
            self.say(f"dask dashboard: {link}")


@contextmanager
def address_client(address: str) -> Iterator[Any]:
    """A client of a scheduler that runs somewhere; its workers are left as they are."""
    from distributed import Client

    try:
        client = Client(address, timeout=_ANSWER_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(f"--cluster {address}: no dask scheduler answers there ({error})") from error
    with client:
        yield client


def _address(text: str) -> str:
    """The address that is meant: itself, or what a scheduler file says. Raises InputError."""
    if "://" in text:
        return text
    try:
        address = json.loads(Path(text).read_text(encoding="utf-8"))["address"]
    except OSError as error:
        raise InputError(f"--cluster {text}: cannot read the scheduler file ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"--cluster {text}: not a scheduler file of dask (no address in it)") from error
    if not isinstance(address, str) or "://" not in address:
        raise InputError(f"--cluster {text}: not a scheduler file of dask (no address in it)")
    return address


def _check_listens(address: str) -> None:
    host, _, port = address.split("://", 1)[1].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_LISTEN_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"--cluster {address}: nobody listens there ({error}); start: dask scheduler") from error


@contextmanager
def quietly(manager: AbstractContextManager[Any], *more: str) -> Iterator[Any]:
    """Keep dask's own log from the user's terminal: what matters of it is said by the drive."""
    loggers = [logging.getLogger(name) for name in ("distributed", "asyncio", "tornado", *more)]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with manager as value:
            yield value
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
