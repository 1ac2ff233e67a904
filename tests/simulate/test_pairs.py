"""Training pairs: the same bytes whatever the workers, splits by source, records that make a pair again."""

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
import torch
import zarr
from scipy import ndimage

from mrbcr_cli.cli import run
from mrbcr_cli.images.pairs_store import SHARD, read_info, read_pairs
from mrbcr_cli.simulate.image_scene import image_scene
from mrbcr_cli.simulate.pair import PairsJob, make_pair
from mrbcr_cli.simulate.pairs import plan_pairs
from mrbcr_cli.simulate.pairs_settings import PairsSettings
from mrbcr_cli.simulate.sources import apportion, find_sources, split_sources
from mrbcr_cli.stream.ledger import Ledger

SMALL = ("--patch", "32", "--planes", "3", "--quiet")


def pairs(*arguments: object) -> int:
    return run(["simulate", "pairs", *map(str, arguments)])


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def sharp_images(folder: Path, count: int, size: int = 96) -> Path:
    """TIFFs of random blobs, each different."""
    folder.mkdir(exist_ok=True)
    for k in range(count):
        rng = np.random.default_rng(k)
        image = ndimage.gaussian_filter((rng.random((size, size)) < 0.02) * 1.0, 1.5)
        tifffile.imwrite(folder / f"image{k}.tif", (100 + 4000 * image / image.max()).astype(np.uint16))
    return folder


def only(settings: PairsSettings, count: int = 64) -> PairsJob:
    """A job of procedural pairs, all in train."""
    return PairsJob(settings, (), (), (count, 0, 0))


def test_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        assert pairs("-o", tmp_path / f"{name}.zarr", "--count", 150, "--workers", workers, *SMALL) == 0
    assert tree(tmp_path / "one.zarr") == tree(tmp_path / "two.zarr")
    assert pairs("-o", tmp_path / "other.zarr", "--count", 150, "--seed", 1, *SMALL) == 0
    assert tree(tmp_path / "one.zarr") != tree(tmp_path / "other.zarr")


def test_a_pair_depends_on_its_number_alone(tmp_path: Path) -> None:
    """Remade from the settings that the store records, by itself, in any order."""
    assert pairs("-o", tmp_path / "p.zarr", "--count", 70, *SMALL) == 0
    stored = read_info(tmp_path / "p.zarr").attributes["settings"]
    job = plan_pairs(PairsSettings(**stored))
    blurred, sharp, records = read_pairs(tmp_path / "p.zarr", 0, 70)
    for index in (69, 3, 41):
        pair = make_pair(job, index)
        assert np.array_equal(pair.blurred, blurred[index]) and np.array_equal(pair.sharp, sharp[index])
        assert json.loads(json.dumps(pair.record)) == records[index]
        assert records[index]["index"] == index


def test_layout_opens_anywhere(tmp_path: Path) -> None:
    """Plain zarr finds all members without a warning; the metadata are valid OME-Zarr 0.5."""
    import yaozarrs

    assert pairs("-o", tmp_path / "p.zarr", "--count", 20, *SMALL) == 0
    group = zarr.open_group(tmp_path / "p.zarr", mode="r")
    members = dict(group.members())
    assert sorted(members) == ["blurred", "records", "sharp"]
    assert members["blurred"].shape == members["sharp"].shape == (20, 32, 32)  # type: ignore[union-attr]
    assert members["blurred"].dtype == np.uint16 and members["sharp"].dtype == np.float32  # type: ignore[union-attr]
    yaozarrs.validate_ome_json(json.dumps(dict(group.attrs)))
    assert not list(tmp_path.glob("*.partial"))


