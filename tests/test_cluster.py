"""Blocks on other processes: the pixels of threads, whatever becomes of a worker.

A block that a worker was lost with is done again elsewhere; one that always fails costs no other.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrbcr_cli.stream.drive import DriveResult
from mrbcr_cli.stream.engine import forget_run
from tests.cluster_runs import BLOCKS, HUNG_S, LOCAL, make_case, ran
from tests.faulty import fault
from tests.helpers import deconvolve, pixels

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, np.ndarray]:
    return make_case(tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The scheduler file of a scheduler with 2 worker processes, started in a folder of their own."""
    folder = tmp_path_factory.mktemp("dask")
    file = folder / "scheduler.json"
    common = ["--scheduler-file", str(file), "--host", "127.0.0.1", "--no-dashboard"]
    commands = (
        ["distributed.cli.dask_scheduler", "--port", "0", *common],
        ["distributed.cli.dask_worker", "--nworkers", "2", "--nthreads", "1", *common],
    )
    with (folder / "log").open("wb") as log:
        # What the tests plant into a job comes from the tests' own package, which no installation has.
        there = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, os.environ.get("PYTHONPATH", ""))))}
        processes = [
            subprocess.Popen([sys.executable, "-m", *c], cwd=folder, stdout=log, stderr=log, env=there)
            for c in commands
        ]
        deadline = time.monotonic() + HUNG_S
        while not (file.exists() and file.read_text().endswith("}")):
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        yield file
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:  # a nanny that was told to end while it starts a worker may not
                process.kill()
                process.wait()


