"""Weights files: what is written comes back bit for bit, what is damaged or foreign is refused in words."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mrbcr_cli import weights
from mrbcr_cli.errors import InputError
from mrbcr_cli.network.halo import measure_effective_halo
from mrbcr_cli.network.mrbcr import Mrbcr
from mrbcr_cli.network.published import Published
from mrbcr_cli.weights import WeightsCard, build_network, describe_weights, load_weights, save_weights, weights_table

CARD = WeightsCard(
    name="test",
    architecture="published",
    settings={},
    normalisation={"kind": "percentile", "low": 0.1, "high": 99.9},
    domain="tests",
    trained_on="nothing",
    licence="MIT",
    created_by="mrbcr test",
    created="2026-01-31",
    effective_halo_px=96,
)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(Published().state_dict())


@pytest.fixture
def saved(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    path = tmp_path / "w.safetensors"
    save_weights(path, state, CARD)
    return path


# --- round trips ---------------------------------------------------------------------------------------------------


def test_saved_weights_come_back_bit_for_bit(saved: Path, state: dict[str, Tensor]) -> None:
    loaded = load_weights(saved)
    assert loaded.card == CARD
    assert loaded.size == saved.stat().st_size
    assert loaded.state_dict.keys() == state.keys()
    assert all(torch.equal(loaded.state_dict[key], state[key]) for key in state)


def test_built_network_computes_what_the_saved_one_did(saved: Path, state: dict[str, Tensor]) -> None:
    original = Published().eval()
    original.load_state_dict(state)
    rebuilt = build_network(load_weights(saved))
    image = torch.rand(1, 1, 24, 20)
    with torch.inference_mode():
        assert torch.equal(rebuilt(image)[0], original(image)[0])
    assert not rebuilt.training


def test_mrbcr_network_is_rebuilt_from_its_own_settings(tmp_path: Path) -> None:
    network = Mrbcr()
    path = tmp_path / "m.safetensors"
    save_weights(path, network.state_dict(), replace(CARD, architecture="mrbcr", settings=network.settings_dict))
    rebuilt = build_network(load_weights(path))
    assert isinstance(rebuilt, Mrbcr)
    assert rebuilt.settings == network.settings
    assert all(torch.equal(a, b) for a, b in zip(rebuilt.parameters(), network.parameters(), strict=True))


def test_bytes_do_not_depend_on_the_order_of_keys(tmp_path: Path, state: dict[str, Tensor]) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    sha_a = save_weights(a, state, CARD)
    sha_b = save_weights(b, dict(reversed(state.items())), CARD)
    assert a.read_bytes() == b.read_bytes()
    assert sha_a == sha_b == load_weights(a).sha256 == load_weights(b).sha256


def test_sha256_follows_the_card_and_the_weights(tmp_path: Path, state: dict[str, Tensor]) -> None:
    nudged = {**state, "b.0.out.bias": state["b.0.out.bias"] + 1e-3}
    path = tmp_path / "a.safetensors"
    shas = {
        save_weights(path, state, CARD),
        save_weights(path, state, replace(CARD, notes="x")),
        save_weights(path, nudged, CARD),
    }
    assert len(shas) == 3


@given(text=st.text(max_size=40), halo=st.one_of(st.none(), st.integers(0, 4096)))
@settings(max_examples=30, deadline=None)
def test_card_survives_json(text: str, halo: int | None) -> None:
    card = replace(CARD, name=text, notes=text, effective_halo_px=halo)
    assert WeightsCard.from_json(card.to_json(), "here") == card


def test_save_leaves_the_old_file_when_it_fails(saved: Path, state: dict[str, Tensor]) -> None:
    before = saved.read_bytes()
    with pytest.raises(InputError, match="NaN"):
        save_weights(saved, {**state, "kt_out.0.bias": torch.tensor([float("nan")])}, CARD)
    with pytest.raises(InputError, match="percentiles"):
        save_weights(saved, state, replace(CARD, normalisation={"kind": "percentile", "low": 99, "high": 1}))
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_saving_into_a_missing_folder_is_an_input_error(tmp_path: Path, state: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        save_weights(tmp_path / "none" / "w.safetensors", state, CARD)


# --- names and listings --------------------------------------------------------------------------------------------


@pytest.fixture
def embedded(tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    save_weights(folder / "widefield.safetensors", state, CARD)
    monkeypatch.setattr(weights, "embedded_folder", lambda: folder)
    return folder


def test_name_and_path_give_the_same_weights(embedded: Path) -> None:
    assert load_weights("widefield").sha256 == load_weights(embedded / "widefield.safetensors").sha256


def test_unknown_name_lists_the_embedded_ones(embedded: Path) -> None:
    with pytest.raises(InputError, match=r"'confocal'.*widefield"):
        load_weights("confocal")


def test_table_and_description_agree(embedded: Path) -> None:
    (row,) = weights_table()
    described = describe_weights("widefield")
    assert row["sha256"] == described["sha256"]
    assert row["size_bytes"] == described["size_bytes"]
    assert described["parameters"] == 236_630
    assert json.loads(json.dumps(described))["card"]["effective_halo_px"] == 96


def test_embedded_models_of_this_package_are_sound() -> None:
    for name in weights.list_weights():
        network = build_network(load_weights(name))
        halo = load_weights(name).card.effective_halo_px
        assert halo is not None
        assert halo % network.alignment_px == 0


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".PTH", ".pkl", ".ckpt"])
def test_pickles_are_refused_by_name_with_the_reason(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(b"")
    with pytest.raises(InputError, match="run code"):
        load_weights(path)


def test_renamed_pickle_is_refused_by_content(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="run code"):
        load_weights(path)


def with_header(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
MALFORMED = {
    "empty": b"",
    "seven bytes": b"1234567",
    "text": b"these are not weights at all, but they are long enough",
    "huge header": struct.pack("<Q", 2**62) + b"{}",
    "header not JSON": with_header(b"{not json"),
    "lying offsets": with_header({"a": {**TENSOR, "data_offsets": [0, 4000]}}, b"1234"),
    "lying shape": with_header({"a": {**TENSOR, "shape": [2**40]}}, b"1234"),
    "overlap": with_header({"a": TENSOR, "b": TENSOR}, b"1234"),
    "unknown dtype": with_header({"a": {**TENSOR, "dtype": "F12"}}, b"1234"),
    "no card": with_header({"a": TENSOR}, b"1234"),
    "other metadata": with_header({"__metadata__": {"format": "pt"}, "a": TENSOR}, b"1234"),
    "card not JSON": with_header({"__metadata__": {"mrbcr": "{"}, "a": TENSOR}, b"1234"),
    "card a list": with_header({"__metadata__": {"mrbcr": "[]"}, "a": TENSOR}, b"1234"),
    "card too deep": with_header({"__metadata__": {"mrbcr": "[" * 100_000}, "a": TENSOR}, b"1234"),
    "integers": with_header({"__metadata__": {"mrbcr": CARD.to_json()}, "a": {**TENSOR, "dtype": "I32"}}, b"1234"),
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_files_are_refused_by_path(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"w\.safetensors"):
        load_weights(path)


@pytest.mark.parametrize("kept", [7, 9, 1000, 30_000, 0.5, -1])
def test_truncated_files_are_refused(saved: Path, kept: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match="truncated"):
        load_weights(saved)


@given(at=st.integers(0, 40_000), value=st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_a_changed_byte_is_refused_or_changes_the_sha(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int
) -> None:
    path = tmp_path_factory.mktemp("w") / "w.safetensors"
    sha = save_weights(path, {"a": torch.zeros(9000)}, CARD)
    data = bytearray(path.read_bytes())
    at %= len(data)
    unchanged = data[at] == value
    data[at] = value
    path.write_bytes(bytes(data))
    try:
        loaded = load_weights(path)
    except InputError:
        assert not unchanged
        return
    assert (loaded.sha256 == sha) == unchanged


def test_oversized_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    with path.open("wb") as stream:
        stream.truncate(weights.MAX_FILE_BYTES + 1)  # sparse
    with pytest.raises(InputError, match="larger than 256 MiB"):
        load_weights(path)


def test_missing_folder_and_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name, words in (("none.safetensors", "no such"), ("", "folder"), ("pipe.safetensors", "regular")):
        with pytest.raises(InputError, match=words):
            load_weights(tmp_path / name)


CARD_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"architecture": "unet"}, "architecture"),
    "future": ({"format_version": 99}, "update mrbcr"),
    "version zero": ({"format_version": 0}, "format_version"),
    "unknown field": ({"colour": "red"}, "colour"),
    "text for a number": ({"effective_halo_px": "96"}, "effective_halo_px"),
    "negative halo": ({"effective_halo_px": -8}, "effective_halo_px"),
    "no name": ({"name": None}, "name"),
    "settings a list": ({"settings": []}, "settings"),
    "kind": ({"normalisation": {"kind": "minmax"}}, "minmax"),
    "percentiles": ({"normalisation": {"kind": "percentile", "low": "a", "high": 3}}, "percentiles"),
    "date": ({"created": "yesterday"}, "ISO date"),
}


@pytest.mark.parametrize(("change", "words"), CARD_FAULTS.values(), ids=CARD_FAULTS.keys())
def test_wrong_cards_are_refused_naming_the_field(change: dict[str, Any], words: str) -> None:
    values = {**json.loads(CARD.to_json()), **change}
    with pytest.raises(InputError, match=words):
        WeightsCard.from_json(json.dumps(values), "here")


def test_card_without_a_required_field_is_refused() -> None:
    values = json.loads(CARD.to_json())
    del values["licence"]
    with pytest.raises(InputError, match="licence"):
        WeightsCard.from_json(json.dumps(values), "here")


def without(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k != key}


STATE_FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "missing": (lambda s: without(s, "kt.0.3.bias"), r"lacks 'kt\.0\.3\.bias'"),
    "unexpected": (lambda s: {**s, "extra": torch.zeros(1)}, "has also 'extra'"),
    "misshapen": (lambda s: {**s, "kt_out.0.bias": torch.zeros(2)}, r"shape \(2,\)"),
    "another network": (lambda s: dict(Mrbcr().state_dict()), "not the weights of the 'published'"),
}


@pytest.mark.parametrize(("change", "words"), STATE_FAULTS.values(), ids=STATE_FAULTS.keys())
def test_states_that_do_not_fit_are_refused(
    tmp_path: Path, state: dict[str, Tensor], change: Callable[[dict[str, Tensor]], dict[str, Tensor]], words: str
) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, change(state), CARD)
    with pytest.raises(InputError, match=words):
        build_network(load_weights(path))


def test_nan_in_a_file_is_refused(saved: Path) -> None:
    loaded = load_weights(saved)
    loaded.state_dict["b.2.out.bias"][0] = float("nan")
    with pytest.raises(InputError, match=r"'b\.2\.out\.bias'"):
        build_network(loaded)


@pytest.mark.parametrize(
    ("architecture", "bad"), [("published", {"alpha": 8}), ("mrbcr", {"stages": 7}), ("mrbcr", {"depth": 1})]
)
def test_settings_that_the_network_does_not_take_are_refused(
    tmp_path: Path, state: dict[str, Tensor], architecture: Any, bad: dict[str, Any]
) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, state, replace(CARD, architecture=architecture, settings=bad))
    with pytest.raises(InputError, match="settings"):
        build_network(load_weights(path))


# --- effective halo ------------------------------------------------------------------------------------------------


class Box(nn.Module):
    """A running mean along x: reaches exactly `reach` px."""

    architecture = "published"

    def __init__(self, reach: int, formal: int) -> None:
        super().__init__()
        self.reach, self.receptive_radius_px, self.alignment_px, self.default_halo_px = reach, formal, 4, 0

    @property
    def settings_dict(self) -> dict[str, Any]:
        return {}

    def forward(self, image_nchw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        width = 2 * self.reach + 1
        y = torch.nn.functional.conv2d(
            image_nchw, torch.full((1, 1, 1, width), 1 / width, dtype=image_nchw.dtype), padding=(0, self.reach)
        )
        return y, y, y


@pytest.mark.parametrize(
    ("reach", "formal", "halo"), [(0, 200, 16), (16, 200, 16), (17, 200, 24), (41, 43, 44), (110, 300, 112)]
)
def test_effective_halo_is_the_smallest_that_suffices(reach: int, formal: int, halo: int) -> None:
    assert measure_effective_halo(Box(reach, formal)) == halo


def test_effective_halo_respects_the_alignment() -> None:
    network = Box(17, 200)
    network.alignment_px = 32
    assert measure_effective_halo(network) == 32


def test_effective_halo_of_a_broken_network_is_an_error() -> None:
    class Broken(Box):
        def forward(self, image_nchw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return (image_nchw / 0,) * 3

    with pytest.raises(ValueError, match="not finite"):
        measure_effective_halo(Broken(1, 100))
