"""Faults from outside: each ends with the pixels of an undisturbed run and a known number of blocks done again."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from mrbcr_cli import whole_file
from mrbcr_cli.stream import ledger as ledger_module
from mrbcr_cli.stream.ledger import Ledger, read_ledger
from tests.helpers import APPEND, deconvolve, die_at, full_after, pixels, spots, tiny_weights

BLOCKS = 24
TILE = ("--tile-size", 112)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, np.ndarray]:
    """An input of 24 blocks, weights, and the pixels of an undisturbed run."""
    folder = tmp_path_factory.mktemp("job")
    weights = tiny_weights(folder / "tiny.safetensors")
    tifffile.imwrite(folder / "in.tif", spots((4, 300, 200)), photometric="minisblack", metadata={"axes": "ZYX"})
    assert deconvolve(folder / "in.tif", "-o", folder / "fresh.ome.zarr", "-m", weights, *TILE, "-q") == 0
    return folder / "in.tif", weights, pixels(folder / "fresh.ome.zarr")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount program here")
    if mounted.returncode != 0:
        pytest.skip("mounting a file system is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def blocks_in(output: Path) -> list[int]:
    contents = read_ledger(output.with_name(output.name + ".partial") / "ledger.jsonl")
    return [] if contents is None else sorted(contents.records)


def resumed(job: tuple[Path, Path, np.ndarray], output: Path, capsys: pytest.CaptureFixture[str]) -> int:
    """Run the same command again, hold its pixels against those of the undisturbed run, return the blocks it did."""
    capsys.readouterr()
    assert deconvolve(job[0], "-o", output, "-m", job[1], *TILE, "-q", "--json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    done = [e["number"] for e in events if e["event"] == "block"]
    assert len(done) == len(set(done))
    assert np.array_equal(pixels(output), job[2])
    left = sorted(p.name for p in output.parent.iterdir() if p.name.startswith((output.name, f".{output.name}")))
    assert left == [output.name]  # nothing of the work is left beside it
    return len(done)


def die(job: tuple[Path, Path, np.ndarray], output: Path, where: str, count: int, number: int) -> tuple[int, str]:
    """Run the command in a process that gets a signal at the `count`-th call of a function; exit code and stderr."""
    return die_at(where, count, number, job[0], "-o", output, "-m", job[1], *TILE, "-q")


def fill(place: Path, leave_bytes: int = 0) -> Path:
    """Fill a disk but for some bytes; return the file that does it."""
    path = place / "filler"
    status = os.statvfs(place)
    with path.open("wb") as file:
        file.write(b"\1" * max(status.f_bavail * status.f_frsize - leave_bytes, 0))
    return path


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


@pytest.mark.parametrize("moment", ["chunk", "metadata", "pyramid"])
def test_a_disk_that_is_really_full(
    small_disk: Path,
    job: tuple[Path, Path, np.ndarray],
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = small_disk / "o.ome.zarr"
    real = whole_file.put_durably_from
    chunks = 0
    filled = threading.Lock()  # once: filling anew would make room for a moment, and chunks are written side by side

    def filling(path: Path, parts: Any) -> None:
        nonlocal chunks
        level = (
            path.relative_to(small_disk / "o.ome.zarr.partial" / "image.ome.zarr").parts[0] if "c" in path.parts else ""
        )
        chunks += level == "0"
        reached = {
            "chunk": level == "0" and chunks == 9,
            "pyramid": level == "1",
            "metadata": chunks == BLOCKS and path.name == "zarr.json",
        }
        if reached[moment] and filled.acquire(blocking=False):
            fill(small_disk, 4096 if moment == "chunk" else 0)  # so that a part of the chunk is taken
        real(path, parts)

    monkeypatch.setattr(whole_file, "put_durably_from", filling)
    assert deconvolve(job[0], "-o", output, "-m", job[1], *TILE, "-q") == 3
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    kept = len(blocks_in(output))
    assert not output.exists()
    assert kept == BLOCKS if moment != "chunk" else 5 <= kept <= 9
    assert deconvolve(job[0], "-o", output, "-m", job[1], *TILE, "-q") == 3  # still full
    (small_disk / "filler").unlink()
    assert resumed(job, output, capsys) == BLOCKS - kept


def test_a_disk_that_is_full_before_anything_is_written(
    small_disk: Path, job: tuple[Path, Path, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    filler = fill(small_disk)
    assert deconvolve(job[0], "-o", small_disk / "o.ome.zarr", "-m", job[1], *TILE, "-q") == 3
    assert "No space left on device" in capsys.readouterr().err
    assert list(small_disk.iterdir()) == [filler]
    filler.unlink()
    assert resumed(job, small_disk / "o.ome.zarr", capsys) == BLOCKS


def test_a_full_disk_in_a_tiff(
    small_disk: Path,
    job: tuple[Path, Path, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mrbcr_cli.images import tiff_write

    output, real = small_disk / "o.ome.tif", tiff_write.write_ome_tiff

    def filling(*arguments: Any, **options: Any) -> None:
        fill(small_disk, 40_000)
        real(*arguments, **options)

    monkeypatch.setattr(tiff_write, "write_ome_tiff", filling)
    assert deconvolve(job[0], "-o", output, "-m", job[1], *TILE, "-q") == 3
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert not output.exists()
    (small_disk / "filler").unlink()
    assert resumed(job, output, capsys) == 0


@pytest.mark.parametrize("cut_back", [True, False])
def test_a_disk_that_takes_half_a_line_of_the_ledger(
    tmp_path: Path,
    job: tuple[Path, Path, np.ndarray],
    cut_back: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The half line is cut off, at once or (where even that fails) by the next run."""
    output = tmp_path / "o.ome.zarr"
    real_hold, lines = ledger_module.hold, 0

    class Full:
        """A file on a disk that is full from the seventh line on."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def write(self, data: Any) -> int:
            nonlocal lines
            lines += 1
            if lines > 7:  # the header and six blocks
                self._file.write(data[: len(data) // 2])
                raise OSError(28, "No space left on device")
            return int(self._file.write(data))

        def truncate(self, size: int) -> int:
            if lines > 7 and not cut_back:
                raise OSError(28, "No space left on device")
            return int(self._file.truncate(size))

    monkeypatch.setattr(ledger_module, "hold", lambda *a, **k: Full(real_hold(*a, **k)))
    assert deconvolve(job[0], "-o", output, "-m", job[1], *TILE, "-q") == 3
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert len(blocks_in(output)) == 6
    assert resumed(job, output, capsys) == BLOCKS - 6


def test_an_output_that_cannot_be_written(
    small_disk: Path,
    job: tuple[Path, Path, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Read-only from the start, and in the middle of a run."""
    output = small_disk / "o.ome.zarr"

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(small_disk)], check=True)

    remount("ro")
    assert deconvolve(job[0], "-o", output, "-m", job[1], *TILE, "-q") == 3
    assert "Read-only file system" in capsys.readouterr().err
    remount("rw")
    assert not list(small_disk.iterdir())
    full_after(monkeypatch, 5)
    assert deconvolve(job[0], "-o", output, "-m", job[1], *TILE, "-q") == 3
    monkeypatch.undo()
    remount("ro")
    assert deconvolve(job[0], "-o", output, "-m", job[1], *TILE, "-q") == 3
    assert "Read-only file system" in capsys.readouterr().err
    remount("rw")
    assert resumed(job, output, capsys) == BLOCKS - 5


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
