"""One training pair: what the camera records of a scene, and the target it should be restored to.

Invariant: a pair is a function of the settings, the sources and its number alone. Recorded and target are in the same
counts, so one affine map normalises both; the target keeps what cannot be told from an offset (background and the
darkest level of the haze) and has a stated resolution, never a bare delta.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft

from mrbcr_cli.intensity import PERCENTILES
from mrbcr_cli.optics.camera import CameraMaps, expose, make_scmos_maps, mean_counts
from mrbcr_cli.simulate.conditions import Conditions, draw_conditions
from mrbcr_cli.simulate.image_scene import StoredPsfPlanes, image_scene
from mrbcr_cli.simulate.scene import draw_scene
from mrbcr_cli.simulate.sources import SPLITS, SharpSource

if TYPE_CHECKING:
    from mrbcr_cli.simulate.pairs_settings import PairsSettings

_MARGIN_PX = 24
"""Around a patch on every side; beyond it the field repeats itself."""

Image = NDArray[np.float32]


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
    imaged = image_scene(torch.from_numpy(scene), conditions, job.psf, "cpu")
    start = (field_px - settings.patch) // 2
    window = slice(start, start + settings.patch)
    patch = imaged.cut((window, window))
    light, target = (
        photons.numpy() for photons in patch.photons(conditions.photons, conditions.background_photons, patch.peak())
    )
    maps = _maps(conditions, settings.patch, rng)
    blurred = expose(light, conditions.camera, rng, maps)
    record = {
        "index": index,
        "split": split,
        "seed": [settings.seed, index],
        "origin": origin,
        "conditions": conditions.record(),
        "psf_file": None if job.psf is None else {"name": job.psf.name, "sha256": job.psf.sha256},
        "haze_share": imaged.haze_share(),
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


def _maps(conditions: Conditions, patch_px: int, rng: np.random.Generator) -> CameraMaps | None:
    if not conditions.scmos:
        return None
    return make_scmos_maps(conditions.camera, (patch_px, patch_px), rng)


def _display_range(blurred: NDArray[np.unsignedinteger]) -> list[float]:
    """The tool's normalisation range of the recorded patch: percentiles 0.1 and 99.9."""
    low, high = (float(v) for v in np.percentile(blurred, PERCENTILES))
    return [low, high if high > low else low + 1.0]
