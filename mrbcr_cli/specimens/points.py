"""Beads and vesicles: many small round things.

Invariant: each object draws its place, radius and brightness from its own key; its light does not depend on the
voxel size (points 50, solids 1000 per um3, shells 250 per um2, times the brightness).
"""

from __future__ import annotations

import math

import numpy as np

from mrbcr_cli.specimens.field import (
    Grid,
    Indices,
    Keys,
    Objects,
    Vector,
    Volume,
    child,
    log_uniform,
    normal,
    scatter,
    uniform,
)
from mrbcr_cli.specimens.specimen import (
    POINT_LIGHT,
    SHEET_LIGHT,
    SOLID_LIGHT,
    Specimen,
    brightness,
    chosen_style,
    own_key,
    place_bounds,
    trait,
)
from mrbcr_cli.specimens.splat import splat_balls, splat_points, splat_shells

_CELL_UM = 6.0


def _scatter(specimen: Specimen, grid: Grid, tag: str, per_um3: float, reach_um: float) -> Objects:
    low, high = place_bounds(specimen, grid, reach_um)
    return scatter(own_key(specimen, tag), [_CELL_UM] * 3, per_um3 * _CELL_UM**3, low, high)


def _offspring(parents: Objects, least: int, most: int) -> tuple[Keys, Indices]:
    """Keys of the children of each parent, `least` to `most` each, and the index of the parent of each."""
    counts = (least + uniform(parents.key, 70) * (most + 1 - least)).astype(np.int64)
    owner = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    return child(parents.key[owner], number + 71), owner


