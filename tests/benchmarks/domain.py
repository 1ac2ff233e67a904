"""The domain check on simulated images: false alarms within the domain of `widefield`, detections outside of it.

Pairs of `simulate pairs` with its defaults (which are that domain) and seeds of their own; with the real sharp sources
of the reference data too, where those are at hand.
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

LIMITS = {"fwhm_px": (2.0, 6.0), "photons": (20.0, 5000.0)}
SEED = 2026
SHARP = ("membrane2d", "BPAE_actin", "BPAE_mito", "xyc_16bit__cell_dna_nup_mts_actin", "pollen", "maize_clsm")
SOURCE_PX = 256
"""Largest patch that every sharp source fills."""
WITHIN = {"128 px": (800, {"patch": 128}), "256 px": (800, {"patch": 256}), "512 px": (100, {"patch": 512})}
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
        for name, (count, changes) in WITHIN.items():
            if sources and changes["patch"] > SOURCE_PX:
                continue
            said, ms = _warnings(12 if quick else count, changes, sources)
            rows.append(_row(f"false alarms, {kind}, {name}", [bool(texts) for texts in said], f"{ms:.0f} ms an image"))
        for name, (count, changes, words) in OUTSIDE.items():
            said, _ = _warnings(12 if quick else count, {"patch": 256, **changes}, sources)
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
    count: int, changes: dict[str, Any], sources: tuple[SharpSource, ...]
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
        said.append(check_domain(estimate_domain([image]), LIMITS))
        seconds += time.perf_counter() - started
    return said, 1000 * seconds / count
