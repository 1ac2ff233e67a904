"""Read one image of an OME-Zarr store (0.4 on zarr v2, 0.5 on zarr v3, or a bare zarr array) region by region.

Invariant: `read` touches only the chunks that its region overlaps, and either returns exactly their pixels or raises
InputError; it never fills in for data that are damaged. A chunk that does not exist is `fill_value`, as zarr defines.
"""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.images import omezarr_meta as meta
from mrbcr_cli.images.base import CANONICAL_AXES, ImageInfo, Region
from mrbcr_cli.images.omezarr_documents import is_zarr
from mrbcr_cli.images.omezarr_fingerprint import fingerprint
from mrbcr_cli.images.omezarr_guard import guarded_store, set_limits
from mrbcr_cli.places import Place, RemoteError, RemotePath, place

if TYPE_CHECKING:
    import zarr

__all__ = ["OmeZarrReader", "configure_zarr", "is_zarr", "open_omezarr", "open_zarr_array"]

_configure_lock = threading.Lock()
_configured = False


def configure_zarr() -> None:
    """Bound zarr's threads and chunks in flight for this process; every entry to zarr in the tool calls this first.

    zarr's default pool has min(32, cores + 4) threads and, for shards, 10 x 10 chunks in flight, each holding its
    encoded and its decoded bytes. As many threads as cores, at most 8, and as many chunks per level hold less and are
    no slower: on 2 busy cores 16 planes of 2048 px read at 290 MB/s with 2 and 2, at 130 MB/s with the defaults.
    """
    global _configured
    with _configure_lock:
        if _configured:
            return
        import warnings

        import zarr
        from zarr.errors import ZarrUserWarning

        # Of metadata that bend the specification; what matters in them is checked and said by this tool.
        warnings.filterwarnings("ignore", category=ZarrUserWarning)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = max(2, min(8, cores))
        zarr.config.set({"threading.max_workers": workers, "async.concurrency": workers})
        _configured = True


def open_omezarr(path: str | Place, *, series: int | None = None, axes: str | None = None) -> OmeZarrReader:
    """Open image `series` (default 0) of the store at `path`, at its highest resolution.

    `axes` names the axes of the array on disk, in their order there, where the file does not or is wrong (e.g. "ZYX").
    Raises InputError, before any pixel is read, for everything that this tool cannot deconvolve.
    """
    root = _root(path)
    top = meta.read_node(root)
    if top is None:
        raise InputError(f"{root}: not a zarr store (no zarr.json, .zgroup or .zarray in it)")
    images, found_notes = meta.list_images(top)
    notes = list(found_notes)
    index = 0 if series is None else series
    if not 0 <= index < len(images):
        raise InputError(f"{root}: no image {index}; it has {len(images)} (--series 0 to {len(images) - 1})")
    if series is None and len(images) > 1:
        notes.append(f"the store holds {len(images)} images; reading image 0 (choose with --series)")

    source = _locate(root, images[index])
    array = open_zarr_array(source.array.path, source.array.zarr_format, root)
    dtype = _checked_dtype(array, source.array.path)
    stored, axis_notes = _axes(source, array.ndim, axes)
    notes += axis_notes
    order = tuple(stored.index(letter) for letter in CANONICAL_AXES if letter in stored)
    sizes = meta.calibration(source.multiscale, source.dataset, stored, source.group.path)
    count = array.shape[stored.index("C")] if "C" in stored else 1
    names, colors, channel_notes = meta.channels(source.group.ome.get("omero"), count)
    ome_xml, xml_notes = meta.read_ome_xml(root, source.group.path, root)
    info = ImageInfo(
        path=str(path),
        format="ome-zarr-0.5" if source.array.zarr_format == 3 else "ome-zarr-0.4",
        axes="".join(stored[i] for i in order),
        shape=tuple(array.shape[i] for i in order),
        dtype=dtype,
        chunks=tuple(max(1, min(array.chunks[i], array.shape[i])) for i in order),
        stored_axes=stored,
        scale=tuple(sizes.scale[i] for i in order),
        units=tuple(sizes.units[i] for i in order),
        channel_names=names,
        channel_colors=colors,
        ome_xml=ome_xml,
        series=index,
        series_count=len(images),
        notes=(*notes, *sizes.notes, *channel_notes, *xml_notes),
    )
    return OmeZarrReader(info, root, source, array, order)


