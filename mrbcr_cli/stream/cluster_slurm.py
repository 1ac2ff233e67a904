"""Workers as jobs of SLURM, by dask-jobqueue: a scheduler in this process, jobs that connect to it.

Invariant: there are as many jobs as were asked for, in the queue or running, until the run ends: one that ends (its
time is up, its node is taken) is submitted again; and none outlives the run for longer than it takes to notice its end.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mrbcr_cli.cluster_settings import ClusterSettings
from mrbcr_cli.errors import InputError
from mrbcr_cli.stream.engine import RefusedError

_RESUBMIT_S = 10.0


def check_slurm() -> None:
    """Raise InputError where jobs cannot be submitted from here."""
    if importlib.util.find_spec("dask_jobqueue") is None:
        raise InputError("--cluster slurm: needs dask-jobqueue; pip install 'mrbcr[cluster]'")
    for program in ("sbatch", "scancel"):
        if shutil.which(program) is None:
            raise InputError(
                f"--cluster slurm: there is no {program} on PATH; run this where SLURM jobs are submitted, "
                "or use --cluster local"
            )


class SlurmJobs:
    """The jobs of one run."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._cluster: Any = None
        self._problems: list[str] = []
        self._next_look = 0.0

    @contextmanager
    def client(self) -> Iterator[Any]:
        """Submit the jobs and yield a client of their scheduler; cancel them at the end."""
        import dask
        from dask_jobqueue.slurm import SLURMCluster
        from distributed import Client

        from mrbcr_cli.stream.cluster_local import QUIET, SCHEDULER

        with dask.config.set({**QUIET, **SCHEDULER}):
            self._cluster = SLURMCluster(job_cls=_job_class(self._problems.append), **job_options(self._settings))
            try:
                self._cluster.scale(jobs=self._settings.jobs)
                with Client(self._cluster, set_as_default=False) as client:
                    yield client
            finally:
                with suppress(TimeoutError, OSError, RuntimeError):  # scancel fails when the jobs are gone
                    self._cluster.close()

    def tend(self) -> None:
        """Submit again what has ended. Raises RefusedError where SLURM does not take the jobs."""
        if self._problems:
            raise RefusedError(f"--cluster slurm: {self._problems[0]}")
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _RESUBMIT_S
            self._cluster.scale(jobs=self._settings.jobs)


def job_options(settings: ClusterSettings) -> dict[str, Any]:
    """What SLURMCluster is told: one process for each GPU of a job (else one), each with one thread for blocks."""
    from mrbcr_cli.stream.cluster_local import SILENT, extensions
    from mrbcr_cli.stream.worker import OURS

    processes = settings.processes_per_job
    gpus = [f"--gres=gpu:{settings.gpus_per_job}"] if settings.gpus_per_job else []
    # Memory is bounded by the one block of a process; a worker that paused at 80 % would never go on.
    settled = [
        f"export {OURS}=slurm-{processes}",
        *(f"export DASK_DISTRIBUTED__WORKER__MEMORY__{what}=False" for what in ("TARGET", "SPILL", "PAUSE")),
        "export DASK_DISTRIBUTED__ADMIN__TICK__LIMIT=1h",
    ]
    return {
        "cores": processes,
        "processes": processes,
        "job_cpu": settings.cores,
        "memory": settings.memory,
        "walltime": settings.walltime,
        "queue": settings.queue,
        "account": settings.account,
        "interface": settings.interface,
        "job_name": "mrbcr-worker",
        "job_extra_directives": [*gpus, *settings.job_extra],
        "job_script_prologue": [*settled, *settings.job_prologue],
        "silence_logs": SILENT,
        "scheduler_options": {"dashboard_address": ":0", "extensions": extensions()},
    }


def _job_class(report: Callable[[str], None]) -> Any:
    """A SLURMJob that reports, in a line, why sbatch refused it, where dask-jobqueue would log a traceback."""
    from dask_jobqueue.slurm import SLURMJob
    from distributed.core import Status

    class Job(SLURMJob):
        async def start(self) -> None:
            try:
                await super().start()
            except (RuntimeError, ValueError, OSError) as error:
                report(_refusal(str(error)))
                self.status = Status.running  # SpecCluster takes nothing else; `tend` ends the run

        async def close(self) -> None:
            await super().close()
            self.status = Status.closed

    return Job


def _refusal(text: str) -> str:
    """What sbatch said, out of dask-jobqueue's report of it."""
    said = text.partition("stderr:")[2] or text
    return f"sbatch refused the job ({' '.join(said.split())[:300]})"
