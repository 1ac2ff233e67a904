"""In a pipeline: names from stdin, names of outputs that depend on nothing but inputs, a dry run that hides nothing."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tifffile

from mrbcr_cli.batch import name_targets
from mrbcr_cli.cli import run
from mrbcr_cli.errors import InputError
from mrbcr_cli.stdin_names import expand_names, split_names
from tests.helpers import deconvolve, full_after, spots, tiny_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


def piped(data: bytes, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the tool in a process of its own with `data` on stdin."""
    return subprocess.run(
        [sys.executable, "-m", "mrbcr_cli", *map(str, arguments)],
        input=data.decode(),
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"a.tif\nb c.tif\n", ["a.tif", "b c.tif"]),
        (b"a.tif\r\n\r\nb.tif", ["a.tif", "b.tif"]),
        (b" a.tif \n", [" a.tif "]),
        (b"a\nb.tif\0c.tif\0", ["a\nb.tif", "c.tif"]),
        (b"\xff.tif\n", [os.fsdecode(b"\xff.tif")]),
        (b"\n\n", []),
        (b"\0", []),
    ],
)
def test_names_are_taken_as_they_are(data: bytes, names: list[str]) -> None:
    assert split_names(data) == names


def test_names_stand_where_the_mark_stood() -> None:
    assert expand_names(["x", "-", "y"], io.BytesIO(b"a\nb\n")) == ["x", "a", "b", "y"]
    assert expand_names(["x"], io.BytesIO(b"a\n")) == ["x"]


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True

    def read(self, *_: Any) -> bytes:
        raise RuntimeError("it would hang")


@pytest.mark.parametrize(
    ("inputs", "stdin", "said"),
    [
        (["-"], Terminal(), "is a terminal; pipe them"),
        (["-"], io.BytesIO(b""), "no file name came in"),
        (["-"], io.BytesIO(b"\n\r\n"), "no file name came in"),
        (["-", "-"], io.BytesIO(b"a"), "once"),
    ],
)
def test_a_stdin_without_names_is_said(inputs: list[str], stdin: io.BytesIO, said: str) -> None:
    with pytest.raises(InputError, match=said):
        expand_names(inputs, stdin)


def test_a_pipe_of_names_is_deconvolved(tmp_path: Path, weights: Path) -> None:
    for name in ("a", "b c", "d"):
        tifffile.imwrite(tmp_path / f"{name}.tif", spots((64, 64)))
    names = f"{tmp_path / 'a.tif'}\0{tmp_path / 'b c.tif'}\0".encode()
    ended = piped(names, "deconvolve", "-", tmp_path / "d.tif", "-o", tmp_path / "out", "-m", weights, "-q")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [str(tmp_path / "out" / f"{n}.ome.zarr") for n in ("a", "b c", "d")]
    again = piped(ended.stdout.encode(), "info", "-", "--json")
    assert [json.loads(line)["shape"] for line in again.stdout.splitlines()] == [[64, 64]] * 3
    judged = piped(ended.stdout.encode(), "evaluate", "-", "--truth", *ended.stdout.splitlines(), "--json", "-q")
    assert judged.returncode == 0, judged.stderr
    assert json.loads(judged.stdout.splitlines()[-1])["images"] == 3
    empty = piped(b"", "deconvolve", "-", "-o", tmp_path / "out2", "-m", weights)
    assert empty.returncode == 2
    assert "no file name came in on stdin" in empty.stderr
    assert not (tmp_path / "out2").exists()


