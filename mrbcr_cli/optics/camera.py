"""A camera: from photons that arrive at a pixel to the counts in the file.

Invariant: counts = offset + gain * (Poisson(QE * photons + dark) + Normal(0, read noise)), rounded and clipped to the
bit depth; all randomness comes from the generator that is passed in, so the same generator gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Camera:
    """An EMVA-like linear camera. Raises InputError for numbers no camera has."""

    quantum_efficiency: float = 0.8
    """Electrons per photon, above 0 and at most 1."""
    gain_adu: float = 2.0
    """Counts (ADU) per electron."""
    offset_adu: float = 100.0
    read_noise_e: float = 1.6
    """RMS electrons."""
    dark_e: float = 0.0
    """Electrons of the dark current per exposure."""
    bit_depth: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.quantum_efficiency <= 1:
            raise InputError(f"the quantum efficiency must lie in (0, 1], not {self.quantum_efficiency:g}")
        if not (math.isfinite(self.gain_adu) and self.gain_adu > 0):
            raise InputError(f"the gain must be positive, in counts per electron, not {self.gain_adu:g}")
        if not (math.isfinite(self.offset_adu) and self.offset_adu >= 0):
            raise InputError(f"the camera offset must be zero or positive, in counts, not {self.offset_adu:g}")
        for name, value in (("read noise", self.read_noise_e), ("dark current", self.dark_e)):
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"the {name} must be zero or positive, in electrons, not {value:g}")
        if not 1 <= self.bit_depth <= 16:
            raise InputError(f"the bit depth must be 1 to 16, not {self.bit_depth}")

    @property
    def white_adu(self) -> int:
        """Largest count."""
        return int(2**self.bit_depth - 1)

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Smallest pixel type that holds the bit depth."""
        return np.dtype(np.uint8 if self.bit_depth <= 8 else np.uint16)


@dataclass(frozen=True, eq=False)
class CameraMaps:
    """Per-pixel differences of an sCMOS sensor, each float32 of the sensor's shape (Y, X)."""

    offset_adu: Image
    gain_adu: Image
    variance_e2: Image
    """Read noise variance, electrons squared."""

    def crop(self, y: slice, x: slice) -> CameraMaps:
        """The maps of a part of the sensor."""
        return CameraMaps(self.offset_adu[y, x], self.gain_adu[y, x], self.variance_e2[y, x])


def make_scmos_maps(camera: Camera, shape_yx: tuple[int, int], rng: np.random.Generator) -> CameraMaps:
    """Draw plausible sCMOS maps around the camera's values.

    Offsets vary by 1 count and by column (0.5); gains by 1 %; read noise is log-normal with the long tail of hot pixels
    (Huang et al., Nat. Methods 10:653, 2013), its median that of the camera.
    """
    ny, nx = shape_yx
    column = rng.normal(0.0, 0.5, (1, nx))
    offset = camera.offset_adu + rng.normal(0.0, 1.0, shape_yx) + column
    gain = camera.gain_adu * rng.normal(1.0, 0.01, shape_yx).clip(0.9, 1.1)
    spread = np.where(rng.random(shape_yx) < 0.02, 1.0, 0.25)
    variance = (camera.read_noise_e * np.exp(spread * np.abs(rng.normal(0.0, 1.0, (ny, nx))) - 0.17)) ** 2
    return CameraMaps(np.maximum(offset, 0.0).astype(np.float32), gain.astype(np.float32), variance.astype(np.float32))


def expose(
    photons: NDArray[np.floating], camera: Camera, rng: np.random.Generator, maps: CameraMaps | None = None
) -> NDArray[np.unsignedinteger]:
    """Record an image: expected photons per pixel (..., Y, X), not negative, to counts of `camera.dtype`.

    `maps` replaces offset, gain and read noise by their per-pixel values. Raises ValueError for negative or non-finite
    photons: they are a bug of the caller.
    """
    expected = np.asarray(photons, np.float64)
    if not np.isfinite(expected).all() or expected.min(initial=0.0) < 0:
        raise ValueError("expected photons must be finite and not negative")
    electrons = rng.poisson(camera.quantum_efficiency * expected + camera.dark_e).astype(np.float32)
    noise = rng.standard_normal(expected.shape, np.float32)
    if maps is None:
        electrons += np.float32(camera.read_noise_e) * noise
        counts = camera.offset_adu + camera.gain_adu * electrons
    else:
        electrons += np.sqrt(maps.variance_e2) * noise
        counts = maps.offset_adu + maps.gain_adu * electrons
    clipped: NDArray[np.unsignedinteger] = np.clip(np.rint(counts), 0, camera.white_adu).astype(camera.dtype)
    return clipped


def expose_batch(
    photons_nyx: Tensor, cameras: Sequence[Camera], scmos: Sequence[bool], generator: torch.Generator
) -> Tensor:
    """Record many images at once on the device of `photons_nyx` (N, Y, X): float32 counts, rounded and clipped.

    As `expose` with a camera for each image, and where `scmos` says so with maps as `make_scmos_maps` draws them; for
    training, where the bytes need not be those of `expose`.
    """
    import torch

    device, shape = photons_nyx.device, photons_nyx.shape

    def each(name: str) -> Tensor:
        values = [float(getattr(camera, name)) for camera in cameras]
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    offset, gain, read = each("offset_adu"), each("gain_adu"), each("read_noise_e")
    if any(scmos):
        chosen = torch.tensor(scmos, device=device)[:, None, None].float()
        tail = torch.rand(shape, generator=generator, device=device) < 0.02
        spread = torch.where(tail, 1.0, 0.25)
        offset = offset + chosen * (normal(*shape) + 0.5 * normal(shape[0], 1, shape[2]))
        gain = gain * (1 + chosen * (0.01 * normal(*shape)).clamp(-0.1, 0.1))
        read = read * torch.exp(chosen * (spread * normal(*shape).abs() - 0.17))
    mean = each("quantum_efficiency") * photons_nyx + each("dark_e")
    electrons = torch.poisson(mean, generator=generator) + read * normal(*shape)
    counts = (offset.clamp(min=0) + gain * electrons).round_()
    return torch.minimum(counts.clamp_(min=0), each("white_adu"))


def mean_counts_batch(photons_nyx: Tensor, cameras: Sequence[Camera]) -> Tensor:
    """As `mean_counts`, with a camera for each image of (N, Y, X)."""
    import torch

    gain, base = (
        torch.tensor(values, dtype=torch.float32, device=photons_nyx.device)[:, None, None]
        for values in (
            [c.gain_adu * c.quantum_efficiency for c in cameras],
            [c.offset_adu + c.gain_adu * c.dark_e for c in cameras],
        )
    )
    return base + gain * photons_nyx


def mean_counts(photons: NDArray[np.floating], camera: Camera) -> Image:
    """What `expose` records on average, without rounding and clipping: float32 counts."""
    counts = camera.offset_adu + camera.gain_adu * (camera.quantum_efficiency * np.asarray(photons) + camera.dark_e)
    return counts.astype(np.float32)
