"""Pairs that lie ready: Zarr groups of `simulate pairs`, folders of TIFFs, an NPZ; read, checked and split.

Invariant: what is held out is held out as whole images (Zarr: as the simulation split its sources), and pixels are
checked before training begins: finite, of one shape in a pair, input and target not the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.numpy_files import read_numpy
from mrbcr_cli.train.batches import PairSet

Array = NDArray[Any]
_BYTES_PER_PIXEL = 6
"""Of a pair in memory: counts and target."""
_LOW, _HIGH = ("low", "input"), ("gt", "target")
"""Names of the arrays of an NPZ."""
_LOOKED_AT = 16
"""Pairs whose units are compared."""
_MOST_OF_WIDTH, _MOST_OF_SHIFT = 20.0, 2.0
"""Of the range of the recorded image: what sharpening makes of it in the domain of the models is a tenth of these."""


def read_zarr_pairs(paths: Sequence[Path], validation_limit: int) -> tuple[PairSet, PairSet]:
    """Train and validation splits of pairs Zarrs, all together.

    Raises InputError for a path that holds none, and for a source that one group trains on and another holds out.
    """
    from mrbcr_cli.images.pairs_store import read_info, read_pairs

    train: list[PairSet] = []
    validation: list[PairSet] = []
    used: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
    infos = [read_info(path) for path in paths]
    _check_memory(sum(info.count * info.patch_px**2 * _BYTES_PER_PIXEL for info in infos))
    for path, info in zip(paths, infos, strict=True):
        for split, (first, stop) in info.splits.items():
            if stop <= first:
                continue
            blurred, sharp, records = read_pairs(path, first, stop)
            for record in records:
                used[split].update(str(piece["source"]) for piece in record["origin"].get("pieces", ()))
            if split != "test":
                names = tuple(f"{path.name} {record['index']}" for record in records)
                (train if split == "train" else validation).append(PairSet(tuple(blurred), tuple(sharp), names))
    shared = sorted(used["train"] & (used["validation"] | used["test"]))
    if shared:
        raise InputError(
            f"{shared[0]}: is a source of both training and held-out pairs of {', '.join(p.name for p in paths)}; "
            "simulate them with one split"
        )
    joined = _checked(_join(train), ", ".join(map(str, paths)))
    return joined, _thinned(_join(validation), validation_limit)


def read_folder_pairs(input_dir: Path, target_dir: Path, share: float, limit: int) -> tuple[PairSet, PairSet]:
    """Images of two folders with equal names, plane by plane; a share of the files is held out, by name.

    Raises InputError for empty folders, names without a partner, shapes that differ, NaN.
    """
    inputs, targets = (_images_in(folder) for folder in (input_dir, target_dir))
    alone = sorted(inputs.keys() ^ targets.keys())
    if alone:
        folder = target_dir if alone[0] in inputs else input_dir
        raise InputError(f"{folder}: has no {alone[0]}, which the other folder has; names must be equal")
    names = sorted(inputs)
    _refuse_twins({name: targets[name] for name in names})
    held_out = _held_out(names, share)
    kept: dict[bool, list[PairSet]] = {False: [], True: []}
    for name in names:
        kept[name in held_out].append(_read_pair(name, inputs[name], targets[name]))
    train = _checked(_join(kept[False]), f"{input_dir} and {target_dir}")
    return train, _thinned(_join(kept[True]), limit)


def read_npz_pairs(path: Path, share: float, limit: int) -> tuple[PairSet, PairSet]:
    """Arrays `low` and `gt` (n, y, x) or (n, y, x, 1) of an NPZ, as `simulate pairs --npz` and DeBCR write them.

    A `validation/` or `val/` NPZ beside `train/` is not looked for: the last share of the pairs is held out.
    """
    found = read_numpy(path, only=(*_LOW, *_HIGH))
    if isinstance(found, np.ndarray):
        raise InputError(f"{path}: holds one array without a name; save low and gt with numpy.savez")
    low, high = (next((found[n] for n in names if n in found), None) for names in (_LOW, _HIGH))
    if low is None or high is None:
        raise InputError(f"{path}: needs the arrays 'low' (recorded) and 'gt' (truth)")
    low, high = (a[..., 0] if a.ndim == 4 and a.shape[-1] == 1 else a for a in (low, high))
    if low.shape != high.shape or low.ndim != 3 or not len(low):
        raise InputError(f"{path}: low and gt must be (n, y, x) of one shape, not {low.shape} and {high.shape}")
    names = tuple(f"{path.name} {k}" for k in range(len(low)))
    count = min(len(low) - 1, max(1, round(share * len(low)))) if share > 0 else 0
    cut = len(low) - count
    train = PairSet(tuple(low[:cut]), tuple(high[:cut]), names[:cut])
    validation = PairSet(tuple(low[cut:]), tuple(high[cut:]), names[cut:])
    if count:
        _checked(validation, str(path))
    return _checked(train, str(path)), _thinned(validation, limit)


def _check_memory(needed: int) -> None:
    """Pairs are held in memory. Raises InputError where they do not fit."""
    from mrbcr_cli.capacity import available_memory_bytes
    from mrbcr_cli.console import bytes_text

    free = available_memory_bytes()
    if needed > 0.7 * free:
        raise InputError(
            f"the pairs take {bytes_text(needed)} of memory, of which {bytes_text(free)} is free; train on fewer, or "
            "with --simulate"
        )


def _images_in(folder: Path) -> dict[str, Path]:
    from mrbcr_cli.images import TIFF_SUFFIXES

    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder")
    found = [
        p
        for p in sorted(folder.iterdir())
        if p.name.lower().endswith((*TIFF_SUFFIXES, ".zarr")) and not p.name.startswith(".")
    ]
    if not found:
        raise InputError(f"{folder}: holds no TIFF or OME-Zarr images")
    return {p.name: p for p in found}


def _refuse_twins(paths: dict[str, Path]) -> None:
    """The same image under two names could be trained on and held out at once."""
    seen: dict[str, str] = {}
    for name, path in paths.items():
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if digest in seen:
                raise InputError(f"{path}: is the same image as {seen[digest]}; one could be held out from the other")
            seen[digest] = name


def _held_out(names: Sequence[str], share: float) -> set[str]:
    if share <= 0 or len(names) < 2:
        return set()
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(order[: min(len(names) - 1, max(1, round(share * len(names))))])


def _read_pair(name: str, recorded: Path, target: Path) -> PairSet:
    from mrbcr_cli.images import find_source, open_source

    stacks = []
    for path in (recorded, target):
        reader = open_source(find_source(str(path)))
        try:
            info = reader.info
            pixels = reader.read(tuple(slice(0, n) for n in info.shape))
        finally:
            reader.close()
        stacks.append(np.asarray(pixels))
    low, high = stacks
    if low.shape != high.shape:
        raise InputError(f"{recorded}: has the shape {low.shape}, its target {target} {high.shape}; they must be equal")
    low, high = (stack.reshape(-1, *stack.shape[-2:]) for stack in stacks)
    return PairSet(tuple(low), tuple(high), tuple(f"{name} {k}" for k in range(len(low))))


def _join(parts: Sequence[PairSet]) -> PairSet:
    return PairSet(
        tuple(image for part in parts for image in part.recorded),
        tuple(image for part in parts for image in part.target),
        tuple(name for part in parts for name in part.names),
    )


def _thinned(pairs: PairSet, limit: int) -> PairSet:
    """At most `limit` pairs, evenly over the set."""
    count = len(pairs.names)
    chosen = np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(int)).tolist() if count else []
    return PairSet(
        tuple(pairs.recorded[k] for k in chosen),
        tuple(pairs.target[k] for k in chosen),
        tuple(pairs.names[k] for k in chosen),
    )


def _checked(pairs: PairSet, where: str) -> PairSet:
    """Raises InputError for what cannot be trained on."""
    if not pairs.names:
        raise InputError(f"{where}: no training pairs in it")
    equal = 0
    for recorded, target, name in zip(pairs.recorded, pairs.target, pairs.names, strict=True):
        for image in (recorded, target):
            if np.issubdtype(image.dtype, np.complexfloating):
                raise InputError(f"{name}: complex pixels cannot be trained on")
            if not np.isfinite(image).all():
                raise InputError(f"{name}: holds NaN or infinite pixels")
        equal += bool(np.array_equal(recorded, target))
    if equal == len(pairs.names):
        raise InputError(f"{where}: inputs and targets are the same images; there is nothing to learn")
    return pairs


def unlike_units(pairs: PairSet) -> str | None:
    """What is to be said where the targets are not in the units of what was recorded; None where they seem to be.

    One affine map, that of the recorded image, scales both, so targets in other units cannot be learned.
    """
    looked_at = _thinned(pairs, _LOOKED_AT)
    widths, shifts = [], []
    for recorded, target in zip(looked_at.recorded, looked_at.target, strict=True):
        low, middle, high = (float(v) for v in np.percentile(recorded, (0.1, 50, 99.9)))
        of_target = [float(v) for v in np.percentile(target, (0.1, 50, 99.9))]
        width = max(high - low, 1e-12)
        widths.append((of_target[2] - of_target[0]) / width)
        shifts.append(abs(of_target[1] - middle) / width)
    width, shift = float(np.median(widths)), float(np.median(shifts))
    if 1 / _MOST_OF_WIDTH <= width <= _MOST_OF_WIDTH and shift <= _MOST_OF_SHIFT:
        return None
    return (
        f"the targets span {width:.3g} times the range of the recorded images and lie {shift:.3g} of it apart: "
        "are they in the same units? Bring them into those of the recorded images, or nothing can be learned"
    )
