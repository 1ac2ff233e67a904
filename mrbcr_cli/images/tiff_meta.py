"""Physical metadata of TIFF files: OME-XML, ImageJ's description, tifffile's own JSON, resolution tags.

Invariant: pure functions from text and numbers to values; a size that the file does not state in a known unit is
None, never 1. Sources: OME schema 2016-06; ImageJ's TiffEncoder (pixels per unit in X/YResolution); TIFF 6.0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from mrbcr_cli.errors import InputError

PROVENANCE_NS = "mrbcr/provenance"
SOURCE_XML_NS = "mrbcr/source-ome-xml"
AXES_NS = "mrbcr/axes"

# SI prefixes that both the OME schema (symbols) and UDUNITS-2 (names) know.
PREFIXES = {
    "Y": "yotta", "Z": "zetta", "E": "exa", "P": "peta", "T": "tera", "G": "giga", "M": "mega", "k": "kilo",
    "h": "hecto", "d": "deci", "c": "centi", "m": "milli", "µ": "micro", "n": "nano", "p": "pico", "f": "femto",
    "a": "atto", "z": "zepto", "y": "yocto",
}  # fmt: skip
LENGTH_UNITS = {"m": "meter", "Å": "angstrom", "in": "inch", "ft": "foot", "yd": "yard", "mi": "mile", "pc": "parsec"}
LENGTH_UNITS |= {f"{symbol}m": f"{name}meter" for symbol, name in PREFIXES.items()}
TIME_UNITS = {"s": "second", "min": "minute", "h": "hour", "d": "day"}
TIME_UNITS |= {f"{symbol}s": f"{name}second" for symbol, name in PREFIXES.items()}
UNIT_WORDS = {
    "micron": "micrometer", "microns": "micrometer", "micrometre": "micrometer", "um": "micrometer",
    "us": "microsecond", "\u212b": "angstrom", "sec": "second", "secs": "second",
    "seconds": "second", "msec": "millisecond", "hr": "hour", "minutes": "minute", "nanometre": "nanometer",
    "millimetre": "millimeter", "inch": "inch", "inches": "inch",
}  # fmt: skip
NO_LENGTH = {"pixel", "pixels", "px", ""}
REFERENCE_FRAME = "reference frame"  # OME's word for a length in a unit that nobody knows

PRINT_LIMIT_UM = 100.0
"""Resolution tags that give larger pixels (72 or 96 dpi, 1 per inch) describe a screen or page, not a microscope."""
PRINT_DPI = (300, 350, 360, 400, 600, 720, 1200, 1440, 2400)
"""Usual resolutions of printers and scanners, which programs write into images that have no known scale."""


@dataclass(frozen=True)
class Physical:
    """What a file says of its scale and channels, by axis letter."""

    scale: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    channel_names: tuple[str, ...] = ()
    channel_colors: tuple[str, ...] = ()
    axes: str | None = None
    """Axes that our own writer recorded, length-1 ones included (OME-XML itself cannot tell ZYX from TCZYX)."""
    notes: tuple[str, ...] = ()


def unit_name(text: str | None, default: str | None = None) -> str | None:
    """Return the UDUNITS-2 name ("micrometer") of a unit as files spell it ("µm", "um", "micron"); None if unknown."""
    if text is None:
        return default
    clean = text.strip().replace("\\u00B5", "µ").replace("\\u00b5", "µ").replace("\u03bc", "µ").replace("Âµ", "µ")
    if clean in LENGTH_UNITS or clean in TIME_UNITS:
        return LENGTH_UNITS.get(clean) or TIME_UNITS[clean]
    word = clean.lower()
    if word in UNIT_WORDS:
        return UNIT_WORDS[word]
    names = {*LENGTH_UNITS.values(), *TIME_UNITS.values()}
    return next((name for name in (word, word.rstrip("s")) if name in names), None)


def parse_xml(text: str, *, path: str) -> ElementTree.Element:
    """Parse OME-XML; raises InputError if it is broken or declares a document type (the door for entity bombs)."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{path}: its OME-XML declares a document type or entities; refused as unsafe")
    try:
        return ElementTree.fromstring(text.strip("\x00 \r\n\t"))
    except (ElementTree.ParseError, ValueError) as exc:
        raise InputError(f"{path}: its OME-XML cannot be parsed ({exc}); export the file again") from exc


def local(tag: str) -> str:
    """Return a tag without its namespace."""
    return tag.rsplit("}", 1)[-1]


def comment_annotations(root: ElementTree.Element) -> dict[str, str]:
    """Return the text of each comment annotation by its Namespace."""
    found: dict[str, str] = {}
    for element in root.iter():
        if local(element.tag) == "CommentAnnotation":
            value = next((child.text or "" for child in element if local(child.tag) == "Value"), "")
            found[element.get("Namespace", "")] = value
    return found


def ome_physical(root: ElementTree.Element, *, series: int, series_count: int) -> Physical:
    """Return scale and channels of image number `series` of an OME-XML document."""
    images = [element for element in root if local(element.tag) == "Image"]
    if len(images) != series_count or not images:
        return Physical(
            notes=(f"The OME-XML names {len(images)} images for {series_count} series; sizes are unknown.",)
        )
    pixels = next((child for child in images[series] if local(child.tag) == "Pixels"), None)
    if pixels is None:
        return Physical()
    scale: dict[str, float] = {}
    units: dict[str, str] = {}
    notes: list[str] = []
    for axis, name, default in (
        *((axis, f"PhysicalSize{axis}", "micrometer") for axis in "XYZ"),
        ("T", "TimeIncrement", "second"),
    ):
        text, stated = pixels.get(name), pixels.get(f"{name}Unit")
        value = positive(text)
        if text is not None and value is None:
            notes.append(f"{name} is {text!r}, which is no size: taken as unknown.")
        if value is None or (stated or "").strip().lower() in NO_LENGTH - {""}:
            continue
        unit = unit_name(stated, default)
        if unit is None and (stated or "").strip() != REFERENCE_FRAME:
            notes.append(f"{name}Unit is {stated!r}, which is no known unit: taken as unknown.")
            continue
        scale[axis] = value
        if unit is not None:
            units[axis] = unit
    channels = [child for child in pixels if local(child.tag) == "Channel"]
    names = tuple(channel.get("Name", "") for channel in channels)
    colors = tuple(_ome_color(channel.get("Color")) for channel in channels)
    return Physical(
        scale,
        units,
        names if any(names) else (),
        tuple(color or "FFFFFF" for color in colors) if any(colors) else (),
        comment_annotations(root).get(AXES_NS),
        tuple(notes),
    )


