"""Use mrbcr from Python: arrays in, arrays out, with the pixels that the command line gives.

    python examples/08_from_python.py

Three kinds of arrays: numpy (computed now), dask (computed when asked for), zarr (comes back as dask).
"""

from __future__ import annotations

from pathlib import Path

import dask.array as da
import numpy as np
import tifffile

from mrbcr_cli import deconvolve, list_models

CELLS = Path(__file__).resolve().parent / "data" / "cells.ome.tif"


def main() -> None:
    """Deconvolve the example image in both ways, and hold the results against each other."""
    print("models:", ", ".join(list_models()))
    image = tifffile.imread(CELLS)[:, :256, :256]  # two channels, (C, Y, X)

    # An array of numpy is deconvolved at once. Name the axes where there are more than Z, Y and X.
    sharp = deconvolve(image, axes="CYX")
    print("numpy:", sharp.shape, sharp.dtype)

    # Any option of the command line, with underscores in the place of dashes.
    first = deconvolve(image, axes="CYX", model="widefield", channels=[0], output_dtype="float32")
    print("one channel:", first.shape, first.dtype)

    # Of dask nothing is computed yet. napari shows such an array, and computes what is looked at:
    #     napari.Viewer().add_image(lazy)
    lazy = deconvolve(da.from_array(image, chunks=(1, 128, 128)), axes="CYX")
    print("dask:", lazy)
    corner = lazy[0, :64, :64].compute()

    # However it is asked for, the pixels are the same.
    assert np.array_equal(corner, sharp[0, :64, :64])  # noqa: S101 - an example, not a check of input
    print("the same pixels")


if __name__ == "__main__":
    main()
