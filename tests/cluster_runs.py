"""What the tests of runs on a cluster share: an input whose blocks tell their numbers, and what a run said of them.

The pixels to come to are those of a run on threads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from tests.helpers import deconvolve, pixels, spots, tiny_weights

BLOCKS = 12
HUNG_S = 600
"""After so long on the busiest machine something hangs; nothing waits for it where all is well."""
LOCAL = ("--cluster", "local", "--workers", 2)


def make_case(folder: Path) -> tuple[Path, Path, np.ndarray]:
    """An input of 12 planes (a block each, whose first pixel is 1000 + number), weights, pixels of a threads run."""
    weights = tiny_weights(folder / "tiny.safetensors")
    image = spots((BLOCKS, 64, 64))
    image[:, 0, 0] = 1000 + np.arange(BLOCKS)
    tifffile.imwrite(folder / "in.tif", image, photometric="minisblack", metadata={"axes": "ZYX"})
    assert deconvolve(folder / "in.tif", "-o", folder / "threads.ome.zarr", "-m", weights, "-q") == 0
    return folder / "in.tif", weights, pixels(folder / "threads.ome.zarr")


def ran(capsys: pytest.CaptureFixture[str]) -> tuple[list[int], dict[str, Any], str]:
    """Of the run before: the blocks it did, its last event, and what it said on stderr."""
    said = capsys.readouterr()
    events = [json.loads(line) for line in said.out.splitlines()]
    return [e["number"] for e in events if e["event"] == "block"], events[-1], said.err
