"""Invariants of the wavelet bank, the nonstandard-form block and the mrbcr network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mrbcr_cli.network.blocks import NonstandardBlock
from mrbcr_cli.network.mrbcr import Mrbcr, MrbcrSettings, reflect_pad
from mrbcr_cli.network.wavelets import BANDS, WaveletBank, bank_kernels, db3_filters


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(settings: MrbcrSettings | None = None, *, strong: bool = True) -> Mrbcr:
    """A network with random weights; `strong` undoes the small start so that every path matters."""
    torch.manual_seed(3)
    net = Mrbcr(settings).eval()
    if strong:
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if name.endswith(("second.weight", "project.weight", "coarsest.weight")):
                    parameter.mul_(8)
    return net


def silence(net: nn.Module) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()


def test_db3_is_orthonormal_and_kills_quadratics() -> None:
    low, high = db3_filters()
    for shift in (0, 2, 4):
        expected = 1.0 if shift == 0 else 0.0
        assert torch.dot(low[shift:], low[: 6 - shift]) == pytest.approx(expected, abs=1e-12)
        assert torch.dot(low[shift:], high[: 6 - shift]) == pytest.approx(0, abs=1e-12)
    n = torch.arange(6, dtype=torch.float64)
    for power in range(3):
        assert (high * n**power).sum() == pytest.approx(0, abs=1e-10)


def test_ll_of_a_constant_is_the_constant() -> None:
    assert bank_kernels()[0].sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_bank_reconstructs_both_ways(channels: int) -> None:
    bank = WaveletBank(channels)
    image = torch.randn(2, channels, 48, 64, generator=seeded())
    inner = (..., slice(8, -8), slice(8, -8))
    assert torch.allclose(bank.synthesis(bank.analysis(image))[inner], image[inner], atol=2e-6)
    bands = torch.randn(2, BANDS * channels, 24, 32, generator=seeded(1))
    assert torch.allclose(bank.analysis(bank.synthesis(bands))[inner], bands[inner], atol=2e-6)


@pytest.mark.parametrize("pairs", [(1,), (1, 2), (1, 1, 1)])
def test_block_with_zero_convolutions_is_the_identity(pairs: tuple[int, ...]) -> None:
    block = NonstandardBlock(4, pairs)
    silence(block)
    bands = torch.randn(1, 16, 96, 96, generator=seeded())
    margin = 8 * 2 ** len(pairs)
    inner = (..., slice(margin, -margin), slice(margin, -margin))
    assert torch.allclose(block(bands)[inner], bands[inner], atol=5e-6)


@pytest.mark.parametrize("shape", [(64, 64), (16, 16), (37, 51), (200, 17)])
def test_silent_network_returns_its_input_up_to_the_border(shape: tuple[int, int]) -> None:
    net = network()
    silence(net)
    image = torch.rand(1, 1, *shape, generator=seeded())
    with torch.inference_mode():
        outputs = net(image)
        targets = net.pyramid(image)
    for output, target in zip(outputs, targets, strict=True):
        assert output.shape == target.shape
        assert torch.allclose(output, target, atol=5e-6)


def test_output_sizes_are_rounded_up() -> None:
    full, half, quarter = network()(torch.rand(2, 1, 37, 51, generator=seeded()))
    assert full.shape == (2, 1, 37, 51)
    assert half.shape == (2, 1, 19, 26)
    assert quarter.shape == (2, 1, 10, 13)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_shift_by_the_alignment_shifts_the_output(stages: int) -> None:
    net = network(MrbcrSettings(stages=stages))
    step, far = net.alignment_px, net.receptive_radius_px
    size = 2 * far + 64
    image = torch.rand(1, 1, size + step, size + step, generator=seeded())
    with torch.inference_mode():
        whole = net(image)[0][..., step + far : -far, step + far : -far]
        shifted = net(image[..., step:, step:])[0][..., far:-far, far:-far]
    assert torch.allclose(whole, shifted, atol=1e-5)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_nothing_beyond_the_receptive_radius_matters(stages: int) -> None:
    net = network(MrbcrSettings(stages=stages)).double()
    radius = net.receptive_radius_px
    size = 2 * radius + 3 * net.alignment_px
    image = torch.rand(1, 1, size, size, generator=seeded(), dtype=torch.float64)
    reach = 0
    for offset in range(net.alignment_px):
        centre = radius + net.alignment_px + offset
        moved = image.clone()
        moved[..., centre, centre] += 1.0
        with torch.inference_mode():
            change = (net(moved)[0] - net(image)[0]).abs()[0, 0]
        rows, cols = torch.nonzero(change > 0, as_tuple=True)
        reach = max(reach, int((rows - centre).abs().max()), int((cols - centre).abs().max()))
    assert reach <= radius
    assert reach > radius // 4  # the stated radius is a bound with a meaning, not infinity


def test_context_only_edges_agree_with_bordered_edges_inside() -> None:
    net = network()
    far = net.receptive_radius_px
    image = torch.rand(1, 1, 2 * far + 40, 2 * far + 40, generator=seeded())
    with torch.inference_mode():
        bordered = net(image)[0][..., far:-far, far:-far]
        bare = net(image, (False, False, False, False))[0][..., far:-far, far:-far]
    assert torch.allclose(bordered, bare, atol=1e-5)


@pytest.mark.parametrize("level", [0.0, 0.3, 5.0])
def test_a_flat_image_stays_flat(level: float) -> None:
    """Whatever the weights: a constant in a detail band would be a lattice in the image."""
    net = network().double()
    size = 2 * net.receptive_radius_px + 64
    far = net.receptive_radius_px
    with torch.inference_mode():
        out = net(torch.full((1, 1, size, size), level, dtype=torch.float64))[0][..., far:-far, far:-far]
    # The filters are held in float32, so their high-pass sums vanish to 1e-8 only.
    assert float(out.max() - out.min()) < 1e-6 * (1 + level)


def test_budget_of_the_default() -> None:
    assert sum(p.numel() for p in Mrbcr().parameters()) <= 240_000


def test_multiply_adds_of_the_default() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    size = 256
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        Mrbcr().eval()(torch.rand(1, 1, size, size), (False, False, False, False))
    assert counter.get_total_flops() / 2 / size**2 <= 36_000


def test_reflect_pad_is_numpy_reflect() -> None:
    import numpy as np

    image = torch.arange(12.0).reshape(1, 1, 3, 4)
    expected = np.pad(image.numpy(), ((0, 0), (0, 0), (7, 5), (1, 9)), mode="reflect")
    assert np.array_equal(reflect_pad(image, (7, 5), (1, 9)).numpy(), expected)


@pytest.mark.parametrize("bad", [{"stages": 0}, {"stages": 4}, {"alpha": 0}, {"b_pairs": ((),)}])
def test_impossible_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"stages|alpha|b_pairs"):
        MrbcrSettings(**bad)  # type: ignore[arg-type]


def test_settings_survive_json() -> None:
    import json

    net = Mrbcr()
    assert MrbcrSettings.from_dict(json.loads(json.dumps(net.settings_dict))) == net.settings


def test_too_small_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match="16 x 16"):
        network()(torch.rand(1, 1, 15, 40))


def test_noise_at_the_highest_frequency_can_be_removed() -> None:
    """A lattice of period 2 px is constant in a detail band; two centre weights in a row take it away."""
    network = Mrbcr()
    alpha = network.settings.alpha
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for stage in network.scales:
            for band in range(1, 4):
                stage.b_lift.weight[band * alpha, band, 1, 1] = 1.0  # type: ignore[union-attr, operator]
                stage.project.weight[band, band * alpha, 1, 1] = -1.0  # type: ignore[union-attr, operator]
    lattice = (-1.0) ** torch.arange(96).expand(96, 96)[None, None]
    with torch.inference_mode():
        left = network(lattice)[0][..., 32:64, 32:64]
        flat = network(torch.ones(1, 1, 96, 96))[0]
    assert float(left.abs().max()) < 1e-5
    assert torch.allclose(flat, torch.ones_like(flat), atol=1e-5)
