"""m-rBCR in true nonstandard form: the default network, 0.20 million parameters, 23 k multiply-adds a pixel.

Invariant: x = y + the synthesis of band corrections, so an untrained network is close to the identity, and its output
commutes with shifts by `alignment_px`. A flat image stays flat: no path can put a constant into a detail band.

All convolutions act on wavelet bands at half resolution or coarser; only the single-channel image is ever held at full
resolution.

    scale 1:  y --W--> K1^T (+ up K2^T) --(+) y --> B1 (+ up B2) --W^T--> x
    scale 2:  LL y --> K2^T (+ up K3^T) --(+) y --> B2 (+ up B3) --W^T--> x/2
    scale 3:  LL LL y -> K3^T ------------(+) y --> B3 -----------W^T--> x/4

The image scales are the scaling spaces of the wavelet itself (y/2 is LL of y), so one analysis of the input serves all
three. "up" is the synthesis of the coarser block's bands: an image of alpha channels that lies on the very grid of the
finer block's level-1 bands. K^T hands its bands to B without synthesis and analysis in between: the bank is
orthonormal, so the round trip is the identity.

Sources: R. Li, M. Kudryashev, A. Yakimovich, "Solving the inverse problem of microscopy deconvolution with a residual
Beylkin-Coifman-Rokhlin neural network", ECCV 2024, LNCS 15133 (the stages, the split x ~ B K^T y); Beylkin, Coifman,
Rokhlin 1991 and Fan, Orozco Bohorquez, Ying 2019 (see blocks.py).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mrbcr_cli.network import MIN_SIZE_PX
from mrbcr_cli.network.blocks import BandConv, NonstandardBlock, ResidualPair
from mrbcr_cli.network.guide import GUIDE_BINS, Tones
from mrbcr_cli.network.wavelets import BANDS, WaveletBank

BORDER_PX = 32
"""Reflected margin around the image; wider than the reach of the banks, so that border coefficients are sound."""

Pairs = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class MrbcrSettings:
    """Shape of the network. `kt_pairs[i][l]` and `b_pairs[i][l]`: residual pairs at scale i + 1, level l + 1."""

    alpha: int = 8
    kt_pairs: Pairs = ((1, 1), (1,), (0,))
    b_pairs: Pairs = ((1, 2), (2,), (0,))
    stages: int = 3
    """3: the multi-stage network; 1: the single-stage residual BCR-Net it grew from."""
    guided: bool = True
    """Whether it is told the power spectrum of the whole image (guide.py)."""
    guide_hidden: int = 32
    """Features between the spectrum and the gains that it sets."""

    def __post_init__(self) -> None:
        if self.stages not in (1, 2, 3):
            raise ValueError(f"stages must be 1, 2 or 3, not {self.stages}")
        if not 1 <= self.alpha <= 64:
            raise ValueError(f"alpha must be 1 to 64, not {self.alpha}")
        if not 1 <= self.guide_hidden <= 256:
            raise ValueError(f"guide_hidden must be 1 to 256, not {self.guide_hidden}")
        for name, pairs in (("kt_pairs", self.kt_pairs), ("b_pairs", self.b_pairs)):
            # The upper bounds keep a hostile weights card from taking all memory before its shapes are compared.
            if len(pairs) < self.stages or not all(1 <= len(scale) <= 4 for scale in pairs):
                raise ValueError(f"{name} needs 1 to 4 levels for each of {self.stages} scales, not {pairs}")
            if len(pairs) > 3 or not all(0 <= count <= 16 for scale in pairs for count in scale):
                raise ValueError(f"{name} needs at most 3 scales of 0 to 16 residual pairs a level, not {pairs}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MrbcrSettings:
        """Rebuild settings from JSON (lists become tuples). Raises ValueError or TypeError on unknown or bad values."""
        pairs: dict[str, Any] = {
            key: tuple(tuple(int(n) for n in scale) for scale in values[key])
            for key in ("kt_pairs", "b_pairs")
            if key in values
        }
        return cls(**{**values, **pairs})


class Stage(nn.Module):
    """K^T and B of one scale, with the convolutions that let the image and the coarser scale in."""

    def __init__(self, alpha: int, kt_pairs: tuple[int, ...], b_pairs: tuple[int, ...], guided: bool) -> None:
        super().__init__()
        self.kt_lift = BandConv(BANDS, alpha, detail_from=1)
        self.kt = NonstandardBlock(alpha, kt_pairs)
        self.b_lift = BandConv(BANDS, alpha, detail_from=1)
        self.b = NonstandardBlock(alpha, b_pairs)
        self.project = BandConv(BANDS * alpha, 1, detail_from=alpha)
        self.kt_fusion = BandConv(alpha, alpha) if guided else None
        self.b_fusion = BandConv(alpha, alpha) if guided else None
        with torch.no_grad():
            self.project.weight.mul_(0.1)
            self.project.bias.zero_()  # type: ignore[union-attr]

    def forward(
        self, y_bands: Tensor, kt_up: Tensor | None, b_up: Tensor | None, tones: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (bands of K^T y, bands of B, bands of x) at this scale, each at half its resolution."""
        kt: Tensor = self.kt_lift(y_bands)
        if self.kt_fusion is not None and kt_up is not None:
            kt = kt + self.kt_fusion(kt_up)
        kt = self.kt(kt, tones)
        b: Tensor = kt + self.b_lift(y_bands)
        if self.b_fusion is not None and b_up is not None:
            b = b + self.b_fusion(b_up)
        b = self.b(b, tones)
        return kt, b, y_bands + self.project(b)


