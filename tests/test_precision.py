"""The network made ready for inference is the network; reduced precision is used only where it may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from mrbcr_cli import intensity as intensity_module
from mrbcr_cli.images import read_provenance
from mrbcr_cli.intensity import IntensityRange
from mrbcr_cli.network.fused import FusedMrbcr
from mrbcr_cli.network.fused_published import FusedPublished
from mrbcr_cli.network.guide import guide_of_batch
from mrbcr_cli.network.mrbcr import Mrbcr, MrbcrSettings
from mrbcr_cli.network.published import Published
from mrbcr_cli.precision import with_precision_error
from mrbcr_cli.restore import NetworkSpec, Precision, Restorer
from mrbcr_cli.weights import build_network, list_weights, load_weights
from tests.helpers import TINY, deconvolve, pixels, spots, tiny_weights
from tests.test_published import NAMES, published_with

SHAPES = [
    TINY,
    MrbcrSettings(alpha=4, kt_pairs=((2,), (1,), (1,)), b_pairs=((1, 0, 1), (1,), (0,))),
    MrbcrSettings(alpha=4, kt_pairs=((0,),), b_pairs=((1,),), stages=1),
    MrbcrSettings(alpha=4, kt_pairs=((1, 1), (1,)), b_pairs=((1, 2), (2,)), stages=2, guided=False),
]
INNER = (False, False, False, False)


def lively(settings: MrbcrSettings) -> Mrbcr:
    """A network whose every weight counts: nothing in it is zero, and no branch is small."""
    torch.manual_seed(3)
    network = Mrbcr(settings).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return network


@pytest.mark.parametrize("settings", SHAPES)
@pytest.mark.parametrize("edges", [(True,) * 4, INNER, (True, False, False, True)])
def test_fused_is_the_network(settings: MrbcrSettings, edges: tuple[bool, bool, bool, bool]) -> None:
    network = lively(settings)
    image = torch.rand(2, 1, 75, 98)
    guide = guide_of_batch(image)[:1] if settings.guided else None
    with torch.inference_mode():
        expected = network(image, edges, guide)[0]
        found = FusedMrbcr(network, guide, torch.float32)(image, edges)
        # Without a true border the rim is context and unsound in both.
        top, bottom, left, right = (0 if edge else 32 for edge in edges)
        sound = (..., slice(top, 75 - bottom), slice(left, 98 - right))
        assert float((found - expected)[sound].abs().max()) < 1e-5 * float(expected.max() - expected.min())


@pytest.mark.parametrize("name", list_weights())
def test_fused_is_every_embedded_model(name: str) -> None:
    network = build_network(load_weights(name))
    assert isinstance(network, Mrbcr)
    image = torch.rand(1, 1, 160, 160) ** 4
    guide = guide_of_batch(image)
    with torch.inference_mode():
        expected = network(image, (True,) * 4, guide)[0]
        assert float((FusedMrbcr(network, guide, torch.float32)(image) - expected).abs().max()) < 1e-5
        rounded = FusedMrbcr(network, guide, torch.bfloat16)(image)
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - expected).square().mean().sqrt()) < 0.005


def test_too_small_an_image_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 16 x 16"):
        FusedMrbcr(lively(TINY), None, torch.float32)(torch.rand(1, 1, 15, 40))


def spec_of(path: Path, precision: Any) -> NetworkSpec:
    return NetworkSpec(str(path), load_weights(path).sha256, "cpu", precision, 1, 96)


def test_the_probe_finds_what_it_costs(tmp_path: Path) -> None:
    spec = spec_of(tiny_weights(tmp_path / "tiny.safetensors"), "bf16")
    image = spots((1, 300, 256)).astype(np.float32)
    plain = IntensityRange(100, 900)
    found, said = with_precision_error(plain, spec, [image[0, :64, :64] * 0, image[0]])
    assert found.precision_error is not None
    both = [spec_of(Path(spec.weights), p).build().restore(image, plain, ((True, True),) * 3) for p in ("fp32", "bf16")]
    worst = float(np.abs(both[0] - both[1]).max()) / plain.width
    assert 0 < found.precision_error <= worst
    assert (said is not None) == found.needs_fp32
    shifted = IntensityRange(-100, 700)
    assert with_precision_error(shifted, spec, [image[0] - 200])[0].precision_error == found.precision_error


def test_where_nothing_can_be_probed_it_is_float32(tmp_path: Path) -> None:
    spec = spec_of(tiny_weights(tmp_path / "tiny.safetensors"), "bf16")
    found, said = with_precision_error(IntensityRange(0, 1), spec, [np.full((64, 64), np.nan, np.float32)])
    assert found.needs_fp32
    assert said is not None and "was not tried" in said
    assert json.loads(json.dumps(found.precision_error)) == found.precision_error


def test_a_channel_that_needs_float32_gets_it(tmp_path: Path) -> None:
    path = tiny_weights(tmp_path / "tiny.safetensors")
    image = spots((1, 96, 128)).astype(np.float32)
    needs = IntensityRange(0, 900, precision_error=0.02)
    assert needs.needs_fp32
    results = [spec_of(path, p).build().restore(image, needs, ((True, True),) * 3) for p in ("fp32", "bf16")]
    assert np.array_equal(*results)


def test_restorers_keep_a_bounded_number_of_channels(tmp_path: Path) -> None:
    method = spec_of(tiny_weights(tmp_path / "tiny.safetensors"), "fp32").build()
    assert isinstance(method, Restorer)
    image = spots((1, 64, 64)).astype(np.float32)
    ranges = [IntensityRange(0, 900, guide=(0.1 * k,) * 22) for k in range(40)]
    results = [method.restore(image, r, ((True, True),) * 3) for r in ranges]
    assert len(method._runners) <= 16
    assert np.array_equal(method.restore(image, ranges[0], ((True, True),) * 3), results[0])
    assert not np.array_equal(results[0], results[-1])


@pytest.mark.parametrize("limit", [1e-6, 1.0])
def test_the_command_says_and_records_it(
    tmp_path: Path, limit: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(intensity_module, "LARGEST_PRECISION_ERROR", limit)
    weights = tiny_weights(tmp_path / "tiny.safetensors")
    tifffile.imwrite(tmp_path / "in.tif", spots((2, 96, 128)), metadata={"axes": "ZYX"}, photometric="minisblack")
    runs = {}
    for precision in ("fp32", "bf16"):
        runs[precision] = tmp_path / f"{precision}.ome.zarr"
        assert deconvolve(tmp_path / "in.tif", "-o", runs[precision], "-m", weights, "--precision", precision) == 0
    said = capsys.readouterr().err
    same = np.array_equal(*(pixels(path) for path in runs.values()))
    refused = limit < 0.5
    assert (same, "float32 is used instead" in said) == (refused, refused)
    record: Any = read_provenance(runs["bf16"])
    assert record["channels"][0]["precision_error"] > 0
    assert record["channels"][0]["precision"] == ("fp32" if refused else "bf16")
    assert any("float32 is used instead" in note for note in record["notes"]) == refused


@pytest.mark.parametrize("shape", [(1, 1, 64, 80), (3, 1, 37, 50), (1, 1, 16, 129)])
def test_fused_is_the_released_network(shape: tuple[int, ...]) -> None:
    torch.manual_seed(2)
    network = Published().eval()
    image = torch.rand(shape)
    with torch.inference_mode():
        expected = network(image)[0]
        spread = float(expected.max() - expected.min())
        assert float((FusedPublished(network, torch.float32)(image) - expected).abs().max()) < 1e-5 * spread
        rounded = FusedPublished(network, torch.bfloat16)(image)
    assert (rounded.dtype, rounded.shape) == (torch.float32, expected.shape)
    assert 0 < float((rounded - expected).abs().max()) < 0.05 * spread


@pytest.mark.parametrize("name", NAMES)
def test_fused_is_the_released_network_with_its_authors_weights(shared: Path, name: str) -> None:
    with np.load(shared / "published" / f"{name}.weights.npz") as weights:
        network = published_with({role: torch.from_numpy(weights[role]) for role in weights.files})
    with np.load(shared / "published" / "input.npz") as inputs:
        image = torch.from_numpy(inputs["image_nyx"])[:, None]
    with torch.inference_mode():
        expected = network(image)[0]
        found = FusedPublished(network, torch.float32)(image)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.max() - expected.min())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_pixel_that_overflows_stays_no_number(precision: Precision) -> None:
    torch.manual_seed(0)
    restorer = Restorer(Published().eval(), 112, "cpu", precision, 1)
    planes = np.random.default_rng(0).random((1, 40, 50), np.float32)
    planes[0, 20, 30] = 3e38
    found = restorer.restore(planes, IntensityRange(0, 1e-3), ((True, True),) * 3)
    assert not np.isfinite(found[0, 20, 30])
