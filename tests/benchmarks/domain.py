"""The domain check on simulated images: false alarms within the domains of the models, detections outside.

Pairs of `simulate pairs` with its defaults (which are the domain of `widefield`) and a seed of their own; with the real
sharp sources of the reference data too, where those are at hand.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mrbcr_cli.domain import check_domain, estimate_domain
from mrbcr_cli.simulate.pair import PairsJob, make_pair
from mrbcr_cli.simulate.pairs_settings import PairsSettings
from mrbcr_cli.simulate.sources import SharpSource, find_sources

Limits = dict[str, tuple[float, float]]
LIMITS: Limits = {"fwhm_px": (2.0, 6.0), "photons": (20.0, 5000.0)}
SEED = 2026
SHARP = ("membrane2d", "BPAE_actin", "BPAE_mito", "xyc_16bit__cell_dna_nup_mts_actin", "pollen", "maize_clsm")
SOURCE_PX = 256
"""Largest patch that every sharp source fills."""
CONFOCAL: dict[str, Any] = {
    "microscope": "confocal",
    "pinhole_au": (0.6, 2.0),
    "defocus": (-0.1, 0.1),
    "photons": (5.0, 1000.0),
    "background": (0.0, 0.3),
    "gain": (1.0, 20.0),
    "read_noise": (0.0, 2.0),
}
BRIGHTFIELD: dict[str, Any] = {
    "microscope": "brightfield",
    "na": (0.3, 1.3),
    "defocus": (-0.2, 0.2),
    "gain": (0.5, 2.0),
}
WITHIN: dict[str, tuple[int, dict[str, Any], Limits]] = {
    "widefield, 128 px": (800, {"patch": 128}, LIMITS),
    "widefield, 256 px": (800, {"patch": 256}, LIMITS),
    "widefield, 512 px": (200, {"patch": 512}, LIMITS),
    "confocal, 256 px": (
        200,
        {"patch": 256, **CONFOCAL},
        {"fwhm_px": (2.0, 6.0), "photons": (5.0, 1000.0), "read_noise_e": (0.0, 2.0)},
    ),
    "brightfield, 256 px": (200, {"patch": 256, **BRIGHTFIELD}, {"fwhm_px": (2.0, 6.0)}),
}
OUTSIDE: dict[str, tuple[int, dict[str, Any], str]] = {
    "FWHM 8 to 10 px": (150, {"fwhm": (8.0, 10.0), "photons": (200.0, 5000.0)}, "finest detail"),
    "FWHM 10 to 14 px": (150, {"fwhm": (10.0, 14.0), "photons": (200.0, 5000.0)}, "finest detail"),
    "FWHM 1.0 to 1.4 px, under 200 photons": (
        100,
        {"fwhm": (1.0, 1.4), "photons": (20.0, 200.0)},
        "size of its pixels",
    ),
    "FWHM 1.0 to 1.4 px, over 200 photons": (
        150,
        {"fwhm": (1.0, 1.4), "photons": (200.0, 5000.0)},
        "size of its pixels",
    ),
    "1 to 4 photons": (150, {"photons": (1.0, 4.0)}, "above its noise|above their noise"),
    "4 to 8 photons": (150, {"photons": (4.0, 8.0)}, "above its noise|above their noise"),
}


def measure(scratch: Path, quick: bool) -> list[dict[str, Any]]:
    """Share of images with any warning within the domain, and with the right one outside; milliseconds an image."""
    rows = []
    for kind, sources in (("procedural", ()), ("real sources", _sources())):
        if kind != "procedural" and not sources:
            continue
        for name, (count, changes, limits) in WITHIN.items():
            if sources and changes["patch"] > SOURCE_PX:
                continue
            said, ms = _warnings(12 if quick else count, changes, limits, sources)
            rows.append(_row(f"false alarms, {kind}, {name}", [bool(texts) for texts in said], f"{ms:.0f} ms an image"))
        for name, (count, changes, words) in OUTSIDE.items():
            said, _ = _warnings(12 if quick else count, {"patch": 256, **changes}, LIMITS, sources)
            right = [any(word in text for text in texts for word in words.split("|")) for texts in said]
            rows.append(_row(f"detected, {kind}, {name}", right, "256 px"))
    return rows


def _row(figure: str, hits: Sequence[bool], note: str) -> dict[str, Any]:
    return {
        "figure": figure,
        "value": round(100 * float(np.mean(hits)), 2),
        "unit": "%",
        "note": f"{sum(hits)} of {len(hits)}; {note}",
    }


def _sources() -> tuple[SharpSource, ...]:
    shared = Path(os.environ.get("MRBCR_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    paths = [shared / "data" / "train" / f"{name}.tif" for name in SHARP]
    return find_sources([str(path) for path in paths if path.is_file()], SOURCE_PX) if paths[0].is_file() else ()


def _warnings(
    count: int, changes: dict[str, Any], limits: Limits, sources: tuple[SharpSource, ...]
) -> tuple[list[tuple[str, ...]], float]:
    """Return what the check says of each of `count` images, and the milliseconds that it takes."""
    settings = PairsSettings(
        count=count, seed=SEED, splits=(1, 0, 0), source=tuple(source.name for source in sources), **changes
    )
    job = PairsJob(settings, sources, ("train",) * len(sources), (count, 0, 0))
    said, seconds = [], 0.0
    for index in range(count):
        image = make_pair(job, index).blurred
        started = time.perf_counter()
        said.append(check_domain(estimate_domain([image]), limits))
        seconds += time.perf_counter() - started
    return said, 1000 * seconds / count
