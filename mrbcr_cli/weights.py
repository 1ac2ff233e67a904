"""Weights files: safetensors with a JSON card that says what the numbers are and how to feed them.

Invariant: a file is read whole once, and its SHA-256, its card and its tensors all come from those same bytes; nothing
in it is ever run. Whatever is wrong with a file is an InputError that names the file, before any pixel is touched.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mrbcr_cli.domain import wrong_limits
from mrbcr_cli.errors import InputError
from mrbcr_cli.weights_package import PACKAGE_SUFFIX, read_packaged
from mrbcr_cli.whole_file import replacing

if TYPE_CHECKING:
    from torch import Tensor

    from mrbcr_cli.network.mrbcr import Mrbcr
    from mrbcr_cli.network.published import Published

CARD_KEY = "mrbcr"
FORMAT_VERSION = 1
SUFFIX = ".safetensors"
MAX_FILE_BYTES = 256 * 2**20
"""The networks have about a megabyte of weights; a file far beyond that is a mistake or an attack on memory."""

_RUNS_CODE = "it may hold a Python pickle, which can run code when opened"
_OTHER_SUFFIXES = {
    **dict.fromkeys((".pt", ".pth", ".pkl", ".pickle", ".bin", ".joblib"), _RUNS_CODE),
    ".ckpt": "it may be a pickle, which can run code when opened, or a TensorFlow checkpoint",
    **dict.fromkeys((".h5", ".hdf5", ".keras", ".pb", ".index", ".tflite"), "it belongs to TensorFlow or Keras"),
    **dict.fromkeys((".npz", ".npy", ".onnx"), "it has no weights card"),
}
_OTHER_MAGIC = {
    b"PK\x03\x04": "it is a zip archive, as torch.save writes: " + _RUNS_CODE,
    b"\x80\x02": "it is a Python pickle, which can run code when opened",
    b"\x80\x04": "it is a Python pickle, which can run code when opened",
    b"\x89HDF": "it is an HDF5 file",
}
_CONVERT_HINT = (
    "mrbcr reads safetensors; save the state with mrbcr_cli.weights.save_weights, "
    "or run `mrbcr weights convert` on a TensorFlow checkpoint"
)


@dataclass(frozen=True)
class WeightsCard:
    """What a weights file says of itself; kept as JSON under the key "mrbcr" of the safetensors metadata."""

    # Read by pydantic in `from_json`: JSON types are taken literally, and a field that is not ours is an error.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    name: str
    architecture: Literal["mrbcr", "published"]
    settings: dict[str, Any]
    """Constructor settings of the network, as its `settings_dict` gives them."""
    normalisation: dict[str, Any]
    """How inputs become about [0, 1]: {"kind": "percentile", "low": 0.1, "high": 99.9} of the whole channel."""
    domain: str
    """What images it is for, in words."""
    trained_on: str
    licence: str
    created_by: str
    """Program and version, for example "mrbcr 0.1.0"."""
    created: str
    """ISO date or date and time."""
    effective_halo_px: int | None = None
    """Context beyond which the output moves by less than 1e-6 of its range; None where nobody measured."""
    notes: str = ""
    limits: dict[str, Any] | None = None
    """The domain in numbers, {"fwhm_px": [2, 6], "photons": [20, 5000]}; see `domain.check_domain`. None: unchecked."""
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Return the card as JSON with sorted keys: equal cards give equal text. Raises InputError as `from_json`."""
        try:
            # Cards without limits stay what they were before there were any, byte for byte.
            values = {key: value for key, value in asdict(self).items() if key != "limits" or value is not None}
            text = json.dumps(values, sort_keys=True, ensure_ascii=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"the weights card of {self.name!r} cannot be written as JSON: {error}") from error
        WeightsCard.from_json(text, "the weights card to be saved")
        return text

    @classmethod
    def from_json(cls, text: str, where: str) -> WeightsCard:
        """Parse and check a card; `where` names its source in errors. Raises InputError for anything else."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: the weights card is not JSON ({error})") from error
        if not isinstance(values, dict):
            raise InputError(f"{where}: the weights card must be a JSON object")
        version = values.get("format_version")
        if type(version) is int and version > FORMAT_VERSION:
            raise InputError(
                f"{where}: the weights card is of format {version}; update mrbcr (it knows {FORMAT_VERSION})"
            )
        card = _validated(values, where)
        _check_values(card, where)
        return card


def _validated(values: dict[str, Any], where: str) -> WeightsCard:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(WeightsCard).validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "card"
        raise InputError(f"{where}: the weights card is wrong at {field!r}: {first['msg']}") from error


def _check_values(card: WeightsCard, where: str) -> None:
    """Check what types alone do not say. Raises InputError."""
    if card.format_version < 1:
        raise InputError(f"{where}: the weights card has format_version {card.format_version}; it starts at 1")
    if card.effective_halo_px is not None and not 0 <= card.effective_halo_px <= 4096:
        raise InputError(f"{where}: effective_halo_px must be 0 to 4096, not {card.effective_halo_px}")
    try:
        datetime.fromisoformat(card.created)
    except ValueError as error:
        raise InputError(f"{where}: created must be an ISO date, not {card.created!r}") from error
    kind, low, high = (card.normalisation.get(key) for key in ("kind", "low", "high"))
    if kind != "percentile":
        raise InputError(f"{where}: the normalisation must be of kind 'percentile', not {kind!r}; update mrbcr")
    numbers = [v for v in (low, high) if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) != 2 or not 0 <= numbers[0] < numbers[1] <= 100:
        raise InputError(f"{where}: normalisation percentiles must satisfy 0 <= low < high <= 100, not {low}, {high}")
    if (wrong := wrong_limits(card.limits or {})) is not None:
        raise InputError(f"{where}: limits: {wrong}")


@dataclass(frozen=True)
class WeightsFile:
    """The bytes of a weights file, identified; tensors not yet decoded."""

    path: str
    card: WeightsCard
    sha256: str
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)


@dataclass(frozen=True)
class LoadedWeights:
    """A decoded weights file. `size` in bytes; `sha256` (hex) is of the file's bytes."""

    card: WeightsCard
    state_dict: dict[str, Tensor]
    sha256: str
    path: str
    size: int


