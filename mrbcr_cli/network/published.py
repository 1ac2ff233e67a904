"""The m-rBCR network as its authors released it: 236,630 parameters, three image scales, no wavelets.

Invariant: every `state_dict` key is the role that the published weights give that parameter, and the arithmetic is
the authors', faults included, so that converted checkpoints reproduce their outputs to 1e-5. Nothing is improved here.

References
- Li, Kudryashev, Yakimovich, "Solving the inverse problem of microscopy deconvolution with a residual
  Beylkin-Coifman-Rokhlin neural network", ECCV 2024, doi 10.1007/978-3-031-73226-3_22: the two stages (K^T: back
  projection, B: regularised inverse) and the multi-stage fusion.
- Fan, Orozco Bohorquez, Ying, "BCR-Net", J. Comput. Phys. 384:1-15, 2019: the one-dimensional "line" convolutions.
- Zhang et al., "Residual dense network for image super-resolution", CVPR 2018: the dense blocks.

Known faults, kept on purpose: the line convolutions see along x only; the coarse inputs are strided picks without a
filter; every convolution pads the border with zeros.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrbcr_cli.network import MIN_SIZE_PX

SCALES = ("0", "2", "4")
"""The authors' names of full, half and quarter size, finest first."""

KT_CHANNELS, KT_LAYERS = 32, 12
LINE_CHANNELS, LINE_LAYERS, LINE_TAPS = 32, 6, 5
DENSE_BLOCKS, DENSE_LAYERS, DENSE_GROWTH = 4, 3, 4
FEATURES = LINE_CHANNELS + DENSE_BLOCKS * DENSE_GROWTH
OUT_TAPS = 9


def _conv(channels_in: int, channels_out: int, height: int, width: int | None = None) -> nn.Conv2d:
    """Convolution with bias, stride 1, zero-padded to keep the size."""
    return nn.Conv2d(channels_in, channels_out, (height, height if width is None else width), padding="same")


def up(x: Tensor, factor: int) -> Tensor:
    """Bilinear enlargement with half-pixel centres."""
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)


