"""The released network for inference: the same sums in an order that a CPU or GPU does faster.

Invariant: in float32 it agrees with `Published.forward` to rounding, for the full-size output, which is all it makes.

What is rearranged: a convolution of concatenated features is the sum of one convolution for each part, so little is
copied; the layers of a dense block, and its way out, look at their common input in one convolution; a pointwise
convolution commutes with enlarging and is done before it; and the 9x9 convolution to a single channel is nine rows
(1x9), which fill a vector unit, and then a sum over shifted rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrbcr_cli.network.kernels import Kernel
from mrbcr_cli.network.published import (
    DENSE_GROWTH,
    DENSE_LAYERS,
    OUT_TAPS,
    SCALES,
    DenseBlock,
    Inverse,
    Published,
    up,
)


@dataclass(frozen=True)
class _Dense:
    """A residual dense block: what all layers and the way out see of its input, then what they see of each other."""

    entry: Kernel
    seconds: tuple[Kernel, ...]
    later: tuple[Kernel, ...]
    """From the result of a layer to what the layers after it and the way out make of it; zeros for those before."""

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the four new features."""
        waiting = self.entry(x)
        for layer, (second, later) in enumerate(zip(self.seconds, self.later, strict=True)):
            own = waiting[:, layer * DENSE_GROWTH : (layer + 1) * DENSE_GROWTH]
            # All channels at once, also those that are done with: part of a pixel's channels is slow to get at.
            later.add_to(waiting, second(torch.relu(own)))
        return waiting[:, DENSE_LAYERS * DENSE_GROWTH :]


@dataclass(frozen=True)
class _Inverse:
    """B at one scale; without `out` only its features are wanted."""

    lines: tuple[Kernel, ...]
    dense: tuple[_Dense, ...]
    out: _Rows | None

    def __call__(self, entry: list[Tensor], kt: Tensor) -> Tensor:
        """Return the image (N, 1, H, W) or, without `out`, the features. `entry` is emptied, so that none outlives its
        use.
        """
        z = self.lines[0].rectified(entry.pop())
        for line in self.lines[1:]:
            z = line.rectified(z)
        for dense in self.dense:
            z = torch.cat([dense(z), z], dim=1)
        return z if self.out is None else self.out(z, kt)


