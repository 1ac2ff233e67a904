"""The comparison of networks in examples/evaluation on tiny settings, from costs and plans to pictures of real images.

Invariant: the plans share everything but the network and the length, and a picture shows what deconvolve writes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

from mrbcr_cli.weights import build_network, load_weights
from tests.benchmarks.peers import MULTIPLY_ADDS
from tests.evaluation_scripts import compare, generator, hal, real_images, unet

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
    widefield = build_network(load_weights("widefield"))
    assert unet.multiply_adds_a_pixel(widefield) == pytest.approx(MULTIPLY_ADDS, rel=1e-3)
    assert unet.parameter_count(widefield) <= 240_000
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
