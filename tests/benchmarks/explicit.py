"""Our Richardson-Lucy against those of scikit-image and RedLionfish (if installed), same PSF and iterations, one run.

scikit-image computes in float32 when it is given float32, and in float64 when it is given what a camera gives, uint16:
both are shown, and the bars are held against float32. RedLionfish's domain is the volume alone, its borders wrap round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.common import median_s

DECONWOLF_MVOXEL_S = 0.22
"""deconwolf 0.4.7, 20 iterations, 32x512x512, by the project's own measurement on 2 faster cores; it is no package that
a benchmark could install."""
CASES = (
    ("3-D 32x512x512, PSF 15x31x31", (32, 512, 512), (7, 15, 15), 20),
    ("2-D 512x512, PSF 31x31", (1, 512, 512), (0, 15, 15), 30),
    ("2-D 2048x2048, PSF 31x31", (1, 2048, 2048), (0, 15, 15), 30),
)


def measure(scratch: Path, quick: bool) -> list[dict[str, Any]]:
    """Seconds and ratios, all cores."""
    import torch

    from mrbcr_cli.capacity import cpu_count
    from mrbcr_cli.restore import tune_allocator

    tune_allocator()
    torch.set_num_threads(cpu_count())
    rows: list[dict[str, Any]] = []
    for name, shape, radius, iterations in CASES:
        rng = np.random.default_rng(0)
        image = rng.poisson(50, shape).astype(np.float32) / 100
        rows.extend(_compare(name, image, _gauss(radius), 2 if quick else iterations, 1 if quick else 5))
    return rows


def _gauss(radius: tuple[int, int, int]) -> NDArray[np.float32]:
    grid = np.meshgrid(*(np.arange(-r, r + 1) for r in radius), indexing="ij")
    values = np.exp(-sum(g**2 / (2 * (max(r, 1) / 3.5) ** 2) for g, r in zip(grid, radius, strict=True)))
    return (values / values.sum()).astype(np.float32)


def _compare(
    name: str, image: NDArray[np.float32], psf: NDArray[np.float32], iterations: int, repeats: int
) -> Iterator[dict[str, Any]]:
    from mrbcr_cli.classical import RichardsonLucy
    from mrbcr_cli.intensity import IntensityRange
    from mrbcr_cli.psf_grid import Psf

    method = RichardsonLucy(Psf(psf, "gaussian"), iterations=iterations)
    ours, spread = median_s(lambda: method.restore(image, IntensityRange(0, 1)), repeats)
    speed = image.size / ours / 1e6
    note = f"{ours:.2f} s for {iterations} iterations, spread {100 * spread / ours:.0f} %"
    yield {"figure": f"Richardson-Lucy, ours, {name}", "value": round(speed, 2), "unit": "Mvoxel/s", "note": note}
    bar = "; bar 4" if image.shape[0] > 1 else ""
    for peer, work in _peers(image, psf, iterations):
        theirs, spread = median_s(work, repeats)
        note = f"{theirs:.2f} s, spread {100 * spread / theirs:.0f} %{bar if peer.endswith('float32') else ''}"
        yield {"figure": f"ours over {peer}, {name}", "value": round(theirs / ours, 2), "unit": "x", "note": note}
    if image.shape[0] > 1:
        note = f"{DECONWOLF_MVOXEL_S} Mvoxel/s, measured elsewhere, not in this run; bar 1"
        ratio = round(speed / DECONWOLF_MVOXEL_S, 2)
        yield {"figure": f"ours over deconwolf, {name}", "value": ratio, "unit": "x", "note": note}


def _peers(
    image: NDArray[np.float32], psf: NDArray[np.float32], iterations: int
) -> Iterator[tuple[str, Callable[[], object]]]:
    from skimage.restoration import richardson_lucy

    flat = image.shape[0] == 1
    pixels, kernel = (image[0], psf[0]) if flat else (image, psf)
    camera = (100 * pixels).astype(np.uint16)
    yield "scikit-image, float32", lambda: richardson_lucy(pixels, kernel, num_iter=iterations, clip=False)
    yield (
        "scikit-image, as the camera gives it",
        lambda: richardson_lucy(camera, kernel, num_iter=iterations, clip=False),
    )
    if not flat:
        try:
            from RedLionfishDeconv.RLDeconv3DScipy import doRLDeconvolution_DL2_4 as red_lionfish
        except ImportError:
            return
        yield "RedLionfish (CPU)", lambda: red_lionfish(image, psf, niter=iterations)
