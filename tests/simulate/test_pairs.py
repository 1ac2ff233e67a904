"""Training pairs: recorded and target share counts and place, splits are by source, records make a pair again.

The bytes are the same whatever the workers, and a pair depends on its number alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from scipy import ndimage

from mrbcr_cli.cli import run
from mrbcr_cli.images.pairs_store import read_info, read_pairs
from mrbcr_cli.simulate.image_scene import image_scene
from mrbcr_cli.simulate.pair import PairsJob, make_pair
from mrbcr_cli.simulate.pairs import plan_pairs
from mrbcr_cli.simulate.pairs_settings import PairsSettings
from mrbcr_cli.simulate.sources import apportion, find_sources, split_sources
from tests.simulate.pair_runs import SMALL, pairs, sharp_images, tree


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
