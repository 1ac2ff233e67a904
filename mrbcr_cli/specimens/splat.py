"""From geometry to voxels: points, segments, balls, shells and level sets, all antialiased.

Invariant: the light of a thing is kept whatever the voxel size (points 1, curves their length, surfaces their area,
solids their volume), and voxels sum their contributions in the order of the things, so that a sub-box is a crop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.specimens.field import Grid, Indices, Vector, Volume

_CHUNK = 1 << 20
"""Stencil voxels held at once; any value gives the same bits."""


def splat_points(grid: Grid, position_zyx_um: Vector, weight: Vector) -> Volume:
    """Points (n, 3) of the given weights, shared out trilinearly to the eight nearest voxels: float32 (Z, Y, X)."""
    shape = np.array(grid.shape_zyx)
    canvas = np.zeros(tuple((shape + 2).tolist()), np.float32)
    below, part = grid.voxel_positions(position_zyx_um)
    inside = np.all((below >= -1) & (below < shape), axis=1)
    below, part, weight = below[inside] + 1, part[inside], weight[inside]
    _, ny, nx = canvas.shape
    flat = (below[:, 0] * ny + below[:, 1]) * nx + below[:, 2]
    index = np.empty((len(flat), 8), np.int64)
    share = np.empty((len(flat), 8), np.float32)
    near, far = 1 - part, part
    for corner in range(8):
        z, y, x = corner >> 2, (corner >> 1) & 1, corner & 1
        index[:, corner] = flat + (z * ny + y) * nx + x
        share[:, corner] = weight * (near, far)[z][:, 0] * (near, far)[y][:, 1] * (near, far)[x][:, 2]
    np.add.at(canvas.reshape(-1), index.reshape(-1), share.reshape(-1))
    return np.ascontiguousarray(canvas[1:-1, 1:-1, 1:-1])


def splat_segments(
    grid: Grid, start_zyx_um: Vector, end_zyx_um: Vector, weight_per_um: Vector, longest_um: float
) -> Volume:
    """Straight segments (n, 3) to (n, 3) of at most `longest_um`, as points half the smallest voxel side apart."""
    low, high = grid.bounds_um(2 * max(grid.voxel_zyx_um))
    first, last = np.minimum(start_zyx_um, end_zyx_um), np.maximum(start_zyx_um, end_zyx_um)
    near = np.all((last >= low) & (first <= high), axis=1)
    start, along = start_zyx_um[near], (end_zyx_um - start_zyx_um)[near]
    length = np.sqrt((along**2).sum(axis=1))
    count = max(1, math.ceil(longest_um / (0.5 * min(grid.voxel_zyx_um)) - 1e-6))
    at = (np.arange(count) + 0.5) / count
    points = start[:, None, :] + at[None, :, None] * along[:, None, :]
    return splat_points(grid, points.reshape(-1, 3), np.repeat(weight_per_um[near] * length / count, count))


def split_for(grid: Grid, least_um: float) -> list[int]:
    """Into how many parts to split each side of a voxel (zyx) so that none is longer than `least_um`; at most 4."""
    return [min(4, max(1, math.ceil(side / least_um - 1e-6))) for side in grid.voxel_zyx_um]


def binned(volume: Volume, factors: list[int]) -> Volume:
    """Sum voxels (zyx) together, in a fixed order."""
    for axis, factor in enumerate(factors):
        index: list[slice] = [slice(None)] * 3
        total = np.zeros((), np.float32)
        for first in range(factor):
            index[axis] = slice(first, None, factor)
            total = volume[tuple(index)] if factor == 1 else total + volume[tuple(index)]
        volume = total
    return volume


@dataclass(frozen=True)
class _Stencil:
    """The voxels around n objects: where they lie in the canvas, and each object's distances in radii and in voxels."""

    index: Indices
    inside: NDArray[np.bool_]
    radius: Volume
    slope: Volume


