"""The files that the README's commands name, tiny; and stand-ins for programs that are not here.

Invariant: names are those of the README; what is in them is small, so that its commands run as they are printed.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import tifffile
import zarr

from mrbcr_cli.cli import run
from mrbcr_cli.optics import Grid, Microscope, Objective, compute_psf
from tests.helpers import spots, tiny_weights

TOP = Path(__file__).resolve().parents[1]
SMALLER = (
    (r"--steps \d+", "--steps 2"),
    (r"--count \d+", "--count 3"),
    (r"--shape 64 1024 1024", "--shape 3 64 64"),
    (r"--nproc-per-node \d+", "--nproc-per-node 1"),
    (r"--jobs \d+ --cores \d+ --memory 32GB", "--jobs 1 --cores 1 --memory 2GB"),
    (r"--jobs 4 --gpus-per-job 2", "--jobs 1 --gpus-per-job 1 --cores 1 --memory 2GB"),
    (r"--workers 4", "--workers 2"),
    (r"--array=0-15", "--array=0-1"),
)
"""All that is changed in a command before it is run: how many. Nothing is added but what a small machine can give."""
SMALLER_YAML = (
    *(
        (rf"(?m)^( *){name}: \d+", rf"\g<1>{name}: {value}")
        for name, value in (("steps", 2), ("every", 1), ("batch", 2))
    ),
    *((rf"(?m)^( *){name}: \d+", rf"\g<1>{name}: {value}") for name, value in (("field", 96), ("count", 2))),
    (r"(?m)^pool: \d+", "pool: 4\nvalidation_pairs: 2"),
    (r"(?m)^patch: \d+", "patch: 64"),
    (r"(?m)^precision: bf16", "precision: fp32"),
)
"""The same for the recipes of examples/."""
OBJECTIVE = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">
<Instrument ID="Instrument:0"><Objective ID="Objective:0" LensNA="1.2" Immersion="Water"/></Instrument>
<Image ID="Image:0"><InstrumentRef ID="Instrument:0"/><ObjectiveSettings ID="Objective:0"/>
<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="96" SizeY="96" SizeC="1" SizeZ="1" SizeT="1"
 PhysicalSizeX="0.1" PhysicalSizeY="0.1" PhysicalSizeZ="0.3"><Channel ID="Channel:0" EmissionWavelength="525"
 SamplesPerPixel="1"/><TiffData/></Pixels></Image></OME>"""


def smaller(text: str, rules: tuple[tuple[str, str], ...] = SMALLER) -> str:
    """The text with fewer of what there are many of."""
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def build(folder: Path) -> None:
    """Make every file that the README names."""
    _examples(folder / "examples")
    for name, shape, axes in (("stack.ome.tif", (3, 96, 96), "ZYX"), ("cells.tif", (2, 96, 96), "CYX")):
        tifffile.imwrite(folder / name, spots(shape), metadata={"axes": axes}, ome=name.startswith("stack"))
    tifffile.imwrite(folder / "cells.ome.tif", spots((96, 96)), description=OBJECTIVE, metadata=None)
    _many(folder)
    big = spots((1, 3, 8, 64, 64))
    store, chunks = str(folder / "big.zarr"), (1, 1, 1, 64, 64)
    zarr.create_array(store, data=big, chunks=chunks, dimension_names=list("tczyx"))
    tiny_weights(folder / "mine.safetensors")
    (folder / "mine").mkdir()
    shutil.copy(folder / "mine.safetensors", folder / "mine" / "best.safetensors")
    y, x = np.mgrid[-7:8, -7:8]
    tifffile.imwrite(folder / "psf.tif", np.exp(-(x**2 + y**2) / 8).astype(np.float32))
    _beads(folder / "beads.tif")
    (folder / "run.yaml").write_text("tile-size: 64\n")
    (folder / "train.yaml").write_text("pairs: [pairs.zarr]\nsteps: 2\nbatch: 1\nevery: 2\npatch: 64\n")
    _checkpoint(folder / "their_checkpoint")
    for name, count, splits in (("pairs.zarr", 14, ("0.7", "0.3", "0")), ("test.zarr", 2, ("0", "0", "1"))):
        words = ["simulate", "pairs", "-q", "-o", str(folder / name), "--count", str(count), "--splits", *splits]
        if run([*words, "--patch", "64", "--specimen", "beads", "--planes", "5", "--workers", "1"]) != 0:
            raise RuntimeError(f"{name} could not be made")


def _examples(folder: Path) -> None:
    shutil.copytree(TOP / "examples", folder, ignore=shutil.ignore_patterns("*.png", "*.md", "__pycache__"))
    for path in folder.rglob("*.yaml"):
        path.write_text(smaller(path.read_text(), SMALLER_YAML))


