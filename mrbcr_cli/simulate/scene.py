"""The structures of one pair: planes of light around the plane of focus, from sharp images or procedural specimens.

Invariant: a scene is (planes, y, x) float32, not negative, decided by the generator that is passed in; what was drawn
comes out as a JSON-able origin that makes it again.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mrbcr_cli.simulate.conditions import Conditions, uniform
from mrbcr_cli.simulate.sources import SharpSource, read_window

if TYPE_CHECKING:
    from mrbcr_cli.simulate.pairs_settings import PairsSettings

Volume = NDArray[np.float32]

_TRIES = 4
"""Windows looked at before an empty one is accepted; a set of empty patches teaches nothing."""
_LEAST_SHARE = 0.01
_FEWEST_EMPTY = 0.05


def draw_scene(
    rng: np.random.Generator,
    settings: PairsSettings,
    conditions: Conditions,
    sources: tuple[SharpSource, ...],
    field_px: int,
) -> tuple[Volume, dict[str, Any]]:
    """Draw the structures: (len(conditions.z_um), field_px, field_px), about 1 where bright, and their origin.

    `sources` are those of the pair's split.
    """
    if sources and rng.random() >= settings.procedural_share:
        return _from_sources(rng, settings, conditions, sources, field_px)
    return _procedural(rng, settings, conditions, field_px)


def _procedural(
    rng: np.random.Generator, settings: PairsSettings, conditions: Conditions, field_px: int
) -> tuple[Volume, dict[str, Any]]:
    from mrbcr_cli.specimens import draw_specimen, render

    z = conditions.z_um
    step_um = z[1] - z[0] if len(z) > 1 else conditions.fwhm_z_um
    thickness_um = step_um * len(z)
    pixel = conditions.pixel_um
    margin = (field_px - settings.patch) // 2
    scene = np.zeros((len(z), field_px, field_px), np.float32)
    origin: dict[str, Any] = {}
    for attempt in range(_TRIES):
        specimen = draw_specimen(rng, settings.specimen or None, thickness_um=thickness_um)
        y_um, x_um = (float(v) for v in rng.uniform(-500.0, 500.0, 2))
        corner = (-thickness_um / 2, y_um, x_um)
        scene = render(specimen, corner, (len(z), field_px, field_px), (step_um, pixel, pixel))
        origin = {"specimen": asdict(specimen), "corner_zyx_um": list(corner), "voxel_zyx_um": [step_um, pixel, pixel]}
        patch = scene[len(z) // 2, margin : margin + settings.patch, margin : margin + settings.patch]
        if _has_structure(patch) or (attempt == 0 and rng.random() < _FEWEST_EMPTY):
            break
    return _bright_is_one(scene), origin


def _has_structure(patch: Volume) -> bool:
    """Whether at least one pixel in a hundred belongs to something."""
    bright = float(np.percentile(patch, 99.9))
    return bright > 0 and float(np.mean(patch > 0.15 * bright)) > _LEAST_SHARE


def _bright_is_one(scene: Volume) -> Volume:
    """Scaled so that the brightest 0.1 % of the middle plane average 1; an empty one stays empty."""
    plane = scene[len(scene) // 2].ravel()
    count = max(1, plane.size // 1000)
    bright = float(np.partition(plane, -count)[-count:].mean())
    return scene / np.float32(bright) if bright > 0 else scene


def _from_sources(
    rng: np.random.Generator,
    settings: PairsSettings,
    conditions: Conditions,
    sources: tuple[SharpSource, ...],
    field_px: int,
) -> tuple[Volume, dict[str, Any]]:
    """The focal plane from one source; out of focus, pieces of other planes and images of the same split."""
    count = len(conditions.z_um)
    middle = count // 2
    scene = np.zeros((count, field_px, field_px), np.float32)
    scale = uniform(rng, settings.scale)
    gamma = uniform(rng, settings.gamma)
    margin = (field_px - settings.patch) // 2
    focal, origin, source = scene[middle], dict[str, Any](), sources[0]
    for attempt in range(_TRIES):
        source = sources[int(rng.integers(len(sources)))]
        focal, origin = _draw_piece(rng, settings, source, field_px, scale)
        patch = focal[margin : margin + settings.patch, margin : margin + settings.patch]
        if float(patch.max()) > 0.15 or (attempt == 0 and rng.random() < _FEWEST_EMPTY):
            break
    scene[middle] = focal
    pieces = [{**origin, "plane_of_scene": middle, "weight": 1.0}]
    others = [k for k in range(count) if k != middle]
    if others and conditions.haze != 0.0:
        for k in rng.permutation(others)[: int(rng.integers(1, 5))]:
            other = source if rng.random() < 0.6 else sources[int(rng.integers(len(sources)))]
            piece, where = _draw_piece(rng, settings, other, field_px, scale)
            weight = float(rng.uniform(0.3, 1.0))
            scene[k] += np.float32(weight) * piece
            pieces.append({**where, "plane_of_scene": int(k), "weight": weight})
    np.power(scene, np.float32(gamma), out=scene)
    return _bright_is_one(scene), {"scale": scale, "gamma": gamma, "pieces": pieces}


def _draw_piece(
    rng: np.random.Generator, settings: PairsSettings, source: SharpSource, field_px: int, scale: float
) -> tuple[Volume, dict[str, Any]]:
    """A window of one plane of a source, shrunk, turned and mirrored: (field_px, field_px)."""
    plane = source.planes[int(rng.integers(len(source.planes)))]
    height, width = source.shape_yx
    # A source smaller than its field would be mostly its own mirror image; shrink it less then.
    scale = min(scale, max(1.0, min(height, width) / settings.patch))
    angle = float(rng.uniform(0.0, 360.0)) if settings.rotate else 0.0
    mirrored = bool(settings.flip and rng.random() < 0.5)
    turned = abs(math.cos(math.radians(angle))) + abs(math.sin(math.radians(angle)))
    reach = scale * field_px * turned / 2 + 4
    centre = [
        float(rng.uniform(min(half, size / 2), max(size - half, size / 2)))
        for size, half in ((height, scale * settings.patch / 2), (width, scale * settings.patch / 2))
    ]
    y, x = (
        slice(max(0, math.floor(c - reach)), min(size, math.ceil(c + reach)))
        for c, size in zip(centre, (height, width), strict=True)
    )
    window = read_window(source, plane, y, x)
    piece = _resampled(window, (centre[0] - y.start, centre[1] - x.start), scale, angle, mirrored, field_px)
    where = {
        "source": source.name,
        "plane": list(plane.lead),
        "centre_yx": [round(c, 3) for c in centre],
        "scale": scale,
        "angle_deg": angle,
        "mirrored": mirrored,
    }
    return piece, where


def _resampled(
    window: Volume, centre_yx: tuple[float, float], scale: float, angle_deg: float, mirrored: bool, field_px: int
) -> Volume:
    """Turn and shrink about a point, cubic, after a low-pass against aliasing; mirrored at borders."""
    if scale > 1.05:
        window = ndimage.gaussian_filter(window, 0.35 * math.sqrt(scale**2 - 1), mode="reflect")
    cos, sin = (scale * f(math.radians(angle_deg)) for f in (math.cos, math.sin))
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.diag([1.0, -1.0 if mirrored else 1.0])
    offset = np.asarray(centre_yx) - matrix @ np.full(2, (field_px - 1) / 2)
    piece = ndimage.affine_transform(window, matrix, offset, (field_px, field_px), order=3, mode="reflect")
    clipped: Volume = np.clip(piece, 0.0, None).astype(np.float32)
    return clipped