def _ome_color(text: str | None) -> str | None:
    """RRGGBB of OME's colour, a 32-bit RGBA integer that is usually written signed."""
    try:
        return None if text is None else f"{(int(text) & 0xFFFFFFFF) >> 8:06X}"
    except ValueError:
        return None


def imagej_physical(
    meta: Mapping[str, Any], resolution: tuple[float, float], resolution_unit: int, channels: int
) -> Physical:
    """Return scale and channels of an ImageJ description; `resolution` is pixels per unit along X and Y."""
    scale: dict[str, float] = {}
    units: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    stated = str(meta.get("unit", ""))
    unit = unit_name(stated) if stated.strip().lower() not in NO_LENGTH else None
    if unit == "inch" or (unit is None and not stated.strip()):
        plain = tag_physical(resolution, resolution_unit)
        scale, units, notes = dict(plain.scale), dict(plain.units), plain.notes
    elif unit is not None:
        for axis, value in zip("XY", resolution, strict=True):
            if (density := positive(value)) is not None:
                scale[axis], units[axis] = 1 / density, unit
        yunit, zunit = unit_name(str(meta.get("yunit", stated))), unit_name(str(meta.get("zunit", stated)))
        if "Y" in scale and yunit is not None:
            units["Y"] = yunit
        if (spacing := positive(meta.get("spacing"))) is not None and zunit is not None:
            scale["Z"], units["Z"] = spacing, zunit
    interval = positive(meta.get("finterval"))
    time_unit = unit_name(str(meta.get("tunit", "sec")))
    if interval is not None and time_unit is not None:
        scale["T"], units["T"] = interval, time_unit
    return Physical(scale, units, _imagej_names(meta, channels), _imagej_colors(meta, channels), None, notes)


def _imagej_names(meta: Mapping[str, Any], channels: int) -> tuple[str, ...]:
    """Slice labels name channels only where there is one label a channel; labels of planes name anything."""
    labels = meta.get("Labels")
    if channels > 1 and isinstance(labels, list) and len(labels) == channels and any(labels):
        return tuple(str(label).splitlines()[0] if label else "" for label in labels)
    return ()


def _imagej_colors(meta: Mapping[str, Any], channels: int) -> tuple[str, ...]:
    """The brightest entry of each channel's lookup table."""
    luts = meta.get("LUTs")
    if channels > 1 and isinstance(luts, list) and len(luts) == channels:
        return tuple("".join(f"{int(band[-1]):02X}" for band in lut) for lut in luts)
    return ()


def shaped_physical(description: str, resolution: tuple[float, float], resolution_unit: int) -> Physical:
    """Return the scale of tifffile's JSON description: `unit` gives the unit of the resolution tags, `spacing` Z."""
    try:
        meta = json.loads(description.strip("\x00 "))
    except ValueError:
        meta = None
    if not isinstance(meta, dict) or not isinstance(meta.get("unit"), str) or resolution == (1.0, 1.0):
        return tag_physical(resolution, resolution_unit)
    return imagej_physical({"unit": meta["unit"], "spacing": meta.get("spacing")}, resolution, resolution_unit, 1)


def tag_physical(resolution: tuple[float, float], resolution_unit: int) -> Physical:
    """Return the pixel size that XResolution and YResolution state per inch (2) or centimetre (3), if plausible."""
    unit_um = {2: 25400.0, 3: 10000.0}.get(resolution_unit)
    densities = [positive(value) for value in resolution]
    if unit_um is None or None in densities:
        return Physical()
    sizes = [unit_um / density for density in densities if density is not None]
    dpi = 25400.0 / sizes[0]
    if max(sizes) >= PRINT_LIMIT_UM or any(abs(dpi / usual - 1) < 1e-3 for usual in PRINT_DPI):
        return Physical()
    note = f"The pixel size ({sizes[0]:.6g} um) comes from the TIFF resolution tags."
    return Physical(dict(zip("XY", sizes, strict=True)), {"X": "micrometer", "Y": "micrometer"}, notes=(note,))


def micromanager_physical(summary: Mapping[str, Any]) -> Physical:
    """Return scale and channel names of a Micro-Manager "Summary" (PixelSize_um, z-step_um, Interval_ms, ChNames)."""
    scale: dict[str, float] = {}
    units: dict[str, str] = {}
    for axes, key, unit in (
        ("XY", "PixelSize_um", "micrometer"), ("Z", "z-step_um", "micrometer"), ("T", "Interval_ms", "millisecond"),
    ):  # fmt: skip
        if (value := positive(summary.get(key))) is not None:
            scale.update(dict.fromkeys(axes, value))
            units.update(dict.fromkeys(axes, unit))
    names = summary.get("ChNames")
    return Physical(scale, units, tuple(map(str, names)) if isinstance(names, Sequence) and names else ())


def positive(value: object) -> float | None:
    """Return `value` as a float if it is a finite number above zero, else None."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None
