"""`mrbcr simulate psf`: compute a PSF, or measure one from beads, describe it and write it.

Invariant: everything that can be wrong is found before anything is written; the file carries every number that made it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli import __version__
from mrbcr_cli.errors import InputError
from mrbcr_cli.images.base import OutputSpec
from mrbcr_cli.images.ome_optics import RecordedOptics, read_optics
from mrbcr_cli.optics.brightfield import Transmission, point_images, transfer_functions_2d
from mrbcr_cli.optics.measure import psf_fwhm_um
from mrbcr_cli.optics.microscope import Grid, Microscope
from mrbcr_cli.simulate.optics_settings import OpticsSettings, Setup, Shape, set_up

DEFAULT_PLANES = 33
_LATERAL_RANGE = (65, 401)
TRANSMISSION_CHANNELS = ("absorption response", "phase response", "absorption transfer", "phase transfer")
_FLOPS = 3e10
"""Complex matrix products of one to two cores, cautiously; the time that is announced comes from it."""
_LONG_S = 20.0
_CUT_SHARE = 0.03
"""Of the light of the outermost plane that a volume may lose unremarked."""


class PsfSettings(OpticsSettings):
    """All options of `mrbcr simulate psf` that describe a computed PSF."""

    shape: Shape | None = None
    """None: 33 planes, as wide as the cone of light in the outermost."""
    sampling: Literal["point", "pixel"] | None = None
    """None: pixel for a camera, point for a scanned spot (confocal, two-photon)."""
    centring: Literal["voxel", "between"] | None = None
    normalize: Literal["sum", "max"] = "sum"


@dataclass(frozen=True, eq=False)
class MadePsf:
    """A PSF ready to be written, with what is said of it."""

    array: NDArray[np.float32]
    """ZYX, or CZYX with the channels TRANSMISSION_CHANNELS (brightfield)."""
    axes: str
    voxel_zyx_um: tuple[float, float, float]
    facts: dict[str, Any]
    """JSON-able, for --json and the file's provenance."""
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def responses(self) -> dict[str, NDArray[np.float32]]:
        """What there is to draw, by name, each ZYX."""
        if self.axes == "ZYX":
            return {"PSF": self.array}
        return {"absorption": self.array[0], "phase": self.array[1]}

    @property
    def psf_zyx(self) -> NDArray[np.float32]:
        """The PSF to look at: of brightfield the absorption."""
        return self.array if self.axes == "ZYX" else self.array[0]


def read_like(settings: OpticsSettings) -> tuple[RecordedOptics | None, tuple[float | None, ...]]:
    """Optics and voxel size (z, y, x in um) that the --like image records. Raises InputError."""
    if settings.like is None:
        return None, (None, None, None)
    from mrbcr_cli.images import find_source, open_source

    reader = open_source(find_source(str(settings.like)))
    try:
        info = reader.info
    finally:
        reader.close()
    if info.ome_xml is None:
        raise InputError(
            f"{settings.like}: has no OME metadata to take optics from; give --na and --wavelength instead"
        )
    recorded = read_optics(info.ome_xml, path=str(settings.like), series=info.series, channel=settings.channel)
    return recorded, tuple(info.scale_um(axis) for axis in "ZYX")


def make_psf(settings: PsfSettings, say: Callable[[str], None] = lambda _: None) -> MadePsf:
    """Compute the PSF of the settings; `say` hears beforehand when it will take long.

    Raises InputError before anything heavy for what is impossible."""
    setup = set_up(settings, *read_like(settings))
    scanned = setup.kind in ("confocal", "two-photon")
    grid = Grid(
        settings.shape or default_shape(setup),
        setup.pixel_um,
        setup.z_step_um,
        settings.sampling or ("point" if scanned else "pixel"),
        settings.centring,
    )
    _refuse_too_large(setup, grid, say)
    if isinstance(setup.optics, Transmission):
        return _transmission_psf(settings, setup, setup.optics, grid)
    from mrbcr_cli.optics.psf import compute_psf

    psf = compute_psf(setup.optics, grid, normalize=settings.normalize).numpy()
    voxel = (grid.z_step_um, grid.pixel_um, grid.pixel_um)
    fwhm, how = _fwhm(setup.optics, psf, voxel)
    facts = _facts(settings, setup, grid) | {"fwhm_zyx_um": fwhm, "fwhm_from": how}
    captured = captured_shares(setup.optics, psf, grid)
    if captured is not None:
        facts["captured_focus"], facts["captured_outermost"] = captured
    return MadePsf(psf, "ZYX", voxel, facts, setup.notes, _warnings(setup, grid, psf, captured))


