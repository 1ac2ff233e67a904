"""The camera options that `simulate stack` and `simulate pairs` share.

Invariant: names are the long options with underscores; numbers are checked by `Camera`, in one place.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from mrbcr_cli.optics.camera import Camera


class CameraSettings(BaseModel):
    """An EMVA-like camera; see `optics.camera` for the formula."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    qe: float = 0.8
    gain: float = 2.0
    offset: float = 100.0
    read_noise: float = 1.6
    dark: float = 0.0
    bit_depth: Annotated[int, Field(ge=1, le=16)] = 16
    scmos: bool = False
    """Draw per-pixel maps of offset, gain and read noise (from the seed)."""

    def camera(self) -> Camera:
        """The camera of these numbers. Raises InputError for numbers no camera has."""
        return Camera(self.qe, self.gain, self.offset, self.read_noise, self.dark, self.bit_depth)
