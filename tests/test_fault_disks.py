"""Disks that are full or cannot be written: the run ends in one line and loses no finished block.

With room again the same command has the pixels of an undisturbed run.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrbcr_cli import whole_file
from mrbcr_cli.stream import ledger as ledger_module
from tests.fault_jobs import BLOCKS, TILE, blocks_in, make_job, resumed
from tests.helpers import deconvolve, full_after


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, np.ndarray]:
    return make_job(tmp_path_factory.mktemp("job"))


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


def fill(place: Path, leave_bytes: int = 0) -> Path:
    """Fill a disk but for some bytes; return the file that does it."""
    path = place / "filler"
    status = os.statvfs(place)
    with path.open("wb") as file:
        file.write(b"\1" * max(status.f_bavail * status.f_frsize - leave_bytes, 0))
    return path


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
