"""The optics options that `simulate psf` and `simulate stack` share, and how they become a microscope.

Invariant: an explicit option wins over the image given with --like, that over the preset, that over the default; what
was assumed rather than given is said in a note. Wavelengths are in nm here, everything else in um, as users type them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.ome_optics import RecordedOptics
from mrbcr_cli.optics.brightfield import Transmission
from mrbcr_cli.optics.measure import axial_nyquist_um, nyquist_um
from mrbcr_cli.optics.microscope import Microscope, Objective, Preset, find_preset
from mrbcr_cli.optics.zernike import parse_zernike

MicroscopeName = Literal["widefield", "confocal", "two-photon", "light-sheet", "brightfield"]
Zernike = tuple[tuple[int, float], ...]

LARGEST_PIXEL_UM = 20.0
LARGEST_STEP_UM = 100.0
_DRY_BELOW_NA = 0.95
_DEFAULT_WAVELENGTH_NM = 520.0
_OIL, _AIR = 1.515, 1.0


class OpticsSettings(BaseModel):
    """Which microscope; names are the long options with underscores."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    microscope: MicroscopeName | None = None
    """None: as the image of `like` says, else widefield."""
    model: Literal["vectorial", "scalar", "born-wolf"] = "vectorial"
    preset: str | None = None
    like: Path | None = None
    channel: Annotated[int, Field(ge=0)] = 0
    na: float | None = None
    ni: float | None = None
    ns: float | None = None
    ng: float = 1.515
    tg: float = 170.0
    depth: float = 0.0
    ni_design: float | None = None
    ng_design: float | None = None
    tg_design: float | None = None
    working_distance: float = 150.0
    wavelength: float | None = None
    wavelength_ex: float | None = None
    pinhole_au: float = 1.0
    na_illumination: float | None = None
    sheet: Literal["gaussian", "swept"] = "gaussian"
    fresnel: bool = True
    aplanatic: bool = False
    zernike: Zernike = ()
    pixel: float | None = None
    z_step: float | None = None

    @field_validator("zernike", mode="before")
    @classmethod
    def _parse_zernike(cls, value: Any) -> Any:
        if isinstance(value, str):
            return parse_zernike(value)
        if isinstance(value, dict):
            if not all(type(j) is int and isinstance(w, int | float) for j, w in value.items()):
                raise ValueError("must map OSA/ANSI indices to RMS waves, e.g. {4: 0.1, 11: -0.05}")
            return tuple((j, float(w)) for j, w in value.items())
        return value

    @field_validator("pixel")
    @classmethod
    def _pixel_in_um(cls, value: float | None) -> float | None:
        return _length(value, LARGEST_PIXEL_UM, "a pixel")

    @field_validator("z_step")
    @classmethod
    def _step_in_um(cls, value: float | None) -> float | None:
        return _length(value, LARGEST_STEP_UM, "a z step")


def _at_least_one(value: tuple[int, int, int]) -> tuple[int, int, int]:
    if min(value) < 1:
        raise ValueError(f"must be three sizes Z Y X of at least 1, not {' '.join(map(str, value))}")
    return value


Shape = Annotated[tuple[int, int, int], AfterValidator(_at_least_one)]
"""Sizes along z, y, x."""


def _length(value: float | None, largest: float, what: str) -> float | None:
    if value is not None and not 0 < value <= largest:
        raise ValueError(
            f"must be a positive length in um, up to {largest:g}, not {value:g}; {what} in nm? divide by 1000"
        )
    return value


@dataclass(frozen=True)
class Setup:
    """A microscope and its sampling, ready to compute with."""

    kind: str
    optics: Microscope | Transmission
    pixel_um: float
    z_step_um: float
    notes: tuple[str, ...]

    @property
    def na(self) -> float:
        """Numerical aperture of the objective."""
        return self.optics.na if isinstance(self.optics, Transmission) else self.optics.objective.na

    @property
    def n_immersion(self) -> float:
        """Index of the immersion."""
        if isinstance(self.optics, Transmission):
            return self.optics.immersion_index
        return self.optics.objective.n_immersion

    def half_width_px(self, depth_um: float) -> int:
        """Half the width, in pixels, that holds the cone of light `depth_um` out of focus, and some rings."""
        cone_um = depth_um * self.na / math.sqrt(self.n_immersion**2 - self.na**2)
        return math.ceil((1.1 * cone_um + 16 * self.nyquist_zyx_um[1]) / self.pixel_um)

    @property
    def nyquist_zyx_um(self) -> tuple[float, float, float]:
        """Largest sampling steps that lose nothing."""
        if isinstance(self.optics, Microscope):
            lateral = nyquist_um(self.optics)
            return axial_nyquist_um(self.optics), lateral, lateral
        lateral = self.optics.wavelength_um / (2 * (self.optics.na + self.optics.na_illumination))
        return axial_nyquist_um(_as_widefield(self.optics)), lateral, lateral


