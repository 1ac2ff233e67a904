"""Microscopes' own formats (CZI, ND2, LIF, DV), read through the plug-ins of bioio that the extra [formats] installs.

Invariant: nothing of a plug-in leaves this module: what it says of axes, sizes, names and OME metadata is turned into
ImageInfo, what it raises into InputError, and its pixels are decoded one chunk (a plane or tile) at a time.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.axes import AxisReading, canonical_order, format_shape, interpret_axes
from mrbcr_cli.images.base import ImageInfo, Region
from mrbcr_cli.images.chunked import ChunkedArray
from mrbcr_cli.images.tiff import check_region, hash_file

LARGEST_CHUNK_BYTES = 2**30
"""A plane or tile above this is refused, as in TIFF: it would have to be decoded whole."""


@dataclass(frozen=True)
class Format:
    """A format that a plug-in reads."""

    name: str
    plugin: str
    magic: tuple[tuple[int, bytes], ...]
    """Any of these bytes at these offsets; a file without them is not handed to a library."""
    options: tuple[tuple[str, Any], ...] = ()
    """What its Reader is given, so that it decodes single planes."""


_PLANES = (("chunk_dims", ["Y", "X"]),)
FORMATS = {
    ".czi": Format("Zeiss CZI", "bioio_czi", ((0, b"ZISRAWFILE"),), _PLANES),
    ".nd2": Format("Nikon ND2", "bioio_nd2", ((0, b"\xda\xce\xbe\x0a"), (4, b"jP  "))),
    ".lif": Format("Leica LIF", "bioio_lif", ((0, b"\x70\0\0\0"),), _PLANES),
    ".dv": Format("DeltaVision", "bioio_dv", ((96, b"\xa0\xc0"), (96, b"\xc0\xa0"))),
}
ADVICE = "bioformats2raw may convert it to OME-Zarr"


def find_foreign(path: Path) -> Format | None:
    """The format that a file's name claims, if it is one that can be read here. Raises InputError without its plug-in.

    Nothing is imported.
    """
    found = FORMATS.get(path.suffix.lower())
    if found is not None and importlib.util.find_spec(found.plugin) is None:
        raise InputError(
            f"{path}: reading {found.name} needs an extra: pip install 'mrbcr[formats]'; "
            f"or convert it: bioformats2raw {path.name} {path.stem}.zarr"
        )
    return found


def open_foreign(
    path: str | Path, *, series: int | None = None, axes: str | None = None, split_rgb: bool = False
) -> ForeignReader:
    """Open one scene (`series`, default the first, with a note) of a CZI, ND2, LIF or DV file; no pixel is decoded.

    `axes` overrides the file's letters; `split_rgb` takes the samples of colour pixels as channels. Raises InputError
    for what cannot be read.
    """
    path = Path(path)
    kind = find_foreign(path)
    if kind is None:
        raise InputError(f"{path}: is none of the formats {', '.join(FORMATS)}")
    _check_magic(path, kind)
    try:
        return ForeignReader(path, kind, series, axes, split_rgb)
    except InputError:
        raise
    except Exception as error:  # each library has its own, down to KeyError, and MemoryError for sizes that are damaged
        raise InputError(
            f"{path}: cannot be read as {kind.name} ({_reason(error)}); is the file whole? {ADVICE}"
        ) from error


class ForeignReader:
    """An open scene; fulfils ImageReader. One chunk is decoded at a time; the last ones, up to 256 MiB, are kept."""

    def __init__(self, path: Path, kind: Format, series: int | None, axes: str | None, split_rgb: bool) -> None:
        reader = _plugin(kind.plugin).Reader(path, **dict(kind.options))
        scenes = len(reader.scenes)
        index = 0 if series is None else series
        if not 0 <= index < scenes:
            raise InputError(f"{path}: no image {index}; it has {scenes} (--series 0 to {scenes - 1})")
        reader.set_scene(index)
        notes = []
        if series is None and scenes > 1:
            notes.append(f"the file holds {scenes} images; reading image 0 (choose with --series)")
        data, notes = _pixels(reader, notes)
        uncalibrated: frozenset[str] = frozenset()
        if kind.plugin == "bioio_nd2":
            uncalibrated, said = _nd2_facts(path)
            notes += said
        pixels, letters = _singles_dropped(data, path)
        self._pixels = ChunkedArray(pixels)
        reading = interpret_axes(letters, pixels.shape, path=str(path), user=axes, split_rgb=split_rgb, guess=False)
        self._letters = _without_samples(reading, pixels.shape, path)
        self._path, self._kind = path, kind
        scale = {axis: size for axis, size in _scale(reader).items() if axis not in uncalibrated}
        self.info = self._describe(reader, scale, index, scenes, (*notes, *reading.notes))

    def _describe(
        self, reader: Any, scale: dict[str, float], index: int, scenes: int, notes: tuple[str, ...]
    ) -> ImageInfo:
        data, letters = self._pixels.data, self._letters
        dtype = np.dtype(data.dtype)
        if dtype.kind not in "iuf" or dtype.itemsize > 8:
            raise InputError(f"{self._path}: pixels of type {dtype} cannot be deconvolved; convert them to integers")
        if 0 in data.shape:
            raise InputError(f"{self._path}: shape {format_shape(data.shape)} has no pixels")
        chunk = int(np.prod(data.chunksize, dtype=object)) * dtype.itemsize
        if chunk > LARGEST_CHUNK_BYTES:
            raise InputError(
                f"{self._path}: one plane of it takes {chunk >> 20} MiB and can only be decoded whole; {ADVICE}, which "
                "makes tiles"
            )
        stored = "".join(letters)
        axes = canonical_order(stored.replace("-", ""))
        at = [letters.index(axis) for axis in axes]
        xml, said = _ome_xml(reader)
        return ImageInfo(
            path=str(self._path),
            format=self._path.suffix[1:].lower(),
            axes=axes,
            shape=tuple(int(data.shape[k]) for k in at),
            dtype=dtype.newbyteorder("="),
            chunks=tuple(int(data.chunksize[k]) for k in at),
            stored_axes=stored.replace("-", ""),
            scale=tuple(scale.get(axis) for axis in axes),
            units=tuple(("second" if axis == "T" else "micrometer") if axis in scale else None for axis in axes),
            channel_names=_channel_names(reader, int(data.shape[letters.index("C")]) if "C" in letters else 1),
            ome_xml=xml,
            series=index,
            series_count=scenes,
            notes=(*notes, *said),
        )

    def read(self, region: Region) -> NDArray[Any]:
        """Return the pixels of `region`; raises InputError where they cannot be decoded, ValueError for a bad region.

        Chunks are decoded one after the other, whichever thread asks: the libraries do not promise more.
        """
        check_region(region, self.info.shape)
        bounds = dict(zip(self.info.axes, region, strict=True))
        wanted = [bounds.get(letter, slice(0, 1)) for letter in self._letters]
        try:
            out = self._pixels.read(wanted)
        except MemoryError:
            raise
        except Exception as error:  # as when it is opened
            raise InputError(
                f"{self._path}: a plane is damaged or cannot be decoded ({_reason(error)}); restore the file"
            ) from error
        kept = tuple(slice(None) if letter != "-" else 0 for letter in self._letters)
        letters = [letter for letter in self._letters if letter != "-"]
        canonical = out[kept].transpose([letters.index(axis) for axis in self.info.axes])
        return np.ascontiguousarray(canonical, dtype=self.info.dtype)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of how the file is read and of its contents: all of them up to 64 MiB, else samples."""
        how = f"mrbcr {self.info.format} 1|{self.info.series}|{'/'.join(self._letters)}"
        digest = hashlib.sha256(how.encode())
        hash_file(digest, str(self._path))
        return digest.hexdigest()

    def close(self) -> None:
        """Let go of what was decoded; the libraries open the file for each chunk."""
        self._pixels.forget()


