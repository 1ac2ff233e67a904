"""What several benchmarks need: a process watched for its memory, a timed median, a big sparse OME-Zarr."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr


def command(*arguments: object) -> list[str]:
    """The tool as a subprocess."""
    return [sys.executable, "-m", "mrbcr_cli", *map(str, arguments)]


def median_s(work: Callable[[], object], repeats: int = 5) -> tuple[float, float]:
    """Median and spread (max - min) in seconds of `repeats` runs after one to warm up."""
    work()
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken), max(taken) - min(taken)


def peak_memory(arguments: list[str], stop_when: Callable[[], bool] | None = None) -> tuple[float, int]:
    """Run a command; return the peak resident memory of its whole process tree in MB, and its exit code.

    With `stop_when` it gets SIGTERM as soon as that says so.
    """
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    watched, peak, stopped = psutil.Process(process.pid), 0, False
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):  # it may end between the poll and the look
            peak = max(peak, sum(p.memory_info().rss for p in [watched, *watched.children(recursive=True)]))
        if stop_when is not None and not stopped and stop_when():
            process.terminate()
            stopped = True
        time.sleep(0.05)
    return peak / 1e6, process.returncode


def stack(path: Path, planes: int, size_px: int, filled: int, also: Iterable[int] = ()) -> Path:
    """A ZYX uint16 OME-Zarr; its first `filled` planes and those of `also` hold an image, others are absent chunks."""
    rng = np.random.default_rng(0)
    group = zarr.create_group(path)
    array = group.create_array("0", shape=(planes, size_px, size_px), dtype="u2", chunks=(1, 512, 512))
    tile = rng.poisson(200 + 2000 * (rng.random((512, 512)) < 0.01)).astype(np.uint16)
    for z in (*range(filled), *also):
        array[z] = np.tile(np.roll(tile, z, axis=0), (size_px // 512, size_px // 512))
    multiscale: dict[str, Any] = {
        "axes": [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"],
        "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [0.3, 0.1, 0.1]}]}],
    }
    group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}
    return path
