"""Point-like objects as the project's widefield microscope and camera record them, and the methods that restore them.

Invariant: objects lie at any sub-pixel position exactly (PSF by phases of its band-limited spectrum, target by the
Gaussian itself), light and target are in the same counts, and a recording is decided by its arguments and the
generator that is passed in.

Used by two_points.py, hallucination.py and photometry.py. Sources: the PSF, camera and target of `mrbcr simulate
pairs` (mrbcr_cli.simulate.pair); Richardson-Lucy with read noise: Snyder, Hammoud and White 1993.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from mrbcr_cli.evaluation.baselines import Problem, Setting, run_settings
from mrbcr_cli.evaluation.results import json_text
from mrbcr_cli.optics.camera import Camera, expose, mean_counts
from mrbcr_cli.optics.measure import FWHM_PER_SIGMA
from mrbcr_cli.optics.microscope import Microscope, Objective
from mrbcr_cli.optics.psf import find_focus
from mrbcr_cli.simulate.image_scene import plane_otfs
from mrbcr_cli.whole_file import write_text

Image = NDArray[np.float32]
Points = NDArray[np.float64]
"""(n, 3): y, x (px), weight."""
Restore = Callable[["Recording"], Image]
"""A method: from a recording to an image in the same counts. It reads `counts` (or, to cheat in a test, the truth)."""

WAVELENGTH_UM, NA, INDEX = 0.52, 1.2, 1.33
BACKGROUND = 0.1
"""Background photons over the peak's."""
LEAST_TARGET_PX = 1.6
RL_ITERATIONS = (5, 10, 20, 50, 100, 200, 500)
RL_PSF_PX = 95


@dataclass(frozen=True, eq=False)
class Optics:
    """A widefield microscope in focus, on pixels that its FWHM spans `fwhm_px` of."""

    fwhm_px: float
    target_fwhm_px: float
    pixel_um: float
    microscope: Microscope
    focus_um: float

    def otf(self, size_px: int) -> NDArray[np.complex64]:
        """(size, size // 2 + 1); 1 at zero frequency."""
        found: NDArray[np.complex64] = plane_otfs(self.microscope, (self.focus_um,), self.pixel_um, size_px)[0].numpy()
        return found

    def psf(self, size_px: int = RL_PSF_PX) -> NDArray[np.float64]:
        """Odd size, origin in the middle, not negative, sum 1."""
        values = np.maximum(fft.fftshift(fft.irfft2(self.otf(size_px), s=(size_px, size_px))), 0.0)
        return np.asarray(values / values.sum(), np.float64)


@lru_cache(maxsize=16)
def make_optics(fwhm_px: float, na: float = NA) -> Optics:
    """The microscope of these examples with its in-focus FWHM (of the optics, without the pixel) on `fwhm_px` px."""
    microscope = Microscope(Objective(na=na, n_immersion=INDEX), wavelength_um=WAVELENGTH_UM)
    focus = find_focus(microscope)
    if focus.fwhm_xy_um is None:
        raise ValueError("this microscope's PSF has no FWHM")
    target_px = max(0.5 * fwhm_px, LEAST_TARGET_PX)
    return Optics(fwhm_px, target_px, focus.fwhm_xy_um / fwhm_px, microscope, focus.z_um)


def light_of(points: Points, optics: Optics, size_px: int) -> NDArray[np.float64]:
    """Image of points through the PSF, (size, size), periodic; each point's light is its weight."""
    y, x, weight = points.T
    rows = np.exp(-2j * np.pi * fft.fftfreq(size_px)[:, None] * y)
    columns = np.exp(-2j * np.pi * fft.rfftfreq(size_px)[None, :] * x[:, None])
    spectrum = (rows * weight) @ columns * optics.otf(size_px)
    return np.asarray(np.maximum(fft.irfft2(spectrum, s=(size_px, size_px)), 0.0), np.float64)


def target_of(points: Points, optics: Optics, size_px: int) -> NDArray[np.float64]:
    """The same points through the target's Gaussian, sampled at the pixels; nothing wraps around."""
    sigma = optics.target_fwhm_px / FWHM_PER_SIGMA
    pixels = np.arange(size_px)
    rows, columns = (np.exp(-0.5 * ((pixels - at[:, None]) / sigma) ** 2) for at in (points[:, 0], points[:, 1]))
    return np.asarray((rows * points[:, 2:]).T @ columns / (2 * np.pi * sigma**2), np.float64)


def line_points(centre_yx: Sequence[float], angle: float, length_px: float, step_px: float = 0.2) -> Points:
    """A straight line of light 1 per px as points closer than anything can resolve."""
    count = max(2, round(length_px / step_px))
    along = (np.arange(count) + 0.5) / count * length_px - length_px / 2
    y, x = centre_yx[0] + along * np.sin(angle), centre_yx[1] + along * np.cos(angle)
    return np.stack([y, x, np.full(count, length_px / count)], axis=1)


