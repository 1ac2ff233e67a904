"""`mrbcr simulate stack`: peak memory of the process tree for stacks of two sizes, and seconds per Mvoxel."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.common import command, peak_memory

WORKERS = 2


def measure(scratch: Path, quick: bool) -> list[dict[str, Any]]:
    """Rows: peak memory and speed of a small and a large stack, and the ratio of the peaks, which should be near 1."""
    shapes = ((32, 256, 256), (64, 512, 512)) if quick else ((64, 1024, 1024), (256, 1024, 1024), (256, 2048, 2048))
    rows: list[dict[str, Any]] = []
    peaks = []
    for shape in shapes:
        output = scratch / "stack.ome.zarr"
        options = ("--specimen", "nuclei", "--preset", "63x/1.4oil", "--ns", 1.33, "--depth", 3, "--workers", WORKERS)
        started = time.perf_counter()
        peak, code = peak_memory(command("simulate", "stack", "-o", output, "--shape", *shape, *options, "-q"))
        taken = time.perf_counter() - started
        voxels = shape[0] * shape[1] * shape[2] / 1e6
        size = "x".join(map(str, shape))
        note = f"{2e-3 * voxels:.2g} GB of counts, {WORKERS} workers, exit {code}"
        rows.append({"figure": f"peak memory, {size}", "value": round(peak), "unit": "MB", "note": note})
        speed = {"figure": f"simulate stack, {size}", "value": round(taken / voxels, 3), "unit": "s/Mvoxel"}
        rows.append({**speed, "note": f"{taken:.0f} s in all"})
        peaks.append(peak)
        for name in ("stack.ome.zarr", "stack_truth.ome.zarr"):
            shutil.rmtree(scratch / name, ignore_errors=True)
    ratio = round(peaks[-1] / peaks[-2], 3)
    return [*rows, {"figure": "peak memory, largest over second largest", "value": ratio, "unit": "ratio"}]