@dataclass(frozen=True)
class _Source:
    """The documents that describe the chosen image; a bare array has no multiscale and no dataset entry."""

    group: meta.Node
    array: meta.Node
    multiscale: dict[str, Any]
    dataset: dict[str, Any]


class OmeZarrReader:
    """An open image (`ImageReader` of images/base.py). Threads may share it; processes open their own."""

    def __init__(
        self, info: ImageInfo, root: Place, source: _Source, array: zarr.Array[Any], order: tuple[int, ...]
    ) -> None:
        self._info = info
        self._root = root.resolve()
        self._source = source
        self._array = array
        self._order = order
        self._document = source.array.path / ("zarr.json" if array.metadata.zarr_format == 3 else ".zarray")

    @property
    def info(self) -> ImageInfo:
        return self._info

    def read(self, region: Region) -> NDArray[Any]:
        """Pixels of `region` in canonical axes, `info.dtype`, native byte order, C-contiguous.

        Raises InputError where a chunk is truncated or cannot be decoded, ValueError for a region outside the image.
        """
        check_region(region, self._info.shape)
        selection = [slice(0)] * len(region)
        for part, axis in zip(region, self._order, strict=True):
            selection[axis] = part
        stored = read_pixels(self._array, tuple(selection), self._source.array.path)
        self._raise_if_gone()
        return np.ascontiguousarray(stored.transpose(self._order), dtype=self._info.dtype)

    def _raise_if_gone(self) -> None:
        """An absent chunk reads as fill value, and so does a store whose disk has gone: tell the two apart."""
        try:
            there = self._document.is_file()
        except RemoteError as exc:
            raise InputError(f"{self._document}: cannot be read now ({exc.strerror})") from exc
        if not there:
            gone = f"{self._document}: the array is gone; is the disk still there?"
            raise InputError(gone) from OSError(errno.ENOENT, "No such file or directory")

    def fingerprint(self) -> str:
        """SHA-256 of the metadata documents and the chunks of the array; see `omezarr_fingerprint`."""
        documents = [*self._source.group.documents, *self._source.array.documents]
        documents += [(self._info.ome_xml or "").encode(), self._info.stored_axes.encode()]
        return fingerprint(documents, self._array, self._source.array.path, self._root)

    def coarser(self) -> list[OmeZarrReader]:
        """The other levels of the image's pyramid that can be read, finest first, each an image of its own.

        What is damaged, or no reduction of this one (other axes or pixels, larger), is left out.
        """
        found: list[OmeZarrReader] = []
        for dataset in _dicts_after_first(self._source):
            try:
                node = meta.read_node(meta.child(self._root, self._source.group.path, dataset.get("path")))
                if node is None or node.kind != "array":
                    continue
                array = open_zarr_array(node.path, node.zarr_format, self._root)
            except InputError:
                continue
            last = (found[-1] if found else self).info.shape
            if array.ndim != len(self._order) or np.dtype(array.dtype).newbyteorder("=") != self._info.dtype:
                continue
            shape = tuple(array.shape[i] for i in self._order)
            if 0 in shape or any(n > m for n, m in zip(shape, last, strict=True)):
                continue
            chunks = tuple(max(1, min(array.chunks[i], array.shape[i])) for i in self._order)
            info = replace(self._info, shape=shape, chunks=chunks)
            source = replace(self._source, array=node, dataset=dataset)
            found.append(OmeZarrReader(info, self._root, source, array, self._order))
        return found

    def close(self) -> None:
        """Let go of the store; nothing stays open between reads."""
        self._array.store.close()


