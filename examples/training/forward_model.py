"""From a sharp plane to what a widefield camera records, and to what the network should answer.

Invariant: every kernel sums to 1, so in-focus light is the same in the recorded image and in the target; and both are
in electrons, so one affine map (the tool's percentiles of the noisy image) brings both to the network's units.

The model, on a periodic field (all in electrons, all constants drawn per field):

    recorded = Poisson(background + s * (plane * psf + haze)) + Normal(0, read noise)
    target   = background + s * min(haze) + s * (plane * gaussian)

`psf` is the in-focus PSF (FWHM 2 to 6 px), `haze` the light of other planes through wide PSFs. The target keeps the
constant background, and the darkest level of the haze with it: a constant cannot be told from a camera offset, and
left in place it keeps the output in the input's units with the input's darkest level. The rest of the haze goes. The
target's own resolution is a Gaussian of half the PSF's FWHM, never below 1.6 px: finer than the input by two where
the data can carry it, and smooth enough on the pixel grid that no ringing is asked for. Camera offset and gain are
left out because the affine map cancels them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Image = NDArray[np.float32]
Spectrum = NDArray[np.complex64] | NDArray[np.float32]

FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))
AIRY_FWHM_TIMES_CUTOFF = 2.0 * 0.5145
"""FWHM 0.5145 lambda/NA times the cut-off 2 NA/lambda (scalar circular pupil)."""
PERCENTILES = (0.1, 99.9)
"""The tool's default normalisation."""


@dataclass(frozen=True)
class Psf:
    """In-focus PSF: `airy_weight` of an aberrated circular pupil (scalar), the rest a Gaussian of equal FWHM."""

    fwhm_px: float
    airy_weight: float = 1.0
    defocus_waves: float = 0.0
    spherical_waves: float = 0.0
    astigmatism_waves: float = 0.0
    coma_waves: float = 0.0
    angle_rad: float = 0.0


@dataclass(frozen=True)
class HazePlane:
    """One out-of-focus plane: share of the haze, blur, and whether it is a defocus disc or a Gaussian."""

    share: float
    sigma_px: float
    disc: bool


@dataclass(frozen=True)
class Conditions:
    """Everything drawn for one field apart from its structures."""

    psf: Psf
    haze_fraction: float
    """Of the light that is neither background nor offset, 0 to 0.6."""
    haze_planes: tuple[HazePlane, ...]
    peak_electrons: float
    """Signal above the background at the brightest 0.02 % of the noise-free field, 20 to 5,000."""
    background_electrons: float
    read_noise_e: float
    step_e: float = 0.0
    """Electrons per grey value; 0 records without rounding."""


@dataclass(frozen=True)
class Field:
    """A recorded field before its noise; images are (size, size) float32 in electrons."""

    mean: Image
    target: Image
    low: float
    high: float
    """Percentiles of one noisy recording of the whole field."""
    conditions: Conditions
    haze: Image | None = None
    otf: Spectrum | None = None
    """Half-plane spectra as rfft2 orders them; kept on request for baselines."""


def target_fwhm_px(psf_fwhm_px: float) -> float:
    """Resolution of the target in px: half the PSF's FWHM, but never finer than 1.6 px."""
    return max(1.6, 0.5 * psf_fwhm_px)


def _frequencies(size: int) -> tuple[Image, Image]:
    fy = fft.fftfreq(size).astype(np.float32)[:, None]
    fx = fft.rfftfreq(size).astype(np.float32)[None, :]
    return fy, fx


def gaussian_otf(size: int, sigma_px: float) -> Image:
    """Spectrum of a Gaussian sampled at the pixels, (size, size // 2 + 1) float32, 1 at zero frequency.

    The sum over the aliases of exp(-2 pi^2 sigma^2 f^2): the samples are positive however narrow it is, whereas a
    spectrum cut at Nyquist would ring.
    """

    def sampled(f: Image) -> Image:
        scale = np.float32(-2.0 * math.pi**2 * sigma_px**2)
        aliases = np.exp(scale * f**2) + np.exp(scale * (f - 1) ** 2) + np.exp(scale * (f + 1) ** 2)
        normalised: Image = aliases / aliases.flat[0]
        return normalised

    fy, fx = _frequencies(size)
    return sampled(fy) * sampled(fx)


def disc_otf(size: int, sigma_px: float) -> Image:
    """Geometric defocus: the spectrum of a uniform disc with `sigma_px` standard deviation along each axis.

    A disc of radius R has sigma R / 2 and transfer 2 J1(2 pi R f) / (2 pi R f); a Gaussian of an eighth of the disc's
    sigma rounds its edge, as diffraction does.
    """
    from scipy.special import j1

    fy, fx = _frequencies(size)
    argument = 2.0 * math.pi * (2.0 * sigma_px) * np.sqrt(fy**2 + fx**2)
    argument[0, 0] = 1.0
    otf = (2.0 * j1(argument) / argument).astype(np.float32)
    otf[0, 0] = 1.0
    rounded: Image = otf * gaussian_otf(size, sigma_px / 8.0)
    return rounded


