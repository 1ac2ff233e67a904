"""Faults from outside: each ends with the pixels of an undisturbed run and a known number of blocks done again.

What changed between a run and its resumption is refused, whatever the clocks say.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from mrbcr_cli.stream.ledger import Ledger
from tests.fault_jobs import BLOCKS, TILE, blocks_in, die, make_job, resumed
from tests.helpers import APPEND, deconvolve, full_after, pixels, tiny_weights


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, np.ndarray]:
    return make_job(tmp_path_factory.mktemp("job"))


def test_killed_five_times_over_one_output(
    tmp_path: Path, job: tuple[Path, Path, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each kill comes after a block's pixels are on disk and before the ledger has it: that block is done again."""
    rng = random.Random(7)
    output = tmp_path / "o.ome.zarr"
    expected = 0
    for _ in range(5):
        fresh = rng.randrange(1, 6)
        code, said = die(job, output, APPEND, fresh, signal.SIGKILL)
        assert code == -signal.SIGKILL, said
        expected += fresh - 1
        assert len(blocks_in(output)) == expected  # no block less, and none twice
        assert not output.exists()
    assert resumed(job, output, capsys) == BLOCKS - expected


@pytest.mark.parametrize(
    ("where", "count", "redone"),
    [
        ("mrbcr_cli.resume:begin", 1, BLOCKS),  # before anything
        ("mrbcr_cli.resume:RunLedger", 1, BLOCKS),  # the folder is there, nothing is done
        ("os:fsync", 12, None),  # somewhere in the first blocks' files
        ("mrbcr_cli.images.omezarr_write:_fill_file", 3, 0),  # in the pyramid
        ("mrbcr_cli.images.omezarr_write:_omero", 1, 0),  # before the metadata
        ("mrbcr_cli.finish:keep_ledger", 1, 0),
        ("mrbcr_cli.finish:put_in_place", 1, 0),
        ("mrbcr_cli.workfolder:clear_away", 1, None),  # the output is there already
    ],
)
def test_killed_at_every_step_of_a_run(
    tmp_path: Path,
    job: tuple[Path, Path, np.ndarray],
    where: str,
    count: int,
    redone: int | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "o.ome.zarr"
    code, said = die(job, output, where, count, signal.SIGKILL)
    assert code == -signal.SIGKILL, said
    kept = len(blocks_in(output))
    if output.exists():
        assert np.array_equal(pixels(output), job[2])
        assert deconvolve(job[0], "-o", output, "-m", job[1], *TILE, "-q") == 0
        return
    assert resumed(job, output, capsys) == BLOCKS - kept
    assert redone is None or redone == BLOCKS - kept


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_let_the_blocks_under_way_end(
    tmp_path: Path, job: tuple[Path, Path, np.ndarray], number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.ome.zarr"
    code, said = die(job, output, APPEND, 4, number)
    assert code == 75, said
    assert "run the same command to resume" in said
    kept = len(blocks_in(output))
    assert 4 <= kept < BLOCKS
    assert resumed(job, output, capsys) == BLOCKS - kept


def interrupted(
    job: tuple[Path, Path, np.ndarray], output: Path, monkeypatch: pytest.MonkeyPatch, blocks: int = 7
) -> tuple[Path, Path, np.ndarray]:
    """A run of copies of the job's files that ended after so many blocks; the job with the copies."""
    source, weights = output.parent / "in.tif", output.parent / "w.safetensors"
    shutil.copy2(job[0], source)
    shutil.copy2(job[1], weights)
    with monkeypatch.context() as patch:
        full_after(patch, blocks)
        assert deconvolve(source, "-o", output, "-m", weights, *TILE, "-q") == 3
    return source, weights, job[2]


@pytest.mark.parametrize("changed", ["input", "weights"])
def test_what_changed_between_run_and_resume_is_refused(
    tmp_path: Path,
    job: tuple[Path, Path, np.ndarray],
    changed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "o.ome.zarr"
    ours = interrupted(job, output, monkeypatch)
    path = ours[0 if changed == "input" else 1]
    sound = path.read_bytes()
    if changed == "input":
        path.write_bytes(sound[:-9] + bytes([sound[-9] ^ 1]) + sound[-8:])
    else:
        tiny_weights(path, seed=8)
    capsys.readouterr()
    assert deconvolve(*(path if k == path else k for k in (ours[0], "-o", output, "-m", ours[1], *TILE))) == 4
    assert "another input, model or settings" in capsys.readouterr().err
    path.write_bytes(sound)
    assert resumed(ours, output, capsys) == BLOCKS - 7


def test_an_input_cut_half_way(
    tmp_path: Path,
    job: tuple[Path, Path, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before the run, in the middle of it, and before it is resumed: never read as anything but what is missing."""
    output, source = tmp_path / "o.ome.zarr", tmp_path / "in.tif"
    sound = job[0].read_bytes()
    ours = (source, job[1], job[2])
    args = (source, "-o", output, "-m", job[1], *TILE, "-q")
    source.write_bytes(sound[: len(sound) // 2])
    assert deconvolve(*args) == 2
    assert "in.tif" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["in.tif"]
    source.write_bytes(sound)
    real, count = Ledger.append, 0

    def cut(self: Ledger, record: Any) -> None:
        nonlocal count
        count += 1
        if count == 5:
            os.truncate(source, len(sound) // 2)
        real(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", cut)
        assert deconvolve(*args) == 3
    assert "truncated" in capsys.readouterr().err
    kept = len(blocks_in(output))
    assert 5 <= kept < BLOCKS
    assert deconvolve(*args) in (2, 4)  # it cannot be opened, or is not the one that was begun with
    source.write_bytes(sound)
    assert resumed(ours, output, capsys) == BLOCKS - kept


def test_a_model_that_fails_on_some_blocks(
    tmp_path: Path,
    job: tuple[Path, Path, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mrbcr_cli.restore import Restorer

    output, real = tmp_path / "o.ome.zarr", Restorer.restore
    third = tifffile.imread(job[0])[2, :50, :50]

    def failing(self: Restorer, image_zyx: Any, *rest: Any) -> Any:
        if np.array_equal(image_zyx[0, :50, :50], third):
            raise RuntimeError("an operator has no kernel for this")
        return real(self, image_zyx, *rest)

    monkeypatch.setattr(Restorer, "restore", failing)
    assert deconvolve(job[0], "-o", output, "-m", job[1], *TILE, "-q") == 3
    said = capsys.readouterr().err
    assert "blocks failed" in said and "RuntimeError: an operator has no kernel for this" in said
    monkeypatch.undo()
    failed = BLOCKS - len(blocks_in(output))
    assert 1 <= failed <= 4  # those of the plane that see its corner
    assert resumed(job, output, capsys) == failed


def test_files_that_appear_late(
    tmp_path: Path, job: tuple[Path, Path, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    """A network disk that is not mounted yet: a clear error, nothing written; then it is there."""
    far, output = tmp_path / "far", tmp_path / "o.ome.zarr"
    args = (far / "in.tif", "-o", output, "-m", far / "w.safetensors", *TILE, "-q")
    for name, source in (("in.tif", job[0]), ("w.safetensors", job[1])):
        assert deconvolve(*args) == 2
        said = capsys.readouterr().err
        assert str(far / name) in said and len(said.splitlines()) <= 2
        assert not output.exists() and not list(tmp_path.glob("*o.ome.zarr*"))
        far.mkdir(exist_ok=True)
        shutil.copy2(source, far / name)
    assert resumed((far / "in.tif", far / "w.safetensors", job[2]), output, capsys) == BLOCKS


def test_no_clock_is_trusted(
    tmp_path: Path, job: tuple[Path, Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files from the future, and a second run on a machine whose clock is a day behind that of the first."""
    import time

    output = tmp_path / "o.ome.zarr"
    ours = interrupted(job, output, monkeypatch)
    future = time.time() + 20 * 365 * 86400
    for path in tmp_path.rglob("*"):
        os.utime(path, (future, future))
    behind = "import time; real = time.time; time.time = lambda: real() - 86400; from mrbcr_cli.cli import main; main()"
    arguments = ["deconvolve", ours[0], "-o", output, "-m", ours[1], *TILE, "-q", "--json"]
    for blocks in (BLOCKS - 7, 0):  # resumed, and then found done
        ended = subprocess.run(
            [sys.executable, "-c", behind, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
        )
        assert sum(json.loads(line)["event"] == "block" for line in ended.stdout.splitlines()) == blocks
    assert np.array_equal(pixels(output), job[2])