@functools.cache
def _plugin(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its own dependencies deprecate is not the user's
        return importlib.import_module(name)


def _check_magic(path: Path, kind: Format) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(128)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not any(head[at : at + len(magic)] == magic for at, magic in kind.magic):
        raise InputError(f"{path}: is no {kind.name} file, whatever its name says; if other programs open it, {ADVICE}")


def _pixels(reader: Any, notes: list[str]) -> tuple[Any, list[str]]:
    """The scene as a labelled lazy array; tiles of a mosaic put where the file says they lie."""
    data = reader.xarray_dask_data
    if "M" in data.dims and data.sizes["M"] > 1:
        tiles = data.sizes["M"]
        data = reader.mosaic_xarray_dask_data
        notes = [*notes, f"its {tiles} tiles are put where the file says they lie; they are not stitched"]
    return data, notes


def _nd2_facts(path: Path) -> tuple[frozenset[str], list[str]]:
    """What the plug-in hides of an ND2 file: sizes that it gives as 1 for want of any, planes that it reads as 0."""
    nd2 = importlib.import_module("nd2")
    with nd2.ND2File(path) as file:
        channels = getattr(file.metadata, "channels", None)
        known = channels[0].volume.axesCalibrated if channels else (False, False, False)
        planned = int(np.prod([n for axis, n in file.sizes.items() if axis not in "CYXS"], dtype=object))
        recorded = file.attributes.sequenceCount or 0
    notes = []
    if recorded < planned:
        notes.append(f"{planned - recorded} of its {planned} planes were never recorded and are 0")
    return frozenset(axis for axis, there in zip("XYZ", known, strict=True) if not there), notes


def _singles_dropped(data: Any, path: Path) -> tuple[Any, str]:
    """The pixels, and a letter for each axis; axes that this tool does not have are dropped where they are 1 long."""
    names = [str(name) for name in data.dims]
    others = [name for name in names if name not in tuple("TCZYXS")]
    for name in others:
        if data.sizes[name] > 1:
            raise InputError(
                f"{path}: has {data.sizes[name]} images along {name} (of {', '.join(names)}); choose one where it is "
                f"taken, or {ADVICE}"
            )
    keep = tuple(0 if name in others else slice(None) for name in names)
    return data.data[keep], "".join(name for name in names if name not in others)


def _without_samples(reading: AxisReading, shape: Sequence[int], path: Path) -> tuple[str, ...]:
    """A letter for each stored axis, "-" for those that are left out; samples are channels."""
    letters = [letter or "-" for letter in reading.letters]
    if "S" in letters:
        if "C" in letters:
            at = letters.index("C")
            if shape[at] > 1:
                raise InputError(f"{path}: {shape[at]} channels of colour pixels cannot be told apart; {ADVICE}")
            letters[at] = "-"
        letters[letters.index("S")] = "C"
    return tuple(letters)


def _scale(reader: Any) -> dict[str, float]:
    """Pixel sizes in micrometres and the time interval in seconds, as far as the file states them with sense."""
    sizes = reader.physical_pixel_sizes
    found = {"Z": sizes.Z, "Y": sizes.Y, "X": sizes.X}
    try:
        interval = reader.time_interval
    except Exception:  # of metadata that only some files have
        interval = None
    if interval is not None:
        found["T"] = interval.total_seconds() if hasattr(interval, "total_seconds") else interval
    return {axis: float(size) for axis, size in found.items() if size is not None and 0 < float(size) < float("inf")}


def _channel_names(reader: Any, count: int) -> tuple[str, ...]:
    names = reader.channel_names or ()
    if len(names) != count or any(isinstance(name, int | np.integer) for name in names):
        return ()  # numbered only
    return tuple(str(name) for name in names)


def _ome_xml(reader: Any) -> tuple[str | None, tuple[str, ...]]:
    """The metadata as OME-XML where the plug-in makes it, else None and what to say."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return str(reader.ome_metadata.to_xml()), ()
    except NotImplementedError:
        return None, ()
    except Exception as error:
        return None, (f"its metadata could not be turned into OME-XML ({_reason(error)}) and are not kept",)


def _reason(error: Exception) -> str:
    """One line for the user: what went wrong, without the traceback."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
