"""Deconvolution with a known point spread function: Richardson-Lucy and Wiener, on torch.

Invariant: `restore` returns the block's own shape and units in float32, and what it computes for a pixel depends only
on the pixels around it and on whole-image values (never on statistics of the block), so that blocks fit together.

Sources: Richardson 1972 (JOSA 62, 55) and Lucy 1974 (AJ 79, 745), the iteration; Bertero and Boccacci 2005 (A&A 437,
369), the weights at the border; Dey et al. 2006 (Microsc. Res. Tech. 69, 260), total variation; Wang and Miller 2014
(IEEE TIP 23, 848), the scaled heavy ball, an acceleration whose step needs no sum over the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from torch import Tensor

from mrbcr_cli.errors import InputError
from mrbcr_cli.imaging_model import (
    ImagingModel,
    Weight,
    extend,
    extended,
    frequencies,
    outer,
    transfer_function,
    window,
)
from mrbcr_cli.volume_model import imaging_model

if TYPE_CHECKING:
    from mrbcr_cli.intensity import IntensityRange
    from mrbcr_cli.psf_grid import Psf

SLOWEST_FALL = 0.1
"""The heavy ball may not push a value below this fraction of itself: a value that reaches 0 could never rise again."""
MAX_TV = 0.1
TV_FLOOR = 0.01
"""Slopes below this share of the image's range count as flat: total variation would amplify rounding errors there."""
BYTES_PER_VOXEL = 80
"""Peak memory of a block for each of its voxels: data, estimate and spectra on the enlarged domain."""
BATCH_PIXELS = 2**22
"""Planes are deconvolved together on an accelerator up to this many pixels; on a CPU one by one (cache)."""


