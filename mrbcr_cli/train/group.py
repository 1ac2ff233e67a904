"""The processes of a run: one, or many under torchrun or srun, which average their gradients.

Invariant: with one process nothing of torch.distributed is touched; with many, whatever decides the course of the run
(stop, elapsed time, validation) is the same number in all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mrbcr_cli.errors import InputError

_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}


@dataclass(frozen=True)
class Group:
    """This process among `size`; rank 0 writes."""

    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def wrap(self, network: nn.Module, device: str) -> nn.Module:
        """The network with its gradients averaged over the group."""
        if self.size == 1:
            return network
        devices = [torch.device(device)] if device.startswith("cuda") else None
        return nn.parallel.DistributedDataParallel(network, device_ids=devices)

    def no_sync(self, network: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
        """Leave the averaging out where gradients go on adding up."""
        if wanted and isinstance(network, nn.parallel.DistributedDataParallel):
            context: AbstractContextManager[Any] = network.no_sync()
            return context
        return nullcontext()

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return self._reduce(float(flag), "max") > 0

    def mean(self, value: float) -> float:
        """Mean over the processes."""
        return value if self.size == 1 else self._reduce(value, "sum") / self.size

    def same(self, value: float) -> float:
        """The value of rank 0 in all."""
        return self._reduce(value if self.rank == 0 else 0.0, "sum")

    def _reduce(self, value: float, how: str) -> float:
        if self.size == 1:
            return value
        import torch.distributed as dist

        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        tensor = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX if how == "max" else dist.ReduceOp.SUM)
        return float(tensor)


def local_rank() -> int:
    """This process's number on its node: the GPU it takes."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))


def under_launcher() -> bool:
    """Whether torchrun, or srun with several tasks, began this process."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return True
    return int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ


@contextmanager
def join_group(device: str) -> Iterator[Group]:
    """Join the processes that torchrun or srun began (gloo on CPUs, nccl on GPUs); alone where there are none.

    Raises InputError when srun's tasks do not know where to meet.
    """
    if not under_launcher():
        yield Group()
        return
    import torch.distributed as dist

    for name, slurm in _SLURM.items():
        if name not in os.environ:
            os.environ[name] = os.environ[slurm]
    if "MASTER_ADDR" not in os.environ:
        raise InputError(
            "under srun, MASTER_ADDR and MASTER_PORT must say where the tasks meet; see examples/training/README.md"
        )
    os.environ.setdefault("MASTER_PORT", "29400")
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
        dist.barrier()  # none hangs up while another still talks; after an error the others may never come here
    finally:
        dist.destroy_process_group()
