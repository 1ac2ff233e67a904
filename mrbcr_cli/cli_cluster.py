"""Options of where blocks run, for `mrbcr deconvolve`: their names and help.

Invariant: every default is None here, as in `cli_options`; the real one is in ClusterSettings and said in the help.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _option(*names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Cluster", **more)


Cluster = Annotated[
    str | None,
    _option(
        metavar="local|slurm|ADDRESS",
        help="Blocks on processes here, on SLURM jobs, or on the workers of a dask scheduler (tcp://host:port or its "
        "scheduler file). Default: threads of this process.",
    ),
]
ClusterConfig = Annotated[
    Path | None, _option(metavar="FILE", help="YAML with any of these options; also job-prologue, interface.")
]
BlockTimeout = Annotated[
    float | None, _option(metavar="SECONDS", help="End a worker that takes longer at a block. Default: never.")
]
Jobs = Annotated[int | None, _option(help="SLURM jobs to keep running. Default: 1.")]
Cores = Annotated[int | None, _option(help="Cores of a job. Default: 4.")]
Memory = Annotated[str | None, _option(metavar="SIZE", help="Memory of a job. Default: 16GB.")]
GpusPerJob = Annotated[int | None, _option(help="GPUs of a job, a worker each. Default: 0.")]
Walltime = Annotated[str | None, _option(metavar="TIME", help="Of a job, e.g. 04:00:00. Default: SLURM's.")]
Queue = Annotated[str | None, _option(help="Partition of the jobs. Default: SLURM's.")]
Account = Annotated[str | None, _option(help="Account of the jobs. Default: SLURM's.")]
JobExtra = Annotated[
    list[str] | None, _option(metavar="DIRECTIVE", help="Another #SBATCH directive, e.g. --constraint=avx512 (repeat).")
]