def embedded_folder() -> Traversable:
    """Where the package keeps its own models."""
    return files("mrbcr_cli").joinpath("models")


def list_weights() -> tuple[str, ...]:
    """Names of the embedded models, sorted."""
    folder = embedded_folder()
    if not folder.is_dir():
        return ()
    return tuple(sorted(f.name.removesuffix(SUFFIX) for f in folder.iterdir() if f.name.endswith(SUFFIX)))


def read_weights(name_or_path: str | Path) -> WeightsFile:
    """Read an embedded model (by name), a file or a package of `mrbcr export` (by path) and its card, without torch.

    Raises InputError when it is missing, too large, of another format, truncated or without a valid card.
    """
    path, data = _read_bytes(str(name_or_path))
    metadata = _metadata(data, path)
    if CARD_KEY not in metadata:
        raise InputError(f"{path}: no weights card: this safetensors file was not written by mrbcr")
    card = WeightsCard.from_json(metadata[CARD_KEY], path)
    return WeightsFile(path=path, card=card, sha256=hashlib.sha256(data).hexdigest(), data=data)


def load_weights(name_or_path: str | Path) -> LoadedWeights:
    """Read an embedded model (by name) or a safetensors file (by path). Raises InputError as `read_weights` does."""
    import torch

    file = read_weights(name_or_path)
    state: dict[str, Tensor] = {}
    for key, (dtype, shape, data) in sorted(_tensors(file).items()):
        if dtype not in ("F32", "F16", "BF16", "F64"):
            raise InputError(f"{file.path}: {key!r} is stored as {dtype}; weights must be floating point")
        kind = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}[dtype]
        state[key] = torch.frombuffer(data, dtype=kind).reshape(shape) if data else torch.empty(shape, dtype=kind)
    return LoadedWeights(card=file.card, state_dict=state, sha256=file.sha256, path=file.path, size=file.size)


def _tensors(file: WeightsFile) -> dict[str, tuple[str, list[int], bytearray]]:
    """Return (dtype, shape, bytes) of each tensor, as a bytearray since torch wants memory that it may write to."""
    return {key: (view["dtype"], view["shape"], bytearray(view["data"])) for key, view in _views(file.data, file.path)}


def _views(data: bytes, path: str) -> list[tuple[str, dict[str, Any]]]:
    import safetensors

    deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize
    try:
        return deserialize(data)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file, or truncated or damaged ({error})") from error


def _read_bytes(name_or_path: str) -> tuple[str, bytes]:
    """Return (where it lies, the whole file); a bare word is an embedded model first."""
    names = list_weights()
    if name_or_path in names:
        file = embedded_folder().joinpath(name_or_path + SUFFIX)
        return str(file), file.read_bytes()
    path = Path(name_or_path)
    reason = _OTHER_SUFFIXES.get(path.suffix.lower())
    if reason is not None:
        raise InputError(f"{path}: refused, {reason}; {_CONVERT_HINT}")
    if not _exists(path):
        if path.suffix or len(path.parts) > 1:
            raise InputError(f"{path}: no such weights file")
        known = ", ".join(names) or "none in this installation"
        raise InputError(f"no model named {name_or_path!r}; embedded models: {known}; for a file give its path")
    if path.is_dir():
        raise InputError(f"{path} is a folder; if it is a TensorFlow checkpoint, run `mrbcr weights convert` on it")
    if not path.is_file():
        raise InputError(f"{path}: not a regular file")
    if path.suffix.lower() == PACKAGE_SUFFIX:
        return str(path), read_packaged(path, MAX_FILE_BYTES)
    return str(path), _read_limited(path)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a name too long, a parent that may not be read
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_limited(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"{path}: larger than {MAX_FILE_BYTES // 2**20} MiB, which no mrbcr network needs")
    for magic, reason in _OTHER_MAGIC.items():
        if data.startswith(magic):
            raise InputError(f"{path}: refused, {reason}; {_CONVERT_HINT}")
    return data


