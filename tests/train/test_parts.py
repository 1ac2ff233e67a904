"""Parts of training: losses, percentiles, rates, averages and pyramids are what their formulas say.

None of them needs more than torch, NumPy, SciPy and safetensors.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from mrbcr_cli.network.mrbcr import Mrbcr
from mrbcr_cli.network.published import Published
from mrbcr_cli.train.batches import normalise, percentiles
from mrbcr_cli.train.loop import learning_rate
from mrbcr_cli.train.loss import LossSettings, loss_of
from mrbcr_cli.train.state import Average
from mrbcr_cli.train.train_settings import TrainSettings


def test_loss_is_zero_at_the_truth_and_blind_to_brightness_turn_and_rim() -> None:
    rng = torch.Generator().manual_seed(0)
    truth, noise = (torch.rand(3, 1, 64, 64, generator=rng) for _ in range(2))
    found = truth + 0.1 * noise
    for kind in ("mse", "charbonnier"):
        settings = LossSettings(kind, 0.3)
        assert float(loss_of([truth], [truth], settings)[0]) < 2e-3
        base = float(loss_of([found], [truth], settings)[0])
        assert float(loss_of([2 * found + 1], [2 * truth + 1], settings)[0]) == pytest.approx(base, rel=1e-4)
        turned = [torch.rot90(image, 1, (2, 3)) for image in (found, truth)]
        assert float(loss_of([turned[0]], [turned[1]], settings)[0]) == pytest.approx(base, rel=2e-3)
        spoilt = found.clone()
        spoilt[..., :16, :] = 99.0
        # (contrast is the truth's, which is left alone)
        inner = float(loss_of([found], [truth], settings, rim_px=16)[0])
        assert float(loss_of([spoilt], [truth], settings, rim_px=16)[0]) == pytest.approx(inner)


def test_log_loss_descends_the_mean_psnr() -> None:
    truth = torch.rand(2, 1, 32, 32)
    truth = (truth - truth.amin((2, 3), keepdim=True)) / (
        truth.amax((2, 3), keepdim=True) - truth.amin((2, 3), keepdim=True)
    )
    losses, psnrs = [], []
    for size in (0.1, 0.05, 0.025):
        loss, square = loss_of([truth + size], [truth], LossSettings("log", 0.0))
        losses.append(float(loss))
        psnrs.append(float((-10 * square.log10()).mean()))
    slope = np.diff(losses) / np.diff(psnrs)
    assert slope == pytest.approx([-0.1 * np.log(10) / 10] * 2, rel=0.05)


def test_gain_loss_pulls_less_where_a_patch_already_outdoes_any_smoothing() -> None:
    """Two outputs with one error: beside the input that was far off, less is gained by mending it further."""
    rng = torch.Generator().manual_seed(1)
    truth = torch.rand(1, 1, 64, 64, generator=rng).repeat(2, 1, 1, 1)
    spoilt = truth + torch.tensor([0.02, 0.5])[:, None, None, None]  # a haze that no smoothing takes off
    found = (truth + 0.02).requires_grad_()
    loss_of([found], [truth], LossSettings("gain", 0.0, gain_floor=0.3), inputs=[spoilt])[0].backward()
    pulls = found.grad.square().mean((1, 2, 3)).sqrt()  # type: ignore[union-attr]
    assert pulls[0] > 10 * pulls[1] > 0
    found.grad = None
    loss_of([found], [truth], LossSettings("log", 0.0))[0].backward()
    alike = found.grad.square().mean((1, 2, 3)).sqrt()  # type: ignore[union-attr]
    assert float(alike[0]) == pytest.approx(float(alike[1]))


def test_percentiles_are_numpys() -> None:
    images = torch.rand(4, 1, 50, 37)
    low, high = percentiles(images)
    wanted = np.percentile(images.numpy().reshape(4, -1), (0.1, 99.9), axis=1)
    assert np.allclose(low.ravel(), wanted[0], atol=1e-6) and np.allclose(high.ravel(), wanted[1], atol=1e-6)


@pytest.mark.parametrize("seed", [None, 1])
def test_input_and_target_go_through_one_map(seed: int | None) -> None:
    recorded = 100 + 900 * torch.rand(6, 1, 32, 32)
    rng = None if seed is None else np.random.default_rng(seed)
    inputs, targets, _ = normalise(recorded, 2 * recorded + 50, rng)
    gain = (inputs.amax((2, 3)) - inputs.amin((2, 3))) / (recorded.amax((2, 3)) - recorded.amin((2, 3)))
    offset = inputs.mean((2, 3)) - gain * recorded.mean((2, 3))
    expected = gain[..., None, None] * (2 * recorded + 50) + offset[..., None, None]
    assert torch.allclose(targets, expected, atol=2e-4)


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    settings = TrainSettings(simulate={}, lr=1e-3, warmup=0.1)  # type: ignore[arg-type]
    rates = [learning_rate(p, settings) for p in np.linspace(0, 1, 101)]
    assert rates[10] == pytest.approx(1e-3) and max(rates) <= 1e-3 + 1e-12
    assert rates[-1] == pytest.approx(0.0, abs=1e-9) and np.all(np.diff(rates[10:]) <= 0)


def test_average_follows_the_weights() -> None:
    network = torch.nn.Linear(1, 1)
    average = Average(network, 0.9)
    with torch.no_grad():
        network.weight.fill_(1.0)
    for step in range(200):
        average.update(network, step)
    assert float(average.state["weight"]) == pytest.approx(1.0, abs=1e-6)


def test_pyramids_keep_the_mean_and_the_shapes_of_the_outputs() -> None:
    image = torch.rand(1, 1, 64, 48)
    for network in (Mrbcr(), Published()):
        outputs, targets = network(image), network.pyramid(image)
        assert [o.shape for o in outputs] == [t.shape for t in targets]
        assert all(float(t.mean()) == pytest.approx(float(image.mean()), rel=0.05) for t in targets)


def test_loop_needs_no_more_than_torch_numpy_scipy_and_safetensors() -> None:
    """A GPU machine may have nothing else."""
    blocked = ("pydantic", "zarr", "dask", "distributed", "typer", "rich", "yaml", "skimage", "matplotlib", "yaozarrs")
    code = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in blocked)
    code += "import mrbcr_cli.train.loop, mrbcr_cli.train.fields, mrbcr_cli.train.state, mrbcr_cli.train.group\n"
    code += "import mrbcr_cli.train.stored, mrbcr_cli.network.mrbcr, mrbcr_cli.network.published\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
