"""What streaming costs: `mrbcr deconvolve` zarr to zarr against the network alone on the same tiles in memory."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.common import command, stack


def measure(scratch: Path, quick: bool) -> list[dict[str, Any]]:
    """Rows: seconds of both, their ratio, Mpixel/s of the output. Both run in fresh processes and all cores."""
    planes, size = (2, 2048) if quick else (80, 2048)
    source = stack(scratch / "in.zarr", planes, size, filled=planes)
    alone, workers = network_alone(source)
    started = time.perf_counter()
    subprocess.run(command("deconvolve", source, "-o", scratch / "out.ome.zarr", "-q"), check=True, capture_output=True)
    whole = time.perf_counter() - started
    again, _ = network_alone(source)
    bare = min(alone, again)
    pixels = planes * size * size / 1e6
    note = f"{pixels:.0f} Mpixel, {workers} at a time; network alone before and after: {alone:.1f} and {again:.1f} s"
    return [
        {"figure": "network alone, tiles in memory", "value": round(bare, 2), "unit": "s", "note": note},
        {"figure": "deconvolve zarr to zarr, whole command", "value": round(whole, 2), "unit": "s"},
        {
            "figure": "streaming over network alone",
            "value": round(whole / bare, 3),
            "unit": "ratio",
            "note": "bar 1.10; aim 1.03",
        },
        {"figure": "deconvolve", "value": round(pixels / whole, 2), "unit": "Mpixel/s"},
    ]


def network_alone(source: Path) -> tuple[float, int]:
    """Seconds for the network on every tile of the plan, from memory, as many at a time as in a run; and how many."""
    from mrbcr_cli.images import find_source
    from mrbcr_cli.plan import make_plan
    from mrbcr_cli.restore import tune_allocator
    from mrbcr_cli.settings import DeconvolveSettings

    tune_allocator()
    import torch

    plan = make_plan(find_source(str(source)), DeconvolveSettings(), "ome-zarr")
    method = plan.methods[0].spec.build()
    torch.set_num_threads(plan.share.torch_threads)
    pixels = np.random.default_rng(0).random((1, 4096, 4096), np.float32)
    numbers = iter(range(len(plan.grid)))
    lock = threading.Lock()

    def work() -> None:
        torch.set_num_threads(plan.share.torch_threads)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            block = plan.grid.block(number)
            _, y, x = (s.stop - s.start for s in block.read)
            method.restore(pixels[:, :y, :x], plan.ranges[0], block.at_border)

    method.restore(pixels[:, :1024, :1024], plan.ranges[0], ((True, True),) * 3)
    threads = [threading.Thread(target=work) for _ in range(plan.share.workers)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started, plan.share.workers
