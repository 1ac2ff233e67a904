"""Procedural specimens: sharp, non-negative planes of the structures that biologists image.

Invariant: a specimen is a (size, size) float32 plane, non-negative, drawn only from the generator that is passed in;
thin structures are splatted at sub-pixel positions, so nothing sits on the pixel grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

Image = NDArray[np.float32]
Vector = NDArray[np.float64]


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def splat(size: int, y: Vector, x: Vector, weight: Vector) -> Image:
    """Sum points into pixels bilinearly (periodic), so that their sum is kept and their sub-pixel position shows."""
    y0, x0 = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    dy, dx = y - y0, x - x0
    plane = np.zeros(size * size)
    for oy, wy in ((0, 1 - dy), (1, dy)):
        for ox, wx in ((0, 1 - dx), (1, dx)):
            index = ((y0 + oy) % size) * size + (x0 + ox) % size
            plane += np.bincount(index, weight * wy * wx, minlength=size * size)
    return plane.reshape(size, size).astype(np.float32)


def smooth_noise(rng: np.random.Generator, size: int, sigma_px: float) -> Image:
    """Gaussian random field of unit variance, correlated over about `sigma_px`."""
    fy = fft.fftfreq(size).astype(np.float32)[:, None]
    fx = fft.rfftfreq(size).astype(np.float32)[None, :]
    otf = np.exp(np.float32(-2 * (math.pi * sigma_px) ** 2) * (fy**2 + fx**2))
    otf[0, 0] = 0.0
    noise = fft.irfft2(fft.rfft2(rng.standard_normal((size, size), np.float32)) * otf, s=(size, size))
    unit: Image = (noise / max(float(noise.std()), 1e-12)).astype(np.float32)
    return unit


def _brightness(rng: np.random.Generator, count: int) -> Vector:
    return rng.lognormal(0.0, rng.uniform(0.0, 1.0), count)


def points(rng: np.random.Generator, size: int) -> Image:
    """Points of log-normal brightness, from a few to crowded, scattered or clustered, as dots or small beads."""
    count = max(1, int(_log_uniform(rng, 3e-5, 2e-2) * size * size))
    if rng.random() < 0.4:
        centres = rng.uniform(0, size, (max(1, count // int(rng.integers(3, 30))), 2))
        yx = centres[rng.integers(0, len(centres), count)] + rng.normal(0, _log_uniform(rng, 1.5, 15), (count, 2))
    else:
        yx = rng.uniform(0, size, (count, 2))
    plane = splat(size, yx[:, 0], yx[:, 1], _brightness(rng, count))
    if rng.random() < 0.3:
        radius = rng.uniform(0.8, 3.5)
        y, x = np.mgrid[-4:5, -4:5]
        bead = np.clip(radius - np.hypot(y, x) + 0.5, 0, 1).astype(np.float32)
        plane = ndimage.convolve(plane, bead, mode="wrap")
    return plane


def _walk(
    rng: np.random.Generator, start_yx: Vector, angle: float, length_px: float, bend: float
) -> tuple[Vector, Vector]:
    """A curve of persistent direction in steps of half a pixel: (n, 2) positions and (n,) directions."""
    count = max(4, int(2 * length_px))
    curvature = ndimage.gaussian_filter1d(rng.standard_normal(count), 12.0, mode="nearest") * bend
    direction = angle + np.cumsum(curvature)
    steps = 0.5 * np.stack([np.sin(direction), np.cos(direction)], axis=1)
    return start_yx + np.cumsum(steps, axis=0), direction


def filaments(rng: np.random.Generator, size: int) -> Image:
    """Thin curved fibres, random, aster-like or aligned in bundles, some branching, some beaded along their length."""
    count = int(_log_uniform(rng, 2, 150))
    bend = _log_uniform(rng, 0.01, 0.25)
    style = rng.random()
    centre, main_angle = rng.uniform(0, size, 2), rng.uniform(0, 2 * math.pi)
    ys, xs, ws = [], [], []
    for _ in range(count):
        if style < 0.25:
            start, angle = centre + rng.normal(0, 6, 2), rng.uniform(0, 2 * math.pi)
        elif style < 0.45:
            start, angle = rng.uniform(0, size, 2), main_angle + rng.normal(0, 0.15)
        else:
            start, angle = rng.uniform(0, size, 2), rng.uniform(0, 2 * math.pi)
        path, direction = _walk(rng, start, angle, rng.uniform(0.1, 0.9) * size, bend)
        weight = np.full(len(path), float(_brightness(rng, 1)[0]))
        if rng.random() < 0.2:
            weight *= rng.gamma(0.5, 2.0, len(path))
        ys.append(path[:, 0])
        xs.append(path[:, 1])
        ws.append(weight)
        if style > 0.75:
            for at in rng.integers(0, len(path), int(rng.integers(0, 4))):
                side, _ = _walk(rng, path[at], direction[at] + rng.choice([-1, 1]) * 0.8, 0.2 * size, bend)
                ys.append(side[:, 0])
                xs.append(side[:, 1])
                ws.append(np.full(len(side), weight[0]))
    plane = splat(size, np.concatenate(ys), np.concatenate(xs), np.concatenate(ws))
    if rng.random() < 0.5:
        plane = ndimage.gaussian_filter(plane, rng.uniform(0.3, 0.9), mode="wrap")
    return plane


def vesicles(rng: np.random.Generator, size: int) -> Image:
    """Rings (optical sections of shells), some filled, with radii from 2 to 25 px."""
    count = int(_log_uniform(rng, 3, 120))
    largest = _log_uniform(rng, 3, 25)
    ys, xs, ws = [], [], []
    for _ in range(count):
        radius, squeeze = rng.uniform(1.5, largest), rng.uniform(0.7, 1.0)
        t = np.arange(0, 2 * math.pi, 0.4 / radius)
        rotation, bright = rng.uniform(0, math.pi), float(_brightness(rng, 1)[0])
        filled = rng.random() < 0.15
        spread = np.sqrt(rng.uniform(0, 1, t.size)) if filled else np.ones(t.size)
        a, b = radius * spread * np.cos(t), squeeze * radius * spread * np.sin(t)
        cy, cx = rng.uniform(0, size, 2)
        ys.append(cy + a * math.cos(rotation) - b * math.sin(rotation))
        xs.append(cx + a * math.sin(rotation) + b * math.cos(rotation))
        ws.append(np.full(t.size, bright))
    return splat(size, np.concatenate(ys), np.concatenate(xs), np.concatenate(ws))


def membranes(rng: np.random.Generator, size: int) -> Image:
    """Cell outlines: the edges of a Voronoi diagram, bent by a smooth displacement, of uneven brightness."""
    from scipy.spatial import Voronoi

    cells = int(_log_uniform(rng, 12, 250))
    diagram = Voronoi(rng.uniform(-0.2 * size, 1.2 * size, (cells * 2, 2)))
    ys, xs, ws = [], [], []
    for a, b in diagram.ridge_vertices:
        if a < 0 or b < 0:
            continue
        p, q = diagram.vertices[a], diagram.vertices[b]
        length = float(np.hypot(*(q - p)))
        if length > size:
            continue
        t = np.linspace(0, 1, max(2, int(2.5 * length)))[:, None]
        path = p + t * (q - p)
        ys.append(path[:, 0])
        xs.append(path[:, 1])
        ws.append(np.full(len(path), rng.uniform(0.4, 1.0)))
    y, x, w = np.concatenate(ys), np.concatenate(xs), np.concatenate(ws)
    inside = (y > 0) & (y < size - 1) & (x > 0) & (x < size - 1)
    y, x, w = y[inside], x[inside], w[inside]
    period = 2 * math.pi / (size / rng.integers(2, 7))
    bend = rng.uniform(0, 3.0)
    phase = rng.uniform(0, 2 * math.pi, 2)
    plane = splat(size, y + bend * np.sin(period * x + phase[0]), x + bend * np.sin(period * y + phase[1]), w)
    if rng.random() < 0.6:
        plane = ndimage.gaussian_filter(plane, rng.uniform(0.3, 1.2), mode="wrap")
    return plane


def nuclei(rng: np.random.Generator, size: int) -> Image:
    """Filled blobs with rough outlines and chromatin-like texture, dark nucleoli or bright foci."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    radius = _log_uniform(rng, 8, size / 5)
    wobble = 0.15 * smooth_noise(rng, size, radius / 3)
    grain = np.exp(rng.uniform(0.1, 0.8) * smooth_noise(rng, size, _log_uniform(rng, 1.0, 5.0)))
    plane = np.zeros((size, size), np.float32)
    for _ in range(int(rng.integers(1, max(2, min(30, int(0.5 * (size / radius) ** 2 / 4)) + 1)))):
        cy, cx = rng.uniform(0, size, 2)
        angle, squeeze = rng.uniform(0, math.pi), rng.uniform(0.6, 1.0)
        u = (y - cy) * math.cos(angle) + (x - cx) * math.sin(angle)
        v = (x - cx) * math.cos(angle) - (y - cy) * math.sin(angle)
        distance = (np.sqrt(u**2 + (v / squeeze) ** 2) / radius + wobble - 1.0) * radius
        plane = np.maximum(plane, np.clip(0.5 - distance, 0, 1) * np.float32(rng.uniform(0.4, 1.0)))
    if rng.random() < 0.4:
        holes = smooth_noise(rng, size, radius / 6)
        plane = plane * np.clip(1.5 - holes, 0.15, 1.0)
    if rng.random() < 0.3:
        plane = plane + plane * 10.0 * (smooth_noise(rng, size, 1.0) > 3.0)
    textured: Image = (plane * grain).astype(np.float32)
    return textured