class Mrbcr(nn.Module):
    """The multi-stage residual BCR network; see the module text. Float32 or reduced precision, any H and W >= 16."""

    architecture: ClassVar[str] = "mrbcr"

    def __init__(self, settings: MrbcrSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or MrbcrSettings()
        s = self.settings
        self.image_bank = WaveletBank(1)
        self.up_bank = WaveletBank(s.alpha)
        self.scales = nn.ModuleList(
            Stage(s.alpha, s.kt_pairs[i], s.b_pairs[i], guided=i + 1 < s.stages) for i in range(s.stages)
        )
        pairs = [module for module in self.scales.modules() if isinstance(module, ResidualPair)]
        for number, pair in enumerate(pairs):
            pair.number = number
        self.tones = Tones(len(pairs), BANDS * s.alpha, s.guide_hidden) if s.guided and pairs else None
        deepest = max(i + max(len(s.kt_pairs[i]), len(s.b_pairs[i])) for i in range(s.stages))
        # The outputs at half and quarter size need two analyses of x whatever the number of stages.
        self.alignment_px = 2 ** max(deepest, 3)
        self.receptive_radius_px = self._formal_radius_px()
        self.default_halo_px = 96

    @property
    def settings_dict(self) -> dict[str, Any]:
        """JSON-able constructor settings, as the weights card keeps them."""
        return asdict(self.settings)

    def forward(
        self,
        image_nchw: Tensor,
        at_border: tuple[bool, bool, bool, bool] = (True, True, True, True),
        guide: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map (N, 1, H, W), normalised to about [0, 1], to x, x/2, x/4 of ceil(H / 2^i), ceil(W / 2^i) pixels.

        `at_border` (top, bottom, left, right) tells where the tensor ends at the true border of the image, to be
        continued by reflection; elsewhere its outer `receptive_radius_px` are context and come out unsound. `guide`:
        (1, 22) for all images or (N, 22), see guide.py; without it a guided network takes the spectrum for middling.
        Raises ValueError for sizes below 16 px.
        """
        height, width = image_nchw.shape[-2:]
        padded, top, left = self.padded(image_nchw, at_border)
        images = self.of_padded(padded, guide)
        return tuple(  # type: ignore[return-value]
            image[..., top >> i : (top >> i) + -(-height >> i), left >> i : (left >> i) + -(-width >> i)]
            for i, image in enumerate(images)
        )

    def padded(self, image_nchw: Tensor, at_border: tuple[bool, bool, bool, bool]) -> tuple[Tensor, int, int]:
        """The image as the first bank wants it: continued at true borders, of an even size at all levels; and where in
        it the image begins (y, x).

        Raises ValueError for sizes below 16 px.
        """
        height, width = image_nchw.shape[-2:]
        if min(height, width) < MIN_SIZE_PX:
            raise ValueError(f"the network needs at least {MIN_SIZE_PX} x {MIN_SIZE_PX} px, not {height} x {width}")
        top, bottom, left, right = (BORDER_PX if edge else 0 for edge in at_border)
        padded = reflect_pad(image_nchw, self._margins(height, top, bottom), self._margins(width, left, right))
        return padded, top, left

    def of_padded(self, padded: Tensor, guide: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """`forward` of what `padded` returns, its margins still on."""
        return self._run(padded, self.tones_of(padded, guide))

    def pyramid(self, image_nchw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return an image at the three scales of the outputs (itself, LL, LL of LL): the training targets."""
        height, width = image_nchw.shape[-2:]
        rows, cols = self._margins(height, BORDER_PX, BORDER_PX), self._margins(width, BORDER_PX, BORDER_PX)
        padded = reflect_pad(image_nchw, rows, cols)
        half = self.image_bank.analysis(padded)[:, :1]
        quarter = self.image_bank.analysis(half)[:, :1]
        top = (BORDER_PX >> 1, BORDER_PX >> 2)
        sizes = [(-(-height >> i), -(-width >> i)) for i in (1, 2)]
        return (
            image_nchw,
            half[..., top[0] : top[0] + sizes[0][0], top[0] : top[0] + sizes[0][1]],
            quarter[..., top[1] : top[1] + sizes[1][0], top[1] : top[1] + sizes[1][1]],
        )

    def _margins(self, length: int, before: int, after: int) -> tuple[int, int]:
        return before, after + -(length + before + after) % self.alignment_px

    def tones_of(self, like: Tensor, guide: Tensor | None) -> Tensor | None:
        """What the guide makes of the residual pairs, in the device and precision of `like`; None where unguided."""
        if self.tones is None:
            return None
        found: Tensor = self.tones(like.new_zeros(1, GUIDE_BINS) if guide is None else guide.to(like))
        return found

    def _run(self, y: Tensor, tones: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        y_bands = [self.image_bank.analysis(y)]
        for _ in range(1, len(self.scales)):
            y_bands.append(self.image_bank.analysis(y_bands[-1][:, :1]))
        images: list[Tensor] = []
        kt_up: Tensor | None = None
        b_up: Tensor | None = None
        for scale in reversed(range(len(self.scales))):
            kt, b, x_bands = self.scales[scale](y_bands[scale], kt_up, b_up, tones)
            images.insert(0, self.image_bank.synthesis(x_bands))
            if scale > 0:
                kt_up, b_up = self.up_bank.synthesis(kt), self.up_bank.synthesis(b)
        while len(images) < 3:
            images.append(self.image_bank.analysis(images[-1])[:, :1])
        return images[0], images[1], images[2]

    def _formal_radius_px(self) -> int:
        """Radius from the structure: 3 px a bank at each grid, one grid step a 3x3 convolution.

        Walks the deepest chain backwards: at scale i everything a stage does is bounded by the reach of its blocks.
        """
        bank, s = 3, self.settings

        def block(pairs: tuple[int, ...], grid: int) -> int:
            """Reach (px) of a block whose level-1 bands lie on a grid of `grid` px."""
            own = grid * max(2 * pairs[0], 1)
            return own if len(pairs) == 1 else max(own, bank * grid * 2 + block(pairs[1:], 2 * grid))

        kt_reach = b_reach = 0
        for i in reversed(range(s.stages)):
            grid = 2 ** (i + 1)
            lift = sum(bank * 2**j for j in range(i + 1)) + grid
            up = bank * grid + grid
            kt_reach = max(lift, kt_reach + up if i + 1 < s.stages else 0) + block(s.kt_pairs[i], grid)
            b_reach = max(kt_reach, lift, b_reach + up if i + 1 < s.stages else 0) + block(s.b_pairs[i], grid)
        return b_reach + 2 + bank  # projection and the last synthesis


def reflect_pad(image_nchw: Tensor, rows: tuple[int, int], cols: tuple[int, int]) -> Tensor:
    """Continue (N, C, H, W) by reflection (edge pixel not repeated) by any number of pixels, also beyond H or W."""
    for dim, (before, after) in ((-2, rows), (-1, cols)):
        if before or after:
            length = image_nchw.shape[dim]
            period = max(2 * (length - 1), 1)
            index = torch.arange(-before, length + after, device=image_nchw.device).remainder(period)
            image_nchw = image_nchw.index_select(dim, torch.minimum(index, period - index))
    return image_nchw
