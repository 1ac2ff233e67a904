"""Blocks that went bad on disk are found by their checksum, named, and they alone are done again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from mrbcr_cli.images import read_provenance
from mrbcr_cli.images.omezarr_level import open_level0
from mrbcr_cli.stream.blocks import Grid
from mrbcr_cli.stream.ledger import read_ledger
from tests.helpers import deconvolve, pixels, spots, tiny_weights
from tests.shard_runs import events, finish, ledgers

BLOCKS = 12


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An input of 12 blocks, the arguments, and an undisturbed output of each version of OME-Zarr."""
    folder = tmp_path_factory.mktemp("job")
    weights = tiny_weights(folder / "tiny.safetensors")
    source = folder / "in.tif"
    tifffile.imwrite(source, spots((3, 200, 200)), metadata={"axes": "ZYX"}, photometric="minisblack")
    wholes = {}
    for version in ("0.5", "0.4"):
        args = (source, "-m", weights, "--tile-size", 112, "-q", *FORMATS[version])
        wholes[version] = folder / f"{version}.ome.zarr"
        assert deconvolve(*args, "-o", wholes[version]) == 0
    return {"args": (source, "-m", weights, "--tile-size", 112, "-q"), "wholes": wholes}


FORMATS: dict[str, tuple[str, ...]] = {"0.5": (), "0.4": ("--output-format", "ome-zarr-0.4")}


def file_of(store: Path, number: int) -> Path:
    """The one file that holds a block."""
    header = (read_ledger(store / "0" / "mrbcr-blocks.jsonl") or read_ledger(store.parent / "ledger.jsonl")).header  # type: ignore[union-attr]
    (path,) = open_level0(store).files(Grid.from_dict(header["grid"]).block(number).core)
    return path


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def remove(path: Path) -> None:
    path.unlink()  # zarr reads zeros there, without a word


@pytest.mark.parametrize("harm", [truncate, empty, flip, remove])
@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_damage_in_a_finished_output_is_named_and_redone(
    tmp_path: Path, job: dict[str, Any], version: str, harm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.ome.zarr"
    shutil.copytree(job["wholes"][version], output)
    assert finish(output, "--verify") == 0
    assert "12 blocks verified" in capsys.readouterr().err
    right = pixels(output)
    harmed = file_of(output, 5)
    harm(harmed)
    assert finish(output, "--verify", "--json") == 3
    said = capsys.readouterr()
    assert f"1 of 12 blocks are damaged (block 5 in {harmed.relative_to(output)})" in said.err
    assert events(said.out, "damaged")[0]["blocks"] == [5]
    assert not output.exists()  # what is not sound does not look finished
    assert deconvolve(*job["args"], *FORMATS[version], "-o", output, "--json") == 0
    said = capsys.readouterr()
    assert [e["number"] for e in events(said.out, "block")] == [5]
    assert np.array_equal(pixels(output), right)
    assert read_provenance(output) is not None
    assert finish(output, "--verify", "-q") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.ome.zarr"]


def test_damage_in_the_working_folder_of_shards(
    tmp_path: Path, job: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    output, partial = tmp_path / "o.ome.zarr", tmp_path / "o.ome.zarr.partial"
    for shard in ("0/3", "1/3", "2/3"):
        assert deconvolve(*job["args"], "-o", output, "--shard", shard) == 0
    flip(file_of(partial / "image.ome.zarr", 2))
    truncate(file_of(partial / "image.ome.zarr", 9))
    assert finish(output, "--verify") == 3
    assert "2 of 12 blocks are damaged" in capsys.readouterr().err
    assert sorted(n for blocks in ledgers(partial).values() for n in blocks) == [0, 1, *range(3, 9), 10, 11]
    assert finish(output) == 3
    assert "blocks are not done (2, 9); run again the shards 0, 2 of 3" in capsys.readouterr().err
    for shard in ("0/3", "1/3", "2/3"):
        assert deconvolve(*job["args"], "-o", output, "--shard", shard, "--json") == 0
    assert sorted(e["number"] for e in events(capsys.readouterr().out, "block")) == [2, 9]
    assert finish(output, "--verify", "-q") == 0
    assert np.array_equal(pixels(output), pixels(job["wholes"]["0.5"]))


def test_a_block_taken_back_is_not_done_whatever_was_said_before(tmp_path: Path) -> None:
    from mrbcr_cli.stream.ledger import BlockRecord, Ledger

    path = tmp_path / "ledger.jsonl"
    with Ledger(path, {"fingerprint": "abc"}) as ledger:
        for number in (1, 2, 1):
            ledger.append(BlockRecord(number, "sum"))
        ledger.take_back(1)
        assert sorted(ledger.records) == [2]
    with Ledger(path, {}) as ledger:
        assert sorted(ledger.records) == [2]
        ledger.append(BlockRecord(1, "again"))
    assert sorted(read_ledger(path).records) == [1, 2]  # type: ignore[union-attr]


def test_a_disk_that_fails_is_no_damage(
    tmp_path: Path, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mrbcr_cli.errors import InputError
    from mrbcr_cli.images.omezarr_level import Level

    output = tmp_path / "o.ome.zarr"
    shutil.copytree(job["wholes"]["0.5"], output)

    def gone(self: Level, region: Any) -> Any:
        raise InputError("cannot be read") from OSError(116, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(Level, "read", gone)
        assert finish(output, "--verify") == 3
    assert "nothing was marked" in capsys.readouterr().err
    assert output.exists()
    assert finish(output, "--verify") == 0


def test_a_kill_while_a_damaged_output_goes_back_loses_nothing(
    tmp_path: Path, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.ome.zarr"
    shutil.copytree(job["wholes"]["0.5"], output)
    harmed = file_of(output, 5)
    flip(harmed)
    real = Path.rename

    def killed(self: Path, target: Any) -> Any:
        if self == output:
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        assert finish(output, "--verify") == 75
    assert output.exists()
    assert finish(output, "--verify") == 3
    capsys.readouterr()
    assert deconvolve(*job["args"], "-o", output, "--json") == 0
    assert [e["number"] for e in events(capsys.readouterr().out, "block")] == [5]
    assert np.array_equal(pixels(output), pixels(job["wholes"]["0.5"]))


def test_the_kept_ledger_is_no_part_of_the_image(job: dict[str, Any]) -> None:
    """No reader lists it (warnings are errors here), no validator minds it, and it names no place of this machine."""
    import yaozarrs

    output = job["wholes"]["0.5"]
    yaozarrs.validate_zarr_store(str(output))
    assert sorted(name for name, _ in zarr.open_group(output, mode="r").members(max_depth=None)) == ["0"]
    kept = (output / "0" / "mrbcr-blocks.jsonl").read_text().splitlines()
    assert [json.loads(line)["block"] for line in kept[1:]] == list(range(BLOCKS))
    assert "folder" not in json.loads(kept[0])["source"]


def test_what_keeps_no_checksums_is_said(
    tmp_path: Path, job: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.ome.tif"
    assert deconvolve(*job["args"], "-o", output) == 0
    assert finish(output, "--verify") == 2
    assert "no checksums" in capsys.readouterr().err
    assert finish(output) == 0
    assert finish(tmp_path / "nothing.ome.zarr") == 2
