"""The default network on a CUDA device: bare in half precision, and from memory to memory as a run does it, with and
without CUDA graphs.

Without a device there are no rows but one that says so.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.common import median_s

_TILE_PX, _TILES = 2048, 16


def measure(scratch: Path, quick: bool) -> list[dict[str, Any]]:
    """Rows: Mpixel/s of the bare network, and end to end with 2, 4 and 8 threads, each on a lane of its own."""
    import torch

    if not torch.cuda.is_available():
        return [{"figure": "GPU", "value": 0, "unit": "devices", "note": "no CUDA device here; nothing was measured"}]
    from mrbcr_cli.intensity import IntensityRange
    from mrbcr_cli.network.fused import FusedMrbcr
    from mrbcr_cli.restore import Restorer
    from mrbcr_cli.weights import build_network, load_weights

    rows: list[dict[str, Any]] = []
    network = build_network(load_weights("widefield")).eval()
    guide = (0.0,) * 22
    name = torch.cuda.get_device_name()
    repeats, pixels = (1 if quick else 7), _TILE_PX**2 / 1e6
    on_device = network.to("cuda", memory_format=torch.channels_last)
    batch = torch.rand(1, 1, _TILE_PX, _TILE_PX, device="cuda")
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        with torch.inference_mode():
            fused = FusedMrbcr(on_device, torch.tensor([guide], device="cuda"), dtype)

            def bare(fused: FusedMrbcr = fused) -> None:
                for _ in range(_TILES):
                    fused(batch, (False,) * 4)
                torch.cuda.synchronize()

            taken, spread = median_s(bare, repeats)
        bar = "; bar 300, aim 1,000" if dtype is torch.float16 else ""
        note = f"{name}, {_TILES} tiles of {_TILE_PX} px, spread {100 * spread / taken:.0f} %{bar}"
        value = round(_TILES * pixels / taken, 1)
        rows.append({"figure": f"bare network, {dtype}", "value": value, "unit": "Mpixel/s", "note": note})
    blocks = [np.random.default_rng(k).random((1, _TILE_PX, _TILE_PX), np.float32) for k in range(4)]
    intensity, inner = IntensityRange(0, 1, guide=guide), ((True, True), (False, False), (False, False))
    for graphs in (False, True):
        restorer = Restorer(network, 96, "cuda", "fp16", 1, graphs=graphs)
        for threads in (2, 4, 8):
            with ThreadPoolExecutor(threads) as pool:

                def end_to_end(pool: ThreadPoolExecutor = pool, restorer: Restorer = restorer) -> None:
                    list(pool.map(lambda k: restorer.restore(blocks[k % 4], intensity, inner), range(_TILES)))

                taken, spread = median_s(end_to_end, repeats)
            note = f"fp16, spread {100 * spread / taken:.0f} %; bar 150, aim 500"
            value = round(_TILES * pixels / taken, 1)
            figure = f"from memory, {threads} threads" + (", CUDA graphs" if graphs else "")
            rows.append({"figure": figure, "value": value, "unit": "Mpixel/s", "note": note})
    return rows
