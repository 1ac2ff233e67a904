"""Runs of `mrbcr simulate pairs` in this process, sharp images to take as sources, and folders as bytes.

The images differ from each other and are the same in every run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage

from mrbcr_cli.cli import run

SMALL = ("--patch", "32", "--planes", "3", "--quiet")


def pairs(*arguments: object) -> int:
    return run(["simulate", "pairs", *map(str, arguments)])


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def sharp_images(folder: Path, count: int, size: int = 96) -> Path:
    """TIFFs of random blobs, each different."""
    folder.mkdir(exist_ok=True)
    for k in range(count):
        rng = np.random.default_rng(k)
        image = ndimage.gaussian_filter((rng.random((size, size)) < 0.02) * 1.0, 1.5)
        tifffile.imwrite(folder / f"image{k}.tif", (100 + 4000 * image / image.max()).astype(np.uint16))
    return folder
