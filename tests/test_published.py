"""The published network: agreement with the authors' outputs, and what tiling may rely on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mrbcr_cli.network import DeconvolutionNetwork
from mrbcr_cli.network.published import Published

DATA = Path(__file__).parent / "data"
NAMES = ["mrbcr_biosr", "debcr_2d_denoising", "debcr_3d_denoising", "debcr_bright_sr", "debcr_confocal_sr"]
SIZES = ("full", "half", "quarter")


def random_reference_state() -> dict[str, Tensor]:
    """The int8 weights of the reference file, times their scales."""
    with np.load(DATA / "random_weights_reference.npz") as arrays:
        roles = [key for key in arrays.files if f"{key}.scale" in arrays.files]
        return {role: torch.from_numpy(arrays[role].astype(np.float32) * arrays[f"{role}.scale"]) for role in roles}


def published_with(state: dict[str, Tensor]) -> Published:
    network = Published()
    network.load_state_dict(state)
    return network.eval()


@pytest.fixture(scope="module")
def reference_network() -> Published:
    return published_with(random_reference_state())


def positive_network(dtype: torch.dtype) -> Published:
    """All weights positive and of unit sum, so that no ReLU is shut and every path carries signal."""
    network = Published().to(dtype).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0 / parameter[0].numel() if parameter.ndim == 4 else 0.0)
    return network


def image_nchw(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(seed))


def test_parameter_count_is_the_released_one() -> None:
    assert sum(p.numel() for p in Published().parameters()) == 236_630


def test_network_satisfies_the_shared_interface() -> None:
    network: DeconvolutionNetwork = Published()
    assert network.architecture == "published"
    assert network.settings_dict == {}
    assert network.default_halo_px % network.alignment_px == 0
    assert network.default_halo_px <= network.receptive_radius_px


def test_random_weights_give_the_official_outputs(reference_network: Published) -> None:
    with np.load(DATA / "random_weights_reference.npz") as arrays, torch.inference_mode():
        outputs = reference_network(torch.from_numpy(arrays["image"])[None, None])
        for size, output in zip(SIZES, outputs, strict=True):
            np.testing.assert_allclose(output[0, 0].numpy(), arrays[size], rtol=0, atol=1e-3, err_msg=size)


@pytest.mark.parametrize("name", NAMES)
def test_authors_weights_give_the_authors_outputs(shared: Path, name: str) -> None:
    folder = shared / "published"
    with np.load(folder / f"{name}.weights.npz") as weights:
        network = published_with({role: torch.from_numpy(weights[role]) for role in weights.files})
    with np.load(folder / "input.npz") as inputs:
        image_n1yx = torch.from_numpy(inputs["image_nyx"])[:, None]
    with np.load(folder / f"{name}.output.npz") as expected, torch.inference_mode():
        for size, output in zip(SIZES, network(image_n1yx), strict=True):
            np.testing.assert_allclose(output[:, 0].numpy(), expected[size], rtol=0, atol=1e-5, err_msg=size)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 30), (18, 19), (33, 16), (61, 47)])
def test_outputs_have_the_rounded_up_sizes(reference_network: Published, height: int, width: int) -> None:
    with torch.inference_mode():
        outputs = reference_network(image_nchw(height, width))
    assert [tuple(o.shape) for o in outputs] == [(1, 1, -(-height // s), -(-width // s)) for s in (1, 2, 4)]
    assert all(bool(torch.isfinite(o).all()) for o in outputs)


def test_odd_size_is_the_crop_of_the_mirrored_image(reference_network: Published) -> None:
    image = image_nchw(45, 38)
    mirrored = np.pad(image[0, 0].numpy(), ((0, 3), (0, 2)), mode="reflect")
    with torch.inference_mode():
        cropped = reference_network(image)[0]
        whole = reference_network(torch.from_numpy(mirrored)[None, None])[0][..., :45, :38]
    assert torch.equal(cropped, whole)


@pytest.mark.parametrize(
    "bad",
    [torch.zeros(1, 1, 15, 64), torch.zeros(1, 3, 32, 32), torch.zeros(32, 32), torch.zeros(1, 1, 32, 32).int()],
    ids=["too small", "three channels", "no batch", "integers"],
)
def test_wrong_input_is_refused_in_words(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="network"):
        Published()(bad)


@pytest.mark.parametrize("axis", [-1, -2])
def test_nothing_beyond_the_formal_radius_moves_the_output(axis: int) -> None:
    """A pixel is perturbed; outputs farther than the radius stay bit-identical, and some at a distance do move."""
    network = positive_network(torch.float32)
    radius = network.receptive_radius_px
    length, where = 2 * radius + 48, 8  # a pixel that all three scales pick
    shape = (1, 1, 16, length) if axis == -1 else (1, 1, length, 16)
    before = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    after = before.clone()
    after.select(axis, where).add_(100.0)
    with torch.inference_mode():
        moved = (network(after)[0] != network(before)[0]).any(dim=-2 if axis == -1 else -1).flatten()
    assert not moved[where + radius + 1 :].any()
    assert moved[where : where + 32].all()


def test_formal_radius_is_the_smallest_that_holds() -> None:
    """With all paths open, an output pixel at 1 (mod 4) feels the input at exactly the formal radius."""
    network = positive_network(torch.float64)  # the far end weighs 1e-50: float32 would lose it
    radius = network.receptive_radius_px
    where = radius + 8
    assert where % network.alignment_px == 1
    image = torch.ones(1, 1, 16, 2 * radius + 24, dtype=torch.float64, requires_grad=True)
    network(image)[0][0, 0, 8, where].backward()
    assert image.grad is not None
    touched = torch.nonzero(image.grad[0, 0].abs().sum(dim=0)).flatten()
    assert where - int(touched.min()) == radius
    assert int(touched.max()) - where <= radius


@pytest.mark.parametrize("steps", [1, 3])
def test_shift_by_the_alignment_shifts_the_output(reference_network: Published, steps: int) -> None:
    """Away from the border, where nothing but the shift differs."""
    shift, halo = steps * reference_network.alignment_px, 128  # these weights reach farther than the authors' do
    image = image_nchw(2 * halo + 40, 2 * halo + 40)
    with torch.inference_mode():
        whole = reference_network(image)[0]
        shifted = reference_network(image[..., shift:, shift:])[0]
    inner = slice(halo, halo + 24)
    moved = slice(halo + shift, halo + shift + 24)
    spread = float(whole.max() - whole.min())
    assert float((shifted[..., inner, inner] - whole[..., moved, moved]).abs().max()) <= 2e-6 * spread


def test_shift_off_the_alignment_does_not(reference_network: Published) -> None:
    """The reason why tile starts are aligned: a shift by one pixel picks other samples at the coarse scales."""
    image = image_nchw(80, 80)
    with torch.inference_mode():
        whole, shifted = reference_network(image)[0], reference_network(image[..., 1:, 1:])[0]
    spread = float(whole.max() - whole.min())
    assert float((shifted[..., 39, 39] - whole[..., 40, 40]).abs().max()) > 1e-3 * spread


@pytest.mark.parametrize("name", NAMES[:1])
def test_aligned_tiles_with_the_default_halo_equal_the_whole(shared: Path, name: str) -> None:
    with np.load(shared / "published" / f"{name}.weights.npz") as weights:
        network = published_with({role: torch.from_numpy(weights[role]) for role in weights.files})
    halo, image = network.default_halo_px, image_nchw(301, 263, seed=3)
    with torch.inference_mode():
        whole = network(image)[0]
        tiled = torch.empty_like(whole)
        for top in range(0, 301, 160):
            for left in range(0, 263, 160):
                y, x = max(0, top - halo), max(0, left - halo)
                tile = network(image[..., y : top + 160 + halo, x : left + 160 + halo])[0]
                out = tiled[..., top : top + 160, left : left + 160]
                out.copy_(tile[..., top - y :, left - x :][..., : out.shape[-2], : out.shape[-1]])
    assert float((tiled - whole).abs().max()) <= 2e-6 * float(whole.max() - whole.min())
