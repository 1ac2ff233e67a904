"""Convolutions made ready for inference: kernels in the precision and memory layout in which they run.

Invariant: a Kernel holds no gradient and its weights are rounded once; outside the features it is given are zeros. What
follows a convolution is done with it where oneDNN can, and in a pass of its own elsewhere: the sums are the same (but
what overflowed to NaN, which oneDNN's ReLU makes 0).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Kernel:
    """A convolution, ready to run; height and width of its window are odd.

    All that runs it takes features (N, C, H, W), channels last, and returns (N, K, H - above - below, W): the first
    `above` and the last `below` rows are context only. Each is half a window, or as much as there is before the border.
    """

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Kernel:
        """Take over weights (out, in, height, width) and bias of any precision."""
        packed = weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        return cls(packed, None if bias is None else bias.detach().to(dtype))

    def __call__(self, features: Tensor, above: int = 0, below: int = 0) -> Tensor:
        """Return the convolution."""
        rows, padding = self._rows(features, above, below)
        return F.conv2d(features, self.weight, self.bias, padding=padding)[:, :, rows]

    def rectified(self, features: Tensor, above: int = 0, below: int = 0) -> Tensor:
        """Return the convolution where it is above 0, and 0 elsewhere (ReLU)."""
        if not joins(features):
            return self(features, above, below).relu_()
        rows, padding = self._rows(features, above, below)
        return _with_relu(features, self, padding)[:, :, rows]

    def add_to(self, target: Tensor, features: Tensor, above: int = 0, below: int = 0) -> Tensor:
        """Add the convolution to `target`, of its shape and also channels last; return `target`."""
        rows, padding = self._rows(features, above, below)
        if rows != slice(None) or not joins(features) or not target.is_contiguous(memory_format=torch.channels_last):
            return target.add_(self(features, above, below))
        _added_to(target, features, self, padding)
        return target

    def _rows(self, features: Tensor, above: int, below: int) -> tuple[slice, tuple[int, int]]:
        """What to keep of a convolution with this padding (y, x): context on both sides needs none and leaves none."""
        height, width = (size // 2 for size in self.weight.shape[-2:])
        if above == below == height:
            return slice(None), (0, width)
        kept = slice(above, features.shape[2] - below) if above or below else slice(None)
        return kept, (height, width)


def _with_relu(features: Tensor, kernel: Kernel, padding: tuple[int, int]) -> Tensor:
    run = torch.ops.mkldnn._convolution_pointwise
    return cast("Tensor", run(features, kernel.weight, kernel.bias, padding, (1, 1), (1, 1), 1, "relu", [], ""))


def _added_to(target: Tensor, features: Tensor, kernel: Kernel, padding: tuple[int, int]) -> None:
    run = torch.ops.mkldnn._convolution_pointwise_.binary
    run(target, features, kernel.weight, kernel.bias, padding, (1, 1), (1, 1), 1, "add", 1.0, None, [], None)


def joins(features: Tensor) -> bool:
    """Whether what follows a convolution of these features is done with it."""
    return features.device.type == "cpu" and _can_join(features.dtype)


@functools.cache
def _can_join(dtype: torch.dtype) -> bool:
    """Whether oneDNN's convolutions with what follows them are there and right, for this type.

    They are what torch.compile makes of a convolution; PyTorch does not promise to keep them, so they are tried once.
    """
    drawn = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=drawn).to(dtype) for shape in ((1, 8, 9, 7), (8, 8, 3, 3)))
    x = x.contiguous(memory_format=torch.channels_last)
    kernel, target = Kernel.of(weight, None, dtype), x.clone()
    try:
        with torch.inference_mode():
            plain = kernel(x)
            relu = _with_relu(x, kernel, (1, 1))
            _added_to(target[:, :, 2:6], x[:, :, 1:7], kernel, (0, 1))
    except (AttributeError, RuntimeError, TypeError):
        return False
    expected = x.clone()
    expected[:, :, 2:6] += plain[:, :, 2:6]
    off = max(float((found - wanted).abs().max()) for found, wanted in ((relu, plain.relu()), (target, expected)))
    return off <= 8 * torch.finfo(dtype).eps * float(plain.abs().max())
