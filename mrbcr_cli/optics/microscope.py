"""The numbers of a microscope: objective, layers between lens and emitter, microscope type, sampling grid.

Invariant: a value that exists is physically possible (NA below the immersion index, positive lengths, wavelengths of
light), so no formula downstream checks again. Lengths are in micrometres, wavelengths too (in vacuum), in every field.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from mrbcr_cli.errors import InputError

MicroscopeKind = Literal["widefield", "confocal", "two-photon", "light-sheet"]
KINDS: tuple[MicroscopeKind, ...] = ("widefield", "confocal", "two-photon", "light-sheet")
Model = Literal["vectorial", "scalar", "born-wolf"]
MODELS: tuple[Model, ...] = ("vectorial", "scalar", "born-wolf")
Sampling = Literal["point", "pixel"]
Centring = Literal["voxel", "between"]

WAVELENGTH_RANGE_UM = (0.25, 1.4)
"""What microscopes work with (300 to 1100 nm, and some room); farther off it is a mistake of the unit."""
LARGEST_PINHOLE_AU = 100.0
LARGEST_ZERNIKE = 495
"""Order 30: beyond it the polynomials cancel in float64."""
AIRY_RADIUS = 0.61
"""First zero of the Airy pattern in lambda / NA: the radius of a pinhole of one Airy unit."""
LARGEST_VOLUME = 2**33
"""Voxels; more is a slip of the keyboard."""


def _positive(name: str, value: float, unit: str = "um") -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} must be a positive length, not {value:g} {unit}")


@dataclass(frozen=True)
class Objective:
    """An objective and the layers it looks through (Gibson & Lanni, J. Opt. Soc. Am. A 8:1601, 1991).

    Light comes from `depth_um` below the coverslip in a sample of index `n_sample`, crosses the coverslip and the
    immersion. Fields that end in `_design` are what the lens was corrected for; None takes the actual value.
    Raises InputError for what no lens can have.
    """

    na: float
    n_immersion: float = 1.515
    n_sample: float | None = None
    """None: as the immersion, that is no mismatch."""
    n_coverslip: float = 1.515
    coverslip_um: float = 170.0
    depth_um: float = 0.0
    n_immersion_design: float | None = None
    n_coverslip_design: float | None = None
    coverslip_design_um: float | None = None
    working_distance_um: float = 150.0
    """Thickness of the immersion layer in the design; matters only where an index differs from its design."""

    def __post_init__(self) -> None:
        for name in ("n_immersion", "n_sample", "n_coverslip", "n_immersion_design", "n_coverslip_design"):
            value = getattr(self, name)
            if value is not None and not 1.0 <= value <= 2.5:
                raise InputError(f"{name} must be a refractive index from 1.0 to 2.5, not {value:g}")
        if not (math.isfinite(self.na) and self.na > 0):
            raise InputError(f"NA must be positive, not {self.na:g}")
        lowest = min(self.n_immersion, self.n_immersion_design or self.n_immersion)
        if self.na >= lowest:
            raise InputError(
                f"NA {self.na:g} is not below the immersion index {lowest:g}: no such objective; "
                "oil is 1.515, glycerol 1.46, water 1.33, air 1.0 (--ni)"
            )
        if not (math.isfinite(self.depth_um) and self.depth_um >= 0):
            raise InputError(f"depth must be zero or positive, in um below the coverslip, not {self.depth_um:g}")
        for name in ("coverslip_um", "working_distance_um"):
            _positive(name, getattr(self, name))
        if self.coverslip_design_um is not None:
            _positive("coverslip_design_um", self.coverslip_design_um)

    @property
    def ns(self) -> float:
        """Index of the sample."""
        return self.n_immersion if self.n_sample is None else self.n_sample

    @property
    def design(self) -> tuple[float, float, float]:
        """Immersion index, coverslip index and coverslip thickness (um) that the lens was made for."""
        return (
            self.n_immersion_design or self.n_immersion,
            self.n_coverslip_design or self.n_coverslip,
            self.coverslip_design_um or self.coverslip_um,
        )


@dataclass(frozen=True)
class Microscope:
    """Which microscope, which light, which model of the PSF."""

    objective: Objective
    wavelength_um: float = 0.52
    """Emission, in vacuum. A two-photon microscope collects all light: there it means nothing."""
    kind: MicroscopeKind = "widefield"
    wavelength_ex_um: float | None = None
    """Excitation, in vacuum: needed by confocal, two-photon and light-sheet."""
    pinhole_au: float = 1.0
    """Diameter in Airy units: radius 0.61 * pinhole_au * wavelength_um / NA in the specimen. Confocal only."""
    na_illumination: float = 0.1
    """Of the light sheet."""
    sheet: Literal["gaussian", "swept"] = "gaussian"
    """Profile of the light sheet: a Gaussian beam, or the swept focus of a uniform aperture."""
    sheet_um: float = 0.0
    """Stage position of the sheet's middle; 0 is the nominal focus, `psf.find_focus` knows the best one."""
    model: Model = "vectorial"
    fresnel: bool = True
    """Losses at the interfaces of the coverslip, vectorial only; False is Richards and Wolf without interfaces."""
    aplanatic: bool = False
    """Scalar only: amplitude 1/sqrt(cos) over the pupil instead of a uniform one."""
    zernike_waves: tuple[tuple[int, float], ...] = field(default=())
    """(OSA/ANSI index, RMS waves of `zernike_wavelength_um`) pairs."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"unknown microscope {self.kind!r}; choose one of {', '.join(KINDS)}")
        if self.model not in MODELS:
            raise InputError(f"unknown model {self.model!r}; choose one of {', '.join(MODELS)}")
        _check_wavelength("wavelength", self.wavelength_um)
        if self.kind != "widefield":
            if self.wavelength_ex_um is None:
                raise InputError(f"a {self.kind} microscope needs its excitation wavelength: give --wavelength-ex (nm)")
            _check_wavelength("excitation wavelength", self.wavelength_ex_um)
        if self.kind == "confocal" and not 0 < self.pinhole_au <= LARGEST_PINHOLE_AU:
            raise InputError(
                f"the pinhole must be positive, up to {LARGEST_PINHOLE_AU:g} Airy units, not {self.pinhole_au:g}; "
                "1 is usual, and 10 as good as open"
            )
        if self.kind == "light-sheet" and not 0 < self.na_illumination < self.objective.n_immersion:
            raise InputError(
                f"the sheet's NA must lie between 0 and the index {self.objective.n_immersion:g}, "
                f"not {self.na_illumination:g}"
            )
        if self.sheet not in ("gaussian", "swept"):
            raise InputError(f"the sheet must be gaussian or swept, not {self.sheet!r}")
        indices = [j for j, _ in self.zernike_waves]
        for j, waves in self.zernike_waves:
            if j < 0:
                raise InputError(f"Zernike index {j} is negative; OSA/ANSI indices count from 0 (4 is defocus)")
            if j > LARGEST_ZERNIKE:
                raise InputError(f"Zernike index {j} is above {LARGEST_ZERNIKE}; is it an OSA/ANSI index?")
            if not math.isfinite(waves):
                raise InputError(f"Zernike coefficient {j} must be a number of waves, not {waves}")
        if len(set(indices)) != len(indices):
            raise InputError(f"a Zernike index is given twice: {sorted(indices)}")

    @property
    def excitation_um(self) -> float:
        """Excitation wavelength; the emission's where none is set (widefield)."""
        return self.wavelength_um if self.wavelength_ex_um is None else self.wavelength_ex_um

    @property
    def zernike_wavelength_um(self) -> float:
        """What a wave of aberration is a wave of: the emission; the excitation of a two-photon microscope."""
        return self.excitation_um if self.kind == "two-photon" else self.wavelength_um

    @property
    def pinhole_radius_um(self) -> float:
        """Radius of the pinhole, projected into the specimen."""
        return AIRY_RADIUS * self.pinhole_au * self.wavelength_um / self.objective.na


