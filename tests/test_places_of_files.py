"""The input may lie where nothing can be written, and the output on another device than the working directory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.helpers import deconvolve, pixels, spots, tiny_weights
from tests.test_deconvolve import write_zarr

_READ_ONLY = """
import errno, os, sys
folder, outputs, *arguments = os.path.realpath(sys.argv[1]), *sys.argv[2:]
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}

def refuse(event, values):
    if event == "open":
        paths = values[:1] if isinstance(values[2], int) and values[2] & WRITES else ()
    else:
        paths = values[:2] if event in CHANGES else ()
    for path in paths:
        if isinstance(path, (str, bytes)) and os.path.realpath(os.fsdecode(path)).startswith(folder):
            raise OSError(errno.EROFS, "Read-only file system", os.fsdecode(path))

sys.addaudithook(refuse)
from mrbcr_cli.cli import run
sys.exit(max(run([*arguments, "-o", output]) for output in outputs.split(os.pathsep)))
"""
"""A disk that is read-only also to root, whom no mode bits stop."""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another device."""
    shm = Path("/dev/shm")
    if not shm.is_dir() or not os.access(shm, os.W_OK) or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=shm) as folder:
        yield Path(folder)


def under_read_only(
    folder: Path, outputs: list[Path], arguments: tuple[object, ...]
) -> subprocess.CompletedProcess[str]:
    """Run `mrbcr deconvolve` for each output in a process that cannot write to a folder."""
    texts = map(str, (folder, os.pathsep.join(map(str, outputs)), "deconvolve", *arguments))
    return subprocess.run(
        [sys.executable, "-c", _READ_ONLY, *texts],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["in.tif", "in.ome.zarr", "planes"])
def test_read_only_input_and_output_on_another_device(tmp_path: Path, elsewhere: Path, name: str) -> None:
    given = tmp_path / "given"
    given.mkdir()
    image = spots((3, 90, 80))
    if name == "planes":
        (given / name).mkdir()
        for k, plane in enumerate(image):
            tifffile.imwrite(given / name / f"{k}.tif", plane)
    elif name == "in.tif":
        tifffile.imwrite(given / name, image, metadata={"axes": "ZYX"}, photometric="minisblack")
    else:
        write_zarr(given / name, image, "ZYX")
    weights = tiny_weights(given / "tiny.safetensors")
    args = (given / name, "-m", weights, "-q")
    for output in ("o.ome.zarr", "o.ome.tif"):
        assert deconvolve(*args, "-o", tmp_path / output) == 0
    before = {p: p.stat().st_mtime_ns for p in given.rglob("*")}
    ended = under_read_only(given, [elsewhere / "o.ome.zarr", elsewhere / "o.ome.tif"], args)
    assert ended.returncode == 0, ended.stderr
    for output in ("o.ome.zarr", "o.ome.tif"):
        assert np.array_equal(pixels(elsewhere / output), pixels(tmp_path / output))
    assert {p: p.stat().st_mtime_ns for p in given.rglob("*")} == before


def test_an_output_in_a_read_only_place_is_refused_in_one_line(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", spots((64, 64)))
    (tmp_path / "given").mkdir()
    weights = tiny_weights(tmp_path / "tiny.safetensors")
    args = (tmp_path / "in.tif", "-m", weights, "-q")
    ended = under_read_only(tmp_path / "given", [tmp_path / "given" / "o.ome.zarr"], args)
    assert ended.returncode == 3
    assert "Read-only file system" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
