"""Training pairs on disk: a Zarr group with `blurred`, `sharp` and one JSON record a pair.

Invariant: a shard of `SHARD` pairs is written whole by whoever makes it, and each pair is one chunk of it, so reading
one pair reads one pair. The group's attributes (OME-Zarr 0.5 multiscales and what made it) are written last.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.omezarr_documents import parse_document, read_document

if TYPE_CHECKING:
    import zarr

SHARD = 64
RECORD_BYTES = 8192
KIND = "pairs"
PROVENANCE = "mrbcr"
_ARRAYS = ("blurred", "sharp", "records")


@dataclass(frozen=True)
class PairsInfo:
    """What a finished store holds."""

    count: int
    patch_px: int
    splits: dict[str, tuple[int, int]]
    """First pair and the one after the last of train, validation, test."""
    attributes: dict[str, Any]
    """Command, version, settings, sources: what made it."""


def create_pairs(root: Path, count: int, patch_px: int, dtype: np.dtype[Any]) -> None:
    """Make the group and its three empty arrays at `root`, which must not exist."""
    import zarr
    from zarr.codecs import BloscCodec

    group = zarr.create_group(root)
    shard = min(SHARD, count)
    codec = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")
    for name, kind in (("blurred", dtype), ("sharp", np.dtype(np.float32))):
        group.create_array(
            name,
            shape=(count, patch_px, patch_px),
            dtype=kind,
            chunks=(1, patch_px, patch_px),
            shards=(shard, patch_px, patch_px),
            compressors=codec,
            dimension_names=("t", "y", "x"),
        )
    group.create_array(
        "records",
        shape=(count, RECORD_BYTES),
        dtype=np.uint8,
        chunks=(1, RECORD_BYTES),
        shards=(shard, RECORD_BYTES),
        compressors=codec,
    )


def write_shard(root: Path, first: int, blurred: NDArray[Any], sharp: NDArray[Any], records: Sequence[Any]) -> None:
    """Write the pairs from `first` on, whole shards. Raises ValueError for a record that is too long."""
    import zarr

    group = zarr.open_group(root, mode="r+")
    lines = np.zeros((len(records), RECORD_BYTES), np.uint8)
    for row, record in zip(lines, records, strict=True):
        text = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
        if len(text) > RECORD_BYTES:
            raise ValueError(f"the record of a pair has {len(text)} bytes, more than {RECORD_BYTES}")
        row[: len(text)] = np.frombuffer(text, np.uint8)
    where = slice(first, first + len(blurred))
    for name, values in (("blurred", blurred), ("sharp", sharp), ("records", lines)):
        group[name][where] = values  # type: ignore[index]


def finish_pairs(root: Path, splits: dict[str, tuple[int, int]], provenance: dict[str, Any]) -> None:
    """Write the attributes that make the group complete: multiscales for viewers, splits and provenance."""
    import zarr

    axes = [{"name": "t", "type": "time"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    images: list[Any] = [
        {"name": name, "axes": axes, "datasets": [{"path": name, "coordinateTransformations": scale}]}
        for name in ("blurred", "sharp")
    ]
    group = zarr.open_group(root, mode="r+")
    group.attrs.update(
        {
            "ome": {"version": "0.5", "multiscales": images},
            PROVENANCE: {"kind": KIND, "splits": {k: list(v) for k, v in splits.items()}, **provenance},
        }
    )


def read_info(root: Path) -> PairsInfo:
    """Describe a finished store. Raises InputError for anything else, and for one whose arrays do not fit together."""
    try:
        document = read_document(root / "zarr.json")
        attributes: dict[str, Any] = dict(parse_document(root, document or b"null")["attributes"][PROVENANCE])
        splits = {str(k): (int(v[0]), int(v[1])) for k, v in attributes["splits"].items()}
        blurred, sharp, records = (_open(root, name).shape for name in _ARRAYS)
    except (OSError, KeyError, ValueError, TypeError, IndexError, AttributeError, InputError) as error:
        raise InputError(f"{root}: holds no finished training pairs of mrbcr simulate pairs") from error
    count = blurred[0] if len(blurred) == 3 else -1
    if sharp != blurred or records != (count, RECORD_BYTES):
        raise InputError(
            f"{root}: its arrays do not fit together, {blurred}, {sharp} and {records}; make the pairs anew"
        )
    return PairsInfo(int(count), int(blurred[-1]), splits, attributes)


def is_pairs(root: Path) -> bool:
    """Whether a Zarr holds pairs of ours, finished."""
    try:
        read_info(root)
    except InputError:
        return False
    return True


def read_pairs(root: Path, first: int, stop: int) -> tuple[NDArray[Any], NDArray[np.float32], list[dict[str, Any]]]:
    """Pairs `first` to `stop` (excluded): blurred (n, y, x), sharp (n, y, x), records. Raises InputError."""
    blurred, sharp, lines = (_read(root, name, slice(first, stop)) for name in _ARRAYS)
    try:
        return blurred, sharp, [json.loads(bytes(line).rstrip(b"\0")) for line in lines]
    except ValueError as error:
        raise InputError(f"{root}: a record of pairs {first} to {stop - 1} is no JSON; the store is damaged") from error


def _open(root: Path, name: str) -> zarr.Array[Any]:
    """An array of the store, guarded: what it claims of itself is not trusted. Raises InputError."""
    from mrbcr_cli.images.omezarr import open_zarr_array

    if not (root / name).resolve().is_relative_to(root.resolve()):
        raise InputError(f"{root / name}: leads out of the store; copy the data into it (cp -rL)")
    return open_zarr_array(root / name, 3, root)


def _read(root: Path, name: str, pairs: slice) -> NDArray[Any]:
    from mrbcr_cli.images.omezarr import read_pixels

    array = _open(root, name)
    whole = tuple(slice(0, size) for size in array.shape[1:])
    return read_pixels(array, (pairs, *whole), root / name)
