"""Optics in Python: PSFs, cameras, transfer functions; pure functions of numbers and tensors, on CPU or CUDA.

Invariant: nothing here opens a file or prints; lengths and wavelengths are in micrometres. For example

    from mrbcr_cli.optics import Grid, Microscope, Objective, compute_psf

    lens = Objective(na=1.4, n_immersion=1.515, n_sample=1.33, depth_um=5.0)
    microscope = Microscope(lens, wavelength_um=0.52, zernike_waves=((12, 0.0),))
    waves = torch.zeros(8, 1, requires_grad=True)  # a batch of 8, differentiable
    psf = compute_psf(microscope, Grid((33, 65, 65), pixel_um=0.08, z_step_um=0.25), waves=waves, device="cuda")

Needs torch, numpy and scipy alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrbcr_cli.optics.brightfield import Transmission, image_planes, point_images, transfer_functions_2d
    from mrbcr_cli.optics.camera import Camera, CameraMaps, expose, make_scmos_maps, mean_counts
    from mrbcr_cli.optics.measure import axial_nyquist_um, centre_of_mass, nyquist_um, profile_fwhm, psf_fwhm_um
    from mrbcr_cli.optics.microscope import PRESETS, Grid, Microscope, Objective, Preset, find_preset
    from mrbcr_cli.optics.psf import Focus, compute_psf, find_focus

__all__ = [
    "PRESETS",
    "Camera",
    "CameraMaps",
    "Focus",
    "Grid",
    "Microscope",
    "Objective",
    "Preset",
    "Transmission",
    "axial_nyquist_um",
    "centre_of_mass",
    "compute_psf",
    "expose",
    "find_focus",
    "find_preset",
    "image_planes",
    "make_scmos_maps",
    "mean_counts",
    "nyquist_um",
    "point_images",
    "profile_fwhm",
    "psf_fwhm_um",
    "transfer_functions_2d",
]

_HOMES = ("brightfield", "camera", "measure", "microscope", "psf")


def __getattr__(name: str) -> Any:
    """Find a public name in its module when it is first asked for: most users of a module here need no torch."""
    if name in __all__:
        for home in _HOMES:
            module = import_module(f"{__name__}.{home}")
            if name in vars(module):
                return vars(module)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