def test_names_depend_on_the_inputs_alone(tmp_path: Path) -> None:
    """Not on their order, nor on what lies in the folder."""
    inputs = ["day1/a.ome.tif", "b.tiff", "c.czi", "planes/*.tif", "s.zarr", "x.y.lif", "store.ome.zarr/"]
    named = {text: target.path.name for text, target in zip(inputs, name_targets(inputs, tmp_path, None), strict=True)}
    expected = ["a", "b", "c", "planes", "s", "x.y", "store"]
    assert list(named.values()) == [f"{stem}.ome.zarr" for stem in expected]
    for stem in expected:
        (tmp_path / f"{stem}.ome.zarr").mkdir()
    for order in itertools.islice(itertools.permutations(inputs), 0, 5040, 501):
        targets = name_targets(list(order), tmp_path, "ome-zarr")
        assert {text: t.path.name for text, t in zip(order, targets, strict=True)} == named


def test_equal_names_are_refused_before_anything_is_opened(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("mrbcr_cli.batch.find_source", never)
    for pair in (("x/a.tif", "y/a.ome.tif"), ("a.czi", "a.lif")):
        for order in (pair, pair[::-1]):
            assert deconvolve(*(tmp_path / name for name in order), "-o", tmp_path / "out", "-m", weights) == 2
            assert "run them separately" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def planned(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert deconvolve(*arguments, "--dry-run", "--json", "-q") == 0
    event = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert event["event"] == "planned"
    return dict(event)


@pytest.mark.parametrize("name", ["o.ome.zarr", "o.ome.tif"])
@pytest.mark.parametrize("extra", [[], ["--output-dtype", "float32"]])
def test_a_dry_run_tells_what_a_run_then_writes(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], name: str, extra: list[str]
) -> None:
    import zarr

    tifffile.imwrite(tmp_path / "in.tif", spots((3, 600, 530)), photometric="minisblack", metadata={"axes": "ZYX"})
    args = (tmp_path / "in.tif", "-m", weights, "-o", tmp_path / name, *extra)
    told = planned(capsys, *args)
    assert [file["what"] for file in told["files"]] == ["image", "working folder"]
    assert told["files"][1]["path"] == str(tmp_path / f"{name}.partial") and told["files"][1]["temporary"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.tif"]
    assert deconvolve(*args, "-q") == 0
    if name.endswith("tif"):
        assert told["levels"][0]["shape"] == list(tifffile.imread(tmp_path / name).shape)
        assert told["bytes"] == tifffile.imread(tmp_path / name).nbytes
        return
    group = zarr.open_group(tmp_path / name, mode="r")
    arrays = [group[str(k)] for k in range(len(told["levels"]))]
    assert str(len(arrays)) not in group
    assert [level["shape"] for level in told["levels"]] == [list(a.shape) for a in arrays]
    assert [level["chunks"] for level in told["levels"]] == [list(a.chunks) for a in arrays]
    assert [level["shards"] for level in told["levels"]] == [list(a.shards) for a in arrays]
    assert told["bytes"] == sum(a.nbytes for a in arrays)


def test_a_dry_run_tells_what_is_there(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(tmp_path / "in.tif", spots((3, 100, 90)), photometric="minisblack", metadata={"axes": "ZYX"})
    args = (tmp_path / "in.tif", "-m", weights, "-o", tmp_path / "o.ome.zarr")
    with monkeypatch.context() as patched:
        full_after(patched, 2)
        assert deconvolve(*args, "-q", "--workers", 1) == 3
    assert planned(capsys, *args)["blocks_done"] == 2
    assert planned(capsys, *args)["files"][1]["exists"]
    assert deconvolve(*args, "--dry-run", "-q") == 0
    assert "resumes an unfinished run: 2 of 3 blocks are done" in capsys.readouterr().out
    assert deconvolve(*args, "-q") == 0
    assert planned(capsys, *args, "--overwrite")["replaces"] == str(tmp_path / "o.ome.zarr")
    assert deconvolve(*args, "--dry-run", "--overwrite", "-q") == 0
    assert f"replaces {tmp_path / 'o.ome.zarr'}" in capsys.readouterr().out
    assert deconvolve(*args, "--dry-run") == 0
    assert "is done already, would be left as it is" in capsys.readouterr().out
    assert run(["info", str(tmp_path / "o.ome.zarr")]) == 0
