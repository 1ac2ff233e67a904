"""The work on one block of a simulated stack: light, image, photons, counts, truth.

Invariant: what a block writes depends on the job, the factor and the block's number alone, and it writes whole shards
that no other block touches; so blocks may be made by any process, in any order, and again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from mrbcr_cli.images.base import Region
from mrbcr_cli.optics.camera import Camera, CameraMaps, expose, make_scmos_maps
from mrbcr_cli.optics.imaging import Kernel, Transform, cells_of, convolve, interpolate_cells, make_transform
from mrbcr_cli.restore import tune_allocator
from mrbcr_cli.simulate.stack_grid import lengths_of
from mrbcr_cli.simulate.stack_light import Light, slabs_of
from mrbcr_cli.stream.blocks import Grid
from mrbcr_cli.stream.pool import Work
from mrbcr_cli.stream.records import BlockRecord

Image = NDArray[np.float32]
Triple = tuple[int, int, int]

DARK = "pixels below no light"
_SENSOR_TILE = (2048, 64)
"""Pixels (y, x) whose differences are drawn together; a sensor's columns are 2048 pixels long, then others begin."""
_NOISE, _SENSOR = 1, 2
"""The streams of random numbers of a seed."""
_EXPOSED_AT_ONCE = 1 << 20
_BLUR_REACH = 4.0
"""Sigmas at which a Gaussian ends."""


@dataclass(frozen=True, eq=False)
class Job:
    """Everything a worker needs for any block; picklable."""

    light: Light
    kernel: Kernel
    grid: Grid
    camera: Camera
    scmos: bool
    seed: int
    photons: float
    background: float
    transmitted: bool
    """Brightfield: the kernel makes contrast, and `photons` is the light without a specimen."""
    truth_sigma_zyx: tuple[float, float, float]
    """Blur of the truth in voxels; zeros for none."""
    truth_dtype: str
    store: Path
    truth_store: Path | None
    folder: Path
    """Where the images of sampled blocks wait until their factor is known."""