def pupil_psf(size: int, psf: Psf) -> Image:
    """Intensity PSF of an aberrated circular pupil, (size, size), centred on pixel (0, 0), sum 1.

    |inverse FFT of the pupil|^2 with a pupil radius of half the cut-off frequency; aberrations are Zernike terms in
    RMS waves (Noll's normalisation).
    """
    radius = 0.5 * AIRY_FWHM_TIMES_CUTOFF / psf.fwhm_px
    f = fft.fftfreq(size).astype(np.float32)
    keep = np.flatnonzero(np.abs(f) <= radius + 1.0 / size)
    v, u = np.meshgrid(f[keep] / radius, f[keep] / radius, indexing="ij")
    r2 = u**2 + v**2
    theta = np.arctan2(v, u) - psf.angle_rad
    waves = (
        psf.defocus_waves * math.sqrt(3) * (2 * r2 - 1)
        + psf.spherical_waves * math.sqrt(5) * (6 * r2**2 - 6 * r2 + 1)
        + psf.astigmatism_waves * math.sqrt(6) * r2 * np.cos(2 * theta)
        + psf.coma_waves * math.sqrt(8) * (3 * r2 - 2) * np.sqrt(r2) * np.cos(theta)
    )
    # The edge pixel of the pupil counts by its covered part, or the FWHM would jump with the field size.
    edge = np.clip((1.0 - np.sqrt(r2)) * radius * size + 0.5, 0.0, 1.0)
    pupil = np.zeros((size, size), np.complex64)
    pupil[np.ix_(keep, keep)] = edge * np.exp(2j * math.pi * waves)
    amplitude = fft.ifft2(pupil)
    intensity = amplitude.real**2 + amplitude.imag**2
    normalised: Image = (intensity / intensity.sum()).astype(np.float32)
    return normalised


def psf_otf(size: int, psf: Psf) -> Spectrum:
    """Transfer function of the in-focus PSF, (size, size // 2 + 1), 1 at zero frequency."""
    gaussian = gaussian_otf(size, psf.fwhm_px / FWHM_PER_SIGMA)
    if psf.airy_weight == 0.0:
        return gaussian
    airy = fft.rfft2(pupil_psf(size, psf))
    return (psf.airy_weight * airy + (1.0 - psf.airy_weight) * gaussian).astype(np.complex64)


def draw_conditions(rng: np.random.Generator) -> Conditions:
    """Draw optics, haze and camera from the domain of `widefield`."""
    kind = rng.random()
    airy_weight = 1.0 if kind < 0.5 else 0.0 if kind < 0.7 else float(rng.random())
    defocus, spherical, astigmatism, coma = rng.normal(0.0, (0.05, 0.04, 0.02, 0.02)).clip(-0.1, 0.1)
    psf = Psf(
        fwhm_px=float(rng.uniform(2.0, 6.0)),
        airy_weight=airy_weight,
        defocus_waves=float(defocus),
        spherical_waves=float(spherical),
        astigmatism_waves=float(astigmatism),
        coma_waves=float(coma),
        angle_rad=float(rng.uniform(0, 2 * math.pi)),
    )
    count = int(rng.integers(1, 4))
    shares = rng.dirichlet(np.ones(count))
    nearest_px = max(6.0, 2.0 * psf.fwhm_px)
    planes = tuple(
        HazePlane(float(share), float(math.exp(rng.uniform(math.log(nearest_px), math.log(40.0)))), rng.random() < 0.4)
        for share in shares
    )
    peak = float(math.exp(rng.uniform(math.log(20.0), math.log(5000.0))))
    background = 0.0 if rng.random() < 0.1 else peak * float(10.0 ** rng.uniform(-3.0, 0.0))
    return Conditions(
        psf=psf,
        haze_fraction=0.0 if rng.random() < 0.15 else float(rng.uniform(0.0, 0.6)),
        haze_planes=planes,
        peak_electrons=peak,
        background_electrons=background,
        read_noise_e=float(rng.uniform(0.0, 4.0)),
        step_e=float(10.0 ** rng.uniform(-1.0, 0.3)) if rng.random() < 0.3 else 0.0,
    )


def record(mean: Image, conditions: Conditions, rng: np.random.Generator) -> Image:
    """One noisy recording of `mean` (any shape), in electrons, float32."""
    noisy = rng.poisson(mean).astype(np.float32)
    if conditions.read_noise_e > 0:
        noisy += conditions.read_noise_e * rng.standard_normal(mean.shape, np.float32)
    if conditions.step_e > 0:
        noisy = np.round(noisy / conditions.step_e) * np.float32(conditions.step_e)
    return noisy


