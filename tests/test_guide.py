"""Invariants of the spectrum that a network is told, and of what it does with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor, nn

from mrbcr_cli.intensity import IntensityRange
from mrbcr_cli.network.guide import GUIDE_BINS, TILE_PX, guide_of_batch, guide_of_windows, tile_powers
from mrbcr_cli.network.halo import blobs_nchw, noise_nchw
from mrbcr_cli.network.mrbcr import Mrbcr, MrbcrSettings
from mrbcr_cli.restore import Restorer
from mrbcr_cli.weights import save_weights
from tests.helpers import card, deconvolve


def speaking() -> Mrbcr:
    """A network on which the guide has a strong effect."""
    torch.manual_seed(5)
    net = Mrbcr().eval()
    assert net.tones is not None
    with torch.no_grad():
        net.tones.out.weight.normal_(0, 0.1)
        net.tones.out.bias.normal_(0, 0.3)
    return net


def save(net: Mrbcr, path: Path) -> Path:
    settings = json.loads(json.dumps(net.settings_dict))
    save_weights(path, net.state_dict(), card("speaking", settings=settings))
    return path


def test_white_noise_has_its_variance_in_every_ring() -> None:
    noise = 0.1 * torch.randn(400, TILE_PX, TILE_PX, generator=torch.Generator().manual_seed(1)) + 3
    powers = tile_powers(noise).mean(0)
    assert powers.shape == (GUIDE_BINS,)
    assert torch.allclose(powers[1:], torch.full_like(powers[1:], 0.01), rtol=0.05)
    assert 0.008 < float(powers[0]) < 0.01  # the first ring loses a little with the mean


def test_a_wider_blur_shows() -> None:
    """Each ring of a blurred image has less power, the more the farther out."""
    from scipy import ndimage

    sharp = np.random.default_rng(0).random((256, 256))
    guides = [guide_of_windows([ndimage.gaussian_filter(sharp, s)], 0, 1) for s in (0.8, 1.2)]
    fine, blurred = (np.array(g) for g in guides)
    assert (np.diff((fine - blurred)[1:16:3]) > 0).all()


@pytest.mark.parametrize("shape", [(192, 192), (128, 200), (40, 64), (20, 30)])
def test_of_a_batch_and_of_windows_is_the_same(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(2).random(shape, np.float32)
    (batch,) = guide_of_batch(torch.from_numpy(image)[None, None])
    assert guide_of_windows([image], 0, 1) == pytest.approx(batch.tolist(), abs=2e-4)


def test_neither_order_nor_units_change_it() -> None:
    rng = np.random.default_rng(3)
    windows = [rng.random((64, 128)) * k for k in (1, 2, 3)]
    guide = guide_of_windows(windows, 0.1, 2.5)
    assert guide is not None
    assert guide_of_windows(windows[::-1], 0.1, 2.5) == guide
    assert guide_of_windows([100 + 40 * w for w in windows], 104, 200) == pytest.approx(guide, abs=2e-4)


def test_what_is_not_finite_is_left_out() -> None:
    good = np.random.default_rng(4).random((64, 64))
    bad = np.where(np.eye(64) > 0, np.nan, good)
    assert guide_of_windows([bad, good], 0, 1) == guide_of_windows([good], 0, 1)
    assert guide_of_windows([bad], 0, 1) is None
    assert guide_of_windows([], 0, 1) is None


def test_a_new_network_is_the_same_whatever_it_is_told() -> None:
    torch.manual_seed(0)
    net, image = Mrbcr().eval(), blobs_nchw(96)
    with torch.no_grad():
        silent, told = net(image), net(image, (True,) * 4, guide_of_batch(image))
    assert all(torch.equal(a, b) for a, b in zip(silent, told, strict=True))


def test_each_image_of_a_batch_has_its_own_guide() -> None:
    """Gains in the kernels (one image) and gains on the features (several) are the same."""
    net = speaking()
    images = torch.cat([blobs_nchw(96), noise_nchw(96), 0.2 * blobs_nchw(96, 7)])
    guides = guide_of_batch(images)
    with torch.no_grad():
        together = net(images, (True,) * 4, guides)[0]
        alone = [net(images[k : k + 1], (True,) * 4, guides[k : k + 1])[0] for k in range(3)]
        untold = net(images)[0]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    assert float((together - untold).abs().max()) > 1e-2


def test_a_flat_image_stays_flat_whatever_the_tones() -> None:
    net = speaking()
    with torch.no_grad():
        found = net(torch.full((1, 1, 384, 384), 0.7))[0][..., 128:256, 128:256]
    assert float(found.max() - found.min()) < 1e-5


def test_only_guided_networks_have_tones() -> None:
    assert Mrbcr(MrbcrSettings(guided=False)).tones is None


def _tiled(net: nn.Module, image: np.ndarray, tile: int, guide: tuple[float, ...] | None) -> np.ndarray:
    restorer = Restorer(net, 96, "cpu", "fp32", 1)
    restorer._tile_limit_px = tile
    return restorer.restore(image[None], IntensityRange(0, 1, guide=guide), ((True, True),) * 3)[0]


def test_tiles_share_the_guide_of_the_whole() -> None:
    net = speaking()
    image = blobs_nchw(384)[0, 0].numpy()
    guide = guide_of_windows([image], 0, 1)
    whole, tiled = (_tiled(net, image, tile, guide) for tile in (1024, 128))
    assert np.abs(whole - tiled).max() < 2e-6 * np.ptp(whole)
    assert np.abs(whole - _tiled(net, image, 1024, None)).max() > 1e-2 * np.ptp(whole)


def test_deconvolve_tells_each_channel_its_own_and_keeps_it(tmp_path: Path) -> None:
    """Whatever the tile size; a crop in T or C changes nothing, since the guide is that of the whole channel."""
    weights = save(speaking(), tmp_path / "speaking.safetensors")
    images = [_counts(noise_nchw(160)), _counts(blobs_nchw(160))]
    tifffile.imwrite(tmp_path / "two.ome.tif", np.stack(images), metadata={"axes": "CYX"}, ome=True)
    found = []
    for name, options in (("a", ()), ("b", ("--tile-size", "128")), ("c", ("--channels", "1"))):
        out = tmp_path / f"{name}.ome.tif"
        assert deconvolve(tmp_path / "two.ome.tif", "-o", out, "--model", weights, *options) == 0
        found.append(tifffile.imread(out))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0][1], found[2].reshape(160, 160))
    alone = tmp_path / "one.tif"
    tifffile.imwrite(alone, images[0])
    assert deconvolve(alone, "-o", tmp_path / "d.ome.tif", "--model", weights) == 0
    assert np.array_equal(tifffile.imread(tmp_path / "d.ome.tif"), found[0][0])


def _counts(image_nchw: Tensor) -> np.ndarray:
    return np.asarray(200 + 3000 * image_nchw[0, 0].numpy()).astype(np.uint16)


def test_evaluate_is_told_what_deconvolve_is_told(tmp_path: Path) -> None:
    from mrbcr_cli.evaluation.networks import load_networks

    weights = save(speaking(), tmp_path / "speaking.safetensors")
    image = _counts(blobs_nchw(160))
    tifffile.imwrite(tmp_path / "in.tif", image)
    out = tmp_path / "out.ome.tif"
    assert deconvolve(tmp_path / "in.tif", "-o", out, "--model", weights, "--output-dtype", "float32") == 0
    (network,) = load_networks([str(weights)], "cpu")
    assert np.array_equal(network.restore(image), tifffile.imread(out))
