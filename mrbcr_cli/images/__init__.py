"""The door for images: open any input, name any output.

Invariant: callers name a source and get an ImageReader; which module reads it is decided here, from what is on disk and
not from what the name promises.
"""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.base import ImageReader
from mrbcr_cli.images.foreign import FORMATS, find_foreign, open_foreign
from mrbcr_cli.places import Place, RemoteError, RemotePath, place

OutputFormat = Literal["ome-zarr", "ome-zarr-0.4", "ome-tiff"]

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf2", ".tf8")
SUFFIX_OF = {"ome-zarr": ".ome.zarr", "ome-zarr-0.4": ".ome.zarr", "ome-tiff": ".ome.tif"}

_CONVERTED = {
    ".oib": "Olympus OIB",
    ".oif": "Olympus OIF",
    ".vsi": "Olympus VSI",
    ".oir": "Olympus OIR",
    ".lsm": "Zeiss LSM",
    ".ims": "Imaris",
    ".mrc": "MRC",
    ".h5": "HDF5",
    ".hdf5": "HDF5",
    ".n5": "N5",
    ".stk": "MetaMorph STK",
    ".sld": "SlideBook",
    ".zvi": "Zeiss ZVI",
    ".svs": "Aperio SVS",
    ".ndpi": "Hamamatsu NDPI",
}


@dataclass(frozen=True)
class SourceSpec:
    """What is to be read and how; hashable and picklable, so that every worker opens the same image."""

    paths: tuple[str, ...]
    """One path; or the planes of a stack, in order."""
    label: str
    """What the user typed, for messages."""
    planes: bool = False
    series: int | None = None
    axes: str | None = None
    split_rgb: bool = False

    @property
    def stem(self) -> str:
        """Name without folder and image suffixes, for naming an output."""
        text = self.label.rstrip("/")
        name = (Path(text).parent if glob.has_magic(Path(text).name) else Path(text)).name or "image"
        lower = name.lower()
        for suffix in (".ome.zarr", ".zarr", *(".ome" + s for s in TIFF_SUFFIXES), *TIFF_SUFFIXES, *FORMATS):
            if lower.endswith(suffix) and len(name) > len(suffix):
                return name[: -len(suffix)]
        return name


def find_source(
    text: str, *, series: int | None = None, axes: str | None = None, split_rgb: bool = False
) -> SourceSpec:
    """Decide what an INPUT argument names: a file, an OME-Zarr, a folder of planes, or a quoted glob of planes.

    Raises InputError when there is nothing there, or nothing this tool reads (says what to convert it with).
    """
    path = place(text)
    if isinstance(path, RemotePath):
        _check_remote(path)
        return SourceSpec((str(path),), text, False, series, axes, split_rgb)
    if not path.exists():
        if glob.has_magic(text):
            names = _tiffs(Path(p) for p in glob.iglob(text))  # noqa: PTH207 - the pattern may be absolute
            if not names:
                raise InputError(f"{text}: no TIFF file matches this pattern")
            return SourceSpec(names, text, len(names) > 1, series, axes, split_rgb)
        raise InputError(f"{text}: no such file or folder")
    if path.is_dir():
        from mrbcr_cli.images.omezarr_documents import is_zarr

        if is_zarr(path):
            return SourceSpec((text,), text, False, series, axes, split_rgb)
        names = _tiffs(path.iterdir())
        if not names:
            raise InputError(
                f"{text}: the folder holds no TIFF planes and is not an OME-Zarr (no zarr.json or .zattrs)"
            )
        return SourceSpec(names, text, True, series, axes, split_rgb)
    _refuse_foreign(path)
    find_foreign(path)
    return SourceSpec((text,), text, False, series, axes, split_rgb)


def open_source(source: SourceSpec) -> ImageReader:
    """Open what `find_source` found. Raises InputError in one or two lines when it cannot be read."""
    if source.planes:
        from mrbcr_cli.images.planes import open_planes

        return open_planes([Path(p) for p in source.paths], axes=source.axes)
    path = place(source.paths[0])
    if isinstance(path, RemotePath) or path.is_dir():
        from mrbcr_cli.images.omezarr import open_omezarr

        try:
            return open_omezarr(path, series=source.series, axes=source.axes)
        except RemoteError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if path.suffix.lower() in FORMATS:
        return open_foreign(path, series=source.series, axes=source.axes, split_rgb=source.split_rgb)
    from mrbcr_cli.images.tiff import open_tiff

    return open_tiff(path, series=source.series, axes=source.axes, split_rgb=source.split_rgb)


def output_format(path: Place) -> OutputFormat | None:
    """The format that an output's name asks for; None when the name is that of a folder."""
    name = path.name.lower()
    if name.endswith(".zarr"):
        return "ome-zarr"
    return "ome-tiff" if name.endswith(TIFF_SUFFIXES) else None


def read_provenance(path: Place) -> dict[str, object] | None:
    """What this tool recorded in an output that it finished; None for anything else."""
    if isinstance(path, RemotePath) or path.is_dir():
        from mrbcr_cli.images.omezarr_write import read_provenance as from_zarr

        return from_zarr(path)
    from mrbcr_cli.images.tiff_write import read_provenance as from_tiff

    return from_tiff(path)


def _tiffs(paths: object) -> tuple[str, ...]:
    return tuple(
        str(p)
        for p in sorted(paths)  # type: ignore[call-overload]
        if p.is_file() and not p.name.startswith(".") and p.name.lower().endswith(TIFF_SUFFIXES)
    )


def _check_remote(path: RemotePath) -> None:
    """Raise InputError unless an OME-Zarr is there, or what may be the folder of one."""
    from mrbcr_cli.images.omezarr_documents import is_zarr

    if path.name.lower().endswith(TIFF_SUFFIXES) or glob.has_magic(path.name):
        raise InputError(f"{path}: of URLs only OME-Zarr is read; copy TIFF files to a disk first, or convert them")
    _refuse_foreign(path)
    if path.suffix.lower() in FORMATS:
        raise InputError(f"{path}: {FORMATS[path.suffix.lower()].name} is read from disks alone; copy it to one first")
    if is_zarr(path):
        return
    try:
        if path.exists():
            raise InputError(f"{path}: is not an OME-Zarr (no zarr.json or .zattrs); TIFF is read from disks alone")
        missing = path.root if path.lacks_bucket() else path
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    raise InputError(f"{path}: no such OME-Zarr; there is nothing at {missing}")


def _refuse_foreign(path: Place) -> None:
    kind = _CONVERTED.get(path.suffix.lower())
    if kind is not None:
        raise InputError(
            f"{path}: {kind} files are not read directly; convert it first: bioformats2raw {path.name} {path.stem}.zarr"
        )
