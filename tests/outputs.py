"""One image, deconvolved and written in every format, for tests that open outputs with what others have made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tifffile
from numpy.typing import NDArray

from tests.helpers import deconvolve, pixels, spots, tiny_weights

SHAPE_CZYX = (2, 2, 300, 210)
SCALE_ZYX_UM = (0.29, 0.13, 0.11)
CHANNELS = ["Aktin-α (488 nm)", "核 DAPI"]
ZARRS = ["0.5", "0.4"]


@dataclass(frozen=True)
class Outputs:
    """One image, deconvolved and written in every format."""

    zarr: dict[str, Path]
    tiff: Path
    wanted: NDArray[Any]
    """Pixels (C, Z, Y, X) as this tool's tests read them."""


def make_outputs(folder: Path) -> Outputs:
    """Sharded OME-Zarr 0.5, OME-Zarr 0.4 and OME-TIFF of two named channels."""
    weights = tiny_weights(folder / "tiny.safetensors")
    meta: dict[str, Any] = {"axes": "CZYX", "Channel": {"Name": CHANNELS}}
    for axis, size in zip("ZYX", SCALE_ZYX_UM, strict=True):
        meta |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    source = folder / "in.ome.tif"
    tifffile.imwrite(source, spots(SHAPE_CZYX), metadata=meta)
    for name, options in (("5.ome.zarr", ()), ("4.ome.zarr", ("--output-format", "ome-zarr-0.4")), ("o.ome.tif", ())):
        assert deconvolve(source, "-o", folder / name, "-m", weights, "-q", *options) == 0
    stores = {"0.5": folder / "5.ome.zarr", "0.4": folder / "4.ome.zarr"}
    return Outputs(stores, folder / "o.ome.tif", pixels(stores["0.5"]))


def level_shapes() -> list[tuple[int, ...]]:
    """Of the pyramid: Y and X are halved, until an image fits a screen."""
    c, z, y, x = SHAPE_CZYX
    return [(c, z, math.ceil(y / 2**k), math.ceil(x / 2**k)) for k in range(2)]


def level_scale(level: int) -> tuple[float, float, float]:
    z, y, x = SCALE_ZYX_UM
    return z, y * 2**level, x * 2**level
