"""Shards that meet each other, other settings, a changed input or their end: no block is lost or done twice.

What would drop the work of others is refused.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from mrbcr_cli.stream.ledger import read_ledger
from mrbcr_cli.stream.shards import RunLedger, Shard
from tests.helpers import APPEND, deconvolve, die_at, full_after, pixels, spots
from tests.shard_runs import BLOCKS, assert_same_output, events, finish, ledgers, make_job, start


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_job(tmp_path_factory.mktemp("job"))


def test_who_keeps_whom_away(tmp_path: Path, job: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    output, partial = tmp_path / "o.ome.zarr", tmp_path / "o.ome.zarr.partial"
    args = (*job["args"], "-o", output, "-q")
    assert deconvolve(*args, "--shard", "0/4") == 0
    main = read_ledger(partial / "ledger.jsonl")
    assert main is not None
    before = ledgers(partial)
    with RunLedger(partial / "ledger.jsonl", main.header, Shard(1, 4)):  # as a process at work on shard 1
        for refused in (("--shard", "1/4"), (), ("--overwrite",), ("--no-resume",)):
            assert deconvolve(*args, *refused) == 3
            assert "another run" in capsys.readouterr().err
        assert finish(output) == 3
        assert "another run" in capsys.readouterr().err
        assert deconvolve(*args, "--shard", "2/4") == 0
        assert deconvolve(*args, "--shard", "0/7") == 0
    with RunLedger(partial / "ledger.jsonl", main.header):  # as an ordinary run
        assert deconvolve(*args, "--shard", "3/4") == 3
        assert finish(output, "--verify") == 3
    after = ledgers(partial)
    assert {name: after[name] for name in before} == before
    assert deconvolve(*args) == 0
    assert_same_output(output, job["wholes"]["o.ome.zarr"])


def test_two_processes_for_one_shard(tmp_path: Path, job: dict[str, Any]) -> None:
    output = tmp_path / "o.ome.zarr"
    processes = [start(job, output, "0/1") for _ in range(2)]
    said = [process.communicate(timeout=120)[1].decode() for process in processes]
    codes = sorted(process.returncode for process in processes)
    assert codes in ([0, 3], [0, 0]), said  # one is refused, unless it came after the other had ended
    assert codes == [0, 0] or any("another run" in text for text in said)
    assert ledgers(tmp_path / "o.ome.zarr.partial")["ledger.0000-of-0001.jsonl"] == list(range(BLOCKS))
    assert finish(output, "-q") == 0
    assert_same_output(output, job["wholes"]["o.ome.zarr"])


def test_another_process_that_begins_first_is_joined(
    tmp_path: Path, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both saw no run; the other, with less memory, cuts smaller blocks: those are everyone's then."""
    from mrbcr_cli import resume

    output = tmp_path / "o.ome.zarr"
    real = resume.begin

    def beaten(*arguments: Any) -> bool:
        monkeypatch.setattr(resume, "begin", real)
        assert deconvolve(*job["args"], "-o", output, "--shard", "0/2", "-q") == 0
        return real(*arguments)

    monkeypatch.setattr(resume, "begin", beaten)
    source, weights = job["source"], job["weights"]
    assert deconvolve(source, "-m", weights, "-o", output, "--shard", "1/2", "-q") == 0
    assert ledgers(tmp_path / "o.ome.zarr.partial") == {
        "ledger.0000-of-0002.jsonl": list(range(8)),
        "ledger.0001-of-0002.jsonl": list(range(8, 16)),
        "ledger.jsonl": [],
    }
    assert finish(output, "-q") == 0
    assert np.array_equal(pixels(output), pixels(job["wholes"]["o.ome.zarr"]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.ome.zarr"]


def test_a_folder_that_is_dropped_meanwhile_is_not_dropped_again(
    tmp_path: Path, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shards find the rest of a run without a ledger; the slower one must not drop what the other began."""
    from mrbcr_cli import resume

    output, partial = tmp_path / "o.ome.zarr", tmp_path / "o.ome.zarr.partial"
    (partial / "image.ome.zarr").mkdir(parents=True)
    real = resume.drop_partial

    def slow(*arguments: Any) -> None:
        monkeypatch.setattr(resume, "drop_partial", real)
        assert deconvolve(*job["args"], "-o", output, "--shard", "0/2", "-q") == 0
        real(*arguments)

    monkeypatch.setattr(resume, "drop_partial", slow)
    assert deconvolve(*job["args"], "-o", output, "--shard", "1/2", "-q") == 0
    assert finish(output, "-q") == 0
    assert_same_output(output, job["wholes"]["o.ome.zarr"])


@pytest.mark.parametrize("extra", [("--overwrite",), ("--no-resume",), ("--shard", "4/4")])
def test_shards_that_would_drop_others_are_refused(
    tmp_path: Path, job: dict[str, Any], extra: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.ome.zarr"
    assert deconvolve(*job["args"], "-o", output, "--shard", "1/4", "-q", *extra) == 2
    assert capsys.readouterr().err.startswith("error: --")
    assert not list(tmp_path.iterdir())


def test_shards_of_other_settings_stay_apart(tmp_path: Path, job: dict[str, Any]) -> None:
    output = tmp_path / "o.ome.zarr"
    assert deconvolve(*job["args"], "-o", output, "--shard", "0/2", "-q") == 0
    before = ledgers(tmp_path / "o.ome.zarr.partial")
    assert deconvolve(*job["args"], "-o", output, "--shard", "1/2", "-q", "--range", 90, 900) == 4
    assert deconvolve(job["source"], "-m", job["weights"], "-o", output, "--shard", "1/2", "--tile-size", 96) == 4
    assert ledgers(tmp_path / "o.ome.zarr.partial") == before


def test_an_input_that_changed_is_not_finished(tmp_path: Path, job: dict[str, Any]) -> None:
    source, output = tmp_path / "in.ome.tif", tmp_path / "o.ome.zarr"
    shutil.copy2(job["source"], source)
    for shard in ("0/2", "1/2"):
        assert deconvolve(source, "-m", job["weights"], "-o", output, "--shard", shard, "-q") == 0
    data = bytearray(source.read_bytes())
    data[len(data) // 2] ^= 1
    source.write_bytes(data)
    assert finish(output) == 4
    assert deconvolve(source, "-m", job["weights"], "-o", output, "--shard", "0/2", "-q") == 4
    data[len(data) // 2] ^= 1
    source.write_bytes(data)
    assert finish(output) == 0


def test_a_shard_whose_input_changes_meanwhile_loses_its_own_work_alone(
    tmp_path: Path, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mrbcr_cli.stream.ledger import Ledger

    source, output = tmp_path / "in.ome.tif", tmp_path / "o.ome.zarr"
    shutil.copy2(job["source"], source)
    args = (source, "-m", job["weights"], "--tile-size", 160, "-o", output, "-q")
    assert deconvolve(*args, "--shard", "0/2") == 0
    sound, real = source.read_bytes(), Ledger.append

    def edit(self: Ledger, record: Any) -> None:
        with source.open("r+b") as file:
            file.seek(len(sound) - 1)
            file.write(bytes([sound[-1] ^ 1]))
        real(self, record)

    monkeypatch.setattr(Ledger, "append", edit)
    assert deconvolve(*args, "--shard", "1/2") == 4
    monkeypatch.undo()
    source.write_bytes(sound)
    assert ledgers(tmp_path / "o.ome.zarr.partial") == {"ledger.0000-of-0002.jsonl": list(range(8)), "ledger.jsonl": []}
    assert deconvolve(*args, "--shard", "1/2") == 0
    assert finish(output, "-q") == 0
    assert np.array_equal(pixels(output), pixels(job["wholes"]["o.ome.zarr"]))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75)])
def test_a_shard_that_is_ended_is_taken_up_by_its_rerun(
    tmp_path: Path,
    job: dict[str, Any],
    number: int,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "o.ome.zarr"
    assert deconvolve(*job["args"], "-o", output, "--shard", "1/2", "-q") == 0
    ledger = tmp_path / "o.ome.zarr.partial" / "ledger.0000-of-0002.jsonl"
    ended, said = die_at(APPEND, 3, number, *job["args"], "-o", output, "--shard", "0/2", "-q")
    assert ended == code, said
    kept = ledgers(ledger.parent)[ledger.name]
    assert deconvolve(*job["args"], "-o", output, "--shard", "0/2", "-q", "--json") == 0
    redone = [e["number"] for e in events(capsys.readouterr().out, "block")]
    assert sorted(kept + redone) == list(range(8))
    assert finish(output, "-q") == 0
    assert_same_output(output, job["wholes"]["o.ome.zarr"])


def test_ranges_of_a_dropped_run_do_not_live_on(
    tmp_path: Path, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--overwrite over the unfinished run of another image once took that image's intensity range."""
    other = tmp_path / "other.tif"
    tifffile.imwrite(other, 7 * spots((4, 300, 256), seed=3), metadata={"axes": "ZYX"}, photometric="minisblack")
    full_after(monkeypatch, 2)
    assert deconvolve(other, "-m", job["weights"], "-o", tmp_path / "o.ome.zarr", "-q") == 3
    monkeypatch.undo()
    assert deconvolve(*job["args"], "-o", tmp_path / "o.ome.zarr", "-q", "--overwrite") == 0
    assert np.array_equal(pixels(tmp_path / "o.ome.zarr"), pixels(job["wholes"]["o.ome.zarr"]))
