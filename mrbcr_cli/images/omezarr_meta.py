"""What the metadata documents of an OME-Zarr store say, read as plain JSON (zarr itself is never imported here).

Invariant: every path taken from a document is checked to stay inside the store before it is touched, so a hostile
store can make this module raise InputError but not read elsewhere. Nothing here knows about pixels.

Sources: NGFF 0.4 and 0.5 (https://ngff.openmicroscopy.org), zarr v2 and v3 specifications (https://zarr-specs.readthedocs.io).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.axes import parse_axes as checked_letters
from mrbcr_cli.images.base import CANONICAL_AXES
from mrbcr_cli.images.omezarr_documents import is_zarr, parse_document, read_document, read_documents
from mrbcr_cli.places import Place

UNFINISHED = "mrbcr-unfinished"
"""Group attribute that our writer sets until the store is complete; the reader refuses a store that has it."""

_CHILDREN_LOOKED_AT = 1000

# Spellings seen in the wild, beside the UDUNITS-2 names that the specification asks for.
_UNIT_ALIASES = {
    "um": "micrometer",
    "µm": "micrometer",
    "μm": "micrometer",
    "micron": "micrometer",
    "microns": "micrometer",
    "micrometre": "micrometer",
    "micrometers": "micrometer",
    "nm": "nanometer",
    "nanometre": "nanometer",
    "nanometers": "nanometer",
    "mm": "millimeter",
    "s": "second",
    "sec": "second",
    "seconds": "second",
    "ms": "millisecond",
    "milliseconds": "millisecond",
    "min": "minute",
    "minutes": "minute",
}


@dataclass(frozen=True)
class Node:
    """A zarr group or array: its folder and its metadata documents, as parsed and as bytes."""

    path: Place
    zarr_format: Literal[2, 3]
    kind: Literal["array", "group"]
    attributes: dict[str, Any]
    array: dict[str, Any]
    """The array document (zarr.json or .zarray); empty for a group."""
    documents: tuple[bytes, ...]

    @property
    def ome(self) -> dict[str, Any]:
        """The OME metadata: under "ome" since 0.5, flat before."""
        ome = self.attributes.get("ome")
        return ome if isinstance(ome, dict) else self.attributes


@dataclass(frozen=True)
class ImageRef:
    """Where one image of a store is: a group and the index into its `multiscales`, or (index None) a bare array."""

    path: Place
    multiscale: int | None


@dataclass(frozen=True)
class Calibration:
    """Per stored axis: size of a pixel (None where the file is silent) and its unit."""

    scale: tuple[float | None, ...]
    units: tuple[str | None, ...]
    notes: tuple[str, ...] = ()


def read_node(folder: Place) -> Node | None:
    """The group or array at `folder`, or None where there is none. Raises InputError on a document that is not JSON."""
    found = read_documents(folder)
    documents = tuple(found[name] for name in sorted(found))
    if "zarr.json" in found:  # zarr v3 wins where a folder has both, as in zarr-python
        node = parse_document(folder / "zarr.json", found["zarr.json"])
        kind = node.get("node_type")
        if kind not in ("array", "group") or node.get("zarr_format") != 3:
            raise InputError(f"{folder / 'zarr.json'}: neither a zarr v3 group nor an array; the store is damaged")
        attributes = node.get("attributes")
        attributes = attributes if isinstance(attributes, dict) else {}
        return Node(folder, 3, kind, attributes, node if kind == "array" else {}, documents)
    if not found:
        return None
    attributes = parse_document(folder / ".zattrs", found[".zattrs"]) if ".zattrs" in found else {}
    if ".zarray" in found:
        return Node(folder, 2, "array", attributes, parse_document(folder / ".zarray", found[".zarray"]), documents)
    return Node(folder, 2, "group", attributes, {}, documents)


def child(root: Place, folder: Place, name: object) -> Place:
    """`folder`/`name`, where `name` comes from a document. Raises InputError where that leaves the store at `root`."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(f"{folder}: metadata names a dataset by {name!r}, which is no path; the store is damaged")
    windows = PureWindowsPath(name)
    if name.startswith("/") or ".." in PurePosixPath(name).parts or windows.drive or ".." in windows.parts:
        raise InputError(f"{folder}: metadata points outside the store ({name!r}); refused")
    target = folder / name
    try:
        where, top = target.resolve(), root.resolve()
        inside = where.is_relative_to(str(top)) if isinstance(where, Path) else where.is_relative_to(top)
    except (OSError, RuntimeError) as exc:  # a loop of links
        raise InputError(f"{target}: cannot be resolved ({exc})") from exc
    if not inside:
        raise InputError(f"{target}: is a link that leaves the store; copy the data into the store or open its target")
    return target


