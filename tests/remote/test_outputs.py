"""Outputs at URLs are those on disks: the same keys with the same bytes, by one process or several.

What lies there is kept unless it is an output and --overwrite is given.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from mrbcr_cli.places import RemotePath, place
from mrbcr_cli.stream.ledger import read_ledger
from tests.helpers import deconvolve, pixels, spots
from tests.remote.bucket import BUCKET, assert_same, partial_of, tree, upload, url
from tests.shard_runs import finish


@pytest.mark.parametrize("version", ["ome-zarr", "ome-zarr-0.4"])
@pytest.mark.parametrize("scheme", [BUCKET, "memory://place"])
def test_out_there_equals_out_here(
    work: Path, job: dict[str, Any], request: pytest.FixtureRequest, scheme: str, version: str
) -> None:
    out, there = url(request, scheme), f"{scheme}/in.ome.zarr"
    upload(job["folder"] / "in.ome.zarr", there)
    extra = (*job["args"], "--output-format", version)
    assert deconvolve(job["folder"] / "in.ome.zarr", *extra, "-o", work / "o.ome.zarr") == 0
    assert deconvolve(there, *extra, "-o", out) == 0
    assert_same(out, work / "o.ome.zarr")
    assert [p.name for p in work.iterdir()] == ["o.ome.zarr"]


@pytest.mark.slow
def test_every_mix_of_places(work: Path, job: dict[str, Any], request: pytest.FixtureRequest) -> None:
    out = url(request)
    assert deconvolve(f"{BUCKET}/in.ome.zarr", *job["args"], "-o", "o.ome.zarr") == 0
    assert_same(work / "o.ome.zarr", job["whole"])
    assert deconvolve(f"{BUCKET}/in.ome.zarr", *job["args"], "-o", "o.ome.tif") == 0
    assert np.array_equal(pixels(work / "o.ome.tif"), pixels(job["whole"]))
    assert deconvolve(job["folder"] / "in.ome.zarr", *job["args"], "-o", out) == 0
    assert_same(out, job["whole"])
    assert deconvolve(job["folder"] / "in.ome.tif", *job["args"], "-o", out, "--overwrite") == 0
    assert_same(out, job["folder"] / "in.ome.zarr")
    assert deconvolve(f"{BUCKET}/in.ome.zarr", *job["args"], "-o", "memory://mixed/o.ome.zarr") == 0
    assert_same("memory://mixed/o.ome.zarr", job["whole"])


def test_several_inputs_into_a_folder_there(
    work: Path, job: dict[str, Any], request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    tifffile.imwrite(work / "two.tif", spots((40, 50)), photometric="minisblack")
    out = url(request).removesuffix("/o.ome.zarr")
    args = ("two.tif", f"{BUCKET}/in.ome.zarr", *job["args"], "-o", f"{out}/")
    assert deconvolve(*args, "--dry-run") == 0
    assert tree(out) == {}
    capsys.readouterr()
    assert deconvolve(*args) == 0
    assert capsys.readouterr().out.splitlines() == [f"{out}/two.ome.zarr", f"{out}/in.ome.zarr"]
    assert_same(f"{out}/in.ome.zarr", job["whole"])


def test_done_is_done_and_overwrite_begins_again(
    work: Path, job: dict[str, Any], request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    out = url(request)
    args = (f"{BUCKET}/in.ome.zarr", "-m", job["weights"], "--tile-size", 112, "-o", out)
    assert deconvolve(*args, "--output-format", "ome-zarr-0.4") == 0
    before = tree(out)
    capsys.readouterr()
    assert deconvolve(*args, "--output-format", "ome-zarr-0.4") == 0
    assert "already done, nothing to do" in capsys.readouterr().err
    assert finish(out) == 0
    assert deconvolve(*args) == 4
    assert tree(out) == before
    assert deconvolve(*args, "--overwrite") == 0
    assert "stands until the new run begins" in capsys.readouterr().err
    assert_same(out, job["whole"])
    assert not list(work.iterdir())


def test_what_is_no_output_is_not_overwritten(
    work: Path, job: dict[str, Any], request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    out = url(request)
    key = place(out) / "thesis.txt"
    assert isinstance(key, RemotePath)
    key.write_bytes(b"the only copy")
    for extra in ((), ("--overwrite",)):
        assert deconvolve(f"{BUCKET}/in.ome.zarr", *job["args"], "-o", out, *extra) == 2
        assert "other things than an OME-Zarr" in capsys.readouterr().err
    assert tree(out) == {"thesis.txt": b"the only copy"}
    args = (*job["args"], "-o", f"{BUCKET}/in.ome.zarr", "--overwrite")
    assert deconvolve(f"{BUCKET}/in.ome.zarr", *args) == 2
    assert deconvolve(f"{BUCKET}/in.ome.zarr", *job["args"], "-o", f"{BUCKET}/in.ome.zarr/0") == 2
    assert_same(f"{BUCKET}/in.ome.zarr", job["folder"] / "in.ome.zarr")


@pytest.mark.slow
def test_shards_there_and_finish(
    work: Path, job: dict[str, Any], request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    out = url(request)
    args = (f"{BUCKET}/in.ome.zarr", *job["args"], "-o", out, "--work-dir", work / "shared")
    command = [sys.executable, "-m", "mrbcr_cli", "deconvolve", *map(str, args), "--shard"]
    shards = [
        subprocess.Popen([*command, f"{k}/2"], cwd=Path(__file__).parents[2], stderr=subprocess.PIPE) for k in range(2)
    ]  # both at once: one lays the store out, the other waits for it
    for shard in shards:
        _, said = shard.communicate(timeout=120)
        assert shard.returncode == 0, said.decode()
    assert finish(out) == 2  # not the folder that the shards had
    assert "--work-dir" in capsys.readouterr().err
    assert deconvolve(*args[:-2]) == 2
    assert "--work-dir" in capsys.readouterr().err
    assert finish(out, "--work-dir", "shared", "--verify", "-q") == 0
    assert_same(out, job["whole"])
    assert not list((work / "shared").iterdir())


def test_finish_takes_the_working_folder_for_its_url(
    work: Path, job: dict[str, Any], request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    out = url(request)
    args = (f"{BUCKET}/in.ome.zarr", *job["args"], "-o", out)
    assert deconvolve(*args, "--shard", "0/2") == 0
    assert finish(partial_of(work), "-q") == 3
    assert "run again the shards 1 of 2" in capsys.readouterr().err
    assert deconvolve(*args, "--shard", "1/2") == 0
    assert finish(partial_of(work), "-q") == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert_same(out, job["whole"])


@pytest.mark.slow
def test_processes_do_what_threads_do(work: Path, job: dict[str, Any], request: pytest.FixtureRequest) -> None:
    out = url(request)
    args = (f"{BUCKET}/in.ome.zarr", *job["args"], "-o", out, "--cluster", "local", "--workers", 2)
    assert deconvolve(*args) == 0
    ours, wanted = tree(out), tree(job["whole"])
    assert {k: v for k, v in ours.items() if "/c/" in k} == {k: v for k, v in wanted.items() if "/c/" in k}
    assert not list(work.iterdir())


def test_ledgers_of_two_urls_with_one_name_stay_apart(
    work: Path, job: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    for out in (url(request), url(request).replace("/o.ome", "/x/o.ome")):
        assert deconvolve(f"{BUCKET}/in.ome.zarr", *job["args"], "-o", out, "--shard", "0/2") == 0
    ledgers = [read_ledger(p / "ledger.jsonl") for p in work.glob("*.partial")]
    assert len({contents.header["url"] for contents in ledgers if contents is not None}) == 2
