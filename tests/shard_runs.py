"""Shards of one run in processes and in this one, what they say and leave, and when two outputs are the same.

The same is every byte, but for what tells one command from another.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from mrbcr_cli.cli import run
from mrbcr_cli.images import read_provenance
from mrbcr_cli.stream.ledger import read_ledger
from tests.helpers import deconvolve, pixels, spots, tiny_weights

BLOCKS = 16


def make_job(folder: Path) -> dict[str, Any]:
    """An input of 16 blocks with OME metadata, the arguments, and undisturbed outputs of each format."""
    weights = tiny_weights(folder / "tiny.safetensors")
    source = folder / "in.ome.tif"
    tifffile.imwrite(source, spots((4, 300, 256)), metadata={"axes": "ZYX", "PhysicalSizeX": 0.1}, ome=True)
    args = (source, "-m", weights, "--tile-size", 160)
    wholes = {}
    for name, extra in (("o.ome.zarr", ()), ("old.ome.zarr", ("--output-format", "ome-zarr-0.4")), ("o.ome.tif", ())):
        wholes[name] = folder / name
        assert deconvolve(*args, "-o", wholes[name], "-q", *extra) == 0
    return {"folder": folder, "source": source, "weights": weights, "args": args, "wholes": wholes}


def finish(*arguments: object) -> int:
    """Run `mrbcr finish` in this process and return its exit code."""
    return run(["finish", *map(str, arguments)])


def events(text: str, kind: str) -> list[dict[str, Any]]:
    return [e for e in map(json.loads, text.splitlines()) if e["event"] == kind]


def start(job: dict[str, Any], output: Path, shard: str) -> subprocess.Popen[bytes]:
    arguments = ["deconvolve", *job["args"], "-o", output, "--shard", shard, "-q"]
    return subprocess.Popen(
        [sys.executable, "-m", "mrbcr_cli", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def ledgers(partial: Path) -> dict[str, list[int]]:
    """Blocks by the name of the ledger that has them."""
    found = {path.name: read_ledger(path) for path in sorted(partial.glob("ledger*.jsonl"))}
    return {name: sorted(contents.records) for name, contents in found.items() if contents is not None}


def without_command(value: Any) -> Any:
    """JSON without what tells commands apart, or when and how fast they ran."""
    if isinstance(value, dict):
        return {k: without_command(v) for k, v in value.items() if k not in ("command", "run")}
    return [without_command(v) for v in value] if isinstance(value, list) else value


def assert_same_output(one: Path, other: Path) -> None:
    """Byte for byte the same files; those that hold the provenance apart from the command."""
    if one.is_file():
        assert np.array_equal(pixels(one), pixels(other))
        assert without_command(read_provenance(one)) == without_command(read_provenance(other))
        return
    names = [{p.relative_to(root) for p in root.rglob("*") if p.is_file()} for root in (one, other)]
    assert names[0] == names[1]
    for name in names[0]:
        a, b = (root / name for root in (one, other))
        if name.name in ("zarr.json", ".zattrs", "mrbcr-blocks.jsonl"):
            documents = [without_command([json.loads(t) for t in _documents(p)]) for p in (a, b)]
            assert documents[0] == documents[1], name
        else:
            assert a.read_bytes() == b.read_bytes(), name


def _documents(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