class BlockMaker:
    """Makes the blocks of a job in this process; keeps the kernel's spectra and what else all blocks need."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._transforms: dict[str, Transform] = {}
        self._levels: dict[Path, Any] = {}
        self._sensor: tuple[tuple[int, ...], CameraMaps] | None = None
        self._lengths = lengths_of(job.grid, job.kernel, job.light.planes)

    def do(self, method: str, *arguments: Any) -> Any:
        """Call one of the methods below by its name."""
        return getattr(self, method)(*arguments)

    def image(self, core: Region) -> tuple[Image, Image]:
        """The noise-free image of a box no larger than the grid's blocks, and its truth, both per unit of light."""
        truth = _Truth(self.job, core)
        near = self._transform("near")
        image = convolve(near, self._slabs(core, near.halo, truth), _shape(core))
        if self.job.kernel.far is not None:
            self._add_far(image, core)
        if not self.job.transmitted:
            np.maximum(image, 0, out=image)  # the transform's rounding
        return image, truth.finished()

    def _transform(self, part: str) -> Transform:
        if part not in self._transforms:
            kernel, lengths = getattr(self.job.kernel, part), getattr(self._lengths, part)
            self._transforms[part] = make_transform(kernel, lengths)
        return self._transforms[part]

    def _slabs(self, core: Region, halo: Triple, truth: _Truth) -> Iterator[tuple[int, Image]]:
        """The light that the near part and the truth see, slab by slab; the truth takes its own on the way."""
        z, y, x = core
        margin = tuple(max(a, b) for a, b in zip(halo, truth.halo, strict=True))
        wide = (slice(y.start - margin[1], y.stop + margin[1]), slice(x.start - margin[2], x.stop + margin[2]))
        low, high = self.job.light.planes
        planes = (max(low, z.start - margin[0]), min(high, z.stop + margin[0]))
        inner = tuple(
            slice(m - h, part.stop - part.start - (m - h))
            for m, h, part in zip(margin[1:], halo[1:], wide, strict=True)
        )
        for slab in slabs_of(planes, (wide[0].stop - wide[0].start) * (wide[1].stop - wide[1].start)):
            light = self.job.light.read(slab, *wide)
            truth.take(slab.start - z.start, light, margin)
            first, last = max(slab.start, z.start - halo[0]), min(slab.stop, z.stop + halo[0])
            if first < last:
                yield first - z.start, light[first - slab.start : last - slab.start, inner[0], inner[1]]

    def _add_far(self, image: Image, core: Region) -> None:
        """Add the dim part of the PSF, which is imaged on cells."""
        z, y, x = core
        bin_px, transform = self.job.kernel.bin_px, self._transform("far")
        half, top, left = transform.halo
        rows, columns = cells_of(y.start, y.stop, bin_px), cells_of(x.start, x.stop, bin_px)
        wide = (slice(rows[0] - top, rows[1] + top), slice(columns[0] - left, columns[1] + left))
        low, high = self.job.light.planes
        planes = (max(low, z.start - half), min(high, z.stop + half))
        cells_wide = (wide[0].stop - wide[0].start) * (wide[1].stop - wide[1].start)
        pixels = cells_wide * self.job.light.voxels_of_cell(bin_px)
        slabs = (
            (slab.start - z.start, self.job.light.read_cells(slab, *wide, bin_px)) for slab in slabs_of(planes, pixels)
        )
        cells = convolve(transform, slabs, (z.stop - z.start, rows[1] - rows[0], columns[1] - columns[0]))
        for plane, dim in zip(image, cells, strict=True):
            plane += interpolate_cells(dim, (rows[0], columns[0]), (y, x), bin_px)

    def sample(self, number: int, count: int) -> Image:
        """Make the noise-free image of a block, keep it for `render`, and return its `count` largest values."""
        kept = self._kept(number)
        if all(path.exists() for path in kept):  # of a run that was interrupted
            return _largest(np.load(kept[0]), count)
        image, truth = self.image(self.job.grid.block(number).core)
        for path, values in zip(kept, (image, truth), strict=True):
            partial = path.with_suffix(".part")
            with partial.open("wb") as file:
                np.save(file, values)
            partial.replace(path)
        return _largest(image, count)

    def sample_columns(self, number: int, count: int) -> Image:
        """The `count` largest sums of light over all planes that matter, of the columns through a block."""
        _, y, x = self.job.grid.block(number).core
        low, high = self.job.light.planes
        reach = max(self.job.kernel.near_halo[0], self.job.kernel.far_halo[0])
        planes = (max(low, -reach), min(high, self.job.grid.shape[0] + reach))
        sums = np.zeros((y.stop - y.start, x.stop - x.start), np.float64)
        for slab in slabs_of(planes, sums.size):
            sums += self.job.light.read(slab, y, x).sum(0, dtype=np.float64)
        return _largest(sums.astype(np.float32), count)

    def render(self, number: int, factor: float) -> BlockRecord:
        """Make and write a block; `factor` turns light into photons (brightfield: into shares of a column).

        Returns when the pixels are on disk. Raises OSError where the disk does not take them.
        """
        started = time.perf_counter()
        core = self.job.grid.block(number).core
        kept = self._kept(number)
        image, truth = [np.load(path) for path in kept] if all(p.exists() for p in kept) else self.image(core)
        image *= np.float32(factor)
        below = self._to_photons(image)
        imaged = time.perf_counter()
        counts = self._exposed(image, core, number)
        del image
        exposed = time.perf_counter()
        checksum: str = self._level(self.job.store).write(core, counts)
        if self.job.truth_store is not None:
            truth *= np.float32(factor)
            if self.job.truth_dtype == "uint16":
                truth = np.clip(np.rint(truth), 0, 65535).astype(np.uint16)
            self._level(self.job.truth_store).write(core, truth)
        seconds = (imaged - started, exposed - imaged, time.perf_counter() - exposed)
        return BlockRecord(
            block=number,
            checksum=checksum,
            clipped=int((counts == self.job.camera.white_adu).sum()),
            seconds=dict(zip(("image", "camera", "write"), (round(s, 4) for s in seconds), strict=True)),
            notes=(f"{below} {DARK}",) if below else (),
        )

    def _to_photons(self, image: Image) -> int:
        """Make contrast an intensity (brightfield), add the background, in place; returns how many fell below 0."""
        below = 0
        if self.job.transmitted:
            image += 1
            below = int((image < 0).sum())
            np.maximum(image, 0, out=image)
            image *= np.float32(self.job.photons)
        image += np.float32(self.job.background)
        return below

    def _exposed(self, photons: Image, core: Region, number: int) -> NDArray[np.unsignedinteger]:
        rng = np.random.default_rng(np.random.SeedSequence([self.job.seed, _NOISE, number]))
        maps = self._maps(core) if self.job.scmos else None
        counts = np.empty(photons.shape, self.job.camera.dtype)
        step = max(1, _EXPOSED_AT_ONCE // photons[0].size)
        for k in range(0, len(photons), step):
            counts[k : k + step] = expose(photons[k : k + step], self.job.camera, rng, maps)
        return counts

    def _maps(self, core: Region) -> CameraMaps:
        """The sensor's pixels behind a block, from tiles that any block would draw alike."""
        _, y, x = core
        key = (y.start, y.stop, x.start, x.stop)
        if self._sensor is None or self._sensor[0] != key:
            parts = np.empty((3, y.stop - y.start, x.stop - x.start), np.float32)
            for row in range(y.start // _SENSOR_TILE[0], (y.stop - 1) // _SENSOR_TILE[0] + 1):
                for column in range(x.start // _SENSOR_TILE[1], (x.stop - 1) // _SENSOR_TILE[1] + 1):
                    rng = np.random.default_rng(np.random.SeedSequence([self.job.seed, _SENSOR, row, column]))
                    maps = make_scmos_maps(self.job.camera, _SENSOR_TILE, rng)
                    inside, outside = _overlap((row, column), (y, x))
                    drawn = (maps.offset_adu, maps.gain_adu, maps.variance_e2)
                    parts[(slice(None), *outside)] = [values[inside] for values in drawn]
            self._sensor = key, CameraMaps(parts[0], parts[1], parts[2])
        return self._sensor[1]

    def _level(self, store: Path) -> Any:
        if store not in self._levels:
            from mrbcr_cli.images.omezarr_write import open_level0

            self._levels[store] = open_level0(store)
        return self._levels[store]

    def _kept(self, number: int) -> tuple[Path, Path]:
        return self.job.folder / f"image.sample{number}.npy", self.job.folder / f"image.sample{number}.truth.npy"


class _Truth:
    """Collects the light of a block as it passes, blurs it if asked to."""

    def __init__(self, job: Job, core: Region) -> None:
        self._sigma = job.truth_sigma_zyx
        self.halo = tuple(int(_BLUR_REACH * sigma + 0.5) for sigma in self._sigma)
        planes, *self._size = _shape(core)
        wanted = planes + 2 * self.halo[0] if job.truth_store is not None else 0
        self._light = np.zeros((wanted, *self._size), np.float32)

    def take(self, first: int, light: Image, margin: tuple[int, ...]) -> None:
        """Take from light that starts at plane `first` of the block, `margin` before it along y and x."""
        start, stop = max(first, -self.halo[0]), min(first + len(light), len(self._light) - self.halo[0])
        if start >= stop:
            return
        values = light[start - first : stop - first]
        for axis in (1, 2):
            at, size = margin[axis], self._size[axis - 1]
            if self._sigma[axis] > 0:
                around = slice(at - self.halo[axis], at + size + self.halo[axis])
                values = np.take(values, np.arange(around.start, around.stop), axis)
                values = gaussian_filter1d(values, self._sigma[axis], axis, mode="constant", truncate=_BLUR_REACH)
                at = self.halo[axis]
            values = np.take(values, np.arange(at, at + size), axis)
        self._light[start + self.halo[0] : stop + self.halo[0]] = values

    def finished(self) -> Image:
        """The block's truth; empty where none is wanted."""
        if self._sigma[0] > 0 and len(self._light):
            blurred = gaussian_filter1d(self._light, self._sigma[0], 0, mode="constant", truncate=_BLUR_REACH)
            return np.ascontiguousarray(blurred[self.halo[0] : len(blurred) - self.halo[0]])
        return self._light


def _shape(core: Region) -> Triple:
    z, y, x = (part.stop - part.start for part in core)
    return z, y, x


def _largest(values: Image, count: int) -> Image:
    flat = values.reshape(-1)
    count = min(count, flat.size)
    return np.partition(flat, flat.size - count)[flat.size - count :]


def _overlap(tile: tuple[int, int], box: tuple[slice, slice]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a tile of the sensor and a box meet: within the tile, and within the box."""
    inside, outside = [], []
    for number, size, part in zip(tile, _SENSOR_TILE, box, strict=True):
        start, stop = max(number * size, part.start), min((number + 1) * size, part.stop)
        inside.append(slice(start - number * size, stop - number * size))
        outside.append(slice(start - part.start, stop - part.start))
    return tuple(inside), tuple(outside)


def save_kernel(path: Path, kernel: Kernel) -> None:
    """Write a kernel for workers to load."""
    parts = {"near": kernel.near, **({} if kernel.far is None else {"far": kernel.far})}
    np.savez(path, bin_px=np.int64(kernel.bin_px), **parts)  # type: ignore[arg-type]  # names are no options


def load_kernel(path: Path) -> Kernel:
    """Read what `save_kernel` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        return Kernel(stored["near"], stored.get("far"), int(stored["bin_px"]))


def work_here(job: Job) -> Work:
    """What does a job's tasks in this process: called with the name of a BlockMaker method and its arguments."""
    tune_allocator()  # a tenth of the time would go into getting the same memory again for every slab
    return BlockMaker(job).do


def work_there(job: Job, kernel: Path) -> Work:
    """The same in a worker process, for a job whose kernel is in a file."""
    return work_here(replace(job, kernel=load_kernel(kernel)))
