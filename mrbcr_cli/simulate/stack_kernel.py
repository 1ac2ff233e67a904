"""From the optics of a stack to the kernel that images it: how far it reaches, how bright it is, what it leaves out.

Invariant: the plane that gets most of a voxel's light gets 1, so a voxel's light is told in photons of its own plane. A
widefield microscope gets the same light in every plane: what its window misses is added to the window's dim part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import next_fast_len

from mrbcr_cli.optics.brightfield import MAX_WAVES, Transmission, transfer_functions_2d
from mrbcr_cli.optics.imaging import Kernel, split_kernel
from mrbcr_cli.optics.microscope import Grid, Microscope
from mrbcr_cli.optics.psf import compute_psf, sheet_profile
from mrbcr_cli.simulate.optics_settings import Setup

LARGEST_REACH_PLANES = 64
LARGEST_REACH_PX = 320
SLOW_REACH_PLANES, SLOW_REACH_PX = 40, 160
"""The same with Zernike terms, and the planes of brightfield: without tables over radius they would take minutes."""
_SMALLEST_REACH_PX = 32
_PLANES_AT_ONCE = 4
_SPREAD_SHARE = 0.02
"""Share of the outermost plane's light whose displacement is worth a note."""
_LEFT_OUT_SHARE = 1e-3
"""Of the brightest plane's light: what the planes beyond the reach must hold to be worth a note."""


@dataclass(frozen=True, eq=False)
class Imaging:
    """A kernel with what is said of it."""

    kernel: Kernel
    sampling: str
    """ "pixel": the camera's pixel averages; "point": a scanned spot."""
    facts: dict[str, Any]
    """JSON-able."""
    notes: tuple[str, ...]


def make_imaging(setup: Setup, wanted_planes: int, absorption: float, phase: float) -> Imaging:
    """The kernel of a microscope for light up to `wanted_planes` away from the plane in focus.

    `absorption`, `phase` (brightfield only): what an object of column 1 absorbs of the light, and delays it by, in
    radian. Raises InputError for optics that cannot be computed.
    """
    planes = min(wanted_planes, LARGEST_REACH_PLANES)
    if isinstance(setup.optics, Transmission):
        most_um = MAX_WAVES / setup.optics.axial_bandwidth
        planes = min(planes, SLOW_REACH_PLANES, int(most_um / setup.z_step_um))
        half_px = _half_px(setup, planes)
        kernel = _contrast_kernel(setup, setup.optics, planes, half_px, absorption, phase)
        sampling, captured = "pixel", 1.0
    else:
        if setup.optics.zernike_waves:
            planes = min(planes, SLOW_REACH_PLANES)
        half_px = _half_px(setup, planes)
        if setup.optics.zernike_waves:
            half_px = min(half_px, SLOW_REACH_PX)
        sampling = "point" if setup.kind in ("confocal", "two-photon") else "pixel"
        kernel, captured = _light_kernel(setup, setup.optics, planes, half_px, sampling)
    sums = kernel.plane_sums
    reach = len(sums) // 2
    facts = {
        "reach_planes": reach,
        "reach_um": reach * setup.z_step_um,
        "bright_part_zyx": [2 * h + 1 for h in kernel.near_halo],
        "dim_part_zyx": [2 * h + 1 for h in kernel.far_halo] if kernel.far is not None else None,
        "dim_part_cell_px": kernel.bin_px,
        "half_width_px": max(kernel.near_halo[1], kernel.far_halo[1] * kernel.bin_px),
        "captured_outermost": captured,
    }
    notes = []
    left = max(abs(sums[0]), abs(sums[-1])) / np.abs(sums).max()
    if wanted_planes > reach and reach == planes and left > _LEFT_OUT_SHARE:
        notes.append(
            f"light from more than {reach * setup.z_step_um:.3g} um out of focus ({reach} planes) is left out; the "
            f"specimen reaches {wanted_planes * setup.z_step_um:.3g} um"
        )
    if captured < 1 - _SPREAD_SHARE:
        notes.append(
            f"{100 * (1 - captured):.0f} % of the light of the plane farthest from focus goes beyond "
            f"{half_px * setup.pixel_um:.3g} um sideways; it is put within"
        )
    return Imaging(kernel, sampling, facts, tuple(notes))


def _half_px(setup: Setup, planes: int) -> int:
    """Half the width of the window: the cone of light in its outermost plane and some rings, within bounds."""
    return min(max(setup.half_width_px(planes * setup.z_step_um), _SMALLEST_REACH_PX), LARGEST_REACH_PX)


def _light_kernel(setup: Setup, optics: Microscope, planes: int, half_px: int, sampling: str) -> tuple[Kernel, float]:
    """The kernel, and the share of the outermost plane's light that its window holds (1 where that is not known)."""
    size = 2 * half_px + 1
    grid = Grid((2 * planes + 1, size, size), setup.pixel_um, setup.z_step_um, sampling)  # type: ignore[arg-type]
    psf = compute_psf(optics, grid, normalize="plane").numpy()
    energy = _plane_energy(optics, grid)
    captured = 1.0
    if energy is not None:
        captured = min(float(psf[k].sum(dtype=np.float64) / max(energy[k], 1e-12)) for k in (0, -1))
        captured = captured if min(energy[0], energy[-1]) > _LEFT_OUT_SHARE else 1.0
    kernel = split_kernel(psf, energy)
    brightest = float(kernel.plane_sums.max())
    far = None if kernel.far is None else (kernel.far / brightest).astype(np.float32)
    return Kernel((kernel.near / brightest).astype(np.float32), far, kernel.bin_px), captured


def _plane_energy(optics: Microscope, grid: Grid) -> NDArray[np.float64] | None:
    """What a whole plane holds, where that is known: a camera gets all light of the objective in every plane."""
    if optics.kind == "widefield":
        return np.ones(grid.shape_zyx[0])
    if optics.kind == "light-sheet":
        return sheet_profile(optics, torch.tensor(grid.offsets_um(0), dtype=torch.float64)).numpy()
    return None


def _contrast_kernel(
    setup: Setup, optics: Transmission, planes: int, half_px: int, absorption: float, phase: float
) -> Kernel:
    """Contrast I / background - 1 for an object of light 1 a column, which absorbs and delays as it has light.

    A share `absorption` of the intensity is absorbed by half that exponent of the amplitude. The transform is as long
    as the window: what goes beyond comes in on the other side, and the sum of a plane is exact.
    """
    size = 2 * half_px + 1
    length = next_fast_len(size, real=True)
    box = torch.sinc(torch.fft.fftfreq(length, dtype=torch.float64))
    blur = box[:, None] * box
    response = np.empty((2 * planes + 1, size, size), np.float32)
    at = (np.arange(size) - half_px) % length
    for start in range(0, planes + 1, _PLANES_AT_ONCE):
        stop = min(start + _PLANES_AT_ONCE, planes + 1)
        z_um = np.arange(start, stop, dtype=np.float64) * setup.z_step_um
        absorbs, delays = transfer_functions_2d(optics, z_um, (length, length), setup.pixel_um, oblique=True)
        even, odd = (torch.fft.ifft2(part * blur).real.numpy()[:, at[:, None], at] for part in (absorbs, delays))
        for k in range(start, stop):
            for side in (1, -1):
                contrast = side * phase * odd[k - start] - absorption / 2 * even[k - start]
                response[planes + side * k] = contrast
    return split_kernel(response)
