"""Measure a point spread function (PSF) from an image of beads smaller than the resolution.

Invariant: a `BeadPsf` has odd sizes, its centre in the middle voxel, no negative value and the sum 1, and it depends
neither on the image's offset nor on its gain. Every bead that was found is accounted for: it is used, or it stands
under one reason in `rejected`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import BSpline

from mrbcr_cli.errors import InputError
from mrbcr_cli.optics.bead_finder import (
    ADVICE,
    Bead,
    Floats,
    Peaks,
    Signal,
    box_about,
    clip_value,
    find_peaks,
    fit_core,
    half_window,
    is_truncated,
    lateral_border,
    level_and_noise,
    usable_beads,
    without_hot_pixels,
)
from mrbcr_cli.optics.measure import FWHM_PER_SIGMA, profile_fwhm

KNOTS = np.arange(-3, 4)
QUINTIC = BSpline.basis_element(KNOTS, extrapolate=False)
"""The B-spline of degree 5 about 0; NaN beyond its knots."""
SPHERE_FWHM = float(FWHM_PER_SIGMA / np.sqrt(20))
"""FWHM, per diameter, of the Gaussian that has a solid sphere's variance (diameter^2 / 20 along each axis)."""
CORRELATION_TOLERANCE = 0.03
"""Beads that correlate that much less with the mean than the median bead (0.999 as a rule) are dropped."""
MOST_ROUNDS = 10
SETTLED_PX = 0.005
FEWEST_FOR_OUTLIERS = 6
"""With fewer beads nobody can tell which voxel is the outlier."""
LEAST_PLANES = 5
MARGIN = 8
"""Voxels around a window from which it is resampled; the quintic spline's memory of its border is then 0.1 %."""
ROUNDING_NOISE = float(1 / np.sqrt(12))
"""Standard deviation, in grey levels, that rounding to integers leaves."""
UNDERSAMPLED_PX = 2.0
NOISY_SNR = 30.0
UNLIKE_WIDTHS = 0.15
SHARPER = 0.8
"""The Wiener filter's signal is that much narrower than the PSF: a Gaussian's transform falls off too soon."""
LARGE_BEAD = 0.8
"""Share of the imaged FWHM from which a bead's size dominates it."""

Widths = tuple[float | None, float | None, float | None]


@dataclass(frozen=True, eq=False)
class BeadPsf:
    """The PSF measured from beads, and how good it is. `Widths` are along z, y, x; None where not measurable."""

    values_zyx: NDArray[np.float32]
    """Odd sizes; one plane for a 2-D PSF; not negative; sum 1; the image of a point, never flipped."""
    voxel_zyx_um: tuple[float, float, float]
    fwhm_zyx_um: Widths
    """Full width at half maximum of `values_zyx` on the lines through its middle voxel."""
    bead_fwhm_median_zyx_um: Widths
    """Median over the used beads as imaged: the bead's own size is still in it."""
    bead_fwhm_sd_zyx_um: Widths
    """Standard deviation over the used beads (0 for a single bead)."""
    snr: float
    """Peak of the averaged beads over the standard deviation of their background (before division by the bead)."""
    bead_snr: float
    """Median over the used beads of the same ratio of a single bead."""
    found: int
    used: int
    rejected: Mapping[str, int]
    """Reason (a key of bead_finder.ADVICE) -> count; found = used + the sum of these."""
    positions_zyx: Floats
    """(used, 3) centres in voxels, brightest first; 0 is the middle of the first voxel."""
    notes: tuple[str, ...]
    """Plain sentences the user must see."""


