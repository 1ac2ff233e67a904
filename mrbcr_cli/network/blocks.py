"""The nonstandard-form block: an operator kept as small convolutions on the wavelet bands of every level.

Invariant: with all convolutions zero the block returns its input exactly, because each level adds its contribution to
what the coarser levels rebuilt. Nothing in here sees the border: the network pads the image before the first bank.

Sources: Beylkin, Coifman, Rokhlin 1991, sec. 2 (nonstandard form: every level holds its A, B and Gamma bands, only the
coarsest keeps its LL-to-LL operator T); Fan, Orozco Bohorquez, Ying, J. Comput. Phys. 384:1-15, 2019 (BCR-Net: bands
become channels, banded matrices become small convolutions).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrbcr_cli.network.wavelets import BANDS, WaveletBank

_SMALL_START = 0.1
"""Factor on the last weights of each residual branch, so that an untrained block is close to the identity."""


class BandConv(nn.Conv2d):
    """A 3x3 convolution whose output is bands: LH, HL and HH get no constant from inputs that are constant.

    A constant in a detail band is a lattice in the image. So the kernels from anything that has a mean (LL, images,
    rectified features) to the detail rows have their mean removed, and detail rows have no bias: a flat image stays
    exactly flat, and noise leaves no lattice in its mean. Kernels from detail bands to detail rows are free: these
    inputs have no mean, and noise at the highest frequencies, which is slow in a detail band, must be removable.
    """

    def __init__(self, in_channels: int, alpha: int, detail_from: int | None = None) -> None:
        """`detail_from`: input channels from this one on are detail bands; None: no input is one."""
        super().__init__(in_channels, BANDS * alpha, 3, padding=1)
        self.alpha = alpha
        self.detail_from = in_channels if detail_from is None else detail_from

    def kernel(self) -> tuple[Tensor, Tensor | None]:
        """The weight and the bias that it convolves with: without what would put a constant into a detail band."""
        smooth, detail = self.weight[: self.alpha], self.weight[self.alpha :]
        level, free = detail[:, : self.detail_from], detail[:, self.detail_from :]
        weight = torch.cat((smooth, torch.cat((level - level.mean(dim=(2, 3), keepdim=True), free), dim=1)))
        bias = None if self.bias is None else F.pad(self.bias[: self.alpha], (0, (BANDS - 1) * self.alpha))
        return weight, bias

    def forward(self, features: Tensor) -> Tensor:
        weight, bias = self.kernel()
        return F.conv2d(features, weight, bias, padding=1)


class ResidualPair(nn.Module):
    """z + conv3x3(ReLU(conv3x3(z))) on bands (N, 4 * alpha, H, W), each feature with the gain its tones give it."""

    def __init__(self, alpha: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(BANDS * alpha, BANDS * alpha, 3, padding=1)
        self.second = BandConv(BANDS * alpha, alpha)
        self.number = 0
        """Which of the tones are its own."""
        with torch.no_grad():
            self.second.weight.mul_(_SMALL_START)
            self.second.bias.zero_()  # type: ignore[union-attr]

    def forward(self, bands: Tensor, tones: Tensor | None = None) -> Tensor:
        if tones is None:
            plain: Tensor = self.second(torch.relu(self.first(bands)))
            return bands + plain
        gain, shift, passing = self._tones(tones)
        if tones.shape[0] == 1:  # one image: the gains go into the kernels, and cost nothing
            features = F.conv2d(bands, *self.toned(tones), padding=1)
        else:
            features = self.first(bands) * gain[:, :, None, None] + shift[:, :, None, None]
        branch: Tensor = self.second(torch.relu(features))
        # Linear and without a sum over pixels: what keeps a detail band free of constants, and yet turns noise down.
        return bands * passing[:, :, None, None] + branch

    def _tones(self, tones: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gain and shift within the branch, and gain of what passes it by, (N, C) each."""
        gain, shift, passing = tones[:, self.number].unbind(1)
        return 1 + gain, shift, 1 + passing

    def toned(self, tones: Tensor) -> tuple[Tensor, Tensor]:
        """The weight and the bias of the first convolution with the tones of one image in them."""
        gain, shift, _ = (each[0] for each in self._tones(tones))
        bias = shift if self.first.bias is None else self.first.bias * gain + shift
        return self.first.weight * gain[:, None, None, None], bias

    def passing(self, tones: Tensor) -> Tensor:
        """Gain of what passes the branch by, (N, C)."""
        return self._tones(tones)[2]


class NonstandardBlock(nn.Module):
    """An operator in nonstandard form on `alpha` channels, from level-1 bands to level-1 bands.

    The block takes and returns bands, not images: the bank is orthonormal, so synthesising an image between two blocks
    and analysing it again would change nothing. `pairs[l]` is the number of residual pairs at level l + 1; its length
    is the number of levels.
    """

    def __init__(self, alpha: int, pairs: tuple[int, ...]) -> None:
        super().__init__()
        self.alpha = alpha
        self.bank = WaveletBank(alpha)
        self.levels = nn.ModuleList(nn.ModuleList(ResidualPair(alpha) for _ in range(count)) for count in pairs)
        self.coarsest = nn.Conv2d(alpha, alpha, 3, padding=1)
        with torch.no_grad():
            self.coarsest.weight.mul_(_SMALL_START)
            self.coarsest.bias.zero_()  # type: ignore[union-attr]

    def forward(self, bands: Tensor, tones: Tensor | None = None) -> Tensor:
        """Map (N, 4 * alpha, H, W) to the same shape; H and W divisible by 2 ** (levels - 1).

        `tones`: see `guide.Tones`; of one image for all, or one for each; None for a network without.
        """
        return self._level(bands, 0, tones)

    def _level(self, bands: Tensor, level: int, tones: Tensor | None) -> Tensor:
        low = bands[:, : self.alpha]
        if level + 1 < len(self.levels):
            coarse = self.bank.synthesis(self._level(self.bank.analysis(low), level + 1, tones))
            change = coarse - low
        else:
            change = self.coarsest(low)
        out = bands
        for pair in cast("nn.ModuleList", self.levels[level]):
            out = pair(out, tones)
        # Out of place on purpose: without a pair the input is handed on, and autograd needs it intact.
        return torch.cat((out[:, : self.alpha] + change, out[:, self.alpha :]), dim=1)
