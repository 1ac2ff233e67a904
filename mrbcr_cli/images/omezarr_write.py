"""Write an image as OME-Zarr 0.5 (zarr v3, sharded) or 0.4 (zarr v2): the pyramid and the metadata, after the pixels.

Invariant: the `multiscales` metadata are written last and in one step, so a store that has them is complete; every
step before may be killed and `finish` called again. Memory is bounded by one output file and the slab it is made from.

Sources: NGFF 0.4 and 0.5 (https://ngff.openmicroscopy.org); `omero` rendering hints as bioformats2raw writes them.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.images import omezarr_meta as meta
from mrbcr_cli.images.base import OutputSpec, Region
from mrbcr_cli.images.omezarr_level import (
    ArrayLayout,
    Level,
    Level0,
    Version,
    block_checksum,
    create_level,
    create_level0,
    open_level,
    open_level0,
    plan_layout,
    write_group,
)
from mrbcr_cli.intensity import PERCENTILES
from mrbcr_cli.places import Place, RemotePath, place
from mrbcr_cli.whole_file import PARTIAL, put_durably, sync

__all__ = [
    "ArrayLayout",
    "Level0",
    "block_checksum",
    "create_level0",
    "finish",
    "keep_source_xml",
    "kept_source_xml",
    "open_level0",
    "plan_layout",
    "plan_pyramid",
    "pyramid_blocks",
    "read_provenance",
]

PROVENANCE = "mrbcr"
_SOURCE_XML = PurePosixPath("OME") / "METADATA.ome.xml"
_TOP_PX = 256
_AXIS_TYPES = {"T": "time", "C": "channel", "Z": "space", "Y": "space", "X": "space"}
_PALETTE = ("00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF", "FFFFFF")
_WINDOW_PLANES = 32
_FILES_AT_ONCE = 2
"""One file is synced while the next is computed. On two busy cores 1, 2 and 4 were equally fast within the noise (40 to
75 MB/s of level 0) and took 36, 51 and 105 MB of memory, so more than that is not worth it."""


@dataclass(frozen=True)
class PyramidLevel:
    """One resolution level: its shape, and per axis how many pixels of level 0 one of its pixels spans."""

    shape: tuple[int, ...]
    factors: tuple[int, ...]


def plan_pyramid(spec: OutputSpec) -> tuple[PyramidLevel, ...]:
    """Level 0 and the levels below it: Y and X halved (rounded up) until both are at most 256 px.

    Z is halved too only where a plane is no further from the next than pixels are from each other, so that a pyramid
    never makes a stack coarser in Z than it is in the plane.
    """
    binned = set("YXZ") if _is_isotropic(spec) else set("YX")
    levels = [PyramidLevel(spec.shape, (1,) * len(spec.shape))]
    while max(levels[-1].shape[-2:]) > _TOP_PX:
        last = levels[-1]
        steps = [2 if axis in binned and size > 1 else 1 for axis, size in zip(spec.axes, last.shape, strict=True)]
        levels.append(
            PyramidLevel(
                tuple(math.ceil(size / step) for size, step in zip(last.shape, steps, strict=True)),
                tuple(factor * step for factor, step in zip(last.factors, steps, strict=True)),
            )
        )
    return tuple(levels)


def pyramid_blocks(spec: OutputSpec, layout: ArrayLayout) -> int:
    """How many files `finish` writes, for a progress bar."""
    levels = plan_pyramid(spec)[1:]
    return sum(
        math.prod(math.ceil(n / u) for n, u in zip(level.shape, layout.fitted(level.shape).unit, strict=True))
        for level in levels
    )


def finish(
    root: Place,
    spec: OutputSpec,
    layout: ArrayLayout,
    version: Version,
    *,
    progress: Callable[[int], None] | None = None,
    downsample: Literal["mean"] = "mean",
    mark: object = True,
) -> None:
    """Complete the store at `root`, whose level 0 is written: pyramid, OME-XML, and last the metadata.

    Each level is the mean of 2 x 2 pixels of the one above (at an odd edge, of those that exist), rounded half up for
    integers. `mark` is what the group has as UNFINISHED until the end. `progress` is called with 1 after each of
    `pyramid_blocks(spec, layout)` files. May be called again after a crash at any point; it then starts over. Raises
    OSError where the disk does not take it, InputError where level 0 is damaged, ValueError where the provenance is not
    JSON.
    """
    if downsample != "mean":
        raise ValueError(f"downsample must be 'mean', not {downsample!r}")
    json.dumps(spec.provenance, allow_nan=False)  # fail before computing
    write_group(root, version, {meta.UNFINISHED: mark})
    if isinstance(root, Path):
        _remove_partials(root)
    levels = plan_pyramid(spec)
    for index, level in enumerate(levels[1:], start=1):
        source = open_level(root, index - 1)
        fitted = layout.fitted(level.shape)
        _remove_level(root / str(index))  # from a run that was killed here; nobody can tell how much of it is right
        create_level(root, index, spec.axes, level.shape, spec.dtype, fitted, version)
        _fill(source, open_level(root, index), progress)
    if spec.source_ome_xml is not None:
        keep_source_xml(root, spec.source_ome_xml, version)
    omero = _omero(spec, open_level(root, len(levels) - 1))
    write_group(root, version, _group_attributes(spec, levels, omero, version))


def _remove_level(folder: Place) -> None:
    if isinstance(folder, RemotePath):
        folder.remove_tree()
    elif folder.exists():
        shutil.rmtree(folder)


def keep_source_xml(root: Place, xml: str, version: Version) -> None:
    """Put the source's OME-XML where bioformats2raw puts it."""
    write_group(root / "OME", version, {})
    put_durably(root / _SOURCE_XML, xml.encode())
    sync(root / "OME")


