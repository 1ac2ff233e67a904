"""What a TIFF file holds, checked before a pixel is read: its pages, shape, axis letters, scale and channels.

Invariant: a Source that is returned can be read to its last byte (every page and segment lies inside its file) and
holds real or integer intensities; anything else is an InputError that names the file and what to do about it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from mrbcr_cli.errors import InputError, MrbcrError
from mrbcr_cli.images import tiff_meta
from mrbcr_cli.images.axes import format_shape
from mrbcr_cli.images.tiff_chain import PageKinds, check_chain
from mrbcr_cli.images.tiff_claims import beside, check_claims
from mrbcr_cli.images.tiff_pages import JPEG_CODES, Layout, Plane, layout_of

PALETTE, COLOR_FILTER_ARRAY = 3, 32803
MAX_COMPANION_BYTES = 256 * 2**20
MAX_SEGMENT_BYTES = 2**30
"""A compressed strip or tile is decoded whole, in memory."""


@dataclass(frozen=True)
class Source:
    """One series of a TIFF file (or of the files of a multi-file OME-TIFF), ready to be read."""

    path: str
    format: str
    letters: str
    """tifffile's axis codes, one per axis of `shape`, in stored order."""
    shape: tuple[int, ...]
    full_letters: str
    """As `letters`, before length-1 axes were dropped."""
    full_shape: tuple[int, ...]
    layout: Layout
    plane: Callable[[int], Plane]
    plane_count: int
    files: tuple[str, ...]
    physical: tiff_meta.Physical
    rgb: bool
    ome_xml: str | None
    series: int
    series_count: int
    notes: tuple[str, ...]


