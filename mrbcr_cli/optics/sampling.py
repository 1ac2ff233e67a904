"""From a table over radius to the pixels of a plane: one sparse matrix, an octant of the plane, mirrored.

Invariant: interpolation is a fixed linear map (six-point Lagrange, over a table of at least four samples per pixel and
per Nyquist interval), so averaging over a pixel costs nothing more than its quadrature points.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from mrbcr_cli.optics.microscope import Grid
from mrbcr_cli.optics.radial import gauss_legendre

Tensor = torch.Tensor
Array = NDArray[np.float64]

_POINTS = 6
_POINTS_AT_ONCE = 32_768
_OVERSAMPLING = 4
"""Table samples per pixel or Nyquist interval, whichever is shorter: interpolation then errs by about 1e-6."""


def radius_step_um(pixel_um: float, nyquist_um: float) -> float:
    """Step of a table that serves this pixel and an intensity whose Nyquist sampling is `nyquist_um`."""
    return min(pixel_um, nyquist_um) / _OVERSAMPLING


def radii_um(r_max_um: float, step_um: float) -> Tensor:
    """Radii from 0 to beyond `r_max_um` with the margin that interpolation needs, float64 (nr,)."""
    return torch.arange(math.ceil(r_max_um / step_um) + _POINTS, dtype=torch.float64) * step_um


def interpolation(r_um: Array, weights: Array, step_um: float, count: int) -> sparse.csr_matrix:
    """Sparse (n, count): row i is the weighted sum over the points r_um[i, :] of an even function given at k * step_um.

    `r_um` and `weights` are (n, m). Lagrange interpolation through the six nearest samples; radii below zero are their
    mirror images.
    """
    position = r_um / step_um
    first = np.floor(position).astype(np.int64) - (_POINTS // 2 - 1)
    u = position - first
    rows = np.broadcast_to(np.arange(len(r_um))[:, None], r_um.shape)
    parts = []
    for j in range(_POINTS):
        others = [i for i in range(_POINTS) if i != j]
        lagrange = weights / math.prod(j - i for i in others)
        for i in others:
            lagrange = lagrange * (u - i)
        parts.append((rows.ravel(), np.abs(first + j).ravel(), lagrange.ravel()))
    row, column, value = (np.concatenate(group) for group in zip(*parts, strict=True))
    return sparse.csr_matrix((value, (row, column)), shape=(len(r_um), count))


def pixel_nodes(grid: Grid, nyquist_um: float) -> tuple[Array, Array]:
    """Offsets (um) and weights (sum 1) within a pixel along one axis: one point, or Gauss-Legendre over its width."""
    if grid.sampling == "point":
        return np.zeros(1), np.ones(1)
    coarseness = max(0.0, grid.pixel_um / nyquist_um - 1)
    x, w = gauss_legendre(3 + math.ceil(2 * coarseness))
    return x * grid.pixel_um / 2, w / 2


def farthest_um(grid: Grid) -> float:
    """Distance of the farthest point of the farthest pixel from the axis."""
    half = grid.pixel_um / 2 if grid.sampling == "pixel" else 0.0
    reach = [max(abs(v) for v in grid.offsets_um(axis)) + half for axis in (1, 2)]
    return math.hypot(*reach)


def expand(table: Tensor, step_um: float, grid: Grid, nyquist_um: float, dtype: torch.dtype) -> Tensor:
    """Spread a table (nz, nr) of radii k * step_um over the pixels of `grid`: (nz, ny, nx) on the table's device.

    Only the octant y >= x >= 0 is interpolated.
    """
    ny, nx = grid.shape_zyx[1:]
    y, x = (np.asarray(grid.offsets(axis)) for axis in (1, 2))
    quarter = max(float(np.abs(y).max()), float(np.abs(x).max()))
    start = 0.0 if float(y[0]).is_integer() else 0.5
    if start != (0.0 if float(x[0]).is_integer() else 0.5):
        return _expand_all(table, step_um, grid, nyquist_um, dtype)
    steps = np.arange(start, quarter + 0.25)
    # Of a field that is not square only some points of the octant are met.
    used, where = np.unique(_octant_index(y, x, start), return_inverse=True)
    a, b = (index[used] for index in np.tril_indices(len(steps)))
    values = _at(table, step_um, steps[a] * grid.pixel_um, steps[b] * grid.pixel_um, grid, nyquist_um, dtype)
    places = torch.from_numpy(where.ravel()).to(table.device)
    return values.index_select(1, places).reshape(len(table), ny, nx)


def _octant_index(y: Array, x: Array, start: float) -> NDArray[np.int64]:
    """Index of each pixel (ny, nx) in the list of octant points that `tril_indices` makes."""
    iy, ix = (np.rint(np.abs(v) - start).astype(np.int64) for v in (y, x))
    large, small = np.maximum(iy[:, None], ix[None, :]), np.minimum(iy[:, None], ix[None, :])
    index: NDArray[np.int64] = large * (large + 1) // 2 + small
    return index


def _at(
    table: Tensor, step_um: float, y_um: Array, x_um: Array, grid: Grid, nyquist_um: float, dtype: torch.dtype
) -> Tensor:
    """The table at points (nz, n), in runs of points: the sparse matrix is much larger than what it makes."""
    offsets, share = pixel_nodes(grid, nyquist_um)
    columns = table.T.contiguous()
    values = torch.empty((len(y_um), len(table)), dtype=dtype, device=table.device)
    for start in range(0, len(y_um), _POINTS_AT_ONCE):
        run = slice(start, start + _POINTS_AT_ONCE)
        r_um = np.hypot((y_um[run, None] + offsets)[:, :, None], (x_um[run, None] + offsets)[:, None, :])
        weights = np.broadcast_to(share[:, None] * share[None, :], r_um.shape)
        flat = (len(r_um), -1)
        matrix = interpolation(r_um.reshape(flat), weights.reshape(flat), step_um, table.shape[1])
        values[run] = _product(matrix, columns, dtype)
    return values.T.contiguous()


def _product(matrix: sparse.csr_matrix, columns: Tensor, dtype: torch.dtype) -> Tensor:
    if columns.device.type == "cpu":
        narrow = np.float32 if dtype == torch.float32 else np.float64
        return torch.from_numpy(matrix.astype(narrow) @ columns.numpy().astype(narrow))
    coo = matrix.tocoo()
    index = torch.from_numpy(np.stack([coo.row, coo.col])).to(columns.device)
    gpu = torch.sparse_coo_tensor(index, torch.from_numpy(coo.data).to(columns.device), matrix.shape)
    spread: Tensor = torch.sparse.mm(gpu, columns).to(dtype)
    return spread


def _expand_all(table: Tensor, step_um: float, grid: Grid, nyquist_um: float, dtype: torch.dtype) -> Tensor:
    """Every pixel by itself, for grids centred on a pixel along one axis and between two along the other."""
    y, x = np.meshgrid(*(np.asarray(grid.offsets_um(axis)) for axis in (1, 2)), indexing="ij")
    values = _at(table, step_um, y.ravel(), x.ravel(), grid, nyquist_um, dtype)
    return values.reshape(len(table), *y.shape)
