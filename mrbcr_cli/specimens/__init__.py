"""Procedural three-dimensional specimens for simulated microscope images.

Invariant: a specimen is a pure function from position to light, given by its kind, seed and parameters; rendering
makes no files and holds no state. See `Specimen` for the parameters and `render` for the units.
"""

from mrbcr_cli.specimens.rendering import draw_specimen, render
from mrbcr_cli.specimens.specimen import KINDS, STYLES, Specimen, chosen_style, split_kind

__all__ = ["KINDS", "STYLES", "Specimen", "chosen_style", "draw_specimen", "render", "split_kind"]
