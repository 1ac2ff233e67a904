"""Make the example image that ships with the tool: two simulated channels, blurred, hazy and noisy; and its truth.

    python examples/make_example.py                                 # writes examples/data/cells.ome.tif
    python examples/make_example.py --truth                         # and examples/data/cells_truth.ome.tif
    python examples/make_example.py --picture cells_sharp.ome.zarr  # writes examples/before_after.png

Simulated with the forward model of examples/training, from seeds that no training run draws.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import tifffile

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE / "training"))

import forward_model as fm  # noqa: E402
import specimens  # noqa: E402

SIZE_PX = 512
PIXEL_UM = 0.065
NAMES = ("actin", "vesicles and nuclei")


def channels() -> list[fm.Field]:
    """The two channels as fields of the training simulator: PSF FWHM 4.2 px (273 nm), a third of the light is haze."""
    fields = []
    for number, kinds in enumerate(((specimens.filaments,), (specimens.vesicles, specimens.nuclei))):
        rng = np.random.default_rng((77_000, number))
        planes = [specimens.normalised(kind(rng, SIZE_PX)) for kind in kinds]
        plane = np.sum(planes, axis=0, dtype=np.float32)
        conditions = fm.Conditions(
            psf=fm.Psf(4.2, 1.0, spherical_waves=0.03),
            haze_fraction=0.35,
            haze_planes=(fm.HazePlane(0.6, 12.0, True), fm.HazePlane(0.4, 30.0, False)),
            peak_electrons=(400.0, 250.0)[number],
            background_electrons=20.0,
            read_noise_e=1.6,
        )
        others = [np.roll(plane, shift, axis=(0, 1)) for shift in ((17, -9), (-40, 33))]
        fields.append(fm.make_field(plane, others, conditions, rng))
    return fields


def main() -> None:
    """Write the image, its truth, or the picture of before and after."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--truth", action="store_true", help="also write what the microscope could not see")
    parser.add_argument("--picture", type=Path, help="a result of mrbcr on the example: write before_after.png")
    args = parser.parse_args()
    if args.picture:
        picture(args.picture)
        return
    fields = channels()
    rng = np.random.default_rng(77_100)
    noisy = np.stack([fm.record(f.mean, f.conditions, rng) for f in fields])
    meta = {
        "axes": "CYX",
        "PhysicalSizeX": PIXEL_UM,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": PIXEL_UM,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": list(NAMES)},
    }
    (HERE / "data").mkdir(exist_ok=True)
    counts = np.clip(np.rint(100 + 2 * noisy), 0, 65535).astype(np.uint16)
    write = {"metadata": meta, "compression": "zlib", "predictor": True, "tile": (256, 256)}
    tifffile.imwrite(HERE / "data" / "cells.ome.tif", counts, **write)
    if args.truth:
        truth = np.stack([100 + 2 * f.target for f in fields]).astype(np.float32)
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
