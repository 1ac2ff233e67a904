"""Bring a point spread function onto the image's own grid.

Invariant: a `Psf` has odd sizes, its origin in the middle voxel, no negative value, the image's voxel size and the sum
1; whatever was done to get there is told in `notes`, and values that cannot be brought there are an InputError.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError

SAME_SCALE = 0.01
"""Voxel sizes that differ by less than this fraction count as equal."""
LEAVE_SHIFT_PX = 0.1
"""A PSF whose centre is nearer than this to a voxel's centre is not interpolated."""
SUPPORT_ENERGY = 0.999
"""The box that is kept holds at least this fraction of the energy."""
MAX_VOXELS = 2**28
LEAST_BORDERED = 8
"""Narrower PSFs have no border to find a background in."""
NOISY_SHARE = 0.01
"""A PSF with a larger share of negative values (after its background) is taken for a measured one."""
AXES = "zyx"

Scale = Sequence[float | None]
Plane = int | Literal["focus"]


@dataclass(frozen=True, eq=False)
class Psf:
    """A point spread function on the image's own grid.

    Used as image = truth * values_zyx (convolution, origin in the middle voxel); never flipped.
    """

    values_zyx: NDArray[np.float32]
    """Odd sizes; one plane for a 2-D PSF; not negative; sum 1."""
    source: str
    """Path of the file, or how it was made."""
    notes: tuple[str, ...] = ()
    """Plain sentences the user must see."""

    @property
    def is_3d(self) -> bool:
        return len(self.values_zyx) > 1

    @property
    def radius_zyx(self) -> tuple[int, int, int]:
        """Half size in voxels: how far a point spreads along each axis."""
        z, y, x = (size // 2 for size in self.values_zyx.shape)
        return z, y, x

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the values and their shape; the path is no part of it."""
        shape = repr(self.values_zyx.shape).encode()
        return hashlib.sha256(shape + self.values_zyx.astype("<f4").tobytes()).hexdigest()


def prepare_psf(
    values: NDArray[Any],
    *,
    source: str,
    image_scale_zyx_um: Scale = (None, None, None),
    psf_scale_zyx_um: Scale = (None, None, None),
    is_3d: bool = True,
    image_shape_zyx: Sequence[int] | None = None,
    plane: Plane | None = None,
    background: float | None = None,
    notes: tuple[str, ...] = (),
) -> Psf:
    """Check a PSF and bring it onto the image's grid: background, centre, voxel size, support, sum.

    Background: with `background=None` a measured PSF is recognised by a flat border above 0, whose median is
    subtracted, or by many negative values; only the region around the peak that rises above the noise is then kept.
    A number is subtracted as it is (0 leaves the values alone). Negative values that remain become 0.

    Centre: the centroid of what rises above half of the peak, in the region around it (after smoothing by one voxel,
    so that a hot pixel is not taken for the peak). A PSF of even size, symmetric about the middle of its grid, is thus
    centred between two voxels. Where the centre is further than 0.1 voxel from a voxel's own centre the PSF is moved
    by cubic interpolation; nearer, it is left as it is.

    Voxel size: where it differs from the image's by more than 1 % the PSF is interpolated (cubic) and averaged over
    the image's voxels, in the same step that centres it. Unknown sizes are taken to be equal, with a note.

    Raises InputError.
    """
    said = list(notes)
    psf_zyx = _as_zyx(values, source, is_3d, plane, said)
    _refuse_unusable(psf_zyx, source)
    ratio_zyx = _scale_ratio(image_scale_zyx_um, psf_scale_zyx_um, psf_zyx.shape, source, said)
    _refuse_larger(psf_zyx.shape, ratio_zyx, image_shape_zyx, source)
    psf_zyx = _without_background(psf_zyx, background, source, said)
    centred = _centred(psf_zyx, ratio_zyx, said)
    cropped = _support(centred)
    total = float(cropped.sum())
    return Psf((cropped / total).astype(np.float32), source, tuple(said))


def _as_zyx(
    values: NDArray[Any], source: str, is_3d: bool, plane: Plane | None, said: list[str]
) -> NDArray[np.float64]:
    if values.dtype.kind not in "fiu":
        kind = {"c": "complex", "b": "boolean"}.get(values.dtype.kind, str(values.dtype))
        raise InputError(f"{source}: a PSF must hold real numbers, this one is {kind}; save its intensity")
    if values.ndim > 3:
        values = values.reshape([size for size in values.shape[:-2] if size != 1] + list(values.shape[-2:]))
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise InputError(f"{source}: a PSF must have two or three axes (YX or ZYX), this one has shape {values.shape}")
    psf_zyx = values.astype(np.float64).reshape((1,) * (3 - values.ndim) + values.shape)
    planes = psf_zyx.shape[0]
    if plane is not None and planes > 1:
        index = int(_centre(psf_zyx)[0] + 0.5) if plane == "focus" else plane
        if not 0 <= index < planes:
            raise InputError(f"{source}: has {planes} planes, there is no plane {index}; count from 0")
        said.append(f"Plane {index} of the {planes} planes of the PSF is used, plane by plane of the image.")
        return psf_zyx[index : index + 1]
    if planes > 1 and not is_3d:
        raise InputError(
            f"{source}: is a 3-D PSF ({planes} planes) but the image has a single plane; "
            "save its in-focus plane as a 2-D file and give that"
        )
    return psf_zyx


def _refuse_unusable(psf_zyx: NDArray[np.float64], source: str) -> None:
    bad = int(np.count_nonzero(~np.isfinite(psf_zyx)))
    if bad:
        raise InputError(
            f"{source}: {bad} of {psf_zyx.size} PSF values are NaN or infinite; measure or compute it again"
        )
    if not psf_zyx.any():
        raise InputError(f"{source}: the PSF is zero everywhere; is this the right file?")
    if psf_zyx.size > 1 and psf_zyx.min() == psf_zyx.max():
        raise InputError(f"{source}: the PSF has one value everywhere; is this the right file? (pad a box with zeros)")
    if psf_zyx.sum() <= 0:
        raise InputError(f"{source}: the PSF's values add up to {psf_zyx.sum():.3g}; they must be intensities, above 0")


def _scale_ratio(
    image: Scale, psf: Scale, shape: tuple[int, ...], source: str, said: list[str]
) -> tuple[float, float, float]:
    """Return image voxel size / PSF voxel size along z, y, x; 1 where they are equal within 1 % or unknown."""
    if len(image) != 3 or len(psf) != 3:
        raise InputError(f"{source}: voxel sizes must be given along z, y and x")
    ratios, unknown = [], []
    for axis, size, image_um, psf_um in zip(AXES, shape, image, psf, strict=True):
        for value in (image_um, psf_um):
            if value is not None and not (np.isfinite(value) and value > 0):
                raise InputError(
                    f"{source}: a voxel size of {value} along {axis} is impossible; give micrometres above 0"
                )
        if size == 1 and axis == "z":
            ratios.append(1.0)
        elif image_um is None or psf_um is None:
            unknown.append(axis)
            ratios.append(1.0)
        else:
            ratio = image_um / psf_um
            ratios.append(1.0 if abs(ratio - 1) <= SAME_SCALE else ratio)
    if unknown:
        whose = "the image" if any(image[AXES.index(axis)] is None for axis in unknown) else "the PSF"
        said.append(f"Voxel size along {', '.join(unknown)} unknown for {whose}: the PSF is taken to have the image's.")
    if any(ratio != 1 for ratio in ratios):
        sizes = " x ".join(f"{value:.4g}" if value else "?" for value in psf)
        target = " x ".join(f"{value:.4g}" if value else "?" for value in image)
        said.append(f"The PSF was resampled from {sizes} um (z, y, x) to the image's {target} um.")
    return ratios[0], ratios[1], ratios[2]


def _refuse_larger(
    shape: tuple[int, ...], ratio_zyx: tuple[float, ...], image_shape_zyx: Sequence[int] | None, source: str
) -> None:
    sizes = [max(1, round(size / ratio)) for size, ratio in zip(shape, ratio_zyx, strict=True)]
    if int(np.prod(sizes, dtype=object)) > MAX_VOXELS:
        raise InputError(f"{source}: the PSF would have {sizes} voxels of the image's size; check the voxel sizes")
    if image_shape_zyx is not None and any(a > b for a, b in zip(sizes, image_shape_zyx, strict=True)):
        psf = " x ".join(map(str, sizes))
        image = " x ".join(map(str, image_shape_zyx))
        raise InputError(f"{source}: the PSF ({psf} voxels of the image) is larger than the image ({image}); crop it")


def _without_background(
    psf_zyx: NDArray[np.float64], background: float | None, source: str, said: list[str]
) -> NDArray[np.float64]:
    """Subtract what does not belong to the PSF and return values that are not negative."""
    if background is not None and not np.isfinite(background):
        raise InputError(f"{source}: a PSF background of {background} is impossible; give a number")
    level = _pedestal(psf_zyx) if background is None else background
    result = psf_zyx - level
    peak, lowest = float(result.max()), float(np.percentile(result, 0.1))
    if peak <= 0 or lowest < -0.25 * peak:
        raise InputError(
            f"{source}: the PSF has values from {result.min():.3g} to {peak:.3g} with its background at 0; "
            "an intensity PSF is not negative"
        )
    negative = float(np.mean(result < 0))
    if background is None and negative > NOISY_SHARE:
        said.append(
            f"The PSF looks measured: its background of {level:.4g} was subtracted, and only the region around the "
            "peak that rises above the noise was kept."
        )
        result = np.where(_rising(result), result, 0.0)
        return result.clip(0, None)
    if background is None and level > 0:
        said.append(f"The PSF looks measured: its background of {level:.4g} was subtracted.")
    if negative > 0:
        said.append(f"{100 * negative:.2g} % of the PSF's values were negative and became 0.")
    return result.clip(0, None)


def _pedestal(psf_zyx: NDArray[np.float64]) -> float:
    """Return the background of a measured PSF, 0 for a computed one.

    Far from the peak a computed PSF falls off and has rings, so its border is never flat; a camera's background is.
    """
    if min(psf_zyx.shape[1:]) < LEAST_BORDERED:
        return 0.0
    border = psf_zyx[_rim(psf_zyx.shape)]
    level = float(np.median(border))
    noise = 1.4826 * float(np.median(np.abs(border - level)))
    flat = 0 < level < 0.25 * float(psf_zyx.max()) and noise < 0.25 * level
    return level if flat else 0.0


def _rim(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    rim = np.ones(shape, bool)
    rim[:, 1:-1, 1:-1] = False
    return rim


def _rising(psf_zyx: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the region around the peak that stands three standard deviations of the smoothed border above 0."""
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(psf_zyx, [min(1, size - 1) for size in psf_zyx.shape])
    border = smooth[_rim(psf_zyx.shape)]
    noise = 1.4826 * float(np.median(np.abs(border - np.median(border))))
    regions, _ = ndimage.label(smooth > 3 * noise)
    return np.asarray(regions == regions[np.unravel_index(int(smooth.argmax()), smooth.shape)])


def _centre(psf_zyx: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centre (z, y, x) in voxels, from 0: the centroid of what rises above half of the smoothed peak."""
    from scipy import ndimage

    # The margin lets a peak at the edge of its file be smoothed to both sides.
    margin = [4 if size > 1 else 0 for size in psf_zyx.shape]
    padded = np.pad(psf_zyx, [(m, m) for m in margin])
    smooth = ndimage.gaussian_filter(padded, [min(1, m) for m in margin], mode="constant")
    peak = np.unravel_index(int(smooth.argmax()), smooth.shape)
    regions, _ = ndimage.label(smooth > 0.5 * smooth[peak])
    core = np.where(regions == regions[peak], smooth - 0.5 * smooth[peak], 0.0)
    profiles = [core.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    return np.array([p @ np.arange(p.size) / p.sum() - m for p, m in zip(profiles, margin, strict=True)])


def _centred(
    psf_zyx: NDArray[np.float64], ratio_zyx: tuple[float, float, float], said: list[str]
) -> NDArray[np.float64]:
    """Return the PSF on an odd grid of the image's voxels with its centre in the middle voxel."""
    centre = _centre(psf_zyx)
    nearest = np.floor(centre + 0.5)
    if (np.abs(centre - (np.array(psf_zyx.shape) - 1) / 2) > 1).any():
        text = ", ".join(f"{value:.2f}" for value in centre)
        said.append(f"The PSF is off the middle of its file: its centre is at ({text}) (z, y, x from 0).")
    if all(ratio == 1 for ratio in ratio_zyx) and (np.abs(centre - nearest) <= LEAVE_SHIFT_PX).all():
        return _placed(psf_zyx, nearest.astype(int))
    return _interpolated(psf_zyx, centre, ratio_zyx)


def _placed(psf_zyx: NDArray[np.float64], origin: NDArray[np.int_]) -> NDArray[np.float64]:
    """Return the values, untouched, in an odd box of zeros with `origin` in the middle."""
    radius = [max(int(o), size - 1 - int(o)) for o, size in zip(origin, psf_zyx.shape, strict=True)]
    box = np.zeros([2 * r + 1 for r in radius])
    start = [r - int(o) for r, o in zip(radius, origin, strict=True)]
    box[tuple(slice(s, s + size) for s, size in zip(start, psf_zyx.shape, strict=True))] = psf_zyx
    return box


def _interpolated(
    psf_zyx: NDArray[np.float64], centre: NDArray[np.float64], ratio_zyx: tuple[float, float, float]
) -> NDArray[np.float64]:
    """Return cubic spline samples around `centre`, averaged over voxels `ratio_zyx` times as large as the PSF's."""
    from scipy import ndimage

    long = [size > 1 for size in psf_zyx.shape]
    reach = [max(c, size - 1 - c) + 1 for c, size in zip(centre, psf_zyx.shape, strict=True)]
    radius = [int(np.ceil(r / ratio)) if many else 0 for r, ratio, many in zip(reach, ratio_zyx, long, strict=True)]
    # Large voxels are averaged over samples at least as dense as the PSF's own, which keeps the energy.
    dense = [int(np.ceil(ratio)) if many else 1 for ratio, many in zip(ratio_zyx, long, strict=True)]
    step = [ratio / n for ratio, n in zip(ratio_zyx, dense, strict=True)]
    margin = [2 if many else 0 for many in long]
    first = [
        c + m - (r + (n - 1) / (2 * n)) * ratio
        for c, m, r, n, ratio in zip(centre, margin, radius, dense, ratio_zyx, strict=True)
    ]
    shape = [(2 * r + 1) * n for r, n in zip(radius, dense, strict=True)]
    padded = np.pad(psf_zyx, [(m, m) for m in margin])
    fine = np.asarray(
        ndimage.affine_transform(padded, np.array(step), np.array(first), tuple(shape), order=3, mode="constant")
    )
    (rz, ry, rx), (nz, ny, nx) = radius, dense
    voxels = fine.reshape(2 * rz + 1, nz, 2 * ry + 1, ny, 2 * rx + 1, nx).mean(axis=(1, 3, 5))
    return np.asarray(voxels.clip(0, None))


def _support(psf_zyx: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the central box that holds SUPPORT_ENERGY of the PSF: smaller boxes make blocks and halos cheaper."""
    total = psf_zyx.sum()
    allowed = (1 - SUPPORT_ENERGY) / sum(size > 1 for size in psf_zyx.shape) if psf_zyx.size > 1 else 0.0
    kept = []
    for axis, size in enumerate(psf_zyx.shape):
        profile = psf_zyx.sum(axis=tuple(other for other in range(3) if other != axis)) / total
        both = profile[: size // 2] + profile[: size // 2 : -1]
        cut = int(np.count_nonzero(np.cumsum(both) <= allowed))
        kept.append(slice(cut, size - cut))
    return psf_zyx[tuple(kept)]
