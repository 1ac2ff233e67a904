"""A separable orthonormal wavelet bank (Daubechies db3) on the channels of a feature map.

Invariant: `synthesis` inverts `analysis` exactly, and `analysis` inverts `synthesis`, away from the zero-padded border.
Bands are scaled by 1/2 a level against the orthonormal bank, so that LL is a local mean in the units of the image.

Sources: I. Daubechies, Ten Lectures on Wavelets, SIAM 1992, ch. 6 (closed form of db3); G. Beylkin, R. Coifman,
V. Rokhlin, Comm. Pure Appl. Math. 44:141-183, 1991 (the nonstandard form that is built on it).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BANDS = 4
"""LL, LH, HL, HH: the first letter is the filter along y, the second along x."""


def db3_filters() -> tuple[Tensor, Tensor]:
    """Return the orthonormal db3 low-pass and high-pass filters, (6,) each, float64, from their closed form."""
    root10 = math.sqrt(10)
    root = math.sqrt(5 + 2 * root10)
    # On the CPU also where a network is built without memory (device "meta"): there even a division takes a second,
    # for the compiler that it imports.
    low = torch.tensor(
        [
            1 + root10 + root,
            5 + root10 + 3 * root,
            10 - 2 * root10 + 2 * root,
            10 - 2 * root10 - 2 * root,
            5 + root10 - 3 * root,
            1 + root10 - root,
        ],
        dtype=torch.float64,
        device="cpu",
    ) / (16 * math.sqrt(2))
    signs = torch.tensor([1.0, -1.0] * 3, dtype=torch.float64, device="cpu")
    return low, signs * low.flip(0)  # quadrature mirror: g[n] = (-1)^n h[5 - n]


def bank_kernels() -> Tensor:
    """Return the four separable 2-D analysis filters, (4, 6, 6) float64 in the order LL, LH, HL, HH, scaled by 1/2."""
    filters = torch.stack(db3_filters())
    return torch.einsum("ai,bj->abij", filters, filters).reshape(BANDS, 6, 6) / 2


class WaveletBank(nn.Module):
    """Analysis and synthesis of `channels` independent images, as dense strided convolutions with fixed filters.

    Band-major layout: channels [0, channels) of the bands are LL, the next `channels` LH, then HL, HH. The filters are
    buffers outside the state dict: they are mathematics, not weights. Coefficient k covers the pixels 2k-2 .. 2k+3.
    """

    analysis_kernel: Tensor
    synthesis_kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        kernels = bank_kernels()
        eye = torch.eye(channels, dtype=torch.float64, device="cpu")
        analysis = torch.einsum("bij,co->bocij", kernels, eye).reshape(BANDS * channels, channels, 6, 6)
        # Polyphase form of the transposed bank: one 3x3 convolution gives the four pixel phases, ordered as
        # pixel_shuffle wants them (channel, row phase, column phase). The factor 4 undoes the two scalings by 1/2.
        phases = kernels.reshape(BANDS, 3, 2, 3, 2).flip(1, 3).permute(2, 4, 0, 1, 3) * 4
        synthesis = torch.einsum("pqbij,co->cpqboij", phases, eye).reshape(4 * channels, BANDS * channels, 3, 3)
        self.register_buffer("analysis_kernel", analysis.float(), persistent=False)
        self.register_buffer("synthesis_kernel", synthesis.float(), persistent=False)

    def analysis(self, image: Tensor) -> Tensor:
        """Map (N, channels, H, W), H and W even, to bands (N, 4 * channels, H/2, W/2); zeros outside the image."""
        return F.conv2d(image, self.analysis_kernel.to(image.dtype), stride=2, padding=2)

    def synthesis(self, bands: Tensor) -> Tensor:
        """Map bands (N, 4 * channels, H/2, W/2) to (N, channels, H, W): the inverse of `analysis`."""
        return F.pixel_shuffle(F.conv2d(bands, self.synthesis_kernel.to(bands.dtype), padding=1), 2)
