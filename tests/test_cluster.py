"""Blocks on other processes: the pixels of threads, whatever becomes of a worker; and bad clusters said in a line."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile

from mrbcr_cli.settings import load_settings
from mrbcr_cli.stream.drive import DriveResult
from mrbcr_cli.stream.engine import forget_run
from tests.faulty import fault
from tests.helpers import deconvolve, pixels, spots, tiny_weights
from tests.test_resume import blocks_in, wait_for_blocks

BLOCKS = 12
HUNG_S = 600
"""After so long on the busiest machine something hangs; nothing waits for it where all is well."""
LOCAL = ("--cluster", "local", "--workers", 2)
pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes")


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, np.ndarray]:
    """An input of 12 planes (a block each, whose first pixel is 1000 + number), weights, pixels of a threads run."""
    folder = tmp_path_factory.mktemp("case")
    weights = tiny_weights(folder / "tiny.safetensors")
    image = spots((BLOCKS, 64, 64))
    image[:, 0, 0] = 1000 + np.arange(BLOCKS)
    tifffile.imwrite(folder / "in.tif", image, photometric="minisblack", metadata={"axes": "ZYX"})
    assert deconvolve(folder / "in.tif", "-o", folder / "threads.ome.zarr", "-m", weights, "-q") == 0
    return folder / "in.tif", weights, pixels(folder / "threads.ome.zarr")


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


def ran(capsys: pytest.CaptureFixture[str]) -> tuple[list[int], dict[str, Any], str]:
    """Of the run before: the blocks it did, its last event, and what it said on stderr."""
    said = capsys.readouterr()
    events = [json.loads(line) for line in said.out.splitlines()]
    return [e["number"] for e in events if e["event"] == "block"], events[-1], said.err


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


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a stub of SLURM's programs: sbatch runs the job's script in the background, scancel ends it."""
    folder = tmp_path / "slurm"
    (folder / "jobs").mkdir(parents=True)
    programs = {
        "sbatch": f"""job=$$
cp "$1" "{folder}/jobs/$job.sh"
setsid sh "{folder}/jobs/$job.sh" > "{folder}/jobs/$job.log" 2>&1 &
echo $! > "{folder}/jobs/$job.pid"
echo "Submitted batch job $job"
""",
        "scancel": f"""for job; do kill -TERM -- -$(cat "{folder}/jobs/$job.pid") 2>/dev/null; echo $job >> \
"{folder}/cancelled"; done
""",
    }
    for name, script in programs.items():
        (folder / name).write_text("#!/bin/sh\n" + script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    yield folder
    for file in (folder / "jobs").glob("*.pid"):
        if psutil.pid_exists(int(file.read_text())):
            os.killpg(int(file.read_text()), signal.SIGKILL)


def test_slurm_jobs_do_what_threads_do(
    tmp_path: Path, case: tuple[Path, Path, np.ndarray], sbatch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole path, with a stub of sbatch that starts the job's script; a worker is killed on the way."""
    pytest.importorskip("dask_jobqueue")
    (tmp_path / "slurm.yaml").write_text(
        "cluster: slurm\njobs: 2\ncores: 1\nmemory: 2GB\nwalltime: '01:00:00'\nqueue: short\njob-prologue: ['true']\n"
    )
    output = tmp_path / "o.ome.zarr"
    args = ("--cluster-config", tmp_path / "slurm.yaml", "--account", "lab", "--job-extra", "--constraint=avx512")
    with fault("kill", 1005, tmp_path / "struck"):
        assert deconvolve(case[0], "-o", output, "-m", case[1], *args, "--json") == 0
    done, last, said = ran(capsys)
    assert sorted(done) == list(range(BLOCKS))
    assert last["blocks_redone"] == 1
    assert "was lost" in said
    assert np.array_equal(pixels(output), case[2])
    scripts = [file.read_text() for file in (sbatch / "jobs").glob("*.sh")]
    assert len(scripts) == 2
    for directive in ("-p short", "-A lab", "-t 01:00:00", "--cpus-per-task=1", "--mem=2G", "--constraint=avx512"):
        assert f"#SBATCH {directive}" in scripts[0]
    assert len((sbatch / "cancelled").read_text().split()) == 2


def test_a_refusal_of_sbatch_is_said_in_a_line(
    tmp_path: Path, case: tuple[Path, Path, np.ndarray], sbatch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("dask_jobqueue")
    (sbatch / "sbatch").write_text("#!/bin/sh\necho 'error: invalid partition specified: short' >&2; exit 1\n")
    assert deconvolve(case[0], "-o", tmp_path / "o.ome.zarr", "-m", case[1], "--cluster", "slurm", "-q") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --cluster slurm: sbatch refused the job")
    assert "invalid partition" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "o.ome.zarr.partial").exists()


@contextmanager
def started(case: tuple[Path, Path, np.ndarray], output: Path, source: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run in a process and a session of its own, which is over at the end."""
    arguments = ["deconvolve", source, "-o", output, "-m", case[1], *LOCAL, "-q"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mrbcr_cli", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def long(case: tuple[Path, Path, np.ndarray]) -> tuple[Path, np.ndarray]:
    """An input of 96 blocks, and its pixels."""
    source = case[0].with_name("long.tif")
    tifffile.imwrite(source, spots((96, 64, 64)), photometric="minisblack", metadata={"axes": "ZYX"})
    output = source.with_name("long.ome.zarr")
    assert deconvolve(source, "-o", output, "-m", case[1], "-q") == 0
    return source, pixels(output)


def test_a_killed_driver_takes_its_workers_along_and_is_resumed(
    tmp_path: Path,
    case: tuple[Path, Path, np.ndarray],
    long: tuple[Path, np.ndarray],
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "o.ome.zarr"
    ledger = tmp_path / "o.ome.zarr.partial" / "ledger.jsonl"
    with started(case, output, long[0]) as process:
        wait_for_blocks(process, ledger, 5, HUNG_S)
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 2
    _, left = psutil.wait_procs(family, timeout=HUNG_S)
    assert left == []
    finished = blocks_in(ledger)
    assert 5 <= len(finished) < 96
    assert deconvolve(long[0], "-o", output, "-m", case[1], "--json") == 0
    done, last, _ = ran(capsys)
    assert sorted(finished + done) == list(range(96))
    assert last["blocks_resumed"] == len(finished)
    assert np.array_equal(pixels(output), long[1])


def test_ctrl_c_at_the_terminal_stops_the_run_and_not_its_workers(
    tmp_path: Path, case: tuple[Path, Path, np.ndarray], long: tuple[Path, np.ndarray]
) -> None:
    """The terminal sends Ctrl-C to all processes: the workers finish their blocks, and the driver says what is left."""
    output = tmp_path / "o.ome.zarr"
    ledger = tmp_path / "o.ome.zarr.partial" / "ledger.jsonl"
    with started(case, output, long[0]) as process:
        wait_for_blocks(process, ledger, 5, HUNG_S)
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=HUNG_S)
    assert process.returncode == 75, said.decode()
    assert b"resume" in said
    assert b"lost" not in said
    _, left = psutil.wait_procs(family, timeout=HUNG_S)
    assert left == []
    assert deconvolve(long[0], "-o", output, "-m", case[1], "-q") == 0
    assert np.array_equal(pixels(output), long[1])


def unused_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--cluster", "tcp://127.0.0.1:{port}"), "nobody listens there"),
        (("--cluster", "nowhere"), "must be local, slurm, an address"),
        (("--cluster", "none.json"), "cannot read the scheduler file"),
        (("--cluster", "local", "--jobs", 3), "--jobs needs --cluster slurm"),
        (("--jobs", 3), "--jobs needs --cluster slurm"),
        (("--block-timeout", 3), "--block-timeout needs --cluster"),
        (("--cluster", "slurm", "--memory", "much"), "must be a size such as 16GB"),
        (("--cluster", "slurm", "--walltime", "soon"), "must look like"),
        (("--cluster", "local", "--device", "tpu"), "not a device"),
    ],
)
def test_a_cluster_that_cannot_be_is_said_in_a_line(
    tmp_path: Path,
    case: tuple[Path, Path, np.ndarray],
    arguments: tuple[Any, ...],
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(a).format(port=unused_port()) for a in arguments]
    assert deconvolve(case[0], "-o", tmp_path / "o.ome.zarr", "-m", case[1], *given) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_slurm_without_its_programs_or_package(
    tmp_path: Path,
    case: tuple[Path, Path, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = (case[0], "-o", tmp_path / "o.ome.zarr", "-m", case[1], "--cluster", "slurm")
    monkeypatch.setenv("PATH", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda _: None)
        assert deconvolve(*args) == 2
    assert "pip install 'mrbcr[cluster]'" in capsys.readouterr().err
    pytest.importorskip("dask_jobqueue")
    assert deconvolve(*args) == 2
    assert "no sbatch on PATH" in capsys.readouterr().err


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


def test_settings_from_two_files_and_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("cluster: slurm\njobs: 2\ncores: 8\ntile-size: 128\n")
    (tmp_path / "site.yaml").write_text("jobs: 3\nwalltime: 90\ngpus-per-job: 2\njob-extra: --exclusive\n")
    settings = load_settings(tmp_path / "run.yaml", {"cluster_config": tmp_path / "site.yaml", "jobs": 4})
    assert (settings.jobs, settings.cores, settings.walltime, settings.tile_size) == (4, 8, "90", 128)
    assert settings.job_extra == ("--exclusive",)
    from mrbcr_cli.stream.cluster_slurm import job_options

    options = job_options(settings)
    assert options["job_extra_directives"] == ["--gres=gpu:2", "--exclusive"]
    assert (options["processes"], options["job_cpu"]) == (2, 8)


def test_the_device_of_a_cluster_is_found_on_its_workers(case: tuple[Path, Path, np.ndarray]) -> None:
    """The plan leaves it open, and the fingerprint does not know of it: such runs may take over each other's blocks."""
    from mrbcr_cli.images import find_source
    from mrbcr_cli.plan import make_plan

    source = find_source(str(case[0]))
    values = {"model": (str(case[1]),)}
    here = make_plan(source, load_settings(None, values), "ome-zarr")
    there = make_plan(source, load_settings(None, {**values, "cluster": "tcp://host:1", "device": "auto"}), "ome-zarr")
    assert (here.methods[0].spec.device, there.methods[0].spec.device) == ("cpu", "auto")  # type: ignore[attr-defined]
    assert here.fingerprint == there.fingerprint


def test_a_shard_appears_by_one_rename(tmp_path: Path) -> None:
    """Two tries of a block may write at the same time: each writes a file of its own and renames it over the shard."""
    from mrbcr_cli.whole_file import put_durably

    put_durably(tmp_path / "shard", b"one")
    inode = (tmp_path / "shard").stat()[stat.ST_INO]
    put_durably(tmp_path / "shard", b"two")
    assert (tmp_path / "shard").stat()[stat.ST_INO] != inode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shard"]