def test_recorded_and_target_share_their_counts() -> None:
    """Without blur of note, noise or haze both are the same image; in general their light agrees."""
    quiet = {"photons": 5000, "read_noise": 0, "background": 0.1, "scmos": 0, "qe": 1, "gain": 1, "thickness": 0.3}
    settings = PairsSettings(patch=64, planes=1, haze=0, fwhm=2.0, target_least=2.0, target_resolution=1.0, **quiet)
    seen = 0
    for index in range(12):
        pair = make_pair(only(settings), index)
        if pair.sharp.max() < 2 * pair.sharp.min():
            continue
        seen += 1
        blurred = pair.blurred.astype(np.float64)
        assert np.corrcoef(blurred.ravel(), pair.sharp.ravel())[0, 1] > 0.98
        assert (blurred - 100).mean() == pytest.approx((pair.sharp - 100).mean(), rel=0.03)
    assert seen >= 4


def test_haze_has_the_share_that_was_asked_for() -> None:
    settings = PairsSettings(patch=48, haze=0.4, specimen=("cytoplasm",), thickness=8.0)
    records = [make_pair(only(settings), k).record for k in range(6)]
    for record in records:
        if record["haze_share"] > 0:
            assert record["haze_share"] == pytest.approx(0.4, abs=1e-3)
    assert sum(r["haze_share"] > 0 for r in records) >= 4


def test_photons_and_background_reach_the_camera() -> None:
    settings = PairsSettings(
        patch=64, photons=1000, background=0.2, read_noise=0, scmos=0, qe=0.5, gain=2, offset=50, haze=0,
        specimen=("cytoplasm",),
    )  # fmt: skip
    pair = make_pair(only(settings), 0)
    top = np.sort(pair.blurred.ravel())[-8:].mean()
    assert top == pytest.approx(50 + 2 * 0.5 * 1200, rel=0.15)
    assert pair.sharp.min() >= 50 + 2 * 0.5 * 200 - 1e-3


