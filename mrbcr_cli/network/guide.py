"""What the network is told of the whole image: its radial power spectrum, which shows blur, haze and noise.

Invariant: the guide is a function of the normalised pixels of the tiles looked at, in any order; a network that is told
nothing (a guide of zeros) is a network for an image of middling spectrum, and every network learns that case too.

A tile alone does not show how wide the PSF is, so without the guide the answer would be that of the widest or of the
mean one. Spectra are averaged over Hann-windowed tiles (Welch 1967, IEEE Trans. Audio Electroacoust. 15, 70); gains and
shifts from a small perceptron act on the features of the residual pairs (FiLM: Perez et al. 2018, AAAI 32).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from numpy.typing import NDArray

GUIDE_BINS = 22
"""Length of the guide: rings of two frequency steps each, from 1/64 to 0.7 cycles per pixel (the corners)."""
TILE_PX = 64
SHARE, LEAST_TILES, MOST_TILES = 4, 4, 256
"""One tile in four is looked at, the most varied: empty ground would dilute what the structures show."""
_TILES_AT_ONCE = 512
"""Many small windows one by one would cost more calls than arithmetic."""
LEAST_POWER = 1e-7
"""Of an intensity range of 1: far below the noise of any camera."""
MIDDLE, SPREAD = -3.0, 1.5
"""Of log10 of the power, over the rings of ordinary images: the guide is about -2 to 3."""
DECIMALS = 4
_TONES = 3
"""Per feature of a residual pair: gain and shift within its branch, and gain of what passes it by."""


def tile_powers(tiles: Tensor) -> Tensor:
    """Power in each ring of square tiles (N, 64, 64) float32, as (N, 22).

    Each tile has its weighted mean taken off; white noise of variance v has the power v in every ring.
    """
    window = torch.hann_window(TILE_PX, periodic=True, device=tiles.device)
    weight = window[:, None] * window
    level = (tiles * weight).sum((1, 2), keepdim=True) / weight.sum()
    power = torch.fft.fft2((tiles - level) * weight).abs().square() / weight.square().sum()
    ring, area = (fixed.to(tiles.device) for fixed in rings())
    summed = power.new_zeros(len(tiles), GUIDE_BINS + 1).index_add_(1, ring, power.flatten(1))
    mean: Tensor = summed[:, 1:] / area
    return mean


@lru_cache(maxsize=1)
def rings() -> tuple[Tensor, Tensor]:
    """Ring of each frequency of fft2, flattened: 1 to 22, and 0 for the mean; and how many frequencies a ring has."""
    index = torch.fft.fftfreq(TILE_PX, 1 / TILE_PX)
    radius = torch.hypot(index[:, None], index[None]).round().long()
    ring = ((radius + 1) // 2).clamp_max(GUIDE_BINS).flatten()
    return ring, torch.bincount(ring)[1:]


def _guide(powers: Tensor) -> Tensor:
    """The guide (22,) from the powers of all tiles (N, 22) of an image."""
    count = min(max(-(-len(powers) // SHARE), LEAST_TILES), MOST_TILES, len(powers))
    # Rings count by their area: the sum is the variance of the tile.
    area = rings()[1].to(powers)
    chosen = (powers * area).sum(1).topk(count).indices
    return ((powers[chosen].mean(0) + LEAST_POWER).log10() - MIDDLE) / SPREAD


@torch.no_grad()
def guide_of_batch(images_nchw: Tensor) -> Tensor:
    """The guides (N, 22) of normalised images (N, 1, H, W), each from its own tiles; smaller than 64 px: reflected."""
    images = _at_least_a_tile(images_nchw.float())
    tiles = images[:, 0].unfold(1, TILE_PX, TILE_PX).unfold(2, TILE_PX, TILE_PX)
    powers = tile_powers(tiles.reshape(-1, TILE_PX, TILE_PX)).reshape(len(images), -1, GUIDE_BINS)
    return torch.stack([_guide(own) for own in powers])


@torch.no_grad()
def guide_of_windows(windows: Iterable[NDArray[Any]], low: float, high: float) -> tuple[float, ...] | None:
    """The guide of a channel from windows (Y, X) of it, in image units, of which `low` and `high` become 0 and 1.

    Tiles that hold NaN or infinity are left out; None where there is no other. Rounded, so that machines agree.
    """
    found: list[Tensor] = []
    waiting: list[Tensor] = []
    for window in windows:
        image = torch.from_numpy(((window.astype("float64") - low) / (high - low)).astype("float32"))[None, None]
        image = _at_least_a_tile(image)
        tiles = image[0, 0].unfold(0, TILE_PX, TILE_PX).unfold(1, TILE_PX, TILE_PX).reshape(-1, TILE_PX, TILE_PX)
        if window.dtype.kind == "f":
            tiles = tiles[tiles.isfinite().all(dim=2).all(dim=1)]
        if len(tiles):
            waiting.append(tiles)
        if sum(map(len, waiting)) >= _TILES_AT_ONCE:
            found.append(tile_powers(torch.cat(waiting)))
            waiting.clear()
    if waiting:
        found.append(tile_powers(torch.cat(waiting)))
    powers = torch.cat(found) if found else torch.empty(0, GUIDE_BINS)
    powers = powers[powers.isfinite().all(dim=1)]
    return tuple(round(float(v), DECIMALS) for v in _guide(powers)) if len(powers) else None


def _at_least_a_tile(image_nchw: Tensor) -> Tensor:
    from mrbcr_cli.network.mrbcr import reflect_pad

    rows, cols = ((0, max(TILE_PX - size, 0)) for size in image_nchw.shape[-2:])
    return reflect_pad(image_nchw, rows, cols)


class Tones(nn.Module):
    """From the guide to gains and shifts for the features of every residual pair; at the start they change nothing."""

    def __init__(self, pairs: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.shape = (pairs, _TONES, channels)
        self.hidden = nn.Linear(GUIDE_BINS, hidden)
        self.out = nn.Linear(hidden, math.prod(self.shape))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, guide: Tensor) -> Tensor:
        """Map (N, 22) to (N, pairs, 3, channels)."""
        found: Tensor = self.out(F.relu(self.hidden(guide)))
        return found.reshape(-1, *self.shape)
