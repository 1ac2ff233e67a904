"""What training is given: data of every kind give the same batches, every option trains, faults are told first.

A batch depends on the seed and the step alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from mrbcr_cli.cli import run
from mrbcr_cli.network.mrbcr import MrbcrSettings
from mrbcr_cli.train.batches import PairSet, StoredBatches
from mrbcr_cli.train.journal import read_log
from mrbcr_cli.train.stored import read_folder_pairs, read_npz_pairs, read_zarr_pairs, unlike_units
from mrbcr_cli.weights import load_weights
from tests.train.runs import train


def test_zarr_npz_and_folders_give_the_same_pairs(stored: Path) -> None:
    zarr_train, zarr_validation = read_zarr_pairs([stored / "p.zarr"], 100)
    npz_train, _ = read_npz_pairs(stored / "npz" / "train" / "train.npz", 0.0, 100)
    folder_train, folder_validation = read_folder_pairs(stored / "low", stored / "high", 0.2, 100)
    assert len(zarr_train.names) == 16 and len(zarr_validation.names) == 2
    assert len(folder_train.names) == 16 and len(folder_validation.names) == 4
    assert not set(folder_train.names) & set(folder_validation.names)
    batches = [
        StoredBatches(PairSet(p.recorded[:16], p.target[:16], p.names[:16]), seed=1, stream=0, device="cpu").batch(
            7, 4, 32
        )
        for p in (zarr_train, npz_train)
    ]
    # The NPZ holds the pairs in units of their own range.
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*(batch[:2] for batch in batches), strict=True))
    everything, _ = read_folder_pairs(stored / "low", stored / "high", 0.0, 100)
    assert np.array_equal(everything.recorded[0], zarr_train.recorded[0])


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"accumulate": 2}, {"loss": "log"}, {"loss": "charbonnier"}])
def test_every_option_of_the_course_trains(stored: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    assert train(tmp_path / "run", "--pairs", stored / "p.zarr", **{**change, "steps": 2, "every": 2}) == 0
    assert np.isfinite([row["loss"] for row in read_log(tmp_path / "run" / "train.jsonl")]).all()


def test_published_network_trains_and_starts_from_weights(stored: Path, tmp_path: Path) -> None:
    folders = ("--input-dir", stored / "low", "--target-dir", stored / "high")
    assert train(tmp_path / "a", *folders, model="published", steps=2, every=2) == 0
    first = tmp_path / "a" / "last.safetensors"
    assert load_weights(first).card.architecture == "published"
    assert train(tmp_path / "b", *folders, model="published", init=first, steps=1, every=1, lr=1e-9, ema=0) == 0
    start, end = (load_weights(p).state_dict for p in (first, tmp_path / "b" / "last.safetensors"))
    assert all(torch.allclose(start[k], end[k], atol=1e-6) for k in start)


def test_early_stop(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends `patience` validations after its best, whose weights are kept."""
    from mrbcr_cli.train import loop

    found = iter([10.0, 12.0, 11.0, 13.0, 12.9, 12.8, 12.7])
    monkeypatch.setattr(loop, "validate", lambda course, run: next(found))
    out = tmp_path / "run"
    assert train(out, "--npz", stored / "npz" / "train" / "train.npz", steps=60, every=1, patience=3) == 0
    assert [row["step"] for row in read_log(out / "train.jsonl")] == [1, 2, 3, 4, 5, 6, 7]
    assert "step 4 of" in load_weights(out / "best.safetensors").card.notes
    assert "step 7 of" in load_weights(out / "last.safetensors").card.notes


def test_divergence_is_told(stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", "--pairs", stored / "p.zarr", lr=1e6, warmup=0, steps=30, every=1) == 3
    assert "smaller --lr" in capsys.readouterr().err


def nan_pair(folder: Path) -> list[object]:
    for name, value in (("low", np.nan), ("high", 1.0)):
        (folder / name).mkdir()
        tifffile.imwrite(folder / name / "a.tif", np.full((48, 48), value, np.float32))
    return ["--input-dir", folder / "low", "--target-dir", folder / "high", "--batch", 1]


def unlike_shapes(folder: Path) -> list[object]:
    for name, size in (("low", 48), ("high", 64)):
        (folder / name).mkdir()
        tifffile.imwrite(folder / name / "a.tif", np.zeros((48, size), np.uint16))
    return ["--input-dir", folder / "low", "--target-dir", folder / "high"]


def equal_images(folder: Path) -> list[object]:
    for name in ("low", "high"):
        (folder / name).mkdir()
        tifffile.imwrite(folder / name / "a.tif", np.arange(48 * 48, dtype=np.uint16).reshape(48, 48))
    return ["--input-dir", folder / "low", "--target-dir", folder / "high", "--batch", 1]


def empty_folder(folder: Path) -> list[object]:
    (folder / "low").mkdir()
    return ["--input-dir", folder / "low", "--target-dir", folder / "low"]


def no_partner(folder: Path) -> list[object]:
    for name in ("low", "high"):
        (folder / name).mkdir()
        tifffile.imwrite(folder / name / f"{name}.tif", np.zeros((48, 48), np.uint16))
    return ["--input-dir", folder / "low", "--target-dir", folder / "high"]


def twins(folder: Path) -> list[object]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 99, (48, 48)).astype(np.uint16)
    for name in ("low", "high"):
        (folder / name).mkdir()
        for k in range(2):
            tifffile.imwrite(folder / name / f"{k}.tif", image)
    return ["--input-dir", folder / "low", "--target-dir", folder / "high"]


