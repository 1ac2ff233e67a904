"""mrbcr evaluate on files: in any shape and format they get the scores of their pixels.

Files that do not belong together or hold no image are refused in one line.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from mrbcr_cli.cli_evaluate import spread
from mrbcr_cli.evaluation.evaluate_files import evaluate_files, match_files
from mrbcr_cli.metrics import measure, psnr
from tests.evaluations import assert_refused, evaluate
from tests.helpers import deconvolve, spots, tiny_weights

# Files


def write(path: Path, image: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, image, photometric="minisblack", metadata={"axes": "CZYX"[-image.ndim :]})
    return path


def images(seed: int = 0, shape: tuple[int, ...] = (40, 48)) -> tuple[NDArray[Any], NDArray[Any]]:
    """A prediction and its truth."""
    truth = spots(shape, seed)
    noise = np.random.default_rng(seed).normal(0, 20, shape)
    return (truth + noise).astype(np.float32), truth


def test_files_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, truths, inputs = [], [], []
    for k in range(3):
        predicted, truth = images(k)
        predictions.append(write(tmp_path / "out" / f"cell{k}.tif", predicted))
        truths.append(write(tmp_path / "true" / f"cell{k}.tif", truth))
        inputs.append(write(tmp_path / "raw" / f"cell{k}.tif", truth[::-1].copy()))
    files = ("-o", tmp_path / "s.json", "--csv", tmp_path / "s.csv", "--figures", tmp_path / "figures")
    in_order = (*predictions, "--truth", *truths, "--input", *inputs)
    assert evaluate(*in_order, *files) == 0
    assert capsys.readouterr().out.startswith("| method")
    stored = json.loads((tmp_path / "s.json").read_text())
    row = next(r for r in stored["images"] if r["image"] == "cell1" and r["method"] == "prediction")
    expected = measure(*images(1))
    assert row["psnr_db"] == expected.psnr_db and row["ssim_fit"] == expected.ssim_fit
    assert len(list((tmp_path / "figures").iterdir())) == 3
    folders = (tmp_path / "out", "--truth", tmp_path / "true", "--input", tmp_path / "raw")
    assert evaluate(*folders, "-o", tmp_path / "again.json") == 0
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "s.json").read_bytes()


def test_stacks_of_any_format(tmp_path: Path) -> None:
    """A stack is one image, or a result a plane; TIFF and OME-Zarr of the same pixels score alike."""
    predicted, truth = images(0, (2, 3, 40, 48))
    tifffile.imwrite(
        tmp_path / "t.ome.tif", truth, metadata={"axes": "CZYX", "PhysicalSizeX": 0.1, "PhysicalSizeXUnit": "um"}
    )
    weights = tiny_weights(tmp_path / "tiny.safetensors")
    write(tmp_path / "p.ome.tif", predicted)
    assert deconvolve(tmp_path / "p.ome.tif", "-o", tmp_path / "o.ome.zarr", "-m", weights, "-q") == 0
    assert deconvolve(tmp_path / "p.ome.tif", "-o", tmp_path / "o.ome.tif", "-m", weights, "-q") == 0
    truth_file = str(tmp_path / "t.ome.tif")
    zarr, tiff = (
        evaluate_files(match_files([str(tmp_path / name)], [truth_file])) for name in ("o.ome.zarr", "o.ome.tif")
    )
    assert zarr.rows == tiff.rows and len(zarr.rows) == 1 and zarr.rows[0].pixel_um == pytest.approx(0.1)
    sets = match_files([str(tmp_path / "p.ome.tif")], [truth_file])
    whole = evaluate_files(sets).rows[0].scores
    assert whole.psnr_db == pytest.approx(psnr(predicted, truth))
    planes = evaluate_files(sets, per="plane").rows
    assert [row.image for row in planes] == [f"p c{c} z{z}" for c in range(2) for z in range(3)]
    assert planes[4].scores == measure(predicted[1, 1], truth[1, 1])


def test_options_take_many_files() -> None:
    assert spread(["a", "--truth", "b", "c", "-o", "d"]) == ["a", "--truth", "b", "--truth", "c", "-o", "d"]
    assert spread(["--truth=a", "b", "--", "--truth", "c"]) == ["--truth=a", "b", "--", "--truth", "c"]


# Refusals


def _bad_files(tmp_path: Path) -> dict[str, Path]:
    predicted, truth = images()
    nan = predicted.copy()
    nan[3, 4] = np.nan
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tif").write_text("no image")
    (tmp_path / "taken.json").write_text("{}")
    write(tmp_path / "drawn" / "x.tif", predicted)
    (tmp_path / "drawn" / "x.png").write_bytes(b"")
    for k in range(2):
        write(tmp_path / "many" / f"m{k}.tif", predicted)
    write(tmp_path / "fewer" / "m0.tif", truth)
    write(tmp_path / "twice" / "m0.tif", truth)
    write(tmp_path / "twice" / "m0.ome.tif", truth)
    made = {
        "p": write(tmp_path / "p.tif", predicted),
        "t": write(tmp_path / "t.tif", truth),
        "nan": write(tmp_path / "nan.tif", nan),
        "small": write(tmp_path / "small.tif", truth[1:]),
        "stack": write(tmp_path / "stack.tif", np.stack([truth, truth])),
    }
    return made | {name: tmp_path / name for name in ("empty", "drawn", "many", "fewer", "twice", "text.tif")}


Case = tuple[Callable[[dict[str, Path]], tuple[object, ...]], str]
BAD_FILES: dict[str, Case] = {
    "nothing": (lambda f: (), "no prediction is named"),
    "no truth": (lambda f: (f["p"],), "--truth"),
    "truth alone": (lambda f: ("--truth", f["t"]), "no prediction is named"),
    "missing prediction": (lambda f: (f["p"].with_name("gone.tif"), "--truth", f["t"]), "no such file"),
    "missing truth": (lambda f: (f["p"], "--truth", f["t"].with_name("gone.tif")), "no such file"),
    "too few truths": (lambda f: (f["p"], f["p"], "--truth", f["t"]), "1 files for 2 predictions"),
    "too many truths": (lambda f: (f["p"], "--truth", f["t"], f["t"]), "2 files for 1 predictions"),
    "too few inputs": (lambda f: (f["p"], f["p"], "--truth", f["t"], f["t"], "--input", f["p"]), "--input"),
    "other size": (lambda f: (f["p"], "--truth", f["small"]), "must be of one size"),
    "other depth": (lambda f: (f["stack"], "--truth", f["t"]), "must be of one size"),
    "input of other size": (lambda f: (f["p"], "--truth", f["t"], "--input", f["small"]), "must be of one size"),
    "NaN in prediction": (lambda f: (f["nan"], "--truth", f["t"]), "NaN"),
    "NaN in truth": (lambda f: (f["p"], "--truth", f["nan"]), "NaN"),
    "NaN in input": (lambda f: (f["p"], "--truth", f["t"], "--input", f["nan"]), "NaN"),
    "no image": (lambda f: (f["text.tif"], "--truth", f["t"]), "text.tif"),
    "empty folder": (lambda f: (f["empty"], "--truth", f["many"]), "holds no TIFF"),
    "empty truth folder": (lambda f: (f["many"], "--truth", f["empty"]), "holds no TIFF"),
    "prediction missing in folder": (lambda f: (f["fewer"], "--truth", f["many"]), "no image named m1"),
    "truth missing in folder": (lambda f: (f["many"], "--truth", f["fewer"]), "no image named m1"),
    "input missing in folder": (lambda f: (f["many"], "--truth", f["many"], "--input", f["fewer"]), "named m1"),
    "two of one name": (lambda f: (f["twice"], "--truth", f["fewer"]), "have one name"),
    "folder and file": (lambda f: (f["many"], "--truth", f["t"]), "matched by name"),
    "model without pairs": (lambda f: (f["p"], "--truth", f["t"], "-m", "widefield"), "needs --pairs"),
    "limit without pairs": (lambda f: (f["p"], "--truth", f["t"], "--limit", 3), "needs --pairs"),
    "per": (lambda f: (f["p"], "--truth", f["t"], "--per", "volume"), "--per volume"),
    "axes": (lambda f: (f["p"], "--truth", f["t"], "--axes", "QQ"), "axes"),
    "seed": (lambda f: (f["p"], "--truth", f["t"], "--seed", -1), "--seed"),
    "output taken": (lambda f: (f["p"], "--truth", f["t"], "-o", f["p"].with_name("taken.json")), "exists"),
    "output suffix": (lambda f: (f["p"], "--truth", f["t"], "-o", f["p"].with_name("x.txt")), ".json"),
    "csv suffix": (lambda f: (f["p"], "--truth", f["t"], "--csv", f["p"].with_name("x.json")), ".csv"),
    "report below a file": (lambda f: (f["p"], "--truth", f["t"], "--report", f["t"] / "x.md"), "not a folder"),
    "figures taken": (lambda f: (f["p"], "--truth", f["t"], "--figures", f["drawn"]), "--overwrite"),
    "figures a file": (lambda f: (f["p"], "--truth", f["t"], "--figures", f["t"]), "is a file"),
    "figure count": (lambda f: (f["p"], "--truth", f["t"], "--figures", "f", "--figure-count", 0), "--figure-count"),
    "output among inputs": (lambda f: (f["many"], "--truth", f["many"], "-o", f["many"] / "s.json"), "lies inside"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = BAD_FILES[case]
    files = _bad_files(tmp_path)
    assert_refused(arguments(files), words, tmp_path, capsys)
