"""Render any box of a specimen, and draw specimens at random.

Invariant: a sub-box renders to exactly the values of a crop from a larger box with the same voxels; so a volume of
any size can be made block by block. Halving the voxels and summing 2 x 2 x 2 gives about the same values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from mrbcr_cli.errors import InputError
from mrbcr_cli.specimens.cells import membranes, nuclei, regions
from mrbcr_cli.specimens.fibres import filaments
from mrbcr_cli.specimens.field import Grid, Triple, Vector, Volume, make_grid
from mrbcr_cli.specimens.points import beads, vesicles
from mrbcr_cli.specimens.specimen import KINDS, Specimen, chosen_style, split_kind, trait
from mrbcr_cli.specimens.targets import targets
from mrbcr_cli.specimens.textures import cytoplasm

_SIMPLE: dict[str, Callable[[Specimen, Grid], Volume]] = {
    "beads": beads,
    "filaments": filaments,
    "membranes": membranes,
    "vesicles": vesicles,
    "nuclei": nuclei,
    "cytoplasm": cytoplasm,
    "targets": targets,
}

_Part = tuple[str, str, float, bool]
"""Kind, style, light, and whether it stays inside the cell-like regions."""

_MIXTURES: dict[str, tuple[tuple[_Part, ...], ...]] = {
    "epithelium": (
        (("membranes", "cells", 1.0, False), ("nuclei", "tissue", 0.5, False)),
        (("membranes", "mosaic", 1.0, False), ("nuclei", "tissue", 0.4, False), ("vesicles", "shells", 0.6, False)),
    ),
    "culture": (
        (("filaments", "asters", 1.0, True), ("cytoplasm", "grain", 0.06, True)),
        (("filaments", "bundles", 1.0, True), ("cytoplasm", "grain", 0.15, True), ("beads", "points", 0.7, False)),
        (("nuclei", "culture", 0.6, False), ("filaments", "mesh", 1.0, False)),
    ),
    "organelles": (
        (("vesicles", "both", 1.0, True), ("cytoplasm", "grain", 0.15, True)),
        (("filaments", "worms", 0.8, True), ("cytoplasm", "network", 0.4, True)),
        (("filaments", "outlined_worms", 1.0, True), ("vesicles", "clustered", 0.8, True)),
    ),
    "spots": (
        (("beads", "points", 1.0, True), ("cytoplasm", "grain", 0.1, True)),
        (("beads", "clusters", 1.0, True), ("nuclei", "culture", 0.2, False)),
        (("beads", "puncta", 1.0, False), ("filaments", "branches", 0.7, False)),
    ),
    "tissue": (
        (("cytoplasm", "voids", 0.5, False), ("filaments", "bundles", 0.8, False)),
        (("cytoplasm", "patches", 0.5, False), ("nuclei", "tissue", 0.7, False)),
        (("cytoplasm", "strands", 0.5, False), ("beads", "points", 1.0, False), ("vesicles", "filled", 0.5, False)),
    ),
}


def _mixed(specimen: Specimen, grid: Grid, inside: Volume | None) -> Volume:
    recipes = _MIXTURES[chosen_style(specimen)]
    parts = recipes[int(trait(specimen, 1, 0, len(recipes)))]
    if inside is None and any(confined for *_, confined in parts):
        inside = regions(dataclasses.replace(specimen, coverage=trait(specimen, 2, 0.4, 0.85)), grid)
    canvas = np.zeros(grid.shape_zyx, np.float32)
    for number, (kind, style, light, confined) in enumerate(parts):
        part = dataclasses.replace(specimen, kind=kind, style=style)
        own = _SIMPLE[kind](part, grid)
        own *= np.float32(light * trait(specimen, 3 + number, 0.6, 1.5))
        if confined and inside is not None:
            own *= inside
        canvas += own
    return canvas


def _render(specimen: Specimen, grid: Grid) -> Volume:
    inside = regions(specimen, grid) if specimen.coverage < 1 else None
    volume = _mixed(specimen, grid, inside) if specimen.kind == "mixed" else _SIMPLE[specimen.kind](specimen, grid)
    if inside is not None:
        volume *= inside
    if specimen.thickness_um is not None:
        volume *= _share_in_slab(specimen.half_um, grid)[:, None, None].astype(np.float32)
    return volume


def _share_in_slab(half_um: float, grid: Grid) -> Vector:
    edges = grid.edges_um(0)
    upper, lower = np.minimum(edges[1:], half_um), np.maximum(edges[:-1], -half_um)
    return np.clip((upper - lower) / grid.voxel_zyx_um[0], 0, 1)


def render(specimen: Specimen, origin_zyx_um: Triple, shape_zyx: tuple[int, int, int], voxel_zyx_um: Triple) -> Volume:
    """The light emitted in each voxel of a box: float32 (Z, Y, X), finite and non-negative.

    `origin_zyx_um` is the low corner of the first voxel (taken to the nearest 1/65536 voxel), so voxel k spans
    origin + k * voxel to origin + (k + 1) * voxel; the light is the density's integral over the voxel.
    Raises InputError for voxels that are not positive, empty shapes and positions that are not finite.
    """
    for name, triple in (("origin", origin_zyx_um), ("shape", shape_zyx), ("voxel size", voxel_zyx_um)):
        if len(triple) != 3:
            raise InputError(f"specimen {name} is {triple}: give three numbers, z, y and x")
    if not all(0 < side < math.inf for side in voxel_zyx_um):
        raise InputError(f"voxel size is {voxel_zyx_um} um: give three positive numbers, z, y and x")
    if not all(n > 0 for n in shape_zyx):
        raise InputError(f"shape is {shape_zyx}: give three numbers of at least 1, z, y and x")
    if not all(math.isfinite(at) for at in origin_zyx_um):
        raise InputError(f"origin is {origin_zyx_um} um: give three finite numbers, z, y and x")
    grid = make_grid(origin_zyx_um, shape_zyx, voxel_zyx_um)
    volume = np.zeros(shape_zyx, np.float32)
    filled = np.flatnonzero(_share_in_slab(specimen.half_um, grid))
    if len(filled):
        first, last = int(filled[0]), int(filled[-1]) + 1
        step = max(1, _PIECE_VOXELS // (shape_zyx[1] * shape_zyx[2]))
        for low in range(first, last, step):
            high = min(low + step, last)
            piece = grid.crop((low, 0, 0), (high, shape_zyx[1], shape_zyx[2]))
            volume[low:high] = _render(specimen, piece)
    return volume


_PIECE_VOXELS = 1 << 22
"""Boxes are rendered in pieces of this many voxels, which bounds the memory to about 40 bytes for each of them."""


_DENSITIES = {"beads": (0.1, 60.0), "filaments": (0.25, 6.0), "vesicles": (0.15, 5.0), "mixed": (0.4, 3.0)}
"""The range of densities that are drawn, from a few structures to crowded."""

_SHARES = {"filaments": 1.5, "mixed": 2.0, "targets": 0.5}
"""How often a kind is drawn, against the others."""


def draw_specimen(
    rng: np.random.Generator, kinds: Sequence[str] | None = None, *, thickness_um: float | None = None
) -> Specimen:
    """A random specimen of one of `kinds` (all by default), sparse to crowded, of even or uneven brightness.

    A kind may name its style ("beads:doublets"); one that is named twice is drawn twice as often. Raises InputError for
    unknown kinds and styles.
    """
    chosen = [split_kind(text) for text in kinds or KINDS]
    shares = np.array([_SHARES.get(kind, 1.0) for kind, _ in chosen])
    kind, style = chosen[int(rng.choice(len(chosen), p=shares / shares.sum()))]
    seed = int(rng.integers(1 << 62))
    low, high = _DENSITIES.get(kind, (0.3, 4.0))
    density = math.exp(rng.uniform(math.log(low), math.log(high)))
    size = math.exp(rng.uniform(math.log(0.6), math.log(1.7)))
    spread = float(rng.uniform(0.0, 1.0))
    coverage = float(rng.uniform(0.3, 0.9)) if rng.random() < 0.3 else 1.0
    return Specimen(
        kind,
        seed,
        style,
        density=round(density, 4),
        size=round(size, 4),
        spread=round(spread, 4),
        coverage=round(coverage, 4),
        thickness_um=thickness_um,
    )
