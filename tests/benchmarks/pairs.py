"""Training pairs: time for 2,000 of 128 px on all cores, and peak memory against their number."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.benchmarks.common import command, peak_memory


def measure(scratch: Path, quick: bool) -> list[dict[str, Any]]:
    """Seconds of the whole command with default settings, and the ratio of its memory to that for a quarter."""
    count = 128 if quick else 2000
    rows, peaks = [], []
    for part in (count // 4, count):
        output = scratch / f"pairs_{part}.zarr"
        started = time.perf_counter()
        peak_mb, code = peak_memory(command("simulate", "pairs", "-o", output, "--count", part, "--quiet"))
        seconds = time.perf_counter() - started
        if code != 0:
            raise RuntimeError(f"simulate pairs ended with {code}")
        peaks.append(peak_mb)
        rows.append(
            {
                "figure": f"{part} procedural pairs of 128 px",
                "value": round(seconds, 1),
                "unit": "s",
                "note": f"whole command; peak memory of all processes {peak_mb:.0f} MB",
            }
        )
    rows.append(
        {"figure": f"memory of {count} pairs over {count // 4}", "value": round(peaks[1] / peaks[0], 2), "unit": "x"}
    )
    return rows
