"""Conversion of TensorFlow checkpoints: exact, and nothing is written for anything that is not one of the network."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mrbcr_cli.errors import InputError
from mrbcr_cli.network.published import Published
from mrbcr_cli.weights import build_network, load_weights
from mrbcr_cli.weights_convert import checkpoint_keys, convert_checkpoint, find_bundle, read_state

NAMES = ["mrbcr_biosr", "debcr_2d_denoising", "debcr_3d_denoising", "debcr_bright_sr", "debcr_confocal_sr"]


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(Published().state_dict())


class FakeReader:
    """A checkpoint in memory, in TensorFlow's layouts."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.arrays: dict[str, Any] = {"save_counter/.ATTRIBUTES/VARIABLE_VALUE": np.int64(3)}
        for role, key in checkpoint_keys().items():
            values = state[role].numpy()
            if role.endswith("weight"):
                values = values.transpose(2, 3, 1, 0)
                if role.startswith("kt.") or ".line." in role:
                    values = values[0]
                if role.startswith("kt."):
                    values = values[0]
            self.arrays[key] = values

    def get_variable_to_shape_map(self) -> dict[str, list[int]]:
        return {key: list(np.shape(values)) for key, values in self.arrays.items()}

    def get_tensor(self, key: str) -> Any:
        return self.arrays[key]


def test_roles_and_keys_are_one_to_one_and_complete(state: dict[str, Tensor]) -> None:
    keys = checkpoint_keys()
    assert keys.keys() == state.keys()
    assert len(set(keys.values())) == len(keys) == 296


def test_keys_are_those_of_the_authors_checkpoints(shared: Path) -> None:
    assert checkpoint_keys() == json.loads((shared / "published" / "checkpoint_keys.json").read_text())


def test_reading_a_checkpoint_inverts_the_layout(state: dict[str, Tensor]) -> None:
    read = read_state(FakeReader(state), Published(), "here")
    assert all(torch.equal(read[role], state[role]) for role in state)


def drop(reader: FakeReader, key: str) -> None:
    del reader.arrays[key]


def put(reader: FakeReader, key: str, values: Any) -> None:
    reader.arrays[key] = values


FIRST = checkpoint_keys()["kt.0.0.weight"]
READER_FAULTS: dict[str, tuple[Callable[[FakeReader], None], str]] = {
    "missing": (lambda r: drop(r, FIRST), "1 of its 296 parameters are missing"),
    "unknown": (lambda r: put(r, "model/dense/kernel/.ATTRIBUTES/VARIABLE_VALUE", np.zeros(3)), "1 are unknown"),
    "shape": (lambda r: put(r, FIRST, np.zeros((1, 31), np.float32)), r"kt\.0\.0\.weight"),
    "integers": (lambda r: put(r, FIRST, np.zeros((1, 32), np.int32)), "int32"),
    "NaN": (lambda r: put(r, FIRST, np.full((1, 32), np.nan, np.float32)), "NaN"),
}


@pytest.mark.parametrize(("change", "words"), READER_FAULTS.values(), ids=READER_FAULTS.keys())
def test_checkpoints_of_other_models_are_refused(
    state: dict[str, Tensor], change: Callable[[FakeReader], None], words: str
) -> None:
    reader = FakeReader(state)
    change(reader)
    with pytest.raises(InputError, match=words):
        read_state(reader, Published(), "here")


def test_optimizer_variables_do_not_matter(state: dict[str, Tensor]) -> None:
    reader = FakeReader(state)
    put(reader, FIRST.replace("/.ATT", "/.OPTIMIZER_SLOT/optimizer/m/.ATT"), np.zeros((1, 32)))
    put(reader, "optimizer/iter/.ATTRIBUTES/VARIABLE_VALUE", np.int64(9))
    assert read_state(reader, Published(), "here").keys() == state.keys()


def fake_bundle(folder: Path, *names: str, latest: str | None = None) -> None:
    for name in names:
        (folder / f"{name}.index").touch()
        (folder / f"{name}.data-00000-of-00001").touch()
    if latest is not None:
        (folder / "checkpoint").write_text(f'model_checkpoint_path: "{latest}"\nall_model_checkpoint_paths: "ckpt-1"\n')


