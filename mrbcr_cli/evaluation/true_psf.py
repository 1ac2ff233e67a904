"""What made a recorded pair, from its record: the PSF in the plane of focus, the camera, the light nobody emitted.

Invariant: the PSF is the one that the simulation used for the plane of the target, in the same register, so that a peer
who is given it knows the optics exactly; all light is in photo-electrons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from mrbcr_cli.errors import InputError
from mrbcr_cli.optics.brightfield import Transmission, transfer_functions_2d
from mrbcr_cli.optics.camera import Camera
from mrbcr_cli.optics.microscope import Microscope, Objective
from mrbcr_cli.simulate.image_scene import plane_otfs

Record = Mapping[str, Any]
"""Of one pair, as `images.pairs_store.read_pairs` returns it."""
PsfOf = Callable[[Record, int], NDArray[np.float64]]
"""(record, size_px) -> PSF (y, x)."""


def read_optics(record: Record) -> Microscope | Transmission | None:
    """The microscope of a pair; None where its PSF came from a file. Raises InputError for a foreign record."""
    try:
        values = record["conditions"]["optics"]
        if values is None:
            return None
        if "objective" not in values:
            return Transmission(**values)
        objective = Objective(**values["objective"])
        zernike = tuple((int(j), float(waves)) for j, waves in values["zernike_waves"])
        return Microscope(**{**values, "objective": objective, "zernike_waves": zernike})
    except (KeyError, TypeError, ValueError) as error:
        raise _foreign(record, error) from error


def true_psf_yx(record: Record, size_px: int) -> NDArray[np.float64]:
    """The in-focus PSF of a pair on its own pixels: float64 (y, x), odd, origin in the middle, not negative, sum 1.

    The stage stands where it stood for the plane of the target (defocus included), and the core of an aberrated PSF is
    brought to the origin, as for the pair; what this interpolation leaves below 0 becomes 0. An even `size_px` gives
    the next smaller odd size. Brightfield: the response to absorption. Raises InputError where the pair's PSF came from
    a file, or the record is not one of ours.
    """
    optics = read_optics(record)
    if optics is None:
        name = (record.get("psf_file") or {}).get("name", "a file")
        raise InputError(f"the PSF of these pairs came from {name}: give it as --psf, or use --no-baselines")
    size = _odd(size_px)
    try:
        pixel_um, stages = float(record["conditions"]["pixel_um"]), record["conditions"]["stage_um"]
        stage_um = float(stages[len(stages) // 2])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _foreign(record, error) from error
    if isinstance(optics, Transmission):
        absorbed, _ = transfer_functions_2d(optics, (stage_um,), (size, size), pixel_um, oblique=True)
        otf = absorbed[0, :, : size // 2 + 1].numpy()
    else:
        otf = plane_otfs(optics, (stage_um,), pixel_um, size)[0].numpy().astype(np.complex128)
    return _normalised(fft.fftshift(fft.irfft2(otf, s=(size, size))))


def given_psf(path: Path, settings: Mapping[str, Any]) -> tuple[PsfOf, Callable[[Record], bool]]:
    """The PSF of a file for pairs made with `settings` (as their store records them), and whether a pair was made with
    it.

    Of a stack the plane at the stage of the target is taken for pairs that were made from a PSF file, its plane of
    focus for others. Raises InputError for a file that cannot be used.
    """
    if settings.get("psf") is not None:
        return _file_of_pairs(path, settings)
    from mrbcr_cli.psf_files import read_stored_psf
    from mrbcr_cli.psf_grid import prepare_psf

    stored = read_stored_psf(path)

    def resampled(record: Record, size_px: int) -> NDArray[np.float64]:
        pixel_um = float(record["conditions"]["pixel_um"])
        psf = prepare_psf(
            stored.values,
            source=str(path),
            image_scale_zyx_um=(None, pixel_um, pixel_um),
            psf_scale_zyx_um=stored.scale_zyx_um,
            plane="focus",
        )
        return _middle(psf.values_zyx[0], size_px)

    return resampled, lambda record: False


def _file_of_pairs(path: Path, settings: Mapping[str, Any]) -> tuple[PsfOf, Callable[[Record], bool]]:
    from mrbcr_cli.simulate.pairs import plan_pairs
    from mrbcr_cli.simulate.pairs_settings import PairsSettings

    try:
        same = PairsSettings(**{**settings, "psf": path, "source": (), "procedural": None})
    except ValueError as error:
        raise InputError(f"the settings that the pairs were made with cannot be read ({error})") from error
    stored = plan_pairs(same).psf
    if stored is None:
        raise InputError(f"{path}: is no PSF")
    planes, step_um = stored.values_zyx, stored.focus.z_step_um

    def at_stage(record: Record, size_px: int) -> NDArray[np.float64]:
        stages = record["conditions"]["stage_um"]
        number = len(planes) // 2 + round(float(stages[len(stages) // 2]) / step_um)
        return _middle(planes[min(max(number, 0), len(planes) - 1)], size_px)

    return at_stage, lambda record: (record.get("psf_file") or {}).get("sha256") == stored.sha256


def _middle(psf_yx: NDArray[Any], size_px: int) -> NDArray[np.float64]:
    """At most `size_px` pixels (odd) around the middle of a PSF of odd size."""
    cut = [max(0, (n - _odd(size_px)) // 2) for n in psf_yx.shape]
    return _normalised(psf_yx[tuple(slice(c, n - c) for c, n in zip(cut, psf_yx.shape, strict=True))])


def _odd(size_px: int) -> int:
    return size_px - 1 if size_px % 2 == 0 else size_px


def _normalised(psf_yx: NDArray[Any]) -> NDArray[np.float64]:
    positive = np.maximum(np.asarray(psf_yx, np.float64), 0.0)
    return np.asarray(positive / positive.sum())


@dataclass(frozen=True)
class Exposure:
    """How counts become light to deconvolve, in photo-electrons, and back.

    Fluorescence: electrons above the camera's offset. Brightfield: twice the bright field minus them, so that what
    absorbs is what shines, and shot noise keeps its strength.
    """

    offset_adu: float
    gain_adu: float
    """Counts per electron."""
    read_noise_e: float
    background_e: float
    """Electrons a pixel of background light and dark current (brightfield: of the bright field)."""
    target_fwhm_px: float
    """Resolution of the target: the width of its Gaussian."""
    mirrored_at_e: float | None = None
    """Brightfield: its electrons a pixel."""

    def electrons(self, counts: NDArray[Any]) -> NDArray[np.float32]:
        """Light (float32, electrons) of counts of any real dtype."""
        light = (np.asarray(counts, np.float64) - self.offset_adu) / self.gain_adu
        return self._mirrored(light).astype(np.float32)

    def counts(self, electrons: NDArray[Any]) -> NDArray[np.float32]:
        """The reverse of `electrons` (float32, counts)."""
        light = self._mirrored(np.asarray(electrons, np.float64))
        return (light * self.gain_adu + self.offset_adu).astype(np.float32)

    def _mirrored(self, light: NDArray[np.float64]) -> NDArray[np.float64]:
        return light if self.mirrored_at_e is None else 2 * self.mirrored_at_e - light


def read_exposure(record: Record) -> Exposure:
    """The exposure of a pair. Raises InputError for a record that is not one of ours.

    Of an sCMOS with per-pixel maps these are the values that the maps scatter about; the maps are not in the record.
    """
    try:
        conditions = record["conditions"]
        camera = Camera(**conditions["camera"])
        transmitted = conditions["optics"] is not None and "objective" not in conditions["optics"]
        photons = float(conditions["photons" if transmitted else "background_photons"])
        fwhm_px = float(record["target"]["fwhm_px"])
    except (KeyError, TypeError, ValueError) as error:
        raise _foreign(record, error) from error
    if not (math.isfinite(photons) and math.isfinite(fwhm_px) and fwhm_px > 0):
        raise InputError(f"pair {record.get('index')}: its record holds no usable light or target width")
    light = camera.quantum_efficiency * photons + camera.dark_e
    mirror = light if transmitted else None
    return Exposure(camera.offset_adu, camera.gain_adu, camera.read_noise_e, light, fwhm_px, mirror)


def _foreign(record: Record, error: Exception) -> InputError:
    said = f"{type(error).__name__} {error}"
    return InputError(f"pair {record.get('index')}: its record does not describe how it was made ({said})")
