"""How many patches a second `mrbcr train` learns from, for both networks, same data and batch, in fresh processes."""

from __future__ import annotations

import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.common import command

BATCH, PATCH_PX = 8, 128


def measure(scratch: Path, quick: bool) -> list[dict[str, Any]]:
    """Rows: patches/s of each network and precision, and the ratio of the networks; stored pairs, all cores."""
    from mrbcr_cli.capacity import cpu_count

    rng = np.random.default_rng(0)
    low = rng.random((32, 160, 160), np.float32)
    pairs = scratch / "pairs.npz"
    np.savez(pairs, low=low, gt=rng.random(low.shape, np.float32))
    speeds, rows = {}, []
    for model, steps in (("mrbcr", 4 if quick else 60), ("published", 2 if quick else 12)):
        for precision in ("fp32", "bf16"):
            name = f"train {model}, {precision}"
            taken = _rates(pairs, scratch / f"{model}_{precision}", model, precision, steps, cpu_count())
            speeds[name] = statistics.median(taken)
            spread = 100 * (max(taken) - min(taken)) / speeds[name]
            note = f"batch {BATCH}, {PATCH_PX} px, spread {spread:.0f} %"
            rows.append({"figure": name, "value": round(speeds[name], 2), "unit": "patches/s", "note": note})
    for precision in ("fp32", "bf16"):
        ratio = speeds[f"train mrbcr, {precision}"] / speeds[f"train published, {precision}"]
        rows.append({"figure": f"train mrbcr over published, {precision}", "value": round(ratio, 1), "unit": "x"})
    return rows


def _rates(pairs: Path, out: Path, model: str, precision: str, steps: int, threads: int) -> list[float]:
    """Patches/s of the last five sixths of a run, in pieces."""
    every = max(1, steps // 6)
    options = {
        "npz": pairs, "model": model, "precision": precision, "steps": steps, "log-every": every, "every": steps,
        "batch": BATCH, "patch": PATCH_PX, "validation-pairs": 2, "threads": threads, "lr": 1e-4,
    }  # fmt: skip
    given = [text for name, value in options.items() for text in (f"--{name}", value)]
    subprocess.run(command("train", "-o", out, "-q", *given), check=True, capture_output=True)
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    rates = [row["patches_per_s"] for row in rows if "patches_per_s" in row]
    return rates[1:-1] or rates  # the first warms up, the last validates
