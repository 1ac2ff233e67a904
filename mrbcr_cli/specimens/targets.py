"""Test targets: gratings, line pairs of shrinking period, hollow bars and rings, each in its own window.

Invariant: a pattern lies inside its hash cell, so a box needs no others than the cells that it touches. Edges are
averaged over the voxel: a period below two voxels fades to grey instead of aliasing.
"""

from __future__ import annotations

import math

import numpy as np

from mrbcr_cli.specimens.field import Grid, Objects, Vector, Volume, log_uniform, offset_in, stratified, uniform
from mrbcr_cli.specimens.specimen import SOLID_LIGHT, Specimen, brightness, chosen_style, own_key


def _within(at: Vector, half: float, width: Vector | float) -> Vector:
    """The share of a voxel of `width` around `at` (um) that lies within `half` of zero."""
    upper, lower = np.minimum(at + width / 2, half), np.maximum(at - width / 2, -half)
    return np.clip((upper - lower) / width, 0, 1)


def _stripes(at: Vector, period: float, bar: float, width: float) -> Vector:
    """The share of a voxel of `width` around `at` that stripes cover: each `bar` of a period is bright."""
    upper, lower = (at + width / 2) / period, (at - width / 2) / period

    def summed(end: Vector) -> Vector:
        whole = np.floor(end)
        return whole * bar + np.minimum(end - whole, bar)

    return (summed(upper) - summed(lower)) * (period / width)


def _line_pairs(at: Vector, half: float, first_gap: float, width: float) -> Vector:
    """Pairs of lines across a window, their gap shrinking from pair to pair by a fifth."""
    shares = np.zeros_like(at)
    gap, place = first_gap, -half + first_gap
    thick = 0.25 * first_gap
    while place + gap < half and gap > 0.06:
        shares += _within(at - place, thick / 2, width) + _within(at - place - gap, thick / 2, width)
        place += gap + 1.5 * first_gap
        gap *= 0.8
    return shares


def _pattern(specimen: Specimen, style: str, found: Objects, i: int, cell_um: float, grid: Grid) -> Volume:
    key = found.key[i : i + 1]
    draw = [float(uniform(key, 10 + stream)[0]) for stream in range(8)]
    angle = draw[0] * math.pi
    _, vy, vx = grid.voxel_zyx_um
    z, y, x = (grid.centres_um(axis) - found.position_zyx_um[i, axis] for axis in range(3))
    u, v = y[:, None] * math.cos(angle) + x * math.sin(angle), x * math.cos(angle) - y[:, None] * math.sin(angle)
    wide = abs(math.cos(angle)) * vy + abs(math.sin(angle)) * vx
    half_u, half_v = cell_um * (0.1 + 0.2 * draw[1]), cell_um * (0.1 + 0.2 * draw[2])
    half_z = 0.15 + 0.6 * draw[3]
    depth = _within(z, half_z, grid.voxel_zyx_um[0])[:, None, None]
    window = _within(u, half_u, wide) * _within(v, half_v, wide)
    period = float(log_uniform(key, 20, 0.15, 2.0)[0]) * specimen.size
    if style == "gratings":
        plane = window * _stripes(u, period, 0.3 + 0.4 * draw[4], wide)
    elif style == "line_pairs":
        plane = window * _line_pairs(u, half_u, 0.3 + period, wide)
    elif style == "rings":
        radius = np.sqrt(u**2 + v**2)
        plane = _within(radius, min(half_u, half_v), wide) * _stripes(radius, period, 0.4, wide)
    else:
        wall = 0.08 + 0.15 * draw[5]
        thin = wall + 0.15 + 0.8 * draw[6] * specimen.size
        outer = _within(u, half_u * 1.3, wide) * _within(v, thin, wide)
        inner = _within(u, half_u * 1.3 - wall, wide) * _within(v, thin - wall, wide)
        hollow = _within(z, max(thin - wall, 0.05), grid.voxel_zyx_um[0])[:, None, None]
        return (outer * _within(z, thin, grid.voxel_zyx_um[0])[:, None, None] - inner * hollow).astype(np.float32)
    return (plane * depth).astype(np.float32)


def targets(specimen: Specimen, grid: Grid) -> Volume:
    """Gratings, line pairs, hollow bars or rings, 0.15 to 2 um in period at size 1: float32 (Z, Y, X) light."""
    style = chosen_style(specimen)
    cell = 7.0 / min(specimen.density, 8.0) ** 0.5 * max(1.0, specimen.size)
    deep = min(3.0, 2 * specimen.half_um)
    reach = 0.65 * cell
    low, high = grid.bounds_um(reach)
    found = stratified(own_key(specimen, "targets"), [deep, cell, cell], low, high)
    keep = (np.abs(found.position_zyx_um[:, 0]) <= specimen.half_um) & (uniform(found.key, 5) < 0.75)
    found = found.take(keep)
    light = brightness(found.key, 6, 0.6 * specimen.spread)
    canvas = np.zeros(grid.shape_zyx, np.float32)
    extent = np.array([1.3 + 0.95 * specimen.size, reach, reach])
    for i, at in enumerate(found.position_zyx_um):
        begin, end = grid.span(at - extent, at + extent)
        if all(a < b for a, b in zip(begin, end, strict=True)):
            box = grid.crop(begin, end)
            canvas[offset_in(box, grid)] += _pattern(specimen, style, found, i, cell, box) * np.float32(light[i])
    canvas *= np.float32(SOLID_LIGHT * math.prod(grid.voxel_zyx_um))
    return canvas
