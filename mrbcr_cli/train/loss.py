"""The loss: pixels and spectrum of the error at the three scales, each patch in units of its own contrast.

Invariant: only pixels that are no mere context count; an error counts the same in a bright and in a dim patch; the loss
is computed in float32 whatever the precision of the network.

Sources: R. Li et al., ECCV 2024 (MSE + weight * mean |FFT| of the error, summed over three scales; here the true 2-D
transform, orthonormal); P. Charbonnier et al., ICIP 1994 (the robust penalty).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["mse", "charbonnier", "log", "gain"]

LEAST_CONTRAST = 0.25
"""Of the normalised range: an empty patch has no contrast, and its noise must not count for everything."""
LOG_FLOOR = 1e-5
"""Mean square error (of contrast 1; 50 dB) below which the logarithm gains little more."""
_SMOOTHINGS_PX = (1.0, 2.0)
"""Sigmas of the Gaussians that the recorded patch is smoothed with, beside not at all."""


@dataclass(frozen=True)
class LossSettings:
    """What is summed. `log` is the logarithm of each patch's mean square error: the mean PSNR is what it descends.

    `gain` is that too, but a patch that already is far better than what needs no network counts less: any smoothing of
    its input and, where fluorescence is simulated on the fly, Richardson-Lucy that is told the optics. So where haze or
    noise is easily outdone nothing is sought at the cost of patches where that is hard. `gain_floor` is the share of
    the error of the best of these below which little more is gained.
    """

    kind: Kind = "mse"
    fft_weight: float = 0.05
    gain_floor: float = 0.3
    scale_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)


def loss_of(
    outputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    settings: LossSettings,
    rim_px: int = 0,
    inputs: Sequence[Tensor] = (),
    peers: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """Return the loss and, for the record, the mean square error at full size of each patch (N,), in contrast units.

    `outputs` and `targets`: (N, 1, H, W) at full, half, quarter size (or only the first of these). The outer `rim_px`
    (at full size) are context and do not count. For `gain` alone, at the same scales: `inputs`, what was recorded, and,
    where they are known, `peers`, what an explicit method makes of it.
    """
    contrast = (targets[0].amax((1, 2, 3), keepdim=True) - targets[0].amin((1, 2, 3), keepdim=True)).float()
    contrast = contrast.clamp_min(LEAST_CONTRAST)
    total = outputs[0].new_zeros((), dtype=torch.float32)
    errors = torch.zeros(len(outputs[0]))
    for level, (output, target) in enumerate(zip(outputs, targets, strict=False)):
        rim = rim_px >> level
        height, width = target.shape[-2:]
        inner = (..., slice(rim, height - rim), slice(rim, width - rim))
        error = (output[inner].float() - target[inner].float()) / contrast
        square = error.square().mean((1, 2, 3))
        if level == 0:
            errors = square.detach()
        floor: Tensor | float = LOG_FLOOR
        if settings.kind == "gain":
            floor = LOG_FLOOR + settings.gain_floor * _yardstick(
                inputs[level], peers[level] if peers else None, target, contrast, inner
            )
        term = _pixel_term(error, square, settings.kind, floor)
        if settings.fft_weight:
            term = term + settings.fft_weight * _spectral_term(error, square, settings.kind, floor)
        total = total + settings.scale_weights[level] * term
    return total, errors


@torch.no_grad()
def _yardstick(
    recorded: Tensor, peer: Tensor | None, target: Tensor, contrast: Tensor, inner: tuple[Any, ...]
) -> Tensor:
    """Mean square error (N,) of the best of some smoothings of the patch and of the peer, in contrast units."""
    candidates = [recorded.float()] if peer is None else [recorded.float(), peer.float()]
    for sigma in _SMOOTHINGS_PX:
        reach = round(3 * sigma)
        kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=recorded.device) / sigma).square())
        kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
        padded = F.pad(recorded.float(), (reach,) * 4, mode="replicate")
        candidates.append(F.conv2d(F.conv2d(padded, kernel), kernel.transpose(2, 3)))
    off = torch.stack([((found[inner] - target[inner].float()) / contrast) for found in candidates])
    return off.square().mean((2, 3, 4)).amin(0)


def _pixel_term(error: Tensor, square: Tensor, kind: Kind, floor: Tensor | float) -> Tensor:
    if kind == "mse":
        return square.mean()
    if kind == "charbonnier":
        return (error.square() + 1e-6).sqrt().mean()
    return 0.1 * (square + floor).log().mean()


def _spectral_term(error: Tensor, square: Tensor, kind: Kind, floor: Tensor | float) -> Tensor:
    """Mean modulus of the error's spectrum; for "log" in units of the patch's own RMS error, so both terms weigh alike.

    The square root has no gradient at zero; the small constant keeps it finite.
    """
    spectrum = torch.view_as_real(torch.fft.rfft2(error, norm="ortho"))
    modulus = (spectrum.square().sum(-1) + 1e-10).sqrt().mean((1, 2, 3))
    if kind in ("log", "gain"):
        return (modulus / (square.detach() + floor).sqrt()).mean()
    return modulus.mean()