def kept_source_xml(root: Place) -> str | None:
    """What `keep_source_xml` put there; None where it put nothing."""
    try:
        return (root / _SOURCE_XML).read_bytes().decode()
    except FileNotFoundError:
        return None


def read_provenance(path: str | Place) -> dict[str, Any] | None:
    """What this tool recorded in a finished store that it wrote; None for anything else.

    Raises InputError at a URL that cannot be asked, or holds damaged metadata; nothing on a disk.
    """
    root = place(path)
    if isinstance(root, RemotePath):
        node = meta.read_node(root)
        return None if node is None else _provenance_in(node.attributes, node.ome)
    try:
        v3 = (root / "zarr.json").is_file()
        document = json.loads((root / ("zarr.json" if v3 else ".zattrs")).read_bytes())
        attributes = document.get("attributes") if v3 else document
        return _provenance_in(attributes, attributes.get("ome") if v3 else attributes)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def _provenance_in(attributes: dict[str, Any], ome: dict[str, Any]) -> dict[str, Any] | None:
    finished = "multiscales" in ome and not attributes.get(meta.UNFINISHED)
    provenance = attributes.get(PROVENANCE)
    return provenance if finished and isinstance(provenance, dict) else None


def binned_mean(block: NDArray[Any], steps: tuple[int, ...]) -> NDArray[Any]:
    """Mean over bins of 1 or 2 pixels per axis (`steps`), same dtype; a bin cut by an odd edge counts what it has.

    Integers are rounded half up, exactly, up to 64 bits.
    """
    pad = [(0, size % step) for size, step in zip(block.shape, steps, strict=True)]
    if any(after for _, after in pad):
        block = np.pad(block, pad, mode="edge")  # a repeated pixel leaves the mean of its bin as it is
    count = math.prod(steps)
    shift = count.bit_length() - 1  # count is a power of two, and a shift rounds down for negative numbers too
    dtype = block.dtype
    if dtype.kind == "f":
        sums = _binned_sum(block, steps, np.float64 if dtype.itemsize == 8 else np.float32)
        sums *= sums.dtype.type(1.0 / count)
    elif dtype.itemsize <= 4:
        sums = _binned_sum(block, steps, np.int64 if dtype.itemsize == 4 else np.int32)
        sums += count // 2
        sums >>= shift
    else:
        # Eight 64-bit integers do not fit a sum: add the quotients, which do, and the small remainders apart.
        sums = _binned_sum(block % count, steps, dtype.type)
        sums += count // 2
        sums >>= shift
        sums += _binned_sum(block >> shift, steps, dtype.type)
    return sums.astype(dtype, copy=False)


