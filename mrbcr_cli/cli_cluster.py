"""Options of where blocks run, for `mrbcr deconvolve`: their names and help.

Invariant: every default is None here, as in `cli_options`; the real one is in ClusterSettings and said in the help.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mrbcr_cli.cli_help import option

CLUSTER = "Cluster; options of SLURM jobs: --help-all"


Cluster = Annotated[
    str | None,
    option(
        CLUSTER,
        metavar="WHERE",
        complete=("local", "slurm"),
        help="Processes here (local), SLURM jobs (slurm), or a dask scheduler (tcp://host:port or its .json). "
        "Default: threads.",
    ),
]
ClusterConfig = Annotated[
    Path | None,
    option(CLUSTER, metavar="YAML", help="File of the site with the options of this panel. Default: none."),
]
BlockTimeout = Annotated[
    float | None,
    option(CLUSTER, metavar="SECONDS", rare=True, help="End a worker that takes longer at a block. Default: never."),
]
Jobs = Annotated[int | None, option(CLUSTER, metavar="N", rare=True, help="SLURM jobs to keep running. Default: 1.")]
Cores = Annotated[int | None, option(CLUSTER, metavar="N", rare=True, help="Cores of a job. Default: 4.")]
Memory = Annotated[str | None, option(CLUSTER, metavar="SIZE", rare=True, help="Memory of a job. Default: 16GB.")]
GpusPerJob = Annotated[
    int | None, option(CLUSTER, metavar="N", rare=True, help="GPUs of a job, a worker each. Default: 0.")
]
Walltime = Annotated[
    str | None, option(CLUSTER, metavar="TIME", rare=True, help="Time limit of a job, e.g. 04:00:00. Default: SLURM's.")
]
Queue = Annotated[
    str | None, option(CLUSTER, metavar="NAME", rare=True, help="Partition of the jobs. Default: SLURM's.")
]
Account = Annotated[
    str | None, option(CLUSTER, metavar="NAME", rare=True, help="Account of the jobs. Default: SLURM's.")
]
JobExtra = Annotated[
    list[str] | None,
    option(
        CLUSTER,
        metavar="TEXT",
        rare=True,
        help="Another #SBATCH directive, e.g. --constraint=avx512; repeat. Default: none.",
    ),
]
