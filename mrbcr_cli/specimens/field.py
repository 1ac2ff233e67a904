"""Voxel grids, hashed random numbers, placement of objects and lattice noise: all functions of position alone.

Invariant: what is drawn at a place depends on the key and the place, never on the box that is rendered, so that a
sub-box is a crop bit for bit. To that end every random number is an integer hash of a cell or lattice index, and
sums run in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, ndtri

Volume = NDArray[np.float32]
Vector = NDArray[np.float64]
Keys = NDArray[np.uint64]
Indices = NDArray[np.int64]
Triple = tuple[float, float, float]

_STEPS = 1 << 16
"""A grid may start at any multiple of 1/65536 voxel: coarse enough to absorb rounding, too fine to see."""

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Grid:
    """A box of voxels in space: `start_zyx` in 1/65536 of a voxel, `shape_zyx` in voxels, `voxel_zyx_um` in um."""

    start_zyx: tuple[int, int, int]
    shape_zyx: tuple[int, int, int]
    voxel_zyx_um: Triple

    def edges_um(self, axis: int) -> Vector:
        """(n + 1,) float64 positions of the voxel faces along `axis`, in um."""
        steps = self.start_zyx[axis] + _STEPS * np.arange(self.shape_zyx[axis] + 1)
        return steps / _STEPS * self.voxel_zyx_um[axis]

    def centres_um(self, axis: int) -> Vector:
        """(n,) float64 positions of the voxel centres along `axis`, in um."""
        steps = self.start_zyx[axis] + _STEPS // 2 + _STEPS * np.arange(self.shape_zyx[axis])
        return steps / _STEPS * self.voxel_zyx_um[axis]

    def bounds_um(self, reach_um: float = 0.0) -> tuple[Vector, Vector]:
        """The low and high corner (zyx, um), `reach_um` further out on all sides."""
        voxel = np.array(self.voxel_zyx_um)
        low = np.array(self.start_zyx) / _STEPS * voxel
        return low - reach_um, low + np.array(self.shape_zyx) * voxel + reach_um

    def padded(self, voxels: int) -> Grid:
        """The grid with `voxels` more on all sides."""
        return Grid(
            _triple(start - voxels * _STEPS for start in self.start_zyx),
            _triple(n + 2 * voxels for n in self.shape_zyx),
            self.voxel_zyx_um,
        )

    def crop(self, low: Sequence[int], high: Sequence[int]) -> Grid:
        """The voxels `low` to `high` (zyx, high excluded) of this grid."""
        return Grid(
            _triple(start + _STEPS * a for start, a in zip(self.start_zyx, low, strict=True)),
            _triple(b - a for a, b in zip(low, high, strict=True)),
            self.voxel_zyx_um,
        )

    def split(self, factors: Sequence[int]) -> Grid:
        """The same box in voxels `factors` (zyx) times smaller."""
        voxel_z, voxel_y, voxel_x = (side / f for side, f in zip(self.voxel_zyx_um, factors, strict=True))
        return Grid(
            _triple(start * f for start, f in zip(self.start_zyx, factors, strict=True)),
            _triple(n * f for n, f in zip(self.shape_zyx, factors, strict=True)),
            (voxel_z, voxel_y, voxel_x),
        )

    def span(self, low_um: Vector, high_um: Vector) -> tuple[list[int], list[int]]:
        """The voxels (low, high; zyx; inside the grid) that a box in um touches; empty where high <= low."""
        voxel = np.array(self.voxel_zyx_um)
        start = np.array(self.start_zyx) / _STEPS
        low = np.maximum(np.floor(low_um / voxel - start), 0).astype(np.int64)
        high = np.minimum(np.ceil(high_um / voxel - start), self.shape_zyx).astype(np.int64)
        return low.tolist(), high.tolist()

    def voxel_positions(self, position_zyx_um: Vector) -> tuple[Indices, Vector]:
        """The voxel at or before each position (n, 3), and how far past its centre (0 to 1) the position lies."""
        whole = np.array([start // _STEPS for start in self.start_zyx])
        part = np.array([start % _STEPS for start in self.start_zyx]) / _STEPS
        at = position_zyx_um / np.array(self.voxel_zyx_um) - part - 0.5
        below = np.floor(at)
        return below.astype(np.int64) - whole, at - below


def _triple(values: Iterable[int]) -> tuple[int, int, int]:
    z, y, x = (int(value) for value in values)
    return z, y, x


def make_grid(origin_zyx_um: Triple, shape_zyx: tuple[int, int, int], voxel_zyx_um: Triple) -> Grid:
    """The grid whose first voxel has its low corner at `origin_zyx_um` (rounded to 1/65536 voxel)."""
    start = (round(at / voxel * _STEPS) for at, voxel in zip(origin_zyx_um, voxel_zyx_um, strict=True))
    return Grid(_triple(start), _triple(shape_zyx), voxel_zyx_um)


def mix(keys: Keys) -> Keys:
    """SplitMix64's finaliser: every bit of the result depends on every bit of the key."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def child(keys: Keys, number: int | Indices) -> Keys:
    """New keys from keys and a number (any sign), elementwise."""
    offset = np.asarray(number, np.int64).astype(np.uint64) * np.array([_GOLDEN], np.uint64)
    return mix(mix(keys + np.uint64(_GOLDEN)) ^ offset)