class RichardsonLucy:
    """Richardson-Lucy deconvolution of blocks: maximum likelihood under Poisson noise, values never below 0.

    Borders: the estimate extends half a PSF beyond the block and only the block's pixels are compared with the data;
    each value is divided by the share of its light that falls on the block (H^T 1). Light from outside the field is
    thus explained instead of being piled up in a bright rim or wrapped around, and a flat image stays flat.

    Start: the data smoothed by the five-tap binomial (1 4 6 4 1)/16 along each axis, plus a tenth of the data
    correlated with the PSF. Starting from the data themselves keeps their noise (2 to 8 dB worse at 60 to 500
    photons); starting flat takes some five iterations more to get as sharp.
    """

    alignment_px = 1
    bytes_per_voxel = BYTES_PER_VOXEL
    affine = False
    guided = False

    def __init__(
        self,
        psf: Psf,
        *,
        iterations: int = 20,
        tv: float = 0.0,
        background: float | None = 0.0,
        accelerate: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """`tv`: strength of total variation (0 to 0.1; 0.002 is a usual value). `background`: light, in the image's
        units, that the specimen did not emit (camera offset, haze): it is explained before the specimen and added
        back; None takes the low end of the image's range. `accelerate`: half to a third of the iterations for the same
        sharpness, and noise grows as much faster.

        Raises InputError for values out of range.
        """
        if iterations < 1:
            raise InputError(f"{iterations} Richardson-Lucy iterations are impossible; give at least 1")
        if not 0 <= tv <= MAX_TV:
            raise InputError(f"a total-variation strength of {tv} is impossible; give 0 to {MAX_TV} (usual: 0.002)")
        if background is not None and not (math.isfinite(background) and background >= 0):
            raise InputError(f"a background of {background} is impossible; give 0 or more, in the image's units")
        self.psf = psf
        self.iterations = iterations
        self.tv = tv
        self.background = background
        self.accelerate = accelerate
        self.device = torch.device(device)
        self.halo_zyx = _iteration_halo(psf)

    def restore(
        self,
        block_zyx: NDArray[np.float32],
        intensity: IntensityRange,
        at_border: Sequence[tuple[bool, bool]] = (),
    ) -> NDArray[np.float32]:
        """Return the deconvolved block (z, y, x; float32; the image's units).

        A 2-D PSF deconvolves each plane by itself. `at_border` makes no difference: what lies beyond the block is
        unknown at a cut as at the image's border.
        """
        return self.snapshots(block_zyx, intensity, (self.iterations,))[0]

    def snapshots(
        self, block_zyx: NDArray[np.float32], intensity: IntensityRange, counts: Sequence[int]
    ) -> list[NDArray[np.float32]]:
        """Return what `restore` gives after each of these numbers of iterations (ascending, from 1), in one run."""
        # Light is counted from 0, or from the low end of an image that has negative values (background subtracted).
        zero = min(0.0, float(intensity.low))
        background = float(intensity.low) - zero if self.background is None else self.background
        span = max(float(intensity.high) - float(intensity.low), 1e-6 * abs(float(intensity.high)), 1e-30)
        results = [np.empty(block_zyx.shape, np.float32) for _ in counts]
        model = imaging_model(self.psf, block_zyx.shape, self.device, background, span)
        with torch.inference_mode(), closing(model):
            weight = model.weight()
            for part in _parts(block_zyx.shape, self.psf.is_3d, self.device):
                data = _to_device(block_zyx[part], self.device).sub_(zero).clamp_(min=0)
                for result, found in zip(results, self._iterate(model, data, weight, counts), strict=True):
                    result[part] = found.add(background + zero).cpu().numpy()
        return results

    def take_notes(self) -> tuple[str, ...]:
        """Return the sentences that the user must see: none, for there is no fallback here."""
        return ()

    def _iterate(self, model: ImagingModel, data: Tensor, weight: Weight, counts: Sequence[int]) -> Iterator[Tensor]:
        """Yield the block's estimate after each number of iterations: a view, good until the next one."""
        estimate = model.start(data)
        ahead, previous = estimate, estimate
        for step in range(counts[-1]):
            if self.accelerate and step > 0:
                ahead = torch.lerp(estimate, previous, -(step - 1) / (step + 2))
                ahead = torch.maximum(ahead, SLOWEST_FALL * estimate)
            if not (self.accelerate or self.tv > 0):
                model.improve_(estimate, data, weight)
            else:
                update = model.correction(ahead, data, weight)
                if self.tv > 0:
                    update.div_(1 - self.tv * _curvature(ahead, model.dims, TV_FLOOR * model.span, 8 * self.tv))
                previous, estimate = estimate, update.mul_(ahead)
                if not self.accelerate:
                    ahead = estimate
            if step + 1 in counts:
                yield estimate[model.window]


class Wiener:
    """Wiener deconvolution for a specimen whose power spectrum falls as 1/f^2 (that of edges at random places).

    estimate = data * conj(H) / (|H|^2 + balance * |G|^2), H the transfer function, |G|^2 = sum over the axes of
    2 - 2 cos(2 pi f), the power of the discrete gradient. `balance` is the power of the noise over that of the
    specimen's gradient; `blind.estimate_balance` finds it from sample planes. Flat parts keep their value exactly.
    Borders: the block is continued by its reflection, blended so that it wraps around without a step.
    """

    alignment_px = 1
    bytes_per_voxel = BYTES_PER_VOXEL
    affine = True
    guided = False

    def __init__(self, psf: Psf, balance: float, *, device: torch.device | str = "cpu") -> None:
        """Raises InputError unless `balance` is a number above 0 (usual: 1e-4, nearly no noise, to 0.1, very noisy)."""
        if not (math.isfinite(balance) and balance > 0):
            raise InputError(f"a Wiener balance of {balance} is impossible; give a number above 0, usually 1e-4 to 0.1")
        self.psf = psf
        self.balance = balance
        self.device = torch.device(device)
        self.halo_zyx = self._reach_zyx()

    def _reach_zyx(self) -> tuple[int, int, int]:
        """Return how far the filter reaches along each axis: beyond lies less than 0.2 % of its absolute weight.

        Largest difference between tiled and whole, over the image's range: 4e-4 at balance 1e-2, 4e-3 at 1e-4 (2-D);
        1e-2 for a 3-D widefield PSF, whose filter has a long tail.
        """
        radius = self.psf.radius_zyx
        limit = 512 if radius[0] == 0 else 128
        sizes = [next_fast_len(min(limit, max(64, 8 * r))) if r else 1 for r in radius]
        grid = sizes if self.psf.is_3d else sizes[1:]
        with torch.inference_mode():
            transfer = transfer_function(self.psf, grid, torch.device("cpu"))
            response = torch.fft.irfftn(self._filter(transfer, grid), s=grid).abs()
        response = response.reshape(sizes)
        z, y, x = (_reach(response, axis, 0.002) for axis in range(3))
        return z, y, x

    def restore(
        self,
        block_zyx: NDArray[np.float32],
        intensity: IntensityRange,
        at_border: Sequence[tuple[bool, bool]] = (),
    ) -> NDArray[np.float32]:
        """Return the deconvolved block (z, y, x; float32; the image's units); values may fall below 0."""
        shape = extended(block_zyx.shape, [2 * reach for reach in self.halo_zyx])
        spatial = shape if self.psf.is_3d else shape[1:]
        dims = tuple(range(-len(spatial), 0))
        result = np.empty(block_zyx.shape, np.float32)
        with torch.inference_mode():
            filter_ = self._filter(transfer_function(self.psf, spatial, self.device), spatial)
            for part in _parts(block_zyx.shape, self.psf.is_3d, self.device):
                data = _to_device(block_zyx[part], self.device)
                spectrum = torch.fft.rfftn(extend(data, spatial), dim=dims).mul_(filter_)
                whole = torch.fft.irfftn(spectrum, s=spatial, dim=dims)
                result[part] = whole[window(data.shape[-len(spatial) :])].cpu().numpy()
        return result

    def take_notes(self) -> tuple[str, ...]:
        """Return the sentences that the user must see: none, for there is no fallback here."""
        return ()

    def _filter(self, transfer: Tensor, shape: Sequence[int]) -> Tensor:
        gradient = gradient_power(shape, transfer.device)
        return transfer.conj() / (transfer.abs().square() + self.balance * gradient)


def gradient_power(shape: Sequence[int], device: torch.device) -> Tensor:
    """Return sum over the axes of 2 - 2 cos(2 pi f) on the half-spectrum grid of rfftn."""
    return outer([2 - 2 * torch.cos(2 * math.pi * f) for f in frequencies(shape, device)], torch.add)


def _curvature(values: Tensor, dims: Sequence[int], floor: float, relative_floor: float) -> Tensor:
    """Return div(grad v / |grad v|) by forward, then backward differences.

    `floor` and `relative_floor` times the value keep |grad v| above 0. A multiplicative step of strength tv is stable
    only where tv * v * 8 / |grad v| stays below 2 (8 bounds the discrete Laplacian in 2-D): hence the relative one.
    """
    norm = (relative_floor * values).square_().add_(floor * floor)
    for axis in dims:
        norm.add_((torch.roll(values, -1, axis) - values).square_())
    norm.rsqrt_()
    total = torch.zeros_like(values)
    for axis in dims:
        flow = (torch.roll(values, -1, axis) - values).mul_(norm)
        total.add_(flow).sub_(torch.roll(flow, 1, axis))
    return total


def _iteration_halo(psf: Psf) -> tuple[int, int, int]:
    """Return the context (z, y, x) that Richardson-Lucy reads around a block.

    Every iteration spreads by the PSF's radius, but what comes from afar fades: five times the radius that holds 95 %
    of the light, at least the PSF's whole radius, at most three of them. Largest difference left between tiled and
    whole, over the image's range, in-focus PSFs of 2 to 6 px FWHM: 5e-4 after 20 iterations, 3e-3 after 100 or with
    acceleration, 8e-3 with total variation (single pixels; its root mean square is 20 times smaller throughout).
    A strongly defocused 2-D PSF has no such limit: 4 % was seen; choose large tiles.
    """
    weight = torch.tensor(np.fft.ifftshift(psf.values_zyx))
    core = [5 * _reach(weight, axis, 0.05) for axis in range(3)]
    z, y, x = (min(3 * whole, max(whole, near)) for whole, near in zip(psf.radius_zyx, core, strict=True))
    return z, y, x


def _reach(response: Tensor, axis: int, share: float) -> int:
    """Return the smallest radius along `axis` beyond which lies at most `share` of the (wrapped) response's weight."""
    profile = response.sum(dim=[other for other in range(3) if other != axis]).double()
    size = profile.numel()
    distance = torch.minimum(torch.arange(size), size - torch.arange(size))
    beyond = [float(profile[distance > radius].sum() / profile.sum()) for radius in range(size // 2 + 1)]
    return next(radius for radius, rest in enumerate(beyond) if rest <= share)


def _parts(shape: Sequence[int], is_3d: bool, device: torch.device) -> list[slice]:
    """Return the runs of planes that are computed at once: all for a 3-D PSF."""
    planes = shape[0]
    if is_3d:
        return [slice(0, planes)]
    batch = 1 if device.type == "cpu" else max(1, BATCH_PIXELS // max(1, shape[1] * shape[2]))
    return [slice(start, min(start + batch, planes)) for start in range(0, planes, batch)]


def _to_device(block: NDArray[np.float32], device: torch.device) -> Tensor:
    return torch.tensor(block, dtype=torch.float32, device=device)
