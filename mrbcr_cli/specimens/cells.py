"""Cells in contact: where they sit, their outlines, their nuclei, and the regions that they cover.

Invariant: a cell is decided by its own key and by the neighbours within a stated reach, so every box sees the same
cells. Shapes are level sets (um inside the surface) on a lattice fixed in space, refined to the voxels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from mrbcr_cli.specimens.field import (
    Grid,
    Indices,
    Keys,
    Objects,
    Vector,
    Volume,
    child,
    coarse_grid,
    lattice_noise,
    normal,
    offset_in,
    refine,
    root_key,
    stratified,
    uniform,
)
from mrbcr_cli.specimens.specimen import (
    SHEET_LIGHT,
    SOLID_LIGHT,
    Specimen,
    brightness,
    chosen_style,
    own_key,
    trait,
)
from mrbcr_cli.specimens.splat import area, binned, covered, splat_balls, split_for

LATTICE_UM = 0.35
"""Level sets are known at this spacing: no finer than a microscope shows, whatever the voxels."""

_REACH = 1.1
"""A cell ends at this many spacings from its centre at the latest."""


@dataclass(frozen=True)
class Cells:
    """Cells with their neighbours: `pairs` (m, 2) are the indices of a cell and of a neighbour, sorted."""

    found: Objects
    pairs: Indices
    spacing_um: float
    flat: bool
    seed: int


def _sites(key: Keys, spacing: float, half_um: float, low: Vector, high: Vector) -> Objects:
    """Centres about `spacing` apart, none nearer than 0.62 of it; in one layer where the specimen is thin."""
    flat = 2 * half_um < 1.6 * spacing
    low, high = low - 0.62 * spacing, high + 0.62 * spacing
    if flat:
        low[0] = high[0] = 0.5 * spacing
    elif half_um < math.inf:
        low[0], high[0] = max(low[0], -half_um), min(high[0], half_um)
    found = stratified(key, [spacing] * 3, low, high)
    position = found.position_zyx_um
    if flat:
        position[:, 0] = (position[:, 0] - 0.5 * spacing) / spacing * 0.2 * half_um
    pairs = cKDTree(position).query_pairs(0.63 * spacing, output_type="ndarray")
    a, b = pairs[:, 0], pairs[:, 1]
    close = ((position[a] - position[b]) ** 2).sum(axis=1) < (0.62 * spacing) ** 2
    a, b = a[close], b[close]
    kept = np.ones(len(position), np.bool_)
    kept[np.where(found.key[a] > found.key[b], a, b)] = False
    return found.take(kept)


def cells_near(seed: int, tag: str, spacing: float, half_um: float, grid: Grid) -> Cells:
    """The cells that can show in `grid`, and all their neighbours; the same for every kind with this seed and tag."""
    low, high = grid.bounds_um(3.2 * _REACH * spacing)
    found = _sites(root_key(seed, tag), spacing, half_um, low, high)
    pairs = cKDTree(found.position_zyx_um).query_pairs(2 * _REACH * spacing, output_type="ndarray")
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    return Cells(found, both, spacing, 2 * half_um < 1.6 * spacing, seed)


def _level(
    cells: Cells, i: int, nodes: Grid, rough: Volume, gap_um: float, radius_zyx_um: Vector, turn: float
) -> Volume:
    """Um inside cell `i` (negative outside): an ellipsoid, cut at `gap_um` before the wall to each neighbour.

    The roughness bends a wall the same way seen from both sides.
    """
    position, keys = cells.found.position_zyx_um, cells.found.key
    z, y, x = (nodes.centres_um(axis) - position[i, axis] for axis in range(3))
    cos, sin = math.cos(turn), math.sin(turn)
    rz, ry, rx = radius_zyx_um.tolist()
    along, across = (y[:, None] * cos + x[None, :] * sin) / ry, (x[None, :] * cos - y[:, None] * sin) / rx
    plane = (along**2 + across**2).astype(np.float32)
    level = np.sqrt(plane[None] + ((z / rz) ** 2).astype(np.float32)[:, None, None])
    np.subtract(np.float32(1), level, out=level)
    level *= np.float32(min(rz, ry, rx) if rz > 0.6 * ry else min(ry, rx))
    level += rough
    first, last = np.searchsorted(cells.pairs[:, 0], [i, i + 1]).tolist()
    smallest = float(radius_zyx_um[1:].max())
    for j in cells.pairs[first:last, 1].tolist():
        way = position[j] - position[i]
        distance = math.sqrt(float((way**2).sum()))
        if 0.5 * distance - gap_um > smallest + 1.0:
            continue
        way /= distance
        wall = (0.5 * distance - gap_um - way[1] * y[:, None] - way[2] * x[None, :]).astype(np.float32)
        bent = rough if keys[i] > keys[j] else -rough
        wall = wall[None] - (way[0] * z).astype(np.float32)[:, None, None] + bent
        np.minimum(level, wall, out=level)
    return np.asarray(level, np.float32)


def _boxes(cells: Cells, grid: Grid, radius_um: Vector) -> Iterator[tuple[int, Grid]]:
    """Each cell that reaches into the grid, with the part of the grid that it reaches."""
    position = cells.found.position_zyx_um
    for i, (at, radius) in enumerate(zip(position, radius_um, strict=True)):
        low, high = grid.span(at - radius, at + radius)
        if all(a < b for a, b in zip(low, high, strict=True)):
            yield i, grid.crop(low, high)


@dataclass(frozen=True)
class Union:
    """Level set of many separate cells on the nodes of a coarse grid, with the brightness of the cell at each node."""

    level: Volume
    light: Volume


def union(cells: Cells, nodes: Grid, *, gap_um: float, radius_zyx_um: Vector, rough_um: float, light: Vector) -> Union:
    """The cells of radii (n, 3) as one level set; a cell of light 0 is absent."""
    step = nodes.voxel_zyx_um[0]
    level = np.full(nodes.shape_zyx, -2 * step, np.float32)
    bright = np.zeros(nodes.shape_zyx, np.float32)
    rough = lattice_noise(root_key(cells.seed, "outline"), max(1.5, 0.2 * float(cells.spacing_um)), nodes) * np.float32(
        rough_um
    )
    reach = radius_zyx_um.max(axis=1) + 3 * rough_um + 3 * step
    for i, box in _boxes(cells, nodes, reach):
        if light[i] <= 0:
            continue
        where = offset_in(box, nodes)
        turn = float(uniform(cells.found.key[i : i + 1], 12, 0, math.pi)[0])
        own = _level(cells, i, box, rough[where], gap_um, radius_zyx_um[i], turn)
        inner = own > level[where]
        level[where][inner] = own[inner]
        bright[where][inner] = light[i]
    return Union(level, bright)


def thin(half_um: float, flat: bool, radius: Vector) -> Vector:
    """The z radius of each cell: no more than a thin specimen holds."""
    return np.minimum(radius, 0.9 * half_um) if flat else radius


def regions(specimen: Specimen, grid: Grid) -> Volume:
    """The share of each voxel inside cell-like regions that take up `coverage` of the field: float32 (Z, Y, X)."""
    spacing = float(uniform(root_key(specimen.seed, "regions"), 1, 9, 22)[0])
    cells = cells_near(specimen.seed, "regions", spacing, specimen.half_um, grid)
    keys = cells.found.key
    present = uniform(keys, 13) < specimen.coverage / 0.8
    across = spacing * (0.5 + 0.15 * uniform(keys, 14))
    radius = np.stack([across * 1.2, across, across * uniform(keys, 15, 0.75, 1.0)], axis=1)
    nodes = coarse_grid(grid.padded(1), 0.8)
    full = specimen.coverage > 0.85
    whole = union(
        cells, nodes, gap_um=0.0 if full else 0.5, radius_zyx_um=radius, rough_um=0.7, light=present.astype(np.float64)
    )
    return covered(refine(whole.level, nodes, grid.padded(1)))


def cell_spacing(specimen: Specimen) -> float:
    """The usual distance between cells (um), the same for all kinds with this seed and size."""
    return float(uniform(root_key(specimen.seed, "cell spacing"), 0, 5.5, 12)[0]) * specimen.size


def _folds(specimen: Specimen, grid: Grid) -> Volume:
    """Folded sheets (such as the endoplasmic reticulum): level surfaces of smooth noise, broken up by another."""
    scale = trait(specimen, 3, 0.6, 2.2) * specimen.size / min(specimen.density, 4.0) ** 0.33
    factors = split_for(grid, 0.3 * scale)
    fine = grid.split(factors)
    wide = fine.padded(1)
    nodes = coarse_grid(wide, 0.3 * scale)
    key = own_key(specimen, "folds")
    level = lattice_noise(child(key, 0), scale, nodes)
    level += np.float32(0.5) * lattice_noise(child(key, 1), 0.5 * scale, nodes)
    sheet = binned(area(refine(level, nodes, wide), fine), factors)
    keep = lattice_noise(child(key, 2), 2.5 * scale, grid) + np.float32(trait(specimen, 4, 0.3, 1.6))
    return sheet * np.clip(keep, 0, 1.5, out=keep)


def membranes(specimen: Specimen, grid: Grid) -> Volume:
    """Outlines of rough cells in contact (all, some, or apart), folded sheets, nuclear envelopes: float32 (Z, Y, X)."""
    style = chosen_style(specimen)
    patchy = trait(specimen, 5, 0.0, 0.7)
    grain = lattice_noise(own_key(specimen, "grain"), [1.2, 0.6, 0.6], grid)
    grain = np.clip(np.float32(1) + np.float32(patchy) * grain, np.float32(0.05), None, out=grain)
    grain *= np.float32(SHEET_LIGHT)
    if style == "folds":
        grain *= _folds(specimen, grid)
        return grain
    spacing = cell_spacing(specimen)
    cells = cells_near(specimen.seed, "cells", spacing, specimen.half_um, grid)
    keys = cells.found.key
    light = brightness(keys, 21, 0.5 * specimen.spread)
    if style == "mosaic":
        light *= uniform(keys, 22) < min(0.9, 0.45 * specimen.density)
    if style in ("outlines", "envelopes"):
        share, gap, rough = (0.55, 0.5, 0.5) if style == "outlines" else (0.36, 0.4, 0.2)
        across = share * spacing * uniform(keys, 23, 0.8, 1.1)
        light *= uniform(keys, 24) < min(1.0, 0.7 * specimen.density)
    else:
        across, gap, rough = np.full(len(keys), _REACH * spacing), 0.0, trait(specimen, 6, 0.15, 0.5)
    tall = thin(specimen.half_um, cells.flat, across)
    radius = np.stack([tall, across, across * uniform(keys, 25, 0.7, 1.0)], axis=1)
    canvas = np.zeros(grid.shape_zyx, np.float32)
    nodes = coarse_grid(grid.padded(1), LATTICE_UM)
    bends = lattice_noise(root_key(specimen.seed, "walls"), max(1.0, 0.15 * spacing), nodes) * np.float32(rough)
    for i, box in _boxes(cells, grid, radius.max(axis=1) + 3 * rough):
        if light[i] > 0:
            wide = box.padded(1)
            own = coarse_grid(wide, LATTICE_UM)
            turn = float(uniform(keys[i : i + 1], 12, 0, math.pi)[0])
            level = _level(cells, i, own, bends[offset_in(own, nodes)], gap, radius[i], turn)
            if level.max() > 0:
                # A wall between two cells is drawn from both sides.
                half = 0.5 if gap == 0 else 1.0
                canvas[offset_in(box, grid)] += area(refine(level, own, wide), box) * np.float32(light[i] * half)
    canvas *= grain
    return canvas


def _nucleoli(cells: Cells, nodes: Grid, radius_zyx_um: Vector, bright: Volume) -> None:
    """Darken one to four balls inside each nucleus, in place, on the coarse nodes."""
    for i, _ in _boxes(cells, nodes, 1.2 * radius_zyx_um.max(axis=1) + 0.5):
        key = cells.found.key[i : i + 1]
        for number in range(1 + int(uniform(key, 40)[0] * 4)):
            own = child(key, 400 + number)
            offset = np.array([float(uniform(own, axis, -0.5, 0.5)[0]) for axis in range(3)]) * radius_zyx_um[i]
            size = float(uniform(own, 4, 0.1, 0.26)[0]) * float(radius_zyx_um[i, 1])
            at = cells.found.position_zyx_um[i] + offset
            low, high = nodes.span(at - size - 0.5, at + size + 0.5)
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            box = nodes.crop(low, high)
            z, y, x = ((box.centres_um(axis) - at[axis]) ** 2 for axis in range(3))
            distance = np.sqrt(z[:, None, None] + y[:, None] + x)
            shade = np.clip((distance - size) / 0.4 + 0.5, 0.15, 1.0).astype(np.float32)
            bright[offset_in(box, nodes)] *= shade


def _foci(specimen: Specimen, cells: Cells, radius_zyx_um: Vector, light: Vector, grid: Grid) -> Volume:
    """Bright spots inside the nuclei, 0.2 to 0.9 um across."""
    keys, owner = cells.found.key, np.arange(len(cells.found.key))
    counts = (2 + uniform(keys, 50) * trait(specimen, 8, 3, 20)).astype(np.int64)
    counts[light <= 0] = 0
    owner = np.repeat(owner, counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    own = child(keys[owner], 500 + number)
    way = np.stack([normal(own, axis) for axis in range(3)], axis=1)
    way *= (0.8 * uniform(own, 3) ** 0.4 / np.sqrt((way**2).sum(axis=1)))[:, None]
    radius = uniform(own, 4, 0.1, 0.45) * trait(specimen, 9, 0.5, 1.0)
    weight = 4.2 * radius**3 * SOLID_LIGHT * light[owner] * trait(specimen, 10, 1.0, 3.0) * (0.3 / radius)
    centre = cells.found.position_zyx_um[owner] + way * (0.75 * radius_zyx_um[owner])
    return splat_balls(grid, centre, radius, weight)


def nuclei(specimen: Specimen, grid: Grid) -> Volume:
    """Rough ellipsoids, 5 to 12 um across, with chromatin texture, dark nucleoli and bright foci: float32 (Z, Y, X)."""
    style = chosen_style(specimen)
    spacing = cell_spacing(specimen) * (1.0 if style == "tissue" else 1.2)
    cells = cells_near(specimen.seed, "cells", spacing, specimen.half_um, grid)
    keys = cells.found.key
    usual = 0.46 * spacing if style == "tissue" else 4.2 * specimen.size
    across = np.minimum(usual * uniform(keys, 30, 0.75, 1.15), _REACH * spacing)
    tall = thin(specimen.half_um, cells.flat, across * uniform(keys, 31, 0.6, 1.0))
    radius = np.stack([tall, across, across * uniform(keys, 32, 0.6, 1.0)], axis=1)
    light = brightness(keys, 33, 0.6 * specimen.spread)
    light *= uniform(keys, 34) < min(1.0, 0.95 * specimen.density)
    wide = grid.padded(1)
    nodes = coarse_grid(wide, LATTICE_UM)
    whole = union(cells, nodes, gap_um=0.3, radius_zyx_um=radius, rough_um=0.25, light=light)
    # Chromatin is denser along the envelope, and gathers in patches of about 1 um.
    key = own_key(specimen, "chromatin")
    shade = whole.light * (1 + trait(specimen, 6, 0.0, 0.8) * np.clip(1 - np.abs(whole.level - 0.4) / 0.6, 0, 1))
    patch = np.float32(1) + np.float32(trait(specimen, 7, 0.1, 0.3)) * lattice_noise(child(key, 0), 0.9, nodes)
    shade = (shade * np.maximum(patch, 0)).astype(np.float32)
    _nucleoli(cells, nodes, radius, shade)
    inside = covered(refine(whole.level, nodes, wide))
    inside *= refine(shade, nodes, grid)
    grain = lattice_noise(child(key, 1), trait(specimen, 5, 0.2, 0.45) * specimen.size**0.5, grid)
    grain *= np.float32(trait(specimen, 4, 0.1, 0.3))
    grain += np.float32(1)
    inside *= np.maximum(grain, 0, out=grain) ** 2
    inside *= np.float32(0.6 * SOLID_LIGHT * math.prod(grid.voxel_zyx_um))
    if style == "foci" or trait(specimen, 3, 0, 1) < 0.4:
        inside += _foci(specimen, cells, radius, light, grid)
    return inside