def measure_psf(
    image_zyx: NDArray[Any],
    voxel_zyx_um: tuple[float, float, float],
    *,
    shape_zyx: tuple[int, int, int] | None = None,
    bead_diameter_um: float | None = None,
    saturation: float | None = None,
    min_snr: float = 8.0,
    max_beads: int = 500,
) -> BeadPsf:
    """Find isolated beads in a stack of shape (Z, Y, X), or (1, Y, X) for a 2-D PSF, and average them into a PSF.

    `image_zyx` holds integers or floats, linear in intensity. `shape_zyx` is the PSF's window in voxels (odd); by
    default up to 8 FWHM, less where neighbours or the image's borders are nearer. `saturation` is the value from
    which a voxel counts as clipped; by default the image's highest value where at least 3 voxels (if it is the
    type's largest) or 4 voxels, more than twice as many as at the next lower value, hold it. `min_snr` is a bead's
    height over the standard deviation of its background. The `max_beads` brightest beads are used.

    A bead's centre is first that of a Gaussian fitted to its core, then registered to the running mean by least
    squares on the mean's gradient (Lucas & Kanade 1981) until it rests. Beads are resampled once, from the image,
    by quintic B-splines (Unser, Aldroubi & Eden 1993), and averaged with their heights as weights, the most likely
    mean under Poisson noise; voxels far from all other beads' are left out, hot pixels are mended before. Where the
    smoothed PSF does not rise above its noise it becomes 0: else half of the noise would stay as a pedestal.

    With `bead_diameter_um` the transform of a solid sphere, 3 (sin u - u cos u) / u^3 with u = pi d |k| (Rayleigh
    1911), is divided out by a Wiener filter whose signal is a Gaussian of the PSF's width and whose noise is the
    measured one. In a single plane |k| is lateral: the projection of the sphere.

    Raises InputError: image not three axes of real, finite, differing numbers, or of 2 to 4 planes; voxel sizes or
    settings out of range; window even, smaller than a bead or larger than the image; no bead found or above the
    noise; all beads rejected; a bead diameter above twice the lateral FWHM.
    """
    _refuse_unusable(image_zyx, voxel_zyx_um, shape_zyx)
    _refuse_settings(bead_diameter_um, saturation, min_snr, max_beads)
    median = float(np.median(image_zyx))
    signal, hot = without_hot_pixels((image_zyx.astype(np.float64) - median).astype(np.float32))
    limit = float(np.float32((clip_value(image_zyx) if saturation is None else saturation) - median))
    least_noise = ROUNDING_NOISE if image_zyx.dtype.kind in "iu" else 0.0
    peaks = find_peaks(signal, limit)
    half = half_window(signal.shape, peaks, shape_zyx)
    isolated, rejected = usable_beads(
        signal, peaks, half, limit=limit, min_snr=min_snr, max_beads=max_beads, least_noise=least_noise
    )
    beads, mean = _aligned_mean(signal, isolated, half, peaks.fwhm_zyx)
    rejected["unlike the mean"] += len(isolated) - len(beads)
    psf = _result(mean, beads, peaks, rejected, voxel_zyx_um, bead_diameter_um)
    return replace(psf, notes=_notes_on_image(image_zyx, hot, beads, half) + psf.notes)


