"""Turn the sharp images of a folder into clean sources for `simulate pairs` and `train`, held-out images apart.

Invariant: an image belongs to OUT/train or to OUT/test as a whole, channels of one field together, and each is
shrunk until its own blur and noise are finer than the finest target. Only the folder that is given is read.

    python examples/training/prepare_sources.py SHARP_IMAGES OUT

SHARP_IMAGES are the images that README.md of this folder names with their licences; any other image is used as it is,
shrunk 1.5 times. Reading a table of localisations (.asdf) wants the asdf package; without it that file is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Recipe:
    """How one image file is best used; the defaults suit an unknown sharp image."""

    split: str = "train"
    shrink: float = 1.5
    prefilter_px: float = 0.0
    """Gaussian sigma against noise, before shrinking."""
    keep_rows: int | None = None
    """Rows from here on are left out (burned-in scale bar)."""
    background_window_px: int = 0
    """Half of a running minimum over this window is subtracted; 0 subtracts only a constant."""


# Held out: pollen (a blurred copy of it is a public test image), the neuron, the membranes. The two BPAE images are
# channels of one field and stay together; so do the two renderings of clathrin.
RECIPES: dict[str, Recipe] = {
    "pollen.tif": Recipe("test", 1.2),
    "xy_16bit__rat_hippocampal_neuron.tif": Recipe("test", 1.5, background_window_px=61),
    "membrane2d.tif": Recipe("test", 1.3),
    "BPAE_actin.tif": Recipe(),
    "BPAE_mito.tif": Recipe(),
    "maize_clsm.tif": Recipe(),
    "xyc_16bit__cell_dna_nup_mts_actin.tif": Recipe(shrink=1.2),
    "xyc_16bit__hela-cells.tif": Recipe(shrink=1.8, keep_rows=460, background_window_px=81),
    "xyc_16bit__nup_nuclei.tif": Recipe(shrink=2.0, prefilter_px=0.8),
    "xy_calibrated_16bit__nuclear_protein_control.tif": Recipe(shrink=2.5, prefilter_px=0.7),
    "xyz_nuclear_envelope_drosophila.tif": Recipe(shrink=1.5, prefilter_px=0.9),
    "clathrin_3d.asdf": Recipe(shrink=1.0),
}
RENDER_NM = 10.0
"""Pixel of the rendered localisations."""
LEAST_PX = 128
MOST_PLANES = 12


def main(argv: list[str]) -> int:
    """Write OUT/train/*.tif and OUT/test/*.tif; return 0, or 2 where there is nothing to read."""
    if len(argv) != 2:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    folder, out = Path(argv[0]), Path(argv[1])
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in {".tif", ".tiff", ".asdf"})
    written = 0
    for path in found:
        recipe = RECIPES.get(path.name, Recipe())
        try:
            planes = list(_planes_of(path))
        except ModuleNotFoundError as error:
            print(f"{path.name}: left out, {error}", file=sys.stderr)
            continue
        kept = [c for p in planes[:: max(1, len(planes) // MOST_PLANES)] if (c := clean(p, recipe)) is not None]
        kept = [plane for plane in kept if min(plane.shape) >= LEAST_PX]
        shape = "x".join(map(str, kept[0].shape)) if kept else "none large enough"
        print(f"{path.name}: {recipe.split}, {len(kept)} of {len(planes)} planes, {shape}", file=sys.stderr)
        if kept:
            target = out / recipe.split / f"{path.stem}.tif"
            target.parent.mkdir(parents=True, exist_ok=True)
            counts = np.round(np.stack(kept) * 20000).astype(np.uint16)
            tifffile.imwrite(target, counts, metadata={"axes": "QYX"}, compression="zlib")
            written += 1
    if not written:
        print(f"{folder}: no sharp image in it", file=sys.stderr)
    return 0 if written else 2


def _planes_of(path: Path) -> Iterator[Image]:
    if path.suffix == ".asdf":
        yield _render_localisations(path)
        return
    with tifffile.TiffFile(path) as tif:
        stack, axes = tif.series[0].asarray(), tif.series[0].axes
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
    """Take background and noise off a plane, shrink it and scale it to about [0, 1]; None where nothing is left."""
    plane = plane[: recipe.keep_rows] if recipe.keep_rows else plane
    if recipe.prefilter_px:
        plane = ndimage.gaussian_filter(plane, recipe.prefilter_px)
    plane = plane - np.percentile(plane, 2.0).astype(np.float32)
    if recipe.background_window_px:
        window = recipe.background_window_px
        plane = plane - 0.5 * ndimage.gaussian_filter(ndimage.minimum_filter(plane, window), window / 2)
    # Noise from differences of neighbours in the darker half, where structures are few.
    dark = plane < np.median(plane)
    difference = (plane - np.roll(plane, 1, axis=1))[dark]
    noise = 1.4826 * float(np.median(np.abs(difference))) / np.sqrt(2.0) if difference.size else 0.0
    high = float(np.percentile(plane, 99.9))
    if not high > 8.0 * noise + 1e-6:
        return None
    plane = np.clip(plane - 1.5 * noise, 0.0, 1.5 * high) / np.float32(high)
    if recipe.shrink > 1:
        plane = ndimage.gaussian_filter(plane, 0.35 * np.sqrt(recipe.shrink**2 - 1))
        plane = ndimage.zoom(plane, 1 / recipe.shrink, order=3, mode="reflect", grid_mode=True)
    cleaned: Image = np.clip(plane, 0.0, 1.5).astype(np.float32)
    return cleaned


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
