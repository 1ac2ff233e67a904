"""Where training stands: a fixed set over the whole domain, PSNR of the network, and Richardson-Lucy beside it.

Invariant: the set depends on nothing but its seed and the held-out images, and covers photons, FWHM and haze evenly
(4 x 4 x 4 cells, one patch each), so that its figures compare between runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import forward_model as fm
import numpy as np
import sources as real
import torch
from scipy import fft

PEAKS_E = (30.0, 120.0, 600.0, 3000.0)
FWHMS_PX = (2.3, 3.2, 4.3, 5.6)
HAZE = (0.0, 0.15, 0.35, 0.55)
MARGIN_PX = 64
RL_ITERATIONS = (2, 3, 5, 8, 12, 18, 26, 38, 55, 80)
SEED = 77


class Network(Protocol):
    def __call__(self, image_nchw: torch.Tensor) -> tuple[torch.Tensor, ...]: ...


@dataclass(frozen=True)
class Case:
    """One held-out patch with a margin of 64 px, in electrons; `window` cuts the patch out of it."""

    noisy: fm.Image
    target: fm.Image
    haze: fm.Image
    otf: fm.Spectrum
    low: float
    high: float
    conditions: fm.Conditions
    window: tuple[slice, slice]


def make_cases(
    held_out: list[real.Source],
    draw_specimen: Callable[[np.random.Generator, list[real.Source], int], fm.Image],
    field_px: int,
    patch_px: int,
) -> list[Case]:
    """One case for each cell of photons x FWHM x haze; the patch is the busiest of ten places in its field."""
    cases = []
    size = patch_px + 2 * MARGIN_PX
    for index, (peak, fwhm, haze_fraction) in enumerate(itertools.product(PEAKS_E, FWHMS_PX, HAZE)):
        rng = np.random.default_rng([SEED, index])
        conditions = fm.with_bins(
            fm.draw_conditions(rng), peak_electrons=peak, fwhm_px=fwhm, haze_fraction=haze_fraction
        )
        plane = draw_specimen(rng, held_out, field_px)
        while not plane.any():
            plane = draw_specimen(rng, held_out, field_px)
        others = [np.roll(plane, (31, 17), (0, 1)) for _ in conditions.haze_planes]
        others[0] = draw_specimen(rng, held_out, field_px)
        field = fm.make_field(plane, others, conditions, rng, keep_optics=True)
        # Nine places and one around the brightest pixel, so that no patch of a sparse field is empty.
        places = [(int(y), int(x)) for y, x in rng.integers(0, field_px, (9, 2))]
        brightest = np.unravel_index(int(field.target.argmax()), field.target.shape)
        places.append((int(brightest[0]), int(brightest[1])))
        y, x = max(places, key=lambda place: float(_around(field.target, *place, patch_px).std()))
        haze = field.haze if field.haze is not None else np.zeros_like(field.mean)
        cases.append(
            Case(
                noisy=fm.record(_around(field.mean, y, x, size), conditions, rng),
                target=_around(field.target, y, x, size),
                haze=_around(haze, y, x, size),
                otf=fm.psf_otf(size, conditions.psf),
                low=field.low,
                high=field.high,
                conditions=conditions,
                window=np.s_[MARGIN_PX : size - MARGIN_PX, MARGIN_PX : size - MARGIN_PX],
            )
        )
    return cases


def _around(image: fm.Image, y: int, x: int, size: int) -> fm.Image:
    """The (size, size) piece of a periodic field whose middle is (y, x)."""
    reach = np.arange(-(size // 2), size - size // 2)
    piece: fm.Image = image.take(reach + y, axis=0, mode="wrap").take(reach + x, axis=1, mode="wrap")
    return piece


def psnr(image: fm.Image, case: Case) -> float:
    """PSNR in dB inside the window, against the range of the target there."""
    target = case.target[case.window]
    mse = float(np.mean((image[case.window].astype(np.float64) - target) ** 2))
    span = max(float(target.max() - target.min()), 1e-6)
    return 10.0 * float(np.log10(span**2 / max(mse, 1e-12)))


def _summary(name: str, values: list[float], cases: list[Case]) -> dict[str, float]:
    peaks = [c.conditions.peak_electrons for c in cases]
    figures = {f"{name}_psnr": float(np.mean(values))}
    for peak in PEAKS_E:
        figures[f"{name}_{peak:g}e"] = float(np.mean([v for v, p in zip(values, peaks, strict=True) if p == peak]))
    return figures


def input_figures(cases: list[Case]) -> dict[str, float]:
    """PSNR of the recorded image itself, and of it less its true haze."""
    return {
        **_summary("input", [psnr(c.noisy, c) for c in cases], cases),
        "input_less_haze_psnr": float(np.mean([psnr(c.noisy - c.haze, c) for c in cases])),
    }


def restore(network: Network, case: Case) -> fm.Image:
    """The network's full-size answer to one case, in electrons."""
    span = case.high - case.low
    normalised = torch.from_numpy((case.noisy - case.low) / span).float()[None, None]
    return network(normalised)[0][0, 0].numpy() * np.float32(span) + np.float32(case.low)


