"""Image formation that explicit deconvolution inverts: blur on a block's domain, its adjoint, Richardson-Lucy's factor.

Invariant: the domain is the block and half a PSF more on each side, so that the block's pixels see no wrap-around; a
flat block stays flat under everything here.

Sources: Bertero and Boccacci 2005 (A&A 437, 369), the weights at the border.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from scipy.fft import next_fast_len
from torch import Tensor

if TYPE_CHECKING:
    from mrbcr_cli.psf_grid import Psf

MIN_WEIGHT = 0.01
"""Outside the block an estimate that reaches it with less than this share of its light is left as it started."""
START_FROM_PSF = 0.1
"""Share of the start that is the data correlated with the PSF: it leaves no zeros among single photons."""


@dataclass(frozen=True)
class Weight:
    """How a correction is weighed at each point of the domain (float32): `inverse` is 1 / (H^T 1), and 0 where the
    block sees too little of the point; `unseen` is 1 there, else 0: such points stay as they started.
    """

    inverse: Tensor
    unseen: Tensor


class ImagingModel:
    """One shape of block: its domain, the PSF's transfer function on it, its scale.

    A subclass may have many blocks of one shape, each with its own PSF and background: these are leading axes then.

    The domain is the block and half a PSF more on each side. The two sides must not share pixels, or light would pass
    from one border to the other and the result there would depend on how far away the other one is.
    """

    def __init__(self, psf: Psf, block: tuple[int, ...], device: torch.device, background: float, span: float) -> None:
        shape = extended(block, [2 * radius for radius in psf.radius_zyx])
        self.shape = shape if psf.is_3d else shape[1:]
        self.dims = tuple(range(-len(self.shape), 0))
        self.window = window(block[-len(self.shape) :])
        self.background: float | Tensor = background
        self.span = span
        self.tiny: float | Tensor = 1e-6 * span
        self.transfer = transfer_function(psf, self.shape, device)

    def blur(self, values: Tensor) -> Tensor:
        """Return H values."""
        return self._filtered(values, self.transfer)

    def correlate(self, values: Tensor) -> Tensor:
        """Return H^T values."""
        return self._filtered(values, self.transfer, adjoint=True)

    def weight(self) -> Weight:
        """Return what H^T of the block's window says: the share of each point's light that the block records.

        Domain, after leading axes where blocks have their own PSF.
        """
        many = self.transfer.shape[: -len(self.shape)]
        block = torch.zeros((*many, *self.shape), device=self.transfer.device)
        block[self.window] = 1
        seen = self.correlate(block)
        kept = seen >= MIN_WEIGHT
        return Weight(kept / seen.clamp(min=MIN_WEIGHT), (~kept).float())

    def start(self, data: Tensor) -> Tensor:
        """Return the first estimate (domain, not negative)."""
        whole = extend((data - self.background).clamp_(min=0), self.shape, blend=False)
        binomial = _binomial(self.shape, data.device)
        mixed = self.transfer.conj().mul(START_FROM_PSF).add_(binomial, alpha=1 - START_FROM_PSF)
        return self._filtered(whole, mixed).clamp_(min=0)

    def correction(self, estimate: Tensor, data: Tensor, weight: Weight) -> Tensor:
        """Return H^T(data / (H estimate + background)) / H^T 1, the factor that Richardson-Lucy multiplies with."""
        blurred = self.blur(estimate)
        expected = blurred[self.window].add_(self.background).clamp_(min=self.tiny)
        torch.div(data, expected, out=expected)
        self._clear_margin(blurred)
        return self.correlate(blurred).clamp_(min=0).mul_(weight.inverse).add_(weight.unseen)

    def improve_(self, estimate: Tensor, data: Tensor, weight: Weight) -> Tensor:
        """Multiply the estimate in place with its correction, one iteration of Richardson-Lucy; return it."""
        return estimate.mul_(self.correction(estimate, data, weight))

    def close(self) -> None:
        """Give back what it holds: nothing here."""

    def _clear_margin(self, values: Tensor) -> None:
        """Set to 0 what lies beyond the block."""
        for axis, part in zip(self.dims, self.window[1:], strict=True):
            values.narrow(axis, part.stop, values.shape[axis] - part.stop).zero_()

    def _filtered(self, values: Tensor, response: Tensor, *, adjoint: bool = False) -> Tensor:
        """Return the values (domain) filtered with this response, or its conjugate."""
        spectrum = multiply_(torch.fft.rfftn(values, dim=self.dims), response, adjoint)
        result: Tensor = torch.fft.irfftn(spectrum, s=self.shape, dim=self.dims)
        return result


def multiply_(spectrum: Tensor, response: Tensor, adjoint: bool) -> Tensor:
    """Multiply a spectrum in place with a response of its shape, or with its conjugate."""
    if adjoint:  # V conj(H) = conj(conj(V) H), without a copy of the response
        return spectrum.conj_physical_().mul_(response).conj_physical_()
    return spectrum.mul_(response)


def extend(block: Tensor, shape: Sequence[int], *, blend: bool = True) -> Tensor:
    """Return the block (its last axes) continued at the high end of each axis to `shape`, periodic.

    The added part goes from the reflection of the high end into the reflection of the low end: with `blend` it fades
    in its middle third, so that wrapping around meets no edge; without, it changes at once in the middle. Either way
    what lies beside an end depends on that end alone. A flat block stays flat.
    """
    for axis, size in zip(range(-len(shape), 0), shape, strict=True):
        have = block.shape[axis]
        more = size - have
        if more <= 0:
            continue
        step = torch.arange(more, device=block.device)
        after_high = have - 1 - step.clamp(max=have - 1)
        before_low = (more - 1 - step).clamp(max=have - 1)
        if blend:
            middle = (3 * (step + 1) / (more + 1) - 1).clamp(0, 1)
            fade = 0.5 - 0.5 * torch.cos(math.pi * middle)
        else:
            fade = (step >= more // 2).float()
        fade = fade.to(block.dtype).reshape([-1] + [1] * (-axis - 1))
        tail = torch.lerp(block.index_select(axis, after_high), block.index_select(axis, before_low), fade)
        block = torch.cat([block, tail], dim=axis)
    return block


def transfer_function(psf: Psf, shape: Sequence[int], device: torch.device) -> Tensor:
    """Return the transfer function (complex64) of the PSF on a domain of two or three axes, origin at index 0."""
    values = torch.tensor(psf.values_zyx, device=device)
    values = values if psf.is_3d else values[0]
    padded = torch.zeros(tuple(shape), device=device)
    # A domain that is smaller than the PSF (only the grids of estimates) gets its middle part.
    cut = [max(0, (n - m + 1) // 2) for n, m in zip(values.shape, padded.shape, strict=True)]
    values = values[tuple(slice(c, n - c) for c, n in zip(cut, values.shape, strict=True))]
    padded[tuple(slice(0, n) for n in values.shape)] = values
    origin = [-(n // 2) for n in values.shape]
    transfer: Tensor = torch.fft.rfftn(torch.roll(padded, origin, dims=tuple(range(padded.ndim))))
    return transfer


def extended(block: Sequence[int], margin: Sequence[int]) -> tuple[int, ...]:
    """Return a domain that FFTs quickly and holds the block and `margin` more pixels (at least 2 * margin + 1)."""
    return tuple(
        next_fast_len(max(size + more, 2 * more + 1), real=True) if more else size
        for size, more in zip(block, margin, strict=True)
    )


def window(shape: Sequence[int]) -> tuple[Any, ...]:
    """Return the index of the first `shape` values along the last axes."""
    return (..., *(slice(0, size) for size in shape))


def frequencies(shape: Sequence[int], device: torch.device) -> list[Tensor]:
    """Return the frequencies (cycles per pixel) of rfftn along each axis."""
    return [torch.fft.fftfreq(n, device=device) for n in shape[:-1]] + [torch.fft.rfftfreq(shape[-1], device=device)]


def outer(profiles: list[Tensor], join: Any) -> Tensor:
    """Return the grid of values that `join` makes of one value an axis."""
    result = profiles[0]
    for profile in profiles[1:]:
        result = join(result.unsqueeze(-1), profile)
    return result


def _binomial(shape: Sequence[int], device: torch.device) -> Tensor:
    """Return the transfer function of (1 4 6 4 1)/16 along each axis: cos^4(pi f)."""
    return outer([torch.cos(math.pi * f) ** 4 for f in frequencies(shape, device)], torch.mul)
