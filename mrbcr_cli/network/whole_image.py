"""A network that takes images as they are recorded: range, spectrum and reflection inside, for use without this tool.

Invariant: what it makes of an image agrees with what `mrbcr deconvolve` makes of it (held by tests); its operations are
those that ONNX knows, for every batch, height and width, so nothing here branches on a size.

The spectrum is that of guide.py. A Fourier transform of 64 px is two matrix products here, since few runtimes beside
ONNX Runtime's CPU know the operation DFT.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mrbcr_cli.network.guide import (
    DECIMALS,
    GUIDE_BINS,
    LEAST_POWER,
    LEAST_TILES,
    MIDDLE,
    MOST_TILES,
    SHARE,
    SPREAD,
    TILE_PX,
    rings,
)
from mrbcr_cli.network.mrbcr import BORDER_PX, Mrbcr
from mrbcr_cli.network.published import Published


class WholeImage(nn.Module):
    """(N, 1, H, W) float32 in any unit -> the deconvolved images, in that unit; every image with its own range.

    H and W from 16 on, finite pixels. Each parameter lies under the name that the weights file gives it, after
    "network.".
    """

    def __init__(self, network: Mrbcr | Published, percentiles: tuple[float, float]) -> None:
        """`percentiles` of an image become 0 and 1, as the weights card says."""
        super().__init__()
        self.network = network
        self.percentiles = percentiles
        guided = isinstance(network, Mrbcr) and network.tones is not None
        self.spectrum = _Spectrum() if guided else None

    def forward(
        self, image: Tensor, range_given: Tensor, guide_given: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
        """Return the images (N, 1, H, W), the range (N, 2) of each and, of a guided network, the guide (N, 22).

        `range_given` (1, 2) and `guide_given` (1, 22) hold for all images; where they are NaN each image is measured.
        Without a `guide_given` a guided network takes the spectrum for middling.
        """
        measured = _range_of(image.flatten(1), self.percentiles)
        limits = torch.where(range_given.isnan(), measured, range_given)
        low = limits[:, :1, None, None]
        width = limits[:, 1:, None, None] - low
        scaled = (image - low) / width
        if self.spectrum is None or guide_given is None:
            return self._deconvolved(scaled, None) * width + low, limits
        spectrum: Tensor = self.spectrum(scaled)
        guide = torch.where(guide_given.isnan(), spectrum, guide_given)
        return self._deconvolved(scaled, guide) * width + low, limits, guide

    def _deconvolved(self, scaled: Tensor, guide: Tensor | None) -> Tensor:
        height, width = scaled.shape[-2:]
        align = self.network.alignment_px
        if isinstance(self.network, Published):
            return self.network.of_aligned(_reflected(scaled, 0, align))[0][..., :height, :width]
        found = self.network.of_padded(_reflected(scaled, BORDER_PX, align), guide)[0]
        return found[..., BORDER_PX : BORDER_PX + height, BORDER_PX : BORDER_PX + width]


class _Spectrum(nn.Module):
    """`guide.guide_of_batch` in matrix products; its constants are buffers, no weights."""

    def __init__(self) -> None:
        super().__init__()
        window = torch.hann_window(TILE_PX, periodic=True, dtype=torch.float64)
        weight = window[:, None] * window
        turns = torch.arange(TILE_PX, dtype=torch.float64)
        angle = turns[:, None] * turns * (2 * math.pi / TILE_PX)
        half = TILE_PX // 2 + 1
        ring, area = rings()
        # The image is real: of the frequencies along x one half tells the other.
        twice = torch.full((half,), 2.0)
        twice[[0, -1]] = 1
        constants = {
            "window": weight.float(),
            "cosine": angle.cos().float(),
            "sine": angle.sin().float(),
            "ring": ring.reshape(TILE_PX, TILE_PX)[:, :half].flatten().int(),
            "share": (twice.expand(TILE_PX, half).flatten() / weight.square().sum()).float(),
            "numbers": torch.arange(1, GUIDE_BINS + 1).int(),
            "area": area.float(),
        }
        for name, constant in constants.items():
            self.register_buffer(name, constant.contiguous(), persistent=False)

    window: Tensor
    cosine: Tensor
    sine: Tensor
    ring: Tensor
    numbers: Tensor
    share: Tensor
    area: Tensor

    def forward(self, scaled: Tensor) -> Tensor:
        """Map images (N, 1, H, W), normalised, to their guides (N, 22)."""
        powers = self._powers(self._tiles(scaled))
        count = powers.shape[1]
        wanted = _number((count + SHARE - 1) // SHARE)
        wanted = torch.minimum(torch.maximum(wanted, _number(LEAST_TILES)), _number(MOST_TILES))
        # Rings count by their area: the sum is the variance of the tile.
        order = (powers * self.area).sum(2).argsort(dim=1, descending=True)
        chosen = (torch.arange(count) < torch.minimum(wanted, _number(count))).float()
        ranked = powers.gather(1, order[..., None].expand(-1, -1, GUIDE_BINS))
        mean = (ranked * chosen[:, None]).sum(1) / chosen.sum()
        guide = ((mean + LEAST_POWER).log10() - MIDDLE) / SPREAD
        rounded: Tensor = (guide * 10**DECIMALS).round() / 10**DECIMALS
        return rounded

    def _tiles(self, scaled: Tensor) -> Tensor:
        """Non-overlapping tiles from the top left, (N, count, 64, 64); smaller images are reflected to one."""
        image = scaled[:, 0]
        for dim in (1, 2):
            image = _reflected_to(image, dim, TILE_PX)
        down, across = image.shape[1] // TILE_PX, image.shape[2] // TILE_PX
        cut = image[:, : down * TILE_PX, : across * TILE_PX]
        return cut.reshape(-1, down, TILE_PX, across, TILE_PX).transpose(2, 3).flatten(1, 2)

    def _powers(self, tiles: Tensor) -> Tensor:
        """`guide.tile_powers` of (N, count, 64, 64), as (N, count, 22)."""
        level = (tiles * self.window).sum((2, 3), keepdim=True) / self.window.sum()
        tile = (tiles - level) * self.window
        half = TILE_PX // 2 + 1
        cosine, sine = self.cosine, self.sine
        real, imaginary = tile @ cosine[:, :half], tile @ sine[:, :half]
        power = (cosine @ real - sine @ imaginary).square() + (sine @ real + cosine @ imaginary).square()
        in_ring = (self.ring[:, None] == self.numbers).float() * self.share[:, None]
        return power.flatten(2) @ in_ring / self.area


def _range_of(pixels: Tensor, percentiles: tuple[float, float]) -> Tensor:
    """Low and high (N, 2) of pixels (N, H * W), as `intensity.survey_channel` finds them."""
    count = pixels.shape[1]
    ordered = pixels.sort(dim=1).values
    found = []
    for percentile in percentiles:
        place = _number(count - 1).double() * (percentile / 100)
        below = place.floor()
        ends = ordered[:, below.long()], ordered[:, place.ceil().long()]
        found.append(ends[0] + (ends[1] - ends[0]) * (place - below).float())
    low, high = found
    # A few bright objects on nothing, then nothing at all.
    flat = low >= high
    low, high = torch.where(flat, ordered[:, 0], low), torch.where(flat, ordered[:, -1], high)
    return torch.stack((low, torch.where(low >= high, low + 1, high)), dim=1)


def _number(size: int) -> Tensor:
    """A size as a tensor: arithmetic that would otherwise be fixed when the graph is drawn."""
    return torch.scalar_tensor(size, dtype=torch.int64)


def _reflected(image: Tensor, border: int, align: int) -> Tensor:
    """`reflect_pad` by a border on all sides, and then to a multiple of `align`."""
    for dim in (2, 3):
        length = image.shape[dim]
        padded = (length + 2 * border + align - 1) // align * align
        image = _taken(image, dim, torch.arange(padded) - border)
    return image


def _reflected_to(image: Tensor, dim: int, least: int) -> Tensor:
    length = image.shape[dim]
    longer = torch.sym_max(length, least)  # type: ignore[no-untyped-call]
    return _taken(image, dim, torch.arange(longer))


def _taken(image: Tensor, dim: int, index: Tensor) -> Tensor:
    """The image continued without end by reflection, at these places."""
    period = 2 * _number(image.shape[dim] - 1)
    folded = index.remainder(period)
    return image.index_select(dim, torch.minimum(folded, period - folded))
