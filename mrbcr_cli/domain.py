"""Whether an image lies within the domain that a network was trained for, from its spectrum and its noise alone.

Invariant: an estimate is the same after any affine change of the intensities with positive gain, and in any order of
the planes; what the pixels do not tell is None, and only what they tell beyond doubt becomes a warning.

A false alarm costs more than a miss, so the levels below were set on simulated images of the domain of `widefield`
(`python -m tests.benchmarks domain` measures them again); formulas are named in `domain_spectrum` and `domain_noise`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.domain_noise import looks_drawn, measure_noise, saturated_share
from mrbcr_cli.domain_spectrum import profile_widths, spectrum_of
from mrbcr_cli.intensity import EXACT_PIXELS

Array = NDArray[np.float64]
Content = Literal["image", "noise", "constant", "labels", "unknown"]

TILE_PX = 128
MIN_TILE_PX = 48
MAX_TILES = 64
_FEW_TILES = 32
"""With fewer, tiles overlap by half."""
_STRUCTURE = 5.0
"""Standard errors above the noise that some low frequency must reach."""
_SNR_OF_NOISE = 2.5
"""The brightest pixels of white noise reach 1.8."""
_LEAST_LEVEL = 1.3
"""Misfit may grow by this share before a width is called too narrow to explain the image ..."""
_MOST_LEVEL = 0.12
"""... or too wide. Structures have soft parts but no parts finer than the PSF, hence the two levels."""
_SPECIMEN_WIDENS = 1.08
"""What soft specimens add to the width of the PSF."""
_SNR_FOR_WIDE = 10.0
"""Below, fine detail may be there and hidden by noise."""
_SNR_FOR_NARROW = 5.0
_CUTOFF_FOR_NARROW = 0.25
"""Cycles per pixel up to which structure must be seen to say that it goes on."""
_MUCH_SATURATED = 1e-3
_USUAL_READ_NOISE_E = 4.0
_SURELY_FEWER = 0.75
"""Of the photo-electrons of the fewest photons; what the smoothing of the peak takes is less."""
_NOISE_ALONE = 0.45
"""Cycles per pixel; structure beyond is taken for noise by the estimate of the noise."""
_LINES = 100.0
"""Power of a line over the noise that becomes a warning: rows that differ by as much as the noise, or a mosaic."""

_OR_A_PSF = "or use --method richardson-lucy with its PSF"


@dataclass(frozen=True)
class DomainEstimate:
    """What an image's pixels tell of how it was taken; None where they do not."""

    content: Content
    """"noise": no structure above the noise; "labels": a mask or label image; "unknown": too small to tell."""
    tiles: int = 0
    """How many pieces of the image were looked at."""
    cutoff_cycles_per_px: float | None = None
    """Where the spectrum meets the noise; 0.5 and more: detail up to the pixel."""
    fwhm_px: float | None = None
    """Width of the blur that explains the spectrum best: of PSF and specimen together."""
    fwhm_least_px: float | None = None
    """Anything narrower does not explain it."""
    fwhm_most_px: float | None = None
    """Anything wider does not explain it."""
    snr_peak: float | None = None
    """Brightest structures over their noise."""
    photons_peak: float | None = None
    """Detected photons of the brightest structures above the darkest level."""
    photons_relative_error: float | None = None
    saturated_share: float = 0.0
    """Of the pixels, at the largest value."""
    line_power: float | None = None
    """Strongest regular pattern near the highest frequencies, over the noise."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return asdict(self)


class Windows:
    """Planes and windows that were read for another purpose, kept for `estimate_domain` up to a bounded size."""

    def __init__(self) -> None:
        self.planes: list[NDArray[Any]] = []
        self._pixels = 0

    def keep(self, window_yx: NDArray[Any]) -> None:
        """Keep a window if there is room for it."""
        if self._pixels + window_yx.size <= EXACT_PIXELS:
            self.planes.append(window_yx)
            self._pixels += window_yx.size


def estimate_domain(planes: Sequence[NDArray[Any]]) -> DomainEstimate:
    """Estimate from planes or windows of one channel, each (Y, X) of any real dtype, whatever their sizes.

    Of all their tiles of 128 px (48 px at least, in small images) the 64 most varied are looked at; tiles with values
    that are not finite are left out.
    """
    saturated = saturated_share(planes)
    tiles = choose_tiles(planes)
    if not tiles:
        return DomainEstimate("unknown", saturated_share=saturated)
    tiles = _on_one_scale(tiles)
    if not tiles:
        return DomainEstimate("constant")
    if looks_drawn(tiles):
        return DomainEstimate("labels", len(tiles), saturated_share=saturated)
    spectrum, noise = spectrum_of(tiles), measure_noise(tiles)
    seen = DomainEstimate(
        content="image",
        tiles=len(tiles),
        snr_peak=noise.snr_peak,
        photons_peak=noise.electrons_peak,
        photons_relative_error=noise.relative_error,
        saturated_share=saturated,
        line_power=spectrum.lines(),
    )
    if spectrum.structure() < _STRUCTURE:
        # One structure at the edge of a lone tile escapes the window; its brightness does not.
        return replace(seen, content="noise") if (noise.snr_peak or 0.0) < _SNR_OF_NOISE else seen
    widths = profile_widths(spectrum)
    return replace(
        seen,
        cutoff_cycles_per_px=widths.cutoff_cycles_per_px,
        fwhm_px=widths.fwhm_px,
        fwhm_least_px=widths.least_px(_LEAST_LEVEL),
        fwhm_most_px=widths.most_px(_MOST_LEVEL),
    )


def choose_tiles(planes: Sequence[NDArray[Any]]) -> list[Array]:
    """Return the most varied square tiles of one size, the most varied first; none where all planes are too small."""
    usable = [p for p in planes if p.ndim == 2 and min(p.shape) >= MIN_TILE_PX]
    if not usable:
        return []
    size = min(TILE_PX, *(min(p.shape) // 2 * 2 for p in usable))
    whole = sum((p.shape[0] // size) * (p.shape[1] // size) for p in usable)
    step = size // 2 if whole < _FEW_TILES else size
    found: list[tuple[float, int, int, int]] = []
    for number, plane in enumerate(usable):
        for y in _starts(plane.shape[0], size, step):
            for x in _starts(plane.shape[1], size, step):
                with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are found by their variance
                    spread = float(np.var(plane[y : y + size, x : x + size], dtype=np.float64))
                if np.isfinite(spread):
                    found.append((spread, number, y, x))
    found.sort(key=lambda item: (-item[0], item[1:]))
    return [usable[n][y : y + size, x : x + size].astype(np.float64) for _, n, y, x in found[:MAX_TILES]]


def _starts(length: int, size: int, step: int) -> list[int]:
    """Evenly spread starts of tiles that cover `length`, about `step` apart and the same from both ends."""
    count = -(-(length - size) // step) + 1
    return [round(start) for start in np.linspace(0, length - size, count)]


def _on_one_scale(tiles: list[Array]) -> list[Array]:
    """Map all intensities to 0 to 1, so that nothing below depends on units; nothing where all are equal."""
    low, high = min(float(t.min()) for t in tiles), max(float(t.max()) for t in tiles)
    return [(t - low) / (high - low) for t in tiles] if high > low else []


def wrong_limits(limits: Mapping[str, Any]) -> str | None:
    """Say what is wrong with a model's limits, which must be {name: [low, high]} with finite 0 <= low <= high > 0."""
    for name, span in limits.items():
        numbers = [v for v in span if isinstance(v, int | float) and not isinstance(v, bool)] if _is_pair(span) else []
        if len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1] < math.inf or numbers[1] == 0:
            return f"{name!r} must be two numbers [low, high], 0 <= low <= high > 0, not {span!r}"
    return None


