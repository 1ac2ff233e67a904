"""Convolutions made ready for inference: kernels in the precision and memory layout in which they run.

Invariant: a Kernel holds no gradient and is zero-padded so that the size is kept; the weights are rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Kernel:
    """A convolution, ready to run; height and width of its window are odd."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Kernel:
        """Take over weights (out, in, height, width) and bias of any precision."""
        packed = weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        return cls(packed, None if bias is None else bias.detach().to(dtype))

    def __call__(self, features: Tensor) -> Tensor:
        height, width = self.weight.shape[-2:]
        return F.conv2d(features, self.weight, self.bias, padding=(height // 2, width // 2))