def test_target_resolution_is_what_the_record_says() -> None:
    """A lone point of the specimen has the target's FWHM in the target."""
    from mrbcr_cli.optics.measure import profile_fwhm
    from mrbcr_cli.simulate import pair as module

    settings = PairsSettings(patch=64, fwhm=5.0, haze=0, planes=1)
    rng = np.random.default_rng(0)
    conditions = module.draw_conditions(rng, settings)
    scene = np.zeros((len(conditions.z_um), 112, 112), np.float32)
    scene[len(scene) // 2, 56, 56] = 1.0
    imaged = image_scene(torch.from_numpy(scene), conditions, None, "cpu")
    light, target = imaged.signal.numpy(), imaged.sharp.numpy()
    line = target[56].astype(np.float64) - target[56].min()
    assert profile_fwhm(line, 1.0) == pytest.approx(conditions.target_fwhm_px, rel=0.01)
    recorded = light[56].astype(np.float64) - light[56].min()
    assert profile_fwhm(recorded, 1.0) == pytest.approx(conditions.fwhm_px, rel=0.03)


@pytest.mark.parametrize(
    "change",
    [
        {"aberration": (0.1, 0.1)},
        {"zernike": {7: 0.15, 8: -0.1, 17: 0.05}},
        {"depth": (6.0, 6.0), "ns": 1.37},
        {"defocus": (0.4, 0.4)},
        {"microscope": "confocal", "aberration": 0.05},
        {"microscope": "two-photon"},
        {"microscope": "light-sheet", "depth": 30.0, "ns": 1.38},
    ],
)
def test_recorded_and_target_are_in_register(change: dict[str, Any]) -> None:
    """The image of a point in the plane of focus is where the target is (centroid of the core), to a tenth of a px."""
    from mrbcr_cli.simulate import pair as module

    settings = PairsSettings(
        **{"patch": 96, "fwhm": 4.0, "haze": None, "na": 1.1, "ni": 1.33, "thickness": 3.0} | change
    )
    for seed in range(3):
        conditions = module.draw_conditions(np.random.default_rng(seed), settings)
        scene = np.zeros((len(conditions.z_um), 150, 150), np.float32)
        scene[len(scene) // 2, 75, 75] = 1.0
        light = image_scene(torch.from_numpy(scene), conditions, None, "cpu").signal.double().numpy()
        y, x = ndimage.center_of_mass((light - light.min()) ** 2)
        assert abs(y - 75) < 0.1 and abs(x - 75) < 0.1


def test_light_sheet_and_stage_follow_the_layers() -> None:
    """The sheet is where the detection is sharpest; a plane z deeper is z * ni / ns of stage away."""
    settings = PairsSettings(microscope="light-sheet", na=1.0, ni=1.33, ns=1.38, depth=60.0, thickness=5.0)
    conditions = make_conditions(settings)
    middle = len(conditions.z_um) // 2
    assert conditions.optics.sheet_um == pytest.approx(conditions.stage_um[middle], abs=0.3)  # type: ignore[union-attr]
    z, stage = np.array(conditions.z_um), np.array(conditions.stage_um)
    assert np.allclose(stage[middle] - stage, z * 1.33 / 1.38)


def make_conditions(settings: PairsSettings) -> Any:
    from mrbcr_cli.simulate.conditions import draw_conditions

    return draw_conditions(np.random.default_rng(0), settings)


def test_exposures_do_not_saturate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Photons are drawn within what the camera holds; what the user insists on is warned of and recorded."""
    few = ("--bit-depth", 8, "--count", 30, "--patch", 32, "--planes", 3)
    assert pairs("-o", tmp_path / "p.zarr", *few) == 0
    assert "saturated" not in capsys.readouterr().err
    assert np.mean(read_pairs(tmp_path / "p.zarr", 0, 30)[0] == 255) < 2e-3
    assert pairs("-o", tmp_path / "q.zarr", "--photons", 5000, *few) == 0
    assert "% of the recorded pixels are saturated" in capsys.readouterr().err
    assert max(r["saturated_share"] for r in read_pairs(tmp_path / "q.zarr", 0, 30)[2]) > 0.1


def test_splits_are_by_source(tmp_path: Path) -> None:
    folder = sharp_images(tmp_path / "sharp", 7)
    assert pairs("-o", tmp_path / "p.zarr", "--source", folder, "--count", 200, *SMALL) == 0
    info = read_info(tmp_path / "p.zarr")
    assert {k: v[1] - v[0] for k, v in info.splits.items()} == {"train": 160, "validation": 20, "test": 20}
    used: dict[str, set[str]] = {}
    for name, (first, stop) in info.splits.items():
        records = read_pairs(tmp_path / "p.zarr", first, stop)[2]
        assert {r["split"] for r in records} == {name}
        used[name] = {piece["source"] for r in records for piece in r["origin"]["pieces"]}
    assert all(used.values())
    assert not (used["train"] & used["test"] or used["train"] & used["validation"] or used["test"] & used["validation"])
    declared = {s["name"]: s["split"] for s in info.attributes["sources"]}
    assert all(declared[source] == split for split, names in used.items() for source in names)


def test_copies_of_an_image_are_one_source(tmp_path: Path) -> None:
    folder = sharp_images(tmp_path / "sharp", 4)
    (folder / "copy.tif").write_bytes((folder / "image0.tif").read_bytes())
    names = [s.name for s in find_sources([str(folder)], 32)]
    assert len(names) == 4 and not {"copy.tif", "image0.tif"} <= set(names)


def test_split_does_not_depend_on_order_or_count() -> None:
    names = [f"image{k}" for k in range(9)]
    first = dict(zip(names, split_sources(names, (0.6, 0.2, 0.2), 5), strict=True))
    turned = names[::-1]
    assert dict(zip(turned, split_sources(turned, (0.6, 0.2, 0.2), 5), strict=True)) == first
    assert sorted(first.values()).count("train") == 5
    assert apportion(10, (0.8, 0.1, 0.1)) == [8, 1, 1] and sum(apportion(7, (0.34, 0.33, 0.33))) == 7


def test_mixed_sources_and_specimens(tmp_path: Path) -> None:
    folder = sharp_images(tmp_path / "sharp", 4)
    settings = ("--source", folder, "--specimen", "beads,nuclei", "--count", 60, *SMALL)
    assert pairs("-o", tmp_path / "p.zarr", *settings) == 0
    kinds = {r["origin"].get("specimen", {"kind": "source"})["kind"] for r in read_pairs(tmp_path / "p.zarr", 0, 60)[2]}
    assert kinds == {"beads", "nuclei", "source"}


@pytest.mark.parametrize("microscope", ["confocal", "two-photon", "light-sheet", "brightfield"])
def test_every_microscope(tmp_path: Path, microscope: str) -> None:
    arguments = ("--microscope", microscope, "--count", 4, "--specimen", "cytoplasm", "--photons", 2000)
    assert pairs("-o", tmp_path / "p.zarr", *arguments, *SMALL) == 0
    blurred, sharp, _ = read_pairs(tmp_path / "p.zarr", 0, 4)
    assert all(image.std() > 5 for image in blurred) and np.isfinite(sharp).all()
    together = [np.corrcoef(b.ravel(), s.ravel())[0, 1] for b, s in zip(blurred, sharp, strict=True)]
    assert np.median(together) > 0.3


def test_psf_from_a_file(tmp_path: Path) -> None:
    arguments = ("--na", "1.0", "--ni", "1.33", "--pixel", "0.1", "--z-step", "0.3", "--shape", "9", "31", "31")
    assert run(["simulate", "psf", "-o", str(tmp_path / "psf.ome.tif"), *arguments]) == 0
    assert pairs("-o", tmp_path / "p.zarr", "--psf", tmp_path / "psf.ome.tif", "--count", 5, *SMALL) == 0
    record = read_pairs(tmp_path / "p.zarr", 0, 1)[2][0]
    assert record["conditions"]["pixel_um"] == pytest.approx(0.1) and record["psf_file"]["name"] == "psf.ome.tif"
    assert record["conditions"]["fwhm_px"] == pytest.approx(3.1, abs=0.4)


def test_psf_files_that_say_little(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A plane without a scale needs --pixel; a stack without one is refused."""
    y, x = np.mgrid[-8:9, -8:9]
    spot = np.exp(-(y**2 + x**2) / 8.0).astype(np.float32)
    np.save(tmp_path / "flat.npy", spot)
    np.save(tmp_path / "deep.npy", np.stack([spot / 2, spot, spot / 2]))
    flat = ("-o", tmp_path / "p.zarr", "--psf", tmp_path / "flat.npy", "--count", 3, *SMALL)
    assert pairs(*flat) == 2 and "--pixel" in capsys.readouterr().err
    assert pairs(*flat, "--pixel", "0.1") == 0
    assert read_pairs(tmp_path / "p.zarr", 0, 1)[2][0]["conditions"]["fwhm_px"] == pytest.approx(4.71, abs=0.1)
    deep = ("-o", tmp_path / "q.zarr", "--psf", tmp_path / "deep.npy", "--count", 3, "--pixel", "0.1", *SMALL)
    assert pairs(*deep) == 2 and "z step" in capsys.readouterr().err


def test_npz_layout(tmp_path: Path) -> None:
    assert pairs("-o", tmp_path / "p.zarr", "--count", 30, "--npz", tmp_path / "npz", *SMALL) == 0
    blurred, sharp, records = read_pairs(tmp_path / "p.zarr", 0, 30)
    with np.load(tmp_path / "npz" / "train" / "train.npz") as train:
        assert sorted(train.files) == ["gt", "low"]
        assert train["low"].shape == train["gt"].shape == (24, 32, 32) and train["low"].dtype == np.float32
        low, high = records[5]["range"]
        assert np.allclose(train["low"][5], (blurred[5] - low) / (high - low), atol=1e-5)
        assert np.allclose(train["gt"][5], (sharp[5] - low) / (high - low), atol=1e-4)
    for name in ("val", "test"):
        with np.load(tmp_path / "npz" / name / f"{name}.npz") as part:
            assert part["low"].shape == (3, 32, 32)


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
