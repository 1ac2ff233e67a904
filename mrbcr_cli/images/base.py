"""What every image format agrees on: values that describe an image, and the two doors it goes through.

Invariant: inside the tool an image has its axes in canonical order (a subset of TCZYX that ends in YX), whatever
the order on disk; a reader or writer is the only place that knows the order on disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

CANONICAL_AXES = "TCZYX"

UM_PER_UNIT: dict[str | None, float] = {
    "picometer": 1e-6,
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "inch": 25400.0,
    "meter": 1e6,
}

Region = tuple[slice, ...]
"""One slice (explicit start and stop, step 1) per axis, in canonical axis order."""


@dataclass(frozen=True)
class ImageInfo:
    """Everything known of an image without reading its pixels.

    All per-axis tuples follow `axes`, the canonical order; `stored_axes` is the order on disk (of the same letters).
    """

    path: str
    format: str
    """ "tiff", "ome-tiff", "imagej-tiff", "planes" (several TIFF files), "ome-zarr-0.4", "ome-zarr-0.5", "czi", "nd2",
    "lif", "dv", or "array" (in memory)."""
    axes: str
    """Canonical: a subset of TCZYX, always ending in YX. Axes of length 1 that the file names are kept."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    """Native byte order."""
    chunks: tuple[int, ...]
    """The smallest region that decodes by itself (tile, strip, plane, zarr chunk)."""
    stored_axes: str
    scale: tuple[float | None, ...]
    """Pixel size, plane distance or time interval along each axis; None where the file is silent. C is always None."""
    units: tuple[str | None, ...]
    """Unit of `scale` as OME-Zarr spells it (UDUNITS-2: "micrometer", "nanometer", "second"); None where unknown."""
    channel_names: tuple[str, ...] = ()
    """One per channel ("" where unnamed); empty when nothing is known of any channel."""
    channel_colors: tuple[str, ...] = ()
    """One RRGGBB per channel, or empty."""
    ome_xml: str | None = None
    """The source's own OME-XML, verbatim."""
    series: int = 0
    series_count: int = 1
    notes: tuple[str, ...] = ()
    """Plain sentences the user must see (an axis was guessed, RGB was split, ...)."""

    def size(self, axis: str) -> int:
        """Length along `axis`; 1 where the image has no such axis."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    def scale_of(self, axis: str) -> float | None:
        """Pixel size (or interval) along `axis` in `unit_of(axis)`; None where unknown or absent."""
        return self.scale[self.axes.index(axis)] if axis in self.axes else None

    def unit_of(self, axis: str) -> str | None:
        """Unit of `scale_of(axis)`; None where unknown or absent."""
        return self.units[self.axes.index(axis)] if axis in self.axes else None

    def scale_um(self, axis: str) -> float | None:
        """Pixel size along a spatial axis in micrometres; None where it or its unit is unknown."""
        scale, unit = self.scale_of(axis), self.unit_of(axis)
        return scale * UM_PER_UNIT[unit] if scale is not None and unit in UM_PER_UNIT else None

    @property
    def nbytes(self) -> int:
        """Uncompressed size of the image in bytes."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


@dataclass(frozen=True)
class OutputSpec:
    """What is to be written: the image and all that must survive beside its pixels. Tuples follow `axes`."""

    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stored_axes: str
    """Order on disk where the format leaves a choice (TIFF); OME-Zarr is always canonical."""
    scale: tuple[float | None, ...]
    units: tuple[str | None, ...]
    channel_names: tuple[str, ...] = ()
    channel_colors: tuple[str, ...] = ()
    name: str = "image"
    source_ome_xml: str | None = None
    """Kept verbatim in the output."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """JSON-able: command, version, weights, normalisation, settings, input fingerprint."""


class ImageReader(Protocol):
    """An open image. `read` may be called from several threads at once."""

    @property
    def info(self) -> ImageInfo: ...

    def read(self, region: Region) -> NDArray[Any]:
        """Return the pixels of `region`: canonical axes, native byte order, `info.dtype`; reads only chunks it meets.

        Raises InputError when the data are truncated or cannot be decoded; says which file and where.
        """
        ...

    def fingerprint(self) -> str:
        """SHA-256 (hex) that changes with the pixels or metadata on disk; cheap for any size; no path in it."""
        ...

    def close(self) -> None: ...