def _stencil(grid: Grid, factors: list[int], centre_zyx_um: Vector, reach_zyx_um: Vector, stretch: Vector) -> _Stencil:
    """`grid` is split by `factors`; the index is that of the voxel before the split."""
    below, part = grid.voxel_positions(centre_zyx_um)
    n = len(centre_zyx_um)
    shape = [side // factor for side, factor in zip(grid.shape_zyx, factors, strict=True)]
    index, inside = np.zeros((n, 1, 1, 1), np.int64), np.ones((n, 1, 1, 1), np.bool_)
    square, slope = np.zeros((n, 1, 1, 1), np.float32), np.zeros((n, 1, 1, 1), np.float32)
    least = np.full(n, np.inf, np.float32)
    for axis, voxel in enumerate(grid.voxel_zyx_um):
        side = math.ceil(reach_zyx_um[axis] / voxel)
        offset = np.arange(-side, side + 2)
        form = [n, 1, 1, 1]
        form[axis + 1] = len(offset)
        at = (below[:, axis, None] + offset) // factors[axis]
        index = index * shape[axis] + at.reshape(form)
        inside = inside & ((at >= 0) & (at < shape[axis])).reshape(form)
        scaled = ((offset - part[:, axis, None]) * voxel / stretch[:, axis, None]).astype(np.float32)
        step = (voxel / stretch[:, axis]).astype(np.float32)
        square = square + (scaled**2).reshape(form)
        slope = slope + (np.abs(scaled) * step[:, None]).reshape(form)
        least = np.minimum(least, step)
    radius = np.sqrt(square)
    slope = np.maximum(slope / np.maximum(radius, np.float32(1e-9)), least[:, None, None, None])
    return _Stencil(index, inside, radius, slope)


def _stencils(
    grid: Grid, centre_zyx_um: Vector, radius_um: Vector, stretch: Vector, margin: float, *, split: bool = True
) -> Iterator[tuple[Indices, _Stencil]]:
    """Chunks of objects near the grid (their indices) with their stencils, in bins of radius a factor 1.4 apart.

    The bins are fixed, and a stencil covers the largest ball of its bin, so it does not depend on the other objects.
    """
    bins = np.ceil(np.log2(np.maximum(radius_um, 1e-6)) * 2).astype(np.int64)
    low, high = grid.bounds_um()
    for value in np.unique(bins).tolist():
        largest = 2.0 ** (value / 2)
        # Voxels much longer than the ball would misplace its centre.
        factors = split_for(grid, 0.8 * largest) if split else [1, 1, 1]
        fine = grid.split(factors)
        reach = largest + margin * np.array(fine.voxel_zyx_um)
        near = np.all((centre_zyx_um >= low - reach) & (centre_zyx_um <= high + reach), axis=1)
        which = np.flatnonzero((bins == value) & near)
        size = math.prod((2 * np.ceil(reach / np.array(fine.voxel_zyx_um)) + 2).astype(int).tolist())
        step = max(1, _CHUNK // size)
        for first in range(0, len(which), step):
            some = which[first : first + step]
            yield some, _stencil(fine, factors, centre_zyx_um[some], reach, stretch[some])


def _store(ufunc: np.ufunc, canvas: Volume, stencil: _Stencil, value: Volume) -> None:
    kept = stencil.inside & (value > 0)
    ufunc.at(canvas.reshape(-1), stencil.index[kept], value[kept])


def _column(values: Vector) -> Volume:
    return values.astype(np.float32)[:, None, None, None]


def _without_tiny(
    grid: Grid, centre: Vector, radius_um: Vector, weight: Vector, stretch: Vector
) -> tuple[Volume, tuple[Vector, Vector, Vector, Vector]]:
    """Splat what is smaller than any voxel as points; the rest is left to do."""
    tiny = radius_um < 0.5 * min(grid.voxel_zyx_um)
    canvas = splat_points(grid, centre[tiny], weight[tiny])
    return canvas, (centre[~tiny], radius_um[~tiny], weight[~tiny], stretch[~tiny])


def splat_balls(
    grid: Grid, centre_zyx_um: Vector, radius_um: Vector, weight: Vector, stretch: Vector | None = None
) -> Volume:
    """Filled ellipsoids, each of total light `weight`; `stretch` (n, 3), at most 1, scales the radius along z, y, x."""
    stretch = np.ones((len(radius_um), 3)) if stretch is None else stretch
    canvas, (centre, radius, weight, stretch) = _without_tiny(grid, centre_zyx_um, radius_um, weight, stretch)
    for which, stencil in _stencils(grid, centre, radius, stretch, 0.5):
        value = np.clip(np.float32(0.5) - (stencil.radius - _column(radius[which])) / stencil.slope, 0, 1)
        total = np.maximum(value.reshape(len(which), -1).sum(axis=1), 1e-6)
        _store(np.add, canvas, stencil, value * _column(weight[which] / total))
    return canvas


def splat_shells(
    grid: Grid, centre_zyx_um: Vector, radius_um: Vector, weight: Vector, stretch: Vector | None = None
) -> Volume:
    """Hollow ellipsoids, thin against the voxels, each of total light `weight`; `stretch` as for `splat_balls`."""
    stretch = np.ones((len(radius_um), 3)) if stretch is None else stretch
    canvas, (centre, radius, weight, stretch) = _without_tiny(grid, centre_zyx_um, radius_um, weight, stretch)
    for which, stencil in _stencils(grid, centre, radius, stretch, 1.0):
        across = (stencil.radius - _column(radius[which])) / stencil.slope
        # A box one voxel wide, its flanks half a voxel wide: about what a voxel sees of a thin sheet.
        value = np.clip(np.float32(1.5) - 2 * np.abs(across), 0, 1) / stencil.slope
        total = np.maximum(value.reshape(len(which), -1).sum(axis=1), 1e-6)
        _store(np.add, canvas, stencil, value * _column(weight[which] / total))
    return canvas


def solid_balls(grid: Grid, centre_zyx_um: Vector, radius_um: float, brightness: Vector) -> Volume:
    """The union of equal balls: each voxel's covered share times the brightness, of the ball that gives the most."""
    factors = split_for(grid, 0.75 * radius_um)
    whole = _solid_balls(grid.split(factors), centre_zyx_um, np.full(len(brightness), radius_um), brightness)
    return binned(whole, factors) * np.float32(1 / math.prod(factors))


def _solid_balls(grid: Grid, centre_zyx_um: Vector, radius_um: Vector, brightness: Vector) -> Volume:
    canvas = np.zeros(grid.shape_zyx, np.float32)
    stretch = np.ones((len(radius_um), 3))
    for which, stencil in _stencils(grid, centre_zyx_um, radius_um, stretch, 0.5, split=False):
        value = np.clip(np.float32(0.5) - (stencil.radius - _column(radius_um[which])) / stencil.slope, 0, 1)
        _store(np.maximum, canvas, stencil, value * _column(brightness[which]))
    return canvas


def _slopes(level: Volume) -> tuple[Volume, Volume, Volume]:
    """The change of a level set across one voxel along z, y, x; the level is padded by one voxel on all sides."""
    return (
        np.abs(level[2:, 1:-1, 1:-1] - level[:-2, 1:-1, 1:-1]) * np.float32(0.5),
        np.abs(level[1:-1, 2:, 1:-1] - level[1:-1, :-2, 1:-1]) * np.float32(0.5),
        np.abs(level[1:-1, 1:-1, 2:] - level[1:-1, 1:-1, :-2]) * np.float32(0.5),
    )


def covered(level: Volume) -> Volume:
    """The share of each voxel in which the level is positive; `level` is padded by one voxel on all sides."""
    z, y, x = _slopes(level)
    z += y
    z += x
    z += np.float32(1e-6)
    share = level[1:-1, 1:-1, 1:-1] / z
    share += np.float32(0.5)
    clipped: Volume = np.clip(share, 0, 1, out=share)
    return clipped


def area(level: Volume, grid: Grid) -> Volume:
    """The area (um2) in each voxel of the surface level = 0; `level` is padded by one voxel on all sides of `grid`."""
    z, y, x = _slopes(level)
    across = z + y
    across += x
    across += np.float32(1e-6)
    vz, vy, vx = (np.float32(side) for side in grid.voxel_zyx_um)
    z /= vz
    y /= vy
    x /= vx
    gradient = np.sqrt(z * z + y * y + x * x)
    share = np.abs(level[1:-1, 1:-1, 1:-1])
    share /= across
    share *= np.float32(-2)
    share += np.float32(1.5)
    np.clip(share, 0, 1, out=share)
    share *= gradient
    share /= across
    share *= vz * vy * vx
    return share
