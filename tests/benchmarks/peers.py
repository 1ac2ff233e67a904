"""Both networks against the authors' TensorFlow network and scikit-image's Richardson-Lucy: same patches, one run.

The TensorFlow peer lives in a virtual environment of its own, `--peer DIR`, made there when it is missing (Python 3.10,
`debcr[tf-cpu]`, 1.4 GB). Without --peer its rows are left out, and so are the ratios over it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.common import median_s

PEER = "MRBCR_BENCHMARK_PEER"
"""Environment variable that `--peer` sets."""
_PATCHES, _PATCH_PX, _TILE_PX = 32, 128, 1216
_TIME_PEER = """
import json, os, sys, time
import numpy as np
threads, repeats = int(sys.argv[1]), int(sys.argv[2])
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(threads)
from debcr import model
network = model.init()
patches = np.random.default_rng(0).random((32, 128, 128), np.float32)
taken = []
for _ in range(repeats + 1):
    started = time.perf_counter()
    model.predict(network, patches, batch_size=32)
    taken.append(time.perf_counter() - started)
print("TIMES " + json.dumps(taken[1:]))
"""


def measure(scratch: Path, quick: bool) -> list[dict[str, Any]]:
    """Rows: Mpixel/s of each on all cores, the machine's matrix product, and the ratios that the bars are about."""
    from mrbcr_cli.restore import tune_allocator

    tune_allocator()
    import torch

    from mrbcr_cli.capacity import cpu_count

    cores = cpu_count()
    torch.set_num_threads(cores)
    repeats = 1 if quick else 5
    speeds = {name: _speed(work, pixels, repeats) for name, work, pixels in _ours(cores)}
    if os.environ.get(PEER):
        speeds["TensorFlow"] = _tensorflow(Path(os.environ[PEER]), cores, repeats)
    speeds["scikit-image"] = _speed(*_scikit_image(), repeats)
    rows = [
        {"figure": name, "value": round(value, 3), "unit": "Mpixel/s", "note": f"spread {100 * spread:.0f} %"}
        for name, (value, spread) in speeds.items()
    ]
    return [*rows, *_ratios({name: value for name, (value, _) in speeds.items()}), *_roofline(speeds)]


def _speed(work: Callable[[], object], pixels: int, repeats: int) -> tuple[float, float]:
    """Mpixel/s by the median, and the relative spread."""
    taken, spread = median_s(work, repeats)
    return pixels / taken / 1e6, spread / taken


def _ours(cores: int) -> Iterator[tuple[str, Callable[[], object], int]]:
    from mrbcr_cli.intensity import IntensityRange
    from mrbcr_cli.network.published import Published
    from mrbcr_cli.restore import Restorer
    from mrbcr_cli.weights import build_network, load_weights

    rng = np.random.default_rng(0)
    plain, inner = IntensityRange(0, 1, guide=(0.0,) * 22), ((False, False),) * 3
    patches = rng.random((_PATCHES, _PATCH_PX, _PATCH_PX), np.float32)
    tile = rng.random((1, _TILE_PX, _TILE_PX), np.float32)
    for name in ("published", "widefield"):
        for precision in ("fp32", "bf16"):
            network = Published() if name == "published" else build_network(load_weights("widefield"))
            restorer = Restorer(network.eval(), 96, "cpu", precision, _PATCHES)  # type: ignore[arg-type]
            yield f"{name}, {precision}, patches", lambda r=restorer: r.restore(patches, plain, inner), patches.size
            if name == "widefield":
                yield f"{name}, {precision}, tile", lambda r=restorer: r.restore(tile, plain, inner), tile.size


def _scikit_image() -> tuple[Callable[[], object], int]:
    from skimage.restoration import richardson_lucy

    image = np.random.default_rng(0).poisson(50, (512, 512)).astype(np.float32) / 100
    along = np.exp(-(np.arange(-15, 16) ** 2) / 8.0)
    psf = (np.outer(along, along) / along.sum() ** 2).astype(np.float32)
    return lambda: richardson_lucy(image, psf, num_iter=30, clip=False), image.size


def _tensorflow(folder: Path, threads: int, repeats: int) -> tuple[float, float]:
    python = folder / "bin" / "python"
    if not python.exists():
        chosen = shutil.which("python3.10")
        if chosen is None:
            raise SystemExit("--peer needs python3.10 on PATH, for that is what debcr[tf-cpu] runs on")
        subprocess.run([chosen, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "debcr[tf-cpu]==0.1.0"], check=True)
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(python), "-c", _TIME_PEER, str(threads), str(repeats)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=quiet).stdout
    taken = json.loads(next(line for line in said.splitlines() if line.startswith("TIMES ")).removeprefix("TIMES "))
    median = sorted(taken)[len(taken) // 2]
    return _PATCHES * _PATCH_PX**2 / median / 1e6, (max(taken) - min(taken)) / median


def _ratios(speeds: dict[str, float]) -> Iterator[dict[str, Any]]:
    for ours, theirs, bar in (
        ("published, fp32, patches", "TensorFlow", "1.3; aim 2"),
        ("published, bf16, patches", "TensorFlow", "3.5; aim 6"),
        ("widefield, fp32, tile", "TensorFlow", "8; aim 15"),
        ("widefield, bf16, tile", "TensorFlow", "14; aim 30"),
        ("widefield, fp32, tile", "scikit-image", "3; aim 10"),
    ):
        if theirs in speeds:
            ratio = round(speeds[ours] / speeds[theirs], 2)
            yield {"figure": f"{ours} over {theirs}", "value": ratio, "unit": "x", "note": f"bar {bar}"}


def _roofline(speeds: dict[str, tuple[float, float]]) -> Iterator[dict[str, Any]]:
    """How much of the machine's matrix-product rate the network reaches, by its multiply-adds."""
    import torch

    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        matrix = torch.rand(2048, 2048).to(dtype)
        taken, _ = median_s(lambda m=matrix: m @ m)
        rate = 2 * 2048**3 / taken
        reached = 2 * MULTIPLY_ADDS * 1e6 * speeds[f"widefield, {precision}, tile"][0]
        yield {"figure": f"matrix product, {precision}", "value": round(rate / 1e9), "unit": "GFLOP/s"}
        yield {
            "figure": f"widefield, {precision}, tile, of the matrix product",
            "value": round(100 * reached / rate),
            "unit": "%",
            "note": f"{MULTIPLY_ADDS} multiply-adds a pixel" + ("; bar 35, aim 60" if precision == "fp32" else ""),
        }


MULTIPLY_ADDS = 23_278
"""A pixel of `widefield` (tests/test_comparison_examples.py holds it)."""
