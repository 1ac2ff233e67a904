"""Find the beads of an image that can be averaged into a PSF.

Invariant: each bead found is either returned as a `Bead`, with its centre, height, background and width, or counted
under one reason; none is lost. Centres and widths here are in voxels along z, y, x, the first voxel's middle is 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize, spatial

from mrbcr_cli.errors import InputError
from mrbcr_cli.optics.measure import FWHM_PER_SIGMA

DETECTION_SIGMAS = 6.0
LOBE_REACH_FWHM, CONE_REACH_FWHM = 4.0, 16.0
"""How far from a bead its own image may have peaks: rings around the focus, and rings in the cones of defocus."""
LOBE_SHARE, AXIAL_LOBE_SHARE = 0.15, 0.5
"""Height of such peaks near the focus, of the bead's; on its optical axis aberrations make them brighter."""
CONE_OPENING = 5.0
"""Radius of the cones over the distance from focus, both in FWHM; 3 to 4 where the aperture is high."""
NEIGHBOUR_SHARE = 0.05
"""A peak below this share of a bead's height does not count as its neighbour, nor in its cones as a bead."""
LEAST_HALF_FWHM, MOST_HALF_FWHM = 1.5, 4.0
"""Half of the default window, in FWHM of a bead."""
ENOUGH_BEADS = 10
"""The default window shrinks until this many beads, or three quarters of them, have no neighbour in it."""
WIDTH_TOLERANCE = 0.3
HOT_RATIO, HOT_SIGMAS = 6.0, 12.0
ADVICE = {
    "cut by the lateral border": "give a smaller window or a larger image",
    "saturated": "lower the exposure",
    "neighbour in the window": "give a smaller window or dilute the beads",
    "core outside the stack": "record more planes",
    "near the first or last plane": "record more planes",
    "too dim": "lower the least SNR or record brighter beads",
    "wrong width": "record single beads",
    "unlike the mean": "record single beads",
    "beyond the largest number": "allow more beads",
}
"""The reasons for which a bead is rejected, and what to do about each."""

Floats = NDArray[np.float64]
Signal = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Peaks:
    """Everything that may be a bead, brightest first."""

    voxels: NDArray[np.intp]
    """(n, 3) indices z, y, x."""
    heights: Floats
    fwhm_zyx: Floats
    """Rough FWHM of a bead; 1 along z for a single plane."""


@dataclass(frozen=True, eq=False)
class Bead:
    """One isolated bead; `height` and `background` are in units of the image, `noise` is the background's SD."""

    centre_zyx: Floats
    height: float
    background: float
    noise: float
    fwhm_zyx: Floats
    """Of the Gaussian fitted to the core."""


def clip_value(image: NDArray[Any]) -> float:
    """Return the value at which the image is clipped, else infinity: a plateau holds more voxels than a slope."""
    top = image.max()
    at_top = int(np.count_nonzero(image == top))
    if image.dtype.kind in "iu" and top == np.iinfo(image.dtype).max and at_top >= 3:
        return float(top)
    below = int(np.count_nonzero(image == image[image < top].max()))
    return float(top) if at_top >= 4 and at_top > 2 * below else np.inf


