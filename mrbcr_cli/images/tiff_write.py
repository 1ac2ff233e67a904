"""The OME-TIFF writer: streams an image tile by tile from a function that reads regions.

Invariant: the writer asks for each pixel once, in rows of tiles of at most 32 MiB, and holds no more than that and
tifffile's buffer; what it writes is one tiled OME-TIFF whose OME-XML carries scale, channels and provenance.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.images import tiff_meta
from mrbcr_cli.images.base import OutputSpec, Region
from mrbcr_cli.images.tiff_ome import OME_TYPES, ome_xml, page_axes, um_per_unit

Compression = Literal["zstd", "deflate", "none"]

STRIPE_BYTES = 32 * 2**20
BUFFER_BYTES = 8 * 2**20
CLASSIC_LIMIT = 2**32 - 2**25
"""Largest estimate that is still written as classic TIFF (offsets of 32 bits), as in tifffile."""


def check_tiff_dtype(dtype: DTypeLike) -> None:
    """Raise InputError for a pixel type that OME-TIFF does not have (int64, uint64, float16, complex, bool)."""
    name = np.dtype(dtype).name
    if name not in OME_TYPES:
        raise InputError(
            f"OME-TIFF has no pixel type {name}; give --output-dtype float32, or write OME-Zarr (NAME.ome.zarr)"
        )


def write_ome_tiff(
    path: Path,
    spec: OutputSpec,
    read: Callable[[Region], NDArray[Any]],
    *,
    compression: Compression = "zstd",
    tile_px: int = 512,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write exactly `path` as a tiled OME-TIFF (BigTIFF where it could pass 4 GB), overwriting it.

    `read(region)` returns pixels in canonical axes, `spec.dtype`; it is called once for each stripe: one plane, one row
    of tiles (`tile_px` pixels high), as wide as 32 MiB allow. `progress` is called with the number of pixels of each
    stripe. Planes are stored in the order of `spec.stored_axes`, Y and X always last.

    Raises InputError for a pixel type that OME-TIFF lacks or a tile size that is not a positive multiple of 16;
    OSError (a full disk) and what `read` raises pass through, leaving an unfinished file.
    """
    from tifffile import TiffWriter

    check_tiff_dtype(spec.dtype)
    if tile_px <= 0 or tile_px % 16:
        raise InputError(f"the tile size of a TIFF must be a positive multiple of 16, not {tile_px}")
    dtype = np.dtype(spec.dtype).newbyteorder("=")
    sizes = dict(zip(spec.axes, spec.shape, strict=True))
    length, width = sizes["Y"], sizes["X"]
    lead = page_axes(spec)[:-2]
    planes = math.prod(sizes[axis] for axis in lead)
    tile = (_tile(length, tile_px), _tile(width, tile_px))
    description = ome_xml(spec).encode("ascii", "xmlcharrefreplace")
    tiles = math.ceil(length / tile[0]) * math.ceil(width / tile[1])
    estimate = planes * tiles * (math.prod(tile) * dtype.itemsize + 64) + planes * 512 + len(description)
    # the horizontal predictor is old and known to every reader; the one for floats is not, so floats go without
    predictor = 2 if compression != "none" and dtype.kind in "iu" else None
    with TiffWriter(path, bigtiff=estimate > CLASSIC_LIMIT, ome=False) as writer:
        writer.write(
            data=_tiles(spec, lead, tile, dtype, read, progress),
            shape=(planes, length, width),
            dtype=dtype,
            tile=tile,
            photometric="minisblack",
            compression={"zstd": "zstd", "deflate": "zlib", "none": None}[compression],
            predictor=predictor,
            metadata=None,
            description=description,
            software="mrbcr",
            buffersize=BUFFER_BYTES,
            **_resolution(spec),
        )


def _tile(size: int, tile_px: int) -> int:
    """A small image gets a small tile: the next multiple of 16."""
    return min(tile_px, math.ceil(size / 16) * 16)


def _tiles(
    spec: OutputSpec,
    lead: str,
    tile: tuple[int, int],
    dtype: np.dtype[Any],
    read: Callable[[Region], NDArray[Any]],
    progress: Callable[[int], None] | None,
) -> Iterator[NDArray[Any]]:
    """Yield all tiles in the order of the file, zero-padded at the edges."""
    sizes = dict(zip(spec.axes, spec.shape, strict=True))
    length, width = sizes["Y"], sizes["X"]
    across = max(1, STRIPE_BYTES // (tile[0] * tile[1] * dtype.itemsize)) * tile[1]
    for position in np.ndindex(*(sizes[axis] for axis in lead)):
        bounds = {axis: slice(at, at + 1) for axis, at in zip(lead, position, strict=True)}
        for y in range(0, length, tile[0]):
            for x in range(0, width, across):
                bounds["Y"], bounds["X"] = slice(y, min(y + tile[0], length)), slice(x, min(x + across, width))
                region = tuple(bounds[axis] for axis in spec.axes)
                stripe = _checked(read(region), region, dtype)
                if progress is not None:
                    progress(stripe.size)
                for left in range(0, stripe.shape[1], tile[1]):
                    part = stripe[:, left : left + tile[1]]
                    missing = [(0, full - size) for full, size in zip(tile, part.shape, strict=True)]
                    yield np.ascontiguousarray(np.pad(part, missing) if any(m for _, m in missing) else part)


def _checked(stripe: NDArray[Any], region: Region, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the stripe as rows and columns; a wrong shape or type is a bug of the caller."""
    shape = tuple(part.stop - part.start for part in region)
    if stripe.shape != shape or stripe.dtype.newbyteorder("=") != dtype:
        raise ValueError(f"read returned {stripe.shape} {stripe.dtype} for a region of {shape} {dtype}")
    return stripe.reshape(shape[-2:]).astype(dtype, copy=False)


def _resolution(spec: OutputSpec) -> dict[str, Any]:
    """The resolution tags, pixels per centimetre, for readers that know no OME-XML."""
    sizes_um = []
    for axis in "XY":
        index = spec.axes.index(axis)
        scale, factor = spec.scale[index], um_per_unit(spec.units[index])
        if scale is None or factor is None:
            return {}
        sizes_um.append(scale * factor)
    densities = [1e4 / size for size in sizes_um]
    if not all(1e-3 < density < 4e9 for density in densities):  # outside of what the tag's fraction can hold
        return {}
    return {"resolution": tuple(densities), "resolutionunit": "CENTIMETER"}


def read_provenance(path: str | Path) -> dict[str, Any] | None:
    """Return the provenance that `write_ome_tiff` stored in a TIFF; None for any other file. Reads no pixels."""
    text = _annotations(path).get(tiff_meta.PROVENANCE_NS)
    if text is None:
        return None
    try:
        provenance = json.loads(text)
    except ValueError:
        return None
    return provenance if isinstance(provenance, dict) else None


def read_source_xml(path: str | Path) -> str | None:
    """Return the source's own OME-XML that `write_ome_tiff` kept, verbatim; None where there is none."""
    return _annotations(path).get(tiff_meta.SOURCE_XML_NS)


def _annotations(path: str | Path) -> dict[str, str]:
    from tifffile import TiffFile

    from mrbcr_cli.images.tiff_source import quiet_tifffile

    try:
        with quiet_tifffile(), TiffFile(path) as tif:
            text = tif.ome_metadata
        root: ElementTree.Element | None = tiff_meta.parse_xml(text, path=str(path)) if text else None
    except Exception:
        return {}  # a file that is not ours may be anything; the question was only whether it is
    return {} if root is None else tiff_meta.comment_annotations(root)