BAD: list[tuple[Any, str]] = [
    (nan_pair, "NaN"),
    (unlike_shapes, "must be equal"),
    (equal_images, "same images"),
    (empty_folder, "no TIFF"),
    (no_partner, "names must be equal"),
    (twins, "same image"),
]


@pytest.mark.parametrize(("make", "said"), BAD)
def test_bad_images_are_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, said: str
) -> None:
    assert train(tmp_path / "run", *make(tmp_path)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and said in error[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch": 17}, "larger than the 16 training pairs"),
        ({"patch": 64}, "do not fit"),
        ({"patch": 40}, "multiple of 16"),
        ({"init": "widefield", "model": "published"}, "holds a 'mrbcr' network"),
        ({"init": "nowhere"}, "no model named"),
        ({"loss": "l7"}, "loss"),
        ({"npz": "missing.npz"}, "one kind"),
        ({"device": "cuda:99"}, "CUDA"),
    ],
)
def test_bad_options_are_refused(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: dict[str, Any], said: str
) -> None:
    assert train(tmp_path / "run", "--pairs", stored / "p.zarr", **arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and said in error[0]
    assert not (tmp_path / "run").exists()


def test_init_brings_the_shape_of_its_network(stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fine-tuning needs no `network:`; one that says otherwise is refused."""
    small = {"alpha": 2, "kt_pairs": [[1]], "b_pairs": [[1]], "stages": 1, "guide_hidden": 5}
    (tmp_path / "small.yaml").write_text(f"network: {json.dumps(small)}\n")
    (tmp_path / "other.yaml").write_text("network: {alpha: 4}\n")
    pairs, brief = ("--pairs", stored / "p.zarr"), {"steps": 2, "every": 2}
    assert train(tmp_path / "first", "-c", tmp_path / "small.yaml", *pairs, **brief) == 0
    start = tmp_path / "first" / "last.safetensors"
    assert train(tmp_path / "run", *pairs, init=start, **brief) == 0
    tuned = load_weights(str(tmp_path / "run" / "last.safetensors"))
    assert MrbcrSettings.from_dict(tuned.card.settings) == MrbcrSettings.from_dict(small)
    capsys.readouterr()
    assert train(tmp_path / "other", "-c", tmp_path / "other.yaml", *pairs, init=start) == 2
    assert "alpha 2 cannot become 4" in capsys.readouterr().err


def test_a_source_in_train_and_test_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two sets that split the same images in different ways."""
    rng = np.random.default_rng(0)
    (tmp_path / "sharp").mkdir()
    for k in range(4):
        image = np.zeros((64, 64), np.uint16)
        image[rng.integers(0, 64, 40), rng.integers(0, 64, 40)] = 5000
        tifffile.imwrite(tmp_path / "sharp" / f"{k}.tif", image)
    for seed in (1, 2, 3):
        command = ["simulate", "pairs", "-o", str(tmp_path / f"{seed}.zarr"), "--source", str(tmp_path / "sharp")]
        command += ["--count", "24", "--patch", "32", "--planes", "3", "--seed", str(seed), "--quiet", "--workers", "1"]
        assert run([*command, "--splits", "0.5", "0.25", "0.25"]) == 0
    capsys.readouterr()
    sets = [text for seed in (1, 2, 3) for text in ("--pairs", tmp_path / f"{seed}.zarr")]
    assert train(tmp_path / "run", *sets) == 2
    assert "source of both" in capsys.readouterr().err


def test_dry_run_and_print_config(simulation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", "-c", simulation, "--dry-run") == 0
    assert not (tmp_path / "run").exists()
    capsys.readouterr()
    assert train(tmp_path / "run", "-c", simulation, "--print-config") == 0
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out)
    assert run(["train", "-c", str(tmp_path / "again.yaml"), "-o", str(tmp_path / "run"), "--dry-run"]) == 0


def test_targets_in_other_units_are_said() -> None:
    """Truths of another camera, or in photons where counts were recorded: no affine map of the input reaches them."""
    rng = np.random.default_rng(0)
    recorded = tuple(rng.poisson(100, (32, 32)).astype(np.uint16) for _ in range(3))
    names = ("a", "b", "c")
    assert unlike_units(PairSet(recorded, tuple(2 * image for image in recorded), names)) is None
    for wrong in (lambda image: image * 1000.0, lambda image: image / 65535, lambda image: image + 5000.0):
        said = unlike_units(PairSet(recorded, tuple(map(wrong, recorded)), names))
        assert said is not None and "same units" in said
