"""Real sharp images as specimens: read, cleaned, split by image, and drawn smaller so that their pixels carry detail.

Invariant: an image belongs to training or to validation as a whole, and every plane drawn from it is downscaled until
its own blur is finer than the target resolution. Nothing outside the folder that is given is read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Recipe:
    """How one image file is best used; the defaults suit an unknown sharp image."""

    split: str = "train"
    shrink: tuple[float, float] = (1.5, 3.0)
    """Range of the downscaling factor."""
    prefilter_px: float = 0.0
    """Gaussian sigma against noise, before downscaling."""
    keep_rows: int | None = None
    """Rows from here on are left out (burned-in scale bar)."""
    background_window_px: int = 0
    """Half of a running minimum over this window is subtracted; 0 subtracts only a constant."""
    weight: float = 1.0


# Held out as whole images: pollen (the test folder holds a blurred copy of it), the neuron, the membranes.
# The two BPAE images are channels of one field and stay together; so do the two renderings of clathrin.
RECIPES: dict[str, Recipe] = {
    "pollen.tif": Recipe(split="validation", shrink=(1.2, 2.0)),
    "xy_16bit__rat_hippocampal_neuron.tif": Recipe(split="validation", shrink=(1.5, 2.5), background_window_px=61),
    "membrane2d.tif": Recipe(split="validation", shrink=(1.3, 2.0)),
    "BPAE_actin.tif": Recipe(weight=2.0),
    "BPAE_mito.tif": Recipe(weight=2.0),
    "maize_clsm.tif": Recipe(weight=1.5),
    "xyc_16bit__cell_dna_nup_mts_actin.tif": Recipe(shrink=(1.2, 2.2), weight=5.0),
    "xyc_16bit__hela-cells.tif": Recipe(keep_rows=460, background_window_px=81, shrink=(1.8, 3.0), weight=2.0),
    "xyc_16bit__nup_nuclei.tif": Recipe(shrink=(2.0, 3.0), prefilter_px=0.8),
    "xy_calibrated_16bit__nuclear_protein_control.tif": Recipe(shrink=(2.5, 5.0), prefilter_px=0.7),
    "xyz_8bit__chromosomes.tif": Recipe(shrink=(1.3, 2.0), prefilter_px=0.8, weight=0.5),
    "xyz_nuclear_envelope_drosophila.tif": Recipe(shrink=(1.5, 2.5), prefilter_px=0.9, weight=0.5),
    "render_20nm.tif": Recipe(shrink=(1.0, 2.0), weight=0.3),
    "clathrin_3d.asdf": Recipe(shrink=(1.0, 3.0), weight=1.0),
}
RENDER_NM = 10.0
"""Pixel of the rendered localisations."""


@dataclass(frozen=True)
class Source:
    """One image: its planes (each H x W float32, background near 0, bright structures near 1)."""

    name: str
    recipe: Recipe
    planes: tuple[Image, ...]


def _planes_of(path: Path) -> Iterator[Image]:
    if path.suffix == ".asdf":
        yield _render_localisations(path)
        return
    import tifffile

    with tifffile.TiffFile(path) as tif:
        stack = tif.series[0].asarray()
        axes = tif.series[0].axes
    if axes.endswith("S"):
        stack = np.moveaxis(stack, -1, 0)
    yield from stack.reshape(-1, *stack.shape[-2:]).astype(np.float32)


def _render_localisations(path: Path) -> Image:
    """Histogram of single-molecule positions (columns position_x, position_y in nm)."""
    import asdf

    with asdf.open(path) as file:
        columns = list(file.tree["columns"])
        table = np.array(file.tree["data"])
    x, y = table[:, columns.index("position_x")], table[:, columns.index("position_y")]
    bins = [np.arange(v.min(), v.max() + RENDER_NM, RENDER_NM) for v in (y, x)]
    counts = np.histogram2d(y, x, bins=bins)[0].astype(np.float32)
    smoothed: Image = ndimage.gaussian_filter(np.sqrt(counts), 0.6)
    return smoothed


def clean(plane: Image, recipe: Recipe) -> Image | None:
    """Take the background and the noise floor off a plane and scale it to about [0, 1]; None where nothing is left."""
    plane = plane[: recipe.keep_rows] if recipe.keep_rows else plane
    if recipe.prefilter_px:
        plane = ndimage.gaussian_filter(plane, recipe.prefilter_px)
    low = np.percentile(plane, 2.0)
    plane = plane - np.float32(low)
    if recipe.background_window_px:
        window = recipe.background_window_px
        floor = ndimage.gaussian_filter(ndimage.minimum_filter(plane, window), window / 2)
        plane = plane - 0.5 * floor
    # Noise from differences of neighbours in the darker half, where structures are few.
    dark = plane < np.median(plane)
    difference = (plane - np.roll(plane, 1, axis=1))[dark]
    noise = 1.4826 * float(np.median(np.abs(difference))) / np.sqrt(2.0) if difference.size else 0.0
    high = float(np.percentile(plane, 99.9))
    if not high > 8.0 * noise + 1e-6:
        return None
    cleaned: Image = np.clip(plane - 1.5 * noise, 0.0, 1.5 * high) / np.float32(high)
    return cleaned.astype(np.float32)


def load_sources(
    folder: Path, *, log: Callable[[str], None] = lambda text: print(text, file=sys.stderr)
) -> list[Source]:
    """Read every TIFF and localisation table of `folder`. Stacks give up to 12 evenly spaced planes.

    Raises SystemExit when the folder holds none.
    """
    sources = []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in {".tif", ".tiff", ".asdf"}):
        recipe = RECIPES.get(path.name, Recipe())
        try:
            planes = list(_planes_of(path))
        except ModuleNotFoundError as error:
            log(f"{path.name}: left out, {error}")
            continue
        every = max(1, len(planes) // 12)
        kept = [cleaned for plane in planes[::every] if (cleaned := clean(plane, recipe)) is not None]
        if kept:
            sources.append(Source(path.name, recipe, tuple(kept)))
        height, width = planes[0].shape
        log(f"{path.name}: {recipe.split}, {len(kept)} of {len(planes)} planes of {width}x{height} px")
    if not sources:
        raise SystemExit(f"no TIFF or localisation table in {folder}")
    return sources


def draw(rng: np.random.Generator, sources: list[Source], size: int) -> Image:
    """One plane (size, size): a random piece of a random image, shrunk, turned, its contrast varied.

    Pieces smaller than the field continue as their own mirror image.
    """
    import torch

    weights = np.array([s.recipe.weight for s in sources])
    source = sources[int(rng.choice(len(sources), p=weights / weights.sum()))]
    plane = source.planes[int(rng.integers(len(source.planes)))]
    shrink = float(rng.uniform(*source.recipe.shrink))
    height, width = (min(n, int(size * shrink)) for n in plane.shape)
    y, x = (int(rng.integers(0, n - m + 1)) for n, m in zip(plane.shape, (height, width), strict=True))
    piece = torch.from_numpy(np.ascontiguousarray(plane[y : y + height, x : x + width]))[None, None]
    small_shape = (min(size, round(height / shrink)), min(size, round(width / shrink)))
    small = torch.nn.functional.interpolate(piece, size=small_shape, mode="bicubic", antialias=True)[0, 0].numpy()
    pad = [(size - n) // 2 for n in small.shape]
    small = np.pad(small, [(p, size - n - p) for p, n in zip(pad, small.shape, strict=True)], mode="symmetric")
    small = np.rot90(small, int(rng.integers(4)))
    if rng.random() < 0.5:
        small = small[:, ::-1]
    contrast: Image = np.clip(small, 0.0, None).astype(np.float32) ** np.float32(rng.uniform(0.8, 1.7))
    return contrast
