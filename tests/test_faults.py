"""Faults around the block loop: nothing that is done is lost, nothing that is not done is believed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from mrbcr_cli.images import omezarr_write
from mrbcr_cli.images.omezarr import OmeZarrReader
from mrbcr_cli.images.tiff import TiffReader
from mrbcr_cli.stream.ledger import Ledger
from tests.helpers import deconvolve, pixels, spots, tiny_weights


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "w").mkdir()
    return tiny_weights(tmp_path / "w" / "tiny.safetensors")


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    path = tmp_path / "in.tif"
    tifffile.imwrite(path, spots((8, 64, 64)), photometric="minisblack", metadata={"axes": "ZYX"})
    return path


def events(text: str, kind: str) -> list[dict[str, Any]]:
    return [e for e in map(json.loads, text.splitlines()) if e["event"] == kind]


def test_a_ledger_without_its_pixels_is_not_believed(tmp_path: Path, weights: Path, stack: Path) -> None:
    """Killed after the last rename, while the working folder was being removed; then the output was moved away."""
    output = tmp_path / "o.ome.zarr"
    partial = tmp_path / "o.ome.zarr.partial"
    assert deconvolve(stack, "-o", output, "-m", weights, "-q") == 0
    right = pixels(output)

    def killed(_: Path) -> None:
        if (partial / "replaced").exists():
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mrbcr_cli.workfolder.sync", killed)
        assert deconvolve(stack, "-o", output, "-m", weights, "-q", "--overwrite") == 75
    assert (partial / "ledger.jsonl").exists()
    shutil.move(output, tmp_path / "moved.ome.zarr")
    shutil.rmtree(partial / "replaced")
    assert deconvolve(stack, "-o", output, "-m", weights, "-q") == 0
    assert np.array_equal(pixels(output), right)
    assert not partial.exists()


def test_a_kill_between_the_two_renames_keeps_the_former_output(tmp_path: Path, weights: Path, stack: Path) -> None:
    output = tmp_path / "o.ome.zarr"
    assert deconvolve(stack, "-o", output, "-m", weights, "-q") == 0
    right = pixels(output)
    partial = tmp_path / "o.ome.zarr.partial"
    partial.mkdir()
    output.rename(partial / "replaced")
    assert deconvolve(stack, "-o", output, "-m", weights, "-q") == 0
    assert np.array_equal(pixels(output), right)


def test_a_failing_disk_costs_no_finished_block(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mrbcr_cli.errors import InputError

    tifffile.imwrite(tmp_path / "in.tif", spots((40, 32, 32)), photometric="minisblack", metadata={"axes": "ZYX"})
    args = (tmp_path / "in.tif", "-o", tmp_path / "o.ome.zarr", "-m", weights, "-q", "--json", "--range", 0, 900)
    real, reads = TiffReader.read, 0

    def stale(self: TiffReader, region: Any) -> Any:
        nonlocal reads
        reads += 1
        if reads > 40 and region[0].start >= 10:  # the first 40 are the survey's
            raise InputError("in.tif: cannot be read") from OSError(116, "Stale file handle")
        return real(self, region)

    monkeypatch.setattr(TiffReader, "read", stale)
    assert deconvolve(*args) == 3
    assert len(events(capsys.readouterr().out, "block")) == 10
    monkeypatch.undo()
    assert deconvolve(*args) == 0
    assert len(events(capsys.readouterr().out, "block")) == 30


def test_an_input_that_goes_away_is_not_read_as_zeros(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zarr.create_array(tmp_path / "in.zarr", data=spots((8, 64, 64)), chunks=(1, 64, 64))
    args = (tmp_path / "in.zarr", "--axes", "ZYX", "-o", tmp_path / "o.ome.zarr", "-m", weights, "-q", "--workers", 1)
    real, count = OmeZarrReader.read, 0

    def unplugged(self: OmeZarrReader, region: Any) -> Any:
        nonlocal count
        count += 1
        if count == 11:  # after the survey's 8 planes and two blocks
            (tmp_path / "in.zarr").rename(tmp_path / "gone.zarr")
        return real(self, region)

    monkeypatch.setattr(OmeZarrReader, "read", unplugged)
    assert deconvolve(*args) == 3
    assert not (tmp_path / "o.ome.zarr").exists()
    monkeypatch.undo()
    (tmp_path / "gone.zarr").rename(tmp_path / "in.zarr")
    assert deconvolve(*args) == 0
    assert pixels(tmp_path / "o.ome.zarr")[2:].std() > 0


def test_an_input_that_changes_meanwhile_is_refused(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    array = zarr.create_array(tmp_path / "in.zarr", data=spots((4, 64, 64)), chunks=(1, 64, 64))
    args = (tmp_path / "in.zarr", "--axes", "ZYX", "-o", tmp_path / "o.ome.zarr", "-m", weights, "-q")
    real = Ledger.append

    def edit(self: Ledger, record: Any) -> None:
        array[3, 10:20, 10:20] = 7
        real(self, record)

    monkeypatch.setattr(Ledger, "append", edit)
    assert deconvolve(*args) == 4
    assert "changed" in capsys.readouterr().err
    monkeypatch.undo()
    assert deconvolve(*args) == 0


def test_a_changed_zarr_is_another_input(tmp_path: Path, weights: Path) -> None:
    array = zarr.create_array(tmp_path / "in.zarr", data=spots((2, 256, 256)), chunks=(1, 256, 256), compressors=None)
    args = (tmp_path / "in.zarr", "--axes", "ZYX", "-o", tmp_path / "o.ome.zarr", "-m", weights, "-q")
    assert deconvolve(*args) == 0
    array[1, 100:110, 100:110] = 7
    assert deconvolve(*args) == 4


@pytest.mark.parametrize("name", ["o.ome.zarr", "o.ome.tif"])
def test_an_interruption_outside_the_blocks_is_exit_75_and_resumes(
    tmp_path: Path,
    weights: Path,
    stack: Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mrbcr_cli.images import tiff_write

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    args = (stack, "-o", tmp_path / name, "-m", weights, "-q", "--json")
    monkeypatch.setattr(omezarr_write, "finish", interrupt)
    monkeypatch.setattr(tiff_write, "write_ome_tiff", interrupt)
    assert deconvolve(*args) == 75
    assert "resume" in capsys.readouterr().err
    monkeypatch.undo()
    assert deconvolve(*args) == 0
    said = capsys.readouterr().out
    assert events(said, "block") == []
    assert events(said, "done")[0]["blocks_resumed"] == 8


def test_overwrite_resumes_its_own_unfinished_run(
    tmp_path: Path,
    weights: Path,
    stack: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = (stack, "-o", tmp_path / "o.ome.zarr", "-m", weights, "-q", "--json")
    assert deconvolve(*args) == 0
    former = pixels(tmp_path / "o.ome.zarr")
    real, count = Ledger.append, 0

    def full(self: Ledger, record: Any) -> None:
        nonlocal count
        count += 1
        if count > 3:
            raise OSError(28, "No space left on device")
        real(self, record)

    monkeypatch.setattr(Ledger, "append", full)
    assert deconvolve(*args, "--overwrite", "--range", 0, 900) == 3
    assert np.array_equal(pixels(tmp_path / "o.ome.zarr"), former)
    monkeypatch.undo()
    capsys.readouterr()
    assert deconvolve(*args, "--overwrite", "--range", 0, 900) == 0
    assert len(events(capsys.readouterr().out, "block")) == 5


def test_a_second_run_on_the_same_output_keeps_away(
    tmp_path: Path, weights: Path, stack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = tmp_path / "o.ome.zarr.partial"
    partial.mkdir()
    with Ledger(partial / "ledger.jsonl", {"fingerprint": "of the first run", "grid": {}}):
        assert deconvolve(stack, "-o", tmp_path / "o.ome.zarr", "-m", weights, "-q", "--overwrite") == 3
        assert "another run" in capsys.readouterr().err
    assert deconvolve(stack, "-o", tmp_path / "o.ome.zarr", "-m", weights, "-q", "--overwrite") == 0


def test_late_nan_keeps_what_is_done_and_a_change_of_policy_goes_on(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mrbcr_cli import intensity

    image = spots((6, 64, 64), dtype="float32")
    image[5, 3, 3] = np.nan
    tifffile.imwrite(tmp_path / "in.tif", image, photometric="minisblack", metadata={"axes": "ZYX"})
    args = (tmp_path / "in.tif", "-o", tmp_path / "o.ome.zarr", "-m", weights, "-q", "--json", "--workers", 1)
    monkeypatch.setattr(intensity, "EXACT_PIXELS", 10)  # as for a large image: the survey samples, and misses it
    monkeypatch.setattr(intensity, "SAMPLE_BOXES", 1)
    assert deconvolve(*args) == 3
    assert "--nan-policy" in capsys.readouterr().err
    assert deconvolve(*args, "--nan-policy", "zero") == 0
    assert events(capsys.readouterr().out, "done")[0]["blocks_resumed"] == 5


@pytest.mark.parametrize(("dtype", "offset"), [("uint32", 2**31), ("int64", 2**40), ("float64", 1e9)])
def test_a_large_offset_costs_no_digits(tmp_path: Path, weights: Path, dtype: str, offset: float) -> None:
    image = spots((80, 90)).astype(dtype)
    for name, values in (("a", image), ("b", image + np.array(offset, dtype))):
        tifffile.imwrite(tmp_path / f"{name}.tif", values)
        assert deconvolve(tmp_path / f"{name}.tif", "-o", tmp_path / f"{name}.ome.zarr", "-m", weights, "-q") == 0
    low, high = pixels(tmp_path / "a.ome.zarr").astype(float), pixels(tmp_path / "b.ome.zarr").astype(float)
    if dtype == "uint32":  # below zero the first was clipped
        low, high = low[low > 0], high[low > 0]
    assert np.abs(high - offset - low).max() <= 1


def test_a_rare_bright_object_is_not_overlooked() -> None:
    from mrbcr_cli.intensity import survey_channel

    image = np.zeros((1, 1, 6000, 6000), np.uint16)
    image[0, 0, 3000:3010, 3000:3010] = 40_000
    found = survey_channel(image.shape, lambda region: image[region])  # type: ignore[arg-type]
    assert found.range.high == 40_000
    assert found.notes


@pytest.mark.parametrize("text", ["z: 1:3\n", "z: '1:3'\n", "z: [1, 2]\n"])
def test_selections_in_yaml(tmp_path: Path, weights: Path, stack: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text + "t: 0\n")
    args = (stack, "-o", tmp_path / "o.ome.zarr", "-m", weights, "-q", "-c", tmp_path / "run.yaml")
    assert deconvolve(*args) == 0
    assert pixels(tmp_path / "o.ome.zarr").shape == (2, 64, 64)


@pytest.mark.parametrize(
    "extra",
    [
        ["--method", "blind", "--precision", "bf16"],
        ["--iterations", "5"],
        ["--range", "0", "inf"],
    ],
)
def test_options_that_mean_nothing_are_refused(
    tmp_path: Path, weights: Path, stack: Path, extra: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert deconvolve(stack, "-o", tmp_path / "o.ome.zarr", "-q", *extra) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_output_into_its_own_folder_of_planes_is_refused(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "planes").mkdir()
    for k in range(3):
        tifffile.imwrite(tmp_path / "planes" / f"{k}.tif", spots((40, 40)))
    assert deconvolve(tmp_path / "planes", "-o", tmp_path / "planes" / "o.ome.tif", "-m", weights) == 2
    assert sorted(p.name for p in (tmp_path / "planes").iterdir()) == ["0.tif", "1.tif", "2.tif"]


def test_overwrite_does_not_delete_what_is_no_image(tmp_path: Path, weights: Path, stack: Path) -> None:
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "thesis.txt").write_text("years of work")
    assert deconvolve(stack, "-o", tmp_path / "mine.zarr", "-m", weights, "--overwrite") == 2
    assert (tmp_path / "mine.zarr" / "thesis.txt").exists()