@dataclass(frozen=True)
class Grid:
    """Where the PSF is sampled: `shape_zyx` voxels of `z_step_um` x `pixel_um` x `pixel_um`.

    Odd sizes have the emitter in the middle voxel (index (n - 1) / 2). An even size has no middle: `centring` "voxel"
    puts it at voxel n / 2 (where an FFT shift expects it), "between" half-way between two; None refuses (InputError).
    """

    shape_zyx: tuple[int, int, int]
    pixel_um: float
    z_step_um: float
    sampling: Sampling = "pixel"
    """ "pixel": mean over the square pixel (a camera); "point": value at its centre (a scanned spot)."""
    centring: Centring | None = None

    def __post_init__(self) -> None:
        _positive("pixel", self.pixel_um)
        _positive("z step", self.z_step_um)
        if self.sampling not in ("point", "pixel"):
            raise InputError(f"sampling must be point or pixel, not {self.sampling!r}")
        if self.centring not in (None, "voxel", "between"):
            raise InputError(f"centring must be voxel or between, not {self.centring!r}")
        if len(self.shape_zyx) != 3 or min(self.shape_zyx) < 1:
            raise InputError(f"the shape must be three sizes Z Y X of at least 1, not {self.shape_zyx}")
        if math.prod(self.shape_zyx) > LARGEST_VOLUME:
            raise InputError(f"the shape {self.shape_zyx} has more than {LARGEST_VOLUME} voxels; make it smaller")
        even = [axis for axis, n in zip("ZYX", self.shape_zyx, strict=True) if n % 2 == 0]
        if even and self.centring is None:
            raise InputError(
                f"the size along {', '.join(even)} is even, so there is no middle voxel; take odd sizes, or say where "
                "the centre goes: --centring voxel (index n/2) or between (half-way between two)"
            )

    def offsets(self, axis: int) -> tuple[float, ...]:
        """Distance of every voxel centre from the emitter along axis 0 (z), 1 (y) or 2 (x), in voxels: k or k + 0.5."""
        n = self.shape_zyx[axis]
        centre = (n - 1) / 2 if n % 2 or self.centring == "between" else n / 2
        return tuple(i - centre for i in range(n))

    def offsets_um(self, axis: int) -> tuple[float, ...]:
        """The same in um."""
        step = self.z_step_um if axis == 0 else self.pixel_um
        return tuple(k * step for k in self.offsets(axis))


