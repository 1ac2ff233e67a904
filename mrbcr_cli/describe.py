"""What `mrbcr info` and `mrbcr weights` print: facts as a dictionary, then as lines or as JSON.

Invariant: looking at a file writes nothing; the same facts come out as text and as JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from mrbcr_cli.console import bytes_text, clock_text, plain
from mrbcr_cli.errors import InputError
from mrbcr_cli.images import find_source, open_source
from mrbcr_cli.images.base import ImageInfo
from mrbcr_cli.plan import Plan, make_plan
from mrbcr_cli.settings import DeconvolveSettings

_PROBE_PX = 384


def describe_image(
    name: str, settings: DeconvolveSettings, *, plan: bool, measure: bool = False, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Return the facts of an image, with "plan" what deconvolving it would take. Raises InputError.

    With `measure` tile and batch sizes are tried first, and what is best is remembered for later runs.
    """
    source = find_source(name, series=settings.series, axes=settings.axes, split_rgb=settings.split_rgb)
    reader = open_source(source)
    try:
        facts = describe_info(reader.info)
    finally:
        reader.close()
    if plan:
        from mrbcr_cli.carry_out import describe_plan

        made = make_plan(source, settings, "ome-zarr")
        tried = []
        if measure:
            tried = _measure(made, settings, say)
            made = make_plan(source, settings, "ome-zarr")
        speed = probe_speed(made)
        facts["plan"] = {
            **{
                k: v
                for k, v in describe_plan(made, None).items()
                if k not in ("input", "axes", "shape", "dtype", "notes")
            },
            "megapixels_per_s": round(speed, 3),
            "expected_seconds": round(made.read_megapixels / speed, 1),
            **({"measured": tried} if measure else {}),
        }
    return facts


def _measure(plan: Plan, settings: DeconvolveSettings, say: Callable[[str], None]) -> list[dict[str, Any]]:
    from mrbcr_cli.measure import measure
    from mrbcr_cli.restore import NetworkSpec

    spec = plan.methods[0].spec
    if not isinstance(spec, NetworkSpec):
        raise InputError("--measure: is for networks; explicit methods choose their blocks by memory")
    try:
        return [asdict(speed) for speed in measure(settings, spec, say)]
    except OSError as error:
        raise InputError(f"--measure: what was found cannot be kept ({error}); set MRBCR_CACHE_DIR") from error


def describe_info(info: ImageInfo) -> dict[str, Any]:
    """Return an ImageInfo as JSON-able facts."""
    return {
        "file": info.path,
        "format": info.format,
        "axes": info.axes,
        "stored_axes": info.stored_axes,
        "shape": list(info.shape),
        "dtype": info.dtype.name,
        "bytes": info.nbytes,
        "chunks": list(info.chunks),
        "scale": {a: s for a, s in zip(info.axes, info.scale, strict=True) if s is not None},
        "units": {a: u for a, u in zip(info.axes, info.units, strict=True) if u is not None},
        "channels": list(info.channel_names),
        "series": info.series,
        "series_count": info.series_count,
        "ome_xml": info.ome_xml is not None,
        "notes": list(info.notes),
    }


def probe_speed(plan: Plan) -> float:
    """Return Mpixel/s of all workers together, from one small tile run now on this machine (seconds of work)."""
    import numpy as np
    import torch

    from mrbcr_cli.intensity import IntensityRange

    torch.set_num_threads(plan.share.torch_threads)
    method = plan.methods[0].spec.build()
    depth = min(plan.grid.block_shape[plan.grid.axes.index("Z")] if "Z" in plan.grid.axes else 1, 32)
    block = np.random.default_rng(0).random((depth, _PROBE_PX, _PROBE_PX), np.float32)
    borders = ((True, True),) * 3
    method.restore(block[:, :64, :64], IntensityRange(0, 1), borders)
    started = time.perf_counter()
    method.restore(block, IntensityRange(0, 1), borders)
    return plan.share.workers * block.size / 1e6 / (time.perf_counter() - started)


def print_description(facts: dict[str, Any], *, as_json: bool) -> None:
    """Print an image's facts on stdout."""
    if as_json:
        print(json.dumps(facts))
        return
    size = "  ".join(f"{axis} {n}" for axis, n in zip(facts["axes"], facts["shape"], strict=True))
    print(plain(facts["file"]))
    rows = {
        "format": facts["format"],
        "size": f"{size}  {facts['dtype']}  {bytes_text(facts['bytes'])}",
        "axes on disk": facts["stored_axes"],
        "chunks": " x ".join(map(str, facts["chunks"])),
        "scale": "  ".join(f"{a} {v:.6g} {facts['units'].get(a, '')}".rstrip() for a, v in facts["scale"].items())
        or "unknown",
        "channels": ", ".join(n or "unnamed" for n in facts["channels"]) or "unnamed",
        "series": f"{facts['series']} of {facts['series_count']}",
        "OME-XML": "yes" if facts["ome_xml"] else "no",
    }
    for note in facts["notes"]:
        rows[f"note {facts['notes'].index(note) + 1}"] = note
    if "plan" in facts:
        p = facts["plan"]
        rows |= {
            "blocks": f"{p['blocks']} of {' x '.join(map(str, p['block_shape']))}, halo {p['halo'][-1]} px",
            "workers": f"{p['workers']} with {p['torch_threads']} thread(s) each",
            "memory": f"about {bytes_text(p['expected_memory_bytes'])}",
            **_domain_rows(p),
            "time": f"about {clock_text(p['expected_seconds'])} at {p['megapixels_per_s']} Mpixel/s (probed now)",
        }
    for key, value in rows.items():
        print(f"  {key:13} {plain(str(value))}")


def _domain_rows(plan: dict[str, Any]) -> dict[str, str]:
    """What was found of each channel that was held against its model's limits, and where it lies outside of them."""
    rows = {}
    for index, found in enumerate(plan["domain"]):
        if found is not None:
            fwhm, snr = (
                f"{found[key]:.3g}" if found[key] is not None else "unknown" for key in ("fwhm_px", "snr_peak")
            )
            rows[f"channel {index}"] = f"{found['content']}; finest detail {fwhm} px (FWHM); peak over noise {snr}"
    return rows | {f"warning {k + 1}": text for k, text in enumerate(plan["warnings"])}


def print_table(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print rows of equal keys on stdout, as columns or as one JSON array."""
    if as_json or not rows:
        print(json.dumps(rows))
        return
    cells = [[str(key) for key in rows[0]], *([plain(str(v)) for v in row.values()] for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    for row in cells:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def print_facts(facts: dict[str, Any], *, as_json: bool) -> None:
    """Print a dictionary on stdout, a line a key or as JSON."""
    if as_json:
        print(json.dumps(facts))
        return
    flat = {
        k: v for key, value in facts.items() for k, v in (value if isinstance(value, dict) else {key: value}).items()
    }
    width = max(len(key) for key in flat)
    for key, value in flat.items():
        print(f"{plain(key):{width}}  {json.dumps(value) if isinstance(value, dict | list) else plain(str(value))}")
