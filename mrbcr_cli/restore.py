"""The network as a method: intensities in, intensities out, one affine map per channel of the whole image.

Invariant: a pixel of the result depends on the pixels within the halo, the weights, the channel's intensity range and
the precision, and on nothing else: not on the tile, the batch, the worker or the order. Input and output are float32 in
the image's own units.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import os
import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.lanes import Lanes
from mrbcr_cli.network import MIN_SIZE_PX

if TYPE_CHECKING:
    from mrbcr_cli.intensity import IntensityRange
    from mrbcr_cli.stream.blocks import Borders

Precision = Literal["fp32", "bf16", "fp16"]
FloatBlock = NDArray[np.float32]

Edges = tuple[bool, bool, bool, bool]
"""Where a block ends at the image's border: top, bottom, left, right."""
Runner = Callable[[Any, Edges], Any]
"""From a batch (N, 1, H, W) float32 on the device to the deconvolved one; it does not write to the batch."""

_MIN_TILE_PX = 64
_LARGE_BYTES = 1_100_000_000
"""Resident memory of a process above which what lies idle is given back."""
_RUNNERS = 16
"""Channels whose kernels are kept; each takes about a megabyte."""


class Method(Protocol):
    """What the engine knows of a deconvolution method, be it a network or an explicit one."""

    alignment_px: int
    """Y and X starts of what it is given are multiples of this in the coordinates of the whole image."""
    halo_zyx: tuple[int, int, int]
    """Context to read around a block; z is 0 for methods that work plane by plane."""
    bytes_per_voxel: int
    """Peak memory of a block for each voxel read, buffers included; measured."""
    guided: bool
    """Whether it wants the spectrum of the whole channel with the intensity range."""
    affine: bool
    """Whether intensities may be shifted together with their range and back without changing the result."""

    def restore(self, block_zyx: FloatBlock, intensity: IntensityRange, at_border: Borders) -> FloatBlock:
        """Deconvolve a block read with its halo: (Z, Y, X) float32 in image units, to the same shape and units.

        `at_border` has a (low, high) pair for z, y, x: where the block ends at the true border of the image.
        """
        ...

    def take_notes(self) -> tuple[str, ...]:
        """Return and forget the sentences that the user must see (a fallback that was taken)."""
        ...


def tune_allocator() -> bool:
    """Keep freed activations in the process instead of returning them to the kernel at every layer (glibc only).

    Half of a CPU forward pass is page faults otherwise. One arena, so that the memory that one thread frees serves the
    next. Returns whether it took effect.
    """
    if sys.platform != "linux":
        return False
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # M_* of <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False  # musl has none
    done = [mallopt(arena_max, 1), mallopt(mmap_threshold, 1 << 30), mallopt(trim_threshold, 2**31 - 1)]
    return all(done)


