"""Convolution of a specimen with a PSF, block by block: image[k] = sum over k' of specimen[k'] * psf[k - k'].

Invariant: every response has a bounded support and a block is given all light within it, so what a block computes does
not depend on how the volume is cut (float32 rounding aside).

A widefield PSF is narrow where it is bright and wide where it is dim. So it is split in two that add up: `near`, all of
its bright part, on the voxels themselves; and `far`, the dim rest, on cells of `bin_px` x `bin_px` pixels. No light is
lost by the split: only its detail, below a cell, where it is dimmer than `BRIGHT` of the peak.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import convolve1d

Image = NDArray[np.float32]
Triple = tuple[int, int, int]

BIN_PX = 8
BRIGHT = 1e-3
"""What is brighter than this share of the PSF's peak is imaged on the voxels."""
LARGEST_BRIGHT_PX = 64
LARGEST_BRIGHT_PLANES = 64
_NEGLIGIBLE = 1e-4
"""Share of the light whose support is not worth its computing time."""
_ROWS_BYTES = 16_000_000
"""Numbers of a spectrum that are transformed along z at a time."""


@dataclass(frozen=True, eq=False)
class Kernel:
    """A PSF in two parts, both with the emitter in the middle (all sizes odd)."""

    near: Image
    """(2 h + 1, 2 v + 1, 2 v + 1): a voxel's light at the voxels around it."""
    far: Image | None
    """(2 H + 1, 2 V + 1, 2 V + 1): a cell's light at the middles of the cells around it, per pixel. None: no such."""
    bin_px: int = BIN_PX

    @property
    def near_halo(self) -> Triple:
        """Half sizes along z, y, x in voxels."""
        return half_sizes(self.near)

    @property
    def far_halo(self) -> Triple:
        """Half sizes along z in planes, along y, x in cells; zeros where there is no far part."""
        return (0, 0, 0) if self.far is None else half_sizes(self.far)

    @property
    def plane_sums(self) -> NDArray[np.float64]:
        """Light in each plane of a voxel of light 1, from the lowest plane that either part reaches."""
        deepest = max(self.near_halo[0], self.far_halo[0])
        sums = np.zeros(2 * deepest + 1)
        for part, pixels in ((self.near, 1), (self.far, self.bin_px**2)):
            if part is not None:
                half = len(part) // 2
                sums[deepest - half : deepest + half + 1] += pixels * part.sum((1, 2), dtype=np.float64)
        return sums


