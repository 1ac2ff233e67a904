"""How large the blocks are and how many run at once, from what the methods need and what the machine has.

Invariant: a block that is planned fits the memory at hand by the stated bytes per voxel; what a user fixes
(--tile-size, --workers) is kept, and everything else gives way.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.base import ImageInfo
from mrbcr_cli.settings import DeconvolveSettings
from mrbcr_cli.stream.blocks import Grid, balanced_tile, round_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mrbcr_cli.restore import Method

BASE_BYTES = 600_000_000
"""The process with torch, dask and zarr loaded, before any block (measured: about 450 MB)."""

_DEFAULT_TILE_PX = 2048
_SMALLEST_TILE_PX = 256
_BLOCK_BYTES = 500_000_000
"""Blocks are kept to this on a CPU, so that a network takes less than 1.5 GB on two cores, and those of methods that
need depth everywhere, so that a deep stack does not become one block."""
_SHARED_TILE_PX = 512
"""A block of a hungry network is not made smaller than this for that: it takes twice as much, and half as many run at
once, with more threads each. Cut further, more of it would be rim than image."""


@dataclass(frozen=True)
class Needs:
    """What all methods of a run together ask of a block."""

    alignment_px: int
    halo_zyx: tuple[int, int, int]
    bytes_per_voxel: int

    @classmethod
    def of(cls, methods: Sequence[Method]) -> Needs:
        """The least common multiple of the alignments, the largest halo and memory."""
        alignment = int(np.lcm.reduce([m.alignment_px for m in methods]))
        z, y, x = (max(m.halo_zyx[k] for m in methods) for k in range(3))
        halo = (z, round_up(y, alignment), round_up(x, alignment))
        return cls(alignment, halo, max(m.bytes_per_voxel for m in methods))


@dataclass(frozen=True)
class Share:
    """How the machine is shared out among blocks.

    A core each, unless a block would be too small for that (`at_once`): two threads on one block take less memory, but
    wait for each other where a third one reads and writes.
    Measured on 2 cores, 1024 x 2048 px blocks: 12.7 s with a core each, 14.4 s with both on one, 13.7 s with no reader.
    """

    workers: int
    torch_threads: int
    bytes_per_block: int
    processes: int = 1


def choose_grid(
    settings: DeconvolveSettings,
    info: ImageInfo,
    needs: Needs,
    shape: tuple[int, ...],
    offset: tuple[int, ...],
    picks: dict[str, tuple[int, ...]],
    preferred_px: int | None = None,
) -> Grid:
    """Return the blocks of a run: `shape`, `offset` and `picks` as Grid has them.

    `preferred_px` takes the place of the default tile size. Raises InputError for one that the methods cannot take.
    """
    align = needs.alignment_px
    if settings.tile_size is not None and settings.tile_size % align:
        nearest = max(round_up(settings.tile_size, align), align)
        raise InputError(
            f"--tile-size {settings.tile_size}: must be a multiple of {align} for this model; use {nearest}"
        )
    planes = shape[info.axes.index("Z")] if "Z" in info.axes else 1
    deep = needs.halo_zyx[0] > 0
    depth = planes if deep else min(settings.batch_size, planes)
    memory = memory_for_blocks(settings)
    bounded = deep or not (preferred_px or on_gpu(settings))
    largest = min(preferred_px or _DEFAULT_TILE_PX, max(info.size("Y"), info.size("X")))
    rows = columns = settings.tile_size or round_up(largest, align)

    def too_large() -> bool:
        most = min(memory, _BLOCK_BYTES * (1 + _may_share(needs, (rows, columns)))) if bounded else memory
        return block_bytes(info, needs, (depth, rows, columns)) > most

    while settings.tile_size is None and columns > _SMALLEST_TILE_PX and too_large():
        # Halves of a tile before its quarters: the less rim, the less is computed twice.
        if rows == columns:
            rows = round_up(rows // 2, align)
        else:
            columns = rows
    while depth > 1 and too_large() and (not deep or depth > 2 * needs.halo_zyx[0]):
        depth = -(-depth // 2)
    sizes = {"Z": depth, "Y": rows, "X": columns}
    if settings.tile_size is None:
        sizes |= {axis: balanced_tile(shape[info.axes.index(axis)], sizes[axis], align) for axis in "YX"}
    halo = dict(zip("ZYX", needs.halo_zyx, strict=True))
    return Grid(
        axes=info.axes,
        input_shape=info.shape,
        shape=shape,
        block_shape=tuple(min(sizes.get(a, 1), round_up(n, align)) for a, n in zip(info.axes, shape, strict=True)),
        halo=tuple(halo.get(axis, 0) for axis in info.axes),
        offset=offset,
        picks=picks,
    )


def share_out(settings: DeconvolveSettings, info: ImageInfo, needs: Needs, grid: Grid) -> Share:
    """Return how many blocks run at a time: what the user says, else the cores that memory allows.

    Of the workers of a cluster only what is asked of SLURM is known beforehand.
    """
    by_axis = dict(zip(grid.axes, grid.block_shape, strict=True))
    need = block_bytes(info, needs, (by_axis.get("Z", 1), by_axis["Y"], by_axis["X"]))
    if settings.kind == "slurm":
        workers = min(settings.workers or settings.jobs * settings.processes_per_job, len(grid))
        return Share(workers, max(1, settings.cores // settings.processes_per_job), need, workers)
    if settings.kind == "address":
        workers = min(settings.workers or cpu_count(), len(grid))
        return Share(workers, 1, need, workers)  # `drive` finds out what each worker has
    workers = settings.workers or default_workers(settings)
    if settings.workers is None:
        if not on_gpu(settings):
            workers = at_once(needs, need, (by_axis["Y"], by_axis["X"]), workers)
        each = need + (BASE_BYTES if settings.kind == "local" else 0)
        workers = max(1, min(workers, memory_for_blocks(settings) // max(each, 1)))
    workers = min(workers, len(grid))
    return Share(workers, max(1, cpu_count() // workers), need, workers if settings.kind == "local" else 1)


def at_once(needs: Needs, need: int, core_yx: tuple[int, int], cores: int) -> int:
    """How many blocks of `need` bytes run on so many cores of a CPU."""
    return max(1, cores // 2) if need > _BLOCK_BYTES and _may_share(needs, core_yx) else cores


def _may_share(needs: Needs, core_yx: tuple[int, int]) -> bool:
    return needs.halo_zyx[0] == 0 and max(core_yx) <= _SHARED_TILE_PX


def block_bytes(info: ImageInfo, needs: Needs, core_zyx: tuple[int, int, int]) -> int:
    """Peak memory of one block of this core size, halo included."""
    z, y, x = (
        min(core + 2 * halo, info.size(axis)) for core, halo, axis in zip(core_zyx, needs.halo_zyx, "ZYX", strict=True)
    )
    return z * y * x * needs.bytes_per_voxel


def memory_for_blocks(settings: DeconvolveSettings) -> int:
    """Bytes that all blocks of a process may take: 70 % of the free memory, of the host and on a GPU of the device too.

    A SLURM job has what is asked for it; workers at an address are taken to have no less than this machine.
    """
    from mrbcr_cli.restore import device_memory_bytes, resolve_device

    if settings.kind == "slurm":
        asked = size_bytes(settings.memory) // settings.processes_per_job
        return max(int(asked * 0.7) - BASE_BYTES, BASE_BYTES // 2)
    host = max(int(available_memory_bytes() * 0.7) - BASE_BYTES, BASE_BYTES)
    if settings.kind == "address":
        return host
    on_device = device_memory_bytes(resolve_device(settings.device))
    return host if on_device is None else min(host, int(on_device * 0.7))


def size_bytes(text: str) -> int:
    """Bytes of a size such as 16GB (10^9 bytes) or 16GiB (2^30); ClusterSettings has checked how it is written."""
    number, unit = re.fullmatch(r"([\d.]+)\s*(\w+)", text).groups()  # type: ignore[union-attr]
    return int(float(number) * (1024 if "i" in unit.lower() else 1000) ** ("KMGT".index(unit[0].upper()) + 1))


def default_workers(settings: DeconvolveSettings) -> int:
    """Blocks at a time: a core each on a CPU; two on a GPU, so that one reads and writes while the other computes.

    Processes of --cluster local are one for each GPU.
    """
    if not on_gpu(settings):
        return cpu_count()
    if settings.kind != "local":
        return 2
    import torch

    return torch.cuda.device_count()


def on_gpu(settings: DeconvolveSettings) -> bool:
    """Whether this machine would compute on a GPU."""
    from mrbcr_cli.restore import resolve_device

    return resolve_device(settings.device).startswith("cuda")


def available_memory_bytes() -> int:
    """Memory this process may still take: the lower of what the machine and its control group (SLURM) leave free."""
    candidates = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123 - a kernel file
            candidates += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        pass  # not Linux: the physical size must do
    return min([*candidates, *_cgroup_headroom()])


def _cgroup_headroom() -> list[int]:
    found = []
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            with open(limit_file, encoding="ascii") as limit, open(used_file, encoding="ascii") as used:  # noqa: PTH123
                found.append(max(int(limit.read()) - int(used.read()), 0))
        except (OSError, ValueError):
            continue  # no such control group, or "max": no limit
    return found


@functools.cache
def cpu_count() -> int:
    """Cores this process may use (SLURM and taskset restrict it)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def cpu_info() -> tuple[str, set[str]]:
    """Name of the processor and the flags of its instructions, as Linux tells them; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "", set()
    values: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        values.setdefault(name.strip().lower(), value.strip())
    return values.get("model name", ""), set((values.get("flags") or values.get("features") or "").split())