def list_images(root: Node) -> tuple[list[ImageRef], tuple[str, ...]]:
    """All images of a store in the order that `--series` counts, and notes for the user.

    Reads the documents of wells and of direct children only, so a plate of 1,536 wells costs 1,536 small reads.
    Raises InputError where there is no image or the store is our own unfinished output.
    """
    top = root.path
    if root.attributes.get(UNFINISHED):
        raise InputError(f"{top}: unfinished output of mrbcr; rerun the command that was writing it to complete it")
    if root.kind == "array":
        return [ImageRef(top, None)], ()
    ome = root.ome
    if "multiscales" in ome:
        return [ImageRef(top, i) for i in range(len(_dicts(ome, "multiscales", top)))], ()
    if isinstance(ome.get("plate"), dict):
        wells = [child(top, top, well.get("path")) for well in _dicts(ome["plate"], "wells", top)]
        nodes = [read_node(well) for well in wells]
        images = [image for node in nodes if node is not None for image in _well_images(top, node)]
        absent = sum(node is None for node in nodes)
        notes = (f"{absent} of the {len(wells)} wells that the plate names are not in the store",) if absent else ()
        return _some(images, top), notes
    if isinstance(ome.get("well"), dict):
        return _some(_well_images(top, root), top), ()
    if "bioformats2raw.layout" in ome or (top / "OME").is_dir():
        collection = _collection(top)
        if collection or "bioformats2raw.layout" in ome:
            return _some(collection, top), ()
    return _search(top)


def multiscale_of(node: Node, index: int) -> dict[str, Any]:
    """Entry `index` of the group's `multiscales`. Raises InputError where there is none."""
    entries = _dicts(node.ome, "multiscales", node.path)
    if index >= len(entries):
        raise InputError(f"{node.path}: the group has no multiscale image; its metadata are damaged")
    return entries[index]


def datasets_of(multiscale: dict[str, Any], where: Place) -> list[dict[str, Any]]:
    """The resolution levels, finest first (the specification demands that order)."""
    return _dicts(multiscale, "datasets", where)


def stored_axes(multiscale: dict[str, Any], ndim: int, where: Place) -> str:
    """Axis letters in the order on disk. NGFF 0.3 lists names only; 0.1 and 0.2 list none and are always TCZYX."""
    entries = multiscale.get("axes")
    if entries is None and ndim == len(CANONICAL_AXES) and multiscale.get("version") in (None, "0.1", "0.2"):
        return CANONICAL_AXES
    if not _list(entries):
        raise InputError(f"{where}: the metadata do not name the axes; name them, for example --axes {_example(ndim)}")
    names = [entry.get("name") if isinstance(entry, dict) else entry for entry in _list(entries)]
    letters = [name.upper() if isinstance(name, str) else "?" for name in names]
    if any(len(letter) != 1 or letter not in CANONICAL_AXES for letter in letters):
        shown = ", ".join(str(name) for name in names)
        raise InputError(f"{where}: axes named {shown}; say what they are, for example --axes {_example(ndim)}")
    return parse_axes("".join(letters), ndim, where)


