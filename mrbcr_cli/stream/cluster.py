"""Where blocks run: a dask client. The same engine drives threads of this process and nodes of a cluster.

Invariant: this module is the only one that knows how workers come to be; what they run is `engine.run_block`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def local_client(workers: int) -> Iterator[Any]:
    """A client whose workers are `workers` threads of this process; it listens on this machine alone, any free port.

    Threads, because PyTorch, zarr's codecs and imagecodecs release the GIL: one copy of the weights serves all.
    """
    import logging

    import dask
    from distributed import Client, LocalCluster

    # A busy machine makes distributed's own heartbeats late; asyncio would report them in the user's log at exit.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)

    quiet = {
        # The engine bounds memory by its window; the worker must not pause or spill on top of it.
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": False,
        # Long calls that hold the GIL for a moment are normal here.
        "distributed.admin.tick.limit": "1h",
        "distributed.scheduler.worker-ttl": None,
        # The scheduler's diary of every message would grow with the number of blocks.
        "distributed.admin.low-level-log-length": 0,
    }
    with (
        dask.config.set(quiet),
        LocalCluster(
            n_workers=1,
            threads_per_worker=workers,
            processes=False,
            # None would still listen, on port 8787 of every interface, and two runs on a node would collide.
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            memory_limit=0,
            silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


class Clients:
    """A dask client, made when the first block needs one and kept warm for the next file."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        """Threads of the client: the most that any file of the batch may use."""
        self._open: tuple[Any, Any] | None = None

    def get(self) -> Any:
        """The client."""
        if self._open is None:
            manager = local_client(self.workers)
            self._open = (manager, manager.__enter__())
        return self._open[1]

    def window(self, workers: int) -> int:
        """How many blocks to keep under way so that no more than `workers` of them run at a time.

        One more a worker waits ready where the client itself is the limit, so that no thread idles.
        """
        return 2 * workers if workers >= self.workers else workers

    def close(self) -> None:
        """Stop the workers."""
        if self._open is not None:
            manager, self._open = self._open[0], None
            manager.__exit__(None, None, None)

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
