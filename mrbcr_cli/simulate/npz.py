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

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.pairs_store import SHARD, PairsInfo, read_pairs

_FOLDERS = {"train": "train", "validation": "val", "test": "test"}


def check_npz(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that is a file, or that holds splits of another run. Raises InputError."""
    for parent in (folder, *folder.parents):
        if parent.exists():
            if not parent.is_dir():
                raise InputError(f"{parent}: is a file; --npz names a folder")
            break
    taken = [p for p in npz_files(folder).values() if p.exists()]
    if taken and not overwrite:
        raise InputError(f"{taken[0]}: exists; use --overwrite to replace the splits there, or another --npz")


def npz_files(folder: Path) -> dict[str, Path]:
    """The file of each split below `folder`."""
    return {split: folder / name / f"{name}.npz" for split, name in _FOLDERS.items()}


def write_npz(store: Path, info: PairsInfo, folder: Path) -> list[Path]:
    """Write the splits that hold pairs below `folder`; return the files. What stood there before goes first.

    Splits of another run must not stay: their sources may be in train now.
    """
    written = []
    paths = npz_files(folder)
    for path in paths.values():
        path.unlink(missing_ok=True)
    for split, (first, stop) in info.splits.items():
        if stop == first:
            continue
        path = paths[split]
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        try:
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
                for name, which in (("gt", 1), ("low", 0)):
                    _write_member(
                        archive, name, (stop - first, info.patch_px, info.patch_px), _scaled(store, first, stop, which)
                    )
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
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
