"""Convolutions in strips and in place are those of the whole map; joined with what follows they are the same sums."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mrbcr_cli.network import kernels, strips
from mrbcr_cli.network.fused import FusedMrbcr
from mrbcr_cli.network.kernels import Kernel
from mrbcr_cli.network.mrbcr import Mrbcr, MrbcrSettings
from mrbcr_cli.network.wavelets import WaveletBank

CHANNELS, HEIGHT, WIDTH = 8, 37, 19
_ROW_BYTES = CHANNELS * WIDTH * 4
STRIPS = [1, 8 * _ROW_BYTES, 11 * _ROW_BYTES, 36 * _ROW_BYTES, 10**9]
"""Bytes of a strip: the shortest there are, some that leave a row over, and the whole."""


@pytest.fixture(params=[True, False], ids=["joined", "apart"], autouse=True)
def joins(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With and without oneDNN's convolutions that do what follows them."""
    if request.param and not kernels._can_join(torch.float32):
        pytest.skip("this PyTorch has no such convolutions")
    monkeypatch.setattr(kernels, "_can_join", lambda dtype: request.param)
    return bool(request.param)


def features(seed: int, channels: int = CHANNELS, count: int = 2, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, channels, height, width, generator=generator)
    return drawn.contiguous(memory_format=torch.channels_last)


def kernel(seed: int, channels_in: int = CHANNELS, channels_out: int = CHANNELS, size: int = 3) -> Kernel:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(channels_out, channels_in, size, size, generator=generator) / 8
    return Kernel.of(weight, torch.randn(channels_out, generator=generator), torch.float32)


def plain(x: Tensor, of: Kernel) -> Tensor:
    return F.conv2d(x, of.weight, of.bias, padding=of.weight.shape[-1] // 2)


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("strip_bytes", STRIPS)
@pytest.mark.parametrize("with_passing", [True, False])
def test_a_residual_pair_in_strips_is_that_of_the_whole_map(
    strip_bytes: int, with_passing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strips, "STRIP_BYTES", strip_bytes)
    bands, first, second = features(0), kernel(1), kernel(2)
    passing = features(3, count=1, height=1, width=1) if with_passing else None
    expected = bands * (1 if passing is None else passing) + plain(plain(bands, first).relu(), second)
    with torch.inference_mode():
        found = strips.residual_(bands, first, second, passing)
    assert found is bands
    assert close(bands, expected)


@pytest.mark.parametrize("strip_bytes", STRIPS)
@pytest.mark.parametrize("size", [1, 3, 9])
def test_what_is_added_in_strips_is_the_convolution(
    strip_bytes: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strips, "STRIP_BYTES", strip_bytes)
    target, source, added = features(0), features(1, channels=4), kernel(2, channels_in=4, size=size)
    expected = target + plain(source, added)
    with torch.inference_mode():
        assert strips.add_(target, source, added) is target
    assert close(target, expected)


@pytest.mark.parametrize("strip_bytes", STRIPS)
def test_a_synthesis_added_in_strips_is_the_synthesis(strip_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "STRIP_BYTES", strip_bytes)
    bank, bands = WaveletBank(2), features(0)
    whole = features(1, channels=5, height=2 * HEIGHT, width=2 * WIDTH)
    untouched = whole[:, 2:].clone()
    expected = whole[:, :2] + bank.synthesis(bands)
    with torch.inference_mode():
        strips.add_synthesis_(whole[:, :2], bands, bank)
    assert close(whole[:, :2], expected)
    assert torch.equal(whole[:, 2:], untouched)


@pytest.mark.parametrize(("above", "below"), [(0, 0), (1, 1), (0, 1), (1, 0)])
def test_rows_of_context_are_left_out(above: int, below: int) -> None:
    x, conv, target = features(0), kernel(1), features(2)[:, :, above : HEIGHT - below].contiguous()
    target = target.contiguous(memory_format=torch.channels_last)
    expected = plain(x, conv)[:, :, above : HEIGHT - below]
    with torch.inference_mode():
        assert close(conv(x, above, below), expected)
        assert close(conv.rectified(x, above, below), expected.relu())
        before = target.clone()
        assert close(conv.add_to(target, x, above, below), before + expected)
        assert close(target, before + expected)


def test_a_target_that_is_a_part_of_other_channels_is_added_to_in_place() -> None:
    x, conv, whole = features(0), kernel(1, channels_out=4), features(2)
    before = whole.clone()
    with torch.inference_mode():
        conv.add_to(whole[:, 2:6], x)
    assert close(whole[:, 2:6], before[:, 2:6] + plain(x, conv))
    assert torch.equal(whole[:, :2], before[:, :2])
    assert torch.equal(whole[:, 6:], before[:, 6:])


@pytest.mark.parametrize("strip_bytes", [1, 10**9])
def test_the_network_is_the_same_in_any_strips(strip_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = Mrbcr(MrbcrSettings(alpha=4)).eval()
    image = torch.rand(2, 1, 90, 70)
    monkeypatch.setattr(strips, "STRIP_BYTES", strip_bytes)
    with torch.inference_mode():
        found = FusedMrbcr(network, None, torch.float32)(image)
        assert close(found, network(image)[0])
