"""Killed at any moment, the next run ends with the pixels of an undisturbed one and redoes no finished block."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.helpers import deconvolve, pixels, spots, tiny_weights

BLOCKS = 64


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, np.ndarray]:
    """An input of 64 blocks, weights, and the pixels of an undisturbed run."""
    folder = tmp_path_factory.mktemp("job")
    weights = tiny_weights(folder / "tiny.safetensors")
    tifffile.imwrite(folder / "in.tif", spots((4, 512, 512)), photometric="minisblack", metadata={"axes": "ZYX"})
    fresh = folder / "fresh.ome.zarr"
    assert deconvolve(folder / "in.tif", "-o", fresh, "-m", weights, "--tile-size", 128, "-q") == 0
    return folder / "in.tif", weights, pixels(fresh)


def start(job: tuple[Path, Path, np.ndarray], output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mrbcr_cli", "deconvolve", str(job[0]), "-o", str(output), "-m", str(job[1])]
    return subprocess.Popen(
        [*command, "--tile-size", "128", "-q"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def blocks_in(ledger: Path) -> list[int]:
    lines = ledger.read_bytes().splitlines(keepends=True) if ledger.exists() else []
    return [json.loads(line)["block"] for line in lines[1:] if line.endswith(b"\n")]


def wait_for_blocks(process: subprocess.Popen[bytes], ledger: Path, count: int, limit_s: float = 120) -> None:
    """Return as soon as the ledger holds `count` blocks or the process has ended."""
    deadline = time.monotonic() + limit_s
    while process.poll() is None and len(blocks_in(ledger)) < count:
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.005)


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_moments_and_resumed(tmp_path: Path, job: tuple[Path, Path, np.ndarray], seed: int) -> None:
    rng = random.Random(seed)
    output = tmp_path / "out.ome.zarr"
    ledger = tmp_path / "out.ome.zarr.partial" / "ledger.jsonl"
    process = start(job, output)
    wait_for_blocks(process, ledger, rng.randrange(1, BLOCKS - 16))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not output.exists()
    finished = blocks_in(ledger)
    before = {p: p.stat().st_mtime_ns for p in ledger.parent.rglob("c/*/*/*") if p.name.isdigit()}
    assert finished

    assert deconvolve(job[0], "-o", output, "-m", job[1], "--tile-size", 128, "-q") == 0
    assert np.array_equal(pixels(output), job[2])
    assert not ledger.parent.exists()
    # A block whose chunk file is as the killed run left it was not written again.
    after = {p: (output / p.relative_to(ledger.parent / "image.ome.zarr")).stat().st_mtime_ns for p in before}
    kept = [p for p in before if after[p] == before[p]]
    assert len(kept) >= len(finished)


def test_a_signal_stops_cleanly_and_the_ledger_names_each_block_once(
    tmp_path: Path, job: tuple[Path, Path, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.ome.zarr"
    ledger = tmp_path / "out.ome.zarr.partial" / "ledger.jsonl"
    for number, signal_number in enumerate((signal.SIGTERM, signal.SIGINT), start=1):
        process = start(job, output)
        wait_for_blocks(process, ledger, 12 * number)
        process.send_signal(signal_number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 75, said.decode()
        assert b"resume" in said
    finished = blocks_in(ledger)
    assert len(finished) == len(set(finished))
    assert deconvolve(job[0], "-o", output, "-m", job[1], "-q", "--json") == 0  # the tile size is taken over
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    fresh = [e["number"] for e in events if e["event"] == "block"]
    assert sorted(finished + fresh) == list(range(BLOCKS))
    assert events[-1]["blocks_resumed"] == len(finished)
    assert np.array_equal(pixels(output), job[2])


def test_another_run_does_not_mix_with_an_unfinished_one(
    tmp_path: Path, job: tuple[Path, Path, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.ome.zarr"
    ledger = tmp_path / "out.ome.zarr.partial" / "ledger.jsonl"
    process = start(job, output)
    wait_for_blocks(process, ledger, 4)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = blocks_in(ledger)
    args = (job[0], "-o", output, "-m", job[1], "-q")
    assert deconvolve(*args, "--range", 100, 900) == 4
    assert deconvolve(*args, "--tile-size", 256) == 4
    assert blocks_in(ledger) == finished
    assert "--no-resume" in capsys.readouterr().err
    assert deconvolve(*args, "--tile-size", 128, "--no-resume") == 0
    assert np.array_equal(pixels(output), job[2])
