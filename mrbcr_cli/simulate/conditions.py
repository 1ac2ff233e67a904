"""What differs from pair to pair: optics, light, camera, drawn from stated ranges.

Invariant: everything random about a pair except its structures and its noise is drawn here, in a fixed order, from the
generator that is passed in, and comes out as plain numbers that go into the record.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mrbcr_cli.optics.brightfield import Transmission
from mrbcr_cli.optics.camera import Camera
from mrbcr_cli.optics.measure import axial_nyquist_um, nyquist_um
from mrbcr_cli.optics.microscope import Microscope, Objective
from mrbcr_cli.optics.psf import Focus, find_focus, with_sheet_in_focus
from mrbcr_cli.optics.zernike import order

if TYPE_CHECKING:
    from mrbcr_cli.simulate.pairs_settings import PairsSettings, Range

_AIR, _WATER, _OIL = 1.0, 1.33, 1.515
_DRY_BELOW_NA, _WATER_BELOW_NA = 0.95, 1.25
_ABERRATIONS = (3, 5, 6, 7, 8, 9, 10, 11, 12)
"""Third and fourth order but defocus: what objectives, coverslips and specimens add."""


@dataclass(frozen=True)
class Conditions:
    """One pair's microscope, light and camera."""

    optics: Microscope | Transmission | None
    """None: the PSF comes from a file."""
    pixel_um: float
    z_um: tuple[float, ...]
    """Depths of the planes of the scene; the plane of the target is at 0."""
    stage_um: tuple[float, ...]
    """Where the stage is, seen from each plane: what the PSF is evaluated at."""
    fwhm_px: float
    """In-focus FWHM of the PSF."""
    fwhm_z_um: float
    target_fwhm_px: float
    target_fwhm_z_um: float
    haze: float | None
    absorption: float
    phase_rad: float
    photons: float
    background_photons: float
    camera: Camera
    scmos: bool

    def record(self) -> dict[str, Any]:
        """JSON-able."""
        values = asdict(self)
        values["z_um"], values["stage_um"] = ([round(v, 6) for v in values[k]] for k in ("z_um", "stage_um"))
        return values


def uniform(rng: np.random.Generator, span: Range) -> float:
    """A number between the two, evenly."""
    return float(rng.uniform(*span)) if span[0] < span[1] else float(span[0])


def log_uniform(rng: np.random.Generator, span: Range) -> float:
    """A positive number between the two, every factor alike."""
    return math.exp(uniform(rng, (math.log(span[0]), math.log(span[1]))))


def check_extremes(settings: PairsSettings) -> None:
    """Make the microscopes and cameras at the ends of all ranges. Raises InputError for what none can be."""
    for end in (0, 1):
        at_end = settings.model_copy(
            update={
                name: (value[end], value[end])
                for name in type(settings).model_fields
                if name not in ("splits", "zernike") and _is_span(value := getattr(settings, name))
            }
            | {"zernike": {j: (span[end], span[end]) for j, span in settings.zernike.items()}}
        )
        rng = np.random.default_rng(0)
        microscope = _draw_microscope(rng, at_end)
        if settings.microscope == "brightfield":
            _transmission(rng, at_end, microscope)
        _draw_camera(rng, at_end)


def _is_span(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, float) for v in value)


def usual_immersion(na: float) -> float:
    """Index of the immersion that objectives of this NA are made for: air, water or oil."""
    return _AIR if na < _DRY_BELOW_NA else _WATER if na < _WATER_BELOW_NA else _OIL


