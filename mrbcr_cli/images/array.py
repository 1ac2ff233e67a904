"""An array in memory, of dask or of zarr, read as an image, so that arrays and files are deconvolved by the same code.

Invariant: the array is never copied whole and never written to; what `read` returns depends on its pixels and axes
alone, not on which kind of array holds them.
"""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.axes import canonical_order, format_shape, parse_axes
from mrbcr_cli.images.base import ImageInfo, Region
from mrbcr_cli.images.chunked import ChunkedArray
from mrbcr_cli.images.tiff import check_region

LABEL = "array"
"""What messages call it."""
_BY_NDIM = {2: "YX", 3: "ZYX"}


def is_dask(array: object) -> bool:
    """Whether it is an array of dask, which nobody can hold without having imported dask."""
    module = sys.modules.get("dask.array")
    return module is not None and isinstance(array, module.Array)


def is_zarr_array(array: object) -> bool:
    """Whether it is an array of zarr."""
    module = sys.modules.get("zarr")
    return module is not None and isinstance(array, module.Array)


class ArrayReader:
    """An array as an open image; fulfils ImageReader. Not a dataclass: dask looks into those for its own arrays."""

    def __init__(
        self, array: Any, *, axes: str | None = None, pixel_um: float | tuple[float, float, float] | None = None
    ) -> None:
        """`axes`: a letter of TCZYX for each axis; `pixel_um`: pixel size, or that of z, y, x. Raises InputError."""
        shape = _checked_shape(array)
        stored = _stored_axes(shape, axes, array.dtype)
        ordered = canonical_order(stored)
        self._array = ChunkedArray(array) if is_dask(array) else array
        self._order = tuple(stored.index(axis) for axis in ordered)
        sizes = _pixel_sizes(pixel_um)
        self.info = ImageInfo(
            path=LABEL,
            format=LABEL,
            axes=ordered,
            shape=tuple(shape[k] for k in self._order),
            dtype=np.dtype(array.dtype).newbyteorder("="),
            chunks=tuple(shape[k] for k in self._order),
            stored_axes=stored,
            scale=tuple(sizes.get(axis) for axis in ordered),
            units=tuple("micrometer" if sizes.get(axis) else None for axis in ordered),
        )

    def read(self, region: Region) -> NDArray[Any]:
        """Return the pixels of `region`, in canonical axes; those of a dask array are computed chunk by chunk, here."""
        check_region(region, self.info.shape)
        stored = [slice(0, 0)] * len(region)
        for part, axis in zip(region, self._order, strict=True):
            stored[axis] = part
        if isinstance(self._array, ChunkedArray):
            return self.canonical(self._array.read(stored))
        return self.canonical(np.asarray(self._array[tuple(stored)]))

    def canonical(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Pixels in the order of the array's own axes, brought into canonical order and native bytes."""
        return np.ascontiguousarray(stored.transpose(self._order), dtype=self.info.dtype)

    def as_stored(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Inverse of `canonical`, as a view."""
        return pixels.transpose(np.argsort(self._order))

    @property
    def order(self) -> tuple[int, ...]:
        """For each canonical axis its place in the array."""
        return self._order

    def fingerprint(self) -> str:
        """SHA-256 (hex) of axes, shape and dtype alone: no run that could be resumed is made of an array."""
        info = self.info
        return hashlib.sha256(f"mrbcr array 1|{info.stored_axes}|{info.shape}|{info.dtype}".encode()).hexdigest()

    def close(self) -> None:
        """Let go of chunks that are kept; the array is its owner's."""
        if isinstance(self._array, ChunkedArray):
            self._array.forget()


def _checked_shape(array: Any) -> tuple[int, ...]:
    dtype = np.dtype(array.dtype)
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError(f"an array of {dtype} holds no intensities; convert it to integers or floats")
    if isinstance(array, np.ma.MaskedArray):
        raise InputError("a masked array: its mask would be lost; fill it first (image.filled(0))")
    shape = tuple(array.shape)
    if any(size != size for size in shape):
        raise InputError("a dask array of unknown chunk sizes; call its compute_chunk_sizes() first")
    if 0 in shape:
        raise InputError(f"an array of shape {format_shape(shape)} has no pixels")
    return tuple(int(size) for size in shape)


def _stored_axes(shape: tuple[int, ...], axes: str | None, dtype: Any) -> str:
    if axes is not None:
        letters = parse_axes(axes, shape=shape, where="axes")
        if len(letters) != len(shape):
            raise InputError(f"axes: {axes!r} needs a letter for each of the {len(shape)} axes of the array")
        return letters
    if len(shape) not in _BY_NDIM:
        raise InputError(
            f"an array of shape {format_shape(shape)}: say what its axes are, as in axes='CZYX' or axes='TYX'"
        )
    if len(shape) == 3 and shape[2] in (3, 4) and min(shape[:2]) > 4:
        raise InputError(
            f"an array of shape {format_shape(shape)} looks like colour; give axes='YXC' to take each colour as a "
            "channel, or axes='ZYX' if it is a stack"
        )
    return _BY_NDIM[len(shape)]


def _pixel_sizes(pixel_um: float | tuple[float, float, float] | None) -> dict[str, float]:
    if pixel_um is None:
        return {}
    sizes = dict(zip("ZYX", pixel_um, strict=True)) if isinstance(pixel_um, tuple) else {"Y": pixel_um, "X": pixel_um}
    if not all(0 < size < float("inf") for size in sizes.values()):
        raise InputError(f"pixel_um must be a size above 0 in micrometres, or three of z, y and x, not {pixel_um}")
    return sizes
