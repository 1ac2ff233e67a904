"""Runs that simulate pairs: one that is killed and resumed equals the undisturbed one, and files of others are safe.

Bad input is refused in one line before anything is written.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from mrbcr_cli.images.pairs_store import SHARD, read_info, read_pairs
from mrbcr_cli.stream.ledger import Ledger
from tests.simulate.pair_runs import SMALL, pairs, sharp_images, tree


def test_yaml_and_its_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--count", 20, "--na", "0.7:1.1", "--photons", "100:200", "--patch", 32, "--planes", 3)
    assert pairs(*options, "--print-config") == 0
    (tmp_path / "pairs.yaml").write_text(capsys.readouterr().out)
    assert pairs("-o", tmp_path / "a.zarr", "-c", tmp_path / "pairs.yaml", "-q") == 0
    assert pairs("-o", tmp_path / "b.zarr", *options, "-q") == 0
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr")
    for record in read_pairs(tmp_path / "a.zarr", 0, 20)[2]:
        assert 0.7 <= record["conditions"]["optics"]["objective"]["na"] <= 1.1
        assert 100 <= record["conditions"]["photons"] <= 200


def test_finished_is_recognised_and_others_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "p.zarr"
    assert pairs("-o", output, "--count", 10, "--patch", 32, "--planes", 3) == 0
    before = tree(output)
    assert pairs("-o", output, "--count", 10, "--patch", 32, "--planes", 3) == 0
    assert "already done" in capsys.readouterr().err
    assert pairs("-o", output, "--count", 11, *SMALL) == 4
    assert tree(output) == before
    assert pairs("-o", output, "--count", 11, "--overwrite", *SMALL) == 0
    assert read_info(output).count == 11
    zarr.create_group(tmp_path / "foreign.zarr")
    assert pairs("-o", tmp_path / "foreign.zarr", "--count", 10, *SMALL) == 2


def test_killed_and_resumed_equals_undisturbed(tmp_path: Path) -> None:
    """SIGTERM after the first shard ends with 75 and no output; the same command completes it without redoing that."""
    count = 4 * SHARD
    arguments = ["simulate", "pairs", "--count", str(count), "--patch", "32", "--planes", "3", "--workers", "1"]
    output = tmp_path / "p.zarr"
    command = [sys.executable, "-m", "mrbcr_cli", *arguments, "-o", str(output)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    ledger = tmp_path / "p.zarr.partial" / "ledger.jsonl"
    while process.poll() is None:
        if ledger.exists() and len(ledger.read_text().splitlines()) >= 2:
            process.send_signal(signal.SIGTERM)
            break
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 75, said
    assert not output.exists() and "resume" in said
    done = ledger.read_text().splitlines()[1:]
    assert 1 <= len(done) < 4
    resumed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0 and f"{len(done)} of 4 shards are done" in resumed.stderr
    assert pairs("-o", tmp_path / "q.zarr", *arguments[2:], "-q") == 0
    assert tree(output) == tree(tmp_path / "q.zarr")


def test_interrupted_with_two_workers_is_not_finished(tmp_path: Path) -> None:
    """SIGTERM while the last shards wait in the queue: 75 and no output, or all of it; never a set with holes."""
    output = tmp_path / "p.zarr"
    arguments = ("--count", 4 * SHARD - 10, *SMALL)
    command = [sys.executable, "-m", "mrbcr_cli", "simulate", "pairs", "-o", str(output), "--workers", "2"]
    command += list(map(str, arguments))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    ledger = tmp_path / "p.zarr.partial" / "ledger.jsonl"
    while process.poll() is None and not (ledger.exists() and ledger.stat().st_size):
        pass
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 75 and not output.exists(), said
    assert pairs("-o", output, *arguments) == 0
    assert pairs("-o", tmp_path / "q.zarr", *arguments) == 0
    assert tree(output) == tree(tmp_path / "q.zarr")


def test_working_folders_of_others_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not ours in the way, or another run at work with other settings: refused, nothing removed."""
    partial = tmp_path / "p.zarr.partial"
    partial.mkdir()
    (partial / "thesis.txt").write_text("mine")
    assert pairs("-o", tmp_path / "p.zarr", "--count", 3, *SMALL) == 2
    assert "thesis.txt" in capsys.readouterr().err and (partial / "thesis.txt").read_text() == "mine"
    (partial / "thesis.txt").unlink()
    with Ledger(partial / "ledger.jsonl", {"fingerprint": "another", "version": "0"}):
        assert pairs("-o", tmp_path / "p.zarr", "--count", 3, *SMALL) == 3
        assert "another run" in capsys.readouterr().err and (partial / "ledger.jsonl").exists()
    assert pairs("-o", tmp_path / "p.zarr", "--count", 3, *SMALL) == 0


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pairs("-o", tmp_path / "p.zarr", "--count", 10, "--dry-run", "--json") == 0
    event = json.loads(capsys.readouterr().out)
    assert event["event"] == "planned" and event["pairs"] == 10
    assert not list(tmp_path.iterdir())