def _metadata(data: bytes, path: str) -> dict[str, str]:
    """Return the text metadata of a safetensors file, after the library has checked the whole layout.

    Format: 8 bytes little-endian header length, JSON header, tensor data (github.com/huggingface/safetensors).
    """
    _views(data, path)
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
    return {str(key): str(value) for key, value in metadata.items()}


def save_weights(path: str | Path, state_dict: Mapping[str, Tensor], card: WeightsCard) -> str:
    """Write the state and its card, replacing `path` atomically; return the SHA-256 (hex) of the file.

    Equal states and cards give equal bytes. Raises InputError when the card is not valid, a weight is not finite or the
    file cannot be written.
    """
    from safetensors.torch import save

    target = Path(path)
    if target.suffix.lower() != SUFFIX:
        raise InputError(f"{target}: weights files end in {SUFFIX}")
    tensors = {key: state_dict[key].detach().cpu().contiguous().clone() for key in sorted(state_dict)}
    _check_finite(tensors, str(target))
    data = save(tensors, metadata={CARD_KEY: card.to_json()})
    try:
        with replacing(target) as file:
            file.write(data)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror or error})") from error
    return hashlib.sha256(data).hexdigest()


def build_network(loaded: LoadedWeights) -> Published | Mrbcr:
    """Return the network of the card with the weights in it, in eval mode, float32, on the CPU.

    Raises InputError for settings that the network does not take, keys that are missing, unexpected or misshapen, and
    weights that are not finite.
    """
    import torch

    with torch.device("meta"):  # shapes without memory: a card may ask for gigabytes that its file does not hold
        expected = _empty_network(loaded.card, loaded.path).state_dict()
    state = loaded.state_dict
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unexpected:
        words = [f"{what} {_some(keys)}" for what, keys in (("lacks", missing), ("has also", unexpected)) if keys]
        raise InputError(
            f"{loaded.path}: not the weights of the {loaded.card.architecture!r} network that its card names: "
            + ", ".join(words)
        )
    for key, tensor in expected.items():
        if tensor.shape != state[key].shape:
            raise InputError(
                f"{loaded.path}: {key!r} has shape {tuple(state[key].shape)}, "
                f"the {loaded.card.architecture!r} network needs {tuple(tensor.shape)}"
            )
    _check_finite(state, loaded.path)
    network = _empty_network(loaded.card, loaded.path)
    network.load_state_dict(dict(state), strict=True)
    return network.eval()


def _empty_network(card: WeightsCard, where: str) -> Published | Mrbcr:
    if card.architecture == "published":
        from mrbcr_cli.network.published import Published

        if card.settings:
            raise InputError(
                f"{where}: the published network has no settings, but the card gives {_some(card.settings)}"
            )
        return Published()
    from mrbcr_cli.network.mrbcr import Mrbcr, MrbcrSettings

    try:
        # Cards written before there were guided networks do not say that theirs is none.
        return Mrbcr(MrbcrSettings.from_dict({"guided": False, **card.settings}))
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: the card's network settings are wrong: {error}") from error


def _some(keys: Mapping[str, Any] | list[str]) -> str:
    listed = list(keys)
    return ", ".join(repr(key) for key in listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def _check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    for key, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{where}: {key!r} holds NaN or infinity; the training diverged or the file is damaged")


def weights_table() -> list[dict[str, Any]]:
    """One row per embedded model, for `mrbcr weights list`: name, architecture, domain, licence, size, sha256."""
    rows = []
    for name in list_weights():
        file = read_weights(name)
        card = file.card
        row = {"name": name, "architecture": card.architecture, "domain": card.domain, "licence": card.licence}
        rows.append({**row, "size_bytes": file.size, "sha256": file.sha256})
    return rows


def describe_weights(name_or_path: str | Path) -> dict[str, Any]:
    """The card and path, SHA-256, size in bytes and number of parameters, for `mrbcr weights show`; JSON-able."""
    file = read_weights(name_or_path)
    return {
        "path": file.path,
        "sha256": file.sha256,
        "size_bytes": file.size,
        "parameters": sum(math.prod(shape) for _, shape, _ in _tensors(file).values()),
        "card": asdict(file.card),
    }