def _formal_radius_px() -> int:
    """Distance along either axis beyond which a pixel cannot change an output pixel.

    The longest path runs through B of all scales. Sample j of the scale with stride s sits on pixel s*j, so bilinear
    enlargement from stride 2s to s reaches back two samples of stride s (and ahead only one).
    """
    features = LINE_LAYERS * (LINE_TAPS // 2) + DENSE_BLOCKS * DENSE_LAYERS * 2
    enter = 1 + 2  # the 3x3 of b_fusion, then the enlargement
    return 4 * features + 2 * (features + enter) + (features + enter) + OUT_TAPS // 2


class DenseBlock(nn.ModuleDict):
    """Residual dense block: (N, C, H, W) -> (N, C + 4, H, W). Layer d sees the input and all layers before it."""

    def __init__(self, channels: int) -> None:
        layers: dict[str, nn.Module] = {
            str(d): nn.ModuleList(
                [_conv(channels + d * DENSE_GROWTH, DENSE_GROWTH, 3), _conv(DENSE_GROWTH, DENSE_GROWTH, 3)]
            )
            for d in range(DENSE_LAYERS)
        }
        super().__init__(layers | {"out": _conv(channels + DENSE_LAYERS * DENSE_GROWTH, DENSE_GROWTH, 1)})

    def forward(self, x: Tensor) -> Tensor:
        z = x
        for d in range(DENSE_LAYERS):
            first, second = self[str(d)].children()
            z = torch.cat([z, second(F.relu_(first(z)))], dim=1)
        return torch.cat([self["out"](z), x], dim=1)


class Inverse(nn.Module):
    """B at one scale: entry (N, 1 or 48, H, W) and K^T (N, 1, H, W) -> features (N, 48, H, W), image (N, 1, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [channels, *[LINE_CHANNELS] * LINE_LAYERS]
        self.line = nn.ModuleList(_conv(a, b, 1, LINE_TAPS) for a, b in pairwise(widths))
        self.dense = nn.ModuleList(DenseBlock(LINE_CHANNELS + i * DENSE_GROWTH) for i in range(DENSE_BLOCKS))
        self.out = _conv(FEATURES, 1, OUT_TAPS)

    def forward(self, entry: Tensor, kt: Tensor) -> tuple[Tensor, Tensor]:
        z = entry
        for line in self.line:
            z = F.relu_(line(z))
        for dense in self.dense:
            z = dense(z)
        return z, self.out(z + kt)


def _fusion(channels_in: int, channels_out: int) -> nn.ModuleList:
    return nn.ModuleList([_conv(channels_in, channels_out, 1), _conv(channels_out, channels_out, 3)])


def _fuse(fusion: nn.ModuleList, a: Tensor, b: Tensor) -> Tensor:
    mixed: Tensor = fusion[1](F.relu_(fusion[0](torch.cat([a, b], dim=1))))
    return mixed


class Published(nn.Module):
    """(N, 1, H, W), float, about [0, 1] -> the deconvolved image at full, half and quarter size.

    Outputs are (N, 1, H, W), (N, 1, ceil(H/2), ceil(W/2)) and (N, 1, ceil(H/4), ceil(W/4)) in the input's dtype, in
    arbitrary units (the authors min-max normalise them). H and W may be any size from 16 on.
    """

    architecture: ClassVar[str] = "published"

    def __init__(self) -> None:
        super().__init__()
        self.kt = nn.ModuleDict(
            {
                s: nn.ModuleList(_conv(1 if i == 0 else KT_CHANNELS, KT_CHANNELS, 1) for i in range(KT_LAYERS))
                for s in SCALES
            }
        )
        self.kt_fusion = _fusion(2 * KT_CHANNELS, KT_CHANNELS)
        self.kt_out = nn.ModuleDict({s: _conv(KT_CHANNELS * (1 if s == "4" else 2), 1, 1) for s in SCALES})
        self.b_fusion = _fusion(1 + FEATURES, FEATURES)
        self.b = nn.ModuleDict({s: Inverse(1 if s == "4" else FEATURES) for s in SCALES})
        self.alignment_px = 4  # the half and quarter inputs are strided picks
        self.receptive_radius_px = _formal_radius_px()
        # On all five released networks the output beyond moves by < 2e-6 of its range (beyond 96 px: by up to 2e-5).
        self.default_halo_px = 112

    @property
    def settings_dict(self) -> dict[str, Any]:
        """What a weights card must hold to build this network again: nothing, there is only one."""
        return {}

    def forward(self, image_nchw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Deconvolve `image_nchw`; raises ValueError for a wrong shape or dtype or for H or W below 16."""
        x = image_nchw
        if x.ndim != 4 or x.shape[1] != 1 or not x.is_floating_point():
            raise ValueError(f"the network takes a float tensor (N, 1, H, W), not {x.dtype} {tuple(x.shape)}")
        height, width = x.shape[-2:]
        if min(height, width) < MIN_SIZE_PX:
            raise ValueError(f"the network needs at least {MIN_SIZE_PX} x {MIN_SIZE_PX} pixels, not {height} x {width}")
        # At most 3 pixels next to the border are mirrored: a tile that ends there pads as the whole image does.
        bottom, right = -height % self.alignment_px, -width % self.alignment_px
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom), mode="reflect")
        full, half, quarter = self.of_aligned(x)
        return (
            full[..., :height, :width],
            half[..., : -(-height // 2), : -(-width // 2)],
            quarter[..., : -(-height // 4), : -(-width // 4)],
        )

    def of_aligned(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`forward` of images whose height and width are multiples of `alignment_px`."""
        return self._invert(*self._back_project(x))

    def pyramid(self, image_nchw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return an image (sizes divisible by 4) at the three scales of the outputs: the training targets.

        Bilinear halving with half-pixel centres, as the network resizes its features: the mean of 2x2 pixels.
        """
        half = F.avg_pool2d(image_nchw, 2)
        return image_nchw, half, F.avg_pool2d(half, 2)

    def _back_project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """K^T: the image (N, 1, H, W) -> one channel at each scale."""
        kt0 = self._pointwise("0", x)
        kt2 = self._pointwise("2", x[..., ::2, ::2])
        kt4 = self._pointwise("4", x[..., ::4, ::4])
        up2 = up(kt2, 2)
        fused0 = _fuse(self.kt_fusion, kt0, up2)
        # Fused at full size and halved after: bilinear halving with half-pixel centres is the mean of 2x2.
        fused2 = F.avg_pool2d(_fuse(self.kt_fusion, up2, up(kt4, 4)), 2)
        return (
            self.kt_out["0"](torch.cat([kt0, fused0], dim=1)),
            self.kt_out["2"](torch.cat([kt2, fused2], dim=1)),
            self.kt_out["4"](kt4),
        )

    def _pointwise(self, scale: str, x: Tensor) -> Tensor:
        for conv in self.kt[scale].children():
            x = F.relu_(conv(x))
        return x

    def _invert(self, kt0: Tensor, kt2: Tensor, kt4: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """B, coarse to fine: each scale enters with its own back projection and the coarser scale's features."""
        features4, quarter = self.b["4"](kt4, kt4)
        features2, half = self.b["2"](_fuse(self.b_fusion, kt2, up(features4, 2)), kt2)
        _, full = self.b["0"](_fuse(self.b_fusion, kt0, up(features2, 2)), kt0)
        return full, half, quarter
