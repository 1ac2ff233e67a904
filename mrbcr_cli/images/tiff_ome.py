"""The OME-XML of an output image: pure text from an OutputSpec.

Invariant: the document is valid by the OME schema 2016-06 and ASCII-safe; everything of the spec is in it, so that
reading it back gives the same axes, scale, units, channels and provenance.
"""

from __future__ import annotations

import json
import math
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np

from mrbcr_cli.errors import InputError
from mrbcr_cli.images import tiff_meta
from mrbcr_cli.images.base import OutputSpec

SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
OME_TYPES = {
    "int8": "int8", "uint8": "uint8", "int16": "int16", "uint16": "uint16", "int32": "int32", "uint32": "uint32",
    "float32": "float", "float64": "double",
}  # fmt: skip
METRES = {"angstrom": 1e-10, "inch": 0.0254, "foot": 0.3048, "yard": 0.9144, "mile": 1609.344, "parsec": 3.0857e16}
EXPONENTS = {
    "yotta": 24, "zetta": 21, "exa": 18, "peta": 15, "tera": 12, "giga": 9, "mega": 6, "kilo": 3, "hecto": 2, "": 0,
    "deci": -1, "centi": -2, "milli": -3, "micro": -6, "nano": -9, "pico": -12, "femto": -15, "atto": -18,
    "zepto": -21, "yocto": -24,
}  # fmt: skip


def page_axes(spec: OutputSpec) -> str:
    """Return the order of planes on disk: `spec.stored_axes`, with Y and X last, where OME-TIFF wants them."""
    if sorted(spec.stored_axes) != sorted(spec.axes):
        raise ValueError(f"stored axes {spec.stored_axes!r} are not those of {spec.axes!r}")
    return "".join(axis for axis in spec.stored_axes if axis not in "YX") + "YX"


def um_per_unit(unit: str | None) -> float | None:
    """Return the length of a UDUNITS-2 unit in micrometres; None where it is no length or unknown."""
    if unit is None:
        return None
    if unit in METRES:
        return METRES[unit] * 1e6
    exponent = EXPONENTS.get(unit.removesuffix("meter")) if unit.endswith("meter") else None
    return None if exponent is None else 10.0 ** (exponent + 6)


def ome_xml(spec: OutputSpec) -> str:
    """Return the OME-XML document of `spec` (text; characters outside ASCII must be written as references).

    A scale without a unit is written in OME's "reference frame". Raises InputError for a unit that OME does not have.
    """
    root = Element(
        "OME",
        {
            "xmlns": SCHEMA,
            "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
            "xsi:schemaLocation": f"{SCHEMA} {SCHEMA}/ome.xsd",
            "Creator": "mrbcr",
        },
    )
    image = SubElement(root, "Image", ID="Image:0", Name=_clean(spec.name))
    pixels = SubElement(image, "Pixels", _pixels(spec))
    sizes = dict(zip(spec.axes, spec.shape, strict=True))
    channels = sizes.get("C", 1)
    names = spec.channel_names if len(spec.channel_names) == channels else ("",) * channels
    colors = spec.channel_colors if len(spec.channel_colors) == channels else ("",) * channels
    for index, (name, color) in enumerate(zip(names, colors, strict=True)):
        attributes = {"ID": f"Channel:0:{index}", "SamplesPerPixel": "1"}
        attributes |= {"Name": _clean(name)} if name else {}
        attributes |= {"Color": str(signed_rgba(color))} if color else {}
        SubElement(pixels, "Channel", attributes)
    planes = math.prod(size for axis, size in sizes.items() if axis not in "YX")
    SubElement(pixels, "TiffData", IFD="0", PlaneCount=str(planes))
    notes = SubElement(root, "StructuredAnnotations")
    _comment(notes, "Annotation:axes", tiff_meta.AXES_NS, spec.axes)
    if spec.provenance:
        _comment(notes, "Annotation:provenance", tiff_meta.PROVENANCE_NS, json.dumps(spec.provenance))
    if spec.source_ome_xml is not None:
        _comment(notes, "Annotation:source-ome-xml", tiff_meta.SOURCE_XML_NS, spec.source_ome_xml)
    # an XML parser turns a bare carriage return into a line feed: written as a reference it survives
    return '<?xml version="1.0" encoding="UTF-8"?>' + tostring(root, encoding="unicode").replace("\r", "&#13;")


def _pixels(spec: OutputSpec) -> dict[str, str]:
    sizes = dict(zip(spec.axes, spec.shape, strict=True))
    order = page_axes(spec)[:-2][::-1]
    order += "".join(axis for axis in "ZCT" if axis not in order)
    pixels = {"ID": "Pixels:0", "DimensionOrder": f"XY{order}", "Type": OME_TYPES[np.dtype(spec.dtype).name]}
    pixels |= {f"Size{axis}": str(sizes.get(axis, 1)) for axis in "XYZCT"}
    for axis, scale, unit in zip(spec.axes, spec.scale, spec.units, strict=True):
        if scale is None or axis == "C":
            continue
        name = "TimeIncrement" if axis == "T" else f"PhysicalSize{axis}"
        symbol = _symbol(unit, time=axis == "T")
        if symbol is not None:
            pixels |= {name: repr(float(scale)), f"{name}Unit": symbol}
    return pixels


def _symbol(unit: str | None, *, time: bool) -> str | None:
    """Return OME's symbol of a unit; None for a time without a unit, which OME cannot say."""
    if unit is None:
        return None if time else tiff_meta.REFERENCE_FRAME
    table = tiff_meta.TIME_UNITS if time else tiff_meta.LENGTH_UNITS
    symbol = next((symbol for symbol, name in table.items() if name == unit), None)
    if symbol is None:
        raise InputError(f"OME-TIFF has no {'time' if time else 'length'} unit {unit!r}; write OME-Zarr instead")
    return symbol


def signed_rgba(color: str) -> int:
    """Return OME's colour of RRGGBB: opaque RGBA as a signed 32-bit integer."""
    value = int(color, 16) << 8 | 0xFF
    return value - 2**32 if value >= 2**31 else value


def _comment(parent: Element, identifier: str, namespace: str, text: str) -> None:
    annotation = SubElement(parent, "CommentAnnotation", ID=identifier, Namespace=namespace)
    SubElement(annotation, "Value").text = text


def _clean(text: str) -> str:
    """Drop control characters, which XML cannot hold in any form."""
    return "".join(char for char in text if char.isprintable() or char in "\t\n")