def check_region(region: Region, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `region` has one plain slice per axis that lies inside `shape` and is not empty."""
    plain = len(region) == len(shape) and all(part.step in (None, 1) for part in region)
    if not plain or not all(0 <= part.start < part.stop <= size for part, size in zip(region, shape, strict=True)):
        raise ValueError(f"region {region} does not lie inside an image of shape {shape}")


def open_zarr_array(folder: Place, zarr_format: int, root: Place | None = None) -> zarr.Array[Any]:
    """Open the array at `folder`, in the store at `root` (default: the folder is the store), for reading.

    Raises InputError naming it where zarr cannot (say, an unknown codec) or its chunks would not fit memory.
    """
    configure_zarr()
    import zarr

    store: Any = guarded_store(folder, root or folder)
    try:
        array = zarr.open_array(store, mode="r", zarr_format=2 if zarr_format == 2 else 3)
        set_limits(store, array, folder)
        return array
    except InputError:
        raise
    except RemoteError as exc:
        raise InputError(f"{folder}: cannot be read ({exc.strerror})") from exc
    except Exception as exc:  # a damaged or exotic document can make zarr raise nearly anything
        raise InputError(f"{folder}: zarr cannot open this array ({_reason(exc)})") from exc


def read_pixels(array: zarr.Array[Any], selection: Region, where: Place) -> NDArray[Any]:
    """`array[selection]` in stored axis order. Raises InputError naming array and region where a chunk is damaged."""
    try:
        return np.asarray(array[selection])
    except MemoryError:
        raise
    except RemoteError as exc:
        raise InputError(f"{where}: cannot be read now ({exc.strerror})") from exc
    except Exception as exc:  # each codec raises its own kind: ValueError, RuntimeError, zlib.error, OSError, ...
        region = ", ".join(f"{part.start}:{part.stop}" for part in selection)
        message = f"{where}: a chunk within [{region}] is damaged or unreadable ({_reason(exc)}); restore the file"
        raise InputError(message) from exc


def _root(path: str | Place) -> Place:
    root = place(path)
    if isinstance(root, RemotePath):
        return root
    if root.is_file():
        hint = "give its folder" if root.name in ("zarr.json", ".zarray", ".zattrs", ".zgroup") else "unpack it first"
        raise InputError(f"{root}: a file, not an OME-Zarr folder; {hint}")
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    return root


def _locate(root: Place, ref: meta.ImageRef) -> _Source:
    """The array of the highest resolution of an image, with the group that describes it."""
    node = meta.read_node(ref.path)
    if node is None:
        raise InputError(f"{ref.path}: named in the store's metadata but not there; the store is incomplete")
    if ref.multiscale is None or node.kind == "array":
        return _Source(node, node, {}, {})
    if node.attributes.get(meta.UNFINISHED):
        raise InputError(
            f"{node.path}: unfinished output of mrbcr; rerun the command that was writing it to complete it"
        )
    multiscale = meta.multiscale_of(node, ref.multiscale)
    dataset = meta.datasets_of(multiscale, node.path)[0]
    folder = meta.child(root, node.path, dataset.get("path"))
    array = meta.read_node(folder)
    if array is None or array.kind != "array":
        raise InputError(f"{folder}: the metadata name this array but it is not there; the store is incomplete")
    return _Source(node, array, multiscale, dataset)


def _dicts_after_first(source: _Source) -> list[dict[str, Any]]:
    """The entries of the coarser levels; a bare array has none."""
    return meta.datasets_of(source.multiscale, source.group.path)[1:] if source.multiscale else []


def _axes(source: _Source, ndim: int, wanted: str | None) -> tuple[str, list[str]]:
    where = source.group.path
    if wanted is not None:
        note = [] if source.multiscale else ["no OME metadata; pixel size unknown"]
        return meta.parse_axes(wanted, ndim, where), note
    if source.multiscale:
        return meta.stored_axes(source.multiscale, ndim, where), []
    letters, note_text = meta.bare_axes(source.array, ndim)
    return letters, [note_text]


def _checked_dtype(array: zarr.Array[Any], where: Place) -> np.dtype[Any]:
    dtype = np.dtype(array.dtype)
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError(f"{where}: pixels of type {dtype} cannot be deconvolved; convert to integer or float")
    if 0 in array.shape:
        raise InputError(f"{where}: shape {array.shape} has an axis of length zero; there is nothing to deconvolve")
    return dtype.newbyteorder("=")


def _reason(exc: Exception) -> str:
    """One line for the user: what went wrong, without the traceback."""
    text = str(exc).strip().splitlines()
    return f"{type(exc).__name__}: {text[0][:160]}" if text else type(exc).__name__
