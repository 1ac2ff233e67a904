"""The run that drives a cluster: it starts its workers and takes them along, and says a bad cluster in a line.

SLURM jobs, settings and devices are held against stubs and against processes of this machine.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile

from mrbcr_cli.settings import load_settings
from tests.cluster_runs import BLOCKS, HUNG_S, LOCAL, make_case, ran
from tests.faulty import fault
from tests.helpers import deconvolve, pixels, spots
from tests.test_resume import blocks_in, wait_for_blocks

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, np.ndarray]:
    return make_case(tmp_path_factory.mktemp("case"))


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
