"""Fixtures of the tests of training: data made once for all files of this folder, and not to be changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tifffile

from mrbcr_cli.cli import run

SIMULATION = {"patch": 32, "planes": 3, "specimen": ["filaments"], "seed": 5}


@pytest.fixture(scope="package")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pairs as Zarr, NPZ and folders."""
    folder = tmp_path_factory.mktemp("pairs")
    code = run(
        ["simulate", "pairs", "-o", str(folder / "p.zarr"), "--count", "20", "--patch", "48", "--planes", "3",
         "--quiet", "--npz", str(folder / "npz"), "--specimen", "filaments", "--workers", "1"]
    )  # fmt: skip
    assert code == 0
    from mrbcr_cli.images.pairs_store import read_pairs

    blurred, sharp, _ = read_pairs(folder / "p.zarr", 0, 20)
    for name, images in (("low", blurred), ("high", sharp)):
        (folder / name).mkdir()
        for k, image in enumerate(images):
            tifffile.imwrite(folder / name / f"{k:02d}.tif", image)
    return folder


@pytest.fixture(scope="package")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration that simulates as it trains."""
    path = tmp_path_factory.mktemp("yaml") / "train.yaml"
    path.write_text(json.dumps({"simulate": SIMULATION, "field": 64, "pool": 4, "fresh": 0.5}))
    return path
