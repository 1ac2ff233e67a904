"""How planes get to a device and back: a lane for each thread, staged in pinned memory, on a stream of its own.

Invariant: what comes back is what the work makes of the planes, whatever the lane and however many run at once. A lane
waits for its own stream alone, so that copies of one thread overlap with what another has under way.

A lane with a recorder launches the kernels of a work one by one only once, and then all of them as one (a CUDA graph).
That pays where kernels are short, and is used only where `mrbcr info --plan --measure` found that it does.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

RECORDINGS = 128
"""Works that a lane keeps recorded: a block has nine places at the borders of an image, and an image has channels."""

Planes = NDArray[np.float32]
Work = Callable[["Tensor"], "Tensor"]
"""From a batch (N, 1, H, W) float32 on the device to a result of that shape, of any precision."""


class Stream(Protocol):
    """What a lane wants of a stream of a device."""

    def synchronize(self) -> None:
        """Wait until all that was put on it is done."""
        ...


class Recorder(Protocol):
    """Records what a work launches on a device."""

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """Return what launches it all again, and the tensor that then holds the result, until the next launch."""
        ...


_one_at_a_time = threading.Lock()
"""Held while a graph is recorded: that waits for the whole device, which must not be recording for another thread."""


class GraphRecorder:
    """CUDA graphs of one stream. They share their memory, so the result of one is gone when another is launched."""

    def __init__(self, stream: Any) -> None:
        import torch

        self._stream = stream
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """See Recorder. The work runs once before: libraries set themselves up in a first call, unrecorded."""
        import torch

        with _one_at_a_time:
            work()
            graph: Any = torch.cuda.CUDAGraph()
            # Other threads go on meanwhile: what they do with the device is no error of this recording.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                result = work()
        return graph.replay, result


class Lanes:
    """The lanes of one device; threads share the object."""

    def __init__(self, device: str, *, graphs: bool = False) -> None:
        """`graphs`: whether works that have a name are recorded (CUDA only)."""
        self._device = device
        self._graphs = graphs
        self._own = threading.local()

    def carry(self, planes: Planes, work: Work, out: Planes, name: Hashable = None) -> None:
        """Write into `out` (N, H, W) what `work` makes of the planes (N, H, W, image or any other units).

        Works of one name do the same to planes of one shape; without a name none is recorded.
        """
        import torch

        with torch.inference_mode():
            if self._device.startswith("cuda"):
                self._lane().carry(planes, work, out, name)
            else:
                batch = torch.from_numpy(np.ascontiguousarray(planes))[:, None]
                out[:] = work(batch)[:, 0].float().numpy()

    def _lane(self) -> StagedLane:
        if not hasattr(self._own, "lane"):
            import torch

            stream: Any = torch.cuda.Stream(torch.device(self._device))  # type: ignore[no-untyped-call]
            recorder = GraphRecorder(stream) if self._graphs else None
            on_stream = functools.partial(torch.cuda.stream, stream)
            self._own.lane = StagedLane(self._device, stream, on_stream, pinned=True, recorder=recorder)
        lane: StagedLane = self._own.lane
        return lane


@dataclass(frozen=True)
class _Recording:
    """A recorded work: what launches it, and where its result is."""

    launch: Callable[[], object]
    result: Tensor
    work: Work
    """Held because its weights are read at every launch."""


class StagedLane:
    """A lane with buffers on the host for both ways, kept from call to call; for one thread."""

    def __init__(
        self,
        device: str,
        stream: Stream,
        on_stream: Callable[[], AbstractContextManager[Any]] = nullcontext,
        *,
        pinned: bool,
        recorder: Recorder | None = None,
    ) -> None:
        """`on_stream`: a context in which what is put on the device goes to `stream`; `pinned`: only with CUDA."""
        self._device = device
        self._stream = stream
        self._on_stream = on_stream
        self._pinned = pinned
        self._recorder = recorder
        self._recordings: dict[Hashable, _Recording] = {}
        self._batches: dict[tuple[int, ...], Tensor] = {}
        """Where the recorded works of a shape read; a stream does one after the other."""
        self._buffers: dict[str, Tensor] = {}

    def carry(self, planes: Planes, work: Work, out: Planes, name: Hashable = None) -> None:
        """See Lanes; returns when `out` is complete. Pageable memory would make either copy wait for the device."""
        import torch

        up, down = self._buffer("up", planes.shape), self._buffer("down", planes.shape)
        up.copy_(torch.from_numpy(np.ascontiguousarray(planes)))
        with self._on_stream():
            if self._recorder is None or name is None:
                # A copy of its own also where the device is the host: the work may write to its batch.
                batch = torch.empty(up.shape, device=self._device).copy_(up, non_blocking=True)
                result = work(batch[:, None])
            else:
                result = self._launched(self._recorder, up, work, name)
            down.copy_(result[:, 0], non_blocking=True)
        self._stream.synchronize()
        out[:] = down.numpy()

    def _launched(self, recorder: Recorder, up: Tensor, work: Work, name: Hashable) -> Tensor:
        """The result of a recorded work, which is recorded if it is new; it must not write to its batch."""
        import torch

        shape = tuple(up.shape)
        known = self._recordings.get((name, shape))
        if known is None and len(self._recordings) >= RECORDINGS:
            self._recordings.clear()
            self._batches.clear()
        if shape not in self._batches:
            self._batches[shape] = torch.empty(shape, device=self._device)
        batch = self._batches[shape].copy_(up, non_blocking=True)
        if known is None:
            launch, result = recorder.record(lambda: work(batch[:, None]))
            known = self._recordings[name, shape] = _Recording(launch, result, work)
        known.launch()
        return known.result

    def _buffer(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A view of this shape on the buffer of this name, which grows when it must."""
        import torch

        size = int(np.prod(shape))
        held = self._buffers.get(name)
        if held is None or held.numel() < size:
            held = self._buffers[name] = torch.empty(size, pin_memory=self._pinned)
        return held[:size].view(shape)
