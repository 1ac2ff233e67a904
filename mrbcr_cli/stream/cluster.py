"""Where blocks run: a dask client. The same engine drives threads of this process and nodes of a cluster.

Invariant: this module is the only one that knows how workers come to be; what they run is `engine.run_block`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def local_client(workers: int) -> Iterator[Any]:
    """A client whose workers are `workers` threads of this process; no network port is opened.

    Threads, because PyTorch, zarr's codecs and imagecodecs release the GIL: one copy of the weights serves all.
    """
    import dask
    from distributed import Client, LocalCluster

    quiet = {
        # The engine bounds memory by its window; the worker must not pause or spill on top of it.
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": False,
        # Long calls that hold the GIL for a moment are normal here.
        "distributed.admin.tick.limit": "1h",
        "distributed.scheduler.worker-ttl": None,
    }
    with (
        dask.config.set(quiet),
        LocalCluster(
            n_workers=1,
            threads_per_worker=workers,
            processes=False,
            dashboard_address=None,
            memory_limit=0,
            silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


class Clients:
    """Dask clients, made when the first block needs one and kept for the next file."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[Any, Any]] = {}

    def get(self, workers: int) -> Any:
        """A client with `workers` threads."""
        if workers not in self._open:
            self.close()
            manager = local_client(workers)
            self._open[workers] = (manager, manager.__enter__())
        return self._open[workers][1]

    def close(self) -> None:
        """Stop the workers."""
        while self._open:
            _, (manager, _client) = self._open.popitem()
            manager.__exit__(None, None, None)

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
