"""A job of known blocks for the tests of faults, ways to end it, and its resumption.

Whatever ended it, the resumed run has the pixels of an undisturbed one and leaves nothing beside its output.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from mrbcr_cli.stream.ledger import read_ledger
from tests.helpers import deconvolve, die_at, pixels, spots, tiny_weights

BLOCKS = 24
TILE = ("--tile-size", 112)


def make_job(folder: Path) -> tuple[Path, Path, np.ndarray]:
    """An input of 24 blocks, weights, and the pixels of an undisturbed run."""
    weights = tiny_weights(folder / "tiny.safetensors")
    tifffile.imwrite(folder / "in.tif", spots((4, 300, 200)), photometric="minisblack", metadata={"axes": "ZYX"})
    assert deconvolve(folder / "in.tif", "-o", folder / "fresh.ome.zarr", "-m", weights, *TILE, "-q") == 0
    return folder / "in.tif", weights, pixels(folder / "fresh.ome.zarr")


def blocks_in(output: Path) -> list[int]:
    contents = read_ledger(output.with_name(output.name + ".partial") / "ledger.jsonl")
    return [] if contents is None else sorted(contents.records)


def resumed(job: tuple[Path, Path, np.ndarray], output: Path, capsys: pytest.CaptureFixture[str]) -> int:
    """Run the same command again, hold its pixels against those of the undisturbed run, return the blocks it did."""
    capsys.readouterr()
    assert deconvolve(job[0], "-o", output, "-m", job[1], *TILE, "-q", "--json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    done = [e["number"] for e in events if e["event"] == "block"]
    assert len(done) == len(set(done))
    assert np.array_equal(pixels(output), job[2])
    left = sorted(p.name for p in output.parent.iterdir() if p.name.startswith((output.name, f".{output.name}")))
    assert left == [output.name]  # nothing of the work is left beside it
    return len(done)


def die(job: tuple[Path, Path, np.ndarray], output: Path, where: str, count: int, number: int) -> tuple[int, str]:
    """Run the command in a process that gets a signal at the `count`-th call of a function; exit code and stderr."""
    return die_at(where, count, number, job[0], "-o", output, "-m", job[1], *TILE, "-q")
