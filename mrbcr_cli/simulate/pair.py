"""One training pair: what the camera records of a scene, and the target it should be restored to.

Invariant: a pair is a function of the settings, the sources and its number alone. Recorded and target are in the same
counts, so one affine map normalises both; the target keeps what cannot be told from an offset (background and the
darkest level of the haze) and has a stated resolution, never a bare delta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft

from mrbcr_cli.optics.brightfield import Transmission, transfer_functions_2d
from mrbcr_cli.optics.camera import CameraMaps, expose, make_scmos_maps, mean_counts
from mrbcr_cli.optics.measure import FWHM_PER_SIGMA
from mrbcr_cli.optics.microscope import Grid, Microscope
from mrbcr_cli.optics.psf import compute_psf
from mrbcr_cli.simulate.conditions import Conditions, StoredFocus, draw_conditions
from mrbcr_cli.simulate.pairs_settings import PairsSettings
from mrbcr_cli.simulate.scene import Volume, draw_scene
from mrbcr_cli.simulate.sources import SPLITS, SharpSource

_MARGIN_PX = 24
"""Around a patch on every side; beyond it the field repeats itself."""
_BRIGHTEST = 2e-4
"""Share of the pixels whose mean is "the peak"."""
_DEPTH_OF_FOCUS = 0.75
"""Planes nearer than this many axial FWHM are in focus; light of the others is haze."""

Image = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class StoredPsfPlanes:
    """A PSF from a file, on the pixels of the pairs."""

    values_zyx: NDArray[np.float32]
    focus: StoredFocus
    name: str
    sha256: str


@dataclass(frozen=True, eq=False)
class PairsJob:
    """Everything that decides the pairs; picklable, handed to every worker once."""

    settings: PairsSettings
    sources: tuple[SharpSource, ...]
    source_splits: tuple[str, ...]
    """Split of each source."""
    counts: tuple[int, int, int]
    """Pairs in train, validation and test, in this order."""
    psf: StoredPsfPlanes | None = None

    def split_of(self, index: int) -> str:
        """Split of a pair: the first `counts[0]` are train, then validation, then test."""
        bounds = np.cumsum(self.counts)
        return SPLITS[int(np.searchsorted(bounds, index, side="right"))]

    def sources_of(self, split: str) -> tuple[SharpSource, ...]:
        """The sources that pairs of a split may use."""
        return tuple(s for s, own in zip(self.sources, self.source_splits, strict=True) if own == split)


@dataclass(frozen=True, eq=False)
class Pair:
    """A recorded patch (counts), its target (counts, float32) and what made them."""

    blurred: NDArray[np.unsignedinteger]
    sharp: Image
    record: dict[str, Any]


def make_pair(job: PairsJob, index: int) -> Pair:
    """Make pair `index` of a job."""
    settings = job.settings
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([settings.seed, index])))
    split = job.split_of(index)
    conditions = draw_conditions(rng, settings, job.psf.focus if job.psf is not None else None)
    field_px = fft.next_fast_len(settings.patch + 2 * _MARGIN_PX, real=True)
    scene, origin = draw_scene(rng, settings, conditions, job.sources_of(split), field_px)
    if isinstance(conditions.optics, Transmission):
        light, target, share = _transmitted(scene, conditions, conditions.optics)
    else:
        light, target, share = _emitted(scene, conditions, job.psf, settings.patch)
    light, target = (_middle(image, settings.patch) for image in (light, target))
    maps = _maps(conditions, settings.patch, rng)
    blurred = expose(light, conditions.camera, rng, maps)
    record = {
        "index": index,
        "split": split,
        "seed": [settings.seed, index],
        "origin": origin,
        "conditions": conditions.record(),
        "psf_file": None if job.psf is None else {"name": job.psf.name, "sha256": job.psf.sha256},
        "haze_share": share,
        "saturated_share": float(np.mean(blurred == conditions.camera.white_adu)),
        "range": _display_range(blurred),
        "target": {
            "what": "plane of focus through a Gaussian, with background and darkest haze",
            "fwhm_px": conditions.target_fwhm_px,
            "fwhm_um": conditions.target_fwhm_px * conditions.pixel_um,
            "fwhm_z_um": conditions.target_fwhm_z_um,
        },
    }
    return Pair(blurred, mean_counts(target, conditions.camera), record)


def _emitted(
    scene: Volume, conditions: Conditions, stored: StoredPsfPlanes | None, patch_px: int
) -> tuple[Image, Image, float]:
    """Photons recorded and photons of the target (field, field), and the share of haze in the recorded light."""
    z = np.asarray(conditions.z_um)
    field_px = scene.shape[-1]
    spectra = fft.rfft2(scene)
    planes = fft.irfft2(spectra * _plane_otfs(conditions, stored, field_px), s=scene.shape[1:])
    near = np.abs(z) <= _DEPTH_OF_FOCUS * conditions.fwhm_z_um
    in_focus, haze = np.maximum(planes[near].sum(0), 0.0), np.maximum(planes[~near].sum(0), 0.0)
    haze *= _haze_factor(in_focus, haze, conditions.haze)
    sharp = _sharp(spectra, conditions, field_px)
    signal = in_focus + haze
    total = float(signal.sum())
    share = float(haze.sum()) / total if total > 0 else 0.0
    scale = conditions.photons / peak if (peak := _peak(_middle(signal, patch_px))) > 0 else 0.0
    floor = float(_middle(haze, patch_px).min())
    light = conditions.background_photons + scale * signal
    target = conditions.background_photons + scale * (sharp + floor)
    return light.astype(np.float32), target.astype(np.float32), share


def _sharp(spectra: NDArray[Any], conditions: Conditions, field_px: int) -> Image:
    """What the target shows of a scene (its planes' half spectra): the plane of focus at the target's resolution."""
    axial = np.exp(-4 * math.log(2) * (np.asarray(conditions.z_um) / conditions.target_fwhm_z_um) ** 2)
    blur = _gaussian_otf(field_px, conditions.target_fwhm_px / FWHM_PER_SIGMA)
    plane = np.tensordot(axial.astype(np.float32), spectra, 1) * blur
    sharp: Image = np.maximum(fft.irfft2(plane, s=(field_px, field_px)), 0.0)
    return sharp


def _middle(image: Image, patch_px: int) -> Image:
    start = (image.shape[0] - patch_px) // 2
    return image[start : start + patch_px, start : start + patch_px]


def _haze_factor(in_focus: Image, haze: Image, wanted: float | None) -> np.float32:
    """What the light from outside the focus is multiplied by to carry the wanted share of all."""
    near, far = float(in_focus.sum()), float(haze.sum())
    if wanted is None:
        return np.float32(1.0)
    if near <= 0 or far <= 0:  # nothing in focus to be a share of: an empty patch
        return np.float32(0.0)
    return np.float32(wanted / (1 - wanted) * near / far)


def _peak(image: Image) -> float:
    count = max(1, round(_BRIGHTEST * image.size))
    return float(np.partition(image, -count, axis=None)[-count:].mean())


def _plane_otfs(conditions: Conditions, stored: StoredPsfPlanes | None, field_px: int) -> NDArray[Any]:
    """Transfer function of each plane (n, field, field // 2 + 1), complex64, 1 at zero frequency for the best focus.

    A widefield plane loses no light by being out of focus, so each sums to 1, however much of its PSF leaves the field
    (it re-enters on the other side, as the neighbours' light would). Other microscopes keep their axial profile.
    """
    if stored is not None:
        return _stored_otfs(conditions, stored, field_px)
    microscope = conditions.optics
    if not isinstance(microscope, Microscope):
        raise TypeError("the optics of an emitting specimen are a Microscope")
    scanned = microscope.kind in ("confocal", "two-photon")
    size = field_px - 1 if field_px % 2 == 0 else field_px
    grid = Grid((1, size, size), conditions.pixel_um, 1.0, "point" if scanned else "pixel")
    stage = torch.tensor(conditions.stage_um, dtype=torch.float64)
    psf = compute_psf(microscope, grid, normalize="none", z_um=stage).numpy()
    focus = len(psf) // 2
    sums = psf.sum((1, 2), keepdims=True)
    spectra = _centred_spectra(psf / (sums if microscope.kind == "widefield" else sums[focus]), field_px)
    if microscope.zernike_waves:
        spectra *= _shift_back(psf[focus], field_px)
    return spectra


def _shift_back(psf_yx: Image, field_px: int) -> NDArray[np.complex64]:
    """Phase ramp that brings the core of the in-focus PSF (centroid of its square) to the origin.

    The tilts of `conditions` did so for the centroid of all its light; this is what is left for the core, which is what
    shows, so that recorded image and target are in register.
    """
    weight = psf_yx.astype(np.float64) ** 2
    y, x = (
        float((weight.sum(1 - axis) * (np.arange(n) - n // 2)).sum() / weight.sum())
        for axis, n in enumerate(weight.shape)
    )
    phase = fft.fftfreq(field_px)[:, None] * y + fft.rfftfreq(field_px)[None, :] * x
    # The highest frequency of an even size has no sign; its ramp must be real.
    ramp = np.exp(2j * math.pi * phase)
    if field_px % 2 == 0:
        ramp[field_px // 2], ramp[:, -1] = ramp[field_px // 2].real, ramp[:, -1].real
    single: NDArray[np.complex64] = ramp.astype(np.complex64)
    return single


def _stored_otfs(conditions: Conditions, stored: StoredPsfPlanes, field_px: int) -> NDArray[Any]:
    """Planes of the file at the stage positions of the scene; beyond its ends the outermost."""
    values = stored.values_zyx
    centre = len(values) // 2
    steps = [round(s / stored.focus.z_step_um) for s in conditions.stage_um]
    chosen = values[[min(max(centre + k, 0), len(values) - 1) for k in steps]]
    crop = [max(0, (n - (field_px - 1)) // 2) for n in chosen.shape[1:]]
    chosen = chosen[:, crop[0] : chosen.shape[1] - crop[0], crop[1] : chosen.shape[2] - crop[1]]
    return _centred_spectra(chosen / values[centre].sum(), field_px)


def _centred_spectra(psf: NDArray[Any], field_px: int) -> NDArray[Any]:
    """Spectra of odd-sized planes whose middle pixel is the origin."""
    field = np.zeros((len(psf), field_px, field_px), np.float32)
    ny, nx = psf.shape[1:]
    field[:, :ny, :nx] = psf
    field = np.roll(field, (-(ny // 2), -(nx // 2)), axis=(1, 2))
    spectra: NDArray[Any] = fft.rfft2(field)
    return spectra


def _gaussian_otf(size_px: int, sigma_px: float) -> Image:
    """Spectrum of a Gaussian sampled at the pixels, (size, size // 2 + 1): aliases included, so it does not ring."""

    def sampled(f: NDArray[np.float64]) -> NDArray[np.float64]:
        aliases = np.exp(-2.0 * (math.pi * sigma_px * (f[:, None] - np.array([-1.0, 0.0, 1.0]))) ** 2).sum(1)
        values: NDArray[np.float64] = aliases / aliases[0]
        return values

    rows, columns = sampled(fft.fftfreq(size_px)), sampled(fft.rfftfreq(size_px))
    return (rows[:, None] * columns[None, :]).astype(np.float32)


def _transmitted(scene: Volume, conditions: Conditions, optics: Transmission) -> tuple[Image, Image, float]:
    """Photons of a weak absorbing and refracting specimen in transmitted light, and its sharp transmission.

    Absorption and phase are those of a light path through all planes where the specimen is densest.
    """
    field_px = scene.shape[-1]
    absorbed, shifted = transfer_functions_2d(
        optics, conditions.stage_um, (field_px, field_px), conditions.pixel_um, oblique=True
    )
    column = np.percentile(scene.sum(0), 99.9)
    spectra = fft.rfft2(scene / np.float32(column) if column > 0 else scene)
    half = field_px // 2 + 1
    transfer = conditions.phase_rad * shifted.numpy()[..., :half] - conditions.absorption * absorbed.numpy()[..., :half]
    contrast = fft.irfft2((spectra * transfer.astype(np.complex64)).sum(0), s=scene.shape[1:])
    density = _sharp(spectra, conditions, field_px)
    light = conditions.photons * np.maximum(1.0 + contrast, 0.0)
    target = conditions.photons * np.exp(-2.0 * conditions.absorption * density)
    return light.astype(np.float32), target.astype(np.float32), 0.0


def _maps(conditions: Conditions, patch_px: int, rng: np.random.Generator) -> CameraMaps | None:
    if not conditions.scmos:
        return None
    return make_scmos_maps(conditions.camera, (patch_px, patch_px), rng)


def _display_range(blurred: NDArray[np.unsignedinteger]) -> list[float]:
    """The tool's normalisation range of the recorded patch: percentiles 0.1 and 99.9."""
    low, high = (float(v) for v in np.percentile(blurred, (0.1, 99.9)))
    return [low, high if high > low else low + 1.0]
