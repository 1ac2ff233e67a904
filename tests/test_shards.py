"""Shards that never talk make the output of one undisturbed run, whatever their number, order and fate."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from mrbcr_cli.cli import run
from mrbcr_cli.errors import InputError
from mrbcr_cli.finish import shards_of
from mrbcr_cli.images import read_provenance
from mrbcr_cli.stream.ledger import read_ledger
from mrbcr_cli.stream.shards import RunLedger, Shard, parse_shard, ranges_text
from tests.helpers import APPEND, deconvolve, die_at, full_after, pixels, spots, tiny_weights

BLOCKS = 16
SLURM = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "4"}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An input of 16 blocks with OME metadata, the arguments, and undisturbed outputs of each format."""
    folder = tmp_path_factory.mktemp("job")
    weights = tiny_weights(folder / "tiny.safetensors")
    source = folder / "in.ome.tif"
    tifffile.imwrite(source, spots((4, 300, 256)), metadata={"axes": "ZYX", "PhysicalSizeX": 0.1}, ome=True)
    args = (source, "-m", weights, "--tile-size", 160)
    wholes = {}
    for name, extra in (("o.ome.zarr", ()), ("old.ome.zarr", ("--output-format", "ome-zarr-0.4")), ("o.ome.tif", ())):
        wholes[name] = folder / name
        assert deconvolve(*args, "-o", wholes[name], "-q", *extra) == 0
    return {"folder": folder, "source": source, "weights": weights, "args": args, "wholes": wholes}


def finish(*arguments: object) -> int:
    """Run `mrbcr finish` in this process and return its exit code."""
    return run(["finish", *map(str, arguments)])


def events(text: str, kind: str) -> list[dict[str, Any]]:
    return [e for e in map(json.loads, text.splitlines()) if e["event"] == kind]


def start(job: dict[str, Any], output: Path, shard: str) -> subprocess.Popen[bytes]:
    arguments = ["deconvolve", *job["args"], "-o", output, "--shard", shard, "-q"]
    return subprocess.Popen(
        [sys.executable, "-m", "mrbcr_cli", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def ledgers(partial: Path) -> dict[str, list[int]]:
    """Blocks by the name of the ledger that has them."""
    found = {path.name: read_ledger(path) for path in sorted(partial.glob("ledger*.jsonl"))}
    return {name: sorted(contents.records) for name, contents in found.items() if contents is not None}


def without_command(value: Any) -> Any:
    """JSON without what tells commands apart, or when and how fast they ran."""
    if isinstance(value, dict):
        return {k: without_command(v) for k, v in value.items() if k not in ("command", "run")}
    return [without_command(v) for v in value] if isinstance(value, list) else value


def assert_same_output(one: Path, other: Path) -> None:
    """Byte for byte the same files; those that hold the provenance apart from the command."""
    if one.is_file():
        assert np.array_equal(pixels(one), pixels(other))
        assert without_command(read_provenance(one)) == without_command(read_provenance(other))
        return
    names = [{p.relative_to(root) for p in root.rglob("*") if p.is_file()} for root in (one, other)]
    assert names[0] == names[1]
    for name in names[0]:
        a, b = (root / name for root in (one, other))
        if name.name in ("zarr.json", ".zattrs", "mrbcr-blocks.jsonl"):
            documents = [without_command([json.loads(t) for t in _documents(p)]) for p in (a, b)]
            assert documents[0] == documents[1], name
        else:
            assert a.read_bytes() == b.read_bytes(), name


def _documents(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]


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
