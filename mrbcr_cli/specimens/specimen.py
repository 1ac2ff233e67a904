"""What a specimen is: a kind, a seed and a few numbers, from which its light at every place follows.

Invariant: a `Specimen` holds plain JSON values only and is checked when it is made, so that a record of it makes the
same specimen again. Light is scaled so that a typical bright structure of any kind, seen through a microscope of
about 0.25 um lateral and 0.7 um axial resolution, peaks at about 1 per (0.1 um)^3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mrbcr_cli.errors import InputError
from mrbcr_cli.specimens.field import Grid, Keys, Vector, normal, root_key, uniform

STYLES: dict[str, tuple[str, ...]] = {
    "beads": ("points", "clusters", "beads", "puncta", "doublets"),
    "filaments": ("mesh", "asters", "bundles", "branches", "beaded", "worms", "outlined_worms"),
    "membranes": ("cells", "mosaic", "outlines", "folds", "envelopes"),
    "vesicles": ("shells", "filled", "both", "clustered"),
    "nuclei": ("culture", "tissue", "foci"),
    "cytoplasm": ("grain", "voids", "strands", "network", "patches", "cells"),
    "targets": ("gratings", "line_pairs", "bars", "rings"),
    "mixed": ("epithelium", "culture", "organelles", "spots", "tissue"),
}
"""The kinds of specimen, each with its styles."""

KINDS: tuple[str, ...] = tuple(STYLES)

POINT_LIGHT = 50.0
"""Light of a point of brightness 1."""
LINE_LIGHT = 200.0
"""Light of a fibre of brightness 1, per um."""
SHEET_LIGHT = 250.0
"""Light of a membrane of brightness 1, per um2."""
SOLID_LIGHT = 1000.0
"""Light of a solid of brightness 1, per um3: 1 per (0.1 um)^3."""


@dataclass(frozen=True)
class Specimen:
    """An unbounded, non-negative density of light, defined by these values alone.

    kind: one of `KINDS`; style: one of `STYLES[kind]`, or "" for the one that the seed picks.
    density: how many structures, against the usual number; size: their size, against the usual one.
    spread: sigma of the log-normal spread of brightness between structures.
    coverage: share of the field (0 to 1] inside cell-like regions; outside them is empty; 1 is everywhere.
    thickness_um: the specimen fills |z| <= thickness_um / 2; None is unbounded in z.
    Raises InputError for values out of range.
    """

    kind: str
    seed: int
    style: str = ""
    density: float = 1.0
    size: float = 1.0
    spread: float = 0.5
    coverage: float = 1.0
    thickness_um: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in STYLES:
            raise InputError(f"unknown specimen kind {self.kind!r}: choose one of {', '.join(KINDS)}")
        if self.style and self.style not in STYLES[self.kind]:
            raise InputError(
                f"unknown style {self.style!r} of {self.kind}: choose one of {', '.join(STYLES[self.kind])}"
            )
        for name, low, high in (("density", 0.01, 100.0), ("size", 0.2, 5.0), ("spread", 0.0, 2.0)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"specimen {name} is {value}: choose a number from {low:g} to {high:g}")
        if not 0 < self.coverage <= 1:
            raise InputError(f"specimen coverage is {self.coverage}: choose a share above 0, at most 1")
        if self.thickness_um is not None and not 0 < self.thickness_um < math.inf:
            raise InputError(f"specimen thickness is {self.thickness_um} um: choose a positive number, or leave it out")

    @property
    def half_um(self) -> float:
        """Half the thickness in um; infinite where the specimen is unbounded."""
        return math.inf if self.thickness_um is None else self.thickness_um / 2


def split_kind(text: str) -> tuple[str, str]:
    """Kind and style of "kind" or "kind:style"; the style is "" where none is named. Raises InputError."""
    kind, _, style = text.partition(":")
    Specimen(kind, 0, style)
    return kind, style


def chosen_style(specimen: Specimen) -> str:
    """The style in words, also where the seed picks it."""
    styles = STYLES[specimen.kind]
    pick = float(uniform(root_key(specimen.seed, specimen.kind), 99)[0])
    return specimen.style or styles[int(pick * len(styles))]


def own_key(specimen: Specimen, tag: str) -> Keys:
    """(1,) key for one aspect of a specimen."""
    return root_key(specimen.seed, f"{specimen.kind} {tag}")


def trait(specimen: Specimen, stream: int, low: float, high: float) -> float:
    """A number of this specimen as a whole, from `low` to `high`, that its seed picks."""
    return float(uniform(own_key(specimen, "trait"), stream, low, high)[0])


def place_bounds(specimen: Specimen, grid: Grid, reach_um: float) -> tuple[Vector, Vector]:
    """Where objects that reach `reach_um` may lie and still show in `grid`: low and high corner, in um."""
    low, high = grid.bounds_um(reach_um)
    low[0], high[0] = max(low[0], -specimen.half_um), min(high[0], specimen.half_um)
    return low, high


def brightness(keys: Keys, stream: int, spread: float) -> Vector:
    """Log-normal brightness of mean 1 for each key, cut at three sigma."""
    drawn: Vector = np.exp(spread * normal(keys, stream) - spread**2 / 2)
    return drawn
