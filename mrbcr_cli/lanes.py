"""How planes get to a device and back: a lane for each thread, staged in pinned memory, on a stream of its own.

Invariant: what comes back is what the work makes of the planes, whatever the lane and however many run at once. A lane
waits for its own stream alone, so that copies of one thread overlap with what another has under way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Planes = NDArray[np.float32]
Work = Callable[["Tensor"], "Tensor"]
"""From a batch (N, 1, H, W) float32 on the device to a result of that shape, of any precision."""


class Stream(Protocol):
    """What a lane wants of a stream of a device."""

    def synchronize(self) -> None:
        """Wait until all that was put on it is done."""
        ...


class Lanes:
    """The lanes of one device; threads share the object."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._own = threading.local()

    def carry(self, planes: Planes, work: Work, out: Planes) -> None:
        """Write into `out` (N, H, W) what `work` makes of the planes (N, H, W, image or any other units)."""
        import torch

        with torch.inference_mode():
            if self._device.startswith("cuda"):
                self._lane().carry(planes, work, out)
            else:
                batch = torch.from_numpy(np.ascontiguousarray(planes))[:, None]
                out[:] = work(batch)[:, 0].float().numpy()

    def _lane(self) -> StagedLane:
        if not hasattr(self._own, "lane"):
            import torch

            stream: Any = torch.cuda.Stream(torch.device(self._device))  # type: ignore[no-untyped-call]
            self._own.lane = StagedLane(self._device, stream, lambda: torch.cuda.stream(stream), pinned=True)
        lane: StagedLane = self._own.lane
        return lane


class StagedLane:
    """A lane with buffers on the host for both ways, kept from call to call; for one thread."""

    def __init__(
        self,
        device: str,
        stream: Stream,
        on_stream: Callable[[], AbstractContextManager[Any]] = nullcontext,
        *,
        pinned: bool,
    ) -> None:
        """`on_stream`: a context in which what is put on the device goes to `stream`; `pinned`: only with CUDA."""
        self._device = device
        self._stream = stream
        self._on_stream = on_stream
        self._pinned = pinned
        self._buffers: dict[str, Tensor] = {}

    def carry(self, planes: Planes, work: Work, out: Planes) -> None:
        """See Lanes; returns when `out` is complete. Pageable memory would make either copy wait for the device."""
        import torch

        up, down = self._buffer("up", planes.shape), self._buffer("down", planes.shape)
        up.copy_(torch.from_numpy(np.ascontiguousarray(planes)))
        with self._on_stream():
            # A copy of its own also where the device is the host: the work may write to its batch.
            batch = torch.empty(up.shape, device=self._device).copy_(up, non_blocking=True)
            down.copy_(work(batch[:, None])[:, 0], non_blocking=True)
        self._stream.synchronize()
        out[:] = down.numpy()

    def _buffer(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A view of this shape on the buffer of this name, which grows when it must."""
        import torch

        size = int(np.prod(shape))
        held = self._buffers.get(name)
        if held is None or held.numel() < size:
            held = self._buffers[name] = torch.empty(size, pin_memory=self._pinned)
        return held[:size].view(shape)