def level_and_noise(values: NDArray[Any]) -> tuple[float, float]:
    """Return mean and standard deviation after values beyond 3 of them are dropped, again and again.

    Unlike median and MAD they do not snap to grey levels in images of few. Of large images some 200 000 values are
    read.
    """
    # An odd step does not fall on the same columns of every row of an image of even size.
    kept = values.ravel()[:: (values.size // 200_000) | 1].astype(np.float64)
    for _ in range(30):
        inner = np.abs(kept - np.median(kept)) <= 3 * kept.std()
        if inner.all() or not inner.any():
            break
        kept = kept[inner]
    return float(kept.mean()), float(kept.std())


def lateral_border(shape: Sequence[int]) -> NDArray[np.bool_]:
    """Return a mask of the outer 2 voxels along y and x, in every plane."""
    mask = np.ones(shape, bool)
    mask[:, 2:-2, 2:-2] = False
    return mask


def width_at_half(line: NDArray[Any], at: int) -> float | None:
    """Return the width in samples at half of line[at], crossings interpolated linearly; None where the line ends."""
    half = line[at] / 2
    after, before = np.flatnonzero(line[at:] < half), np.flatnonzero(line[at::-1] < half)
    if not len(after) or not len(before):
        return None
    right, left = int(at + after[0]), int(at - before[0])
    beyond = (half - line[right]) / (line[right - 1] - line[right])
    beyond += (half - line[left]) / (line[left + 1] - line[left])
    return float(right - left - beyond)


def fit_core(values_zyx: NDArray[Any], middle_zyx: NDArray[Any], fwhm_zyx: Floats) -> tuple[float, Floats, Floats]:
    """Fit a Gaussian on a background of 0 by least squares, in the box of 0.8 FWHM about the voxel `middle_zyx`.

    Returns its height, centre and FWHM in voxels; along an axis of one voxel these are `middle_zyx` and `fwhm_zyx`.
    """
    active = np.flatnonzero(np.array(values_zyx.shape) > 1)
    reach = np.maximum(2, np.rint(0.8 * fwhm_zyx)).astype(int)
    low = np.maximum(0, middle_zyx - reach)
    box = values_zyx[box_about(middle_zyx, reach)]
    unit = float(box.max()) or 1.0
    target = box.astype(np.float64) / unit
    places = [np.arange(n).reshape([-1 if a == axis else 1 for a in range(3)]) for axis, n in enumerate(box.shape)]

    def bell(guess: Floats) -> tuple[Floats, list[Floats], Floats]:
        # Steps of the search that lead far away must not overflow.
        centre, sigma = guess[1 : 1 + len(active)], np.exp(np.clip(guess[1 + len(active) :], -5, 15))
        ways = [(places[axis] - c) / s for axis, c, s in zip(active, centre, sigma, strict=True)]
        return np.exp(-0.5 * sum(way**2 for way in ways)), ways, sigma

    def slopes(guess: Floats) -> Floats:
        shape, ways, sigma = bell(guess)
        columns = [shape]
        columns += [guess[0] * shape * way / s for way, s in zip(ways, sigma, strict=True)]
        columns += [guess[0] * shape * way**2 for way in ways]
        return np.stack([column.ravel() for column in columns], axis=1)

    start = np.concatenate([[1.0], (middle_zyx - low)[active], np.log(fwhm_zyx[active] / FWHM_PER_SIGMA)])
    best = optimize.least_squares(lambda p: (p[0] * bell(p)[0] - target).ravel(), start, jac=slopes, method="lm").x
    centre, fwhm = middle_zyx.astype(np.float64), fwhm_zyx.copy()
    centre[active] = low[active] + best[1 : 1 + len(active)]
    fwhm[active] = FWHM_PER_SIGMA * np.exp(np.clip(best[1 + len(active) :], -5, 15))
    return float(best[0] * unit), centre, fwhm


def without_hot_pixels(signal: Signal) -> tuple[Signal, int]:
    """Return the image with hot pixels replaced by the median of the 3 x 3 about them in the plane, and their number.

    Hot is what stands alone, HOT_RATIO times above all neighbours in its plane (a hot pixel of the camera is hot in
    all planes): no bead wider than 1.3 voxels FWHM does. Less than HOT_SIGMAS disappears in the smoothing.
    """
    level, noise = level_and_noise(signal)
    ring = np.array([[[1, 1, 1], [1, 0, 1], [1, 1, 1]]], bool)
    above = signal - np.float32(level)
    bound = np.maximum(HOT_RATIO * ndimage.maximum_filter(above, footprint=ring, mode="mirror"), HOT_SIGMAS * noise)
    hot = np.argwhere(above > bound)
    mended = signal.copy()
    for z, y, x in hot:
        box = signal[z, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        mended[z, y, x] = np.median(box)
    return mended, len(hot)


def find_peaks(signal: Signal, limit: float) -> Peaks:
    """Find the maxima of an image smoothed to a bead's width that do not belong to a brighter bead's image.

    `signal` (Z, Y, X) has its background near 0; voxels from `limit` on are clipped. Raises InputError where none is.
    """
    fwhm = _rough_fwhm(signal, limit)
    active = np.array(signal.shape) > 1
    # 0.6 of a bead's width: nearly the gain of the matched filter, and close neighbours stay two peaks.
    smooth = ndimage.gaussian_filter(signal, 0.6 * fwhm / FWHM_PER_SIGMA * active)
    wide = np.where(active, 2 * np.rint(2 * fwhm) + 1, 1).astype(int)
    smooth -= ndimage.uniform_filter(smooth, tuple(wide))
    size = np.where(active, 2 * np.maximum(1, np.rint(0.4 * fwhm)) + 1, 1).astype(int)
    voxels, heights = _maxima(smooth, tuple(size))
    kept = _without_lobes(voxels / fwhm, heights)
    return Peaks(voxels[kept], heights[kept], fwhm)


def _without_lobes(scaled: Floats, heights: Floats) -> NDArray[np.bool_]:
    """Return which peaks, brightest first and at places in FWHM, do not belong to the image of a brighter one."""
    tree = spatial.cKDTree(scaled)
    kept = np.ones(len(scaled), bool)
    for index in range(len(scaled)):
        if kept[index]:
            near = np.array(tree.query_ball_point(scaled[index], CONE_REACH_FWHM, p=np.inf), int)
            near = near[near > index]
            axial, *across = np.abs(scaled[near] - scaled[index]).T
            lateral = np.hypot(*across)
            share = np.where(lateral < LOBE_REACH_FWHM + CONE_OPENING * axial, NEIGHBOUR_SHARE, 0.0)
            share[np.maximum(axial, lateral) < LOBE_REACH_FWHM] = LOBE_SHARE
            share[(lateral < 1) & (axial < LOBE_REACH_FWHM)] = AXIAL_LOBE_SHARE
            # No two beads are that close: the top of one has split into two.
            share[np.maximum(axial, lateral) < 0.5] = 1.0
            kept[near[heights[near] <= share * heights[index]]] = False
    return kept


def _maxima(smooth: Signal, size: tuple[int, ...]) -> tuple[NDArray[np.intp], Floats]:
    level, noise = level_and_noise(smooth)
    # The second term: without any noise (a computed image) ripples in the tails of the beads would count.
    least = level + max(DETECTION_SIGMAS * noise, 1e-3 * (float(smooth.max()) - level))
    voxels = np.argwhere((smooth > least) & (ndimage.maximum_filter(smooth, size) == smooth))
    # At the image's border a filter averages over half as many voxels, along each axis: the noise is higher.
    near = (voxels < np.array(size) // 2) | (voxels >= np.array(smooth.shape) - np.array(size) // 2)
    voxels = voxels[smooth[tuple(voxels.T)] - level > (least - level) * np.sqrt(2.0) ** near.sum(axis=1)]
    if not len(voxels):
        raise InputError(
            f"bead image: no bead found, nothing stands {DETECTION_SIGMAS:g} standard deviations of the noise "
            f"({noise:.3g}) above the background; record brighter beads, or check that this is the bead image"
        )
    heights = smooth[tuple(voxels.T)].astype(np.float64) - level
    order = np.argsort(-heights, kind="stable")
    return voxels[order], heights[order]


def _rough_fwhm(signal: Signal, limit: float) -> Floats:
    """FWHM in voxels: the median, weighted with the heights, over the brightest peaks that are not clipped."""
    active = np.array(signal.shape) > 1
    smooth = ndimage.gaussian_filter(signal, 1.0 * active)
    voxels = _maxima(smooth, tuple(np.where(active, 5, 1)))[0]
    boxes: list[tuple[NDArray[np.intp], Floats]] = []
    good: list[int] = []
    for voxel in voxels[:1000]:
        if any((np.abs(voxel - middle) <= reach).all() for middle, reach in boxes):
            continue
        lines = [smooth[tuple(slice(None) if a == axis else voxel[a] for a in range(3))] for axis in range(3)]
        width = [width_at_half(line, at) or float(len(line)) for line, at in zip(lines, voxel, strict=True)]
        boxes.append((voxel, np.array(width)))
        if signal[box_about(voxel, np.ones(3))].max() < limit:
            good.append(len(boxes) - 1)
    if not good:
        raise InputError(f"bead image: all {len(boxes)} bright spots are clipped; lower the exposure")
    widths = np.array([boxes[index][1] for index in good])
    weights = np.array([smooth[tuple(boxes[index][0])] for index in good], np.float64)
    order = np.argsort(widths, axis=0, kind="stable")
    middle = np.argmax(np.cumsum(weights[order], axis=0) >= weights.sum() / 2, axis=0)
    median = np.array([widths[order[middle[axis], axis], axis] for axis in range(3)])
    # The smoothing by 1 voxel is taken off again.
    sharp = np.sqrt(np.maximum(median**2 - FWHM_PER_SIGMA**2, 1.5**2))
    return np.where(active, sharp, 1.0)


def box_about(voxel: NDArray[np.intp], reach: NDArray[Any]) -> tuple[slice, ...]:
    """Return the slices of the box of `reach` voxels to each side of a voxel; it ends at the first voxel."""
    return tuple(slice(max(0, int(v - r)), int(v + r) + 1) for v, r in zip(voxel, reach, strict=True))


def half_window(shape: tuple[int, ...], peaks: Peaks, shape_zyx: tuple[int, int, int] | None) -> NDArray[np.intp]:
    """Return half of the window, in voxels: the user's, or what most beads have room for. Raises InputError."""
    size, fwhm = np.array(shape), peaks.fwhm_zyx
    if shape_zyx is not None:
        half = np.array(shape_zyx) // 2
        if (half < np.where(size > 1, np.maximum(2, np.rint(0.75 * fwhm)), 0)).any():
            found = " x ".join(f"{width:.1f}" for width in fwhm)
            raise InputError(
                f"bead window: {shape_zyx} voxels (z, y, x) cut the beads, whose FWHM is {found}; give twice that"
            )
        return half.astype(np.intp)
    free = _free_fwhm(peaks)
    edge = np.minimum(peaks.voxels, size - 1 - peaks.voxels) / fwhm
    room = np.minimum(free, edge[:, 1:].min(axis=1))
    roomy = room >= LEAST_HALF_FWHM
    reach = np.clip(_most_have(room[roomy]), LEAST_HALF_FWHM, MOST_HALF_FWHM)
    depth = np.clip(_most_have(edge[roomy, 0]), 1.0, reach)
    half = np.minimum(np.array([depth, reach, reach]) * fwhm, (size - 1) // 2)
    return np.where(size > 1, np.maximum(half, np.minimum(2, (size - 1) // 2)), 0).astype(np.intp)


def _most_have(room: Floats) -> float:
    if not len(room):
        return 0.0
    return float(np.sort(room)[::-1][min(len(room), max(ENOUGH_BEADS, 3 * len(room) // 4)) - 1])


def _free_fwhm(peaks: Peaks) -> Floats:
    """For each peak the half window, in FWHM along every axis, that no neighbour's core reaches into."""
    scaled = peaks.voxels / peaks.fwhm_zyx
    free = np.full(len(scaled), np.inf)
    pairs = spatial.cKDTree(scaled).query_pairs(MOST_HALF_FWHM + 0.5, p=np.inf, output_type="ndarray")
    apart = np.abs(scaled[pairs[:, 0]] - scaled[pairs[:, 1]]).max(axis=1) - 0.5
    for one, other in (pairs.T, pairs.T[::-1]):
        counts = peaks.heights[other] >= NEIGHBOUR_SHARE * peaks.heights[one]
        np.minimum.at(free, one[counts], apart[counts])
    return free


def _crowded(peaks: Peaks, half: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Whether the core of a neighbour reaches into a peak's window."""
    tree = spatial.cKDTree(peaks.voxels / (half + 0.5 * peaks.fwhm_zyx))
    pairs = tree.query_pairs(1 - 1e-9, p=np.inf, output_type="ndarray")
    crowded = np.zeros(len(peaks.voxels), bool)
    for one, other in (pairs.T, pairs.T[::-1]):
        crowded[one[peaks.heights[other] >= NEIGHBOUR_SHARE * peaks.heights[one]]] = True
    return crowded


def usable_beads(
    signal: Signal,
    peaks: Peaks,
    half: NDArray[np.intp],
    *,
    limit: float,
    min_snr: float,
    max_beads: int,
    least_noise: float,
) -> tuple[list[Bead], Counter[str]]:
    """Return the isolated beads, brightest first, and how many of the others were rejected for which reason.

    Beads whose window reaches beyond the first or last plane are returned only where there are no others.
    Raises InputError where no bead is left.
    """
    crowded = _crowded(peaks, half)
    rejected: Counter[str] = Counter()
    fitted: list[Bead] = []
    for voxel, near in zip(peaks.voxels, crowded, strict=True):
        reason = _place_reason(signal, voxel, half, peaks.fwhm_zyx, limit) or (
            "neighbour in the window" if near else "beyond the largest number" if len(fitted) >= max_beads else None
        )
        if reason is None:
            bead = _fitted(signal, voxel, half, peaks.fwhm_zyx, least_noise)
            astray = np.abs(bead.centre_zyx - voxel) > np.maximum(1, peaks.fwhm_zyx)
            reason = "too dim" if bead.height < min_snr * bead.noise else "wrong width" if astray.any() else None
            fitted += [bead] if reason is None else []
        rejected.update([reason] if reason else [])
    beads = _of_usual_width(fitted)
    rejected["wrong width"] += len(fitted) - len(beads)
    whole = [bead for bead in beads if not is_truncated(bead, half, len(signal))]
    if whole:
        rejected["near the first or last plane"] += len(beads) - len(whole)
        beads = whole
    if not beads:
        counts = ", ".join(f"{rejected[reason]} {reason}" for reason in ADVICE if rejected[reason])
        window = " x ".join(str(2 * radius + 1) for radius in half)
        raise InputError(
            f"bead image: none of {len(peaks.voxels)} beads found can be used (window {window} voxels, zyx): {counts}; "
            f"{ADVICE[rejected.most_common(1)[0][0]]}"
        )
    return beads, rejected


def is_truncated(bead: Bead, half: NDArray[np.intp], planes: int) -> bool:
    """Return whether the bead's window reaches beyond the first or last plane."""
    plane = int(np.rint(bead.centre_zyx[0]))
    return bool(plane < half[0] or plane + half[0] >= planes)


def _place_reason(
    signal: Signal, voxel: NDArray[np.intp], half: NDArray[np.intp], fwhm: Floats, limit: float
) -> str | None:
    size = np.array(signal.shape)
    if ((voxel < half) | (voxel + half >= size))[1:].any():
        return "cut by the lateral border"
    if signal[box_about(voxel, np.rint(0.5 * fwhm))].max() >= limit:
        return "saturated"
    if size[0] > 1 and min(voxel[0], size[0] - 1 - voxel[0]) < 0.5 * fwhm[0]:
        return "core outside the stack"
    return None


def _fitted(signal: Signal, voxel: NDArray[np.intp], half: NDArray[np.intp], fwhm: Floats, least_noise: float) -> Bead:
    window = signal[box_about(voxel, half)]
    background, noise = level_and_noise(window[lateral_border(window.shape)])
    near = box_about(voxel, half + np.rint(fwhm).astype(int))
    start = np.array([part.start for part in near])
    height, centre, width = fit_core(signal[near] - background, voxel - start, fwhm)
    # Images without noise: rounding to integers alone has `least_noise`, floats have a relative one.
    noise = max(noise, least_noise, 1e-6 * height)
    return Bead(start + centre, height, background, noise, width)


def _of_usual_width(beads: list[Bead]) -> list[Bead]:
    """Drop what is far wider or narrower than the median bead: clusters, beads out of focus."""
    if not beads:
        return []
    widths = np.array([bead.fwhm_zyx for bead in beads])
    far = np.abs(widths / np.median(widths, axis=0) - 1) > WIDTH_TOLERANCE
    return [bead for bead, drop in zip(beads, far.any(axis=1), strict=True) if not drop]
