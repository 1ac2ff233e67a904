"""The mean of weights, by the script of examples/training that made the embedded model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mrbcr_cli.errors import InputError
from mrbcr_cli.weights import load_weights
from tests.helpers import tiny_weights

SCRIPT = Path(__file__).parents[2] / "examples" / "training" / "average.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("average", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mean_of_weights_in_any_order(script: ModuleType, tmp_path: Path) -> None:
    files = [tiny_weights(tmp_path / f"{seed}.safetensors", seed, notes=f"run {seed}") for seed in range(3)]
    out, other = tmp_path / "mean.safetensors", tmp_path / "other.safetensors"
    assert script.main([str(out), *map(str, files)]) == 0
    assert script.main([str(other), *map(str, reversed(files))]) == 0
    mean, again = load_weights(out), load_weights(other)
    assert mean.card.notes == "mean of 3 weights: run 0; run 1; run 2" and mean.card.effective_halo_px is None
    states = [load_weights(file).state_dict for file in files]
    assert script.main([str(other), *map(str, (files[0], files[0], files[1]))]) == 0
    assert load_weights(other).card.notes == "mean of 3 weights: 2 times run 0; run 1"
    for key, value in mean.state_dict.items():
        assert torch.equal(value, again.state_dict[key])
        torch.testing.assert_close(value, sum(state[key] for state in states) / 3)


def test_networks_of_different_shapes_have_no_mean(script: ModuleType, tmp_path: Path) -> None:
    tiny = tiny_weights(tmp_path / "tiny.safetensors")
    with pytest.raises(InputError, match="different shapes"):
        script.main([str(tmp_path / "mean.safetensors"), "widefield", str(tiny)])
    assert not (tmp_path / "mean.safetensors").exists()
