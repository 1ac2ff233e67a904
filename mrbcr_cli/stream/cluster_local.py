"""Workers on this machine: threads of this process, or processes that it starts and that end with it.

Invariant: whatever ends this process ends its workers; and a terminal's Ctrl-C reaches this process alone.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

QUIET = {
    # The engine bounds memory by its window; the worker must not pause or spill on top of it.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    # Long calls that hold the GIL for a moment are normal here.
    "distributed.admin.tick.limit": "1h",
    # A sample of every worker's stack each 10 ms costs more than it tells.
    "distributed.worker.profile.enabled": False,
    # The scheduler's diary of every message would grow with the number of blocks.
    "distributed.admin.low-level-log-length": 0,
}
SCHEDULER = {
    # A worker gets a block when it is free for it: one that dies takes no waiting blocks along.
    "distributed.scheduler.worker-saturation": 1.0,
    # A block goes to a third worker when two died over it, and no further.
    "distributed.scheduler.allowed-failures": 2,
    # A worker that has not been heard of for so long (a machine that hangs) has lost its block.
    "distributed.scheduler.worker-ttl": "5 minutes",
    # Blocks are long and all alike: moving them about gains nothing.
    "distributed.scheduler.work-stealing": False,
}
"""How schedulers of ours work, beside `QUIET`."""
SILENT = logging.CRITICAL + 1
"""Level of dask's own log: what matters of it is said by the drive."""


def extensions() -> dict[str, Any]:
    """The parts of our schedulers: dask's, but for one that moves tasks, and one that keeps a note of every task."""
    from distributed.scheduler import DEFAULT_EXTENSIONS
    from distributed.spans import SpansSchedulerExtension

    class NoSpans(SpansSchedulerExtension):
        """Keeps nothing: a span would remember each block ever submitted."""

        def observe_tasks(self, *_: Any, **__: Any) -> dict[Any, Any]:
            return {}

        def heartbeat(self, *_: Any) -> None:
            return None

    return {name: part for name, part in DEFAULT_EXTENSIONS.items() if name != "stealing"} | {"spans": NoSpans}


@contextmanager
def threads_client(workers: int) -> Iterator[Any]:
    """A client whose workers are `workers` threads of this process; it listens on this machine alone, any free port.

    Threads, because PyTorch, zarr's codecs and imagecodecs release the GIL: one copy of the weights serves all.
    """
    import dask
    from distributed import Client, LocalCluster

    # A busy machine makes distributed's own heartbeats late; asyncio would report them in the user's log at exit.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    with (
        dask.config.set({**QUIET, "distributed.scheduler.worker-ttl": None}),
        LocalCluster(
            n_workers=1,
            threads_per_worker=workers,
            processes=False,
            # None would still listen, on port 8787 of every interface, and two runs on a node would collide.
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            memory_limit=0,
            silence_logs=50,
            scheduler_kwargs={"extensions": extensions()},
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def processes_client(count: int, device: str) -> Iterator[Any]:
    """A client of `count` processes of this machine, each with one thread for blocks; with GPUs, each sees one."""
    import dask
    from distributed import Client, Nanny, Scheduler, SpecCluster

    from mrbcr_cli.stream.worker import OURS

    common = {"nthreads": 1, "host": "127.0.0.1", "memory_limit": 0, "silence_logs": SILENT, "dashboard": False}
    gpus = _gpus(device)
    workers = {
        number: {
            "cls": Nanny,
            "options": {
                **common,
                "env": {OURS: "local", **({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {})},
            },
        }
        for number in range(count)
    }
    scheduler = {
        "cls": Scheduler,
        "options": {
            "host": "127.0.0.1",
            "port": 0,
            "protocol": "tcp://",
            "dashboard_address": "127.0.0.1:0",
            "extensions": extensions(),
        },
    }
    with ExitStack() as stack:
        stack.enter_context(dask.config.set({**QUIET, **SCHEDULER}))
        with _deaf_children():
            cluster = stack.enter_context(SpecCluster(workers=workers, scheduler=scheduler, silence_logs=SILENT))
        yield stack.enter_context(Client(cluster, set_as_default=False))


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Threads that are begun here, and the processes these begin, never see Ctrl-C and SIGUSR1: this process decides.

    The processes are begun, and begun again when they die, by the thread of dask that is made here.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # it would lift the block of signals when it comes with the first process
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _gpus(device: str) -> list[str]:
    """The GPUs to share out, as CUDA_VISIBLE_DEVICES names them; none where a device was chosen by number, or none is.

    Raises InputError for a device that is not there.
    """
    from mrbcr_cli.restore import resolve_device

    if resolve_device(device) != "cuda":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return visible.split(",")
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
