"""Read a point spread function from a TIFF, .npy or .npz file.

Invariant: what the file holds is returned as it is or refused with an InputError, nothing is repaired here and no
pickle is ever loaded; `load_psf` then hands it to `psf_grid.prepare_psf`, which makes it fit for deconvolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.numpy_files import read_numpy
from mrbcr_cli.psf_grid import Plane, Psf, Scale, prepare_psf

__all__ = ["Psf", "StoredPsf", "load_psf", "read_stored_psf"]


MAX_PSF_BYTES = 2**29
"""Of a PSF; one of 256 planes of 512 px in double precision is as large."""


@dataclass(frozen=True)
class StoredPsf:
    """A PSF as a file holds it: any real array with two or three axes, and its voxel size where the file says so."""

    values: NDArray[Any]
    scale_zyx_um: tuple[float | None, float | None, float | None] = (None, None, None)
    notes: tuple[str, ...] = ()


def load_psf(
    path: str | Path,
    *,
    image_scale_zyx_um: Scale,
    is_3d: bool,
    psf_scale_zyx_um: Scale | None = None,
    image_shape_zyx: Sequence[int] | None = None,
    plane: Plane | None = None,
    background: float | None = None,
    axes: str | None = None,
) -> Psf:
    """Read a PSF from TIFF, .npy or .npz and bring it onto the image's grid.

    `is_3d`: the image is a z-stack that may be deconvolved in 3-D. `psf_scale_zyx_um` overrides what the file says of
    its voxel size in micrometres. With `image_shape_zyx` a PSF larger than the image is refused. `plane` takes one
    plane of a 3-D PSF (counted from 0, or "focus"). `background` is subtracted; None finds it (see `prepare_psf`).

    Raises InputError for whatever cannot be used; the message names the file and says what to do.
    """
    stored = read_stored_psf(Path(path), axes=axes)
    return prepare_psf(
        stored.values,
        source=str(path),
        image_scale_zyx_um=image_scale_zyx_um,
        psf_scale_zyx_um=stored.scale_zyx_um if psf_scale_zyx_um is None else psf_scale_zyx_um,
        is_3d=is_3d,
        image_shape_zyx=image_shape_zyx,
        plane=plane,
        background=background,
        notes=stored.notes,
    )


def read_stored_psf(path: Path, *, axes: str | None = None) -> StoredPsf:
    """Return the array in a .npy, .npz or TIFF file, unchanged. Pickled objects are never loaded.

    A .npz file holds either one array with two or three axes, or one called "psf"; an optional "scale_zyx_um" gives
    the voxel size in micrometres. Raises InputError.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such PSF file; give --psf a TIFF, .npy or .npz file")
    if path.suffix.lower() in (".npy", ".npz"):
        return _read_numpy(path)
    return _read_tiff(path, axes)


def _read_numpy(path: Path) -> StoredPsf:
    loaded = read_numpy(path, max_bytes=MAX_PSF_BYTES)
    if isinstance(loaded, np.ndarray):
        return StoredPsf(loaded)
    arrays = dict(loaded)
    scale = _numpy_scale(path, arrays.pop("scale_zyx_um", None))
    if "psf" in arrays:
        return StoredPsf(arrays["psf"], scale)
    images = {name: array for name, array in arrays.items() if array.ndim in (2, 3)}
    if len(images) != 1:
        raise InputError(
            f"{path}: holds the arrays {', '.join(sorted(arrays)) or '(none)'}; exactly one may have two or three "
            'axes, or one must be called "psf"'
        )
    return StoredPsf(next(iter(images.values())), scale)


def _numpy_scale(path: Path, scale: NDArray[Any] | None) -> tuple[float | None, float | None, float | None]:
    if scale is None:
        return (None, None, None)
    if scale.shape != (3,) or scale.dtype.kind not in "fiu":
        raise InputError(f'{path}: "scale_zyx_um" must be three numbers (micrometres along z, y, x)')
    z, y, x = (float(value) for value in scale)
    return z, y, x


def _read_tiff(path: Path, axes: str | None) -> StoredPsf:
    from mrbcr_cli.images.tiff import open_tiff

    reader = open_tiff(str(path), series=None, axes=axes)
    try:
        info = reader.info
        for axis, what in (("C", "channels"), ("T", "time points")):
            if info.size(axis) > 1:
                raise InputError(
                    f"{path}: a PSF must be one channel at one time point, this file has {info.size(axis)} {what} "
                    f"(axes {info.axes}); save the one you mean, or give its axes"
                )
        if info.nbytes > MAX_PSF_BYTES:
            raise InputError(f"{path}: a PSF of {info.nbytes >> 20} MiB is larger than any; give the PSF, not an image")
        values = reader.read(tuple(slice(0, size) for size in info.shape))
        kept = tuple(0 if axis in "TC" else slice(None) for axis in info.axes)
        z, y, x = (info.scale_um(axis) for axis in "ZYX")
        return StoredPsf(values[kept], (z, y, x), info.notes)
    finally:
        reader.close()