def _refuse_too_large(setup: Setup, grid: Grid, say: Callable[[str], None]) -> None:
    """Raise InputError where memory will not do, and `say` where it will take long.

    A PSF is made in memory: about twenty bytes a voxel, and through a pupil the pupil's samples several times.
    """
    from mrbcr_cli.capacity import available_memory_bytes
    from mrbcr_cli.console import bytes_text, clock_text

    voxels, per_plane = math.prod(grid.shape_zyx), math.prod(grid.shape_zyx[1:])
    need, free = 20 * voxels + 80 * per_plane, available_memory_bytes()
    why = ""
    if isinstance(setup.optics, Microscope) and setup.optics.zernike_waves:
        from mrbcr_cli.optics.pupil import sample_count
        from mrbcr_cli.optics.sampling import farthest_um

        z_um = max(abs(z) for z in grid.offsets_um(0))
        wavelength = min(setup.optics.excitation_um, setup.optics.wavelength_um)
        samples = sample_count(setup.optics, wavelength, farthest_um(grid), z_um)
        why = "; aberrated PSFs need a pupil as fine as the volume is wide and deep"
        need += 5 * 16 * 6 * samples**2 + 60 * voxels
        seconds = 5 * 8 * grid.shape_zyx[0] * samples * grid.shape_zyx[2] * (samples + grid.shape_zyx[1]) / _FLOPS
        if seconds > _LONG_S:
            say(f"aberrated: through a pupil of {samples} x {samples} samples, about {clock_text(seconds)} (h:mm:ss)")
    if need > free:
        sizes = " x ".join(map(str, grid.shape_zyx))
        raise InputError(
            f"a PSF of {sizes} voxels needs {bytes_text(need)} of memory, {bytes_text(free)} are free{why}"
        )