def haze_map(planes: list[Image], size: int, conditions: Conditions, in_focus_sum: float) -> Image:
    """Out-of-focus light of all planes, scaled to carry `haze_fraction` of the light; non-negative, (size, size)."""
    fraction = conditions.haze_fraction
    if fraction == 0.0 or not planes:
        return np.zeros((size, size), np.float32)
    spectrum = np.zeros((size, size // 2 + 1), np.complex64)
    for plane, haze in zip(planes, conditions.haze_planes, strict=True):
        total = float(plane.sum())
        if total <= 0.0:
            continue
        otf = (disc_otf if haze.disc else gaussian_otf)(size, haze.sigma_px)
        spectrum += fft.rfft2(plane) * (otf * np.float32(haze.share / total))
    light: Image = np.maximum(fft.irfft2(spectrum, s=(size, size)), 0.0).astype(np.float32)
    total = float(light.sum())
    if total <= 0.0:
        return light
    light *= np.float32(fraction / (1.0 - fraction) * in_focus_sum / total)
    return light


def make_field(
    plane: Image,
    haze_planes: list[Image],
    conditions: Conditions,
    rng: np.random.Generator,
    *,
    keep_optics: bool = False,
) -> Field:
    """Image one sharp, non-negative plane (size, size) through the optics of `conditions`.

    `haze_planes` holds one sharp plane per entry of `conditions.haze_planes`. An empty plane gives background only.
    """
    size = plane.shape[0]
    otf = psf_otf(size, conditions.psf)
    sharp_otf = gaussian_otf(size, target_fwhm_px(conditions.psf.fwhm_px) / FWHM_PER_SIGMA)
    spectrum = fft.rfft2(plane)
    blurred = np.maximum(fft.irfft2(spectrum * otf, s=(size, size)), 0.0)
    sharp = np.maximum(fft.irfft2(spectrum * sharp_otf, s=(size, size)), 0.0)
    haze = haze_map(haze_planes, size, conditions, float(plane.sum()))
    signal = blurred + haze
    brightest = max(1, round(2e-4 * signal.size))
    peak = float(np.partition(signal, -brightest, axis=None)[-brightest:].mean())
    scale = np.float32(conditions.peak_electrons / peak if peak > 0 else 0.0)
    background = np.float32(conditions.background_electrons)
    mean = background + scale * signal
    target = background + scale * (sharp + haze.min())
    low, high = np.percentile(record(mean, conditions, rng), PERCENTILES)
    return Field(
        mean=mean.astype(np.float32),
        target=target.astype(np.float32),
        low=float(low),
        # A field without light, read noise or background is constant; any range will do for it.
        high=float(high) if high > low else float(low) + 1.0,
        conditions=conditions,
        haze=(scale * (haze - haze.min())).astype(np.float32) if keep_optics else None,
        otf=otf if keep_optics else None,
    )


def cut_patch(
    field: Field, size: int, rng: np.random.Generator, *, jitter: bool = True, corner_yx: tuple[int, int] | None = None
) -> tuple[Image, Image]:
    """A fresh noisy patch and its target, (size, size) each, normalised by the field's percentiles.

    With `jitter` the range is drawn up to 2.5 times wider or 1.2 times narrower and shifted down by up to 1.5 spans, as
    it would be by brighter or darker structures elsewhere in a large image, and the patch is flipped and transposed at
    random. The target moves with its input: a pedestal is neither haze nor structure.
    """
    limit = field.mean.shape[0] - size
    y, x = corner_yx if corner_yx is not None else (int(rng.integers(0, limit + 1)), int(rng.integers(0, limit + 1)))
    window = np.s_[y : y + size, x : x + size]
    noisy = record(field.mean[window], field.conditions, rng)
    target = field.target[window]
    low, span = field.low, field.high - field.low
    if jitter:
        # One in three patches stands on a pedestal, as a bright background or a drifting time series does.
        below = float(rng.uniform(0.0, 1.5)) if rng.random() < 0.33 else float(rng.uniform(-0.03, 0.1))
        low -= span * below
        span *= math.exp(float(rng.uniform(-0.2, 0.9))) * (1 + below * float(rng.uniform(0, 1)))
    pair = np.stack([noisy, target])
    pair = (pair - np.float32(low)) / np.float32(span)
    if jitter:
        if rng.random() < 0.5:
            pair = pair[:, ::-1]
        if rng.random() < 0.5:
            pair = pair[:, :, ::-1]
        if rng.random() < 0.5:
            pair = pair.transpose(0, 2, 1)
    return pair[0], pair[1]


def with_bins(conditions: Conditions, *, peak_electrons: float, fwhm_px: float, haze_fraction: float) -> Conditions:
    """The same draw moved to stated photons, FWHM and haze (for a validation set that covers the domain evenly)."""
    ratio = peak_electrons / conditions.peak_electrons
    return replace(
        conditions,
        psf=replace(conditions.psf, fwhm_px=fwhm_px),
        haze_fraction=haze_fraction,
        peak_electrons=peak_electrons,
        background_electrons=conditions.background_electrons * ratio,
    )