def parse_axes(text: str, ndim: int, where: Place) -> str:
    """`text` in upper case. Raises InputError unless it is `ndim` different letters of TCZYX, Y and X among them."""
    axes = checked_letters(text, where=f"{where}: axes")
    if len(axes) != ndim:
        raise InputError(f"{where}: axes {text!r} name {len(axes)} axes but the array has {ndim}; fix --axes")
    return axes


def bare_axes(array: Node, ndim: int) -> tuple[str, str]:
    """Axes of an array without OME metadata, and the note that says where they came from.

    Raises InputError where neither its dimension names nor its number of dimensions make them plain.
    """
    names = array.array.get("dimension_names")
    if isinstance(names, list) and len(names) == ndim and all(isinstance(n, str) and len(n) == 1 for n in names):
        letters = "".join(names).upper()
        if set(letters) <= set(CANONICAL_AXES):
            return parse_axes(letters, ndim, array.path), f"no OME metadata; axes {letters} from dimension names"
    if ndim in (2, 3):
        letters = "ZYX"[-ndim:]
        return letters, f"no OME metadata; axes taken to be {letters} (change with --axes), pixel size unknown"
    raise InputError(f"{array.path}: array of {ndim} axes without OME metadata; name them, for example --axes TCZYX")


def calibration(multiscale: dict[str, Any], dataset: dict[str, Any], axes: str, where: Place) -> Calibration:
    """Pixel sizes of one resolution level: its scale times the scale of the whole image (NGFF 0.5, section 2.4).

    `axes` are the stored axes, perhaps the user's: where the file calls an axis something else, its size is dropped.
    A scale of exactly 1 without a unit is what writers put where they know nothing, so it reads as None. C has none.
    """
    factors: list[float] | None = None
    for source in (dataset, multiscale):
        for transform in _list(source.get("coordinateTransformations")):
            if not isinstance(transform, dict) or transform.get("type") in ("identity", "translation"):
                continue
            scale = _list(transform.get("scale"))
            if transform.get("type") != "scale" or not _is_scale(scale, len(axes)):
                note = "a coordinate transformation of the image is not understood; its pixel size is left unknown"
                return Calibration((None,) * len(axes), (None,) * len(axes), (f"{where}: {note}",))
            factors = [a * float(b) for a, b in zip(factors or [1.0] * len(axes), scale, strict=True)]
    entries = _list(multiscale.get("axes"))
    entries = entries if len(entries) == len(axes) else list(axes)
    scales: list[float | None] = []
    units: list[str | None] = []
    for letter, entry, value in zip(axes, entries, factors or [1.0] * len(axes), strict=True):
        unit = _unit(entry)
        known = letter != "C" and _is_called(entry, letter) and not (value == 1.0 and unit is None)
        scales.append(value if known and factors else None)
        units.append(unit if known and factors else None)
    return Calibration(tuple(scales), tuple(units))


