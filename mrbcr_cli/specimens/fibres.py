"""Curved fibres: meshes, asters, bundles, branching, beaded, and thick worms such as mitochondria.

Invariant: a fibre is a chain of short straight steps that its own key draws, no longer than the reach that is
searched around a box. Its light is 200 per um times the brightness, whatever the voxel size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mrbcr_cli.specimens.field import (
    Grid,
    Indices,
    Keys,
    Objects,
    Vector,
    Volume,
    child,
    normal,
    scatter,
    uniform,
)
from mrbcr_cli.specimens.specimen import (
    LINE_LIGHT,
    SOLID_LIGHT,
    Specimen,
    brightness,
    chosen_style,
    own_key,
    place_bounds,
    trait,
)
from mrbcr_cli.specimens.splat import solid_balls, splat_segments

_STEP_UM = 0.25
_KNOT_UM = 2.0
"""The direction is smooth over this length."""


@dataclass(frozen=True)
class Fibres:
    """Chains of points: `path_zyx_um` (n, k, 3), `weight` (n, k) of the step from each point (0: none)."""

    path_zyx_um: Vector
    weight: Vector


def _smooth_series(keys: Keys, stream: int, count: int, spacing: float) -> Vector:
    """(n, count) smooth random series of about unit variance: cubic B-splines through draws every `spacing` steps."""
    at = np.arange(count) / spacing
    nodes = int(at[-1]) + 4
    series = np.zeros((len(keys), count))
    for node in range(nodes):
        r = np.abs(at - (node - 1))
        weight = np.where(r < 1, 2 / 3 - r**2 + r**3 / 2, np.clip(2 - r, 0, None) ** 3 / 6)
        series += 1.44 * normal(keys, stream + node)[:, None] * weight
    return series


def _walk(start: Vector, keys: Keys, azimuth: Vector, rise: Vector, longest_um: float, bend: float) -> Vector:
    """(n, k, 3) chains from `start`, of persistent direction: `azimuth` in the plane, `rise` out of it (radians)."""
    count = max(2, round(longest_um / _STEP_UM))
    spacing = _KNOT_UM / _STEP_UM
    wander = _smooth_series(keys, 1000, count, spacing)
    drift = _smooth_series(keys, 2000, count, 4 * spacing)
    turned = azimuth[:, None] + bend * ((wander - wander[:, :1]) * 0.4 + (drift - drift[:, :1]))
    rising = rise[:, None] * np.cos(0.5 * bend * (drift + wander))
    steps = _STEP_UM * np.stack([np.sin(rising), np.cos(rising) * np.sin(turned), np.cos(rising) * np.cos(turned)], -1)
    return start[:, None, :] + np.cumsum(steps, axis=1)


def _ends(keys: Keys, count: int, least: float) -> Vector:
    """(n, count) 1 where a chain of a drawn share (`least` to 1) of the full length goes on, else 0."""
    share = uniform(keys, 10, least, 1.0)
    return (np.arange(count)[None, :] < (share * (count - 1))[:, None]).astype(np.float64)


def _children(keys: Keys, counts: Indices, tag: int) -> tuple[Keys, Indices]:
    owner = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    return child(keys[owner], number + tag), owner


def _rise_sigma(specimen: Specimen, length_um: float) -> float:
    return min(0.5, 0.6 * specimen.half_um / length_um)


def _main_direction(specimen: Specimen, position_zyx_um: Vector) -> Vector:
    """The direction (radians) that aligned fibres share around each place: it turns slowly across the field."""
    angle = np.full(len(position_zyx_um), trait(specimen, 11, 0, 2 * math.pi))
    for wave in range(2):
        period = trait(specimen, 12 + wave, 40, 90)
        angle += 0.35 * np.sin(
            2 * math.pi * position_zyx_um[:, 1 + wave] / period + trait(specimen, 14 + wave, 0, 6.28)
        )
    return angle


def _mesh(
    specimen: Specimen, grid: Grid, longest_um: float, per_um3: float, *, aligned: bool
) -> tuple[Objects, Fibres]:
    cell = 8.0
    low, high = place_bounds(specimen, grid, 1.4 * longest_um + 1.0)
    found = scatter(own_key(specimen, "fibres"), [cell] * 3, per_um3 * cell**3, low, high)
    azimuth = uniform(found.key, 4, 0, 2 * math.pi)
    if aligned:
        azimuth = _main_direction(specimen, found.position_zyx_um) + 0.12 * normal(found.key, 4)
        azimuth = azimuth + np.where(uniform(found.key, 5) < 0.5, 0, math.pi)
    rise = _rise_sigma(specimen, longest_um) * normal(found.key, 6)
    bend = trait(specimen, 1, 0.25, 1.1) * (0.3 if aligned else 1.0)
    path = _walk(found.position_zyx_um, found.key, azimuth, rise, longest_um, bend)
    weight = _ends(found.key, path.shape[1], 0.3) * brightness(found.key, 7, specimen.spread)[:, None]
    return found, Fibres(path, weight)


def _asters(specimen: Specimen, grid: Grid, longest_um: float) -> Fibres:
    cell = 16.0
    low, high = place_bounds(specimen, grid, longest_um + 3.0)
    # The centres of cells lie near the middle of a thin specimen, a few cells apart.
    low[0], high[0] = max(low[0], -0.3 * specimen.half_um), min(high[0], 0.3 * specimen.half_um)
    deep = min(cell, 0.6 * specimen.half_um)
    centres = scatter(own_key(specimen, "centres"), [deep, cell, cell], 2.0 * deep / min(cell, 2 * deep), low, high)
    counts = ((50 + 100 * uniform(centres.key, 2)) * min(specimen.density, 16.0) ** 0.5).astype(np.int64) + 3
    keys, owner = _children(centres.key, counts, 100)
    azimuth = uniform(keys, 4, 0, 2 * math.pi)
    rise = _rise_sigma(specimen, longest_um) * normal(keys, 6)
    away = 0.2 + 2.5 * uniform(keys, 5) ** 2
    way = np.stack([np.sin(rise), np.cos(rise) * np.sin(azimuth), np.cos(rise) * np.cos(azimuth)], axis=1)
    start = centres.position_zyx_um[owner] + away[:, None] * way
    path = _walk(start, keys, azimuth, rise, longest_um, trait(specimen, 1, 0.25, 0.7))
    light = 0.6 * brightness(centres.key, 7, specimen.spread)[owner] * brightness(keys, 7, 0.3)
    return Fibres(path, _ends(keys, path.shape[1], 0.25) * light[:, None])


def _bundles(specimen: Specimen, found: Objects, fibres: Fibres) -> Fibres:
    """Several fibres side by side along each path, each with its own ends."""
    counts = (2 + uniform(found.key, 20) * trait(specimen, 2, 2, 12)).astype(np.int64)
    keys, owner = _children(found.key, counts, 200)
    path = fibres.path_zyx_um[owner]
    count = path.shape[1]
    away = 0.12 * _smooth_series(keys, 3000, count, 12.0)
    up = 0.12 * _smooth_series(keys, 4000, count, 12.0)
    along = np.gradient(path, axis=1) / _STEP_UM
    side = np.stack([up, away * along[:, :, 2], -away * along[:, :, 1]], axis=2)
    first = (0.3 * uniform(keys, 22) * count)[:, None]
    weight = _ends(keys, count, 0.4) * (np.arange(count)[None, :] >= first)
    light = 0.5 * brightness(found.key, 7, specimen.spread)[owner]
    return Fibres(path + side, weight * light[:, None])


def _branches(specimen: Specimen, found: Objects, fibres: Fibres, longest_um: float) -> Fibres:
    """Side branches that leave each path at a drawn point, thinner than it."""
    counts = (uniform(found.key, 30) * 6).astype(np.int64)
    keys, owner = _children(found.key, counts, 300)
    count = fibres.path_zyx_um.shape[1]
    living = fibres.weight[owner].astype(bool).sum(axis=1)
    at = np.clip((uniform(keys, 31) * living).astype(np.int64), 1, count - 2)
    start = fibres.path_zyx_um[owner, at]
    along = fibres.path_zyx_um[owner, at + 1] - start
    turn = np.where(uniform(keys, 32) < 0.5, -1, 1) * uniform(keys, 33, 0.4, 1.1)
    azimuth = np.arctan2(along[:, 1], along[:, 2]) + turn
    rise = _rise_sigma(specimen, longest_um) * normal(keys, 6)
    path = _walk(start, keys, azimuth, rise, 0.4 * longest_um, trait(specimen, 1, 0.3, 0.9))
    light = 0.6 * fibres.weight[owner].max(axis=1, initial=0.0)
    return Fibres(path, _ends(keys, path.shape[1], 0.2) * light[:, None])


def _lines(grid: Grid, fibres: Fibres) -> Volume:
    start, end = fibres.path_zyx_um[:, :-1].reshape(-1, 3), fibres.path_zyx_um[:, 1:].reshape(-1, 3)
    weight = fibres.weight[:, :-1].reshape(-1)
    there = weight > 0
    return splat_segments(grid, start[there], end[there], LINE_LIGHT * weight[there], 1.5 * _STEP_UM)


def _worms(specimen: Specimen, grid: Grid, *, outlined: bool) -> Volume:
    longest = trait(specimen, 3, 2.0, 7.0) * specimen.size
    thick = trait(specimen, 4, 0.14, 0.32) * specimen.size
    _, fibres = _mesh(specimen, grid, longest, 0.025 * specimen.density / specimen.size**2, aligned=False)
    # Balls half a radius apart make a smooth tube.
    parts = max(1, math.ceil(_STEP_UM / (0.5 * thick)))
    share = np.arange(parts) / parts
    path, weight = fibres.path_zyx_um, fibres.weight[:, :-1]
    steps = path[:, 1:] - path[:, :-1]
    centres = (path[:, :-1, None, :] + share[:, None] * steps[:, :, None, :]).reshape(-1, 3)
    bright = np.repeat(weight.reshape(-1), parts)
    low, high = grid.bounds_um(thick + 2 * max(grid.voxel_zyx_um))
    there = (bright > 0) & np.all((centres >= low) & (centres <= high), axis=1)
    centres, bright = centres[there], bright[there]
    light = np.float32(SOLID_LIGHT * math.prod(grid.voxel_zyx_um))
    tube = solid_balls(grid, centres, thick, bright)
    if outlined:
        inner = solid_balls(grid, centres, 0.7 * thick, bright)
        tube = np.maximum(tube - np.float32(0.9) * inner, 0)
    return tube * light


def filaments(specimen: Specimen, grid: Grid) -> Volume:
    """Microtubule-like curved fibres in one of seven styles: float32 (Z, Y, X) light in each voxel of `grid`."""
    style = chosen_style(specimen)
    if style in ("worms", "outlined_worms"):
        return _worms(specimen, grid, outlined=style == "outlined_worms")
    longest = trait(specimen, 3, 8.0, 18.0) * min(specimen.size, 1.6)
    if style == "asters":
        return _lines(grid, _asters(specimen, grid, longest))
    per_um3 = {"mesh": 0.035, "bundles": 0.008, "branches": 0.01, "beaded": 0.015}[style] * specimen.density
    found, fibres = _mesh(specimen, grid, longest, per_um3, aligned=trait(specimen, 5, 0, 1) < 0.35)
    if style == "bundles":
        return _lines(grid, _bundles(specimen, found, fibres))
    if style == "branches":
        return _lines(grid, fibres) + _lines(grid, _branches(specimen, found, fibres, longest))
    if style == "beaded":
        count = fibres.path_zyx_um.shape[1]
        grains = np.stack([np.exp(1.3 * normal(found.key, 5000 + k) - 0.8) for k in range(count)], axis=1)
        fibres = Fibres(fibres.path_zyx_um, fibres.weight * grains)
    return _lines(grid, fibres)
