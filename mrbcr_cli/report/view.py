"""What a page shows of one channel at one time point: pictures and measurements, JSON-able.

Invariant: both sides are read at the same place and in the same manner; the pixels read, held and embedded are bounded
by `Limits`, whatever the image, and where that leaves something out the view says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.console import bytes_text
from mrbcr_cli.intensity import survey_boxes
from mrbcr_cli.report.embed import decode, encode
from mrbcr_cli.report.kernels import Kernel
from mrbcr_cli.report.measures import histogram, quantiles, reblur, residual, ring_correlation, spectrum
from mrbcr_cli.report.pair import Pair, Spot, Window
from mrbcr_cli.report.places import around, best_plane, best_windows, evenly

Array = NDArray[Any]
Json = dict[str, Any]

DETAIL_PX = 256
SMALL_PX = 320
"""Planes of no more pixels a side are their own detail."""
MEASURED_PX = 1024
EXACT_PIXELS = 1 << 22
"""Of one channel at one time point; larger ones are sampled for the histogram."""
SAMPLE_BYTES = 1 << 28
FEWEST_BOXES = 16
LEVELS = 512
"""Steps between black and white that a picture keeps."""


@dataclass(frozen=True)
class Limits:
    """What each of the views of a page may take; all of a page together stays the same, however many they are."""

    views: int
    overview_pixels: int = 1 << 20
    longest_px: int = 1024
    volume_voxels: int = 1_600_000
    read_bytes: int = 1 << 32
    projection_px: int = 384
    projection_planes: int = 256
    volume_planes: int = 96

    def longest_side_px(self, plane: Window) -> int:
        """Of an overview."""
        flatness = min(plane.height, plane.width) / max(plane.height, plane.width)
        wanted = math.sqrt(self.overview_pixels / self.views / flatness)
        return int(min(self.longest_px, max(256, wanted)))

    @property
    def bytes_each(self) -> int:
        """Decoded for one overview or projection of a view."""
        return self.read_bytes // self.views


def make_view(pair: Pair, t: int, c: int, kernel: Kernel, limits: Limits) -> Json:
    """All that a page shows of channel `c` at time `t` (output indices). Raises InputError for damaged pixels."""
    spot = Spot(t, c, best_plane(pair, t, c))
    largest = max(pair.plane.height, pair.plane.width)
    detail_px = largest if largest <= SMALL_PX else DETAIL_PX
    windows = best_windows(pair, spot, detail_px, 2 if limits.views <= 2 else 1)
    sample = _sample(pair, spot, windows[0])
    details = [_detail(pair, spot, window) for window in windows]
    # Of few objects on nothing a sample shows nothing, nor does its grey scale: the details count too.
    shown = [[decode(detail[side]).ravel() for detail in details] for side in ("before", "after")]
    known = quantiles(*(np.concatenate([part, *more]) for part, more in zip(sample[:2], shown, strict=True)))
    step = _span(known) / LEVELS
    measured = around(windows[0], pair.plane, MEASURED_PX)
    if pair.cost_bytes(spot, measured) > limits.bytes_each:
        measured = windows[0]
    before, after = (side.read_plane(spot, measured) for side in (pair.before, pair.after))
    return {
        "t": t,
        "c": c,
        "z": spot.z,
        "quantiles": known,
        "sampled": sample[2],
        "overview": _overview(pair, spot, limits, step),
        "details": details,
        "measured": _place(measured),
        "histogram": histogram(*sample[:2]),
        "spectrum": spectrum(before, after),
        "frc": ring_correlation(before, after),
        "residual": _residual(pair, spot, windows[0], kernel),
        "stack": _stack(pair, spot, windows[0], limits, step),
    }


def _span(known: Json) -> float:
    both = known["both"]
    return float(both[-4] - both[1]) or float(both[-1] - both[0]) or 1.0  # the 99.9 and the 0.1 percentile


def _place(window: Window) -> list[int]:
    return [window.y, window.x, window.height, window.width]


def _overview(pair: Pair, spot: Spot, limits: Limits, step: float) -> Json:
    longest = limits.longest_side_px(pair.plane)
    small = [side.overview(spot, longest, limits.bytes_each) for side in (pair.before, pair.after)]
    said = []
    for name, one in zip(("before", "after"), small, strict=True):
        if one.share_read < 0.999:
            said.append(f"{name}: sampled, {100 * one.share_read:.2g} % of the pixels read, as it has no pyramid")
    return {
        "before": encode(small[0].pixels_yx, step),
        "after": encode(small[1].pixels_yx, step),
        "levels": [one.level for one in small],
        "said": said,
    }


def _detail(pair: Pair, spot: Spot, window: Window) -> Json:
    return {
        "place": _place(window),
        "before": encode(pair.before.read_plane(spot, window)),
        "after": encode(pair.after.read_plane(spot, window)),
    }


def _sample(pair: Pair, spot: Spot, window: Window) -> tuple[Array, Array, str]:
    """Pixels of both sides at the same places, flat, and in words which."""
    info = pair.info
    planes = info.size("Z")
    whole = planes * pair.plane.height * pair.plane.width
    if whole <= EXACT_PIXELS:
        first = Spot(spot.t, spot.c, 0)
        both = [side.read(first, pair.plane, planes).ravel() for side in (pair.before, pair.after)]
        return both[0], both[1], "all pixels"
    boxes = survey_boxes((1, planes, pair.plane.height, pair.plane.width))
    places = [
        (Spot(spot.t, spot.c, z.start), Window(y.start, x.start, y.stop - y.start, x.stop - x.start))
        for _, z, y, x in boxes
    ]
    dearest = max(pair.cost_bytes(*place) for place in places)
    allowed = SAMPLE_BYTES // max(dearest, 1)
    if allowed < FEWEST_BOXES:
        places = [(spot, window)]
    elif allowed < len(places):
        places = [places[k] for k in evenly(len(places), allowed)]
    read = [[side.read_plane(*place).ravel() for place in places] for side in (pair.before, pair.after)]
    before, after = (np.concatenate(parts) for parts in read)
    said = f"{before.size:,} pixels in {len(places)} boxes" if len(places) > 1 else "the detail alone"
    return before, after, said


def _residual(pair: Pair, spot: Spot, window: Window, kernel: Kernel) -> Json:
    if kernel.psf is None:
        return {"why": kernel.said}
    values = kernel.psf.values_zyx
    radius = kernel.psf.radius_zyx
    low = Window(
        max(0, window.y - radius[1]),
        max(0, window.x - radius[2]),
        min(pair.plane.height, window.y + window.height + radius[1]) - max(0, window.y - radius[1]),
        min(pair.plane.width, window.x + window.width + radius[2]) - max(0, window.x - radius[2]),
    )
    first, last = max(0, spot.z - radius[0]), min(pair.info.size("Z"), spot.z + radius[0] + 1)
    from_plane = Spot(spot.t, spot.c, first)
    if pair.after.cost_bytes(from_plane, low, last - first) > 4 * SAMPLE_BYTES:
        return {"why": "the planes that the PSF reaches would be too many to read"}
    before = pair.before.read_plane(spot, window)
    block = pair.after.read(from_plane, low, last - first).astype(np.float64)
    if not (np.isfinite(block).all() and (before.dtype.kind != "f" or np.isfinite(before).all())):
        return {"why": "the detail, or what lies around it, holds NaN or infinite values"}
    missing = [
        (first - (spot.z - radius[0]), spot.z + radius[0] + 1 - last),
        (low.y - (window.y - radius[1]), window.y + window.height + radius[1] - low.y - low.height),
        (low.x - (window.x - radius[2]), window.x + window.width + radius[2] - low.x - low.width),
    ]
    fitted, figures = residual(before, reblur(np.pad(block, missing, mode="symmetric"), values))
    spread = float(before.std()) or 1.0
    return {
        **figures,
        "psf": kernel.said,
        "three_d": kernel.psf.is_3d,
        "reblurred": encode(fitted, spread / 200),
    }


def _stack(pair: Pair, spot: Spot, window: Window, limits: Limits, step: float) -> Json | None:
    planes = pair.info.size("Z")
    if planes == 1:
        return None
    depth = min(planes, limits.volume_planes)
    room = int(math.sqrt(limits.volume_voxels / limits.views / depth))
    box = _box(window, pair.plane, max(48, room))
    while depth > 2 and pair.cost_bytes(Spot(spot.t, spot.c, 0), box, depth) > limits.bytes_each // 4:
        depth //= 2
    first = min(max(0, spot.z - depth // 2), planes - depth)
    start = Spot(spot.t, spot.c, first)
    found: Json = {"projections": _projections(pair, spot, limits, step)}
    if pair.cost_bytes(start, box, depth) > limits.bytes_each:
        return {**found, "volume": {"why": "its chunks are so large that too much would have to be read"}}
    volume = [side.read(start, box, depth) for side in (pair.before, pair.after)]
    return {
        **found,
        "volume": {
            "place": [first, depth, *_place(box)],
            "whole": depth == planes and box == pair.plane,
            "before": encode(volume[0], 4 * step),
            "after": encode(volume[1], 4 * step),
        },
    }


def _box(window: Window, plane: Window, size_px: int) -> Window:
    """A box of `size_px` squared pixels around a window: longer along one side where the other is cut by the image."""
    area = size_px**2
    height = min(plane.height, size_px)
    width = min(plane.width, area // height)
    height = min(plane.height, area // width)
    y = min(max(0, window.y + window.height // 2 - height // 2), plane.height - height)
    x = min(max(0, window.x + window.width // 2 - width // 2), plane.width - width)
    return Window(y, x, height, width)


def _projections(pair: Pair, spot: Spot, limits: Limits, step: float) -> Json:
    """Maxima of both sides along z, y and x, from overviews of the planes."""
    count = pair.info.size("Z")
    planes = evenly(count, limits.projection_planes)
    longest = limits.projection_px
    cost = [side.overview_bytes(spot, longest) * len(planes) for side in (pair.before, pair.after)]
    if max(cost) > limits.bytes_each:
        return {"why": f"{bytes_text(max(cost))} would have to be read, as there is no small level of a pyramid"}
    found: Json = {"planes": len(planes), "of": count}
    for name, side in (("before", pair.before), ("after", pair.after)):
        top: Array | None = None
        xz, yz = [], []
        for z in planes:
            small = side.overview(Spot(spot.t, spot.c, z), longest, limits.bytes_each // len(planes)).pixels_yx
            small = np.where(np.isfinite(small), small, -np.inf)
            top = small if top is None else np.maximum(top, small)
            xz.append(small.max(0))
            yz.append(small.max(1))
        found[name] = {
            "xy": _encoded(top if top is not None else np.zeros((1, 1)), step),
            "xz": _encoded(np.stack(xz), step),
            "yz": _encoded(np.stack(yz, 1), step),
        }
    return found


def _encoded(image: Array, step: float) -> Json:
    return encode(np.where(np.isfinite(image), image, np.nan), step)