def test_bundle_is_found_by_folder_prefix_or_file(tmp_path: Path) -> None:
    fake_bundle(tmp_path, "ckpt-best", latest="ckpt-46")  # as the authors distribute theirs: renamed
    for given_path in ("", "ckpt-best", "ckpt-best.index", "ckpt-best.data-00000-of-00001"):
        assert find_bundle(tmp_path / given_path) == tmp_path / "ckpt-best"


def test_of_several_bundles_the_latest_is_taken_or_a_name_asked_for(tmp_path: Path) -> None:
    fake_bundle(tmp_path, "ckpt-1", "ckpt-2", latest="/elsewhere/ckpt-1")
    assert find_bundle(tmp_path) == tmp_path / "ckpt-1"
    fake_bundle(tmp_path, latest="ckpt-9")
    with pytest.raises(InputError, match="several"):
        find_bundle(tmp_path)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no TensorFlow checkpoint"):
        find_bundle(tmp_path)
    with pytest.raises(InputError, match="no such"):
        find_bundle(tmp_path / "none")
    (tmp_path / "model.h5").touch()
    with pytest.raises(InputError, match="not a TensorFlow checkpoint"):
        find_bundle(tmp_path / "model.h5")
    (tmp_path / "ckpt.index").touch()
    (tmp_path / "ckpt.data-00000-of-00002").touch()
    with pytest.raises(InputError, match="data files are missing"):
        find_bundle(tmp_path)


def test_conversion_refuses_before_it_needs_tensorflow(tmp_path: Path) -> None:
    (tmp_path / "old.safetensors").write_bytes(b"mine")
    for output, words in (("old.safetensors", "exists"), ("x.pt", "end in"), ("none/x.safetensors", "no such folder")):
        with pytest.raises(InputError, match=words):
            convert_checkpoint(tmp_path, tmp_path / output, created="2026-01-31")
    assert (tmp_path / "old.safetensors").read_bytes() == b"mine"


def test_missing_tensorflow_is_said_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    fake_bundle(tmp_path, "ckpt-1")
    with pytest.raises(InputError, match=r"pip install 'mrbcr\[convert\]'"):
        convert_checkpoint(tmp_path, tmp_path / "x.safetensors", created="2026-01-31")


@pytest.fixture
def tensorflow_bundles(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The authors' checkpoints; the one place that decides whether TensorFlow is here."""
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    pytest.importorskip("tensorflow", reason="TensorFlow (the [convert] extra) is not installed")
    return shared / "published" / "tf"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_converted_weights_equal_the_published_ones(
    tensorflow_bundles: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrbcr_cli.network.halo.measure_effective_halo", lambda network: 112)
    output = tmp_path / "x.safetensors"
    card = convert_checkpoint(tensorflow_bundles / name, output, created="2026-01-31")
    loaded = load_weights(output)
    assert card == loaded.card
    assert (card.architecture, card.licence, card.effective_halo_px) == ("published", "unknown", 112)
    with np.load(tensorflow_bundles.parent / f"{name}.weights.npz") as expected:
        assert set(expected.files) == loaded.state_dict.keys()
        assert all(np.array_equal(loaded.state_dict[role].numpy(), expected[role]) for role in expected.files)
    assert isinstance(build_network(loaded), Published)


@pytest.mark.parametrize(("part", "size"), [("data-00000-of-00001", 500_000), ("index", 3000), ("index", 0)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_damaged_checkpoints_are_refused(tensorflow_bundles: Path, tmp_path: Path, part: str, size: int) -> None:
    for file in (tensorflow_bundles / "mrbcr_biosr").iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    damaged = tmp_path / f"ckpt-24.{part}"
    damaged.write_bytes(damaged.read_bytes()[:size])
    with pytest.raises(InputError, match="truncated or damaged"):
        convert_checkpoint(tmp_path, tmp_path / "x.safetensors", created="2026-01-31")
    assert not (tmp_path / "x.safetensors").exists()
