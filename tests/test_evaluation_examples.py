"""The scripts of examples/evaluation on tiny settings, with methods whose results are known.

Invariant: a perfect method gets a perfect mark, a method with a known fault the mark that names it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "evaluation"))

import compare
import hallucination as hal
import photometry as pho
import real_images
import recording as rec
import two_points as two
import unet


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


# ---- recording ----


def test_light_and_target_of_a_point_hold_its_weight_at_its_place() -> None:
    optics = rec.make_optics(4.0)
    points = np.array([[30.3, 34.8, 7.0]])
    for image in (rec.light_of(points, optics, 64), rec.target_of(points, optics, 64)):
        assert image.sum() == pytest.approx(7.0, rel=1e-3)
        weight = image**2
        centre = [(weight.sum(1 - axis) * np.arange(64)).sum() / weight.sum() for axis in (0, 1)]
        assert centre == pytest.approx([30.3, 34.8], abs=0.02)


def test_the_psf_has_the_width_it_is_named_by() -> None:
    from mrbcr_cli.optics.measure import profile_fwhm

    for fwhm in (3.0, 5.0):
        psf = rec.make_optics(fwhm).psf(63)
        # The pixel widens it a little.
        assert fwhm < (profile_fwhm(psf[31], 1.0) or 0) < 1.06 * fwhm


def test_a_line_is_as_bright_as_it_is_long_and_straight() -> None:
    points = rec.line_points((10.0, 20.0), np.pi / 2, 12.0)
    assert points[:, 2].sum() == pytest.approx(12.0)
    assert points[:, 1] == pytest.approx(20.0)
    assert np.ptp(points[:, 0]) == pytest.approx(12.0, abs=0.3)


def test_the_same_seed_records_the_same_counts() -> None:
    optics, points = rec.make_optics(3.0), np.array([[20.0, 20.0, 1.0]])
    first, again, other = (
        rec.record(points, optics, 48, generator(s), photons_per_weight=500.0, background_photons=9.0).counts
        for s in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_richardson_lucy_comes_nearer_to_the_target() -> None:
    optics = rec.make_optics(4.0)
    points = np.array([[24.0, 20.0, 1.0], [24.0, 26.0, 1.0]])
    one = rec.record(points, optics, 48, generator(), photons_per_weight=4e4, background_photons=100.0)
    (found,) = rec.richardson_lucy(one, rec.rl_settings((50,), (True,))).values()
    before, after = (float(((image - one.target) ** 2).mean()) for image in (rec.identity(one), found))
    assert after < 0.3 * before


# ---- two points ----


def dips_of(method: rec.Restore, distances: tuple[float, ...], photons: float = 1e7) -> list[two.Found]:
    cases = two.make_cases([4.0], [photons], distances, 1)
    return two.summarise(two.run(cases, {"method": method}, [], 0))


def test_the_truth_resolves_to_its_own_limit_and_splits_nothing() -> None:
    for found in dips_of(rec.truth, (0.5, 0.55, 0.75, 1.0)):
        # A Gaussian of half the FWHM dips by 26.5 % at 0.6 FWHM.
        assert found.shares[0.5] == 0
        assert found.distance() == 0.75
        assert found.false_dips == found.false_sparrow == 0


def test_the_input_without_noise_resolves_at_the_rayleigh_distance() -> None:
    # 0.61 lambda / NA is 1.2 times the FWHM of 0.51 lambda / NA.
    for found in dips_of(lambda one: one.mean, (1.05, 1.15, 1.25, 1.35)):
        assert found.shares[1.05] == 0
        assert found.distance() == 1.25


def test_maxima_in_the_wrong_place_do_not_count() -> None:
    moved = dips_of(lambda one: np.roll(one.target, (3, 3), (0, 1)), (1.0, 1.4))
    assert max(max(found.shares.values()) for found in moved) < 0.5


def test_a_method_that_splits_everything_is_found_out() -> None:
    def split(one: rec.Recording) -> rec.Image:
        return sum(np.roll(one.target, shift, axis) / 4 for axis in (0, 1) for shift in (-2, 2))

    points, lines = dips_of(split, (1.0,))
    # Lines at 45 degrees are moved onto themselves.
    assert points.false_dips > 0.9
    assert 0.2 < lines.false_dips < 0.9
    assert two.markdown([points], {}, "title").count("*") > two.markdown(dips_of(rec.truth, (1.0,)), {}, "t").count("*")


def test_a_flat_result_resolves_nothing() -> None:
    for found in dips_of(lambda one: np.full_like(one.target, one.background + 5), (1.5,)):
        assert found.distance() is None
        assert found.false_dips == 0


def test_resolution_distance_has_no_gaps() -> None:
    assert two.resolution_distance((0.5, 0.6, 0.7, 0.8), (0.8, 0.2, 0.75, 1.0)) == 0.7
    assert two.resolution_distance((0.5, 0.6), (1.0, 0.7)) is None
    assert two.resolution_distance((0.5, 0.6), (0.9, 0.9)) == 0.5


def test_the_setting_of_richardson_lucy_that_is_chosen_does_not_split() -> None:
    shares = {0.5: 1.0, 1.0: 1.0}
    splitting = two.Found("a", "points", None, 100.0, shares, shares, 0.9, 0.9)
    careful = two.Found("b", "points", None, 100.0, {0.5: 0.0, 1.0: 1.0}, shares, 0.0, 0.0)
    assert two.choose([splitting, careful], ["a", "b"]) == "b"


def test_two_points_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "-o",
        str(tmp_path / "two"),
        "--fwhm",
        "3",
        "--photons",
        "1000",
        "--step",
        "1.0",
        "--rl-iterations",
        "10",
    ]
    two.main(arguments)
    written = json.loads((tmp_path / "two.json").read_text())
    assert {row["method"] for row in written["results"]} >= {"input", "network widefield", "RL", "RL + target blur"}
    assert (tmp_path / "two.md").read_text().strip() == capsys.readouterr().out.strip()
    assert (tmp_path / "two.png").stat().st_size > 5000
    first = (tmp_path / "two.json").read_bytes()
    two.main(arguments)
    assert (tmp_path / "two.json").read_bytes() == first


# ---- hallucination ----


def lattice_of(method: rec.Restore, scene: str = "empty 100") -> dict[int, hal.Lattice]:
    (found,) = hal.run([scene], {"method": method}, [], size_px=128, realisations=8)
    assert found.lattice is not None
    return found.lattice


@pytest.mark.parametrize("scene", ["empty 0", "empty 100", "beside 100"])
def test_plain_noise_has_no_lattice(scene: str) -> None:
    for lattice in lattice_of(rec.identity, scene).values():
        assert 0.4 < lattice.fixed < 2.0
        assert 0.7 < lattice.modulated < 1.4


def test_a_checkerboard_is_found() -> None:
    y, x = np.indices((128, 128))
    for step, period in ((1, 2), (2, 4)):
        # Half the noise's standard deviation.
        board = 10.0 * ((-1.0) ** (y // step + x // step))
        found = lattice_of(lambda one, board=board: rec.identity(one) + board.astype(np.float32))
        assert found[period].worst > 50
        assert found[6 - period].worst < 6


def test_a_lattice_that_comes_and_goes_is_found_by_its_broad_peak() -> None:
    from scipy import ndimage

    y, x = np.indices((128, 128))
    rng = generator(5)

    def waving(one: rec.Recording) -> rec.Image:
        smooth = ndimage.gaussian_filter(rng.standard_normal(y.shape), 8.0, mode="wrap")
        return (one.target + 5 * smooth / smooth.std() * (-1.0) ** (y + x)).astype(np.float32)

    found = lattice_of(waving)[2]
    assert found.modulated > 10
    assert found.percent_of_range == pytest.approx(100 * 5 / 125, rel=0.4)


@pytest.mark.parametrize("scene", ["empty 30", "beads 100", "lone 1000"])
def test_the_truth_has_no_false_objects_and_planted_ones_are_counted(scene: str) -> None:
    y, x = np.indices((128, 128))

    def planted(one: rec.Recording) -> rec.Image:
        blobs = sum(np.exp(-((y - a) ** 2 + (x - b) ** 2) / 4.0) for a, b in ((10, 90), (64, 4), (120, 118)))
        noise = generator(1).normal(0, 0.01, y.shape)
        return (one.target + 0.3 * hal.input_span(one) * blobs + noise).astype(np.float32)

    good, bad = hal.run([scene], {"truth": rec.truth, "planted": planted}, [], size_px=128, realisations=2)
    assert good.false_per_10k_px == 0
    assert good.tallest == 0
    area = hal.deviations(*_truth_of(scene)).area_px
    assert bad.false_per_10k_px == pytest.approx(3 / area * 1e4, rel=0.01)
    assert bad.images_with_false == 1
    assert bad.tallest == pytest.approx(0.3, rel=0.05)


def _truth_of(label: str) -> tuple[rec.Image, hal.Scene]:
    scene = hal.make_scene(label, 128, 4.0, 0, 0)
    return scene.recorded.target, scene


def test_lattice_frequencies_are_each_there_once() -> None:
    assert sorted(hal._frequencies(2)) == [(0.0, 0.5), (0.5, 0.0), (0.5, 0.5)]
    quarter = hal._frequencies(4)
    # 16 places of the lattice of 4 px, less the 4 of the lattice of 2 px, in pairs of opposite ones.
    assert len(quarter) == len(set(quarter)) == 6
    seen = {((v * s) % 1, (u * s) % 1) for v, u in quarter for s in (1, -1)}
    assert len(seen) == 12


def test_hallucination_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hal.main(
        ["-o", str(tmp_path / "h"), "--realisations", "1", "--rl-iterations", "5", "--scenes", "empty 10", "lone 100"]
    )
    written = json.loads((tmp_path / "h.json").read_text())
    assert {row["scene"] for row in written["results"]} == {"empty 10", "lone 100"}
    assert len(written["results"]) == 2 * 4
    assert "Lattice" in capsys.readouterr().out
    assert (tmp_path / "h.png").stat().st_size > 5000


# ---- photometry ----


def fits_of(method: rec.Restore, photons: float = 1000.0) -> list[pho.Fit]:
    fits, _ = pho.run([3.0], [photons], {"method": method}, [], images=1)
    assert [f.kind for f in fits] == ["mixed", "single"]
    return fits


def test_the_truth_is_its_own_measure() -> None:
    for found in fits_of(rec.truth):
        assert found.slope == pytest.approx(1, abs=1e-12)
        assert found.r2 == pytest.approx(1, abs=1e-12)
        assert found.log_slope == pytest.approx(1, abs=1e-9)
        assert found.beads_lost == 0
        assert found.good


def test_beads_too_bright_too_dim_or_bent_are_found_out() -> None:
    for found in fits_of(lambda one: 2 * one.target - 500):
        assert found.slope == pytest.approx(2, abs=1e-5)
        assert not found.good
    for found in fits_of(lambda one: one.background + (one.target - one.background).clip(0, 200)):
        assert found.slope < 0.9
        assert found.log_slope < 0.95
        assert found.bias[2] < found.bias[0]


def test_the_input_loses_the_light_outside_its_aperture() -> None:
    for found in fits_of(lambda one: one.mean):
        assert 0.8 < found.slope < 0.93
        assert found.log_slope == pytest.approx(1, abs=0.02)


def test_an_aperture_holds_a_bead_and_no_background() -> None:
    image = np.full((64, 64), 100.0)
    image[30:33, 30:33] += 5
    assert pho.intensities(image, np.array([[31.0, 31.0]]), 4.0)[0] == pytest.approx(45)


def test_photometry_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pho.main(
        ["-o", str(tmp_path / "p"), "--fwhm", "3", "--photons", "500", "--images", "1", "--rl-iterations", "5"]
    )  # fmt: skip
    written = json.loads((tmp_path / "p.json").read_text())
    assert len(written["results"]) == 2 * 4
    assert "| met |" in capsys.readouterr().out
    assert (tmp_path / "p.png").stat().st_size > 5000


# ---- networks ----


def test_multiply_adds_of_convolutions_by_hand() -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 4, 3, padding=1)
            self.down = nn.Conv2d(4, 6, 2, stride=2)
            self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=3)
            self.up = nn.ConvTranspose2d(6, 1, 2, stride=2)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.up(self.grouped(self.down(self.first(image))))

    by_hand = 9 * 4 + (4 * 4 * 6 + 9 * 2 * 6 + 6 * 4) / 4
    assert unet.multiply_adds_a_pixel(Three(), 64) == pytest.approx(by_hand)
    assert unet.multiply_adds_a_pixel(nn.Conv2d(1, 1, 1), 32) == 1


def test_costs_of_the_networks_are_those_that_are_known() -> None:
    costs = {c.name: c for c in unet.costs()}
    assert costs["mrbcr"].multiply_adds_a_pixel == pytest.approx(22_700, rel=0.01)
    assert costs["published"].multiply_adds_a_pixel == pytest.approx(142_000, rel=0.01)
    assert costs["mrbcr"].parameters == 197_468
    assert costs["published"].parameters == 236_630
    taps = 9 * (
        32 + 32 * 32 + (32 * 64 + 64 * 64) / 4 + 2 * 64 * 128 / 16 + (128 * 64 + 64 * 32) / 4 + 64 * 32 + 32 * 32
    )
    assert costs["unet 3x3"].multiply_adds_a_pixel == pytest.approx(taps + 32)


@pytest.mark.parametrize("size", [(16, 16), (33, 50)])
def test_unet_keeps_sizes_and_has_one_scale(size: tuple[int, int]) -> None:
    network = unet.UNet()
    image = torch.rand(2, 1, *size)
    (found,) = network(image)
    assert found.shape == image.shape
    (target,) = network.pyramid(image)
    assert target is image
    assert unet.parameter_count(network) == 332_641
    assert unet.UNet(**network.settings_dict).state_dict().keys() == network.state_dict().keys()


@torch.no_grad()
def test_unet_adds_to_its_input_and_looks_no_farther_than_it_says() -> None:
    network = unet.UNet(first=4).eval()
    image = torch.rand(1, 1, 128, 128)
    nn.init.zeros_(network.last.weight)
    assert torch.equal(network(image)[0], image)
    nn.init.ones_(network.last.weight)
    other = image.clone()
    other[..., 65, 66] += 10
    moved = (network(other)[0] - network(image)[0])[0, 0].abs() > 1e-6
    y, x = torch.nonzero(moved, as_tuple=True)
    reach = max(int((y - 65).abs().max()), int((x - 66).abs().max()))
    assert 5 < reach <= network.receptive_radius_px <= network.default_halo_px


# ---- comparison ----


def test_plans_share_everything_but_the_network_and_the_length() -> None:
    plans = compare.make_plans(5.0, 100, compare.ARCHITECTURES)
    assert [p.folder for p in plans] == [
        "mrbcr-5-min", "published-5-min", "unet-5-min", "mrbcr-100-steps", "published-100-steps",
    ]  # fmt: skip
    recipe = {"pairs": ("p.zarr",), "init": "widefield", "minutes": 3.0, "network": {"alpha": 4}, "lr": 1e-4, "seed": 3}
    made = [compare.settings_of(p, recipe) for p in plans]
    assert {(s.lr, s.seed, s.init, s.pairs) for s in made} == {(1e-4, 3, None, (Path("p.zarr"),))}
    assert [s.minutes for s in made] == [5.0] * 3 + [None] * 2
    assert [s.steps for s in made[3:]] == [100, 100]
    assert made[0].network == {"alpha": 4} and made[1].network == {}


def test_the_comparison_runs_end_to_end_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mrbcr_cli.cli import run

    pairs = tmp_path / "pairs.zarr"
    options = ["--count", "8", "--patch", "32", "--workers", "1", "--quiet"]
    assert run(["simulate", "pairs", "-o", str(pairs), *options]) == 0
    arguments = ["-o", str(tmp_path / "c"), "--pairs", str(pairs), "--test-pairs", str(pairs), "--split", "train"]
    arguments += ["--minutes", "0.001", "--steps", "2", "--batch", "2", "--patch", "32", "--workers", "1"]
    arguments += ["--threads", "1", "--limit", "3", "--device", "cpu"]
    compare.main(arguments)
    written = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert [run["name"] for run in written["runs"]] == [
        p.name for p in compare.make_plans(1e-3, 2, compare.ARCHITECTURES)
    ]
    assert [run["run_steps"] for run in written["runs"]][3:] == [2, 2]
    assert {(d["first"], d["second"]) for d in written["differences"]} == {
        ("mrbcr 0.001 min", "published 0.001 min"), ("mrbcr 0.001 min", "unet 0.001 min"),
        ("mrbcr 2 steps", "published 2 steps"),
    }  # fmt: skip
    assert (tmp_path / "c" / "compare.png").stat().st_size > 5000
    first = capsys.readouterr()
    compare.main(arguments)
    again = capsys.readouterr()
    assert "was finished before" in again.err
    assert again.out.splitlines()[-20:] == first.out.splitlines()[-20:]
    assert json.loads((tmp_path / "c" / "compare.json").read_text()) == written


def test_bad_input_ends_the_comparison_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        compare.main(["-o", str(tmp_path), "--test-pairs", str(tmp_path / "none.zarr"), "--steps", "1"])
    assert ended.value.code == 2
    assert "no such file" in capsys.readouterr().err


# ---- real images ----


def test_real_images_show_what_deconvolve_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    one = hal.make_scene("beads 1000", 192, 4.0, 0, 0).recorded
    tifffile.imwrite(
        inputs / "beads.tif", np.stack([one.counts] * 3), metadata={"axes": "ZYX"}, photometric="minisblack"
    )
    (inputs / "broken.tif").write_bytes(b"no image")
    real_images.main([str(inputs), "-o", str(tmp_path / "out"), "--tile-size", "64"])
    written = json.loads((tmp_path / "out" / "real.json").read_text())
    (seen,) = written["images"]
    assert seen["shape_yx"] == [192, 192]
    assert 0.5 < seen["seams_out"] < 2
    assert "broken.tif" in written["failed"]
    from matplotlib.image import imread

    # Two crops of 192, two enlarged pieces of 96 px side by side; three rows.
    assert imread(tmp_path / "out" / "beads.tif.png").shape[:2] == (192 + 2 * 384 + 3 * 8, 2 * (384 + 8))
    assert capsys.readouterr().out.startswith("| image |")


def test_tile_borders_are_seen() -> None:
    noise = generator(3).normal(0, 1, (256, 256)).astype(np.float32)
    tiles = np.kron(generator(4).normal(0, 10, (4, 4)), np.ones((64, 64))).astype(np.float32)
    assert real_images.seams(noise, 64) == pytest.approx(1, abs=0.15)
    assert real_images.seams(noise + tiles, 64) > 3
    assert np.isnan(real_images.seams(noise, 512))


def test_the_windows_shown_are_the_busiest_and_the_darkest() -> None:
    plane = np.full((200, 300), 50.0, np.float32)
    plane[150:180:15, 200:240:15] = 5000
    plane[:100, :100] = 10
    y, x = real_images.windows(plane, 96, bright=True)
    assert y.start <= 150 and y.stop >= 180 and x.start <= 200 and x.stop >= 240
    dark = plane[real_images.windows(plane, 96, bright=False)]
    assert dark.shape == (96, 96)
    assert dark.mean() < 12
