"""How long a user waits before anything happens: --help, and a whole run on a 512 x 512 TIFF."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from tests.benchmarks.common import command, median_s


def measure(scratch: Path, quick: bool) -> list[dict[str, Any]]:
    """Two rows, in seconds."""
    image = np.random.default_rng(0).poisson(300, (512, 512)).astype(np.uint16)
    tifffile.imwrite(scratch / "small.tif", image)
    repeats = 1 if quick else 5
    rows = []
    for name, arguments in (
        ("mrbcr --help", command("--help")),
        (
            "deconvolve a 512 px TIFF",
            command("deconvolve", scratch / "small.tif", "-o", scratch / "s.ome.zarr", "--overwrite"),
        ),
    ):
        taken, spread = median_s(lambda a=arguments: subprocess.run(a, check=True, capture_output=True), repeats)
        rows.append({"figure": name, "value": round(taken, 2), "unit": "s", "note": f"spread {spread:.2f} s"})
    return rows
