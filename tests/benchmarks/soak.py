"""A night of small files: 1,000 images in one run, and what memory, open files and threads do meanwhile.

Growth is the slope of a line through the last three quarters, so that what is loaded once does not count.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tifffile

from tests.benchmarks.common import command

FILES = 1_000


def measure(scratch: Path, quick: bool) -> list[dict[str, Any]]:
    """Rows for TIFF and for OME-Zarr outputs: files a second, and growth per 1,000 files."""
    files = 40 if quick else FILES
    sources = _sources(scratch / "in", files)
    return [
        row
        for output in ("ome-tiff", "ome-zarr")
        for row in _night(sources, scratch / output, ("--output-format", output))
    ]


def _sources(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = [folder / f"cell{number:04}.tif" for number in range(count)]
    for path in paths:
        tifffile.imwrite(path, rng.poisson(100 + 900 * (rng.random((2, 96, 128)) < 0.02)).astype(np.uint16))
    return paths


def _night(sources: list[Path], output: Path, extra: tuple[str, ...]) -> list[dict[str, Any]]:
    started = time.perf_counter()
    arguments = command("deconvolve", *sources, "-o", output, "-q", "--json", *extra)
    samples: list[tuple[int, float, int, int]] = []
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None:
            raise RuntimeError("no pipe")
        watched, done = psutil.Process(process.pid), 0
        for line in process.stdout:
            if json.loads(line)["event"] == "done":
                done += 1
                if done < len(sources):  # after the last one it may be gone
                    samples.append((done, watched.memory_info().rss / 1e6, watched.num_fds(), watched.num_threads()))
    if process.returncode != 0 or done != len(sources):
        raise RuntimeError(f"{done} of {len(sources)} files, exit {process.returncode}")
    wall = time.perf_counter() - started
    late = np.array([s for s in samples if s[0] > done / 4])
    first, last = (", ".join(f"{v:.0f}" for v in row[1:]) for row in (late[0], late[-1]))
    rows: list[dict[str, Any]] = [
        {
            "figure": f"{extra[-1]}, {done} small files",
            "value": round(done / wall, 1),
            "unit": "files/s",
            "note": f"in {wall:.0f} s; MB, open files, threads after {late[0][0]:.0f}: {first}; at the end: {last}",
        }
    ]
    for column, (what, unit) in enumerate((("memory", "MB"), ("open files", "files"), ("threads", "threads")), start=1):
        slope = float(np.polyfit(late[:, 0], late[:, column], 1)[0])
        rows.append(
            {"figure": f"{extra[-1]}, growth of {what}", "value": round(1000 * slope, 2), "unit": f"{unit}/1,000"}
        )
    return rows
