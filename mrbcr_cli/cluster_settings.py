"""What a user may set of where blocks run: threads here, processes here, a dask scheduler, jobs of SLURM.

Invariant: options that would mean nothing are refused, so that settings that exist say all about the workers; which
workers come, and whether they can do the work, is found out when they are asked for.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

ClusterKind = Literal["threads", "local", "slurm", "address"]

_SLURM_ONLY = (
    *("jobs", "cores", "memory", "gpus_per_job", "walltime", "queue", "account", "job_extra"),
    *("job_prologue", "interface"),
)


class ClusterSettings(BaseModel):
    """The options of `--cluster`, each with its name on the command line; a base of DeconvolveSettings."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    cluster: str | None = None
    """None: threads of this process. "local", "slurm", or the address or scheduler file of a dask scheduler."""
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Blocks at a time; of "local": processes."""
    block_timeout: Annotated[float, Field(gt=0)] | None = None
    """Seconds after which a block that is not done counts as hung, and its worker is ended."""

    jobs: Annotated[int, Field(ge=1, le=10_000)] = 1
    cores: Annotated[int, Field(ge=1, le=4096)] = 4
    """Of a job."""
    memory: str = "16GB"
    """Of a job."""
    gpus_per_job: Annotated[int, Field(ge=0, le=64)] = 0
    walltime: str | None = None
    queue: str | None = None
    account: str | None = None
    job_extra: tuple[str, ...] = ()
    """Further #SBATCH directives, such as --constraint=avx512."""
    job_prologue: tuple[str, ...] = ()
    """Lines of shell before the worker starts (module load, activate). Default: none."""
    interface: str | None = None
    """Network interface by which workers reach the scheduler, such as ib0. Default: the system's."""

    @property
    def kind(self) -> ClusterKind:
        """Where the workers come from."""
        if self.cluster is None:
            return "threads"
        if self.cluster == "local":
            return "local"
        return "slurm" if self.cluster == "slurm" else "address"

    @property
    def processes_per_job(self) -> int:
        """Worker processes of a SLURM job: one for each GPU, else one that has all cores of the job."""
        return max(1, self.gpus_per_job)

    @field_validator("job_extra", "job_prologue", mode="before")
    @classmethod
    def _one_line_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("job_extra", "job_prologue", "queue", "account", "walltime", "interface")
    @classmethod
    def _one_line(cls, value: Any) -> Any:
        for text in (value,) if isinstance(value, str) else value or ():
            if not text.strip() or "\n" in text:
                raise ValueError("must be text of one line")
        return value

    @field_validator("walltime", mode="before")
    @classmethod
    def _walltime_text(cls, value: Any) -> Any:
        """YAML writes minutes as a number."""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("walltime")
    @classmethod
    def _walltime_of_slurm(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", value):
            raise ValueError("must look like 90 (minutes), 12:00:00 or 2-00:00:00")
        return value

    @field_validator("memory")
    @classmethod
    def _size(cls, value: str) -> str:
        if not re.fullmatch(r"\d+(\.\d+)?\s*[KMGT]i?B?", value, re.IGNORECASE):
            raise ValueError("must be a size such as 16GB")
        return value

    @model_validator(mode="after")
    def _has_a_use(self) -> ClusterSettings:
        if self.kind != "slurm":
            for name in _SLURM_ONLY:
                if name in self.model_fields_set:
                    raise ValueError(f"--{name.replace('_', '-')} needs --cluster slurm")
        if self.kind == "threads" and self.block_timeout is not None:
            raise ValueError("--block-timeout needs --cluster: a thread of this process cannot be ended; use local")
        if self.kind == "address":
            _check_address(self.cluster or "")
        return self


def _check_address(text: str) -> None:
    """Refuse what is neither tcp://host:port, tls://host:port nor the name of a scheduler file."""
    if "://" in text:
        if not re.fullmatch(r"(tcp|tls)://(\[[0-9a-fA-F:]+\]|[^\s/:]+):\d{1,5}", text):
            raise ValueError(f"--cluster {text}: an address looks like tcp://host:8786")
    elif not text.endswith(".json"):
        raise ValueError(f"--cluster {text}: must be local, slurm, an address such as tcp://host:8786, or a .json file")
