"""Where the light of a simulated stack comes from: procedural specimens, or a sharp volume that the user has.

Invariant: light is a function of the voxel's index alone, for any index along y and x, so that blocks of any cut see
the same specimen. A light is small and picklable; what it reads from is opened once in each process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.images import SourceSpec, open_source
from mrbcr_cli.images.base import ImageInfo, ImageReader
from mrbcr_cli.specimens import Specimen, render

Image = NDArray[np.float32]
Triple = tuple[int, int, int]

SLAB_VOXELS = 1 << 22
"""Light is made in slabs of about this many voxels."""
SMALLEST_PX = 8
_LARGEST_LIGHT = 1e30
_FINEST_CELL_UM = 0.3
"""Cells are rendered in pairs of pixels where that is no coarser than this: within 1 % of the pixels' light."""


class Light(Protocol):
    """A specimen, voxel by voxel."""

    @property
    def planes(self) -> tuple[int, int]:
        """First and last + 1 plane with light, counted from the stack's first."""
        ...

    def read(self, z: slice, y: slice, x: slice) -> Image:
        """Light of each voxel of a box; y and x may lie outside the stack, z must lie within `planes`."""
        ...

    def read_cells(self, z: slice, y: slice, x: slice, bin_px: int) -> Image:
        """Light of each cell of a plane, `bin_px` x `bin_px` voxels; y and x count cells."""
        ...

    def voxels_of_cell(self, bin_px: int) -> int:
        """How many voxels have to be made for a cell."""
        ...


@dataclass(frozen=True)
class SpecimenLight:
    """Procedural specimens, added up. The middle of the stack is the middle of their thickness."""

    specimens: tuple[Specimen, ...]
    weights: tuple[float, ...]
    """What each specimen's light is multiplied by."""
    stack_planes: int
    voxel_zyx_um: tuple[float, float, float]
    thickness_um: float

    @property
    def planes(self) -> tuple[int, int]:
        half = self.thickness_um / 2 / self.voxel_zyx_um[0]
        middle = self.stack_planes / 2
        return math.floor(middle - half + 1e-6), math.ceil(middle + half - 1e-6)

    def read(self, z: slice, y: slice, x: slice) -> Image:
        return self._render(z, y, x, 1)

    def read_cells(self, z: slice, y: slice, x: slice, bin_px: int) -> Image:
        coarse = self._coarse(bin_px)
        step = bin_px // coarse
        return _sum_cells(self._render(z, _scaled(y, step), _scaled(x, step), coarse), step)

    def voxels_of_cell(self, bin_px: int) -> int:
        return (bin_px // self._coarse(bin_px)) ** 2

    def _coarse(self, bin_px: int) -> int:
        return 2 if bin_px % 2 == 0 and 2 * self.voxel_zyx_um[2] <= _FINEST_CELL_UM else 1

    def _render(self, z: slice, y: slice, x: slice, coarse: int) -> Image:
        dz, dy, dx = self.voxel_zyx_um
        voxel = (dz, coarse * dy, coarse * dx)
        origin = ((z.start - self.stack_planes / 2) * dz, y.start * voxel[1], x.start * voxel[2])
        shape = (z.stop - z.start, y.stop - y.start, x.stop - x.start)
        total = np.zeros(shape, np.float32)
        for specimen, weight in zip(self.specimens, self.weights, strict=True):
            light = render(specimen, origin, shape, voxel)
            light *= np.float32(weight)
            total += light
        return total


@dataclass(frozen=True)
class VolumeLight:
    """The user's volume: mirrored at its borders along y and x, nothing above and below."""

    source: SourceSpec
    shape: Triple
    scale: float
    """Light per unit of the volume's values: makes the largest 1, so that float32 holds all sums."""

    @property
    def planes(self) -> tuple[int, int]:
        return 0, self.shape[0]

    def read(self, z: slice, y: slice, x: slice) -> Image:
        rows, columns = _mirrored(y, self.shape[1]), _mirrored(x, self.shape[2])
        box = (z, slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()) + 1))
        values = read_zyx(_reader(self.source), box)[:, rows - box[1].start][:, :, columns - box[2].start]
        return (values * self.scale).astype(np.float32)

    def read_cells(self, z: slice, y: slice, x: slice, bin_px: int) -> Image:
        return _sum_cells(self.read(z, _scaled(y, bin_px), _scaled(x, bin_px)), bin_px)

    def voxels_of_cell(self, bin_px: int) -> int:
        return bin_px**2