def default_shape(setup: Setup) -> tuple[int, int, int]:
    """33 planes; laterally odd and wide enough for the geometric cone of the outermost (scanned: for the focus)."""
    scanned = setup.kind in ("confocal", "two-photon")
    half = setup.half_width_px(0.0 if scanned else DEFAULT_PLANES // 2 * setup.z_step_um)
    size = min(max(2 * half + 1, _LATERAL_RANGE[0]), _LATERAL_RANGE[1])
    return DEFAULT_PLANES, size, size


def _transmission_psf(settings: PsfSettings, setup: Setup, optics: Transmission, grid: Grid) -> MadePsf:
    if any(n % 2 == 0 for n in grid.shape_zyx):
        raise InputError("--microscope brightfield needs odd sizes: give --shape with three odd numbers")
    z_um, shape_yx = grid.offsets_um(0), grid.shape_zyx[1:]
    responses = point_images(optics, z_um, shape_yx, grid.pixel_um, grid.sampling).numpy()
    transfers = [t.numpy() for t in transfer_functions_2d(optics, z_um, shape_yx, grid.pixel_um)]
    centred = np.fft.fftshift(np.stack(transfers), axes=(-2, -1))
    # A response is scaled to show; a transfer function keeps its unit: 2 for an absorber at zero frequency.
    array = np.concatenate([responses / np.abs(responses[0]).max(), centred]).astype(np.float32)
    voxel = (grid.z_step_um, grid.pixel_um, grid.pixel_um)
    facts = _facts(settings, setup, grid) | {
        "fwhm_zyx_um": psf_fwhm_um(np.abs(array[0]), voxel),
        "fwhm_from": "absorption",
        "normalize": "largest absorption response 1",
    }
    note = (
        "four channels: responses to a point absorber and to a point phase object (with sign), both transfer functions "
        "(zero frequency in the middle, 1 / (N * pixel) a step); not an intensity PSF, deconvolution does not take it"
    )
    return MadePsf(array, "CZYX", voxel, facts, (*setup.notes, note), _warnings(setup, grid, array[0], None))


def _facts(settings: PsfSettings, setup: Setup, grid: Grid) -> dict[str, Any]:
    z, y, _ = setup.nyquist_zyx_um
    return {
        "microscope": setup.kind,
        "optics": asdict(setup.optics),
        "shape_zyx": list(grid.shape_zyx),
        "voxel_zyx_um": [grid.z_step_um, grid.pixel_um, grid.pixel_um],
        "sampling": grid.sampling,
        "centring": grid.centring,
        "normalize": settings.normalize,
        "nyquist_pixel_um": y,
        "nyquist_z_step_um": z,
    }


def _fwhm(
    microscope: Microscope, psf: NDArray[np.float32], voxel: tuple[float, float, float]
) -> tuple[tuple[float | None, ...], str]:
    """Widths of the model itself where it is symmetric; of the voxels otherwise."""
    if microscope.zernike_waves:
        return psf_fwhm_um(psf, voxel), "voxels"
    from mrbcr_cli.optics.psf import find_focus

    focus = find_focus(microscope)
    return (focus.fwhm_z_um, focus.fwhm_xy_um, focus.fwhm_xy_um), "model"


def captured_shares(microscope: Microscope, psf: NDArray[np.float32], grid: Grid) -> tuple[float, float] | None:
    """Share of a plane's light that falls into the volume, in focus and in its outermost plane; None for others.

    Only what a camera sees whole (widefield, light-sheet has its sheet on top) has planes of known light.
    """
    if microscope.kind != "widefield" or microscope.zernike_waves:
        return None
    import torch

    from mrbcr_cli.optics.psf import compute_psf

    z = grid.offsets_um(0)
    ends = torch.tensor([z[len(z) // 2], z[0], z[-1]], dtype=torch.float64)
    focus, first, last = compute_psf(microscope, grid, normalize="plane", z_um=ends).double().sum((1, 2)).tolist()
    return focus, min(first, last)


def _warnings(
    setup: Setup, grid: Grid, psf: NDArray[np.float32], captured: tuple[float, float] | None
) -> tuple[str, ...]:
    said = []
    z, y, _ = setup.nyquist_zyx_um
    if grid.pixel_um > 1.001 * y:
        said.append(f"undersampled: the pixel of {grid.pixel_um:g} um is above Nyquist, {y:.4g} um; detail is aliased")
    if grid.shape_zyx[0] > 1 and grid.z_step_um > 1.001 * z:
        said.append(f"undersampled: the z step of {grid.z_step_um:g} um is above Nyquist, {z:.4g} um")
    if captured is not None and captured[1] < 1 - _CUT_SHARE:
        said.append(
            f"the volume cuts the PSF off: {100 * (1 - captured[1]):.0f} % of the light of its outermost plane falls "
            f"beside it ({100 * (1 - captured[0]):.1f} % in focus); make it wider, or less deep"
        )
    peak = np.abs(psf).max()
    edge = max(float(np.abs(psf[k]).max()) for k in (0, -1)) / peak if len(psf) > 1 else 0.0
    if captured is None and len(psf) > 1:
        sides = max(float(np.abs(part).max()) for part in (psf[:, 0], psf[:, -1], psf[:, :, 0], psf[:, :, -1])) / peak
        edge = max(edge, sides)
    if edge > 0.1 and not math.isclose(edge, 1.0):
        said.append(f"the volume cuts the PSF off: at its border it still has {100 * edge:.0f} % of its peak")
    return tuple(said)


def output_spec(made: MadePsf, name: str, command: str) -> OutputSpec:
    """How the PSF is written: float32, micrometres, every number that made it."""
    channels = TRANSMISSION_CHANNELS if made.axes == "CZYX" else ()
    lead: tuple[float | None, ...] = (None,) if channels else ()
    return OutputSpec(
        axes=made.axes,
        shape=made.array.shape,
        dtype=np.dtype(np.float32),
        stored_axes=made.axes,
        scale=(*lead, *made.voxel_zyx_um),
        units=(*(None for _ in lead), "micrometer", "micrometer", "micrometer"),
        channel_names=channels,
        name=name,
        provenance={
            "command": command,
            "version": __version__,
            "kind": "psf",
            "psf": made.facts,
            "notes": [*made.notes, *made.warnings],
        },
    )


def summary_lines(made: MadePsf) -> list[str]:
    """What is said of a PSF, for people."""
    facts = made.facts
    size = " x ".join(str(n) for n in made.psf_zyx.shape)
    z, y, x = made.voxel_zyx_um
    lines = [f"{facts['microscope']} PSF, {size} voxels of {z:g} x {y:g} x {x:g} um (z y x)"]
    axial, *lateral = (f"{w:.4g} um" if w is not None else "beyond the volume" for w in facts["fwhm_zyx_um"])
    across = lateral[0] if lateral[0] == lateral[1] else f"y {lateral[0]}, x {lateral[1]}"
    if made.psf_zyx.shape[0] > 1 or facts["fwhm_from"] == "model":
        across += f", along z {axial}"
    lines.append(f"FWHM: lateral {across}")
    if "nyquist_pixel_um" in facts:
        lines.append(f"Nyquist: pixel {facts['nyquist_pixel_um']:.4g} um, z step {facts['nyquist_z_step_um']:.4g} um")
    return lines