def root_key(seed: int, tag: str) -> Keys:
    """(1,) key of a seed (any integer) and a name."""
    value = seed & _MASK
    for byte in tag.encode():
        value = ((value ^ byte) * 0x100000001B3 + (seed >> 64)) & _MASK
    return mix(np.array([value], np.uint64))


def uniform(keys: Keys, stream: int, low: float = 0.0, high: float = 1.0) -> Vector:
    """Float64 draws from `low` to `high`, one for each key; other streams are independent."""
    bits = child(keys, stream) >> np.uint64(11)
    return low + (high - low) * ((bits.astype(np.float64) + 0.5) * 2.0**-53)


def log_uniform(keys: Keys, stream: int, low: float, high: float) -> Vector:
    """Float64 draws from `low` to `high`, uniform in the logarithm."""
    return np.exp(uniform(keys, stream, math.log(low), math.log(high)))


def normal(keys: Keys, stream: int) -> Vector:
    """Standard normal float64 draws, cut at three sigma so that reaches stay bounded."""
    draws: Vector = ndtri(uniform(keys, stream, 0.00135, 0.99865))
    return draws


@dataclass(frozen=True)
class Objects:
    """Things in space: `key` (n,) uint64 for their own draws and `position_zyx_um` (n, 3) float64."""

    key: Keys
    position_zyx_um: Vector

    def take(self, which: Indices | NDArray[np.bool_]) -> Objects:
        """The objects at these indices, or where the mask is true."""
        return Objects(self.key[which], self.position_zyx_um[which])


def _poisson(draws: Vector, mean: float) -> Indices:
    counts = np.arange(int(mean + 10 * math.sqrt(mean) + 20))
    below = np.cumsum(np.exp(counts * math.log(max(mean, 1e-300)) - mean - gammaln(counts + 1)))
    return np.searchsorted(below, draws, side="right").astype(np.int64)


def _cells(key: Keys, cell_zyx_um: Vector, low_um: Vector, high_um: Vector) -> tuple[Keys, Indices]:
    first = np.floor(low_um / cell_zyx_um).astype(np.int64)
    last = np.floor(high_um / cell_zyx_um).astype(np.int64)
    axes = [np.arange(a, max(a, b) + 1) for a, b in zip(first.tolist(), last.tolist(), strict=True)]
    index = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    keys = np.broadcast_to(key, (len(index),))
    for axis in range(3):
        keys = child(keys, index[:, axis])
    return keys, index