@dataclass(frozen=True, eq=False)
class Recording:
    """What was recorded and all that is true of it, in counts."""

    counts: NDArray[np.unsignedinteger]
    mean: Image
    """Without noise."""
    target: Image
    background: float
    optics: Optics
    camera: Camera
    background_photons: float


def record(
    points: Points, optics: Optics, size_px: int, rng: np.random.Generator, *, photons_per_weight: float,
    background_photons: float, camera: Camera | None = None,
) -> Recording:  # fmt: skip
    """Record points (an empty (0, 3) records background)."""
    camera = camera or Camera()
    zero = np.zeros((size_px, size_px))
    light, sharp = (f(points, optics, size_px) for f in (light_of, target_of)) if len(points) else (zero, zero)
    mean = background_photons + photons_per_weight * light
    return Recording(
        counts=expose(mean, camera, rng),
        mean=mean_counts(mean, camera),
        target=mean_counts(background_photons + photons_per_weight * sharp, camera),
        background=float(mean_counts(np.array([background_photons]), camera)[0]),
        optics=optics,
        camera=camera,
        background_photons=background_photons,
    )


def point_peak(optics: Optics) -> float:
    """Light in the brightest pixel of a point of weight 1 in the middle of a pixel."""
    return float(light_of(np.array([[32.0, 32.0, 1.0]]), optics, 64).max())


def cell_centres(cells: int, cell_px: int) -> Points:
    """Middles (cells^2, 2) of a square lattice of cells."""
    middle = (np.arange(cells) + 0.5) * cell_px - 0.5
    return np.stack(np.meshgrid(middle, middle, indexing="ij"), axis=-1).reshape(-1, 2)


# ---- methods ----


def identity(recording: Recording) -> Image:
    """The input itself."""
    return recording.counts.astype(np.float32)


def truth(recording: Recording) -> Image:
    """What a perfect method would return."""
    return recording.target


def network_methods(models: Sequence[str], device: str = "cpu") -> dict[str, Restore]:
    """Networks by name, on the path of `mrbcr deconvolve`. Raises InputError for what is no model."""
    from mrbcr_cli.evaluation.networks import EvaluatedNetwork, load_networks

    def method(network: EvaluatedNetwork) -> Restore:
        return lambda recording: network.restore(recording.counts)

    return {f"network {n.name}": method(n) for n in load_networks(models, device)}


def rl_settings(iterations: Iterable[int] = RL_ITERATIONS, blurred: Sequence[bool] = (False, True)) -> list[Setting]:
    """Richardson-Lucy at several iteration counts, as it is and at the target's resolution."""
    return [Setting("richardson-lucy", float(n), b) for b in blurred for n in iterations]


def richardson_lucy(recording: Recording, settings: Sequence[Setting]) -> dict[Setting, Image]:
    """Richardson-Lucy that knows PSF, background and read noise: estimates in counts."""
    camera = recording.camera
    problem = Problem(
        electrons_yx=((recording.counts - camera.offset_adu) / camera.gain_adu).astype(np.float32),
        psf_yx=recording.optics.psf(),
        background_e=camera.quantum_efficiency * recording.background_photons + camera.dark_e,
        read_noise_e=camera.read_noise_e,
        target_fwhm_px=recording.optics.target_fwhm_px,
    )
    found = run_settings(problem, settings)
    return {s: np.asarray(e * camera.gain_adu + camera.offset_adu, np.float32) for s, e in found.items()}


def run_all(recording: Recording, methods: Mapping[str, Restore], settings: Sequence[Setting]) -> dict[str, Image]:
    """Outputs of all methods by name; Richardson-Lucy under `rl_name`."""
    outputs = {name: method(recording) for name, method in methods.items()}
    if settings:
        outputs |= {rl_name(s): image for s, image in richardson_lucy(recording, settings).items()}
    return outputs


def rl_name(setting: Setting) -> str:
    """How a setting of Richardson-Lucy is called in the results."""
    return f"RL {setting.text()}"


# ---- command line ----


def parser_of(description: str) -> argparse.ArgumentParser:
    """Options that every measurement on recordings takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-o", "--output", type=Path, required=True, help="stem of the .json, .md and .png")
    parser.add_argument("--model", action="append", help="embedded model or weights file; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    return parser


# ---- results ----


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in [head, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def write_results(stem: Path, values: Mapping[str, Any], markdown: str) -> None:
    """STEM.json and STEM.md, and the folder they go into."""
    write_text(stem.with_suffix(".json"), json_text(values))
    write_text(stem.with_suffix(".md"), markdown.rstrip() + "\n")
