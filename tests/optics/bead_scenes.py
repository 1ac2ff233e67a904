"""Images of beads under a known PSF, rendered at known places with all that spoils them.

The truth is asymmetric in every axis, so that a turn, a shift or a mirror in what is measured shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from mrbcr_cli.optics.bead_finder import ADVICE
from mrbcr_cli.optics.beads import BeadPsf, measure_psf
from mrbcr_cli.psf_grid import prepare_psf

Array = NDArray[np.float64]
Places = Sequence[Sequence[float]]
VOXEL = (0.2, 0.1, 0.1)


# Weight, offset and sigma in voxels (z, y, x): core, a tail to one side as coma has, a lobe above the focus, a halo.
PARTS = (
    (1.0, (0, 0, 0), (2.2, 1.7, 1.5)),
    (0.25, (0.5, 0.6, 2.6), (2.6, 1.9, 1.8)),
    (0.15, (4.5, 0, 0), (2.5, 2.2, 2.2)),
    (0.05, (0, 0, 0), (4, 4.5, 4.5)),
)
SHAPE = (33, 250, 250)


def render(shape: Sequence[int], place: Sequence[float], blur: Places = ((0, 0, 0),), fine: int = 1) -> Array:
    """The PSF at a place, averaged over the offsets in `blur`; with `fine` on a grid of that many times more voxels."""
    image = np.zeros(shape)
    for weight, offset, sigma in PARTS:
        for shift in blur:
            z, y, x = (
                np.exp(-0.5 * ((np.arange(n) / fine - c - o - s) / w) ** 2)
                for n, c, o, s, w in zip(shape, place, offset, shift, sigma, strict=True)
            )
            image += weight / len(blur) * z[:, None, None] * y[:, None] * x
    return image


@cache
def centre() -> Array:
    """Centre of the PSF from its core's: centroid of what rises above half, blurred by 1 voxel; in steps of 1/6."""
    fine = ndimage.gaussian_filter(render((96, 96, 96), (8, 8, 8), fine=6), 6)
    core = np.maximum(fine - fine.max() / 2, 0)
    return np.array([(core * places).sum() / core.sum() for places in np.indices(core.shape)]) / 6 - 8


def truth(shape: Sequence[int]) -> Array:
    psf = render(shape, np.array(shape) // 2 - centre())
    return psf / psf.sum()


def true_fwhm_um() -> Array:
    """Counted in samples of 1/40 voxel on the lines through the centre."""
    widths = []
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = 40 * 24
        start = -centre()
        start[axis] += 12
        line = render(shape, start, fine=40).ravel()
        widths.append(np.count_nonzero(line > line.max() / 2) / 40 * VOXEL[axis])
    return np.array(widths)


def scene(places: Places, heights: Sequence[float], shape: Sequence[int] = SHAPE, blur: Places = ((0, 0, 0),)) -> Array:
    """Beads without noise; each is rendered within 18 voxels."""
    image = np.zeros(shape)
    for place, height in zip(places, heights, strict=True):
        low = [max(0, round(c) - 18) for c in place]
        box = tuple(slice(a, min(n, round(c) + 19)) for a, c, n in zip(low, place, shape, strict=True))
        local = np.array(place) - low
        image[box] += height * render(image[box].shape, local, blur)
    return image


def lattice(count: int, step: int, seed: int = 1) -> Array:
    """Places of count x count beads, off the voxels' centres."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(*[step // 2 + step * np.arange(count)] * 2, indexing="ij")
    flat = np.stack([np.full(count**2, 16), y.ravel(), x.ravel()], axis=1)
    return flat + rng.uniform(-0.5, 0.5, flat.shape) + rng.integers(-2, 3, flat.shape) * (0, 1, 1)


@cache
def field() -> tuple[NDArray[np.uint16], Array]:
    """A 12-bit image of 25 beads (5 x 5), and the places of the 16 that are good.

    Not good: two doublets closer than the resolution, one bead with a neighbour in its window (which is none of the
    25), two saturated ones, two dim ones and two cut by the border.
    """
    rng = np.random.default_rng(2)
    places = list(lattice(5, 50))
    heights = list(rng.uniform(500, 2500, 25))
    for bad, apart in ((3, 3.6), (14, 4.0)):
        places.append(places[bad] + (0, 0, apart))
        heights.append(heights[bad])
    places.append(places[10] + (1, 12, 3))
    heights.append(heights[10] * 0.8)
    heights[6] = heights[18] = 9000.0
    heights[8] = heights[16] = 22.0
    places[0] = np.array([16, 2.2, 30.4])
    places[24] = np.array([16, 225.0, 246.7])
    clean = scene(places, heights) + 20
    image = np.minimum(rng.poisson(clean) + 100, 4095).astype(np.uint16)
    good = [n for n in range(25) if n not in (0, 3, 6, 8, 10, 14, 16, 18, 24)]
    return image, np.array(places)[good]


@cache
def measured() -> BeadPsf:
    return measure_psf(field()[0], VOXEL)


def check(psf: BeadPsf) -> None:
    """What holds for every result."""
    values = psf.values_zyx
    assert values.dtype == np.float32 and values.ndim == 3 and all(size % 2 for size in values.shape)
    assert values.min() == 0 and values.sum(dtype=float) == pytest.approx(1, abs=1e-5)
    assert set(psf.rejected) <= set(ADVICE) and all(count > 0 for count in psf.rejected.values())
    assert psf.found == psf.used + sum(psf.rejected.values()) and psf.positions_zyx.shape == (psf.used, 3)
    # The tool's own reader of PSFs finds nothing to move: it only cuts away empty borders.
    again = prepare_psf(values, source="beads", is_3d=len(values) > 1, background=0).values_zyx
    cut = tuple(slice((a - b) // 2, (a + b) // 2) for a, b in zip(values.shape, again.shape, strict=True))
    assert np.allclose(again, values[cut] / values[cut].sum(), atol=1e-6)


def correlation(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def relative(psf: BeadPsf) -> Array:
    return np.array(psf.fwhm_zyx_um, float) / true_fwhm_um() - 1