def _result(
    mean: Floats,
    beads: list[Bead],
    peaks: Peaks,
    rejected: Mapping[str, int],
    voxel_zyx_um: tuple[float, float, float],
    diameter: float | None,
) -> BeadPsf:
    voxel = np.array(voxel_zyx_um)
    held = mean.any(axis=(1, 2), keepdims=True)
    level, noise = level_and_noise(mean[lateral_border(mean.shape) & held])
    imaged = (mean - level) * held
    noise = max(noise, 1e-6 * float(imaged.max()))
    core_fwhm = fit_core(imaged, np.array(mean.shape) // 2, peaks.fwhm_zyx)[2]
    psf = imaged if diameter is None else _without_bead(imaged, voxel, diameter, core_fwhm, noise)
    psf = _above_noise(psf, core_fwhm) * held
    # The Gaussian fitted to the mean calibrates those fitted to the beads: all widths then mean the same.
    spread = np.array([bead.fwhm_zyx for bead in beads]) / core_fwhm
    imaged_fwhm = _widths(imaged, voxel)
    snr = float(imaged.max()) / noise
    notes = (f"The SNR of the averaged beads is only {snr:.0f}: widths are uncertain.",) if snr < NOISY_SNR else ()
    return BeadPsf(
        values_zyx=(psf / psf.sum()).astype(np.float32),
        voxel_zyx_um=voxel_zyx_um,
        fwhm_zyx_um=_widths(psf, voxel),
        bead_fwhm_median_zyx_um=_scaled(imaged_fwhm, np.median(spread, axis=0)),
        bead_fwhm_sd_zyx_um=_scaled(imaged_fwhm, spread.std(axis=0)),
        snr=snr,
        bead_snr=float(np.median([bead.height / bead.noise for bead in beads])),
        found=len(peaks.voxels),
        used=len(beads),
        rejected=MappingProxyType({reason: rejected[reason] for reason in ADVICE if rejected[reason]}),
        positions_zyx=np.array([bead.centre_zyx for bead in beads]),
        notes=notes + _notes_on_widths(core_fwhm * (np.array(mean.shape) > 1), spread.std(axis=0), voxel, diameter),
    )


def _refuse_unusable(image: NDArray[Any], voxel: tuple[float, ...], shape: tuple[int, ...] | None) -> None:
    if image.ndim != 3 or image.dtype.kind not in "fiu" or 0 in image.shape:
        raise InputError(f"bead image: must be real numbers along z, y, x, not {image.dtype} of shape {image.shape}")
    bad = image.size - int(np.count_nonzero(np.isfinite(image)))
    if bad:
        raise InputError(f"bead image: {bad} of {image.size} values are NaN or infinite; crop or record it again")
    if image.min() == image.max():
        raise InputError(f"bead image: every value is {image.min():g}; is this the right file or channel?")
    if 1 < len(image) < LEAST_PLANES:
        raise InputError(f"bead image: {len(image)} planes are too few; give one plane or at least {LEAST_PLANES}")
    if len(voxel) != 3 or not all(np.isfinite(size) and size > 0 for size in voxel):
        raise InputError(f"bead image: voxel size {voxel} (z, y, x) is impossible; give three micrometres above 0")
    if shape is None:
        return
    if len(shape) != 3 or any(size < 1 or size % 2 == 0 for size in shape):
        raise InputError(f"bead window: {shape} voxels (z, y, x); give three odd sizes, so that it has a middle voxel")
    if any(size > limit for size, limit in zip(shape, image.shape, strict=True)):
        raise InputError(f"bead window: {shape} voxels (z, y, x) are more than the image's {image.shape}; give fewer")


def _refuse_settings(diameter: float | None, saturation: float | None, min_snr: float, max_beads: int) -> None:
    if diameter is not None and not (np.isfinite(diameter) and diameter > 0):
        raise InputError(f"bead diameter: {diameter} um is impossible; give micrometres above 0")
    if saturation is not None and not np.isfinite(saturation):
        raise InputError(f"saturation: {saturation} is no intensity; give a finite number")
    if not (np.isfinite(min_snr) and min_snr > 0):
        raise InputError(f"least SNR: {min_snr} is impossible; give a number above 0")
    if max_beads < 1:
        raise InputError(f"largest number of beads: {max_beads} is impossible; give 1 or more")


def _aligned_mean(
    signal: Signal, beads: list[Bead], half: NDArray[np.intp], fwhm_zyx: Floats
) -> tuple[list[Bead], Floats]:
    """Register the beads to their mean until they rest; return those that look like it, and the mean of height 1.

    The mean's own centre is brought into the middle voxel in the same rounds.
    """
    for turn in range(MOST_ROUNDS):
        boxes = np.stack([_resampled(signal, bead.centre_zyx, half) for bead in beads])
        inside = np.stack([_planes_inside(bead, half, len(signal)) for bead in beads])
        mean = _robust_mean(boxes, beads, inside)
        level = level_and_noise(mean[lateral_border(mean.shape)])[0]
        off = _centre(mean - level) - half
        moved, kept = _registered(boxes, mean, beads, np.flatnonzero(inside.all(axis=0)), fwhm_zyx)
        step = max(float(np.abs(b.centre_zyx - a.centre_zyx).max()) for a, b in zip(beads, moved, strict=True))
        settled = kept.all() and np.abs(off).max() < SETTLED_PX and step < 2 * SETTLED_PX
        if settled or turn == MOST_ROUNDS - 1:
            break
        beads = [replace(b, centre_zyx=b.centre_zyx + off) for b, keep in zip(moved, kept, strict=True) if keep]
    return beads, mean


def _centre(psf: Floats) -> Floats:
    """Return the centroid of what rises above half of the peak once smoothed by 1 voxel: `psf_grid` centres by it."""
    smooth = ndimage.gaussian_filter(psf, [1.0 if size > 1 else 0.0 for size in psf.shape], mode="constant")
    peak = np.unravel_index(int(smooth.argmax()), smooth.shape)
    regions, _ = ndimage.label(smooth > 0.5 * smooth[peak])
    core = np.where(regions == regions[peak], smooth - 0.5 * smooth[peak], 0.0)
    return np.array([(core * places).sum() / core.sum() for places in np.indices(core.shape)])


def _resampled(signal: Signal, centre_zyx: Floats, half: NDArray[np.intp]) -> Signal:
    """Return the window about a point between voxels, by quintic B-splines; outside, the image's edge is repeated."""
    voxel = np.rint(centre_zyx).astype(int)
    reach = half + MARGIN * (np.array(signal.shape) > 1)
    index = [np.clip(np.arange(v - r, v + r + 1), 0, n - 1) for v, r, n in zip(voxel, reach, signal.shape, strict=True)]
    block: Floats = signal[np.ix_(*index)].astype(np.float64)
    for axis, part in enumerate(centre_zyx - voxel):
        if signal.shape[axis] > 1:
            block = _on_splines(block, axis, QUINTIC(KNOTS - part))
    return block[tuple(slice(r - h, r + h + 1) for r, h in zip(reach, half, strict=True))].astype(np.float32)


def _on_splines(block: Floats, axis: int, weights: Floats) -> Floats:
    values: Floats = ndimage.correlate1d(ndimage.spline_filter1d(block, 5, axis), np.nan_to_num(weights), axis)
    return values


def _planes_inside(bead: Bead, half: NDArray[np.intp], planes: int) -> NDArray[np.bool_]:
    place = np.rint(bead.centre_zyx[0]) + np.arange(-half[0], half[0] + 1)
    return np.isin(place, np.arange(planes))


def _robust_mean(boxes: Signal, beads: list[Bead], inside: NDArray[np.bool_]) -> Floats:
    """Average with the heights as weights; voxels beyond 4 robust standard deviations of the beads' are left out."""
    heights = np.array([bead.height for bead in beads])
    backgrounds = np.array([bead.background for bead in beads])
    # A single very bright bead must not stand for all.
    weights = np.minimum(heights, 3 * np.median(heights))
    mean = np.zeros(boxes.shape[1:])
    for plane in np.flatnonzero(inside.any(axis=0)):
        has = inside[:, plane]
        values = (boxes[has, plane] - backgrounds[has, None, None]) / heights[has, None, None]
        weight = np.broadcast_to(weights[has, None, None], values.shape)
        if has.sum() >= FEWEST_FOR_OUTLIERS:
            far = np.abs(values - np.median(values, axis=0))
            weight = weight * (far <= 4 * 1.4826 * np.median(far, axis=0))
        mean[plane] = (values * weight).sum(axis=0) / weight.sum(axis=0)
    return mean


def _registered(
    boxes: Signal, mean: Floats, beads: list[Bead], planes: NDArray[np.intp], fwhm_zyx: Floats
) -> tuple[list[Bead], NDArray[np.bool_]]:
    """Return the beads with centre, height and background fitted to the mean, and which of them look like it."""
    active = [axis for axis, size in enumerate(mean.shape) if size > 1]
    columns = [mean, *(_on_splines(mean, axis, -QUINTIC.derivative()(KNOTS)) for axis in active), np.ones_like(mean)]
    solve = np.linalg.pinv(np.stack([column[planes].ravel() for column in columns], axis=1))
    middle = np.array(mean.shape) // 2
    core = box_about(middle, np.rint(1.5 * fwhm_zyx))
    pattern = (mean[core] - mean[core].mean()).ravel()
    moved, likeness = [], []
    for box, bead in zip(boxes, beads, strict=True):
        height, *slopes, background = solve @ box[planes].ravel().astype(np.float64)
        centre = bead.centre_zyx.copy()
        # Half a voxel at most: the linear model holds no further.
        centre[active] += np.clip(-np.array(slopes) / height, -0.5, 0.5)
        moved.append(replace(bead, centre_zyx=centre, height=float(height), background=float(background)))
        values = box[core].ravel().astype(np.float64)
        # The background's noise is taken off: a dim bead is not unlike the mean for being dim.
        variance = max(float(values.var()) - bead.noise**2, 1e-3 * float(values.var()))
        likeness.append(float(np.mean(values * pattern)) / np.sqrt(variance * pattern.var()))
    like = np.array(likeness)
    usual = float(np.median(like))
    spread = 1.4826 * float(np.median(np.abs(like - usual)))
    return moved, like >= usual - max(CORRELATION_TOLERANCE, 5 * spread)


def _without_bead(psf: Floats, voxel: Floats, diameter: float, core_fwhm: Floats, noise: float) -> Floats:
    """Divide the transform of a solid sphere out by a Wiener filter and keep the centre in the middle voxel."""
    fwhm = core_fwhm * voxel
    if diameter > 2 * fwhm[1:].min():
        raise InputError(
            f"bead diameter: {diameter:g} um is more than twice the beads' FWHM of {fwhm[1:].min():.3g} um; "
            "check the diameter and the voxel size"
        )
    half = np.array(psf.shape) // 2
    pad = [(int(np.ceil(diameter / v)),) * 2 if n > 1 else (0, 0) for n, v in zip(psf.shape, voxel, strict=True)]
    padded = np.pad(psf, pad)
    waves = np.meshgrid(*(np.fft.fftfreq(n, v) for n, v in zip(padded.shape, voxel, strict=True)), indexing="ij")
    u = np.pi * diameter * np.sqrt(sum(wave**2 for wave in waves))
    safe = np.maximum(u, 0.01)
    sphere = np.where(u < 0.01, 1 - u**2 / 10, 3 * (np.sin(safe) - safe * np.cos(safe)) / safe**3)
    sharp = np.sqrt(np.maximum(fwhm**2 - (SPHERE_FWHM * diameter) ** 2, (0.3 * fwhm) ** 2))
    sigmas = SHARPER * sharp / FWHM_PER_SIGMA
    decay = sum((2 * np.pi * sigma * wave) ** 2 for sigma, wave in zip(sigmas, waves, strict=True))
    noise_to_signal = noise**2 * psf.size / psf.sum() ** 2 * np.exp(np.minimum(decay, 500))
    spectrum = np.fft.fftn(padded) * sphere / (sphere**2 + np.maximum(noise_to_signal, 1e-4))
    off = np.zeros(3)
    for _ in range(4):
        turn = np.exp(2j * np.pi * sum(wave * o * v for wave, o, v in zip(waves, off, voxel, strict=True)))
        whole = np.fft.ifftn(spectrum * turn).real
        result: Floats = whole[tuple(slice(before, before + n) for (before, _), n in zip(pad, psf.shape, strict=True))]
        off += _centre(result) - half
    return result


def _above_noise(psf: Floats, core_fwhm: Floats) -> Floats:
    """Set to 0 what is negative and what does not rise above the noise once smoothed by half the PSF's width."""
    smooth = ndimage.gaussian_filter(psf, 0.5 * core_fwhm / FWHM_PER_SIGMA * (np.array(psf.shape) > 1))
    border = lateral_border(psf.shape)
    level, noise = level_and_noise(smooth[border])
    regions, _ = ndimage.label(smooth > level + 4 * noise)
    z, y, x = (size // 2 for size in psf.shape)
    # What comes in from the border without reaching the middle is a neighbour's light.
    strange = np.setdiff1d(regions[border], [regions[z, y, x]])
    if not regions[z, y, x]:
        raise InputError(
            f"bead image: the mean bead does not rise above its noise ({noise:.2g}); record brighter beads"
        )
    return np.where((regions > 0) & ~np.isin(regions, strange), np.maximum(psf, 0), 0)


def _widths(psf: Floats, voxel: Floats) -> Widths:
    """FWHM in um along z, y, x through the middle voxel."""
    z, y, x = (size // 2 for size in psf.shape)
    lines = (psf[:, y, x], psf[z, :, x], psf[z, y, :])
    along_z, along_y, along_x = (profile_fwhm(line, float(um)) for line, um in zip(lines, voxel, strict=True))
    return along_z, along_y, along_x


def _scaled(widths: Widths, factors: Floats) -> Widths:
    z, y, x = (None if width is None else width * float(f) for width, f in zip(widths, factors, strict=True))
    return z, y, x


def _notes_on_image(image: NDArray[Any], hot: int, beads: list[Bead], half: NDArray[np.intp]) -> tuple[str, ...]:
    notes = [f"{hot} hot pixel(s) were replaced by the median about them."] if hot else []
    lowest = float(np.mean(image == image.min()))
    if lowest > 0.5:
        notes.append(f"{lowest:.0%} of the bead image hold its lowest value: faint parts of the PSF may be cut off.")
    if len(beads) < FEWEST_FOR_OUTLIERS:
        notes.append(f"Only {len(beads)} bead(s) could be averaged: {FEWEST_FOR_OUTLIERS} or more are better.")
    if is_truncated(beads[0], half, len(image)):
        held = np.any([_planes_inside(bead, half, len(image)) for bead in beads], axis=0)
        notes.append(
            f"All beads are near the first or last plane: {np.sum(~held)} of {held.size} planes of the PSF are 0."
        )
    return tuple(notes)


def _notes_on_widths(fwhm: Floats, spread: Floats, voxel: Floats, diameter: float | None) -> tuple[str, ...]:
    notes = [
        f"The beads are only {width:.2g} voxels wide along {axis}: the image is undersampled."
        for axis, width in zip("zyx", fwhm, strict=True)
        if 0 < width < UNDERSAMPLED_PX
    ]
    notes += [
        f"The beads' FWHM along {axis} differ by {share:.0%} (standard deviation)."
        for axis, share in zip("zyx", spread, strict=True)
        if share > UNLIKE_WIDTHS
    ]
    imaged = float((fwhm * voxel)[1:].min())
    if diameter is None:
        notes.append("No bead diameter was given: the PSF is widened by the beads' own size.")
    elif diameter > LARGE_BEAD * imaged:
        notes.append(f"A bead of {diameter:g} um is large for beads imaged {imaged:.3g} um wide: the PSF is uncertain.")
    return tuple(notes)
