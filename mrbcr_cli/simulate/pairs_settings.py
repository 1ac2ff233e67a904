"""What a user may set of `mrbcr simulate pairs`, checked before anything is opened.

Invariant: a settings object that exists is valid by itself and, with the source images, decides every byte of the
output. Numbers that vary are a pair [LOW, HIGH]; one is fixed. Lengths are in um, wavelengths in nm, light in photons.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from mrbcr_cli.optics.camera import Camera
from mrbcr_cli.optics.microscope import LARGEST_ZERNIKE
from mrbcr_cli.simulate.optics_settings import LARGEST_PIXEL_UM

Range = tuple[float, float]

_BOUNDS = {
    "scale": (1.0, 100.0, ""),
    "gamma": (0.1, 10.0, ""),
    "na": (0.02, 1.7, ""),
    "fwhm": (1.0, 50.0, " px"),
    "depth": (0.0, 1000.0, " um"),
    "defocus": (-20.0, 20.0, " um"),
    "aberration": (0.0, 1.0, " waves"),
    "pinhole_au": (0.05, 20.0, " Airy units"),
    "thickness": (0.05, 100.0, " um"),
    "absorption": (0.0, 1.0, ""),
    "phase": (-3.2, 3.2, " rad"),
    "photons": (1.0, 1e7, " photons"),
    "background": (0.0, 100.0, " of the peak"),
    "gain": (0.01, 1000.0, " counts per electron"),
    "offset": (0.0, 60000.0, " counts"),
    "read_noise": (0.0, 1000.0, " electrons"),
    "dark": (0.0, 1e5, " electrons"),
    "target_resolution": (0.05, 1.0, ""),
}

_OPTICS = (
    *("model", "na", "ni", "ns", "wavelength", "wavelength_ex", "fwhm", "depth", "aberration", "zernike"),
    *("pinhole_au", "na_illumination"),
)
"""What a PSF file decides."""


def _as_range(value: Any) -> Any:
    if isinstance(value, str):
        parts = value.split(":")
        try:
            numbers = [float(part) for part in parts]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 2):
            raise ValueError(f"must be a number, or LOW:HIGH, not {value!r}")
        return (numbers[0], numbers[-1])
    if isinstance(value, bool):
        raise ValueError(f"must be a number, or two [low, high], not {value!r}")
    if isinstance(value, int | float):
        return (value, value)
    return value


def _ordered(value: Range) -> Range:
    if not all(map(math.isfinite, value)) or value[0] > value[1]:
        raise ValueError(f"needs finite low <= high, not {value[0]:g} {value[1]:g}")
    return value


Span = Annotated[Range, BeforeValidator(_as_range)]


class PairsSettings(BaseModel):
    """All options of `mrbcr simulate pairs` except the output."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    count: Annotated[int, Field(ge=1, le=10_000_000)] = 2000
    patch: Annotated[int, Field(ge=16, le=2048)] = 128
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    splits: tuple[float, float, float] = (0.8, 0.1, 0.1)

    source: tuple[str, ...] = ()
    specimen: tuple[str, ...] = ()
    """Procedural kinds; all kinds where there is no source either."""
    procedural: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of pairs from procedural specimens. None: 1 without sources, 0.5 with both, 0 with sources alone."""
    scale: Span = (1.0, 2.5)
    """How many times a source is shrunk."""
    rotate: bool = True
    flip: bool = True
    gamma: Span = (0.8, 1.6)
    """Exponent on a source's intensities."""

    microscope: Literal["widefield", "confocal", "two-photon", "light-sheet", "brightfield"] = "widefield"
    model: Literal["vectorial", "scalar"] = "vectorial"
    psf: Path | None = None
    """A PSF file instead of the ranges below, on the pixel grid of the pairs."""
    na: Span = (0.5, 1.4)
    ni: Span | None = None
    """None: air below NA 0.95, water below 1.2, else oil."""
    ns: Span | None = None
    """None: as the immersion."""
    wavelength: Span = (450.0, 680.0)
    wavelength_ex: Span | None = None
    """None: 0.92 of the emission (two-photon: twice it)."""
    pixel: Span | None = None
    fwhm: Span = (2.0, 6.0)
    """In-focus FWHM in pixels; decides the pixel where `pixel` is None."""
    depth: Span = (0.0, 0.0)
    defocus: Span = (0.0, 0.0)
    aberration: Span = (0.0, 0.0)
    """RMS waves over random Zernike terms 3, 5 to 12 (not defocus)."""
    zernike: dict[int, Span] = Field(default_factory=dict)
    """Ranges of single OSA/ANSI terms, RMS waves. Default: none."""
    pinhole_au: Span = (1.0, 1.0)
    na_illumination: Span | None = None

    planes: Annotated[int, Field(ge=1, le=65)] = 13
    thickness: Span = (1.0, 10.0)
    haze: Span | None = (0.0, 0.6)
    """Share of the recorded light from outside the depth of focus; None: as the specimen gives. Widefield only."""
    absorption: Span = (0.05, 0.3)
    """Brightfield: amplitude absorption of a path through the densest part (intensity falls by twice that)."""
    phase: Span = (0.0, 0.3)
    """Brightfield: phase of that path, rad."""

    photons: Span | None = None
    """At the peak; of the bright field in brightfield. None: 20 to 5,000; brightfield 1,000 to 30,000."""
    background: Span = (0.0, 0.5)
    """Of the peak photons."""
    qe: Span = (0.8, 0.8)
    gain: Span = (1.0, 4.0)
    offset: Span = (100.0, 100.0)
    read_noise: Span = (0.0, 4.0)
    dark: Span = (0.0, 0.0)
    bit_depth: Annotated[int, Field(ge=1, le=16)] = 16
    scmos: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of pairs with per-pixel maps of offset, gain and read noise."""

    target_resolution: Span = (0.5, 0.5)
    """Target FWHM over the in-focus FWHM of the PSF, laterally and axially."""
    target_least: Annotated[float, Field(gt=0, le=20)] = 1.6
    """Finest target FWHM, px."""

    @field_validator("source", "specimen", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("*")
    @classmethod
    def _check_spans(cls, value: Any) -> Any:
        if isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, float) for v in value):
            return _ordered(value)
        return value

    @model_validator(mode="after")
    def _possible(self) -> PairsSettings:
        if not all(0 <= share < math.inf for share in self.splits) or sum(self.splits) <= 0:
            raise ValueError("splits must be three shares, none negative, not all 0")
        self._within_bounds()
        if self.ni is not None and self.na[1] >= self.ni[0]:
            raise ValueError(f"na up to {self.na[1]:g} is not below the immersion index {self.ni[0]:g} (ni)")
        self._units()
        if self.haze is not None and not 0 <= self.haze[0] <= self.haze[1] < 1:
            raise ValueError(f"haze is a share of the light, 0 to below 1, not {self.haze[0]:g} {self.haze[1]:g}")
        if self.target_resolution[1] > 1:
            raise ValueError("target-resolution must be at most 1: a target is no coarser than the PSF")
        if self.planes % 2 == 0:
            raise ValueError(f"planes must be odd, so that one is in focus, not {self.planes}")
        for j in self.zernike:
            if 0 <= j <= 2:
                raise ValueError(f"Zernike term {j} only moves the image (piston, tilt): leave it out")
            if j > LARGEST_ZERNIKE:
                raise ValueError(f"Zernike index {j} is above {LARGEST_ZERNIKE}; is it an OSA/ANSI index?")
            if j < 0:
                raise ValueError(f"Zernike index {j} is negative; OSA/ANSI indices count from 0 (4 is defocus)")
        if self.psf is not None:
            for name in _OPTICS:
                if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True):
                    raise ValueError(f"{name.replace('_', '-')} means nothing with a PSF file; leave it out")
        if self.procedural not in (None, 1.0) and not self.source:
            raise ValueError("procedural below 1 needs sharp images: give --source")
        return self

    def _within_bounds(self) -> None:
        """Values beyond these are slips of the keyboard, or would take all memory or overflow."""
        for name, (low, high, unit) in _BOUNDS.items():
            span = getattr(self, name)
            if span is not None and not low <= span[0] <= span[1] <= high:
                said = f"{span[0]:g}" if span[0] == span[1] else f"{span[0]:g} to {span[1]:g}"
                raise ValueError(f"{name.replace('_', '-')} must lie within {low:g} to {high:g}{unit}, not {said}")

    def _units(self) -> None:
        """A nm in the place of a um, or the reverse."""
        low, high = self.wavelength
        spans = {"wavelength": (low, high)} | ({"wavelength-ex": self.wavelength_ex} if self.wavelength_ex else {})
        for name, span in spans.items():
            if span[0] < 250 or span[1] > 1400:
                raise ValueError(f"{name} must lie between 250 and 1400 nm, not {span[0]:g} {span[1]:g}; in um?")
        if self.pixel is not None and not 1e-3 <= self.pixel[0] <= self.pixel[1] <= LARGEST_PIXEL_UM:
            raise ValueError(
                f"pixel must be at least 0.001, up to {LARGEST_PIXEL_UM:g} um, not {self.pixel[1]:g}; in nm?"
            )

    @property
    def camera_dtype(self) -> np.dtype[np.unsignedinteger]:
        """Pixel type of the recorded images."""
        return Camera(bit_depth=self.bit_depth).dtype

    @property
    def photon_span(self) -> Range:
        """Photons at the peak, or of the bright field."""
        if self.photons is not None:
            return self.photons
        return (1000.0, 30000.0) if self.microscope == "brightfield" else (20.0, 5000.0)

    @property
    def procedural_share(self) -> float:
        """Share of pairs from procedural specimens."""
        if self.procedural is not None:
            return self.procedural
        if not self.source:
            return 1.0
        return 0.5 if self.specimen else 0.0
