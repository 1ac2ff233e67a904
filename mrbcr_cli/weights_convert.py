"""Converts the authors' TensorFlow checkpoints of the published network to a weights file.

Invariant: either every one of the 296 parameters is found under its own key, with its own shape and finite, or nothing
is written; TensorFlow is imported only here, and only to read tensors.

The keys are those of `tf.train.Checkpoint(model=...)`: the authors' model holds K^T as layer 0 and B as layer 1, and
Keras numbers the layers that have weights in the order in which the authors' code first calls them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli import __version__
from mrbcr_cli.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from mrbcr_cli.network.published import Published
    from mrbcr_cli.weights import WeightsCard

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_KT_INTERLEAVED = ("2", "4", "0")
"""Order in which the authors call the three K^T chains, layer by layer."""


class CheckpointReader(Protocol):
    """What is used of TensorFlow's reader."""

    def get_variable_to_shape_map(self) -> dict[str, list[int]]: ...

    def get_tensor(self, key: str) -> NDArray[Any]: ...


def checkpoint_keys() -> dict[str, str]:
    """Return role -> key in the TensorFlow bundle for all 296 parameters of the published network."""
    keys: dict[str, str] = {}

    def put(role: str, layer: str) -> None:
        keys[f"{role}.weight"] = f"model/{layer}/kernel{_VALUE}"
        keys[f"{role}.bias"] = f"model/{layer}/bias{_VALUE}"

    def layer(stage: int, number: int, inner: int | None = None) -> str:
        path = f"layer_with_weights-{stage}/layer_with_weights-{number}"
        return path if inner is None else f"{path}/conv/layer_with_weights-{inner}"

    for i in range(12):
        for offset, scale in enumerate(_KT_INTERLEAVED):
            put(f"kt.{scale}.{i}", layer(0, 3 * i + offset))
    for stage, number, fusion in ((0, 36, "kt_fusion"), (1, 34, "b_fusion")):
        for i in range(2):
            put(f"{fusion}.{i}", layer(stage, number, i))
    for offset, scale in enumerate(("0", "2", "4")):
        put(f"kt_out.{scale}", layer(0, 37 + offset))
        put(f"b.{scale}.out", layer(1, 103 + offset))
    # b_fusion is first called between the quarter and the half scale, hence 34 and then 35.
    for scale, first in (("4", 0), ("2", 35), ("0", 69)):
        for i in range(6):
            put(f"b.{scale}.line.{i}", layer(1, first + i))
        for block in range(4):
            start = first + 6 + 7 * block
            for step in range(6):
                put(f"b.{scale}.dense.{block}.{step // 2}.{step % 2}", layer(1, start + step))
            put(f"b.{scale}.dense.{block}.out", layer(1, start + 6))
    return keys


def find_bundle(checkpoint: str | Path) -> Path:
    """Return the prefix of the bundle in a folder (or of a prefix or one of its files), all parts being there.

    A folder with several bundles means the one that its `checkpoint` file names. Raises InputError.
    """
    path = Path(checkpoint)
    named = re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", path.name)
    prefix = path.with_name(named) if path.name else path
    if path.is_dir():
        prefix = _prefix_in(path)
    elif not _index(prefix).is_file():
        if path.is_file():
            raise InputError(f"{path}: not a TensorFlow checkpoint (a NAME.index and a NAME.data-00000-of-00001 file)")
        raise InputError(f"{path}: no such checkpoint folder or bundle")
    shards = [f.name for f in prefix.parent.iterdir() if f.name.startswith(f"{prefix.name}.data-")]
    totals = {int(m[1]) for m in (re.search(r"-of-(\d{5})$", name) for name in shards) if m}
    if len(totals) != 1 or len(shards) != next(iter(totals)):
        raise InputError(f"{prefix}: data files are missing beside {_index(prefix).name}; copy the whole folder again")
    return prefix


def _index(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".index")


def _prefix_in(folder: Path) -> Path:
    names = sorted(f.name.removesuffix(".index") for f in folder.iterdir() if f.name.endswith(".index"))
    if not names:
        kind = "a SavedModel" if (folder / "saved_model.pb").is_file() else "no TensorFlow checkpoint"
        raise InputError(f"{folder}: {kind}; expected a folder with NAME.index and NAME.data-00000-of-00001")
    if len(names) == 1:
        return folder / names[0]  # whatever `checkpoint` says: the authors renamed theirs to ckpt-best
    state = folder / "checkpoint"
    text = state.read_text(encoding="utf-8", errors="replace") if state.is_file() else ""
    match = re.search(r'^model_checkpoint_path:\s*"([^"]*)"', text, flags=re.MULTILINE)
    latest = Path(match[1]).name if match else ""
    if latest not in names:
        raise InputError(f"{folder}: holds several checkpoints ({', '.join(names)}); name one: {folder / names[-1]}")
    return folder / latest


