"""Cytoplasm and tissue: textures that fill space, made of lattice noise on several scales.

Invariant: the density at a place is a function of the place and the key alone. Noise is averaged over the voxel
before it is bent, so that fine grain fades with large voxels rather than aliasing.
"""

from __future__ import annotations

import math

import numpy as np

from mrbcr_cli.specimens.cells import LATTICE_UM, cell_spacing, cells_near, thin, union
from mrbcr_cli.specimens.field import Grid, Volume, child, coarse_grid, lattice_noise, refine, uniform
from mrbcr_cli.specimens.specimen import SOLID_LIGHT, Specimen, brightness, chosen_style, own_key, trait
from mrbcr_cli.specimens.splat import covered


def _lively(noise: Volume, strength: float) -> Volume:
    """Turn noise into a skewed factor of mean about 1, never negative: close to log-normal, and cheap."""
    noise *= np.float32(0.5 * strength)
    noise += np.float32(1)
    np.maximum(noise, 0, out=noise)
    noise *= noise
    noise *= np.float32(1 / (1 + 0.25 * strength**2))
    return noise


def _ridge(noise: Volume, width: float) -> Volume:
    """1 where the noise is zero, falling off over `width`: sheets."""
    noise *= np.float32(1 / width)
    noise *= noise
    noise += np.float32(1)
    np.reciprocal(noise, out=noise)
    noise *= noise
    return noise


def _packed(specimen: Specimen, grid: Grid) -> Volume:
    """Cells side by side, each of its own brightness, most with a darker nucleus."""
    spacing = cell_spacing(specimen)
    cells = cells_near(specimen.seed, "cells", spacing, specimen.half_um, grid)
    keys = cells.found.key
    across = spacing * uniform(keys, 30, 0.5, 0.9)
    radius = np.stack(
        [thin(specimen.half_um, cells.flat, across), across, across * uniform(keys, 31, 0.7, 1.0)], axis=1
    )
    light = brightness(keys, 32, specimen.spread) * (uniform(keys, 33) < min(1.0, 0.8 * specimen.density))
    wide = grid.padded(1)
    nodes = coarse_grid(wide, LATTICE_UM)
    gap, rough = trait(specimen, 8, 0.1, 0.6), trait(specimen, 9, 0.2, 0.6)
    body = union(cells, nodes, gap_um=gap, radius_zyx_um=radius, rough_um=rough, light=light)
    core = union(cells, nodes, gap_um=gap + 0.8, radius_zyx_um=0.5 * radius, rough_um=0.15, light=light)
    shade = refine(body.light, nodes, grid) * covered(refine(body.level, nodes, wide))
    dark = covered(refine(core.level, nodes, wide))
    dark *= np.float32(-trait(specimen, 10, 0.4, 0.95))
    dark += np.float32(1)
    shade *= dark
    return shade


def cytoplasm(specimen: Specimen, grid: Grid) -> Volume:
    """Dense texture: grain, with voids, strands, a network of threads, or patches: float32 (Z, Y, X) light."""
    style = chosen_style(specimen)
    key = own_key(specimen, "texture")
    fine = trait(specimen, 1, 0.18, 0.5) * specimen.size
    broad = trait(specimen, 2, 1.0, 3.0) * specimen.size
    contrast = trait(specimen, 3, 0.4, 1.0) * min(2.0, 0.5 + specimen.spread)
    grain = _lively(lattice_noise(child(key, 0), fine, grid), contrast)
    clouds = _lively(lattice_noise(child(key, 1), broad, grid), 0.5 * contrast)
    if style == "network":
        # Threads lie where two independent noises are both near zero.
        first = lattice_noise(child(key, 2), 0.6 * broad, grid)
        second = lattice_noise(child(key, 3), 0.6 * broad, grid)
        first *= first
        second *= second
        first += second
        width = np.float32(trait(specimen, 4, 0.2, 0.45) * math.sqrt(min(4.0, specimen.density)))
        threads = np.reciprocal(np.float32(1) + first * (1 / width**2), dtype=np.float32)
        clouds *= np.float32(1.5) * threads * threads + np.float32(trait(specimen, 5, 0.0, 0.15))
    elif style == "strands":
        folded = lattice_noise(child(key, 2), [broad, 0.5 * broad, 0.9 * broad], grid)
        sheets = _ridge(folded, trait(specimen, 4, 0.15, 0.5))
        clouds *= sheets + np.float32(trait(specimen, 5, 0.0, 0.3))
    elif style == "voids":
        holes = lattice_noise(child(key, 2), 0.7 * broad, grid)
        holes *= np.float32(trait(specimen, 4, 3, 8))
        holes += np.float32(trait(specimen, 4, 3, 8) * trait(specimen, 5, 0.4, 1.2))
        clouds *= np.clip(holes, np.float32(0.03), np.float32(1), out=holes)
    elif style == "patches":
        patch = lattice_noise(child(key, 2), 1.5 * broad, grid)
        patch -= np.float32(trait(specimen, 5, -0.5, 0.8))
        clouds *= np.clip(patch, 0, 1.5, out=patch)
    elif style == "cells":
        clouds *= _packed(specimen, grid)
    clouds *= grain
    clouds *= np.float32(0.6 * SOLID_LIGHT * math.prod(grid.voxel_zyx_um))
    return clouds
