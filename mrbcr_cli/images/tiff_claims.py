"""What an OME-XML may claim before tifffile is let loose on it: how many planes, and which other files.

Invariant: tifffile makes a list entry for each plane that the XML names and opens each file that it names; what passes
here makes lists of a bounded length and names files in the folder of the image (or below it) alone.
"""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath, PureWindowsPath
from xml.etree import ElementTree

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.tiff_chain import MAX_CHAIN, PageKinds, check_chain
from mrbcr_cli.images.tiff_meta import local

MAX_ENTRIES = 2**24
"""Entries of tifffile's list of planes; it counts an image's pixels in pages of the size of the smallest."""


def beside(name: str, path: str) -> str:
    """The name of another file that the image at `path` names. Raises InputError where it leaves the image's folder."""
    windows = PureWindowsPath(name)
    if name.startswith("/") or windows.drive or ".." in (*PurePosixPath(name).parts, *windows.parts) or "\0" in name:
        raise InputError(f"{path}: its OME-XML names a file outside its folder ({name!r}); refused")
    return name


def check_claims(root: ElementTree.Element, path: str, kinds: PageKinds) -> None:
    """Hold sizes, plane counts and file names against bounds; `kinds` are the pages of the file itself.

    Raises InputError where one is no number, or beyond what the files could hold, or a file outside the folder.
    """
    parts = [element for element in root.iter() if local(element.tag) == "UUID"]
    names = {name for element in parts if (name := element.get("FileName")) and name != Path(path).name}
    smallest = _smallest_page(kinds)
    if len(names) > 1 or names != {element.get("FileName") for element in parts}:  # else the file was renamed
        for name in sorted(names):
            other = Path(path).parent / beside(name, path)
            if other.is_file():
                smallest = min(smallest, _smallest_page(check_chain(str(other))))
    for element in root.iter():
        tag = local(element.tag)
        if tag == "Pixels":
            sizes = [_number(element, f"Size{axis}", path, 1) for axis in "XYZCT"]
            if math.prod(sizes[2:]) > MAX_CHAIN or math.prod(sizes) // smallest > MAX_ENTRIES:
                shape = " x ".join(map(str, sizes))
                raise InputError(
                    f"{path}: its OME-XML claims {shape} (XYZCT), far more than it can hold; it is damaged"
                )
        elif tag == "TiffData":
            for name in ("IFD", "PlaneCount", "NumPlanes", "FirstZ", "FirstC", "FirstT"):
                if _number(element, name, path, 0) > MAX_CHAIN:
                    raise InputError(f"{path}: its OME-XML claims {name} {element.get(name)}; it is damaged")
        elif tag.startswith("ModuloAlong"):
            _check_modulo(element, path)


def _smallest_page(kinds: PageKinds) -> int:
    """Pixels of the smallest page, at least 1."""
    return max(1, min((kind[0] * kind[1] for kind in kinds.values()), default=1))


def _number(element: ElementTree.Element, name: str, path: str, default: int) -> int:
    text = element.get(name)
    try:
        value = default if text is None else int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise InputError(f"{path}: its OME-XML says {name}={(text or '')[:40]!r}, which is no count; it is damaged")
    return value


def _check_modulo(element: ElementTree.Element, path: str) -> None:
    """The steps of a modulo axis, which tifffile lists."""
    try:
        first, last, step = (float(element.get(name, default)) for name, default in _MODULO)
        count = (last - first) / step
    except (ValueError, ZeroDivisionError):
        count = math.nan
    if not abs(count) <= MAX_CHAIN:
        raise InputError(f"{path}: its OME-XML has a modulo axis of no or far too many steps; it is damaged")


_MODULO = (("Start", "0"), ("End", "0"), ("Step", "1"))
