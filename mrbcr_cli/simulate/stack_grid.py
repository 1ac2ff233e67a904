"""How a simulated stack is cut into blocks, which of them are looked at first, and what memory that takes.

Invariant: all of it follows from the size of the stack, the kernel and the thickness of the specimen; neither the
machine nor the number of workers has a say, so the same settings give the same blocks and the same bytes anywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mrbcr_cli.optics.imaging import Kernel, Triple, fft_lengths, is_symmetric
from mrbcr_cli.stream.blocks import Grid, balanced_tile

SAMPLED_BLOCKS = 4
"""Blocks whose light sets the photon scale."""
PEAK_SHARE = 1e-4
"""Share of the voxels looked at that are brighter than the peak: it is their 99.99th percentile."""
_RENDER_COST = 3
"""Making a voxel of a specimen takes 20 to 70 ns on the machine it was measured on, its FFTs 10 to 15 ns."""
_SPECTRUM_BYTES = 288_000_000
_LATERAL_PX = (256, 384, 512, 768, 1024)
_ALIGNMENT_PX = 16
_LARGEST_BLOCK = 20_000_000
"""Voxels that a block keeps at most: about 10 bytes each for image, truth and counts."""
_PROCESS_BYTES = 260_000_000
"""A worker with its libraries, before any block (measured)."""
_RENDER_BYTES = 280_000_000
"""A slab of the specimen while it is made."""
_BYTES_PER_VOXEL = 12
"""Image, truth and counts of a block, and the copies that writing takes."""


@dataclass(frozen=True)
class Lengths:
    """FFT lengths of a grid's blocks for both parts of a kernel."""

    near: Triple
    far: Triple | None

    @property
    def spectrum_bytes(self) -> int:
        """The spectrum of a block's light; the far part's lives while the near part's does not."""
        return max(spectrum_bytes(part) for part in (self.near, self.far) if part is not None)


def spectrum_bytes(lengths: Triple) -> int:
    """Bytes of a half spectrum of complex64."""
    return lengths[0] * lengths[1] * (lengths[2] // 2 + 1) * 8


def choose_grid(shape: Triple, kernel: Kernel, light_planes: tuple[int, int]) -> Grid:
    """The cut that costs least, halos counted, among those whose spectrum takes 288 MB or a single plane."""
    cuts = [_cut(shape, kernel, light_planes, largest) for largest in _LATERAL_PX]
    return min(cuts, key=lambda grid: _cost(grid, kernel, light_planes))


def _cost(grid: Grid, kernel: Kernel, light_planes: tuple[int, int]) -> float:
    """Computing time of all blocks, in units of an FFT's voxel."""
    planes, rows, columns = grid.block_shape
    total = math.prod(lengths_of(grid, kernel, light_planes).near)
    deep, wide = kernel.near_halo[:2], kernel.far_halo[1] * kernel.bin_px
    near = (rows + 2 * deep[1]) * (columns + 2 * deep[1]) * (planes + 2 * deep[0])
    far = (rows + 2 * wide) * (columns + 2 * wide) * (planes + 2 * kernel.far_halo[0]) if wide else 0
    return len(grid) * (total + _RENDER_COST * (near + far / 4))


def _cut(shape: Triple, kernel: Kernel, light_planes: tuple[int, int], largest_px: int) -> Grid:
    """Blocks of about `largest_px` along y and x, of as many planes as fit."""
    rows, columns = (min(balanced_tile(n, largest_px, _ALIGNMENT_PX), n) for n in shape[1:])
    whole = lengths_of(make_grid(shape, (shape[0], rows, columns)), kernel, light_planes).near
    deepest = _SPECTRUM_BYTES // spectrum_bytes((1, *whole[1:]))
    most = deepest if whole[0] <= deepest else deepest - 2 * kernel.near_halo[0]
    most = max(1, min(most, _LARGEST_BLOCK // (rows * columns)))
    return make_grid(shape, (-(-shape[0] // -(-shape[0] // most)), rows, columns))


def make_grid(shape: Triple, block: Triple) -> Grid:
    """A grid of blocks over a stack."""
    return Grid("ZYX", shape, shape, block, (0, 0, 0), (0, 0, 0), {})


def lengths_of(grid: Grid, kernel: Kernel, light_planes: tuple[int, int]) -> Lengths:
    """FFT lengths that serve every block of a grid, whatever planes of the light it sees."""
    planes, rows, columns = grid.block_shape
    cells = tuple(n // kernel.bin_px + 3 for n in (rows, columns))
    near = _longest(grid, kernel.near_halo, (planes, rows, columns), light_planes)
    if kernel.far is None:
        return Lengths(near, None)
    return Lengths(near, _longest(grid, kernel.far_halo, (planes, *cells), light_planes))  # type: ignore[arg-type]


def _longest(grid: Grid, halo: Triple, core: Triple, light_planes: tuple[int, int]) -> Triple:
    # With blocks above or below there is light all the way into the halo.
    return fft_lengths(halo, core, light_planes if grid.counts[0] == 1 else (-halo[0], core[0] + halo[0]))


def worker_bytes(grid: Grid, kernel: Kernel, light_planes: tuple[int, int], truth: bool) -> int:
    """Expected peak memory of a worker process."""
    lengths = lengths_of(grid, kernel, light_planes)
    stored = spectrum_bytes((len(kernel.near), *lengths.near[1:])) // (2 if is_symmetric(kernel.near) else 1)
    block = math.prod(grid.block_shape) * (_BYTES_PER_VOXEL if truth else 8)
    at_work = max(lengths.spectrum_bytes + _RENDER_BYTES // 2, _RENDER_BYTES)
    return int(_PROCESS_BYTES + stored + block + at_work)


def sampled_blocks(grid: Grid) -> tuple[int, ...]:
    """Numbers of the blocks that are looked at first, the middle one first, spread over all axes; all of a few."""
    if len(grid) <= SAMPLED_BLOCKS:
        return tuple(range(len(grid)))
    # Steps of Roberts' sequence: a point of low discrepancy after any number of steps.
    golden = 1.2207440846057596
    found: dict[int, None] = {}
    for step in range(64):
        number = 0
        for axis, count in enumerate(grid.counts):
            number = number * count + int((0.5 + step / golden ** (axis + 1)) % 1.0 * count)
        found[number] = None
        if len(found) == SAMPLED_BLOCKS:
            break
    return tuple(found)
