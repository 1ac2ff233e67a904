"""The mrbcr network for inference: kernels made ready once for one channel, features in a precision of their own.

Invariant: in float32 it agrees with `Mrbcr.forward` to rounding. In a reduced precision only features and kernels are
rounded: the image, its bands and what the network adds to them are summed in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from mrbcr_cli.network.blocks import NonstandardBlock, ResidualPair
from mrbcr_cli.network.kernels import Kernel
from mrbcr_cli.network.mrbcr import Mrbcr, Stage
from mrbcr_cli.network.strips import add_, add_synthesis_, residual_
from mrbcr_cli.network.wavelets import WaveletBank


@dataclass(frozen=True)
class _Pair:
    """A residual pair with its tones folded in."""

    first: Kernel
    second: Kernel
    passing: Tensor | None
    """Gain of what passes the branch by, (1, C, 1, 1); None: 1."""

    def __call__(self, bands: Tensor) -> Tensor:
        """Overwrite the bands by what it makes of them."""
        return residual_(bands, self.first, self.second, self.passing)


@dataclass(frozen=True)
class _Block:
    """A nonstandard block: pairs by level, and the convolution of the coarsest LL."""

    alpha: int
    bank: WaveletBank
    levels: tuple[tuple[_Pair, ...], ...]
    coarsest: Kernel

    def __call__(self, bands: Tensor) -> Tensor:
        """Overwrite the bands (N, 4 * alpha, H, W) by what it makes of them; H and W as NonstandardBlock wants them."""
        return self._level(bands, 0)

    def _level(self, bands: Tensor, level: int) -> Tensor:
        """The same for the bands of a level.

        The bank inverts itself, so what comes back from the coarser level less what went in is the synthesis of what
        that level changed: the synthesis of the whole, and its rounding, is spared.
        """
        low = bands[:, : self.alpha]
        is_coarsest = level + 1 == len(self.levels)
        coarse = self.coarsest(low) if is_coarsest else self._changed(self.bank.analysis(low), level + 1)
        for pair in self.levels[level]:
            pair(bands)
        if is_coarsest:
            low += coarse
        else:
            add_synthesis_(low, coarse, self.bank)
        return bands

    def _changed(self, bands: Tensor, level: int) -> Tensor:
        return self._level(bands.clone(), level).sub_(bands)


@dataclass(frozen=True)
class _Scale:
    """K^T and B of one scale, and what lets the image and the coarser scale in."""

    kt_lift: Kernel
    kt: _Block
    b_lift: Kernel
    b: _Block
    kt_fusion: Kernel | None
    b_fusion: Kernel | None
    project: Kernel
    feeds_finer: bool
    """Whether a finer scale wants what K^T found."""

    def __call__(self, y_bands: Tensor, coarser: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return (K^T y, B, what is added to the bands of y); `coarser`: what the coarser scale found, is emptied.

        Whatever is held here while a block runs is held at the peak of memory.
        """
        kt = self.kt_lift(y_bands)
        if self.kt_fusion is not None and coarser:
            add_(kt, coarser.pop(0), self.kt_fusion)
        kt = self.kt(kt)
        b = add_(kt.clone() if self.feeds_finer else kt, y_bands, self.b_lift)
        if self.b_fusion is not None and coarser:
            add_(b, coarser.pop(0), self.b_fusion)
        b = self.b(b)
        return kt, b, self.project(b)


class FusedMrbcr:
    """A network and a guide, for one channel. Threads may share it."""

    def __init__(self, network: Mrbcr, guide: Tensor | None, dtype: torch.dtype) -> None:
        """`guide` (1, 22) or None as in `Mrbcr.forward`; `dtype` of features and kernels. The network is float32."""
        self._network = network
        self._dtype = dtype
        with torch.no_grad():
            tones = network.tones_of(next(network.parameters()), guide)
            stages = cast("Iterable[Stage]", network.scales)
            self._scales = tuple(self._scale(stage, tones, feeds_finer=i > 0) for i, stage in enumerate(stages))

    def __call__(self, image_nchw: Tensor, at_border: tuple[bool, bool, bool, bool] = (True,) * 4) -> Tensor:
        """Map (N, 1, H, W) float32, as `Mrbcr.forward` does, to its first output. Raises ValueError below 16 px."""
        height, width = image_nchw.shape[-2:]
        padded, top, left = self._network.padded(image_nchw, at_border)
        bands = self._network.image_bank.analysis(padded)
        del padded
        return self._run(bands)[..., top : top + height, left : left + width]

    def _run(self, bands: Tensor) -> Tensor:
        """From the bands of the image to the deconvolved image."""
        bank, up_bank = self._network.image_bank, self._network.up_bank
        y_bands = [bands]
        for _ in range(1, len(self._scales)):
            y_bands.append(bank.analysis(y_bands[-1][:, :1]))
        coarser: list[Tensor] = []
        change = bands
        for scale in reversed(range(len(self._scales))):
            features = y_bands[scale].to(self._dtype, memory_format=torch.channels_last)
            kt, b, change = self._scales[scale](features, coarser)
            if scale > 0:
                coarser += [up_bank.synthesis(kt), up_bank.synthesis(b)]
            del kt, b
        return bank.synthesis(y_bands[0] + change)

    def _scale(self, stage: Stage, tones: Tensor | None, *, feeds_finer: bool) -> _Scale:
        return _Scale(
            self._conv(*stage.kt_lift.kernel()),
            self._block(stage.kt, tones),
            self._conv(*stage.b_lift.kernel()),
            self._block(stage.b, tones),
            None if stage.kt_fusion is None else self._conv(*stage.kt_fusion.kernel()),
            None if stage.b_fusion is None else self._conv(*stage.b_fusion.kernel()),
            self._conv(*stage.project.kernel()),
            feeds_finer,
        )

    def _block(self, block: NonstandardBlock, tones: Tensor | None) -> _Block:
        pairs = cast("Iterable[Iterable[ResidualPair]]", block.levels)
        levels = tuple(tuple(self._pair(pair, tones) for pair in level) for level in pairs)
        coarsest = self._conv(block.coarsest.weight, block.coarsest.bias)
        return _Block(block.alpha, block.bank, levels, coarsest)

    def _pair(self, pair: ResidualPair, tones: Tensor | None) -> _Pair:
        second = self._conv(*pair.second.kernel())
        if tones is None:
            return _Pair(self._conv(pair.first.weight, pair.first.bias), second, None)
        passing = pair.passing(tones)[:, :, None, None].to(self._dtype)
        return _Pair(self._conv(*pair.toned(tones)), second, passing)

    def _conv(self, weight: Tensor, bias: Tensor | None) -> Kernel:
        return Kernel.of(weight, bias, self._dtype)
