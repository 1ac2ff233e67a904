"""What a user may set of `mrbcr simulate stack`.

Invariant: names are the long options with underscores; settings that exist are possible by themselves, and what depends
on the microscope or the user's volume is checked when the stack is planned.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from mrbcr_cli.errors import InputError
from mrbcr_cli.simulate.camera_settings import CameraSettings
from mrbcr_cli.simulate.optics_settings import OpticsSettings, Shape
from mrbcr_cli.specimens import KINDS, STYLES, Specimen

LARGEST_BYTES = 10**15
_SPECIMEN_ONLY = ("shape", "density", "size", "thickness")
RUN_ONLY = ("truth", "no_truth", "workers", "compression")
"""Options that change no pixel."""


class StackSettings(OpticsSettings, CameraSettings):
    """All options of `mrbcr simulate stack` except the output. Lengths in um, light in photons."""

    specimen: tuple[str, ...] = ()
    """KIND[:STYLE][=LIGHT] each; several are added up, each LIGHT times as bright as usual."""
    source: Path | None = None
    """The user's own sharp volume, instead of a specimen."""
    shape: Shape | None = None
    density: float | None = None
    size: float | None = None
    thickness: float | None = None
    """None: as thick as the stack is deep."""

    photons: float = 500.0
    """At the peak; of brightfield: without a specimen."""
    background: float = 20.0
    absorption: float | None = None
    """Brightfield: share of the light that the densest column absorbs. None: 0.3."""
    phase: float | None = None
    """Brightfield: delay of the densest column, radian. None: 0.3."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    truth: Path | None = None
    no_truth: bool = False
    truth_dtype: Literal["float32", "uint16"] = "float32"
    truth_fwhm: float | None = None
    compression: Literal["zstd", "deflate", "none"] = "zstd"
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None

    @field_validator("specimen", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("specimen")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            kind, style, light = _parts(text)
            if kind not in KINDS:
                raise ValueError(f"unknown specimen {kind!r}; there are {', '.join(KINDS)}")
            if style and style not in STYLES[kind]:
                raise ValueError(f"unknown style {style!r} of {kind}; there are {', '.join(STYLES[kind])}")
            if not (math.isfinite(light) and light > 0):
                raise ValueError(f"{text}: the light after = must be a positive number, such as 0.5")
        return value

    @field_validator("photons", "thickness", "truth_fwhm")
    @classmethod
    def _positive(cls, value: float | None) -> float | None:
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"must be a positive number, not {value:g}")
        return value

    @field_validator("background")
    @classmethod
    def _not_negative(cls, value: float) -> float:
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"must be zero or positive, in photons a pixel, not {value:g}")
        return value

    @field_validator("absorption")
    @classmethod
    def _share(cls, value: float | None) -> float | None:
        if value is not None and not 0 <= value < 1:
            raise ValueError(f"must be a share of the light from 0 to below 1, not {value:g}")
        return value

    @field_validator("phase")
    @classmethod
    def _radian(cls, value: float | None) -> float | None:
        if value is not None and not abs(value) <= math.pi:
            raise ValueError(f"must be a delay within -pi and pi radian, not {value:g}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> StackSettings:
        if self.source is None and not self.specimen:
            raise ValueError(f"give --specimen ({', '.join(KINDS)}), or --source with a volume of your own")
        if self.source is not None:
            if self.specimen:
                raise ValueError("--specimen and --source are two specimens; give one of them")
            for name in _SPECIMEN_ONLY:
                if getattr(self, name) is not None:
                    raise ValueError(f"--{name} means nothing with --source: the volume says it; leave it out")
        elif self.shape is None:
            raise ValueError("give --shape Z Y X, the size of the stack in voxels")
        if self.no_truth:
            for name in ("truth", "truth_fwhm"):
                if getattr(self, name) is not None:
                    raise ValueError(f"--{name.replace('_', '-')} and --no-truth contradict each other; give one")
        if self.shape is not None:
            check_size(self.shape)
        return self

    def specimens(self, thickness_um: float) -> tuple[Specimen, ...]:
        """The specimens to add up, each with its own seed. Raises InputError for a number out of range."""
        made = []
        for number, text in enumerate(self.specimen):
            kind, style, _ = _parts(text)
            words = np.random.SeedSequence([self.seed, number]).generate_state(1, np.uint64)
            made.append(
                Specimen(
                    kind,
                    int(words[0] >> np.uint64(2)),
                    style=style,
                    density=1.0 if self.density is None else self.density,
                    size=1.0 if self.size is None else self.size,
                    thickness_um=thickness_um,
                )
            )
        return tuple(made)

    @property
    def weights(self) -> tuple[float, ...]:
        """How bright each specimen is, against the usual."""
        return tuple(_parts(text)[2] for text in self.specimen)


def _parts(text: str) -> tuple[str, str, float]:
    """Kind, style ("": any) and light (NaN: no number) of KIND[:STYLE][=LIGHT]."""
    name, equals, light = text.partition("=")
    kind, _, style = name.partition(":")
    try:
        return kind.strip(), style.strip(), float(light) if equals else 1.0
    except ValueError:
        return kind.strip(), style.strip(), math.nan


def check_size(shape_zyx: tuple[int, int, int]) -> None:
    """Refuse what no disk holds. Raises InputError."""
    if math.prod(shape_zyx) * 2 > LARGEST_BYTES:
        size = " x ".join(map(str, shape_zyx))
        raise InputError(f"a stack of {size} voxels has more than {LARGEST_BYTES / 1e15:g} petabyte; make it smaller")