class _Silence(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return False


@contextmanager
def quiet_tifffile() -> Iterator[None]:
    """Keep tifffile's own warnings from the terminal: what matters in them is checked and said here."""
    logger, silence = logging.getLogger("tifffile"), _Silence()
    logger.addFilter(silence)
    try:
        yield
    finally:
        logger.removeFilter(silence)


def load_source(path: str | Path, *, series: int | None = None) -> Source:
    """Open `path`, check it whole and describe one of its series (the first unless `series` says otherwise).

    Raises InputError: missing, empty, not TIFF, truncated, damaged, missing companion files, no such series, complex,
    boolean or palette pixels, an axis of length zero, a compression that cannot be decoded.
    """
    kinds = check_chain(str(path))
    try:
        with quiet_tifffile():
            source = _load(str(path), series, kinds)
        for other in source.files:
            if other != str(path):
                check_chain(other)
        return source
    except MrbcrError:
        raise
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    except Exception as exc:
        # tifffile parses foreign bytes and can raise nearly anything on them; each of those means bad input here
        reason = " ".join(str(exc).split())[:200] or type(exc).__name__
        raise InputError(
            f"{path}: cannot be read as TIFF ({reason}); the file is damaged or of an unknown kind"
        ) from exc


def _load(path: str, wanted: int | None, kinds: PageKinds) -> Source:
    from tifffile import TiffFile

    with TiffFile(path) as tif:
        ome_xml = tif.ome_metadata
        root = tiff_meta.parse_xml(ome_xml, path=path) if ome_xml is not None else None
        if root is not None:
            check_claims(root, path, kinds)
        replacement = None if root is None or ome_xml is None else _standalone_xml(root, ome_xml, path)
        if replacement is None:
            return _describe(tif, path, wanted, root, ome_xml, kinds)
    ome_xml, usable = replacement
    root = tiff_meta.parse_xml(usable, path=path)
    check_claims(root, path, kinds)
    with TiffFile(path, omexml=usable) as tif:
        return _describe(tif, path, wanted, root, ome_xml, kinds)


def _standalone_xml(root: ElementTree.Element, ome_xml: str, path: str) -> tuple[str, str] | None:
    """Return (verbatim, usable) OME-XML where the file's own cannot be used as it is; None where it can.

    Two cases: the XML only points to a companion file; or it names one single file, which is this one under another
    name (after a copy or a rename), and following that name would read other pixels or none.
    """
    folder = Path(path).parent
    for element in root:
        if tiff_meta.local(element.tag) == "BinaryOnly":
            companion = folder / beside(element.get("MetadataFile", ""), path)
            if not companion.is_file():
                raise InputError(
                    f"{path}: is one part of a larger image; the file that describes it, {companion.name!r}, "
                    "is missing: put it beside this one"
                )
            if companion.suffix.lower() in (".tif", ".tiff", ".tf2", ".tf8", ".btf"):
                raise InputError(f"{path}: is one part of a larger image; give {companion.name!r} beside it instead")
            if companion.stat().st_size > MAX_COMPANION_BYTES:
                raise InputError(f"{companion}: larger than {MAX_COMPANION_BYTES >> 20} MiB; no OME-XML is")
            xml = companion.read_text(encoding="utf-8-sig")
            tiff_meta.parse_xml(xml, path=str(companion))
            return xml, xml
    parts = [(parent, uuid) for parent in root.iter() for uuid in parent if tiff_meta.local(uuid.tag) == "UUID"]
    names = {uuid.get("FileName") for _, uuid in parts}
    if len(names) != 1 or names == {Path(path).name} or None in names:
        return None
    for parent, uuid in parts:
        parent.remove(uuid)
    return ome_xml, ElementTree.tostring(root, encoding="unicode")


def _describe(
    tif: Any, path: str, wanted: int | None, root: ElementTree.Element | None, ome_xml: str | None, kinds: PageKinds
) -> Source:
    every = tif.series
    if not every:
        raise InputError(f"{path}: holds no image that can be read; the file is damaged or of an unknown kind")
    number = 0 if wanted is None else wanted
    if not 0 <= number < len(every):
        raise InputError(f"{path}: has no series {number}; it holds {_list_series(every)}")
    series = every[number]
    _check_kind(tif, series, path, root)
    keyframe = series.keyframe
    _check_pixels(keyframe, series, path, imagej=tif.is_imagej)
    layout = layout_of(keyframe)
    if layout.compressed and layout.segment_nbytes > MAX_SEGMENT_BYTES:
        raise InputError(
            f"{path}: its compressed pieces are of {layout.segment_nbytes >> 20} MiB each, which must be decoded "
            "whole; if that is right, convert it with bioformats2raw, which makes tiles"
        )
    plane, plane_count, planes = _planes(series, layout, path, kinds)
    notes = list(_check_extent(planes))
    if len(every) > 1 and wanted is None:
        notes.append(f"The file holds {_list_series(every)}; series 0 is read. Give --series to choose.")
    files = tuple(dict.fromkeys(p.path for p in planes))
    if len(files) > 1:
        notes.append(f"The image is spread over {len(files)} files, which are read as one.")
    if int(keyframe.photometric) == 0:
        notes.append("The file says that 0 is white; its values are used as they are stored.")
    return Source(
        path=path,
        format="ome-tiff" if root is not None else "imagej-tiff" if tif.is_imagej else "tiff",
        letters=series.axes,
        shape=tuple(int(size) for size in series.shape),
        full_letters=series.get_axes(squeeze=False),
        full_shape=tuple(int(size) for size in series.get_shape(squeeze=False)),
        layout=layout,
        plane=plane,
        plane_count=plane_count,
        files=files,
        physical=_physical(tif, series, keyframe, root, number, len(every)),
        rgb=int(keyframe.photometric) in (2, 6),
        ome_xml=ome_xml,
        series=number,
        series_count=len(every),
        notes=tuple(notes),
    )


def _list_series(every: Sequence[Any]) -> str:
    listed = ", ".join(f"{i} ({s.axes} {format_shape(s.shape)})" for i, s in enumerate(every[:8]))
    return f"{len(every)} series: {listed}{', ...' if len(every) > 8 else ''}"


def _check_kind(tif: Any, series: Any, path: str, root: ElementTree.Element | None) -> None:
    """Refuse a file whose own description of its planes does not hold: tifffile would fill in zeros or guess."""
    missing = sum(page is None for page in series._pages)
    if root is not None and (missing or series.kind in ("generic", "uniform")):
        names = {u.get("FileName", "") for u in root.iter() if tiff_meta.local(u.tag) == "UUID"} - {""}
        absent = sorted(name for name in names if not (Path(path).parent / name).is_file())
        if absent:
            raise InputError(
                f"{path}: belongs to an image of {len(names)} files, of which {len(absent)} are missing "
                f"(first: {absent[0]!r}); put them beside this file"
            )
        raise InputError(
            f"{path}: {missing or 'some'} of the planes that its OME-XML describes are missing; "
            "the file is truncated or was not finished: export it again"
        )
    if root is None and tif.is_imagej and series.kind not in ("imagej", "shaped"):
        raise InputError(
            f"{path}: holds fewer pixels than its ImageJ description says; it is truncated: copy or save it again"
        )
    if series.transform is not None:
        raise InputError(f"{path}: stores transformed values ({series.kind}); save it as a plain TIFF")


def _check_pixels(keyframe: Any, series: Any, path: str, *, imagej: bool) -> None:
    if 0 in series.shape or 0 in keyframe.shaped:
        raise InputError(f"{path}: has an axis of length zero (shape {format_shape(series.shape)}); there is no image")
    if keyframe.dtype is None or series.dtype is None:
        raise InputError(
            f"{path}: its pixel type ({keyframe.bitspersample} bit) is not supported; save as 16 or 32 bit"
        )
    dtype = np.dtype(keyframe.dtype)
    if dtype.kind not in "iuf" or dtype.itemsize > 8 or keyframe.bitspersample == 1:
        kind = {"c": "complex numbers", "b": "black-and-white bits"}.get(dtype.kind, str(dtype))
        raise InputError(f"{path}: holds {kind}, not intensities; save it as an integer or float image")
    if int(keyframe.photometric) == COLOR_FILTER_ARRAY:
        raise InputError(f"{path}: holds raw colour-camera pixels (Bayer pattern); save it as greyscale")
    if int(keyframe.photometric) == PALETTE and not imagej and not _is_ramp(keyframe.colormap):
        # ImageJ stores its display tables as palettes: there the values are intensities. So they are under any ramp.
        raise InputError(f"{path}: holds palette colours, not intensities; save it as greyscale")
    if keyframe.jpegheader is not None and int(keyframe.compression) not in JPEG_CODES:
        raise InputError(f"{path}: its compression is not supported; convert it with bioformats2raw")


def _is_ramp(colormap: Any) -> bool:
    """True where a higher value is never shown darker: a display table, not a palette of arbitrary colours."""
    if colormap is None or np.asarray(colormap).ndim != 2:
        return False
    return bool((np.diff(np.asarray(colormap, np.int64), axis=1) >= 0).all())


def _planes(
    series: Any, layout: Layout, path: str, kinds: PageKinds
) -> tuple[Callable[[int], Plane], int, list[Plane]]:
    """Return plane number -> Plane, their number, and those to check (where all lie end to end, the last is enough)."""
    # not len(series): that is 1 for ImageJ's stacks above 4 GB, which have a single directory
    total = math.prod(series.shape) // max(1, math.prod(layout.shape))
    start = series.dataoffset if layout.raw and not series.is_multifile else None
    if start is not None:

        def contiguous(index: int) -> Plane:
            return Plane(path, _label(index, total), layout, (start + index * layout.nbytes,), (layout.nbytes,))

        return contiguous, total, [contiguous(total - 1)]
    total = len(series)
    layouts: dict[int, Layout] = {id(series.keyframe): layout}
    planes = []
    for index, page in enumerate(series):
        own = layouts.get(id(page.keyframe)) or layouts.setdefault(id(page.keyframe), layout_of(page.keyframe))
        same = kinds.get(page.offset) == kinds.get(page.keyframe.offset) or page.parent is not series.keyframe.parent
        if own.shape != layout.shape or own.dtype != layout.dtype or not same:
            raise InputError(
                f"{path}: {_label(index, total)} differs in shape or pixel type from the first; save such pages apart"
            )
        tables = page.jpegtables if int(page.keyframe.compression) in JPEG_CODES else None
        name = page.parent.filehandle.path if series.is_multifile else path
        planes.append(Plane(name, _label(index, total), own, page.dataoffsets, page.databytecounts, tables))
    return planes.__getitem__, len(planes), planes


def _label(index: int, total: int) -> str:
    return f"plane {index + 1} of {total}"


def _check_extent(planes: Sequence[Plane]) -> Iterator[str]:
    """Raise InputError where a segment lies beyond the end of its file; yield a note where segments are not stored."""
    sizes: dict[str, int] = {}
    sparse = total = 0
    for plane in planes:
        size = sizes.get(plane.path) or sizes.setdefault(plane.path, Path(plane.path).stat().st_size)
        layout = plane.layout
        expected = 1 if layout.raw else math.prod(layout.grid)
        if min(len(plane.offsets), len(plane.bytecounts)) < expected:
            raise InputError(
                f"{plane.path}: {plane.label} lists {len(plane.offsets)} of {expected} segments; it is damaged"
            )
        counts = (layout.nbytes,) if layout.raw else plane.bytecounts[:expected]
        ends = [offset + count for offset, count in zip(plane.offsets, counts, strict=False) if offset and count]
        sparse += expected - len(ends)
        total += expected
        end = max(ends, default=0)
        if end > size:
            raise InputError(
                f"{plane.path}: is truncated: {plane.label} ends at byte {end} but the file has {size}; "
                "copy or export it again"
            )
    if sparse:
        yield f"{sparse} of {total} segments are not stored (a sparse TIFF); they read as the no-data value."


def _physical(
    tif: Any, series: Any, keyframe: Any, root: ElementTree.Element | None, number: int, count: int
) -> tiff_meta.Physical:
    resolution = tuple(float(value) for value in keyframe.resolution)
    unit = int(keyframe.resolutionunit)
    if root is not None:
        return tiff_meta.ome_physical(root, series=number, series_count=count)
    if tif.is_imagej:
        meta = tif.imagej_metadata or {}
        size = dict(zip(series.axes, series.shape, strict=True))
        return tiff_meta.imagej_physical(meta, resolution, unit, size.get("C", size.get("S", 1)))  # type: ignore[arg-type]
    if tif.is_micromanager and isinstance(meta := (tif.micromanager_metadata or {}).get("Summary"), dict):
        return tiff_meta.micromanager_physical(meta)
    if tif.is_shaped:
        return tiff_meta.shaped_physical(keyframe.shaped_description or "", resolution, unit)  # type: ignore[arg-type]
    return tiff_meta.tag_physical(resolution, unit)  # type: ignore[arg-type]
