"""Outputs and inputs at URLs are those on disks: the same keys with the same bytes, whatever ends a run on its way."""

from __future__ import annotations

import functools
import http.server
import json
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from mrbcr_cli.cli import run
from mrbcr_cli.images import find_source, open_source
from mrbcr_cli.places import RemoteError, RemotePath, place, refuse_mangled
from mrbcr_cli.stream.ledger import Ledger, read_ledger
from tests.helpers import APPEND, deconvolve, die_at, full_after, pixels, spots, tiny_weights
from tests.shard_runs import events, finish, without_command

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("s3fs", reason="the extra [remote] is not installed")
moto = pytest.importorskip("moto.server", reason="moto[server] of the extra [test] is not installed")

BLOCKS = 12
BUCKET = "s3://bucket"


@pytest.fixture(scope="module", autouse=True)
def s3() -> Iterator[str]:
    """A server of S3 on a free port, with an empty bucket; its address."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir("bucket")
        yield f"http://{host}:{port}"
    forget()
    server.stop()


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, where working folders come to lie."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, s3: str) -> dict[str, Any]:
    """An input of 12 blocks as TIFF, as OME-Zarr on a disk and in the bucket; arguments; the outputs on a disk."""
    folder = tmp_path_factory.mktemp("job")
    weights = tiny_weights(folder / "tiny.safetensors")
    tifffile.imwrite(folder / "in.ome.tif", spots((3, 200, 200)), metadata={"axes": "ZYX", "PhysicalSizeX": 0.1})
    args = ("-m", weights, "--tile-size", 112, "-q")
    assert deconvolve(folder / "in.ome.tif", *args, "-o", folder / "in.ome.zarr") == 0
    upload(folder / "in.ome.zarr", f"{BUCKET}/in.ome.zarr")
    whole = folder / "o.ome.zarr"
    assert deconvolve(folder / "in.ome.zarr", *args, "-o", whole) == 0
    return {"folder": folder, "args": args, "whole": whole, "weights": weights}


def forget() -> None:
    """Have the next call connect anew."""
    fsspec.filesystem("s3").clear_instance_cache()


def upload(folder: Path, url: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            (place(url) / path.relative_to(folder)).write_bytes(path.read_bytes())  # type: ignore[union-attr]


def tree(where: str | Path) -> dict[str, bytes]:
    """Every key below a place and its bytes."""
    if isinstance(where, Path):
        return {p.relative_to(where).as_posix(): p.read_bytes() for p in where.rglob("*") if p.is_file()}
    fs, key = fsspec.url_to_fs(where)
    fs.invalidate_cache()
    return {name[len(key) :].lstrip("/"): fs.cat_file(name) for name in fs.find(key)} if fs.exists(key) else {}


def without_paths(value: Any) -> Any:
    """JSON without what tells where the source lay, and how many worked on it."""
    if isinstance(value, dict):
        return {k: without_paths(v) for k, v in value.items() if k not in ("text", "path", "folder", "workers")}
    return [without_paths(v) for v in value] if isinstance(value, list) else value


def documents(data: bytes) -> Any:
    return without_paths(without_command([json.loads(line) for line in data.splitlines()]))


def assert_same(one: str | Path, other: str | Path) -> None:
    """The same keys and the same bytes, apart from what names a command or a place."""
    a, b = tree(one), tree(other)
    assert sorted(a) == sorted(b)
    for name in a:
        if name.endswith(".jsonl"):
            assert documents(a[name]) == documents(b[name]), name
        elif name.endswith(("zarr.json", ".zattrs")):
            both = [without_paths(without_command(json.loads(t[name]))) for t in (a, b)]
            assert both[0] == both[1], name
        else:
            assert a[name] == b[name], name


def url(request: pytest.FixtureRequest, scheme: str = BUCKET) -> str:
    """An output of this test's own."""
    return f"{scheme}/{zlib.crc32(request.node.name.encode()):08x}/o.ome.zarr"


