"""Peak memory of the whole process tree on a 40 GB and a 4 GB OME-Zarr: start, 50 blocks, SIGTERM, resume."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tests.benchmarks.common import command, peak_memory, stack

PLANE_PX = 2048


def measure(scratch: Path, quick: bool) -> list[dict[str, Any]]:
    """Rows: peak while starting and running, peak while resuming, ratio of the two sizes."""
    blocks = 8 if quick else 50
    peaks: dict[int, float] = {}
    rows: list[dict[str, Any]] = []
    for gigabytes in (4, 40):
        planes = gigabytes * 10**9 // (2 * PLANE_PX**2)
        source = stack(scratch / f"in{gigabytes}.zarr", planes, PLANE_PX, filled=blocks + 8)
        output = scratch / f"out{gigabytes}.ome.zarr"
        ledger = scratch / f"out{gigabytes}.ome.zarr.partial" / "ledger.jsonl"
        arguments = command("deconvolve", source, "-o", output, "-q")
        for name, more in (("run", blocks), ("resume", max(blocks // 4, 4))):
            limit = max(_lines(ledger), 1) + more - 1
            peak, code = peak_memory(arguments, lambda limit=limit, ledger=ledger: _lines(ledger) > limit)
            note = f"stopped after {_lines(ledger) - 1} blocks, exit {code}"
            rows.append(
                {"figure": f"peak memory, {gigabytes} GB, {name}", "value": round(peak), "unit": "MB", "note": note}
            )
            peaks[gigabytes] = max(peak, peaks.get(gigabytes, 0.0))
        shutil.rmtree(source)
        shutil.rmtree(output.with_name(output.name + ".partial"))
    rows.append({"figure": "peak memory, 40 GB over 4 GB", "value": round(peaks[40] / peaks[4], 3), "unit": "ratio"})
    return rows


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