def half_sizes(kernel: Image) -> Triple:
    """How far a kernel of odd sizes reaches from its middle."""
    z, y, x = (n // 2 for n in kernel.shape)
    return z, y, x


def split_kernel(psf: Image, plane_energy: NDArray[np.float64] | None = None, bin_px: int = BIN_PX) -> Kernel:
    """Split a PSF (odd sizes, emitter in the middle; it is overwritten) into its bright part and the dim rest.

    The rest fades in over a third of the near part's radius. `plane_energy` (nz,): what each plane holds in truth, in
    the unit of `psf`; what `psf` misses of it is then added to the far part, in proportion. What holds less than 1e-4
    of the light is cut off.
    """
    magnitude = np.abs(psf)
    total = magnitude.sum(dtype=np.float64)
    bright = magnitude >= BRIGHT * magnitude.max()
    deep = min(_reach(bright.any((1, 2))), LARGEST_BRIGHT_PLANES)
    wide = min(max(_reach(bright.any((0, 1))), _reach(bright.any((0, 2)))), LARGEST_BRIGHT_PX)
    middle_z, middle_y, middle_x = half_sizes(psf)
    outer = min(wide + max(wide // 2, bin_px), middle_y, middle_x)
    del magnitude, bright
    y, x = (np.arange(n) - n // 2 for n in psf.shape[1:])
    fade = np.clip((np.hypot(y[:, None], x) - wide) / max(outer - wide, 1), 0, 1)
    window = (0.5 + 0.5 * np.cos(np.pi * fade)).astype(np.float32)
    planes = slice(middle_z - deep, middle_z + deep + 1)
    square = np.s_[middle_y - outer : middle_y + outer + 1, middle_x - outer : middle_x + outer + 1]
    near = (psf[planes] * window)[:, square[0], square[1]]
    psf[planes] *= 1 - window
    far = np.stack([_binned(plane, bin_px) for plane in psf])
    if plane_energy is not None:
        missing = plane_energy.copy()
        missing[planes] -= near.sum((1, 2), dtype=np.float64)
        held = bin_px**2 * far.sum((1, 2), dtype=np.float64)
        far *= np.where(held > 0, np.maximum(missing, 0) / np.where(held > 0, held, 1), 1)[:, None, None]
    cut = _trimmed(far, _NEGLIGIBLE * total / bin_px**2)
    return Kernel(np.ascontiguousarray(near), cut.astype(np.float32) if cut.size else None, bin_px)


def _reach(line: NDArray[np.bool_]) -> int:
    """Largest distance of a true entry from the middle."""
    return int(np.abs(np.flatnonzero(line) - len(line) // 2).max(initial=0))


def _binned(plane: Image, bin_px: int) -> NDArray[np.float64]:
    """A response on pixels as one on cells: the mean over where in its cell a pixel and its light may lie.

    That is a tent twice as wide as a cell; tents add up to 1, so no light is lost.
    """
    tent = 1 - np.abs(np.arange(1 - bin_px, bin_px)) / bin_px
    cells = plane.astype(np.float64)
    for axis in (0, 1):
        half = cells.shape[axis] // 2
        margin = -half % bin_px + bin_px
        pad = [(0, 0), (0, 0)]
        pad[axis] = (margin, margin)
        cells = convolve1d(np.pad(cells, pad), tent / bin_px, axis=axis, mode="constant")
        cells = cells[::bin_px] if axis == 0 else cells[:, ::bin_px]
    return cells


def _trimmed(far: NDArray[np.float64], negligible: float) -> NDArray[np.float64]:
    """Without the outer planes, rows and columns that together hold less than `negligible`; empty if all does."""
    magnitude = np.abs(far)
    if magnitude.sum() < negligible:
        return far[:0]
    halves = []
    for axis in range(3):
        line = magnitude.sum(tuple(a for a in range(3) if a != axis))
        middle = len(line) // 2
        shells = line[middle:].copy()
        shells[1:] += line[:middle][::-1]
        outside = np.cumsum(shells[::-1])[::-1]
        kept = np.flatnonzero(outside >= negligible / 3)
        halves.append((middle, int(kept[-1]) if len(kept) else 0))
    (z, h), (y, v), (x, u) = halves
    widest = max(v, u)
    return far[z - h : z + h + 1, y - widest : y + widest + 1, x - widest : x + widest + 1]


@dataclass(frozen=True, eq=False)
class Transform:
    """A kernel's planes as lateral spectra for blocks of one size; made once a process."""

    lengths: Triple
    """FFT lengths along z, y, x."""
    halo: Triple
    spectra: NDArray[np.inexact]
    """(2 h + 1, length y, length x // 2 + 1): real where the kernel is symmetric in y and x."""


def is_symmetric(kernel: Image) -> bool:
    """Whether turning a kernel by 180 degrees about z changes nothing, so that its lateral spectra are real."""
    return bool(np.allclose(kernel, kernel[:, ::-1, ::-1], rtol=0, atol=1e-7 * float(np.abs(kernel).max())))


def fft_lengths(halo: Triple, core: Triple, light_planes: tuple[int, int]) -> Triple:
    """FFT lengths that keep a block of `core` voxels free of wrap-around.

    `light_planes`: first and last + 1 plane of the light, from the block's own first plane; what lies beyond the halo
    does not count.
    """
    low, high = max(light_planes[0], -halo[0]), min(light_planes[1], core[0] + halo[0])
    deep = max(core[0], halo[0] + max(core[0] - low, high))
    z, y = fft.next_fast_len(deep), fft.next_fast_len(core[1] + 2 * halo[1])
    return z, y, fft.next_fast_len(core[2] + 2 * halo[2], real=True)


def make_transform(kernel: Image, lengths: Triple) -> Transform:
    """Lateral spectra of a kernel, its middle at index 0 of the transform."""
    halo = half_sizes(kernel)
    _, rows, columns = lengths
    at_y, at_x = (np.arange(-half, half + 1) % n for half, n in ((halo[1], rows), (halo[2], columns)))
    symmetric = is_symmetric(kernel)
    kind = np.dtype(np.float32 if symmetric else np.complex64)
    spectra: NDArray[np.inexact] = np.empty((len(kernel), rows, columns // 2 + 1), kind)
    for k, plane in enumerate(kernel):
        padded = np.zeros((rows, columns), np.float32)
        padded[at_y[:, None], at_x] = plane
        spectrum = fft.rfft2(padded)
        spectra[k] = spectrum.real if symmetric else spectrum
    return Transform(lengths, halo, spectra)


def convolve(transform: Transform, slabs: Iterable[tuple[int, Image]], core: Triple) -> Image:
    """Image of a block: float32 of shape `core`.

    `slabs`: (first plane, light (planes, y, x)) pairs, planes counted from the block's own first plane; along y and x
    the light starts a halo before the block and ends a halo after it. Planes that are not given are dark.
    """
    deep, rows, columns = transform.lengths
    half, top, left = transform.halo
    spectrum = np.zeros((deep, rows, columns // 2 + 1), np.complex64)
    for first, light in slabs:
        spectrum[np.arange(first, first + len(light)) % deep] = fft.rfft2(light, s=(rows, columns))
    at_z = np.arange(-half, half + 1) % deep
    step = max(1, _ROWS_BYTES // spectrum[:, 0].nbytes)
    for start in range(0, rows, step):
        part = spectrum[:, start : start + step]
        response = np.zeros(part.shape, np.complex64)
        response[at_z] = transform.spectra[:, start : start + step]
        product = fft.fft(part, axis=0)
        product *= fft.fft(response, axis=0, overwrite_x=True)
        part[: core[0]] = fft.ifft(product, axis=0, overwrite_x=True)[: core[0]]
    image = np.empty(core, np.float32)
    for k in range(core[0]):
        image[k] = fft.irfft2(spectrum[k], s=(rows, columns))[top : top + core[1], left : left + core[2]]
    return image


def cells_of(start: int, stop: int, bin_px: int) -> tuple[int, int]:
    """First and last + 1 cell whose middles surround the middles of the pixels `start` to `stop`."""
    return _below(start, bin_px), _below(stop - 1, bin_px) + 2


def _below(pixel: int, bin_px: int) -> int:
    """The last cell whose middle is not after the middle of a pixel."""
    return (2 * pixel + 1 - bin_px) // (2 * bin_px)


def interpolate_cells(cells: Image, first_yx: tuple[int, int], box_yx: tuple[slice, slice], bin_px: int) -> Image:
    """Values at cell middles, (y, x) from cell `first_yx`, as values at the pixels of `box_yx`, linear in between."""
    values = cells
    for axis, (first, box) in enumerate(zip(first_yx, box_yx, strict=True)):
        position = (np.arange(box.start, box.stop) + 0.5) / bin_px - 0.5 - first
        below = np.floor(position).astype(np.int64)
        weight = (position - below).astype(np.float32)
        weight = weight[:, None] if axis == 0 else weight
        low, high = np.take(values, below, axis), np.take(values, below + 1, axis)
        values = low + (high - low) * weight
    return values