def give_back_idle_memory() -> None:
    """Hand the pages of freed activations to the kernel where the process has grown large (glibc; elsewhere nothing).

    Not always: to get them again takes as long as a part of the network.
    """
    try:
        with open("/proc/self/statm", encoding="ascii") as sizes:  # noqa: PTH123 - a kernel file
            resident = int(sizes.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return
    if resident > _LARGE_BYTES:
        with contextlib.suppress(AttributeError):  # musl has none
            ctypes.CDLL(None).malloc_trim(0)


def resolve_device(name: str) -> str:
    """Return "cpu", "cuda" or "cuda:N" for "auto" or one of these. Raises InputError when it is not there."""
    import torch

    if check_device_name(name) == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise InputError(
                f"--device {name}: this PyTorch ({torch.__version__}) sees no CUDA device; use --device cpu"
            )
        if device.index is not None and device.index >= count:
            raise InputError(f"--device {name}: there are {count} CUDA devices, numbered from 0")
    return name


def check_device_name(name: str) -> str:
    """Return `name` where it is one that some machine may have. Raises InputError."""
    import torch

    if name == "auto":
        return name
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: only cpu and cuda devices are supported")
    return name


@dataclass(frozen=True)
class NetworkSpec:
    """All that is needed to build a Restorer in another process; small and picklable."""

    weights: str
    """Path of the weights file, or the name of an embedded model."""
    sha256: str
    device: str
    """ "auto" is resolved where the restorer is built, so that workers may have different devices."""
    precision: Precision
    batch_size: int
    halo_px: int
    graphs: bool = False
    """Whether a CUDA device gets the kernels of a tile as one graph."""

    def build(self) -> Restorer:
        """Load the weights and build the restorer. Raises InputError when the file is not the one that was planned."""
        from mrbcr_cli.weights import build_network, load_weights

        loaded = load_weights(self.weights)
        if loaded.sha256 != self.sha256:
            raise InputError(f"{self.weights}: the weights changed since the run was planned; start it again")
        device = resolve_device(self.device)
        network = build_network(loaded)
        return Restorer(network, self.halo_px, device, self.precision, self.batch_size, graphs=self.graphs)


class Restorer:
    """A network with its device and precision; fulfils Method. One per worker process; `restore` is thread-safe."""

    def __init__(
        self, network: Any, halo_px: int, device: str, precision: Precision, batch_size: int, *, graphs: bool = False
    ) -> None:
        import torch

        # TF32 would round products to 10 bits where fp32 was asked for.
        torch.backends.cudnn.allow_tf32 = False
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self._network = network.to(device=device, memory_format=torch.channels_last).eval()
        self._runners: dict[Any, Runner] = {}
        self._device = device
        self._lanes = Lanes(device, graphs=graphs)
        self._batch_size = batch_size
        self.guided = getattr(network, "tones", None) is not None
        self.alignment_px: int = network.alignment_px
        self.halo_zyx = (0, halo_px, halo_px)
        self.affine = True
        alpha = network.settings.alpha if network.architecture == "mrbcr" else 0
        on_cpu = device.startswith("cpu")
        # Measured in float32. On a CPU for two tiles at a time, the block's own buffers and what lies idle between them
        # included: 110 bytes for alpha 4, 140 for 8, 250 for 16; 1,130 for the released network. Elsewhere features are
        # held whole, and nothing lies idle.
        self.bytes_per_voxel = (60 + 13 * alpha if alpha else 1250) if on_cpu else (95 + 16 * alpha if alpha else 900)
        # Its features are of many sizes: the holes that they leave fit none of the next block's, and the heap doubles.
        self._leaves_holes = on_cpu and not alpha
        self._notes: list[str] = []
        self._tile_limit_px: int | None = None

    def take_notes(self) -> tuple[str, ...]:
        """Return and forget the fallbacks taken since the last call."""
        notes, self._notes = tuple(self._notes), []
        return notes

    def restore(self, block_zyx: FloatBlock, intensity: IntensityRange, at_border: Borders) -> FloatBlock:
        """See Method. Planes run `batch_size` at a time; on out-of-memory the tile is halved and the run goes on."""
        height, width = block_zyx.shape[1:]
        # An image thinner than the network accepts is continued by reflection and cut again.
        missing = [(0, 0)] + [(0, max(MIN_SIZE_PX - size, 0)) for size in (height, width)]
        planes = _reflect(block_zyx, missing) if any(after for _, after in missing) else block_zyx
        edges = (*at_border[1], *at_border[2])
        run, name = self._runner(intensity)
        limit = self._tile_limit_px or max(planes.shape[1:])
        out = np.empty(planes.shape, np.float32)
        for first in range(0, len(planes), self._batch_size):
            some = slice(first, first + self._batch_size)
            limit = self._run_halving(run, name, planes[some], edges, out[some], limit)
        if self._leaves_holes:
            give_back_idle_memory()
        return np.ascontiguousarray(out[:, :height, :width])

    def _run_halving(
        self, run: Runner, name: Hashable, planes: FloatBlock, edges: Edges, out: FloatBlock, limit: int
    ) -> int:
        """Run planes in tiles of at most `limit` px, halving it on out-of-memory; return the limit that worked."""
        while True:
            try:
                self._run_tiles(run, name, planes, edges, out, limit)
                return limit
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if limit <= _MIN_TILE_PX:
                    raise MemoryError(f"{self._device} is out of memory even for tiles of {limit} px") from error
                limit = max(-(-limit // (2 * self.alignment_px)) * self.alignment_px, _MIN_TILE_PX)
                self._tile_limit_px = limit
                self._notes.append(f"out of memory on {self._device}: went on with tiles of {limit} px")
            _release_cached_memory(self._device)

    def _run_tiles(
        self, run: Runner, name: Hashable, planes: FloatBlock, edges: Edges, out: FloatBlock, limit: int
    ) -> None:
        from mrbcr_cli.stream.blocks import Grid, round_up

        shape = planes.shape
        if limit >= max(shape[1:]):
            self._lanes.carry(planes, lambda batch: run(batch, edges), out, (name, edges))
            return
        halo = round_up(self.halo_zyx[1], self.alignment_px)
        grid = Grid("ZYX", shape, shape, (shape[0], limit, limit), (0, halo, halo), (0, 0, 0), {})
        for block in map(grid.block, range(len(grid))):
            # A side of the tile is a true border only where it is the block's side and that is one.
            (top, bottom), (left, right) = block.at_border[1:]
            sides = (edges[0] and top, edges[1] and bottom, edges[2] and left, edges[3] and right)
            tile = np.empty_like(planes[block.read])
            work = lambda batch, sides=sides: run(batch, sides)  # noqa: E731
            self._lanes.carry(planes[block.read], work, tile, (name, sides))
            out[block.core] = tile[block.crop]

    def _runner(self, intensity: IntensityRange) -> tuple[Runner, Hashable]:
        """The network made ready for a channel: with its guide, in the precision that it can stand, in image units; and
        a name for it that no other has.
        """
        import torch

        dtype = torch.float32 if intensity.needs_fp32 else self._dtype
        key = (dtype, intensity.guide if self.guided else None)
        runner = self._runners.get(key)
        if runner is None:
            if len(self._runners) >= _RUNNERS:  # other threads keep those they have
                self._runners.clear()
            runner = self._runners[key] = self._make_runner(*key)
            if self._device.startswith("cuda"):
                torch.cuda.synchronize(self._device)  # the streams of other threads do not wait for its kernels
        low, width, inverse = (float(np.float32(v)) for v in (intensity.low, intensity.width, 1 / intensity.width))

        def in_image_units(batch: Any, at_border: Edges) -> Any:
            """On the device: what a lane brings and takes is in the units of the image."""
            scaled = (batch - low).mul_(inverse)
            found = runner(scaled, at_border).float().mul_(width).add_(low)
            # A pixel beyond what float32 holds stays no number; the ReLU of a kernel may have made it a plausible one.
            return found.add_(scaled.sub_(scaled))

        return in_image_units, (key, low, width)

    def _make_runner(self, dtype: Any, guide: tuple[float, ...] | None) -> Runner:
        import torch

        if self._network.architecture == "mrbcr":
            from mrbcr_cli.network.fused import FusedMrbcr

            with torch.inference_mode():
                return FusedMrbcr(self._network, None if guide is None else torch.tensor([guide]), dtype)
        if self._network.architecture == "published":
            from mrbcr_cli.network.fused_published import FusedPublished

            return FusedPublished(self._network, dtype)
        plain = copy.deepcopy(self._network).to(dtype)
        return lambda batch, _: plain(batch.to(dtype))[0]


def _reflect(planes: FloatBlock, widths: list[tuple[int, int]]) -> FloatBlock:
    # A single row or column has nothing to reflect; repeating it is the same continuation.
    return np.pad(planes, widths, mode="reflect" if min(planes.shape[1:]) > 1 else "edge")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception means that the device or the host ran out of memory."""
    import torch

    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in text or "alloc" in text


def _release_cached_memory(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def device_memory_bytes(device: str) -> int | None:
    """Free memory of a CUDA device; None for the CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    free, _total = torch.cuda.mem_get_info(torch.device(device))
    return int(free)
