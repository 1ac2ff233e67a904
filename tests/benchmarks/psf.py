"""Our vectorial PSF against psfmodels' on one machine in one run, one process each, and the accuracy of both.

psfmodels is a peer, not a dependency: `pip install psfmodels` to compare; without it only our times are given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.common import median_s

SHAPES = ((64, 256, 256), (128, 512, 512))


def measure(scratch: Path, quick: bool) -> list[dict[str, Any]]:
    """Seconds and ratio for NA 1.4 oil at 65 nm and 100 nm, scalar and vectorial, and the error at a small size."""
    import torch

    from mrbcr_cli.optics.microscope import Grid, Microscope, Objective
    from mrbcr_cli.optics.psf import compute_psf

    try:
        import psfmodels
    except ImportError:
        psfmodels = None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    for model in ("vectorial", "scalar"):
        microscope = Microscope(Objective(1.4, 1.515), 0.52, model=model)  # type: ignore[arg-type]
        for shape in SHAPES[:1] if quick else SHAPES:
            grid = Grid(shape, 0.065, 0.1, "pixel", "between")
            ours, spread = median_s(lambda: compute_psf(microscope, grid), 5)  # noqa: B023
            note = f"ours {ours:.3f} s (spread {spread:.3f})"
            row = {"figure": f"{model} PSF {'x'.join(map(str, shape))}", "value": round(ours, 3), "unit": "s"}
            if psfmodels is not None:
                theirs, their_spread = median_s(lambda: _theirs(psfmodels, shape, model), 3 if quick else 5)  # noqa: B023
                row |= {"value": round(theirs / ours, 1), "unit": "x psfmodels"}
                note += f", psfmodels {theirs:.3f} s (spread {their_spread:.3f})"
            rows.append({**row, "note": note})
    if psfmodels is not None:
        rows += _accuracy(psfmodels)
    torch.set_num_threads(threads)
    return rows


def _theirs(psfmodels: Any, shape: tuple[int, int, int], model: str, oversample: int = 3) -> Any:
    return psfmodels.make_psf(
        shape[0],
        shape[1],
        dxy=0.065,
        dz=0.1,
        NA=1.4,
        wvl=0.52,
        ns=1.515,
        ni=1.515,
        ni0=1.515,
        ng=1.515,
        ng0=1.515,
        tg=170,
        tg0=170,
        model=model,
        oversample_factor=oversample,
    )


def _accuracy(psfmodels: Any) -> list[dict[str, Any]]:
    """Largest error at unit maximum against our own PSF in float64 with pixels averaged over 25 x 25 points."""
    import torch

    from mrbcr_cli.optics.microscope import Grid, Microscope, Objective
    from mrbcr_cli.optics.psf import compute_psf

    microscope, fine = Microscope(Objective(1.4, 1.515), 0.52), 25
    points = compute_psf(
        microscope, Grid((9, 31 * fine, 31 * fine), 0.065 / fine, 0.1, "point"), normalize="none", dtype=torch.float64
    )
    truth = points.reshape(9, 31, fine, 31, fine).mean((2, 4)).numpy()
    ours = compute_psf(microscope, Grid((9, 31, 31), 0.065, 0.1)).numpy()
    theirs = _theirs(psfmodels, (9, 31, 31), "vectorial")
    return [
        {
            "figure": f"largest error of the vectorial PSF, {name}",
            "value": float(f"{np.abs(psf / psf.max() - truth / truth.max()).max():.1e}"),
            "unit": "of the maximum",
        }
        for name, psf in (("ours", ours), ("psfmodels (as timed)", theirs))
    ]
