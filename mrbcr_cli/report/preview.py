"""A picture of before and after for a quick look: each channel whole, and its richest spot in full resolution.

Invariant: before and after of a channel share one grey scale, which the picture states.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mrbcr_cli.images.base import ImageInfo
from mrbcr_cli.places import Place
from mrbcr_cli.report.measures import finite
from mrbcr_cli.report.pair import Pair, Spot
from mrbcr_cli.report.places import best_plane, best_windows

MOST_ROWS = 4
ZOOM_PX = 160
OVERVIEW_PX = 512
OVERVIEW_BYTES = 1 << 30


def write_preview(path: Path, pair: Pair, record: dict[str, Any], output: Place) -> None:
    """Write a PNG of up to four channels at the first time point. Raises InputError, IncompleteError."""
    from mrbcr_cli.figures import PreviewRow, preview_figure

    info = pair.info
    rows = []
    for c in range(min(info.size("C"), MOST_ROWS)):
        spot = Spot(0, c, best_plane(pair, 0, c))
        zoom = best_windows(pair, spot, ZOOM_PX, 1)[0]
        whole = [side.overview(spot, OVERVIEW_PX, OVERVIEW_BYTES).pixels_yx for side in (pair.before, pair.after)]
        near = [side.read_plane(spot, zoom) for side in (pair.before, pair.after)]
        shown = np.concatenate([finite(image) for image in (*whole, *near)])
        low, high = np.percentile(shown, (0.1, 99.8)) if shown.size else (0.0, 1.0)
        rows.append(
            PreviewRow(
                label=_label(info, spot),
                overview=(whole[0], whole[1]),
                zoom=(near[0].astype(np.float64), near[1].astype(np.float64)),
                zoom_yxhw=(zoom.y, zoom.x, zoom.height, zoom.width),
                plane_yx=(pair.plane.height, pair.plane.width),
                grey=(float(low), float(high)),
            )
        )
    more = info.size("C") - len(rows)
    left_out = f", {more} more channel{'s' * (more > 1)} not shown" if more > 0 else ""
    preview_figure(path, rows, f"{output.name}: before and after{left_out}", info.scale_um("X"))


def _label(info: ImageInfo, spot: Spot) -> str:
    name = info.channel_names[spot.c] if spot.c < len(info.channel_names) else ""
    parts = [name or (f"channel {spot.c}" if info.size("C") > 1 else "")]
    parts += [f"z {spot.z}"] if info.size("Z") > 1 else []
    parts += ["t 0"] if info.size("T") > 1 else []
    return ", ".join(part for part in parts if part)
