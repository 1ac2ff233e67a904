"""Sharp images that training pairs are cut from: found, checked, and split before anything is simulated.

Invariant: a source is one file with all its planes and channels, and belongs to one split only, whatever the number of
pairs; two files of the same bytes are one source. Pixels are read when a pair needs them, never whole images.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.images import TIFF_SUFFIXES, SourceSpec, find_source, open_source
from mrbcr_cli.images.base import ImageReader

SPLITS = ("train", "validation", "test")

_MOST_PLANES = 48
_SURVEY_PX = 2048
_LEAST_CONTRAST = 10.0
"""Span of a plane over its estimated noise for it to hold structure; pure noise has 9 (see `_levels`)."""


@dataclass(frozen=True)
class SharpPlane:
    """One plane of a source, with the levels that make it a specimen: (pixel - floor) / span, noise cut off."""

    lead: tuple[int, ...]
    """Index along the axes before Y and X."""
    floor: float
    span: float
    noise: float
    """Standard deviation of the noise, in units of the span."""


@dataclass(frozen=True)
class SharpSource:
    """One file of sharp images."""

    name: str
    """File name; with its folder where two files share one."""
    spec: SourceSpec
    shape_yx: tuple[int, int]
    planes: tuple[SharpPlane, ...]


def find_sources(patterns: Sequence[str], patch_px: int) -> tuple[SharpSource, ...]:
    """Find, open and check every source. `patterns` are files, folders (their TIFFs and Zarrs) or globs.

    Raises InputError for nothing found, and for sources that are unreadable, smaller than a patch, constant or NaN.
    """
    paths = _paths(patterns)
    names = _names(paths)
    seen: dict[str, str] = {}
    found = []
    for path, name in zip(paths, names, strict=True):
        source, digest = _survey(path, name, patch_px)
        if digest in seen:
            continue  # the same image under another name would let train and test share it
        seen[digest] = name
        found.append(source)
    return tuple(found)


def _paths(patterns: Sequence[str]) -> list[Path]:
    from mrbcr_cli.images.omezarr_documents import is_zarr
    from mrbcr_cli.images.pairs_store import is_pairs

    found: dict[Path, None] = {}
    for pattern in patterns:
        if not pattern.strip():
            raise InputError("--source is empty; name a file, a folder or a pattern")
        path = Path(pattern)
        if path.is_dir() and not is_zarr(path):
            members = [p for p in sorted(path.iterdir()) if not p.name.startswith(".") and _is_image(p)]
        elif path.exists():
            members = [path]
        else:
            members = [Path(p) for p in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 - may be absolute
            members = [p for p in members if _is_image(p)]
        if not members:
            raise InputError(f"{pattern}: no sharp image found there (TIFF or OME-Zarr); check --source")
        for member in members:
            if member.is_dir() and is_pairs(member):
                raise InputError(f"{member}: holds simulated pairs, no sharp images; move it out of {pattern}")
        found.update(dict.fromkeys(members))
    return list(found)


def _is_image(path: Path) -> bool:
    name = path.name.lower()
    return name.endswith(".zarr") if path.is_dir() else name.endswith(TIFF_SUFFIXES)


def _names(paths: Sequence[Path]) -> list[str]:
    """File names; where two are equal, with as many parents as tell them apart."""
    depth = 1
    while True:
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names) or depth > max((len(p.parts) for p in paths), default=1):
            return names
        depth += 1


def _survey(path: Path, name: str, patch_px: int) -> tuple[SharpSource, str]:
    spec = find_source(str(path), split_rgb=True)
    reader = open_source(spec)
    try:
        info = reader.info
        height, width = info.shape[-2:]
        if min(height, width) < patch_px:
            raise InputError(
                f"{path}: is {width} x {height} px, smaller than the patches of {patch_px} px; "
                "use a larger image or a smaller --patch"
            )
        lead_shape = info.shape[:-2]
        count = int(np.prod(lead_shape, dtype=np.int64))
        numbers = np.unique(np.linspace(0, count - 1, min(count, _MOST_PLANES)).round().astype(np.int64))
        planes, digest = [], hashlib.sha256(repr(info.shape).encode())
        for number in numbers:
            lead = tuple(int(i) for i in np.unravel_index(int(number), lead_shape)) if lead_shape else ()
            pixels = _middle(reader, lead, (height, width))
            digest.update(np.ascontiguousarray(pixels).tobytes())
            plane = _levels(lead, pixels, str(path))
            if plane is not None:
                planes.append(plane)
    finally:
        reader.close()
    if not planes:
        raise InputError(f"{path}: no plane of it rises above its noise (constant or empty); leave it out")
    return SharpSource(name, spec, (height, width), tuple(planes)), digest.hexdigest()


def _middle(reader: ImageReader, lead: tuple[int, ...], shape_yx: tuple[int, int]) -> NDArray[Any]:
    """The plane, or of a large one its middle."""
    window = []
    for size in shape_yx:
        start = max(0, (size - _SURVEY_PX) // 2)
        window.append(slice(start, min(size, start + _SURVEY_PX)))
    return reader.read((*(slice(i, i + 1) for i in lead), *window)).reshape([w.stop - w.start for w in window])


def _levels(lead: tuple[int, ...], pixels: NDArray[Any], path: str) -> SharpPlane | None:
    """Floor, span and noise of a plane; None where nothing rises above the noise. Raises InputError for NaN."""
    values = pixels.astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"{path}: holds NaN or infinite pixels; it cannot be a sharp source")
    floor, high = (float(v) for v in np.percentile(values, (1.0, 99.9)))
    span = high - floor
    if span <= 0:
        return None
    # In the darker half, where structures are few; of pure noise that half shows only 0.6 of the deviation.
    dark = values < np.median(values)
    steps = np.diff(values, axis=1)[dark[:, 1:] & dark[:, :-1]]
    noise = 1.4826 * float(np.median(np.abs(steps))) / np.sqrt(2.0) if steps.size else 0.0
    if span < _LEAST_CONTRAST * noise:
        return None
    return SharpPlane(lead, floor, span, float(noise / span))


def split_sources(names: Sequence[str], shares: Sequence[float], seed: int) -> tuple[str, ...]:
    """Split of each source ("train", "validation" or "test"), by the hash of its name: adding pairs changes nothing.

    Every split with a share gets at least one source. Raises InputError where there are too few.
    """
    wanted = [k for k, share in enumerate(shares) if share > 0]
    if len(names) < len(wanted):
        raise InputError(
            f"{len(wanted)} splits need as many sharp sources, there is {len(names)}: "
            "give more with --source, or set --splits 1 0 0"
        )
    order = sorted(range(len(names)), key=lambda i: hashlib.sha256(f"{seed} {names[i]}".encode()).digest())
    counts = apportion(len(names), shares)
    for k in wanted:
        if counts[k] == 0:
            counts[max(range(len(counts)), key=lambda j: counts[j])] -= 1
            counts[k] = 1
    labels = [SPLITS[k] for k, count in enumerate(counts) for _ in range(count)]
    assigned = [""] * len(names)
    for position, index in enumerate(order):
        assigned[index] = labels[position]
    return tuple(assigned)


def apportion(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to `shares` that sum to `total` (largest remainders)."""
    whole = sum(shares)
    exact = [total * share / whole for share in shares]
    counts = [int(value) for value in exact]
    by_rest = sorted(range(len(shares)), key=lambda k: (counts[k] - exact[k], k))
    for k in by_rest[: total - sum(counts)]:
        counts[k] += 1
    return counts


@lru_cache(maxsize=64)
def _reader(spec: SourceSpec) -> ImageReader:
    """One open reader per source and process."""
    return open_source(spec)


def read_window(source: SharpSource, plane: SharpPlane, y: slice, x: slice) -> NDArray[np.float32]:
    """Pixels of a window as a specimen: floor 0, bright structures about 1, noise below its 1.5 sigma cut off."""
    region = (*(slice(i, i + 1) for i in plane.lead), y, x)
    pixels = _reader(source.spec).read(region).reshape(y.stop - y.start, x.stop - x.start)
    values = (pixels.astype(np.float32) - np.float32(plane.floor)) / np.float32(plane.span)
    cleaned: NDArray[np.float32] = np.clip(values - np.float32(1.5 * plane.noise), 0.0, 1.5)
    return cleaned
