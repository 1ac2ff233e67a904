"""Make the example image that ships with the tool: two simulated channels, blurred, hazy and noisy; and its truth.

    python examples/make_example.py                                 # writes examples/data/cells.ome.tif
    python examples/make_example.py --truth                         # and examples/data/cells_truth.ome.tif
    python examples/make_example.py --picture cells_sharp.ome.zarr  # writes examples/before_after.png

Simulated by `mrbcr simulate pairs`, from a seed that no training run draws.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tifffile

from mrbcr_cli.simulate.pair import Pair, PairsJob, make_pair
from mrbcr_cli.simulate.pairs_settings import PairsSettings

HERE = Path(__file__).resolve().parent
SIZE_PX = 512
PIXEL_UM = 0.065
NAMES = ("actin", "vesicles")


def channels() -> list[Pair]:
    """The two channels: objective of NA 1.0, PSF of 4 px (0.26 um), a third of the light from out of focus."""
    pairs = []
    for number, (kind, photons) in enumerate((("filaments", 400.0), ("vesicles", 250.0))):
        settings = PairsSettings(
            patch=SIZE_PX, seed=77_000 + number, specimen=(kind,), na=(1.0, 1.0), wavelength=(525.0, 525.0),
            pixel=(PIXEL_UM, PIXEL_UM), thickness=(4.0, 4.0), haze=(0.35, 0.35), photons=(photons, photons),
            background=(0.05, 0.05), gain=(2.0, 2.0), read_noise=(1.6, 1.6), scmos=0.0, aberration=(0.03, 0.03),
        )  # fmt: skip
        pairs.append(make_pair(PairsJob(settings, (), (), (1, 0, 0)), 0))
    return pairs


def main() -> None:
    """Write the image, its truth, or the picture of before and after."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--truth", action="store_true", help="also write what the microscope could not see")
    parser.add_argument("--picture", type=Path, help="a result of mrbcr on the example: write before_after.png")
    args = parser.parse_args()
    if args.picture:
        picture(args.picture)
        return
    pairs = channels()
    meta = {
        "axes": "CYX",
        "PhysicalSizeX": PIXEL_UM,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": PIXEL_UM,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": list(NAMES)},
    }
    (HERE / "data").mkdir(exist_ok=True)
    counts = np.stack([pair.blurred for pair in pairs])
    write = {"metadata": meta, "compression": "zlib", "predictor": True, "tile": (256, 256)}
    tifffile.imwrite(HERE / "data" / "cells.ome.tif", counts, **write)
    if args.truth:
        truth = np.stack([pair.sharp for pair in pairs])
        tifffile.imwrite(HERE / "data" / "cells_truth.ome.tif", truth, **write)


def picture(result: Path) -> None:
    """Both channels before and after, a quarter of the field at full resolution, with the same grey scale."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import zarr

    before = tifffile.imread(HERE / "data" / "cells.ome.tif").astype(float)
    after = np.asarray(zarr.open_group(result, mode="r")["0"]).astype(float)
    figure, axes = plt.subplots(2, 2, figsize=(8, 8.3), layout="constrained")
    for row, name in enumerate(NAMES):
        for column, (image, what) in enumerate(((before, "as recorded"), (after, "mrbcr deconvolve"))):
            shown = image[row, 128:384, 128:384]
            panel = axes[row, column]
            panel.imshow(shown, cmap="inferno", vmin=np.percentile(shown, 1), vmax=np.percentile(shown, 99.8))
            panel.set_title(f"{name}, {what}", fontsize=10)
            panel.set_axis_off()
        axes[row, 0].plot([15, 15 + 2 / PIXEL_UM], [243, 243], color="white", linewidth=3)
        axes[row, 0].text(15, 236, "2 µm", color="white", fontsize=9)
    figure.savefig(HERE / "before_after.png", dpi=100)


if __name__ == "__main__":
    main()
