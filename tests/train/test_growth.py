"""A network that grows does what it did; what cannot grow is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mrbcr_cli.network.growth import grow
from mrbcr_cli.network.mrbcr import Mrbcr, MrbcrSettings
from mrbcr_cli.weights import load_weights
from tests.train.runs import train

SMALL = MrbcrSettings(alpha=2, stages=2, kt_pairs=((1, 1), (0,)), b_pairs=((1, 0), (1,)), guide_hidden=5)
LARGE = replace(SMALL, kt_pairs=((1, 2), (1,)), b_pairs=((3, 1), (1,)))


def _random(settings: MrbcrSettings, seed: int = 0) -> Mrbcr:
    torch.manual_seed(seed)
    network = Mrbcr(settings).eval()
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(torch.randn_like(value) * 0.1)
    return network


@pytest.mark.parametrize(
    ("held", "asked"),
    [
        (SMALL, SMALL),
        (SMALL, LARGE),
        (SMALL, replace(LARGE, guide_hidden=9)),
        (replace(SMALL, guided=False), replace(LARGE, guided=False)),
        (replace(SMALL, guided=False), LARGE),
    ],
)
def test_grown_network_is_the_former_one(held: MrbcrSettings, asked: MrbcrSettings) -> None:
    """For any image and guide, with weights that all matter."""
    former = _random(held)
    grown = grow(former.state_dict(), held, asked).eval()
    assert grown.settings == asked
    image, guide = torch.rand(2, 1, 48, 40), torch.randn(2, 22)
    with torch.no_grad():
        for output, wanted in zip(grown(image, guide=guide), former(image, guide=guide), strict=True):
            torch.testing.assert_close(output, wanted, atol=1e-5, rtol=1e-5)


def test_what_is_new_learns() -> None:
    """Zero at the end of each new branch, not in all of it: a gradient reaches it."""
    grown = grow(_random(SMALL).state_dict(), SMALL, replace(LARGE, guide_hidden=9))
    grown(torch.rand(1, 1, 48, 40), guide=torch.randn(1, 22))[0].square().mean().backward()
    for name in ("scales.0.b.levels.0.2.second.weight", "scales.1.kt.levels.0.0.second.weight", "tones.out.weight"):
        gradient = dict(grown.named_parameters())[name].grad
        assert gradient is not None and gradient.abs().max() > 0


def test_a_smaller_guide_keeps_the_features_of_most_weight() -> None:
    """And of one whose say is the same for every guide, that."""
    former = _random(SMALL)
    with torch.no_grad():
        former.tones.hidden.weight[2] = 0  # type: ignore[union-attr]
        former.tones.hidden.bias[2] = 0.5  # type: ignore[union-attr]
    fewer = replace(SMALL, guide_hidden=4)
    image, guide = torch.rand(1, 1, 48, 40), torch.randn(1, 22)
    with torch.no_grad():
        smaller = grow(former.state_dict(), SMALL, fewer)(image, guide=guide)[0]
        torch.testing.assert_close(smaller, former(image, guide=guide)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (replace(SMALL, alpha=3), "alpha 2 cannot become 3"),
        (replace(SMALL, stages=1), "stages 2 cannot become 1"),
        (replace(SMALL, guided=False), "without a guide"),
        (replace(SMALL, b_pairs=((1, 0), (0,))), "no fewer pairs"),
        (replace(SMALL, kt_pairs=((1, 1, 1), (0,))), "as many levels"),
    ],
)
def test_what_cannot_grow_is_refused(asked: MrbcrSettings, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        grow(_random(SMALL).state_dict(), SMALL, asked)


def test_training_begins_with_the_grown_network(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the command line: `--init` and a larger `network:`; features of the guide that go are named."""
    shape = {"alpha": 2, "stages": 1, "kt_pairs": [[1]], "b_pairs": [[1]], "guide_hidden": 5}
    larger = {**shape, "b_pairs": [[2]], "guide_hidden": 4}
    others = (("part", {"b_pairs": [[2]]}), ("other", {"alpha": 4}))
    for name, network in (("small", shape), ("large", larger), *others):
        (tmp_path / f"{name}.yaml").write_text(f"network: {json.dumps(network)}\n")
    pairs, brief = ("--pairs", stored / "p.zarr"), {"steps": 2, "every": 2}
    assert train(tmp_path / "first", "-c", tmp_path / "small.yaml", *pairs, **brief) == 0
    start = tmp_path / "first" / "last.safetensors"
    capsys.readouterr()
    assert train(tmp_path / "run", "-c", tmp_path / "large.yaml", *pairs, init=start, lr=1e-9, ema=0, **brief) == 0
    assert "1 of 5 guide features go" in capsys.readouterr().err
    grown, held = load_weights(str(tmp_path / "run" / "last.safetensors")), load_weights(str(start))
    assert MrbcrSettings.from_dict(grown.card.settings) == MrbcrSettings.from_dict(larger)
    shared = [key for key in held.state_dict if not key.startswith("tones.")]
    for key in shared:
        torch.testing.assert_close(grown.state_dict[key], held.state_dict[key], atol=1e-6, rtol=0)
    assert train(tmp_path / "part", "-c", tmp_path / "part.yaml", *pairs, init=start, **brief) == 0
    assert "features go" not in capsys.readouterr().err
    settings = load_weights(str(tmp_path / "part" / "last.safetensors")).card.settings
    assert MrbcrSettings.from_dict(settings) == MrbcrSettings.from_dict({**larger, "guide_hidden": 5})
    assert train(tmp_path / "other", "-c", tmp_path / "other.yaml", *pairs, init=start) == 2
    assert "alpha 2 cannot become 4" in capsys.readouterr().err