def _as_widefield(optics: Transmission) -> Microscope:
    return Microscope(Objective(optics.na, optics.immersion_index), optics.wavelength_um)


def set_up(settings: OpticsSettings, recorded: RecordedOptics | None, scale_zyx_um: tuple[float | None, ...]) -> Setup:
    """Turn options into a microscope. `recorded` and `scale_zyx_um` are of the --like image (None, and Nones without).

    Raises InputError when the NA is not to be had, or for numbers that no microscope has.
    """
    notes: list[str] = []
    preset = find_preset(settings.preset) if settings.preset is not None else None
    seen = recorded or RecordedOptics()
    kind = settings.microscope or seen.microscope or "widefield"
    objective = _objective(settings, seen, preset, notes)
    emission = settings.wavelength if settings.wavelength is not None else seen.emission_nm
    excitation = settings.wavelength_ex if settings.wavelength_ex is not None else seen.excitation_nm
    if emission is None:
        emission = _DEFAULT_WAVELENGTH_NM if kind != "two-photon" or excitation is None else excitation / 2
        if kind != "two-photon":
            notes.append(f"wavelength {emission:g} nm assumed; --wavelength sets it")
    optics: Microscope | Transmission
    if kind == "brightfield":
        optics = _transmission(settings, objective, emission, notes)
    else:
        optics = Microscope(
            objective=objective,
            wavelength_um=emission / 1e3,
            kind=kind,  # type: ignore[arg-type]  # brightfield is handled above
            wavelength_ex_um=None if excitation is None else excitation / 1e3,
            pinhole_au=settings.pinhole_au,
            na_illumination=0.1 if settings.na_illumination is None else settings.na_illumination,
            sheet=settings.sheet,
            model=settings.model,
            fresnel=settings.fresnel,
            aplanatic=settings.aplanatic,
            zernike_waves=settings.zernike,
        )
        if kind == "light-sheet" and objective.depth_um > 0:
            from mrbcr_cli.optics.psf import with_sheet_in_focus

            optics = with_sheet_in_focus(optics)
            notes.append(
                f"the light sheet is at the best focus, {optics.sheet_um:.3g} um of stage from the nominal one"
            )
    setup = Setup(kind, optics, 1.0, 1.0, ())
    z, y, _ = setup.nyquist_zyx_um
    pixel = settings.pixel or scale_zyx_um[1]
    step = settings.z_step or scale_zyx_um[0]
    if pixel is None:
        pixel = float(f"{0.9 * y:.2g}")
        notes.append(f"pixel {pixel:g} um assumed (just below Nyquist); --pixel sets it")
    if step is None:
        step = float(f"{0.9 * z:.2g}")
        notes.append(f"z step {step:g} um assumed (just below Nyquist); --z-step sets it")
    return Setup(kind, optics, pixel, step, tuple(notes))


def _objective(settings: OpticsSettings, seen: RecordedOptics, preset: Preset | None, notes: list[str]) -> Objective:
    base = preset.objective if preset is not None else None
    na = settings.na if settings.na is not None else seen.na
    if na is None:
        if base is None:
            where = f"{settings.like}: its metadata name no objective; " if settings.like is not None else ""
            raise InputError(f"{where}give the numerical aperture with --na, or an objective with --preset")
        na = base.na
    index = settings.ni if settings.ni is not None else seen.n_immersion
    if index is None and base is not None:
        index = base.n_immersion
    if index is None:
        index = _AIR if na < _DRY_BELOW_NA else _OIL
        medium = "air" if index == _AIR else "oil"
        notes.append(f"immersion index {index:g} assumed ({medium}) for NA {na:g}; --ni sets it")
    if settings.depth > 0 and (settings.ns is None or settings.ns == index):
        notes.append("depth changes nothing where sample and immersion have the same index; --ns sets the sample's")
    return Objective(
        na=na,
        n_immersion=index,
        n_sample=settings.ns,
        n_coverslip=settings.ng,
        coverslip_um=settings.tg,
        depth_um=settings.depth,
        n_immersion_design=settings.ni_design,
        n_coverslip_design=settings.ng_design,
        coverslip_design_um=settings.tg_design,
        working_distance_um=settings.working_distance,
    )


def _transmission(settings: OpticsSettings, objective: Objective, emission_nm: float, notes: list[str]) -> Transmission:
    if settings.zernike:
        raise InputError("--zernike means nothing to --microscope brightfield here; leave it out")
    condenser = settings.na_illumination
    if condenser is None:
        condenser = float(f"{min(0.7 * objective.na, 0.9):.2g}")
        notes.append(f"condenser NA {condenser:g} assumed; --na-illumination sets it")
    return Transmission(
        na=objective.na,
        na_illumination=condenser,
        wavelength_um=emission_nm / 1e3,
        immersion_index=objective.n_immersion,
    )
