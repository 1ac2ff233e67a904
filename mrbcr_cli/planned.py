"""What a run would write and replace: the answer of --dry-run, for people and as the `planned` event.

Invariant: every path that a run may create, replace or remove is in `would_write`, and asking writes nothing.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mrbcr_cli.console import bytes_text
from mrbcr_cli.plan import Plan
from mrbcr_cli.settings import DeconvolveSettings
from mrbcr_cli.stream.ledger import LedgerContents
from mrbcr_cli.targets import Target


def would_write(
    plan: Plan, target: Target, settings: DeconvolveSettings, contents: LedgerContents | None
) -> dict[str, Any]:
    """Return the levels, sizes and paths of a run that is planned, JSON-able; `contents`: of the run that it resumes.

    Sizes are those of the pixels before compression.
    """
    levels = _levels(plan, target)
    total = sum(level["bytes"] for level in levels)
    base = math.prod(plan.spec.shape) * plan.spec.dtype.itemsize
    files = [entry(target.path, "image", total)]
    files.append(entry(target.partial, "working folder", 0 if target.remote else total, temporary=True))
    if target.format == "ome-tiff":
        files[1]["bytes"] = 2 * base  # the blocks, and the TIFF that is made of them
    return {
        "levels": levels,
        "bytes": total,
        "compression": settings.compression if target.format == "ome-tiff" else "blosc-zstd",
        "files": files,
        "replaces": str(target.path) if files[0]["exists"] else None,
        "blocks_done": 0 if contents is None else len(contents.records),
    }


def entry(path: Any, what: str, size: int | None, *, temporary: bool = False) -> dict[str, Any]:
    """A file or folder that a run would write; other parts of the tool add theirs (reports, previews)."""
    exists = path.exists()
    return {"path": str(path), "what": what, "bytes": size, "temporary": temporary, "exists": exists}


def _levels(plan: Plan, target: Target) -> list[dict[str, Any]]:
    spec = plan.spec
    if target.format == "ome-tiff":
        return [_level(spec.shape, spec.dtype.itemsize, None, None)]
    from mrbcr_cli.images.omezarr_write import plan_layout, plan_pyramid

    layout = plan_layout(spec, plan.grid.block_shape, target.zarr_version)
    found = []
    for level in plan_pyramid(spec):
        fitted = layout if level.shape == spec.shape else layout.fitted(level.shape)
        found.append(_level(level.shape, spec.dtype.itemsize, fitted.chunks, fitted.shards))
    return found


def _level(
    shape: tuple[int, ...], itemsize: int, chunks: tuple[int, ...] | None, shards: tuple[int, ...] | None
) -> dict[str, Any]:
    return {
        "shape": list(shape),
        "bytes": math.prod(shape) * itemsize,
        "chunks": None if chunks is None else list(chunks),
        "shards": None if shards is None else list(shards),
    }


def planned_text(output: Any, facts: dict[str, Any]) -> str:
    """A plan in a few lines; the first begins with the output."""
    shapes = ", ".join("x".join(map(str, level["shape"][-2:])) for level in facts["levels"])
    lines = [
        f"{output}: would write {'x'.join(map(str, facts['shape']))} {facts['axes']} {facts['dtype']} "
        f"in {facts['blocks']} blocks of {'x'.join(map(str, facts['block_shape']))}, "
        f"{facts['workers']} at a time, about {bytes_text(facts['expected_memory_bytes'])} of memory",
        f"  {facts['format']}, {facts['compression']}: {bytes_text(facts['bytes'])} before compression"
        + (f", levels of {shapes} px" if len(facts["levels"]) > 1 else ""),
    ]
    for file in facts["files"][1:]:
        size = [f"up to {bytes_text(file['bytes'])}"] if file["bytes"] else []
        until = ["gone at the end"] if file["temporary"] else []
        there = ["is there now"] if file["exists"] else []
        lines.append(f"  {file['what']} {file['path']}: " + (", ".join([*size, *until, *there]) or "new"))
    if facts["replaces"] is not None:
        lines.append(f"  replaces {facts['replaces']}")
    if facts["blocks_done"]:
        lines.append(f"  resumes an unfinished run: {facts['blocks_done']} of {facts['blocks']} blocks are done")
    return "\n".join(lines)


def already_done_text(output: Path | Any) -> str:
    """What --dry-run says of an output that is finished."""
    return f"{output}: is done already, would be left as it is"