def read_state(reader: CheckpointReader, network: Published, where: str) -> dict[str, Tensor]:
    """Return the network's state (PyTorch layout, float32) from an open checkpoint.

    TensorFlow keeps kernels as (height, width, in, out), PyTorch as (out, in, height, width). Raises InputError when
    the checkpoint is of another model or holds weights that are not finite.
    """
    import torch

    shapes, keys = reader.get_variable_to_shape_map(), checkpoint_keys()
    missing = [key for key in keys.values() if key not in shapes]
    others = [key for key in shapes if _is_weight(key) and key not in set(keys.values())]
    if missing or others:
        example = f"it lacks {missing[0]}" if missing else f"it has also {others[0]}"
        raise InputError(
            f"{where}: not the published m-rBCR network: {len(missing)} of its {len(keys)} parameters are missing and "
            f"{len(others)} are unknown ({example})"
        )
    state: dict[str, Tensor] = {}
    for role, wanted in network.state_dict().items():
        values = np.asarray(reader.get_tensor(keys[role]))
        if role.endswith(".weight") and values.ndim <= 4:
            # Dense layers (in, out) and Conv1D along x (width, in, out) are the 1x1 and 1xN cases of Conv2D.
            values = values.reshape((1,) * (4 - values.ndim) + values.shape).transpose(3, 2, 0, 1)
        if values.shape != tuple(wanted.shape) or values.dtype.kind != "f":
            raise InputError(
                f"{where}: {keys[role]} is {values.dtype} of shape {values.shape}; as {role} of the published network "
                f"it would be float of shape {tuple(wanted.shape)}"
            )
        if not np.isfinite(values).all():
            raise InputError(f"{where}: {keys[role]} holds NaN or infinity; this training diverged")
        state[role] = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    return state


def _is_weight(key: str) -> bool:
    """Tell weights of the model from counters and the optimizer's own variables."""
    return key.startswith("model/") and key.endswith(_VALUE) and "/.OPTIMIZER_SLOT/" not in key


def convert_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    *,
    created: str,
    name: str | None = None,
    licence: str = "unknown",
    domain: str = "unknown",
    trained_on: str = "unknown",
    notes: str = "",
    overwrite: bool = False,
) -> WeightsCard:
    """Convert a TensorFlow bundle of the published network to a weights file; return its card.

    `created` is today's ISO date. The effective halo is measured, which takes about half a minute. Raises InputError
    when TensorFlow is not installed, for anything that is not a sound checkpoint of this network, and when `output`
    exists (unless `overwrite`) or cannot be written.
    """
    target = Path(output)
    if target.suffix.lower() != ".safetensors":
        raise InputError(f"{target}: weights files end in .safetensors")
    if target.exists() and not overwrite:
        raise InputError(f"{target}: exists; choose another name or use --overwrite")
    if not target.parent.is_dir():
        raise InputError(f"{target.parent}: no such folder to write the weights to")
    prefix = find_bundle(checkpoint)
    with _tensorflow_reader(prefix) as reader:
        from mrbcr_cli.network.halo import measure_effective_halo
        from mrbcr_cli.network.published import Published
        from mrbcr_cli.weights import WeightsCard, save_weights

        network = Published().eval()
        state = read_state(reader, network, str(prefix))
    network.load_state_dict(state, strict=True)
    try:
        halo_px = measure_effective_halo(network)
    except ValueError as error:
        raise InputError(f"{prefix}: {error}") from error
    card = WeightsCard(
        name=name or target.stem,
        architecture="published",
        settings=network.settings_dict,
        normalisation={"kind": "percentile", "low": 0.1, "high": 99.9},
        domain=domain,
        trained_on=trained_on,
        licence=licence,
        created_by=f"mrbcr {__version__}",
        created=created,
        effective_halo_px=halo_px,
        notes=notes or f"Converted from the TensorFlow checkpoint {prefix.name}",
    )
    save_weights(target, state, card)
    return card


@contextmanager
def _tensorflow_reader(prefix: Path) -> Iterator[CheckpointReader]:
    """Open a bundle; whatever TensorFlow raises while it is open becomes an InputError."""
    with _quiet_tensorflow():
        try:
            import tensorflow as tf
        except ImportError as error:
            raise InputError(
                f"reading TensorFlow checkpoints needs TensorFlow ({error}): pip install 'mrbcr[convert]'"
            ) from error
        # Damage shows as any of these: OpError (checksum), IndexError (short data file), ValueError, RuntimeError.
        try:
            yield tf.train.load_checkpoint(str(prefix))
        except (tf.errors.OpError, IndexError, ValueError, RuntimeError) as error:
            message = " ".join(str(error).split())
            raise InputError(
                f"{prefix}: TensorFlow cannot read it, it is truncated or damaged ({message[:160]})"
            ) from error


@contextmanager
def _quiet_tensorflow() -> Iterator[None]:
    """Silence the start-up chatter of TensorFlow's C++ half, and leave the environment as it was."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
    before = {key: os.environ.get(key) for key in quiet}
    os.environ.update(quiet)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
