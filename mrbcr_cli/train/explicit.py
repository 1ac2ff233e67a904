"""Richardson-Lucy that is told optics and light of every training patch: what the loss `gain` holds a network against.

Invariant: each patch of a batch is deconvolved as if it were alone; no gradient passes. It is a yardstick: the PSF is
cut where little of it is left, and one number of iterations serves all.

Sources: Richardson 1972, Lucy 1974 (see classical.py); Snyder, Hammoud and White 1993 (J. Opt. Soc. Am. A 10, 1014),
read noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mrbcr_cli.imaging_model import ImagingModel, extended, window
from mrbcr_cli.optics.camera import Camera
from mrbcr_cli.optics.measure import FWHM_PER_SIGMA
from mrbcr_cli.simulate.image_scene import centred_spectra, focus_psf, gaussian_otf

if TYPE_CHECKING:
    from mrbcr_cli.simulate.conditions import Conditions
    from mrbcr_cli.simulate.image_scene import StoredPsfPlanes

ITERATIONS = 20
"""Near the number that is best for the whole domain of the embedded model; a step takes about a third longer."""
REACH_PX = 24
"""The PSF is cut this far from its middle: four FWHM of the widest of that domain."""


@dataclass(frozen=True, eq=False)
class Optics:
    """What is told of a field: its in-focus PSF (49, 49), float32, not negative, sum 1; and the target's resolution."""

    psf_yx: Tensor
    target_fwhm_px: float

    def turned(self, turns: int, mirror: bool) -> Optics:
        """For a piece that was mirrored along x and then turned by so many right angles."""
        psf = self.psf_yx.flip(-1) if mirror else self.psf_yx
        return Optics(torch.rot90(psf, turns, (0, 1)), self.target_fwhm_px)


def told_optics(conditions: Conditions, stored: StoredPsfPlanes | None, device: torch.device | str) -> Optics | None:
    """The optics of a field; None for transmitted light, whose image is not its specimen blurred by one PSF."""
    psf = focus_psf(conditions, stored, 2 * REACH_PX + 1, device)
    return None if psf is None else Optics(psf, conditions.target_fwhm_px)


@torch.no_grad()
def deconvolve_patches(
    counts_nyx: Tensor, optics: Sequence[Optics], background_photons: Sequence[float], cameras: Sequence[Camera]
) -> Tensor:
    """Estimates (N, Y, X) in counts, at the targets' resolution and with their background, from counts (N, Y, X) of
    square patches. Pixels of an sCMOS are taken for those of its mean.

    Raises ValueError for patches that are not square.
    """
    if counts_nyx.shape[-1] != counts_nyx.shape[-2]:
        raise ValueError(f"patches must be square, not {tuple(counts_nyx.shape[1:])}")
    device, (height, width) = counts_nyx.device, counts_nyx.shape[1:]

    def each(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]

    offset, gain = each([c.offset_adu for c in cameras]), each([c.gain_adu for c in cameras])
    variance = each([c.read_noise_e**2 for c in cameras])
    electrons = [c.quantum_efficiency * b + c.dark_e for b, c in zip(background_photons, cameras, strict=True)]
    background = each(electrons)
    data = ((counts_nyx - offset) / gain + variance).clamp_(min=0)
    model = _Patches(torch.stack([o.psf_yx for o in optics]).to(device), (height, width), background + variance, data)
    weight, estimate = model.weight(), model.start(data)
    for _ in range(ITERATIONS):
        estimate = estimate * model.correction(estimate, data, weight)
    size = model.shape[-1]
    blur = torch.stack([gaussian_otf(size, o.target_fwhm_px / FWHM_PER_SIGMA) for o in optics]).to(device)
    shown = torch.fft.irfft2(torch.fft.rfft2(estimate) * blur, s=model.shape)[model.window]
    found: Tensor = offset + gain * (shown + background)
    return found


class _Patches(ImagingModel):
    """The imaging model of many patches, with a PSF (N, K, K) and a background (N, 1, 1) each."""

    def __init__(self, psfs: Tensor, block: tuple[int, int], background: Tensor, data: Tensor) -> None:
        self.shape = extended(block, [psfs.shape[-1] - 1] * 2)
        self.dims = (-2, -1)
        self.window = window(block)
        self.background = background
        self.tiny = 1e-6 * data.amax((-2, -1), keepdim=True).clamp_(min=1e-6)
        self.transfer = centred_spectra(psfs, self.shape[-1])