def clustered(
    specimen: Specimen, grid: Grid, per_um3: float, sigma_um: float, members: int, reach_um: float
) -> Objects:
    """Objects in clusters of about `members`, each cluster a Gaussian cloud of `sigma_um`; `per_um3` objects in all."""
    parents = _scatter(specimen, grid, "clusters", per_um3 / members, 3 * sigma_um + reach_um)
    keys, owner = _offspring(parents, max(1, members // 2), members + members // 2)
    width = sigma_um * uniform(parents.key, 60, 0.4, 1.0)[owner]
    offset = np.stack([normal(keys, axis) for axis in range(3)], axis=1) * width[:, None]
    if specimen.half_um < 3 * sigma_um:
        offset[:, 0] *= specimen.half_um / (3 * sigma_um)
    return Objects(keys, parents.position_zyx_um[owner] + offset)


def beads(specimen: Specimen, grid: Grid) -> Volume:
    """Sub-diffraction points (evenly spread, in clusters, patches or pairs) and beads of 0.2 um times the size."""
    style = chosen_style(specimen)
    margin = 2 * max(grid.voxel_zyx_um)
    if style == "beads":
        found = _scatter(specimen, grid, "beads", 0.04 * specimen.density, margin + specimen.size)
        radius = 0.1 * specimen.size * (1 + 0.05 * normal(found.key, 3))
        # A bead of the usual size is about as bright as a point: its dye is diluted when it grows.
        volume = 4 / 3 * math.pi * radius**3 / specimen.size**1.5
        weight = volume * 8 * SOLID_LIGHT * brightness(found.key, 4, 0.3 * specimen.spread)
        return splat_balls(grid, found.position_zyx_um, radius, weight)
    if style == "doublets":
        return _doublets(specimen, grid, margin)
    if style == "clusters":
        sigma = trait(specimen, 1, 0.3, 1.5) * specimen.size
        found = clustered(specimen, grid, 0.1 * specimen.density, sigma, int(trait(specimen, 2, 4, 30)), margin)
    else:
        found = _scatter(specimen, grid, "points", 0.06 * specimen.density, margin)
    if style == "puncta":
        found = found.take(uniform(found.key, 9) < _patches(specimen, found.position_zyx_um))
    weight = POINT_LIGHT * brightness(found.key, 4, specimen.spread)
    return splat_points(grid, found.position_zyx_um, weight)


def _doublets(specimen: Specimen, grid: Grid, margin: float) -> Volume:
    """Two points side by side, 0.1 to 1 um apart at size 1, nearly alike; three in ten are single points instead."""
    most = 1.0 * specimen.size
    middles = _scatter(specimen, grid, "doublets", 0.04 * specimen.density, margin + most)
    apart = log_uniform(middles.key, 11, 0.1, 1.0) * specimen.size
    angle = uniform(middles.key, 12, 0.0, 2 * math.pi)
    half = np.stack([np.zeros_like(angle), np.sin(angle), np.cos(angle)], axis=1) * (apart / 2)[:, None]
    light = POINT_LIGHT * brightness(middles.key, 4, specimen.spread)
    share = 0.5 + uniform(middles.key, 13, -0.15, 0.15)
    share = np.where(uniform(middles.key, 14) < 0.3, 0.0, share)
    canvas = splat_points(grid, middles.position_zyx_um - half, light * (1 - share))
    canvas += splat_points(grid, middles.position_zyx_um + half, light * share)
    return canvas


def _patches(specimen: Specimen, position_zyx_um: Vector) -> Vector:
    """How likely a point is kept at each place (0 to 1): high along a few smooth, large patches."""
    total = np.zeros(len(position_zyx_um))
    for wave in range(6):
        angle, period = trait(specimen, 20 + wave, 0, 2 * math.pi), trait(specimen, 30 + wave, 8, 25)
        along = position_zyx_um[:, 1] * math.sin(angle) + position_zyx_um[:, 2] * math.cos(angle)
        along = along + 0.7 * position_zyx_um[:, 0] * math.sin(wave)
        total += np.sin(2 * math.pi * along / period + trait(specimen, 40 + wave, 0, 2 * math.pi))
    return np.clip(0.35 + 0.45 * total, 0.02, 1.0)


def _apart(found: Objects, radius_um: Vector) -> Objects:
    """Drop each ball that overlaps much with one of a lower key: a decision of the neighbourhood alone."""
    from scipy.spatial import cKDTree

    if len(found.key) < 2:
        return found
    pairs = cKDTree(found.position_zyx_um).query_pairs(1.7 * float(radius_um.max()) + 1e-9, output_type="ndarray")
    a, b = pairs[:, 0], pairs[:, 1]
    gap = np.sqrt(((found.position_zyx_um[a] - found.position_zyx_um[b]) ** 2).sum(axis=1))
    close = gap < 0.85 * (radius_um[a] + radius_um[b])
    a, b = a[close], b[close]
    kept = np.ones(len(found.key), np.bool_)
    kept[np.where(found.key[a] > found.key[b], a, b)] = False
    return found.take(kept)


def vesicles(specimen: Specimen, grid: Grid) -> Volume:
    """Shells and filled balls, 0.1 to 1.5 um across at size 1, slightly out of round; small ones are more common."""
    style = chosen_style(specimen)
    largest = trait(specimen, 1, 0.25, 0.75) * specimen.size
    smallest = 0.05 * specimen.size
    mean_volume = 4.2 * largest**3 / 4
    per_um3 = specimen.density * min(0.3, 0.03 / mean_volume)
    reach = 3 * largest + 2 * max(grid.voxel_zyx_um)
    if style == "clustered":
        found = clustered(specimen, grid, per_um3, 2.0 * specimen.size, int(trait(specimen, 2, 6, 25)), reach)
    else:
        found = _scatter(specimen, grid, "vesicles", per_um3, reach)
    found = _apart(found, log_uniform(found.key, 3, smallest, largest))
    radius = log_uniform(found.key, 3, smallest, largest)
    stretch = np.stack([uniform(found.key, 5 + axis, 0.75, 1.0) for axis in range(3)], axis=1)
    bright = brightness(found.key, 4, specimen.spread)
    share = {"shells": 0.0, "filled": 1.0, "both": 0.4, "clustered": 0.2}[style]
    solid = uniform(found.key, 8) < share
    canvas = np.zeros(grid.shape_zyx, np.float32)
    if solid.any():
        # Small granules are dense with dye, or they would not show beside large ones.
        weight = 4 / 3 * math.pi * radius**3 * SOLID_LIGHT * bright * np.clip(0.4 / radius, 0.7, 4)
        canvas += splat_balls(grid, found.position_zyx_um[solid], radius[solid], weight[solid], stretch[solid])
    hollow = ~solid
    if hollow.any():
        weight = 4 * math.pi * radius**2 * SHEET_LIGHT * bright * np.clip(0.3 / radius, 0.8, 2)
        canvas += splat_shells(grid, found.position_zyx_um[hollow], radius[hollow], weight[hollow], stretch[hollow])
    return canvas