@dataclass(frozen=True)
class Preset:
    """A common objective. Pixel and z step stay the camera's and the user's."""

    name: str
    objective: Objective
    note: str


PRESETS: tuple[Preset, ...] = (
    Preset("10x/0.3", Objective(na=0.3, n_immersion=1.0), "10x dry"),
    Preset("20x/0.75", Objective(na=0.75, n_immersion=1.0), "20x dry"),
    Preset("40x/1.2w", Objective(na=1.2, n_immersion=1.33), "40x water immersion"),
    Preset("63x/1.4oil", Objective(na=1.4, n_immersion=1.515), "63x oil immersion"),
    Preset("100x/1.49tirf", Objective(na=1.49, n_immersion=1.515), "100x oil immersion, TIRF"),
)


def find_preset(name: str) -> Preset:
    """Return the preset of that name; spaces, case and the word "dry" do not matter. Raises InputError (lists them)."""
    plain = name.lower().replace(" ", "").removesuffix("dry").replace("water", "w").removesuffix("immersion")
    for preset in PRESETS:
        aliases = {preset.name, preset.name.removesuffix("oil").removesuffix("tirf").removesuffix("w")}
        if plain in aliases:
            return preset
    listed = ", ".join(f"{p.name} ({p.note})" for p in PRESETS)
    raise InputError(f"unknown preset {name!r}; there are {listed}")


def _check_wavelength(name: str, value_um: float) -> None:
    low, high = WAVELENGTH_RANGE_UM
    if not (math.isfinite(value_um) and low <= value_um <= high):
        raise InputError(
            f"the {name} must lie between {1e3 * low:.0f} and {1e3 * high:.0f} nm in vacuum, not at "
            f"{1e3 * value_um:g} nm; is it in another unit?"
        )