def network_figures(network: Network, cases: list[Case]) -> dict[str, float]:
    """PSNR of the network, by photons, and the share of cases in which it beats its input."""
    values = [psnr(restore(network, c), c) for c in cases]
    wins = np.mean([v > psnr(c.noisy, c) for v, c in zip(values, cases, strict=True)])
    return {**_summary("psnr", values, cases), "beats_input": float(wins)}


def richardson_lucy(case: Case, iterations: Sequence[int], *, know_haze: bool) -> list[fm.Image]:
    """Estimates after each of `iterations` (ascending), at the target's resolution, in electrons.

    W. H. Richardson 1972, L. B. Lucy 1974, with the true PSF and the true background in the model. The object estimate
    is blurred to the resolution of the target, which suits it better than being compared as it is.
    """
    shape = case.noisy.shape
    size = shape[0]
    floor = case.conditions.background_electrons + case.conditions.read_noise_e**2
    offset = floor + (case.haze if know_haze else 0.0)
    # Read noise of variance v is near Poisson noise of mean v: adding v to data and model accounts for it.
    data = np.maximum(case.noisy + case.conditions.read_noise_e**2, 0.0)
    to_target = fm.gaussian_otf(size, fm.target_fwhm_px(case.conditions.psf.fwhm_px) / fm.FWHM_PER_SIGMA)
    estimate = np.full(shape, max(float((data - offset).mean()), 1e-3))
    estimates = []
    for iteration in range(1, max(iterations) + 1):
        model = fft.irfft2(fft.rfft2(estimate) * case.otf, s=shape) + offset
        ratio = data / np.maximum(model, 1e-6)
        estimate = estimate * np.maximum(fft.irfft2(fft.rfft2(ratio) * np.conj(case.otf), s=shape), 0.0)
        if iteration in iterations:
            shown = fft.irfft2(fft.rfft2(estimate) * to_target, s=shape)
            estimates.append((shown + case.conditions.background_electrons).astype(np.float32))
    return estimates


def richardson_lucy_figures(cases: list[Case]) -> dict[str, float]:
    """Richardson-Lucy with the true PSF: best iteration common to the set, and best per image (an oracle)."""
    figures: dict[str, float] = {}
    for know_haze in (False, True):
        table = np.array([[psnr(e, c) for e in richardson_lucy(c, RL_ITERATIONS, know_haze=know_haze)] for c in cases])
        best = int(table.mean(0).argmax())
        name = "rl_true_psf_true_haze" if know_haze else "rl_true_psf"
        figures[f"{name}_iterations"] = float(RL_ITERATIONS[best])
        figures |= _summary(name, [float(v) for v in table[:, best]], cases)
        figures[f"{name}_oracle_psnr"] = float(table.max(1).mean())
    return figures


def _mosaic(rows: list[list[fm.Image]], path: Path) -> None:
    """A grid of images, already in [0, 1], as an 8-bit grey PNG (white gaps)."""
    from matplotlib.image import imsave

    lines = [np.hstack([np.pad(np.clip(image, 0, 1), 2, constant_values=1.0) for image in row]) for row in rows]
    imsave(path, np.vstack(lines), cmap="gray", vmin=0.0, vmax=1.0)


def _shown(image: fm.Image, target: fm.Image) -> fm.Image:
    low, high = float(target.min()), float(np.percentile(target, 99.8))
    scaled: fm.Image = (image - low) / max(high - low, 1e-6)
    return scaled


def contact_sheet(fields: list[fm.Field], path: Path, patch_px: int) -> None:
    """Inputs and targets, each pair stretched to the input's range, four pairs a row."""
    rng = np.random.default_rng(0)
    images: list[fm.Image] = []
    for field in fields:
        noisy, target = fm.cut_patch(field, patch_px, rng, jitter=False)
        low, high = np.percentile(noisy, 0.1), np.percentile(noisy, 99.9)
        images.append((noisy - low) / (high - low))
        low, high = target.min(), np.percentile(target, 99.9)
        images.append((target - low) / max(high - low, 1e-6))
    _mosaic([images[i : i + 8] for i in range(0, len(images), 8)], path)


def picture(network: Network, cases: list[Case], path: Path) -> None:
    """Input, output, target of 16 cases, all in the range of the target, two cases a row of the mosaic."""
    rows: list[list[fm.Image]] = []
    with torch.inference_mode():
        for case in cases[2::4]:
            triple = [image[case.window] for image in (case.noisy, restore(network, case), case.target)]
            rows.append([_shown(image, triple[2]) for image in triple])
    _mosaic([rows[i] + rows[i + 1] for i in range(0, len(rows) - 1, 2)], path)
