"""Outputs to write as OME-Zarr: specifications of any axes, pixels that tell every place, and the blocks in between.

The same specification gives the same pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mrbcr_cli.images.base import OutputSpec, Region
from mrbcr_cli.images.omezarr_write import (
    create_level0,
    finish,
    open_level0,
    plan_layout,
)

Version = Literal["0.5", "0.4"]
VERSIONS: tuple[Version, ...] = ("0.5", "0.4")
SCALE = {"T": (2.5, "second"), "C": (None, None), "Z": (0.3, "micrometer"), "Y": (0.1, "micrometer")}
XML = '<?xml version="1.0" encoding="UTF-8"?>\r\n<OME xmlns="x"><!-- µm, kept as is -->\n</OME>'


def make_spec(axes: str, shape: tuple[int, ...], dtype: str = "uint16", **more: Any) -> OutputSpec:
    known = [SCALE.get(axis, (0.1, "micrometer")) for axis in axes]
    return OutputSpec(
        axes,
        shape,
        np.dtype(dtype),
        axes,
        scale=tuple(scale for scale, _ in known),
        units=tuple(unit for _, unit in known),
        **{"name": "cells", "provenance": {"command": "mrbcr deconvolve", "weights": {"sha256": "ab"}}} | more,
    )


def make_pixels(spec: OutputSpec) -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).integers(0, 250, spec.shape).astype(spec.dtype)


def blocks(shape: tuple[int, ...], block: tuple[int, ...]) -> Iterator[Region]:
    ranges = [range(0, size, length) for size, length in zip(shape, block, strict=True)]
    for starts in product(*ranges):
        yield tuple(slice(a, min(a + b, n)) for a, b, n in zip(starts, block, shape, strict=True))


def write_all(root: Path, spec: OutputSpec, block: tuple[int, ...], version: Version) -> np.ndarray[Any, Any]:
    """Create, write and finish a store; return its pixels."""
    layout = plan_layout(spec, block, version)
    data = make_pixels(spec)
    create_level0(root, spec, layout, version)
    level = open_level0(root)
    for region in blocks(spec.shape, block):
        level.write(region, data[region])
    finish(root, spec, layout, version)
    return data


def region_2d(y: tuple[int, int], x: tuple[int, int]) -> Region:
    return slice(*y), slice(*x)
