"""The two networks behind one interface; pure torch, no files.

Invariant: a network is a fully convolutional map from (N, 1, H, W) to three images (full, half and quarter size)
whose result for a pixel depends on nothing farther away than `receptive_radius_px`, provided that tiles start at
multiples of `alignment_px` in the coordinates of the whole image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor

MIN_SIZE_PX = 16
"""Smallest height or width that a network accepts."""


class DeconvolutionNetwork(Protocol):
    """What the rest of the tool knows of a network (an eval-mode torch module)."""

    architecture: ClassVar[str]
    """ "mrbcr" or "published"; the word in the weights card."""
    alignment_px: int
    """Tile starts must be multiples of this in the coordinates of the whole image."""
    receptive_radius_px: int
    """No output pixel depends on an input pixel farther away than this (Chebyshev distance)."""
    default_halo_px: int
    """Context that tiles get when the weights card does not say more."""

    @property
    def settings_dict(self) -> dict[str, Any]:
        """JSON-able constructor settings, as the weights card keeps them."""
        ...

    def forward(self, image_nchw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (N, 1, H, W), normalised to about [0, 1], H and W >= 16, to images of full, half and quarter size."""
        ...
