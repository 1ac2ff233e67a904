"""How much context a tile needs in practice: far less than the formal receptive field.

Invariant: the answer is a pure function of the network and its weights (the test image is seeded), and it is never
larger than the formal radius rounded up to the alignment, beyond which tiled equals whole by construction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mrbcr_cli.network import DeconvolutionNetwork

CANDIDATES_PX = (16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)
TOLERANCE = 2e-7
"""Of the output's range; a tenth of what tiles may differ by, for two probes cannot show the worst image."""
_TILE_PX = 64
_MARGIN_PX = 288
"""True context on each side of the tile: wider than the largest candidate, so that none is trivially right."""


def measure_effective_halo(
    network: DeconvolutionNetwork, tolerance: float = TOLERANCE, candidates_px: tuple[int, ...] = CANDIDATES_PX
) -> int:
    """Return the smallest halo (px, a multiple of the alignment) with which a tile equals the whole image.

    Equal: the full-size output of an interior 64 px tile, computed from its crop with that halo, differs from the
    output of the whole 608 px image by at most `tolerance` times that output's range, for an image of structures and
    for one of noise (networks differ in which of them reaches farther). Where no candidate does, the formal radius
    rounded up to the alignment, which is always enough. Computed in float64, so that rounding (2e-7 to 1e-6 of the
    range in float32) does not hide the answer. `network` must be a module in eval mode on the CPU; it is left as it
    is. `published` takes about a minute of one core. Raises ValueError when the output is not finite.
    """
    import copy

    import torch

    network = cast("DeconvolutionNetwork", copy.deepcopy(cast("nn.Module", network)).double())
    align = network.alignment_px
    sufficient = _round_up(network.receptive_radius_px, align)
    size = _TILE_PX + 2 * _MARGIN_PX
    inner = slice(_MARGIN_PX, _MARGIN_PX + _TILE_PX)
    with torch.inference_mode():
        images = (blobs_nchw(size).double(), noise_nchw(size).double())
        guides = [_guide(network, image) for image in images]
        wholes = [_output(network, image, guide) for image, guide in zip(images, guides, strict=True)]
        if not all(bool(whole.isfinite().all()) for whole in wholes):
            raise ValueError("the network's output on a test image in [0, 1] is not finite; its weights are unusable")
        for halo in sorted(candidates_px):
            if halo % align or halo > _MARGIN_PX:
                continue
            if halo >= sufficient:
                break
            crop, own = slice(_MARGIN_PX - halo, inner.stop + halo), slice(halo, halo + _TILE_PX)
            if all(
                float(
                    (
                        _output(network, image[..., crop, crop], guide, whole=False)[..., own, own]
                        - full[..., inner, inner]
                    )
                    .abs()
                    .max()
                )
                <= tolerance * float(full.max() - full.min())
                for image, full, guide in zip(images, wholes, guides, strict=True)
            ):
                return halo
    return sufficient


def _round_up(length_px: int, step_px: int) -> int:
    return -(-length_px // step_px) * step_px


def _guide(network: DeconvolutionNetwork, image_nchw: Tensor) -> Tensor | None:
    """What a guided network is told of an image: gains reach farther for some spectra than for others."""
    from mrbcr_cli.network.guide import guide_of_batch

    return guide_of_batch(image_nchw) if getattr(network, "tones", None) is not None else None


def _output(network: DeconvolutionNetwork, image_nchw: Tensor, guide: Tensor | None, *, whole: bool = True) -> Tensor:
    """The full-size output of an image, or of a crop that lies inside one, as the engine runs it."""
    from mrbcr_cli.network.mrbcr import Mrbcr

    if isinstance(network, Mrbcr):  # the one that can be told that the crop's sides are not the image's border
        return network.forward(image_nchw, (whole,) * 4, guide)[0]
    return network.forward(image_nchw)[0]


def noise_nchw(size_px: int, seed: int = 1991) -> Tensor:
    """A seeded test image (1, 1, size, size), float32: noise, uniform over [0, 1]."""
    import torch

    return torch.rand(1, 1, size_px, size_px, generator=torch.Generator().manual_seed(seed))


def blobs_nchw(size_px: int, seed: int = 2024) -> Tensor:
    """A seeded test image (1, 1, size, size), float32 in [0, 1]: Gaussian blobs of many widths, and some noise."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    grid = torch.arange(size_px, dtype=torch.float32)
    count = max(1, size_px * size_px // 1500)
    centre_yx = torch.rand(count, 2, generator=generator) * size_px
    sigma_px = 1.0 + 9.0 * torch.rand(count, 1, generator=generator) ** 2
    height = torch.rand(count, 1, generator=generator)
    rows, cols = (torch.exp(-0.5 * ((grid - centre_yx[:, k : k + 1]) / sigma_px) ** 2) for k in (0, 1))
    image = (height * rows).T @ cols
    image = image / image.max() + 0.05 * torch.randn(size_px, size_px, generator=generator)
    return image.clamp(0, 1)[None, None]