def partial_of(work: Path) -> Path:
    (found,) = work.glob("*.partial")
    return found


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


@pytest.mark.slow
def test_shards_there_and_finish(
    work: Path, job: dict[str, Any], request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    out = url(request)
    args = (f"{BUCKET}/in.ome.zarr", *job["args"], "-o", out, "--work-dir", work / "shared")
    command = [sys.executable, "-m", "mrbcr_cli", "deconvolve", *map(str, args), "--shard"]
    shards = [
        subprocess.Popen([*command, f"{k}/2"], cwd=Path(__file__).parents[1], stderr=subprocess.PIPE) for k in range(2)
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


@pytest.mark.slow
def test_processes_do_what_threads_do(work: Path, job: dict[str, Any], request: pytest.FixtureRequest) -> None:
    out = url(request)
    args = (f"{BUCKET}/in.ome.zarr", *job["args"], "-o", out, "--cluster", "local", "--workers", 2)
    assert deconvolve(*args) == 0
    ours, wanted = tree(out), tree(job["whole"])
    assert {k: v for k, v in ours.items() if "/c/" in k} == {k: v for k, v in wanted.items() if "/c/" in k}
    assert not list(work.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("info", "s3://nobucket/a.ome.zarr"), 2, "there is nothing at s3://nobucket"),
        (("info", f"{BUCKET}/none.ome.zarr"), 2, "there is nothing at s3://bucket/none.ome.zarr"),
        (("info", f"{BUCKET}/a.ome.tif"), 2, "of URLs only OME-Zarr is read"),
        (("info", f"{BUCKET}/planes/*.tif"), 2, "of URLs only OME-Zarr is read"),
        (("info", f"{BUCKET}/a.czi"), 2, "Zeiss CZI"),
        (("info", BUCKET), 2, "is not an OME-Zarr"),
        (("info", "s3://"), 2, "no plain URL"),
        (("info", f"{BUCKET}/../a.ome.zarr"), 2, "no plain URL"),
        (("info", "https://host/a.ome.zarr?key=1"), 2, "no plain URL"),
        (("info", "nosuch://host/a.ome.zarr"), 2, "Protocol not known"),
        (("finish", f"{BUCKET}/none.ome.zarr"), 2, "no unfinished run"),
        (("deconvolve", f"{BUCKET}/in.ome.zarr", "-o", "s3://nobucket/o.ome.zarr"), 2, "there is no s3://nobucket"),
        (("deconvolve", f"{BUCKET}/in.ome.zarr", "-o", f"{BUCKET}/o.ome.tif"), 2, "TIFF is not written to URLs"),
        (("deconvolve", f"{BUCKET}/in.ome.zarr", "-o", f"{BUCKET}/o[1].ome.zarr"), 2, "cannot be written to a URL"),
        (("deconvolve", f"{BUCKET}/in.ome.zarr", "-o", "http://host/o.ome.zarr"), 2, "for reading alone"),
        (
            ("deconvolve", f"{BUCKET}/in.ome.zarr", "-o", "memory://o.ome.zarr", "--cluster", "local"),
            2,
            "exists in this process alone",
        ),
        (
            ("simulate", "stack", "-o", f"{BUCKET}/o.ome.zarr", "--specimen", "beads", "--shape", "4", "64", "64"),
            2,
            "give a path",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, said: str
) -> None:
    assert run(list(arguments)) == code
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert not list(work.iterdir())


def test_an_endpoint_that_nobody_serves(
    work: Path, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    forget()
    try:
        for code, arguments in (
            (2, ("info", f"{BUCKET}/in.ome.zarr")),
            (2, ("deconvolve", f"{BUCKET}/in.ome.zarr", "-o", "o.ome.zarr")),
            (3, ("deconvolve", str(job["folder"] / "in.ome.zarr"), "-o", f"{BUCKET}/down.ome.zarr")),
            (3, ("finish", f"{BUCKET}/down.ome.zarr")),
        ):
            assert run(list(arguments)) == code
            error = capsys.readouterr().err
            assert "Could not connect to the endpoint URL" in error
            assert len(error.splitlines()) == 1
    finally:
        forget()
    assert not list(work.iterdir())


def test_no_permission_and_no_credentials(
    monkeypatch: pytest.MonkeyPatch, work: Path, job: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from botocore.exceptions import NoCredentialsError

    for error, said in (
        (PermissionError("Access Denied"), "no permission: Access Denied"),
        (NoCredentialsError(), "no credentials; set AWS_PROFILE"),
    ):

        async def denied(*_: Any, error: Exception = error, **__: Any) -> bytes:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("s3fs.S3FileSystem._cat_file", denied)
            forget()
            assert run(["info", f"{BUCKET}/in.ome.zarr"]) == 2
            assert said in capsys.readouterr().err
        with monkeypatch.context() as patch:
            patch.setattr("s3fs.S3FileSystem._pipe_file", denied)
            forget()
            assert deconvolve(f"{BUCKET}/in.ome.zarr", *job["args"], "-o", f"{BUCKET}/denied/o.ome.zarr") == 3
            assert said in capsys.readouterr().err
    forget()
    assert not list(work.iterdir())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(_: str) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    assert run(["info", f"{BUCKET}/in.ome.zarr"]) == 2
    assert "pip install 'mrbcr[remote]'" in capsys.readouterr().err


def test_info_there_says_what_it_says_here(job: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for where in (f"{BUCKET}/in.ome.zarr", job["folder"] / "in.ome.zarr"):
        assert run(["info", str(where), "--json"]) == 0
        said.append({k: v for k, v in json.loads(capsys.readouterr().out).items() if k != "file"})
    assert said[0] == said[1]


def fingerprint(where: str) -> str:
    reader = open_source(find_source(where))
    try:
        return reader.fingerprint()
    finally:
        reader.close()


@pytest.mark.parametrize("scheme", [BUCKET, "memory://prints"])
@pytest.mark.parametrize("whole_bytes", [64 * 2**20, 10])
def test_a_fingerprint_is_stable_and_sees_a_changed_chunk(
    job: dict[str, Any], scheme: str, whole_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrbcr_cli.images.omezarr_fingerprint._WHOLE_BYTES", whole_bytes)
    there = f"{scheme}/print{whole_bytes}.ome.zarr"
    upload(job["folder"] / "in.ome.zarr", there)
    before = fingerprint(there)
    assert fingerprint(there) == before
    if whole_bytes > 10:
        assert before == fingerprint(str(job["folder"] / "in.ome.zarr"))  # small ones: by their bytes, wherever
    (key,) = [k for k in tree(there) if k.startswith("0/c/1/0/0")]
    path = place(there) / key
    assert isinstance(path, RemotePath)
    data = path.read_bytes()
    path.write_bytes(data[:-40] + bytes([data[-40] ^ 1]) + data[-39:])
    assert fingerprint(there) != before


class Unranged(http.server.SimpleHTTPRequestHandler):
    """A server that knows no ranges, and keeps quiet."""

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def web(job: dict[str, Any]) -> Iterator[str]:
    """The folder of the job, served."""
    handler = functools.partial(Unranged, directory=str(job["folder"]))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_web_server_is_read(
    work: Path, job: dict[str, Any], web: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert deconvolve(f"{web}/in.ome.zarr", *job["args"], "-o", "o.ome.zarr") == 0
    assert_same(work / "o.ome.zarr", job["whole"])
    monkeypatch.setattr("mrbcr_cli.images.omezarr_fingerprint._WHOLE_BYTES", 10)
    assert fingerprint(f"{web}/in.ome.zarr") == fingerprint(f"{web}/in.ome.zarr")
    capsys.readouterr()
    assert run(["info", f"{web}/none.ome.zarr"]) == 2
    assert "no such OME-Zarr" in capsys.readouterr().err


def test_no_more_is_fetched_than_was_asked_for(job: dict[str, Any], web: str) -> None:
    path = place(f"{web}/in.ome.tif")
    whole = (job["folder"] / "in.ome.tif").read_bytes()
    assert path.read_bytes(0, 10) == whole[:10]  # type: ignore[call-arg, union-attr]
    assert path.read_bytes(7, 10) == whole[7:10]  # type: ignore[call-arg, union-attr]
    assert path.read_bytes(-9) == whole[-9:]  # type: ignore[call-arg, union-attr]
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", ["far too large", "a bomb"])
def test_limits_hold_there_too(job: dict[str, Any], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    there = f"memory://hostile/{name.replace(' ', '')}.zarr"
    group = zarr.create_group(Path(job["folder"]) / f"{name}.zarr", zarr_format=2)
    group.create_array("0", data=spots((64, 64)), chunks=(64, 64), compressors={"id": "zlib", "level": 9})
    upload(job["folder"] / f"{name}.zarr" / "0", there)
    harm = bytes(20 * 2**20) if name == "far too large" else zlib.compress(bytes(64 * 2**20), 9)
    (place(there) / "0.0").write_bytes(harm)  # type: ignore[union-attr]
    assert deconvolve(there, "-m", job["weights"], "-q", "-o", "memory://hostile/o.ome.zarr") == 2
    assert ("far larger" if name == "far too large" else "a bomb") in capsys.readouterr().err


def test_places() -> None:
    there = place("S3://bucket/a/b.ome.zarr/")
    assert isinstance(there, RemotePath)
    assert (str(there), there.name, there.suffix, there.stem) == (
        "s3://bucket/a/b.ome.zarr",
        "b.ome.zarr",
        ".zarr",
        "b.ome",
    )
    assert [str(p) for p in there.parents] == ["s3://bucket/a", "s3://bucket"]
    assert (there / "0" / "zarr.json").is_relative_to(there) and not there.is_relative_to(place("s3://bucket/a/b"))
    assert str((there / "0/c").relative_to(there)) == "0/c"
    assert place("a/b.tif") == Path("a/b.tif") and place("file:///a/b.tif") == Path("/a/b.tif")
    with pytest.raises(ValueError, match="below"):
        there.relative_to(place("s3://other"))


def test_removing_below_a_name_with_brackets_spares_its_namesakes() -> None:
    """fsspec would take the name for a pattern."""
    ours, theirs = RemotePath("memory://brackets/a[1].zarr"), RemotePath("memory://brackets/a1.zarr")
    for path in (ours, theirs):
        (path / "c/0").write_bytes(b"x")
    ours.remove_tree()
    assert not ours.exists() and (theirs / "c/0").read_bytes() == b"x"


def test_an_empty_object_has_no_range(s3: str) -> None:
    path = RemotePath(f"{BUCKET}/empty")
    path.write_bytes(b"")
    assert path.read_bytes(0, 10) == b""
    with pytest.raises(FileNotFoundError):
        RemotePath(f"{BUCKET}/none").read_bytes(0, 10)
    path.unlink()
    for gone in (path, RemotePath("memory://empty/none")):
        gone.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        RemotePath("memory://empty/none").unlink()
    assert not path.exists()


def test_a_path_with_a_colon_is_a_path(tmp_path: Path) -> None:
    assert place(str(tmp_path / "a:b")) == tmp_path / "a:b"
    refuse_mangled(tmp_path / "a:b")


def test_ledgers_of_two_urls_with_one_name_stay_apart(
    work: Path, job: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    for out in (url(request), url(request).replace("/o.ome", "/x/o.ome")):
        assert deconvolve(f"{BUCKET}/in.ome.zarr", *job["args"], "-o", out, "--shard", "0/2") == 0
    ledgers = [read_ledger(p / "ledger.jsonl") for p in work.glob("*.partial")]
    assert len({contents.header["url"] for contents in ledgers if contents is not None}) == 2