@dataclass(frozen=True)
class _Rows:
    """The 9x9 convolution of features + K^T to one channel."""

    rows: Kernel
    """1x9, one output channel for each row of the kernel."""
    of_kt: Kernel
    """The same for K^T, which is added to every feature: the kernels of all features in one."""
    gather: Tensor
    bias: Tensor

    def __call__(self, z: Tensor, kt: Tensor) -> Tensor:
        rows = self.of_kt.add_to(self.rows(z), kt)
        return F.conv2d(rows, self.gather, self.bias, padding=(OUT_TAPS // 2, 0))


@dataclass(frozen=True)
class _Fusion:
    """Two convolutions of a finer and a coarser part; the pointwise one is cut into what it does to each."""

    fine: Kernel
    coarse: Kernel
    mix: Kernel


class FusedPublished:
    """The released network in a precision of its own; threads may share it."""

    def __init__(self, network: Published, dtype: torch.dtype) -> None:
        """`dtype` of features and kernels. The network is float32."""
        self._dtype = dtype
        self._alignment_px = network.alignment_px
        with torch.no_grad():
            self._kt = {s: self._convs(cast("nn.ModuleList", network.kt[s])) for s in SCALES}
            self._kt_fusion = self._fusion(network.kt_fusion)
            self._kt_out = {s: self._parts(network.kt_out[s], 1 if s == "4" else 2) for s in SCALES}
            self._b_fusion = self._fusion(network.b_fusion, fine_channels=1)
            self._b = {s: self._inverse(cast("Inverse", network.b[s]), ends=s == "0") for s in SCALES}

    def __call__(self, image_nchw: Tensor, at_border: tuple[bool, bool, bool, bool] = (True,) * 4) -> Tensor:
        """Map (N, 1, H, W) float32, H and W >= 16, to the full-size output, float32. The border makes no difference."""
        height, width = image_nchw.shape[-2:]
        bottom, right = -height % self._alignment_px, -width % self._alignment_px
        x = F.pad(image_nchw, (0, right, 0, bottom), mode="reflect") if bottom or right else image_nchw
        full = self._run(x.to(self._dtype, memory_format=torch.channels_last))
        return full[..., :height, :width].float()

    def _run(self, x: Tensor) -> Tensor:
        """Full size; the order of the sums lets go of the large features as early as can be."""
        kt0, kt2, kt4 = self._back_project(x)
        features = self._b["4"]([kt4], kt4)
        features = self._b["2"]([self._fuse(self._b_fusion, kt2, features)], kt2)
        entry = [self._fuse(self._b_fusion, kt0, features)]
        del features
        return self._b["0"](entry, kt0)

    def _back_project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (own0, far0), (own2, far2), (own4,) = (self._kt_out[s] for s in SCALES)
        kt2, kt4 = (self._pointwise(s, x[..., ::n, ::n]) for s, n in (("2", 2), ("4", 4)))
        first = up(self._kt_fusion.fine(kt2), 2).add_(up(self._kt_fusion.coarse(kt4), 4))
        fused2 = F.avg_pool2d(self._kt_fusion.mix(first.relu_()), 2)
        of_kt2 = far2.add_to(own2(kt2), fused2)
        del first, fused2
        kt0 = self._pointwise("0", x)
        return far0.add_to(own0(kt0), self._fuse(self._kt_fusion, kt0, kt2)), of_kt2, own4(kt4)

    def _pointwise(self, scale: str, x: Tensor) -> Tensor:
        for conv in self._kt[scale]:
            x = conv.rectified(x)
        return x

    @staticmethod
    def _fuse(fusion: _Fusion, fine: Tensor, coarse: Tensor) -> Tensor:
        return fusion.mix(fusion.fine.add_to(up(fusion.coarse(coarse), 2), fine).relu_())

    def _conv(self, weight: Tensor, bias: Tensor | None) -> Kernel:
        return Kernel.of(weight, bias, self._dtype)

    def _convs(self, modules: Iterable[nn.Module]) -> tuple[Kernel, ...]:
        return tuple(self._conv(m.weight, m.bias) for m in cast("Iterable[nn.Conv2d]", modules))

    def _parts(self, module: nn.Module, count: int) -> tuple[Kernel, ...]:
        """A convolution of `count` equal parts; the bias goes with the first."""
        conv = cast("nn.Conv2d", module)
        weights = conv.weight.chunk(count, dim=1)
        return tuple(self._conv(w, conv.bias if k == 0 else None) for k, w in enumerate(weights))

    def _fusion(self, fusion: nn.ModuleList, fine_channels: int | None = None) -> _Fusion:
        first, second = cast("Iterable[nn.Conv2d]", fusion)
        cut = first.in_channels // 2 if fine_channels is None else fine_channels
        fine, coarse = first.weight[:, :cut], first.weight[:, cut:]
        return _Fusion(self._conv(fine, first.bias), self._conv(coarse, None), self._conv(second.weight, second.bias))

    def _inverse(self, b: Inverse, *, ends: bool) -> _Inverse:
        dense = tuple(self._dense(block) for block in cast("Iterable[DenseBlock]", b.dense))
        return _Inverse(self._convs(b.line), dense, self._rows(b.out) if ends else None)

    def _dense(self, block: DenseBlock) -> _Dense:
        layers = [tuple(cast("Iterable[nn.Conv2d]", block[str(d)])) for d in range(DENSE_LAYERS)]
        way_out = cast("nn.Conv2d", block["out"])
        # All see a 3x3 window; the pointwise way out is the middle of one.
        weights = [first.weight for first, _ in layers] + [F.pad(way_out.weight, (1, 1, 1, 1))]
        biases = [first.bias for first, _ in layers] + [way_out.bias]
        channels = weights[0].shape[1]
        entry = torch.cat([w[:, :channels] for w in weights])
        cuts = pairwise(range(channels, channels + DENSE_GROWTH * DENSE_LAYERS + 1, DENSE_GROWTH))
        later = [
            F.pad(torch.cat([w[:, low:high] for w in weights[d:]]), (0, 0, 0, 0, 0, 0, d * DENSE_GROWTH, 0))
            for d, (low, high) in enumerate(cuts, 1)
        ]
        return _Dense(
            self._conv(entry, torch.cat(cast("list[Tensor]", biases))),
            tuple(self._conv(second.weight, second.bias) for _, second in layers),
            tuple(self._conv(weight, None) for weight in later),
        )

    def _rows(self, out: nn.Conv2d) -> _Rows:
        by_row = out.weight[0].permute(1, 0, 2)[:, :, None]  # (row, channel, 1, column)
        gather = torch.eye(OUT_TAPS, device=by_row.device)[None, :, :, None]
        return _Rows(
            self._conv(by_row, None),
            self._conv(by_row.sum(1, keepdim=True), None),
            gather.to(self._dtype).contiguous(memory_format=torch.channels_last),
            cast("Tensor", out.bias).detach().to(self._dtype),
        )
