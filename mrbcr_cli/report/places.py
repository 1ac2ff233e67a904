"""Where to look: the plane and the spots of an image that have most to show, found without reading all of it.

Invariant: a spot is chosen from the output alone and is the same for the same pixels; both sides are then shown there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.report.pair import Pair, Spot, Window

FINE_SIGMA_PX = 2.0
"""Structure is what a Gaussian blur of this width takes away."""
SEARCH_PX = 512
PLANES_SEARCHED = 17
CANDIDATES = 4
SEARCH_BYTES = 1 << 28
_BORDER_SHARE = 0.02


def structure(image_yx: NDArray[Any]) -> NDArray[np.float64]:
    """Energy of the fine structure at each pixel, hot pixels cut off; 0 where nothing is finite."""
    from scipy.ndimage import gaussian_filter

    values = np.asarray(image_yx, np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape)
    low, high = np.percentile(values[finite], (0.1, 99.8))
    values = np.clip(np.where(finite, values, low), low, high)
    return np.asarray((values - gaussian_filter(values, FINE_SIGMA_PX)) ** 2)


def richest(image_yx: NDArray[Any], box_px: tuple[int, int], count: int) -> list[tuple[float, int, int]]:
    """The up to `count` boxes with most fine structure, richest first and apart: (energy, y, x) of their corners.

    Boxes lie inside the image, and away from its very border where there is room.
    """
    from scipy.ndimage import uniform_filter

    height, width = (min(b, n) for b, n in zip(box_px, image_yx.shape, strict=True))
    energy = uniform_filter(structure(image_yx), (height, width), mode="constant")
    top, left = height // 2, width // 2
    inner = energy[top : top + image_yx.shape[0] - height + 1, left : left + image_yx.shape[1] - width + 1].copy()
    for axis in (0, 1):
        edge = int(_BORDER_SHARE * image_yx.shape[axis])
        if inner.shape[axis] > 4 * edge + 1 and edge:
            np.moveaxis(inner, axis, 0)[:edge] = -1
            np.moveaxis(inner, axis, 0)[-edge:] = -1
    found: list[tuple[float, int, int]] = []
    for _ in range(count):
        y, x = np.unravel_index(int(inner.argmax()), inner.shape)
        if inner[y, x] < 0 or (found and inner[y, x] == 0):
            break
        found.append((float(inner[y, x]), int(y), int(x)))
        inner[max(0, y - height + 1) : y + height, max(0, x - width + 1) : x + width] = -1
    return found


def best_plane(pair: Pair, t: int, c: int) -> int:
    """The plane of a stack with most fine structure, of up to 17 that are looked at small; 0 without a stack."""
    planes = pair.info.size("Z")
    if planes == 1:
        return 0
    looked_at = np.unique(np.linspace(0, planes - 1, min(planes, PLANES_SEARCHED)).round().astype(int))
    scores = []
    for z in looked_at:
        small = pair.after.overview(Spot(t, c, int(z)), SEARCH_PX, SEARCH_BYTES // PLANES_SEARCHED)
        box = max(3, SEARCH_PX // 8)
        scores.append(max((s for s, _, _ in richest(small.pixels_yx, (box, box), 1)), default=0.0))
    return int(looked_at[int(np.argmax(scores))])


def best_windows(pair: Pair, spot: Spot, size_px: int, count: int) -> tuple[Window, ...]:
    """Up to `count` windows of `size_px` a side of a plane, richest in fine structure first.

    Found on an overview, the candidates then looked at in full resolution. Raises InputError for damaged pixels.
    """
    plane = pair.plane
    height, width = min(size_px, plane.height), min(size_px, plane.width)
    small = pair.after.overview(spot, SEARCH_PX * 2, SEARCH_BYTES).pixels_yx
    scale = plane.height / small.shape[0], plane.width / small.shape[1]
    box = max(1, round(height / scale[0])), max(1, round(width / scale[1]))
    found = richest(small, box, max(count, CANDIDATES))
    windows = [
        Window(
            min(max(0, round((y + box[0] / 2) * scale[0] - height / 2)), plane.height - height),
            min(max(0, round((x + box[1] / 2) * scale[1] - width / 2)), plane.width - width),
            height,
            width,
        )
        for _, y, x in found
    ] or [Window((plane.height - height) // 2, (plane.width - width) // 2, height, width)]
    windows = list(dict.fromkeys(windows))
    if scale[0] > 1 and sum(pair.after.cost_bytes(spot, w) for w in windows) <= SEARCH_BYTES:
        scores = [float(structure(pair.after.read_plane(spot, w)).mean()) for w in windows]
        windows = [windows[k] for k in np.argsort(scores, kind="stable")[::-1]]
    return tuple(windows[:count])


def around(window: Window, plane: Window, size_px: int) -> Window:
    """A window of at most `size_px` a side around the middle of another, inside the plane."""
    height, width = min(size_px, plane.height), min(size_px, plane.width)
    y = min(max(0, window.y + window.height // 2 - height // 2), plane.height - height)
    x = min(max(0, window.x + window.width // 2 - width // 2), plane.width - width)
    return Window(y, x, height, width)


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spread, the first and the last among them."""
    return sorted({int(k) for k in np.linspace(0, count - 1, min(count, most)).round()})


def chosen(text: str | None, option: str, count: int, most: int) -> list[int]:
    """Indices that a selection such as 0,2 or 1:3 names, at most `most`. Raises InputError for what is not there."""
    from mrbcr_cli.settings import parse_selection

    if text is None:
        return evenly(count, most)
    try:
        parts: Sequence[slice | int] = parse_selection(text, f"--{option}")
    except ValueError as error:
        raise InputError(str(error)) from error
    found: list[int] = []
    for part in parts:
        if isinstance(part, slice):
            found += range(*part.indices(count))
        else:
            found.append(part + count if part < 0 else part)
    if not found or min(found) < 0 or max(found) >= count:
        raise InputError(f"--{option} {text}: the output has {count}, numbered from 0 to {count - 1}")
    found = list(dict.fromkeys(found))
    if len(found) > most:
        raise InputError(f"--{option} {text}: names {len(found)}; a page shows at most {most}, write several")
    return found