def _many(folder: Path) -> None:
    """Folders of images."""
    made = {
        **{f"day1/{name}.tif": (64, 64) for name in "ab"},
        **{f"planes/p{number}.tif": (64, 64) for number in range(2)},
        **{f"{kind}/field{number}.tif": (160, 160) for kind in ("blurred", "sharp") for number in range(10)},
        **{f"sharp/{kind}/{number}.tif": (256, 256) for kind in ("train", "test") for number in range(3)},
        **{f"{kind}/{name}.tif": (64, 64) for kind in ("restored", "truth", "raw") for name in "ab"},
    }
    for number, (name, shape) in enumerate(made.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / name, spots(shape, seed=number))


def _beads(path: Path) -> None:
    psf = compute_psf(Microscope(Objective(1.0, 1.33), 0.55), Grid((21, 33, 33), 0.1, 0.25)).numpy()
    field = np.zeros((31, 120, 120), np.float32)
    for y in (30, 90):
        for x in (30, 90):
            field[5:26, y - 16 : y + 17, x - 16 : x + 17] += psf / psf.max() * 800
    image = np.random.default_rng(0).poisson(field + 50).astype(np.uint16)
    scale = {"axes": "ZYX", "spacing": 0.25, "unit": "um"}
    tifffile.imwrite(path, image, imagej=True, metadata=scale, resolution=(10, 10))


def _checkpoint(folder: Path) -> None:
    """Named like one of TensorFlow, which reads it; no more."""
    folder.mkdir()
    (folder / "checkpoint").write_text('model_checkpoint_path: "ckpt-1"\n')
    for name in ("ckpt-1.index", "ckpt-1.data-00000-of-00001"):
        (folder / name).write_bytes(b"not one")


PIP = """#!{python}
# Knows the extras of the package and nothing else: an extra that is not there is an error.
import re, sys
words = [word for word in sys.argv[2:] if not word.startswith("-")]
known = {extras}
for word in words:
    match = re.fullmatch(r"(?:mrbcr|\\.)(?:\\[([a-z,]+)\\])?", word)
    if sys.argv[1] != "install" or not match or set((match[1] or "").split(",")) - {{"", *known}}:
        sys.exit("pip: " + " ".join(sys.argv[1:]))
"""
PYTHON = """#!/bin/sh
# -m venv makes a folder with the stand-ins in it; all else is Python.
if [ "$1 $2" = "-m venv" ]; then
    mkdir -p "$3/bin" && ln -s "{folder}/pip" "$3/bin/pip" && ln -s "{mrbcr}" "$3/bin/mrbcr"
else
    exec "{python}" "$@"
fi
"""
SBATCH = """#!/bin/bash
# Runs a job's script in the background, as SLURM does elsewhere; an array one task after the other.
case "$1" in
--array=*)
    range=${{1#--array=}}; first=${{range%-*}}; last=${{range#*-}}
    for task in $(seq "$first" "$last"); do
        SLURM_ARRAY_TASK_ID=$task SLURM_ARRAY_TASK_MIN=$first SLURM_ARRAY_TASK_COUNT=$((last - first + 1)) \\
            bash -c "$3" || exit 1
    done ;;
*)
    cp "$1" "{folder}/jobs/$$.sh"
    setsid sh "{folder}/jobs/$$.sh" > "{folder}/jobs/$$.log" 2>&1 &
    echo $! > "{folder}/jobs/$$.pid"
    echo "Submitted batch job $$" ;;
esac
"""
SCANCEL = """#!/bin/bash
for job; do kill -TERM -- -"$(cat "{folder}/jobs/$job.pid")" 2>/dev/null; done; exit 0
"""


def write_stand_ins(folder: Path, mrbcr: Path) -> None:
    """Write pip, python3, sbatch, scancel and torchrun for the PATH."""
    (folder / "jobs").mkdir(parents=True)
    extras = list(tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    known = {"python": sys.executable, "folder": folder, "mrbcr": mrbcr, "extras": extras}
    programs = {"pip": PIP, "python3": PYTHON, "python": PYTHON, "sbatch": SBATCH, "scancel": SCANCEL}
    torchrun = Path(sys.executable).parent / "torchrun"
    programs["torchrun"] = f'#!/bin/sh\nexec "{torchrun}" "$@"\n'
    programs["dask"] = f'#!/bin/sh\nexec "{sys.executable}" -m dask "$@"\n'
    for name, text in programs.items():
        (folder / name).write_text(text.format(**known) if "{" in text else text)
        (folder / name).chmod(0o755)


def end_jobs(folder: Path) -> None:
    """End what sbatch has started."""
    import contextlib
    import signal

    for file in (folder / "jobs").glob("*.pid"):
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.killpg(int(file.read_text()), signal.SIGKILL)
