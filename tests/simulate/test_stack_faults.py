"""Simulated stacks that are interrupted, fail or cannot be: the next run ends with the bytes of an undisturbed one.

Bad input is one line, and nothing is written.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile

from mrbcr_cli.images import read_provenance
from mrbcr_cli.images.omezarr_level import Level
from mrbcr_cli.simulate.stack_blocks import BlockMaker
from tests.helpers import pixels
from tests.simulate.stack_runs import OIL, SMALL, point_volume, simulate

# --- interrupted and failed -------------------------------------------------------------------------------------------

LONG = (*OIL, "--specimen", "beads", "--shape", 6, 32, 8192, "--seed", 5)


def start(output: Path, workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mrbcr_cli", "simulate", "stack", *map(str, LONG), "-o", str(output), "-q"]
    return subprocess.Popen(
        [*command, "--workers", str(workers)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def wait_for_a_block(process: subprocess.Popen[bytes], ledger: Path) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and (not ledger.exists() or ledger.read_bytes().count(b"\n") < 2):
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.005)


@pytest.mark.parametrize(("number", "workers", "code"), [(signal.SIGTERM, 2, 75), (signal.SIGKILL, 1, -9)])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    tmp_path: Path, number: int, workers: int, code: int, undisturbed: np.ndarray
) -> None:
    output, partial = tmp_path / "o.ome.zarr", tmp_path / "o.ome.zarr.partial"
    process = start(output, workers)
    wait_for_a_block(process, partial / "ledger.jsonl")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said.decode()
    assert code != 75 or b"resume" in said
    assert not output.exists() and not (tmp_path / "o_truth.ome.zarr").exists()
    done = [json.loads(line)["block"] for line in (partial / "ledger.jsonl").read_bytes().splitlines()[1:]]
    assert 1 <= len(done) < 8
    before = {p: p.stat().st_mtime_ns for p in (partial / "image.ome.zarr" / "0" / "c").rglob("*") if p.is_file()}
    assert simulate(*LONG, "-o", output, "--workers", 1) == 0
    np.testing.assert_array_equal(pixels(output), undisturbed)
    kept = [
        p for p, t in before.items() if (output / p.relative_to(partial / "image.ome.zarr")).stat().st_mtime_ns == t
    ]
    assert len(kept) >= len(done)
    assert not partial.exists()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    output = tmp_path_factory.mktemp("whole") / "o.ome.zarr"
    assert simulate(*LONG, "-o", output, "--workers", 1) == 0
    return pixels(output)


def test_a_worker_that_is_killed_ends_the_run_in_one_line(tmp_path: Path) -> None:
    process = start(tmp_path / "o.ome.zarr", 2)
    parent = psutil.Process(process.pid)
    deadline, workers = time.monotonic() + 60, []
    while len(workers) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        workers = [child for child in parent.children() if "spawn_main" in " ".join(child.cmdline())]
    workers[0].kill()  # it may not even have started: nothing may wait for it
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3, said.decode()
    assert said.count(b"\n") == 1 and b"worker" in said
    assert not psutil.wait_procs(workers, timeout=30)[1]
    assert not (tmp_path / "o.ome.zarr").exists()


@pytest.mark.usefixtures("small_blocks")
def test_a_full_disk_and_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, write, left = tmp_path / "o.ome.zarr", Level.write, [7]

    def full(self: Level, *arguments: Any) -> str:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Level, "write", full)
        assert simulate(*SMALL, "-o", output, "--workers", 1) == 3
    said = capsys.readouterr().err
    assert "No space left" in said and "resume" in said and said.count("\n") == 1
    assert not output.exists()
    # Other settings do not go on with it: they start anew.
    assert simulate(*SMALL, "--seed", 8, "-o", output, "--workers", 1) == 0
    assert simulate(*SMALL, "--seed", 8, "-o", tmp_path / "fresh.ome.zarr", "--workers", 1) == 0
    np.testing.assert_array_equal(pixels(output), pixels(tmp_path / "fresh.ome.zarr"))
    assert simulate(*SMALL, "-o", output, "--workers", 1) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert simulate(*SMALL, "-o", output, "--overwrite", "--workers", 1) == 0
    assert read_provenance(tmp_path / "o_truth.ome.zarr")["seed"] == 3  # type: ignore[index]


def test_killed_between_truth_and_image_the_next_run_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mrbcr_cli.simulate import stack

    output = tmp_path / "o.ome.zarr"

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stack, "put_in_place", stopped)
        assert simulate(*SMALL, "-o", output) == 75
    assert (tmp_path / "o_truth.ome.zarr").exists() and not output.exists()
    assert simulate(*SMALL, "--seed", 99, "-o", output) == 2  # that truth is not the one of these settings
    assert simulate(*SMALL, "-o", output) == 0
    assert read_provenance(output)["fingerprint"] == read_provenance(tmp_path / "o_truth.ome.zarr")["fingerprint"]  # type: ignore[index]
    assert not (tmp_path / "o.ome.zarr.partial").exists()


def test_a_volume_that_changes_while_it_is_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = point_volume(tmp_path / "point.tif", (3, 32, 32), (1, 16, 16))
    render = BlockMaker.render

    def changed(self: BlockMaker, *arguments: Any) -> Any:
        point_volume(source, (3, 32, 32), (1, 2, 3))
        return render(self, *arguments)

    monkeypatch.setattr(BlockMaker, "render", changed)
    assert simulate(*OIL, "--source", source, "-o", tmp_path / "o.ome.zarr") == 4
    assert not (tmp_path / "o.ome.zarr").exists()


# --- bad input --------------------------------------------------------------------------------------------------------

NUCLEI = ("--specimen", "nuclei")
SHAPE = ("--shape", 4, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*OIL, *SHAPE, "--specimen", "cats"), "nuclei"),
        ((*OIL, *SHAPE, "--specimen", "nuclei:cats"), "tissue"),
        ((*OIL, *SHAPE, "--specimen", "nuclei=-1"), "positive"),
        ((*OIL, *SHAPE), "--source"),
        ((*OIL, *NUCLEI), "--shape"),
        ((*OIL, *NUCLEI, "--shape", 0, 32, 32), "at least 1"),
        ((*OIL, *NUCLEI, "--shape", 10**6, 10**6, 10**6), "petabyte"),
        ((*OIL, *SHAPE, *NUCLEI, "--photons", 0), "--photons"),
        ((*OIL, *SHAPE, *NUCLEI, "--photons", "nan"), "--photons"),
        ((*OIL, *SHAPE, *NUCLEI, "--background", -1), "--background"),
        ((*OIL, *SHAPE, *NUCLEI, "--thickness", -1), "--thickness"),
        ((*OIL, *SHAPE, *NUCLEI, "--density", 0), "density"),
        ((*OIL, *SHAPE, *NUCLEI, "--size", 100), "size"),
        ((*OIL, *SHAPE, *NUCLEI, "--na", 1.6), "NA"),
        ((*OIL, *SHAPE, *NUCLEI, "--qe", 2), "quantum efficiency"),
        ((*OIL, *SHAPE, *NUCLEI, "--phase", 0.2), "brightfield"),
        ((*OIL, *SHAPE, *NUCLEI, "--microscope", "brightfield", "--absorption", 1), "--absorption"),
        ((*OIL, *SHAPE, *NUCLEI, "--microscope", "confocal"), "--wavelength-ex"),
        ((*OIL, *SHAPE, *NUCLEI, "--no-truth", "--truth", "t.ome.zarr"), "--no-truth"),
        ((*OIL, *SHAPE, *NUCLEI, "--truth", "out.ome.zarr"), "itself"),
        ((*OIL, *SHAPE, *NUCLEI, "--truth-fwhm", 50), "--truth-fwhm"),
        ((*OIL, *SHAPE, *NUCLEI, "--seed", -1), "--seed"),
        ((*OIL, *NUCLEI, "--source", "good.tif"), "--specimen"),
        ((*OIL, *SHAPE, "--source", "good.tif"), "--shape"),
        ((*OIL, "--source", "none.tif"), "no such file"),
        ((*OIL, "--source", "nan.tif"), "NaN"),
        ((*OIL, "--source", "flat.tif"), "everywhere"),
        ((*OIL, "--source", "negative.tif"), "negative"),
        ((*OIL, "--source", "small.tif"), "at least 8"),
        ((*OIL, "--source", "channels.tif"), "channels"),
        ((*NUCLEI, *SHAPE), "--na"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_nothing_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    good = np.random.default_rng(0).random((4, 16, 16)).astype(np.float32)
    volumes = {
        "good": good, "flat": np.ones_like(good), "negative": good - 0.5, "small": good[:, :5],
        "nan": np.where(good > 0.99, np.nan, good).astype(np.float32), "channels": np.stack([good, good]),
    }  # fmt: skip
    for name, volume in volumes.items():
        axes = "CZYX" if volume.ndim == 4 else "ZYX"
        tifffile.imwrite(f"{name}.tif", volume, photometric="minisblack", metadata={"axes": axes})
    before = sorted(tmp_path.iterdir())
    assert simulate(*arguments, "-o", "out.ome.zarr") == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("error: ") and err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["out.png", "out", "taken.ome.zarr", "file/out.ome.zarr"])
def test_names_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "taken.ome.zarr").mkdir()
    (tmp_path / "file").write_text("")
    assert simulate(*SMALL, "-o", tmp_path / name) == 2
    assert len(list(tmp_path.iterdir())) == 2