def _binned_sum(block: NDArray[Any], steps: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """Sums over bins, in `dtype`; the block itself is never copied at that width."""
    for axis, step in enumerate(steps):
        if step == 2:
            at: list[slice] = [slice(None)] * block.ndim
            at[axis] = slice(0, None, 2)
            even = block[tuple(at)]
            at[axis] = slice(1, None, 2)
            block = np.add(even, block[tuple(at)], dtype=dtype)
    return block if 2 in steps else block.astype(dtype)  # never the caller's own array


def _fill(source: Level, target: Level, progress: Callable[[int], None] | None) -> None:
    """Write every file of `target` from `source`, a few at a time, so that syncing one overlaps computing another."""
    regions = _tiles(tuple(slice(0, n) for n in target.shape), target.unit)
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        running: set[Future[None]] = set()
        for region in regions:
            if len(running) == _FILES_AT_ONCE:
                running = _some_done(running, progress)
            running.add(pool.submit(_fill_file, source, target, region))
        while running:
            running = _some_done(running, progress)


def _some_done(running: set[Future[None]], progress: Callable[[int], None] | None) -> set[Future[None]]:
    done, left = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
        if progress is not None:
            progress(1)
    return left


def _fill_file(source: Level, target: Level, region: Region) -> None:
    """Write one file, one slab of chunks at a time along the axes before Y and X."""
    steps = tuple(1 if a == b else 2 for a, b in zip(source.shape, target.shape, strict=True))
    out = np.empty(tuple(part.stop - part.start for part in region), target.dtype)
    for slab in _tiles(region, (*target.chunks[:-2], *target.unit[-2:])):
        wanted = tuple(
            slice(part.start * step, min(part.stop * step, size))
            for part, step, size in zip(slab, steps, source.shape, strict=True)
        )
        inside = tuple(
            slice(part.start - whole.start, part.stop - whole.start) for part, whole in zip(slab, region, strict=True)
        )
        out[inside] = binned_mean(source.read(wanted), steps)
    target.write(region, out)


def _tiles(region: Region, lengths: tuple[int, ...]) -> Iterator[Region]:
    ranges = [
        [slice(start, min(start + length, part.stop)) for start in range(part.start, part.stop, length)]
        for part, length in zip(region, lengths, strict=True)
    ]
    return itertools.product(*ranges)


def _is_isotropic(spec: OutputSpec) -> bool:
    """Whether planes are known to be no further apart than pixels are (within 1 %)."""
    known = {axis: (spec.scale[i], spec.units[i]) for i, axis in enumerate(spec.axes) if axis in "ZYX"}
    scales = [scale for scale, _ in known.values()]
    if "Z" not in known or None in scales or len({unit for _, unit in known.values()}) > 1:
        return False
    z, y, x = (float(scale) for scale in scales if scale is not None)
    return z <= 1.01 * min(y, x)


def _remove_partials(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            if name.endswith(PARTIAL):
                (Path(folder) / name).unlink(missing_ok=True)


def _group_attributes(
    spec: OutputSpec, levels: tuple[PyramidLevel, ...], omero: dict[str, Any], version: Version
) -> dict[str, Any]:
    axes = []
    for letter, scale, unit in zip(spec.axes, spec.scale, spec.units, strict=True):
        axis = {"name": letter.lower(), "type": _AXIS_TYPES[letter]}
        if unit is not None and scale is not None and letter != "C":
            axis["unit"] = unit
        axes.append(axis)
    multiscale = {
        "name": spec.name,
        "axes": axes,
        "datasets": [_dataset(spec, index, level) for index, level in enumerate(levels)],
        "type": "mean",
        "metadata": {"method": "mean of 2 x 2 pixels", "description": "written by mrbcr"},
    }
    if version == "0.5":
        return {"ome": {"version": "0.5", "multiscales": [multiscale], "omero": omero}, PROVENANCE: spec.provenance}
    return {"multiscales": [{"version": "0.4", **multiscale}], "omero": omero, PROVENANCE: spec.provenance}


def _dataset(spec: OutputSpec, index: int, level: PyramidLevel) -> dict[str, Any]:
    """One entry of `datasets`. The centre of a bin of f pixels lies (f - 1) / 2 pixels past that of its first."""
    pixel = [1.0 if scale is None else float(scale) for scale in spec.scale]
    transforms: list[dict[str, Any]] = [
        {"type": "scale", "scale": [p * f for p, f in zip(pixel, level.factors, strict=True)]}
    ]
    if index:
        shift = [p * (f - 1) / 2 for p, f in zip(pixel, level.factors, strict=True)]
        transforms.append({"type": "translation", "translation": shift})
    return {"path": str(index), "coordinateTransformations": transforms}


def _omero(spec: OutputSpec, top: Level) -> dict[str, Any]:
    """Rendering hints; the display window of a channel spans its 0.1 to 99.9 percentiles at the coarsest level."""
    count = spec.shape[spec.axes.index("C")] if "C" in spec.axes else 1
    channels = []
    for i in range(count):
        default = "FFFFFF" if count == 1 else _PALETTE[i % len(_PALETTE)]
        channel: dict[str, Any] = {
            "color": spec.channel_colors[i] if i < len(spec.channel_colors) else default,
            "active": True,
            "coefficient": 1,
            "family": "linear",
            "inverted": False,
            "window": _window(spec, top, i),
        }
        if i < len(spec.channel_names) and spec.channel_names[i]:
            channel["label"] = spec.channel_names[i]
        channels.append(channel)
    middle = spec.shape[spec.axes.index("Z")] // 2 if "Z" in spec.axes else 0
    model = "color" if count > 1 or spec.channel_colors else "greyscale"
    return {"channels": channels, "rdefs": {"defaultT": 0, "defaultZ": middle, "model": model}}


def _window(spec: OutputSpec, top: Level, channel: int) -> dict[str, float]:
    """Display window of one channel, from at most 32 planes of it spread evenly over T and Z."""
    ranges = [(channel,) if axis == "C" else range(n) for axis, n in zip(spec.axes[:-2], top.shape[:-2], strict=True)]
    total = math.prod(len(r) for r in ranges)
    taken = range(total) if total <= _WINDOW_PLANES else [i * (total - 1) // 31 for i in range(_WINDOW_PLANES)]
    pixels = []
    for i in taken:
        at = np.unravel_index(i, tuple(len(r) for r in ranges))
        plane = tuple(slice(r[int(k)], r[int(k)] + 1) for r, k in zip(ranges, at, strict=True))
        pixels.append(top.read((*plane, slice(0, top.shape[-2]), slice(0, top.shape[-1]))).ravel())
    values = np.concatenate(pixels)
    values = values[np.isfinite(values)].astype(np.float64) if values.dtype.kind == "f" else values
    if values.size == 0:
        return {"min": 0.0, "max": 1.0, "start": 0.0, "end": 1.0}
    start, end = (float(v) for v in np.percentile(values, PERCENTILES))
    end = end if end > start else start + 1.0
    if spec.dtype.kind in "iu" and spec.dtype.itemsize <= 2:
        limits = np.iinfo(spec.dtype)
        return {"min": float(limits.min), "max": float(limits.max), "start": start, "end": end}
    return {"min": min(start, float(values.min())), "max": max(end, float(values.max())), "start": start, "end": end}