def test_local_processes_do_what_threads_do(
    tmp_path: Path, case: tuple[Path, Path, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.ome.zarr"
    assert deconvolve(case[0], "-o", output, "-m", case[1], *LOCAL, "--json") == 0
    done, last, _ = ran(capsys)
    assert sorted(done) == list(range(BLOCKS))
    assert last["blocks_redone"] == 0
    assert np.array_equal(pixels(output), case[2])


@pytest.mark.parametrize(("kind", "extra"), [("kill", ()), ("hang", ("--block-timeout", 8))])
def test_a_worker_that_dies_or_hangs_costs_its_block_only(
    tmp_path: Path,
    case: tuple[Path, Path, np.ndarray],
    kind: Any,
    extra: tuple[Any, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "o.ome.zarr"
    with fault(kind, 1005, tmp_path / "struck"):
        assert deconvolve(case[0], "-o", output, "-m", case[1], *LOCAL, *extra, "--json") == 0
    done, last, said = ran(capsys)
    assert (tmp_path / "struck").exists()
    assert sorted(done) == list(range(BLOCKS))
    assert last["blocks_redone"] == 1
    assert "redoing block 5" in said
    assert np.array_equal(pixels(output), case[2])


def test_a_block_that_kills_every_worker_is_given_up_alone(
    tmp_path: Path, case: tuple[Path, Path, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.ome.zarr"
    args = (case[0], "-o", output, "-m", case[1], "--json")
    with fault("kill", 1003, None):
        assert deconvolve(*args, *LOCAL) == 3
    done, _, said = ran(capsys)
    assert sorted(done) == [n for n in range(BLOCKS) if n != 3]
    assert "block 3: 3 workers died" in said
    assert deconvolve(*args) == 0
    done, last, _ = ran(capsys)
    assert (done, last["blocks_resumed"]) == ([3], BLOCKS - 1)
    assert np.array_equal(pixels(output), case[2])


def test_a_running_scheduler_by_its_file_or_address(
    tmp_path: Path, case: tuple[Path, Path, np.ndarray], address: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names that are relative to this folder mean the same to workers in another one."""
    monkeypatch.chdir(case[0].parent)
    output = tmp_path / "o.ome.zarr"
    args = (case[0].name, "-m", case[1].name, "-q")
    assert deconvolve(*args, "-o", output, "--cluster", address) == 0
    assert np.array_equal(pixels(output), case[2])
    place = json.loads(address.read_text())["address"]
    output = tmp_path / "p.ome.zarr"
    assert deconvolve(*args, "-o", output, "--cluster", place) == 0
    assert np.array_equal(pixels(output), case[2])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.ome.zarr", "p.ome.zarr"]


@pytest.mark.parametrize("kind", ["memory", "raise", "kill"])
def test_a_fault_at_one_block_is_redone_elsewhere(
    tmp_path: Path,
    case: tuple[Path, Path, np.ndarray],
    address: Path,
    kind: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "o.ome.zarr"
    with fault(kind, 1005, tmp_path / "struck"):
        assert deconvolve(case[0], "-o", output, "-m", case[1], "--cluster", address, "--json") == 0
    done, last, said = ran(capsys)
    assert sorted(done) == list(range(BLOCKS))
    assert last["blocks_redone"] >= 1
    assert {"memory": "MemoryError", "raise": "a fault of the test", "kill": "was lost"}[kind] in said
    assert np.array_equal(pixels(output), case[2])


def test_each_process_builds_the_method_once(
    tmp_path: Path, case: tuple[Path, Path, np.ndarray], address: Path
) -> None:
    with fault("none", 0, tmp_path / "none"):
        assert (
            deconvolve(case[0], "-o", tmp_path / "o.ome.zarr", "-m", case[1], "--cluster", address, "--overwrite", "-q")
            == 0
        )
    processes = (tmp_path / "none.built").read_text().split()
    assert str(os.getpid()) not in processes
    assert processes and len(processes) == len(
        set(processes)
    )  # of one worker or both: a fault before may have cost one


def test_a_block_of_a_run_that_is_over_is_not_written(tmp_path: Path, case: tuple[Path, Path, np.ndarray]) -> None:
    """As by a worker elsewhere that has not heard yet that its run was killed, when the next one has begun."""
    from mrbcr_cli.stream.engine import AbandonedError, run_block

    jobs: list[Any] = []
    with fault("none", 0, None), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "mrbcr_cli.carry_out.drive", lambda _, job, *__: jobs.append(job) or DriveResult(interrupted=True)
        )
        assert deconvolve(case[0], "-o", tmp_path / "o.ome.zarr", "-m", case[1], "-q") == 75
    guard = tmp_path / "guard"
    job = replace(jobs[0], guard=str(guard))
    with pytest.raises(AbandonedError):
        run_block(job, 3)
    chunks = tmp_path / "o.ome.zarr.partial" / "image.ome.zarr" / "0" / "c"
    assert not chunks.exists()
    guard.touch()
    assert run_block(job, 3).block == 3
    assert chunks.exists()
    forget_run()


def test_a_block_that_always_raises_costs_no_other(
    tmp_path: Path, case: tuple[Path, Path, np.ndarray], address: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.ome.zarr"
    args = (case[0], "-o", output, "-m", case[1], "--cluster", address, "--json")
    with fault("raise", 1007, None):
        assert deconvolve(*args) == 3
    done, _, said = ran(capsys)
    assert sorted(done) == [n for n in range(BLOCKS) if n != 7]
    assert "1 of 12 blocks failed (block 7: RuntimeError: a fault of the test)" in said
    assert deconvolve(*args) == 0
    done, last, _ = ran(capsys)
    assert (done, last["blocks_resumed"]) == ([7], BLOCKS - 1)
    assert np.array_equal(pixels(output), case[2])


def test_threads_try_a_block_again_as_well(tmp_path: Path, case: tuple[Path, Path, np.ndarray]) -> None:
    output = tmp_path / "o.ome.zarr"
    with fault("raise", 1005, tmp_path / "struck"):
        assert deconvolve(case[0], "-o", output, "-m", case[1], "-q") == 0
    assert (tmp_path / "struck").exists()
    assert np.array_equal(pixels(output), case[2])


def test_a_worker_that_cannot_see_the_files_is_named(
    tmp_path: Path,
    case: tuple[Path, Path, np.ndarray],
    address: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Here it is told of a folder of this name that it does not have, as a worker with a disk of its own would be."""
    from mrbcr_cli.stream import crew

    real = crew._from_root

    def elsewhere(job: Any) -> Any:
        return type(job)(**{**vars(real(job)), "store": str(tmp_path / "another disk" / "image.ome.zarr")})

    monkeypatch.setattr(crew, "_from_root", elsewhere)
    assert deconvolve(case[0], "-o", tmp_path / "o.ome.zarr", "-m", case[1], "--cluster", address, "-q") == 2
    said = capsys.readouterr().err
    assert "does not see the working folder" in said
    assert f"on {socket.gethostname()}" in said
    assert list(tmp_path.iterdir()) == []


def test_a_worker_without_the_weights_is_named(
    tmp_path: Path,
    case: tuple[Path, Path, np.ndarray],
    address: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mrbcr_cli import methods

    monkeypatch.setattr(methods, "_for_any_folder", lambda name: name + ".not.safetensors")
    monkeypatch.setattr("mrbcr_cli.plan.here", lambda spec: type(spec)(**{**vars(spec), "weights": str(case[1])}))
    assert deconvolve(case[0], "-o", tmp_path / "o.ome.zarr", "-m", case[1], "--cluster", address, "-q") == 2
    assert "no such weights file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_shard_appears_by_one_rename(tmp_path: Path) -> None:
    """Two tries of a block may write at the same time: each writes a file of its own and renames it over the shard."""
    from mrbcr_cli.whole_file import put_durably

    put_durably(tmp_path / "shard", b"one")
    inode = (tmp_path / "shard").stat()[stat.ST_INO]
    put_durably(tmp_path / "shard", b"two")
    assert (tmp_path / "shard").stat()[stat.ST_INO] != inode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shard"]
