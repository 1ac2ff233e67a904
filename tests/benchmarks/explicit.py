"""Our Richardson-Lucy against scikit-image's, the same PSF and iterations, in one run: 3-D and 2-D."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.common import median_s

ITERATIONS = 20


def measure(scratch: Path, quick: bool) -> list[dict[str, Any]]:
    """Seconds and ratio for a volume and for a plane, all cores."""
    import torch
    from skimage.restoration import richardson_lucy

    from mrbcr_cli.capacity import cpu_count
    from mrbcr_cli.classical import RichardsonLucy
    from mrbcr_cli.intensity import IntensityRange
    from mrbcr_cli.psf_grid import Psf
    from mrbcr_cli.restore import tune_allocator

    tune_allocator()
    torch.set_num_threads(cpu_count())
    rows = []
    for name, shape, radius in (
        ("3-D 32x256x256, PSF 15x31x31", (32, 256, 256), (7, 15, 15)),
        ("2-D 1024x1024, PSF 31x31", (1, 1024, 1024), (0, 15, 15)),
    ):
        grid = np.meshgrid(*(np.arange(-r, r + 1) for r in radius), indexing="ij")
        gauss = np.exp(-sum(g**2 / (2 * (max(r, 1) / 3.5) ** 2) for g, r in zip(grid, radius, strict=True)))
        psf = (gauss / gauss.sum()).astype(np.float32)
        image = np.random.default_rng(0).poisson(50, shape).astype(np.float32) / 100
        iterations = 2 if quick else ITERATIONS
        method = RichardsonLucy(Psf(psf, "gaussian"), iterations=iterations)
        ours, _ = median_s(lambda: method.restore(image, IntensityRange(0, 1)), 3)  # noqa: B023
        plain = (image, psf) if shape[0] > 1 else (image[0], psf[0])
        theirs, _ = median_s(lambda: richardson_lucy(*plain, num_iter=iterations, clip=False), 3)  # noqa: B023
        note = f"scikit-image {theirs:.2f} s, ours {ours:.2f} s, {iterations} iterations"
        rows.append({"figure": f"Richardson-Lucy {name}", "value": round(theirs / ours, 2), "unit": "x", "note": note})
    return rows