def _is_pair(span: object) -> bool:
    return isinstance(span, list | tuple) and len(span) == 2


def check_domain(estimate: DomainEstimate, limits: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    """Return one sentence for each way in which the image lies outside a model's limits: found, limits, what to do.

    `limits` are (low, high) by name, as in a weights card: "fwhm_px", "photons" and, to judge the noise of the fewest
    photons, "read_noise_e". Names that are not there are not checked, other names not looked at.
    """
    if estimate.content == "unknown":
        return ()
    if estimate.content == "labels":
        return ("looks like a mask or label image (areas of equal values); the model is for images of a microscope",)
    if estimate.content in ("noise", "constant"):
        return ("shows no structure above its noise; what the output shows there cannot be trusted",)
    found = [_light(estimate, limits), _width(estimate, limits), _pattern(estimate, limits)]
    if estimate.saturated_share > _MUCH_SATURATED:
        found.append(
            f"{100 * estimate.saturated_share:.2g} % of the pixels are saturated; the model knows no clipped "
            "intensities, so distrust the output at the brightest structures"
        )
    return tuple(text for text in found if text is not None)


def _width(estimate: DomainEstimate, limits: Mapping[str, Sequence[float]]) -> str | None:
    if "fwhm_px" not in limits or estimate.fwhm_px is None:
        return None
    low, high = limits["fwhm_px"]
    made_for = f"the model is made for a PSF of {low:g} to {high:g} px FWHM"
    snr = estimate.snr_peak or 0.0
    too_wide = estimate.fwhm_least_px is not None and estimate.fwhm_least_px > _SPECIMEN_WIDENS * high
    if too_wide and snr >= _SNR_FOR_WIDE:
        bins = math.ceil(estimate.fwhm_px / high)
        return (
            f"its finest detail is about {estimate.fwhm_px:.0f} px wide (FWHM), {made_for}: "
            f"bin it {bins} x {bins}, {_OR_A_PSF}"
        )
    too_fine = estimate.fwhm_most_px is not None and estimate.fwhm_most_px < low
    seen = snr >= _SNR_FOR_NARROW and (estimate.cutoff_cycles_per_px or 0.0) > _CUTOFF_FOR_NARROW
    if too_fine and seen:
        return (
            f"it has detail down to the size of its pixels (PSF below {low:g} px FWHM, or sharpened), {made_for}: "
            f"leave it as it is, {_OR_A_PSF}"
        )
    return None


def _light(estimate: DomainEstimate, limits: Mapping[str, Sequence[float]]) -> str | None:
    if "photons" not in limits or estimate.snr_peak is None or _fills_the_band(estimate):
        return None
    least = limits["photons"][0]
    read_noise_e = limits.get("read_noise_e", (0.0, _USUAL_READ_NOISE_E))[1]
    # What the fewest photons give in the worst case: four in five detected, on a background of half as many.
    electrons = 0.8 * least
    noisy = estimate.snr_peak < electrons / math.sqrt(1.5 * electrons + read_noise_e**2)
    if not (noisy or _counts_fewer(estimate, _SURELY_FEWER * electrons)):
        return None
    return (
        f"its brightest structures stand only {estimate.snr_peak:.1f} times above their noise, as with fewer than "
        f"{least:g} photons, the least that the model is made for: expose longer or average frames, and take no fine "
        "detail of the output for real"
    )


def _counts_fewer(estimate: DomainEstimate, electrons: float) -> bool:
    """Whether the peak has fewer photo-electrons, where they could be counted, by two standard errors."""
    if estimate.photons_peak is None or estimate.photons_relative_error is None:
        return False
    return estimate.photons_peak * (1 + 2 * estimate.photons_relative_error) < electrons


def _pattern(estimate: DomainEstimate, limits: Mapping[str, Sequence[float]]) -> str | None:
    if "fwhm_px" not in limits or (estimate.line_power or 0.0) < _LINES or _fills_the_band(estimate):
        return None
    return (
        "it has a regular pattern at the finest scale (interlaced rows, camera lines or a colour mosaic), which the "
        "model would take for structure: remove it first"
    )


def _fills_the_band(estimate: DomainEstimate) -> bool:
    """Whether there is structure where otherwise noise alone would be, so that nothing can be said of the noise."""
    return (estimate.cutoff_cycles_per_px or 0.0) > _NOISE_ALONE
