"""Runs to and from URLs that are ended, cut off or find other files: no finished block is lost, none is taken on trust.

Resumed, they leave what an undisturbed run on a disk leaves.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from mrbcr_cli.cli import run
from mrbcr_cli.places import RemoteError, RemotePath, place
from mrbcr_cli.stream.ledger import Ledger
from tests.helpers import APPEND, deconvolve, die_at, full_after
from tests.remote.bucket import BLOCKS, BUCKET, assert_same, partial_of, tree, upload, url
from tests.shard_runs import events, finish


def cut_short(job: dict[str, Any], out: str, blocks: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """Let the disk of the working folder be full after so many blocks; return the arguments of the run."""
    args = (f"{BUCKET}/in.ome.zarr", *job["args"], "-o", out)
    full_after(monkeypatch, blocks)
    assert deconvolve(*args) == 3
    monkeypatch.undo()
    return args


def test_resumed_equals_undisturbed_and_redoes_nothing(
    work: Path,
    job: dict[str, Any],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = url(request)
    args = cut_short(job, out, 5, monkeypatch)
    monkeypatch.chdir(work)
    assert "multiscales" not in json.loads(tree(out)["zarr.json"])["attributes"].get("ome", {})
    assert run(["info", out]) == 2
    assert "unfinished output of mrbcr" in capsys.readouterr().err
    assert deconvolve(*args, "--json") == 0
    assert events(capsys.readouterr().out, "done")[0]["blocks_resumed"] == 5
    assert_same(out, job["whole"])
    assert not list(work.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "count", "left"),
    [
        (APPEND, 4, BLOCKS - 3),
        ("mrbcr_cli.remote_output:mark", 1, BLOCKS),  # the working folder is there, the store not quite
        ("mrbcr_cli.images.omezarr_write:write_group", 2, 0),  # the pyramid is there, the metadata are not
        ("mrbcr_cli.finish:put_in_place", 1, None),  # the output is there, the working folder too
    ],
)
def test_killed_at_any_moment(
    work: Path,
    job: dict[str, Any],
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    where: str,
    count: int,
    left: int | None,
) -> None:
    out = url(request)
    args = (f"{BUCKET}/in.ome.zarr", *job["args"], "-o", out, "--work-dir", work, "--workers", 1)
    code, said = die_at(where, count, signal.SIGKILL, *args)
    assert code == -signal.SIGKILL, said
    assert partial_of(work)
    capsys.readouterr()
    assert deconvolve(*args, "--json") == 0
    said = capsys.readouterr().out
    assert (len(events(said, "block")) if left is not None else None) == left
    assert_same(out, job["whole"])
    assert not list(work.iterdir())


def test_a_network_that_goes_away_costs_no_finished_block(
    work: Path,
    job: dict[str, Any],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = url(request)
    args = (f"{BUCKET}/in.ome.zarr", *job["args"], "-o", out, "--workers", 1, "--json")
    real, written = RemotePath.write_bytes, 0

    def gone(self: RemotePath, data: bytes) -> None:
        nonlocal written
        written += "/c/" in self.url
        if written > 4:
            raise RemoteError(None, "Could not connect to the endpoint URL", self.url)
        real(self, data)

    monkeypatch.setattr(RemotePath, "write_bytes", gone)
    assert deconvolve(*args) == 3
    said = capsys.readouterr()
    assert "Could not connect to the endpoint URL" in said.err
    assert "run the same command to resume" in said.err
    assert len(events(said.out, "block")) == 4
    monkeypatch.setattr(RemotePath, "write_bytes", real)
    assert deconvolve(*args) == 0
    assert len(events(capsys.readouterr().out, "block")) == BLOCKS - 4
    assert_same(out, job["whole"])


def test_an_input_that_cannot_be_fetched_is_not_read_as_zeros(
    work: Path, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = (f"{BUCKET}/in.ome.zarr", *job["args"], "-o", "o.ome.zarr", "--workers", 1, "--json", "--range", 90, 900)
    real, reads = RemotePath.read_bytes, 0

    def gone(self: RemotePath, *part: Any) -> bytes:
        nonlocal reads
        reads += self.url.startswith(f"{BUCKET}/in.ome.zarr/0/c/")
        if reads > 40:
            raise RemoteError(None, "Connection reset", self.url)
        return real(self, *part)

    monkeypatch.setattr(RemotePath, "read_bytes", gone)
    assert deconvolve(*args) == 3
    said = capsys.readouterr()
    assert "cannot be read now (Connection reset)" in said.err
    done = len(events(said.out, "block"))
    assert 0 < done < BLOCKS
    monkeypatch.setattr(RemotePath, "read_bytes", real)
    assert deconvolve(*args) == 0
    assert len(events(capsys.readouterr().out, "block")) == BLOCKS - done


@pytest.mark.parametrize("version", ["ome-zarr", "ome-zarr-0.4"])
def test_a_flipped_byte_is_found_and_its_block_redone(
    work: Path,
    job: dict[str, Any],
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    version: str,
) -> None:
    out = url(request)
    args = (f"{BUCKET}/in.ome.zarr", *job["args"], "-o", out, "--output-format", version)
    assert deconvolve(*args) == 0
    right = tree(out)
    name = next(k for k in sorted(right) if k.startswith("0/") and k.rpartition("/")[2].isdigit())
    data = bytearray(right[name])
    data[len(data) // 2] ^= 0x10
    (place(out) / name).write_bytes(bytes(data))  # type: ignore[union-attr]
    assert finish(out, "--verify", "-q") == 3
    said = capsys.readouterr().err
    assert "1 of 12 blocks are damaged" in said and name in said and str(partial_of(work).name) in said
    assert run(["info", out]) == 2
    capsys.readouterr()
    assert deconvolve(*args, "--json") == 0
    assert len(events(capsys.readouterr().out, "block")) == 1
    changed = {k for k, v in tree(out).items() if v != right[k]}
    assert changed <= {"zarr.json", ".zattrs", "0/mrbcr-blocks.jsonl"}
    assert finish(out, "--verify", "-q") == 0


def test_a_store_whose_working_folder_is_lost_begins_again_with_overwrite_alone(
    work: Path,
    job: dict[str, Any],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = url(request)
    args = cut_short(job, out, 3, monkeypatch)
    (work / "elsewhere").mkdir()
    monkeypatch.chdir(work / "elsewhere")
    capsys.readouterr()
    for extra in ((), ("--no-resume",)):
        assert deconvolve(*args, *extra) == 2
        said = capsys.readouterr().err
        assert "--work-dir" in said and "--overwrite" in said and len(said.splitlines()) == 1
    assert deconvolve(*args, "--overwrite") == 0
    assert_same(out, job["whole"])
    # The folder that was lost vouches for pixels that are gone: it does not count, and goes.
    monkeypatch.chdir(work)
    assert deconvolve(*args) == 0
    assert "already done" not in capsys.readouterr().out
    assert_same(out, job["whole"])
    assert [p.name for p in work.iterdir()] == ["elsewhere"]


def test_refused_input_leaves_nothing_there(
    work: Path, job: dict[str, Any], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mrbcr_cli.stream.engine import NonFiniteError

    def refused(*_: Any) -> None:
        raise NonFiniteError("1 pixels are NaN or infinite")

    monkeypatch.setattr("mrbcr_cli.stream.engine.run_block", refused)
    out = url(request)
    assert deconvolve(f"{BUCKET}/in.ome.zarr", *job["args"], "-o", out) == 2
    assert tree(out) == {}
    assert not list(work.iterdir())


def test_an_input_that_changes_meanwhile_is_refused_and_begun_again(
    work: Path, job: dict[str, Any], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, there = url(request), f"{BUCKET}/changing/in.ome.zarr"
    upload(job["folder"] / "in.ome.zarr", there)
    real = Ledger.append

    def edit(self: Ledger, record: Any) -> None:
        document = (job["folder"] / "in.ome.zarr" / "0" / "zarr.json").read_bytes()
        (place(there) / "0" / "zarr.json").write_bytes(document + b" ")  # type: ignore[union-attr]
        real(self, record)

    monkeypatch.setattr(Ledger, "append", edit)
    assert deconvolve(there, *job["args"], "-o", out, "--workers", 1) == 4
    monkeypatch.setattr(Ledger, "append", real)
    upload(job["folder"] / "in.ome.zarr", there)
    assert deconvolve(there, *job["args"], "-o", out) == 0
    assert_same(out, job["whole"])