def test_inputs_and_files_of_others_are_safe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No picture, NPZ or source is replaced or mixed up in silence; a repeated command changes nothing."""
    folder = sharp_images(tmp_path / "sharp", 3)
    mine, npz = tmp_path / "mine.png", tmp_path / "npz"
    mine.write_bytes(b"mine")
    assert pairs("-o", tmp_path / "p.zarr", "--count", 3, "--figure", mine, *SMALL) == 2
    assert mine.read_bytes() == b"mine" and not (tmp_path / "p.zarr").exists()
    assert pairs("-o", tmp_path / "p.zarr", "--count", 20, "--npz", npz, *SMALL) == 0
    before = tree(npz)
    assert pairs("-o", tmp_path / "p.zarr", "--count", 20, "--npz", npz, "--figure", mine, *SMALL) == 0
    assert tree(npz) == before and mine.read_bytes() == b"mine" and "left as it is" in capsys.readouterr().err
    one = ("--count", 5, "--splits", 1, 0, 0, "--npz", npz, *SMALL)
    assert pairs("-o", tmp_path / "q.zarr", *one) == 2 and tree(npz) == before
    assert pairs("-o", tmp_path / "q.zarr", "--overwrite", *one) == 0 and sorted(tree(npz)) == ["train/train.npz"]
    assert pairs("-o", folder / "p.zarr", "--source", folder, "--count", 3, *SMALL) == 2
    assert pairs("-o", tmp_path / "r.zarr", "--source", tmp_path / "p.zarr", "--count", 3, *SMALL) == 2
    assert "holds simulated pairs" in capsys.readouterr().err


def test_figure(tmp_path: Path) -> None:
    assert pairs("-o", tmp_path / "p.zarr", "--count", 6, "--figure", tmp_path / "p.png", *SMALL) == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


BAD: list[tuple[tuple[object, ...], str]] = [
    (("--source", "nosuch/*.tif"), "no sharp image"),
    (("--specimen", "unicorns"), "unknown specimen"),
    (("--specimen", "beads:horns"), "unknown style"),
    (("--na", "1.2:0.8"), "low <= high"),
    (("--na", "0:1"), "within 0.02 to 1.7"),
    (("--na", "1.4", "--ni", "1.33"), "not below the immersion index"),
    (("--na", "high"), "LOW:HIGH"),
    (("--wavelength", "0.5"), "in um"),
    (("--pixel", "65"), "in nm"),
    (("--photons", "0"), "within 1 to 1e+07"),
    (("--haze", "1.5"), "haze"),
    (("--pinhole-au", "0", "--microscope", "confocal"), "pinhole"),
    (("--planes", "4"), "odd"),
    (("--patch", "4"), "--patch"),
    (("--count", "0"), "--count"),
    (("--splits", "0", "0", "0"), "splits"),
    (("--procedural", "0.5"), "--source"),
    (("--workers", "0"), "--workers"),
    (("--psf", "nosuch.tif"), "no such PSF"),
    (("--psf", "nosuch.tif", "--na", "1.2"), "means nothing with a PSF file"),
    (("--microscope", "sted"), "--microscope"),
    (("--bit-depth", "20"), "--bit-depth"),
    (("--qe", "1.5"), "quantum efficiency"),
    (("--config", "nosuch.yaml"), "nosuch.yaml"),
    (("--splits", "nan", "0", "1"), "splits"),
    (("--fwhm", "0.01"), "fwhm"),
    (("--photons", "1e300"), "photons"),
    (("--gain", "1e300"), "gain"),
    (("--thickness", "1e9"), "thickness"),
    (("--gamma", "1e6"), "gamma"),
    (("--pixel", "1e-9"), "pixel"),
    (("--microscope", "light-sheet", "--na-illumination", "2"), "sheet's NA"),
    (("--microscope", "brightfield", "--na-illumination", "-1"), "condenser"),
    (("--microscope", "two-photon", "--wavelength", "680:1000"), "excitation wavelength"),
    (("--source", ""), "--source is empty"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD)
def test_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], words: str
) -> None:
    """Exit 2, one line, nothing written."""
    assert pairs("-o", tmp_path / "p.zarr", "--count", 2, *arguments) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_bad_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sharp"
    folder.mkdir()
    rng = np.random.default_rng(0)
    cases: dict[str, tuple[Any, str]] = {
        "small.tif": (rng.random((20, 200)).astype(np.float32), "smaller than the patches"),
        "constant.tif": (np.full((64, 64), 7, np.uint8), "rises above its noise"),
        "nan.tif": (np.full((64, 64), np.nan, np.float32), "NaN"),
        "noise.tif": (rng.normal(100, 5, (64, 64)).astype(np.float32), "rises above its noise"),
    }
    for name, (image, words) in cases.items():
        tifffile.imwrite(folder / name, image)
        assert pairs("-o", tmp_path / "p.zarr", "--source", folder / name, "--splits", 1, 0, 0, *SMALL) == 2
        said = capsys.readouterr().err
        assert words in said and name in said and said.count("\n") == 1
    sharp_images(folder, 2)
    assert pairs("-o", tmp_path / "p.zarr", "--source", folder / "image*.tif", *SMALL) == 2
    assert "3 splits need as many sharp sources" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert pairs("-o", tmp_path / "p.zarr", "--source", tmp_path / "empty", *SMALL) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "sharp"]


def test_real_sources(shared: Path, tmp_path: Path) -> None:
    """Real images of every kind, stacks and channels among them, become pairs with structure in them."""
    names = (
        "BPAE_actin.tif",
        "membrane2d.tif",
        "maize_clsm.tif",
        "pollen.tif",
        "xyc_16bit__cell_dna_nup_mts_actin.tif",
    )
    sources = [part for name in names for part in ("--source", shared / "data" / "train" / name)]
    assert pairs("-o", tmp_path / "p.zarr", *sources, "--count", 40, "--patch", 64, "-q") == 0
    sharp = read_pairs(tmp_path / "p.zarr", 0, 40)[1]
    assert np.median([image.std() / image.mean() for image in sharp]) > 0.05
