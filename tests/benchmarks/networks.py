"""Mpixel/s of the bare networks: architecture x precision x tile, one thread, and the machine's matrix product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.common import median_s


def measure(scratch: Path, quick: bool) -> list[dict[str, Any]]:
    """One row for each combination."""
    from mrbcr_cli.restore import tune_allocator

    tune_allocator()
    import torch

    from mrbcr_cli.intensity import IntensityRange
    from mrbcr_cli.network.mrbcr import Mrbcr
    from mrbcr_cli.network.published import Published
    from mrbcr_cli.restore import Restorer

    torch.set_num_threads(1)
    matrix = torch.rand(2048, 2048)
    taken, _ = median_s(lambda: matrix @ matrix)
    rows: list[dict[str, Any]] = [
        {"figure": "matrix product, float32, 1 thread", "value": round(2 * 2048**3 / taken / 1e9), "unit": "GFLOP/s"}
    ]
    for name, make in (("mrbcr", Mrbcr), ("published", Published)):
        for precision in ("fp32", "bf16"):
            for tile in (256,) if quick else (256, 512, 1216):
                if name == "published" and tile > 512:
                    continue
                restorer = Restorer(make().eval(), 96, "cpu", precision, 1)  # type: ignore[arg-type]
                image = np.random.default_rng(0).random((1, tile, tile), np.float32)
                middle = ((False, False),) * 3
                taken, spread = median_s(lambda r=restorer, i=image, m=middle: r.restore(i, IntensityRange(0, 1), m))
                row = {"figure": f"{name}, {precision}, {tile} px", "value": round(tile**2 / taken / 1e6, 3)}
                rows.append({**row, "unit": "Mpixel/s/core", "note": f"spread {100 * spread / taken:.0f} %"})
    return rows