def slabs_of(planes: tuple[int, int], pixels: int) -> Iterator[slice]:
    """Cut planes into slabs of about `SLAB_VOXELS`, of planes of so many pixels."""
    step = max(1, SLAB_VOXELS // pixels)
    for start in range(planes[0], planes[1], step):
        yield slice(start, min(start + step, planes[1]))


def _scaled(part: slice, factor: int) -> slice:
    return slice(part.start * factor, part.stop * factor)


def _sum_cells(light: Image, step: int) -> Image:
    planes, rows, columns = light.shape
    sums: Image = light.reshape(planes, rows // step, step, columns // step, step).sum((2, 4))
    return sums


def _mirrored(part: slice, size: int) -> NDArray[np.int64]:
    index = np.arange(part.start, part.stop) % (2 * size)
    mirrored: NDArray[np.int64] = np.minimum(index, 2 * size - 1 - index)
    return mirrored


@lru_cache(maxsize=4)
def _reader(source: SourceSpec) -> ImageReader:
    return open_source(source)


def read_zyx(reader: ImageReader, box: tuple[slice, slice, slice]) -> NDArray[Any]:
    """A box of an image that has one channel and one time point, as (planes, rows, columns)."""
    by_axis = dict(zip("ZYX", box, strict=True))
    values = reader.read(tuple(by_axis.get(axis, slice(0, 1)) for axis in reader.info.axes))
    return values.reshape(-1, *values.shape[-2:])


@dataclass(frozen=True)
class Survey:
    """What a look at all of the user's volume found."""

    shape: Triple
    scale_zyx_um: tuple[float | None, float | None, float | None]
    fingerprint: str
    lowest: float
    largest: float
    notes: tuple[str, ...]


def survey_volume(source: SourceSpec) -> Survey:
    """Look at every voxel once. Raises InputError for a volume that no microscope can image, saying why."""
    reader = open_source(source)
    try:
        info = reader.info
        _check_shape(info, source.label)
        shape = (info.size("Z"), info.size("Y"), info.size("X"))
        lowest, largest = math.inf, -math.inf
        for z in slabs_of((0, shape[0]), shape[1] * shape[2]):
            for start in range(0, shape[1], rows := max(1, SLAB_VOXELS // shape[2])):
                box = (z, slice(start, min(start + rows, shape[1])), slice(0, shape[2]))
                values = read_zyx(reader, box)
                if values.dtype.kind == "f" and not np.isfinite(values).all():
                    raise InputError(
                        f"{source.label}: holds NaN or infinity (planes {z.start} to {z.stop - 1}); a specimen's light "
                        "is a number everywhere"
                    )
                lowest, largest = min(lowest, float(values.min())), max(largest, float(values.max()))
        fingerprint = reader.fingerprint()
    finally:
        reader.close()
    if lowest < 0:
        raise InputError(f"{source.label}: has negative values (down to {lowest:g}); a specimen's light has none")
    if lowest == largest:
        raise InputError(f"{source.label}: is {largest:g} everywhere; there is nothing to image")
    if largest > _LARGEST_LIGHT:
        raise InputError(f"{source.label}: has values up to {largest:g}; scale them down")
    notes = list(info.notes)
    if lowest > 0:
        notes.append(f"the volume's lowest value, {lowest:g}, is taken for light too; subtract an offset beforehand")
    z_um, y_um, x_um = (info.scale_um(axis) for axis in "ZYX")
    if y_um is not None and x_um is not None and not math.isclose(y_um, x_um, rel_tol=1e-3):
        raise InputError(f"{source.label}: its pixels of {y_um:g} x {x_um:g} um (y x) are not square; resample it")
    return Survey(shape, (z_um, y_um, x_um), fingerprint, lowest, largest, tuple(notes))


def _check_shape(info: ImageInfo, label: str) -> None:
    if info.dtype.kind not in "uif":
        raise InputError(f"{label}: its values are {info.dtype}; a specimen's light is a real number")
    if info.size("C") > 1 or info.size("T") > 1:
        raise InputError(
            f"{label}: has {info.size('C')} channels and {info.size('T')} time points; save one of each as a volume"
        )
    if min(info.size("Y"), info.size("X")) < SMALLEST_PX:
        raise InputError(
            f"{label}: is {info.size('Y')} x {info.size('X')} px; at least {SMALLEST_PX} x {SMALLEST_PX} are needed"
        )