def scatter(key: Keys, cell_zyx_um: Sequence[float], mean: float, low_um: Vector, high_um: Vector) -> Objects:
    """A Poisson process with `mean` objects per hash cell: all objects between `low_um` and `high_um` (zyx).

    The order is that of the cells (z, y, x) and of the draws in a cell, whatever the box.
    """
    cell = np.array(cell_zyx_um, np.float64)
    keys, index = _cells(key, cell, low_um, high_um)
    counts = _poisson(uniform(keys, 0), mean)
    owner = np.repeat(np.arange(len(keys)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    own = child(keys[owner], number + 1)
    inside = np.stack([uniform(own, axis) for axis in range(3)], axis=1)
    position = (index[owner] + inside) * cell
    kept = np.all((position >= low_um) & (position <= high_um), axis=1)
    return Objects(own[kept], position[kept])


def stratified(key: Keys, cell_zyx_um: Sequence[float], low_um: Vector, high_um: Vector) -> Objects:
    """One object in each hash cell, anywhere in it: more even than a Poisson process."""
    cell = np.array(cell_zyx_um, np.float64)
    keys, index = _cells(key, cell, low_um, high_um)
    inside = np.stack([uniform(keys, axis) for axis in range(3)], axis=1)
    return Objects(child(keys, 1), (index + inside) * cell)


def _spline_integral(at: Vector, order: int) -> Vector:
    """The integral of the centred B-spline of order 1 (tent) or 3 (cubic) up to `at`."""
    if order == 1:
        at = np.clip(at, -1.0, 1.0)
        return np.where(at < 0, (1 + at) ** 2 / 2, 1 - (1 - at) ** 2 / 2)
    r = np.minimum(np.abs(at), 2.0)
    near = 2 * r / 3 - r**3 / 3 + r**4 / 8
    far = 0.5 - (2 - r) ** 4 / 24
    return 0.5 + np.sign(at) * np.where(r < 1, near, far)


@dataclass(frozen=True)
class Taps:
    """Weights from lattice nodes to voxels along one axis: nodes first + base + t with weight (t, n)."""

    first: int
    count: int
    base: Indices
    weight: Volume


def taps(grid: Grid, axis: int, spacing_um: float, order: int) -> Taps:
    """Box-integrated B-spline weights, so that halving the voxel and averaging gives the same field."""
    edges = grid.edges_um(axis) / spacing_um
    width = grid.voxel_zyx_um[axis] / spacing_um
    support = (order + 1) // 2
    base = np.floor(edges[:-1]).astype(np.int64) - support + 1
    count = order + 1 + math.ceil(width)
    node = base[None, :] + np.arange(count)[:, None]
    weight = _spline_integral(edges[None, 1:] - node, order) - _spline_integral(edges[None, :-1] - node, order)
    first = int(base[0])
    return Taps(first, int(base[-1]) + count - first, base - first, (weight / width).astype(np.float32))


def resample(nodes: Volume, z: Taps, y: Taps, x: Taps) -> Volume:
    """Spread lattice nodes (z.count, y.count, x.count) onto voxels; elementwise sums in a fixed order."""
    along_x = nodes[:, :, x.base] * x.weight[0]
    for t in range(1, len(x.weight)):
        along_x += nodes[:, :, x.base + t] * x.weight[t]
    along_y = along_x[:, y.base, :] * y.weight[0][:, None]
    for t in range(1, len(y.weight)):
        along_y += along_x[:, y.base + t, :] * y.weight[t][:, None]
    out = np.empty((len(z.base), *along_y.shape[1:]), np.float32)
    for k, base in enumerate(z.base.tolist()):
        np.multiply(along_y[base], z.weight[0, k], out=out[k])
        for t in range(1, len(z.weight)):
            if z.weight[t, k] != 0:
                out[k] += along_y[base + t] * z.weight[t, k]
    return out


_NODE_VARIANCE = 151 / 315
"""Mean over position of the sum of squared cubic B-spline weights: the variance left along each axis."""


def lattice_noise(key: Keys, spacing_zyx_um: float | Sequence[float], grid: Grid) -> Volume:
    """Gaussian-like noise of unit variance and zero mean, averaged over each voxel of `grid`: float32 (Z, Y, X).

    A cubic B-spline through hashed values on a lattice of `spacing_zyx_um`; it varies over about twice that.
    """
    spacing = np.broadcast_to(np.asarray(spacing_zyx_um, np.float64), (3,)).tolist()
    z, y, x = (taps(grid, axis, spacing[axis], 3) for axis in range(3))
    keys = child(key, z.first + np.arange(z.count))[:, None]
    keys = child(keys, y.first + np.arange(y.count)[None, :])[:, :, None]
    keys = child(keys, x.first + np.arange(x.count)[None, None, :])
    # Two sums of two 16-bit parts: near enough to a normal draw, at a third of the cost.
    parts = sum(((keys >> np.uint64(16 * part)) & np.uint64(0xFFFF)).astype(np.float32) for part in range(4))
    nodes = (np.asarray(parts, np.float32) - np.float32(2 * 65535)) * np.float32(math.sqrt(3) / 65536)
    return resample(nodes * np.float32(_NODE_VARIANCE**-1.5), z, y, x)


def coarse_grid(grid: Grid, spacing_um: float) -> Grid:
    """The grid whose voxel centres are the lattice nodes (multiples of `spacing_um`) that `refine` needs for `grid`."""
    along = [taps(grid, axis, spacing_um, 1) for axis in range(3)]
    start = _triple(t.first * _STEPS - _STEPS // 2 for t in along)
    return Grid(start, _triple(t.count for t in along), (spacing_um, spacing_um, spacing_um))


def offset_in(grid: Grid, other: Grid) -> tuple[slice, slice, slice]:
    """Where `grid` lies in `other`, a larger grid of the same voxels, as slices along z, y, x."""
    first = [(a - b) // _STEPS for a, b in zip(grid.start_zyx, other.start_zyx, strict=True)]
    z, y, x = (slice(low, low + n) for low, n in zip(first, grid.shape_zyx, strict=True))
    return z, y, x


def refine(values: Volume, nodes: Grid, grid: Grid) -> Volume:
    """A smooth field known on `nodes` (the `coarse_grid` of `grid` or of a larger one), averaged over each voxel."""
    z, y, x = (taps(grid, axis, nodes.voxel_zyx_um[axis], 1) for axis in range(3))
    first = [(start + _STEPS // 2) // _STEPS for start in nodes.start_zyx]
    low = [t.first - begin for t, begin in zip((z, y, x), first, strict=True)]
    inner = values[low[0] : low[0] + z.count, low[1] : low[1] + y.count, low[2] : low[2] + x.count]
    return resample(inner, z, y, x)