def texture(rng: np.random.Generator, size: int) -> Image:
    """Dense tissue: filtered noise as it is, exponentiated, or cut into patches and threads."""
    noise = smooth_noise(rng, size, _log_uniform(rng, 0.8, 6.0))
    style = rng.random()
    if style < 0.35:
        plane = np.exp(rng.uniform(0.3, 1.2) * noise)
    elif style < 0.7:
        plane = np.clip(noise - rng.uniform(-0.5, 1.5), 0, None)
    else:
        plane = np.exp(-((noise / rng.uniform(0.1, 0.4)) ** 2))
    if rng.random() < 0.5:
        plane = plane * np.exp(0.8 * smooth_noise(rng, size, rng.uniform(10, 40)))
    return plane.astype(np.float32)


def gratings(rng: np.random.Generator, size: int) -> Image:
    """Bars and line pairs of stated period in a few random windows; also hollow boxes."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    plane = np.zeros((size, size), np.float32)
    for _ in range(int(rng.integers(1, 6))):
        angle, period = rng.uniform(0, math.pi), _log_uniform(rng, 3, 30)
        u = y * math.cos(angle) + x * math.sin(angle)
        v = x * math.cos(angle) - y * math.sin(angle)
        centre_u, centre_v = rng.choice(u.ravel()), rng.choice(v.ravel())
        half_u, half_v = rng.uniform(0.03, 0.3, 2) * size
        in_u, in_v = half_u - np.abs(u - centre_u), half_v - np.abs(v - centre_v)
        window = np.clip(np.minimum(in_u, in_v), 0, 1)
        bars = np.clip((np.cos(2 * math.pi * u / period) - rng.uniform(-0.3, 0.8)) * period / 6, 0, 1)
        if rng.random() < 0.25:
            bars = np.clip(1.5 - np.abs(np.minimum(in_u, in_v) - 2.0), 0, 1)
        plane += window * bars * np.float32(rng.uniform(0.3, 1.0))
    return plane


KINDS: tuple[tuple[Callable[[np.random.Generator, int], Image], float], ...] = (
    (points, 0.2),
    (filaments, 0.24),
    (vesicles, 0.12),
    (membranes, 0.12),
    (nuclei, 0.13),
    (texture, 0.12),
    (gratings, 0.07),
)
"""Each specimen with its share of the draws."""


def normalised(plane: Image) -> Image:
    """Scale a non-negative plane so that its brightest 0.1 % average 1; an empty plane stays empty."""
    count = max(1, plane.size // 1000)
    peak = float(np.partition(plane, -count, axis=None)[-count:].mean())
    scaled: Image = plane / np.float32(peak) if peak > 0 else plane
    return scaled


def draw(rng: np.random.Generator, size: int) -> Image:
    """One procedural plane: one or two kinds, some confined to cell-like regions that leave empty background."""
    shares = np.array([share for _, share in KINDS])
    plane = np.zeros((size, size), np.float32)
    for _ in range(1 if rng.random() < 0.7 else 2):
        kind = KINDS[int(rng.choice(len(KINDS), p=shares / shares.sum()))][0]
        plane += normalised(kind(rng, size)) * np.float32(rng.uniform(0.2, 1.0))
    if rng.random() < 0.35:
        region = smooth_noise(rng, size, size / rng.uniform(6, 16))
        plane = plane * np.clip((region - rng.uniform(-0.8, 0.8)) * rng.uniform(2, 30), 0, 1).astype(np.float32)
    if rng.random() < 0.3:
        plane = plane * np.exp(0.5 * smooth_noise(rng, size, size / 8))
    return normalised(plane)
