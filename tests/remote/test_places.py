"""Inputs at URLs are those on disks, from no more reads than needed; bad places are said in one line.

A place keeps its meaning in every command, and a path with a colon stays a path.
"""

from __future__ import annotations

import functools
import http.server
import json
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zarr

from mrbcr_cli.cli import run
from mrbcr_cli.images import find_source, open_source
from mrbcr_cli.places import RemotePath, place, refuse_mangled
from tests.helpers import deconvolve, spots
from tests.remote.bucket import BUCKET, assert_same, forget, fsspec, tree, upload


@pytest.mark.usefixtures("job")
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
