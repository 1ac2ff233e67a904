"""The `low` / `gt` NPZ files of published m-rBCR and DeBCR data sets: train/train.npz, val/val.npz, test/test.npz.

Invariant: both arrays are (n, y, x) float32 on the scale of their recorded patch (percentiles 0.1 and 99.9 become 0 and
1, not clipped); written pair by pair, so memory does not grow with their number.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.images.pairs_store import SHARD, PairsInfo, read_pairs

_FOLDERS = {"train": "train", "validation": "val", "test": "test"}


def write_npz(store: Path, info: PairsInfo, folder: Path) -> list[Path]:
    """Write the splits that hold pairs below `folder`; return the files."""
    written = []
    for split, (first, stop) in info.splits.items():
        if stop == first:
            continue
        path = folder / _FOLDERS[split] / f"{_FOLDERS[split]}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            for name, which in (("gt", 1), ("low", 0)):
                _write_member(
                    archive, name, (stop - first, info.patch_px, info.patch_px), _scaled(store, first, stop, which)
                )
        partial.replace(path)
        written.append(path)
    return written


def _scaled(store: Path, first: int, stop: int, which: int) -> Iterator[NDArray[np.float32]]:
    for start in range(first, stop, SHARD):
        *images, records = read_pairs(store, start, min(start + SHARD, stop))
        for image, record in zip(images[which], records, strict=True):
            low, high = record["range"]
            yield ((image.astype(np.float32) - np.float32(low)) / np.float32(high - low)).astype("<f4")


def _write_member(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], images: Iterator[NDArray[np.float32]]
) -> None:
    """One .npy of the archive, streamed, with a fixed date so that the same pairs are the same bytes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with archive.open(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), "w", force_zip64=True) as member:
        member.write(header.getvalue())
        for image in images:
            member.write(np.ascontiguousarray(image).tobytes())
