"""Whether a channel may be computed in reduced precision: a probe tile is computed in both and compared.

Invariant: the answer is a function of the channel's pixels, its range and the network; it is found once, before the
first block, and goes with the range to all who take part in the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.intensity import LARGEST_PRECISION_ERROR, IntensityRange
from mrbcr_cli.restore import NetworkSpec

PROBE_PX = 256
_PERCENTILE = 99.9


def with_precision_error(
    found: IntensityRange, spec: NetworkSpec, windows: Sequence[NDArray[Any]]
) -> tuple[IntensityRange, str | None]:
    """The range, and with it what reduced precision costs on the most varied of the windows (Y, X); and what to say.

    The error is the 99.9th percentile of the difference to float32, in units of the range. Without a finite window
    nothing is known, and float32 it is.
    """
    tile = _probe(windows)
    error = float("inf") if tile is None else _error(spec, tile, found)
    judged = replace(found, precision_error=round(min(error, 1e9), 6))
    if not judged.needs_fp32:
        return judged, None
    why = f"differs from float32 by {100 * error:.2g} % of the intensity range" if tile is not None else "was not tried"
    limit = f"{100 * LARGEST_PRECISION_ERROR:g} %"
    return judged, f"--precision {spec.precision} {why} on a probe tile (limit {limit}); float32 is used instead"


def _error(spec: NetworkSpec, tile_yx: NDArray[np.float32], intensity: IntensityRange) -> float:
    method = replace(spec, device="cpu").build()
    exact, rounded = (
        method.restore(tile_yx[None], replace(intensity, precision_error=error), ((True, True),) * 3)
        for error in (float("inf"), None)
    )
    difference = np.abs(rounded.astype(np.float64) - exact)
    return float(np.percentile(difference, _PERCENTILE)) / intensity.width


def _probe(windows: Sequence[NDArray[Any]]) -> NDArray[np.float32] | None:
    """The most varied finite tile of at most 256 px."""
    best, most = None, -1.0
    for window in windows:
        for y in range(0, max(window.shape[0] - PROBE_PX // 2, 1), PROBE_PX):
            for x in range(0, max(window.shape[1] - PROBE_PX // 2, 1), PROBE_PX):
                tile = window[y : y + PROBE_PX, x : x + PROBE_PX].astype(np.float32)
                spread = float(tile.std(dtype=np.float64)) if np.isfinite(tile).all() else -1.0
                if spread > most:
                    best, most = tile, spread
    return best
