"""Shards that never talk make the output of one undisturbed run, whatever their number and order.

Every block belongs to one shard, and what is missing is named by block and shard.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrbcr_cli.errors import InputError
from mrbcr_cli.finish import shards_of
from mrbcr_cli.stream.shards import Shard, parse_shard, ranges_text
from tests.helpers import deconvolve, full_after, pixels
from tests.shard_runs import BLOCKS, assert_same_output, events, finish, ledgers, make_job, start

SLURM = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "4"}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.mark.parametrize("total", [1, 5, 16, 97])
@pytest.mark.parametrize("count", [1, 2, 7, 16, 40])
def test_shares_are_all_blocks_once_and_balanced(total: int, count: int) -> None:
    shares = [Shard(i, count).blocks(total) for i in range(count)]
    assert [n for share in shares for n in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for index, share in enumerate(shares):
        for number in share:
            assert shards_of([number], [Shard(0, count)], total) == {count: [index]}


@pytest.mark.parametrize(
    ("text", "environment", "wanted"),
    [
        ("0/1", {}, Shard(0, 1)),
        ("15/16", {}, Shard(15, 16)),
        ("auto", SLURM, Shard(2, 4)),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_STEP": "2"}, Shard(2, 4)),
    ],
)
def test_shards_are_read(text: str, environment: dict[str, str], wanted: Shard) -> None:
    assert parse_shard(text, environment) == wanted


@pytest.mark.parametrize(
    ("text", "environment"),
    [
        *((text, {}) for text in ("16/16", "1/0", "0/0", "-1/4", "1", "1/2/3", "a/b", "", "auto")),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_ID": "12"}),  # --array=5,6,7,12: four tasks, but not in a row
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_ID": "seven"}),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_ID": "8", "SLURM_ARRAY_TASK_STEP": "2"}),
    ],
)
def test_what_is_no_shard_is_refused_with_what_to_do(text: str, environment: dict[str, str]) -> None:
    with pytest.raises(InputError, match="--shard"):
        parse_shard(text, environment)


def test_ranges_in_words() -> None:
    assert ranges_text([3, 7, 8, 9, 12]) == "3, 7-9, 12"
    assert ranges_text(range(0, 60, 2), most=2) == "0, 2 and 28 more ranges"
    assert ranges_text([]) == ""


def test_three_processes_at_once_and_finish(
    tmp_path: Path, job: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.ome.zarr"
    processes = [start(job, output, f"{k}/3") for k in range(3)]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said.decode()
    assert not output.exists()
    assert sorted(n for blocks in ledgers(tmp_path / "o.ome.zarr.partial").values() for n in blocks) == list(
        range(BLOCKS)
    )  # every block once, by one of them
    assert finish(output) == 0
    assert capsys.readouterr().out == f"{output}\n"
    assert_same_output(output, job["wholes"]["o.ome.zarr"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.ome.zarr"]
    assert finish(output) == 0  # nothing to do


@pytest.mark.parametrize("name", ["old.ome.zarr", "o.ome.tif"])
def test_the_other_formats_are_finished_too(tmp_path: Path, job: dict[str, Any], name: str) -> None:
    extra = ("--output-format", "ome-zarr-0.4") if name.startswith("old") else ()
    for shard in ("1/2", "0/2"):
        assert deconvolve(*job["args"], "-o", tmp_path / name, "--shard", shard, "-q", *extra) == 0
    assert finish(tmp_path / f"{name}.partial", "-q") == 0
    assert_same_output(tmp_path / name, job["wholes"][name])


def test_missing_blocks_and_their_shards_are_named(
    tmp_path: Path, job: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.ome.zarr"
    assert finish(output) == 2
    for shard in ("0/4", "2/4"):
        assert deconvolve(*job["args"], "-o", output, "--shard", shard, "-q") == 0
    assert capsys.readouterr().out == ""  # no output yet, so no path of one
    assert finish(output, "--json") == 3
    said = capsys.readouterr()
    assert "8 of 16 blocks are not done (4-7, 12-15); run again the shards 1, 3 of 4" in said.err
    assert events(said.out, "missing")[0]["shards"] == {"4": [1, 3]}
    for shard in ("1/4", "3/4"):
        assert deconvolve(*job["args"], "-o", output, "--shard", shard, "-q") == 0
    assert finish(output, "-q") == 0
    assert_same_output(output, job["wholes"]["o.ome.zarr"])


def test_partitions_mix_and_no_block_is_done_twice(
    tmp_path: Path, job: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.ome.zarr"
    for shard in ("0/2", "0/2", "1/3", "0/1", "39/40"):
        assert deconvolve(*job["args"], "-o", output, "--shard", shard, "-q", "--json") == 0
    done = [e["number"] for e in events(capsys.readouterr().out, "block")]
    assert sorted(done) == list(range(BLOCKS))
    assert finish(output, "-q") == 0
    assert_same_output(output, job["wholes"]["o.ome.zarr"])


def test_an_unsharded_run_takes_over_and_ends_it(
    tmp_path: Path, job: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.ome.zarr"
    for shard in ("0/4", "3/4"):
        assert deconvolve(*job["args"], "-o", output, "--shard", shard, "-q") == 0
    assert deconvolve(*job["args"], "-o", output, "-q", "--json") == 0
    said = capsys.readouterr().out
    assert sorted(e["number"] for e in events(said, "block")) == list(range(4, 12))
    assert events(said, "done")[0]["blocks_resumed"] == 8
    assert_same_output(output, job["wholes"]["o.ome.zarr"])
    assert deconvolve(*job["args"], "-o", output, "--shard", "1/4", "-q") == 0  # a late task finds it done


def test_shards_take_over_an_unsharded_run(
    tmp_path: Path, job: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "o.ome.zarr"
    full_after(monkeypatch, 5)
    assert deconvolve(*job["args"], "-o", output, "-q") == 3
    monkeypatch.undo()
    for shard in ("0/2", "1/2"):
        assert deconvolve(*job["args"], "-o", output, "--shard", shard, "-q", "--json") == 0
    assert len(events(capsys.readouterr().out, "block")) == BLOCKS - 5
    assert finish(output, "-q") == 0
    assert_same_output(output, job["wholes"]["o.ome.zarr"])


def test_finish_needs_the_working_folder_alone(
    tmp_path: Path, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Relative names, another place, and neither the input nor the weights at hand: it warns and goes on."""
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy2(job["source"], work / "in.ome.tif")
    shutil.copy2(job["weights"], work / "tiny.safetensors")
    monkeypatch.chdir(work)
    args = ("in.ome.tif", "-m", "tiny.safetensors", "--tile-size", 160, "-o", "o.ome.zarr", "-q")
    for shard in ("0/2", "1/2"):
        assert deconvolve(*args, "--shard", shard) == 0
    monkeypatch.chdir(tmp_path)
    (work / "tiny.safetensors").unlink()
    (work / "in.ome.tif").unlink()
    assert finish("work/o.ome.zarr") == 0
    assert "warning: the input cannot be looked at from here" in capsys.readouterr().err
    assert np.array_equal(pixels(work / "o.ome.zarr"), pixels(job["wholes"]["o.ome.zarr"]))