def channels(omero: object, count: int) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Names and RRGGBB colours of `count` channels from the `omero` metadata (empty where it is silent), and notes."""
    entries = _list(omero.get("channels")) if isinstance(omero, dict) else []
    if not entries:
        return (), (), ()
    if len(entries) != count or not all(isinstance(entry, dict) for entry in entries):
        note = f"channel names ignored: metadata describe {len(entries)} channels, the image has {count}"
        return (), (), (note,)
    labels = tuple(str(entry.get("label") or "") for entry in entries)
    colors = [str(entry.get("color") or "").lstrip("#").upper() for entry in entries]
    valid = [color if re.fullmatch("[0-9A-F]{6}", color) else "" for color in colors]
    return (
        labels if any(labels) else (),
        tuple(color or "FFFFFF" for color in valid) if any(valid) else (),
        (),
    )


def read_ome_xml(root: Place, *folders: Place) -> tuple[str | None, tuple[str, ...]]:
    """The first OME/METADATA.ome.xml in `folders`, verbatim, and notes."""
    for folder in folders:
        path = folder / "OME" / "METADATA.ome.xml"
        if path.is_file():
            raw = read_document(child(root, folder, "OME/METADATA.ome.xml"))
            try:
                return (None if raw is None else raw.decode("utf-8")), ()
            except UnicodeDecodeError:
                return None, (f"{path}: not UTF-8, so it is not carried over to the output",)
    return None, ()


def _example(ndim: int) -> str:
    return {2: "YX", 3: "ZYX", 4: "CZYX"}.get(ndim, CANONICAL_AXES)


def _well_images(root: Place, well: Node) -> list[ImageRef]:
    fields = well.ome.get("well")
    images = _dicts(fields, "images", well.path) if isinstance(fields, dict) else []
    return [ImageRef(child(root, well.path, image.get("path")), 0) for image in images]


def _collection(top: Place) -> list[ImageRef]:
    """Images of a bioformats2raw container: named by OME/.zattrs, else the folders 0, 1, ... without a gap."""
    names = read_node(child(top, top, "OME")) if (top / "OME").exists() else None
    series = names.ome.get("series") if names is not None else None
    if isinstance(series, list):
        return [ImageRef(child(top, top, name), 0) for name in series]
    images: list[ImageRef] = []
    while is_zarr(folder := top / str(len(images))):
        node = read_node(child(top, top, folder.name))
        if node is None or "multiscales" not in node.ome:
            break
        images.append(ImageRef(folder, 0))
    return images


def _search(top: Place) -> tuple[list[ImageRef], tuple[str, ...]]:
    """Images one level below a group that says nothing itself; failing that, its only array."""
    images: list[ImageRef] = []
    arrays: list[ImageRef] = []
    try:
        listed: Iterator[Place] = top.iterdir()
        entries = list(itertools.islice(listed, _CHILDREN_LOOKED_AT))
    except OSError as exc:
        raise InputError(f"{top}: cannot be listed ({exc.strerror})") from exc
    for entry in sorted(entries, key=lambda path: _natural(path.name)):
        if not is_zarr(entry) or (node := read_node(child(top, top, entry.name))) is None:
            continue
        if node.kind == "array":
            arrays.append(ImageRef(entry, None))
        elif "multiscales" in node.ome:
            images.append(ImageRef(entry, 0))
    if images:
        return images, ()
    if len(arrays) > 1:
        names = ", ".join(ref.path.name for ref in arrays[:5])
        raise InputError(f"{top}: group without OME metadata holding several arrays ({names}); give the path of one")
    return _some(arrays, top), (f"group without OME metadata; reading its only array {arrays[0].path.name!r}",)


def _some(images: list[ImageRef], top: Place) -> list[ImageRef]:
    if not images:
        raise InputError(f"{top}: zarr group without an image in it; give the path of the image's own group")
    return images


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part)


def _is_scale(values: list[Any], length: int) -> bool:
    return len(values) == length and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) and v > 0 for v in values
    )


def _is_called(entry: object, letter: str) -> bool:
    """Whether the file's axis may be `letter`: it has that name, or a name of its own and a type that fits."""
    name = entry.get("name") if isinstance(entry, dict) else entry
    if isinstance(name, str) and len(name) == 1 and name.upper() in CANONICAL_AXES:
        return name.upper() == letter
    kind = entry.get("type") if isinstance(entry, dict) else None
    return kind in (None, "time" if letter == "T" else "space")


def _unit(axis: object) -> str | None:
    unit = axis.get("unit") if isinstance(axis, dict) else None
    if not isinstance(unit, str) or not unit.strip() or (isinstance(axis, dict) and axis.get("type") == "channel"):
        return None
    return _UNIT_ALIASES.get(unit.strip().lower(), unit.strip())


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _dicts(parent: dict[str, Any], key: str, where: Place) -> list[dict[str, Any]]:
    entries = parent.get(key)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{where}: metadata entry {key!r} is not a list of objects; the store is damaged")
    return entries