def draw_conditions(
    rng: np.random.Generator, settings: PairsSettings, stored_psf: StoredFocus | None = None
) -> Conditions:
    """Draw one pair's conditions. With `stored_psf` the optics are those of a file, the rest is drawn as ever."""
    thickness_um = log_uniform(rng, settings.thickness)
    optics: Microscope | Transmission | None = None
    best_um, deeper = 0.0, 1.0
    if stored_psf is not None:
        focus = Focus(0.0, stored_psf.fwhm_z_um, stored_psf.fwhm_xy_um)
        limit_um, pixel_um, step_um = stored_psf.pixel_um, stored_psf.pixel_um, stored_psf.z_step_um
    else:
        microscope = with_sheet_in_focus(_draw_microscope(rng, settings))
        focus = find_focus(microscope)
        limit_um, step_um = nyquist_um(microscope), axial_nyquist_um(microscope)
        if settings.microscope != "brightfield":  # its transfer functions know no layers
            best_um = focus.z_um
            # The stage moves by n_immersion / n_sample of the depth it refocuses by (paraxially).
            deeper = microscope.objective.ns / microscope.objective.n_immersion
        optics = microscope
    lateral_um = focus.fwhm_xy_um or 2 * limit_um
    axial_um = (focus.fwhm_z_um or 4 * step_um) * deeper
    if stored_psf is None:
        pixel_um = lateral_um / uniform(rng, settings.fwhm) if settings.pixel is None else uniform(rng, settings.pixel)
        # Planes no closer than half the depth of focus: what lies between looks the same to the microscope.
        step_um = max(thickness_um / settings.planes, 0.5 * axial_um)
    if isinstance(optics, Microscope) and settings.microscope == "brightfield":
        optics = _transmission(rng, settings, optics)
    count = settings.planes if stored_psf is None else stored_psf.planes
    half = min(count // 2, max(0, round((thickness_um / step_um - 1) / 2)))
    z_um = tuple((k - half) * step_um for k in range(2 * half + 1))
    defocus_um = uniform(rng, settings.defocus)
    fwhm_px = lateral_um / pixel_um
    finer = uniform(rng, settings.target_resolution)
    haze = None if settings.haze is None or settings.microscope != "widefield" else uniform(rng, settings.haze)
    light = draw_light(rng, settings)
    return Conditions(
        optics=optics,
        pixel_um=pixel_um,
        z_um=z_um,
        stage_um=tuple(best_um + defocus_um - z / deeper for z in z_um),
        fwhm_px=fwhm_px,
        fwhm_z_um=axial_um,
        target_fwhm_px=max(finer * fwhm_px, settings.target_least),
        target_fwhm_z_um=finer * axial_um,
        haze=haze,
        absorption=uniform(rng, settings.absorption),
        phase_rad=uniform(rng, settings.phase),
        photons=light.photons,
        background_photons=light.background_photons,
        camera=light.camera,
        scmos=light.scmos,
    )


@dataclass(frozen=True)
class Light:
    """One exposure: what arrives and what counts it."""

    photons: float
    """At the peak, or of the bright field."""
    background_photons: float
    camera: Camera
    scmos: bool
    """Whether every pixel has its own offset, gain and read noise."""


def draw_light(rng: np.random.Generator, settings: PairsSettings) -> Light:
    """Draw the exposure of one pair, or of another exposure of the same field."""
    camera = _draw_camera(rng, settings)
    background = uniform(rng, settings.background)
    photons = min(log_uniform(rng, settings.photon_span), _full_well(settings, camera, background))
    return Light(photons, photons * background, camera, bool(rng.random() < settings.scmos))


def _full_well(settings: PairsSettings, camera: Camera, background: float) -> float:
    """Photons at the peak that nearly fill the camera: an exposure is set so that an image does not saturate.

    Never below the least that the user asks for; what saturates then is recorded.
    """
    electrons = (camera.white_adu - camera.offset_adu) / camera.gain_adu - camera.dark_e
    reserve = 0.6 if settings.microscope == "brightfield" else 0.8 / (1.0 + background)
    return max(settings.photon_span[0], reserve * electrons / camera.quantum_efficiency)


@dataclass(frozen=True)
class StoredFocus:
    """What the conditions need to know of a PSF file."""

    pixel_um: float
    z_step_um: float
    planes: int
    fwhm_xy_um: float
    fwhm_z_um: float | None


def _draw_microscope(rng: np.random.Generator, settings: PairsSettings) -> Microscope:
    na = uniform(rng, settings.na)
    index = usual_immersion(na) if settings.ni is None else uniform(rng, settings.ni)
    emission = uniform(rng, settings.wavelength) / 1e3
    kind = settings.microscope
    excitation = None
    if kind in ("confocal", "two-photon", "light-sheet"):
        span = settings.wavelength_ex
        usual = 2 * emission if kind == "two-photon" else 0.92 * emission
        excitation = usual if span is None else uniform(rng, span) / 1e3
    objective = Objective(
        na=na,
        n_immersion=index,
        n_sample=None if settings.ns is None else uniform(rng, settings.ns),
        depth_um=uniform(rng, settings.depth),
    )
    return Microscope(
        objective=objective,
        wavelength_um=emission,
        kind="widefield" if kind == "brightfield" else kind,
        wavelength_ex_um=excitation,
        pinhole_au=uniform(rng, settings.pinhole_au),
        na_illumination=0.1
        if settings.na_illumination is None or kind != "light-sheet"
        else uniform(rng, settings.na_illumination),
        model=settings.model,
        zernike_waves=_draw_zernike(rng, settings),
    )


def _draw_zernike(rng: np.random.Generator, settings: PairsSettings) -> tuple[tuple[int, float], ...]:
    waves = {j: uniform(rng, span) for j, span in sorted(settings.zernike.items())}
    if settings.aberration[1] > 0:
        direction = rng.standard_normal(len(_ABERRATIONS))
        direction *= uniform(rng, settings.aberration) / np.linalg.norm(direction)
        for j, value in zip(_ABERRATIONS, direction, strict=True):
            waves[j] = waves.get(j, 0.0) + float(value)
    return tuple(sorted({**waves, **_register(waves)}.items()))


def _register(waves: dict[int, float]) -> dict[int, float]:
    """Tilts (terms 1 and 2) that bring the centroid of the PSF back to the axis: recorded and target are in register.

    The centroid moves by the mean slope of the pupil, by the divergence theorem sqrt(2 (n + 1)) for each term of
    angular order 1; a tilt has 2.
    """
    slopes = {-1: 0.0, 1: 0.0}
    for j, value in waves.items():
        n, m = order(j)
        if abs(m) == 1:
            slopes[m] += value * math.sqrt(2 * (n + 1))
    return {j: -slope / 2 for j, slope in ((1, slopes[-1]), (2, slopes[1])) if slope}


def _transmission(rng: np.random.Generator, settings: PairsSettings, microscope: Microscope) -> Transmission:
    objective = microscope.objective
    span = settings.na_illumination or (0.4 * objective.na, 0.9 * min(objective.na, 1.0))
    return Transmission(
        na=objective.na,
        na_illumination=min(uniform(rng, span), objective.na),
        wavelength_um=microscope.wavelength_um,
        immersion_index=objective.n_immersion,
    )


def _draw_camera(rng: np.random.Generator, settings: PairsSettings) -> Camera:
    return Camera(
        quantum_efficiency=uniform(rng, settings.qe),
        gain_adu=log_uniform(rng, settings.gain),
        offset_adu=uniform(rng, settings.offset),
        read_noise_e=uniform(rng, settings.read_noise),
        dark_e=uniform(rng, settings.dark),
        bit_depth=settings.bit_depth,
    )
