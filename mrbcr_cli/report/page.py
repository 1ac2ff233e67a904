"""The page: templates filled with tables, text and data; one file that needs no network.

Invariant: every text from an image, its metadata or the command line is escaped where it becomes markup, and lies in
JSON that cannot end its element where a script reads it; the page's policy lets no script run but its own (by hash).
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from mrbcr_cli import __version__
from mrbcr_cli.console import clock_text
from mrbcr_cli.figures import colour_map
from mrbcr_cli.images.base import ImageInfo
from mrbcr_cli.places import Place
from mrbcr_cli.report.embed import safe_json
from mrbcr_cli.report.measures import QUANTILES
from mrbcr_cli.report.pair import Pair
from mrbcr_cli.report.texts import citations, domain_words, method_words

Json = dict[str, Any]

COLOUR_MAPS = ("gray", "viridis", "magma", "cividis")
"""Grey and perceptually uniform ones."""
DIFFERENCE_MAP = "RdBu_r"
SCRIPTS = ("draw.js", "page.js", "stack.js", "start.js")


def render_page(
    output: Place, record: Json, pair: Pair, views: Sequence[Json], warnings: Sequence[str], *, made: str
) -> str:
    """The HTML of a report. `warnings` are of the pairing; those of the run are in the record; `made` is a date."""
    info = pair.info
    script = "".join(_template(name) for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    said = [*warnings, *map(str, record.get("warnings") or ())]
    notes = [str(note) for note in record.get("notes") or () if str(note) not in said]
    parts = {
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        "title": html.escape(f"{output.name}: before and after"),
        "css": _template("page.css"),
        "name": html.escape(output.name),
        "lead": html.escape(_lead(record, info)),
        "warnings": _listed("warning", "Warnings", said),
        "left_out": _listed("note", "Not on this page", _left_out(info, views)),
        "notes": _listed("note", "Notes of the run", notes),
        "facts": _facts(record, info),
        "domain": _domain(record, info),
        "provenance": _provenance(output, record, pair),
        "command": html.escape(str(record.get("command", ""))),
        "folder": html.escape(str(record.get("folder", ""))),
        "raw": html.escape(json.dumps(record, indent=1, ensure_ascii=False)),
        "cite": "".join(f"<li>{html.escape(text)}</li>" for text in citations(record)),
        "made": html.escape(f"mrbcr {__version__}, {made}"),
        "data": safe_json(_data(info, views)),
        "script": script,
    }
    return re.sub(r"<!--mrbcr:(\w+)-->", lambda match: parts[match[1]], _template("page.html"))


def _template(name: str) -> str:
    return files("mrbcr_cli.report").joinpath(name).read_text(encoding="utf-8")


def _data(info: ImageInfo, views: Sequence[Json]) -> Json:
    maps = {name: base64.b64encode(colour_map(name)).decode() for name in (*COLOUR_MAPS, DIFFERENCE_MAP)}
    return {
        "pixel_um": info.scale_um("X"),
        "pixel_y_um": info.scale_um("Y"),
        "step_um": info.scale_um("Z"),
        "size": [info.size(axis) for axis in "TCZYX"],
        "channels": {str(view["c"]): channel_name(info, view["c"]) for view in views},
        "times": sorted({view["t"] for view in views}),
        "time_step": info.scale_of("T"),
        "time_unit": info.unit_of("T"),
        "quantile_at": list(QUANTILES),
        "maps": maps,
        "difference": DIFFERENCE_MAP,
        "views": list(views),
    }


def channel_name(info: ImageInfo, c: int) -> str:
    """What a channel is called."""
    name = info.channel_names[c] if c < len(info.channel_names) else ""
    return f"{c}: {name}" if name else f"channel {c}"


def _lead(record: Json, info: ImageInfo) -> str:
    size = " × ".join(f"{axis} {n}" for axis, n in zip(info.axes, info.shape, strict=True))
    pixel = info.scale_um("X")
    parts = [str(record["input"].get("name", "")), method_words(record), f"{size}, {info.dtype}"]
    parts.append(f"{1000 * pixel:.4g} nm pixels" if pixel else "pixel size unknown")
    return " · ".join(part for part in parts if part)


def _left_out(info: ImageInfo, views: Sequence[Json]) -> list[str]:
    said = []
    for key, axis, what, option in (("c", "C", "channels", "--channels"), ("t", "T", "time points", "--t")):
        shown = sorted({view[key] for view in views})
        if len(shown) < info.size(axis):
            listed = ", ".join(map(str, shown))
            said.append(f"{info.size(axis)} {what}, of which {listed} are shown; mrbcr report {option} chooses others")
    return said


def _listed(kind: str, title: str, said: Iterable[str]) -> str:
    items = "".join(f"<li>{html.escape(text)}</li>" for text in said)
    return f'<aside class="{kind}"><h2>{title}</h2><ul>{items}</ul></aside>' if items else ""


def _facts(record: Json, info: ImageInfo) -> str:
    """Cards: what the run counted. Those of resolution are filled in by the script, for the view that is shown."""
    pixels = record.get("pixels")
    cards: list[tuple[str, str, str]] = []
    share, clipped = record.get("clipped_fraction"), record.get("clipped")
    if share is None:
        cards.append(("Clipped", "not recorded", ""))
    else:
        of = (
            f"{clipped:,} pixels left the range of {info.dtype}"
            if clipped
            else f"no pixel left the range of {info.dtype}"
        )
        cards.append(("Clipped", f"{100 * share:.2g} %", of))
    bad = record.get("non_finite")
    cards.append(("NaN or infinite", "not recorded" if bad is None else f"{bad:,}", "pixels of the input"))
    run: Json = record["run"] if isinstance(record.get("run"), dict) else {}
    seconds, wall = run.get("seconds", {}), run.get("blocks_wall_seconds")
    if wall is not None and not run.get("blocks_resumed"):
        speed = (
            f"{pixels / 1e6 / wall:.3g} Mpixel/s, {run.get('workers', 1)} blocks at a time" if pixels and wall else ""
        )
        cards.append(("Run time", _time(wall), speed))
    elif seconds:
        cards.append(("Computing", _time(sum(seconds.values())), "summed over blocks, done in several runs"))
    else:
        cards.append(("Run time", "not recorded", ""))
    return "".join(
        f'<div class="card"><dt>{title}</dt><dd>{html.escape(value)}<small>{html.escape(more)}</small></dd></div>'
        for title, value, more in cards
    )


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 100 else f"{clock_text(seconds)} h"


def _domain(record: Json, info: ImageInfo) -> str:
    """What was told of each channel from its spectrum and noise, before it was deconvolved."""
    channels = [c for c in record.get("channels") or () if isinstance(c, dict)]
    rows = [
        (channel_name(info, k), domain_words(channel["estimate_of_domain"]))
        for k, channel in enumerate(channels)
        if isinstance(channel.get("estimate_of_domain"), dict)
    ]
    if not rows:
        return "<p>The images were not held against the domain of a model.</p>"
    return _table(rows)


def _provenance(output: Place, record: Json, pair: Pair) -> str:
    source = record["input"]
    rows: list[tuple[str, str]] = [
        ("Output", str(output)),
        ("Input", str(source.get("path") or source.get("name"))),
        ("Input fingerprint", str(source.get("fingerprint"))),
        ("Run fingerprint", str(record.get("fingerprint"))),
        ("Made by", f"mrbcr {record.get('version')}"),
    ]
    for k, channel in enumerate(c for c in record.get("channels") or () if isinstance(c, dict)):
        rows.append((channel_name(pair.info, k), _channel_words(channel)))
    pixel = [pair.info.scale_um(axis) for axis in "XYZ"]
    known = [f"{axis} {size:.5g} µm" for axis, size in zip("xyz", pixel, strict=True) if size is not None]
    rows.append(("Voxel size", ", ".join(known) or "unknown"))
    levels = [len(side.levels) for side in (pair.before, pair.after)]
    rows.append(("Levels of resolution", f"input {levels[0]}, output {levels[1]}"))
    return _table(rows)


def _channel_words(channel: Json) -> str:
    parts = [str(channel.get("method"))]
    for key, word in (
        ("model", "model"),
        ("weights_sha256", "SHA-256"),
        ("psf", "PSF"),
        ("psf_sha256", "PSF SHA-256"),
        ("iterations", "iterations"),
        ("tv", "TV"),
        ("balance", "balance"),
        ("precision", "precision"),
        ("device", "device"),
    ):
        if channel.get(key) not in (None, 0.0):
            parts.append(f"{word} {channel[key]}")
    span = channel.get("range")
    if isinstance(span, dict):
        parts.append(f"range {span.get('low'):.6g} to {span.get('high'):.6g} ({span.get('how')})")
    return ", ".join(parts)


def _table(rows: Iterable[tuple[str, str]]) -> str:
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>' for name, value in rows
    )
    return f"<table>{body}</table>"
