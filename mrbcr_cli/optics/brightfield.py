"""Weak-object transfer functions of a transmission (brightfield) microscope with Koehler illumination.

Invariant: to first order in a weak object exp(-a + i p) the intensity I over its background has the spectrum
FT(I - 1) = -absorption * FT(a) + phase * FT(p); absorption is even in z and 2 at zero frequency, phase is odd in z, and
both end at the cut-off. They are averages over the source disc of 2 cos and 2 sin of the defocus phase
2 pi z (kz(rho + f) - kz(rho)), kz exact, by Gauss quadrature to 1e-5 (NA up to 0.99 n), free of the output grid.

z is focal plane minus object and grows away from the objective, against the light, as for all microscopes here: a phase
bump (p > 0) is dark at z > 0, bright at z < 0. Scalar waves, no apodisation, one refractive index. Sources: Streibl, J.
Opt. Soc. Am. A 2:121 (1985); Sheppard & Choudhury, Opt. Acta 24:1051 (1977); Soto et al., Opt. Express 25:15699 (2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from torch import Tensor

from mrbcr_cli.errors import InputError
from mrbcr_cli.optics.microscope import Sampling

COHERENT = 1e-6
"""A smaller source, as a share of the pupil's radius, is taken at this share: that is the coherent limit in float32."""
MAX_WAVES = 100.0
"""Most waves of defocus at the pupil's edge: beyond, a plane takes minutes and no field of view holds its blur."""
BLOCK = 2**22
"""Numbers worked on at a time."""

Array = NDArray[np.float64]
Values = Sequence[float] | Array
Shape = tuple[int, int, int]
Voxel = tuple[float, float, float]
Window = Literal["hann", "hann-symmetric", "none"]
Pupils = Literal["exact", "grid"]


@dataclass(frozen=True)
class Transmission:
    """Objective, condenser (na_illumination, 0: the coherent limit, one plane wave), light and the object's medium.

    A condenser opened beyond the objective (na_illumination > na) is taken, not refused: its outer ring is dark-field
    light, which meets no background to interfere with and adds to the image in second order only. The transfer
    functions are then those of na_illumination = na, relative to the background that the objective collects.
    Raises InputError for an aperture that is not below the index and for an impossible wavelength or index.
    """

    na: float
    na_illumination: float
    wavelength_um: float
    immersion_index: float

    def __post_init__(self) -> None:
        if not 0.01 <= self.wavelength_um <= 20:
            raise InputError(f"a wavelength of {self.wavelength_um:g} um is no light; give micrometres (0.55 is green)")
        if not 1 <= self.immersion_index <= 2.5:
            raise InputError(f"an immersion index of {self.immersion_index:g} is impossible; give 1.0 (dry) to 2.5")
        index = f"the immersion index {self.immersion_index:g}"
        if not 0 < self.na < self.immersion_index:
            raise InputError(f"an objective NA of {self.na:g} is impossible; give one above 0 and below {index}")
        if not 0 <= self.na_illumination < self.immersion_index:
            raise InputError(f"a condenser NA of {self.na_illumination:g} is impossible; give 0 to below {index}")

    @property
    def wavenumber(self) -> float:
        """Index over wavelength, cycles per um."""
        return self.immersion_index / self.wavelength_um

    @property
    def pupil_radius(self) -> float:
        """NA over wavelength, cycles per um."""
        return self.na / self.wavelength_um

    @property
    def source_radius(self) -> float:
        """Of the part of the source that makes the background, cycles per um."""
        return max(min(self.na_illumination, self.na), COHERENT * self.na) / self.wavelength_um

    @property
    def cutoff(self) -> float:
        """(NA + NA_ill) / wavelength, at most 2 NA / wavelength, cycles per um."""
        return self.pupil_radius + self.source_radius

    @property
    def axial_bandwidth(self) -> float:
        """Largest axial frequency, kz on the axis minus kz at the pupil's edge, cycles per um."""
        return self.pupil_radius**2 / (self.wavenumber + math.sqrt(self.wavenumber**2 - self.pupil_radius**2))


def transfer_functions_2d(
    optics: Transmission,
    z_um: Values,
    shape_yx: tuple[int, int],
    pixel_um: float | tuple[float, float],
    *,
    oblique: bool = False,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Transfer functions of a thin object for each defocus: (absorption, phase), real, (n, Y, X) in FFT order.

    For a transmission exp(-a + i p) and the intensity I over its background, to first order in a and p:
    FFT(I - 1) = -absorption * FFT(a) + phase * FFT(p); at zero frequency absorption is 2 (oblique: more), phase 0.
    z_um (n,): focal plane minus object, growing away from the objective. pixel_um: one size, or (y, x).
    oblique: divide each scattered wave by the cosine of its angle, as for a slice of a thick object (first Born
    approximation) whose a and p are those at normal incidence; else the object is a mask without thickness.
    Computed in float64. Raises InputError for impossible sizes. Formula: Streibl 1985, with the exact kz.
    """
    dy, dx = pixel_um if isinstance(pixel_um, tuple) else (pixel_um, pixel_um)
    _check_grid(shape_yx, (dy, dx))
    fy, fx = (torch.fft.fftfreq(n, d, dtype=torch.float64) for n, d in zip(shape_yx, (dy, dx), strict=True))
    absorption, phase = _transfer(optics, z_um, oblique=oblique, device=device)(fy, fx)
    return absorption.to(device, dtype), phase.to(device, dtype)


def transfer_functions_3d(
    optics: Transmission, shape_zyx: Shape, voxel_zyx_um: Voxel, *, window: Window = "hann", pupils: Pupils = "exact"
) -> tuple[Tensor, Tensor]:
    """Transfer functions of a thick weak object: (real_potential, imag_potential), complex128, (Z, Y, X), FFT order.

    For the scattering potential V = (2 pi / wavelength)^2 (n^2 - immersion_index^2), 1/um^2, Im V > 0 where it absorbs:
    FFT(I - 1) = real_potential * FFT(Re V) - imag_potential * FFT(Im V). Values in um^2, scale and signs as waveorder's
    phase_thick_3d. A slice has the phase p = Re V dz wavelength / (4 pi immersion_index), a likewise from Im V.
    window fades the planes of the finite stack: "hann" about focus (real_potential is then imaginary, imag_potential
    real), "hann-symmetric" as waveorder, half a plane off focus for an even number of planes, or "none". Planes wider
    apart than the axial Nyquist distance are refined, and the result cut to the frequencies asked for.
    pupils: "exact" discs, or "grid", drawn on the FFT grid with waveorder's soft edges, for comparison only: its error
    falls as the field of view grows. Formula: Streibl 1985, Soto et al. 2017 (first Born approximation). Raises
    InputError for impossible sizes and unknown names.
    """
    _check_grid(shape_zyx, voxel_zyx_um)
    (planes, height, width), (dz, dy, dx) = shape_zyx, voxel_zyx_um
    refine = math.ceil(2 * dz * optics.axial_bandwidth)
    fine, fine_dz = planes * refine, dz / refine
    order = np.fft.ifftshift(np.arange(fine))
    step = (order - fine // 2).astype(np.float64)
    fades = {"hann": np.cos(np.pi * step / fine) ** 2, "hann-symmetric": np.hanning(fine)[order], "none": step**0}
    if window not in fades or pupils not in ("exact", "grid"):
        raise InputError(f"unknown window {window!r} or pupils {pupils!r}; give {', '.join(fades)}; exact or grid")
    responses = partial(transfer_functions_2d, oblique=True) if pupils == "exact" else _grid_responses
    imag, real = responses(optics, step * fine_dz, (height, width), (dy, dx))
    fade = torch.from_numpy(fades[window])[:, None, None] * fine_dz / (4 * math.pi * optics.wavenumber)
    real, imag = (torch.fft.fft(fade * part, dim=0)[_lowest(planes, refine)] for part in (real, imag))
    return real, imag


def image_planes(
    absorption_zyx: Tensor,
    phase_zyx: Tensor,
    optics: Transmission,
    voxel_zyx_um: Voxel,
    *,
    focus_um: Values | None = None,
    oblique: bool = True,
) -> Tensor:
    """Recorded intensity of a weak object over its background: (planes, Y, X), dtype and device of the object.

    absorption_zyx, phase_zyx (Z, Y, X): a and p (radian) of each slice at normal incidence, both float32 or both
    float64; the slice transmits exp(-a + i p). Slice j lies at the depth j * dz, growing away from the objective.
    focus_um: depths of the focal plane; None: one plane at each slice.
    oblique: waves cross a slice at their own angle (thick objects); False: slices are masks without thickness.
    Borders are mirrored in y and x as far as the blur reaches; clear medium lies above and below the stack. Linear and
    differentiable in a and p: multiple scattering and the second order are left out, so a strong object can come out
    below 0. Raises InputError for sizes that do not fit.
    """
    parts = (absorption_zyx, phase_zyx)
    _check_object(parts, voxel_zyx_um)
    (planes, height, width), (dz, dy, dx), device = absorption_zyx.shape, voxel_zyx_um, absorption_zyx.device
    slices = np.arange(planes, dtype=np.float64) * dz
    distances = slices if focus_um is None else np.asarray(focus_um, dtype=np.float64)[:, None] - slices
    transfer_at = _transfer(optics, distances, oblique=oblique, device=device)
    slope = optics.na / math.sqrt(optics.immersion_index**2 - optics.na**2)
    reach = np.abs(distances).max() * slope + 4 * optics.wavelength_um / optics.na
    top, left = (min(size, math.ceil(reach / pixel)) for size, pixel in ((height, dy), (width, dx)))
    rows, columns = _mirrored(height, top).to(device), _mirrored(width, left).to(device)
    spectra = [torch.fft.rfft2(part.index_select(1, rows).index_select(2, columns)) for part in parts]
    fy = torch.fft.fftfreq(len(rows), dy, dtype=torch.float64)
    fx = torch.fft.rfftfreq(len(columns), dx, dtype=torch.float64)
    # Rows of frequencies do not mix: a block at a time bounds the memory.
    step = max(1, BLOCK // (len(fx) * 2 * distances.size))
    blocks = []
    for part, *objects in zip(fy.split(step), *(part.split(step, 1) for part in spectra), strict=True):
        transfer = [response.to(device, absorption_zyx.dtype) for response in transfer_at(part, fx)]
        if focus_um is None:
            blocks.append(_at_slices(transfer, objects))
        else:
            absorption, phase = (response.reshape(-1, planes, *response.shape[1:]) for response in transfer)
            blocks.append(torch.sum(phase * objects[1] - absorption * objects[0], dim=1))
    image: Tensor = torch.fft.irfft2(torch.cat(blocks, dim=1), s=(len(rows), len(columns))).add(1)
    return image[:, top : top + height, left : left + width]


def point_images(
    optics: Transmission, z_um: Values, shape_yx: tuple[int, int], pixel_um: float, sampling: Sampling = "point"
) -> Tensor:
    """Responses I - 1 to a point absorber and to a point phase object: (2, n, Y, X), float64, with their signs.

    Thin objects, z_um (n,) as in `transfer_functions_2d`; the point in the middle pixel of odd sizes. Divided by the
    largest magnitude of the absorption response in these planes, so the absorber is -1 where it is in focus.
    sampling: "point" takes values at pixel centres, "pixel" means over square pixels. Nothing wraps around: it is the
    Hankel transform 2 pi integral H(f) J0(2 pi f r) f df of each transfer function H. Raises InputError for even sizes.
    """
    _check_grid(shape_yx, (pixel_um, pixel_um))
    if any(n % 2 == 0 for n in shape_yx) or sampling not in ("point", "pixel"):
        raise InputError(f"sizes {shape_yx} with sampling {sampling!r}; give odd sizes, and point or pixel")
    distances, index, sign = _distances(optics, z_um, "cpu")
    r_max = math.hypot(*((n + 1) / 2 * pixel_um for n in shape_yx))
    turns = optics.cutoff * r_max
    t, weight = _gauss(60 + math.ceil(3 * turns + 6 * distances[-1] * optics.axial_bandwidth))
    f, slope = _radial(optics, t)
    measure = 2 * math.pi * f * slope * weight.repeat(2)
    profile = torch.cat([_profile(optics, f, distance, oblique=False) for distance in distances]) * measure
    angles, transform = _chebyshev(40 + math.ceil(4 * turns))
    bessel = torch.special.bessel_j0(math.pi * r_max * (1 + torch.cos(angles))[:, None] * f)
    offset, share = _gauss(2 + math.ceil(4 * optics.cutoff * pixel_um)) if sampling == "pixel" else _gauss(1)
    y, x = ((torch.arange(n // 2 + 1)[:, None] + offset - 0.5).mul(pixel_um).flatten() for n in shape_yx)
    values = _evaluate(2 * torch.hypot(y[:, None], x).flatten() / r_max - 1, transform @ (bessel @ profile.T))
    values = values.reshape(len(distances), 2, -1, len(share), shape_yx[1] // 2 + 1, len(share))
    rows, columns = ((torch.arange(n) - n // 2).abs() for n in shape_yx)
    even, odd = torch.einsum("zcyixj,i,j->czyx", values, share, share)[:, index][:, :, rows][:, :, :, columns]
    return torch.stack([-even, odd * sign[:, None, None]]).div(even.abs().max())


def _transfer(
    optics: Transmission, z_um: Values, *, oblique: bool, device: torch.device | str
) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """The function of (fy, fx), cycles per um, that gives [absorption, phase], float64 (n, len(fy), len(fx)).

    It holds Chebyshev series over the radial frequency, one for each segment and distinct distance.
    """
    place = "cpu" if torch.device(device).type == "mps" else device  # Apple's GPU has no float64
    distances, index, sign = _distances(optics, z_um, place)
    degrees = [40 + math.ceil(12 * distance * optics.axial_bandwidth) for distance in distances]
    series = torch.zeros(2, degrees[-1], 2, len(distances), dtype=torch.float64, device=place)
    for k, degree in enumerate(degrees):
        angles, transform = (part.to(place) for part in _chebyshev(degree))
        radii, _ = _radial(optics, (1 + torch.cos(angles)) / 2)
        profile = _profile(optics, radii, distances[k], oblique=oblique).reshape(2, 2, degree)
        series[:, :degree, :, k] = (profile @ transform.T).permute(1, 2, 0)

    def on(fy: Tensor, fx: Tensor) -> list[Tensor]:
        (y, rows), (x, columns) = (torch.unique(f.abs().to(place), return_inverse=True) for f in (fy, fx))
        radius = torch.hypot(y[:, None], x).flatten()
        values = radius.new_zeros(2 * len(distances), len(radius))
        for (start, stop), coefficients in zip(_segments(optics), series.flatten(2), strict=True):
            inside = ((radius >= start) & (radius < stop)).nonzero()[:, 0]
            t = torch.acos(1 - 2 * (radius[inside] - start) / (stop - start)) / math.pi
            values[:, inside] = _evaluate(2 * t - 1, coefficients)
        values = values.reshape(2, -1, len(y), len(x))[:, :, rows][:, :, :, columns]
        return [values[0, index], values[1, index] * sign[:, None, None]]

    return on


def _segments(optics: Transmission) -> list[tuple[float, float]]:
    """Frequencies where the source disc lies within the pupil, and where the pupil's edge cuts it."""
    return list(pairwise((0.0, optics.pupil_radius - optics.source_radius, optics.cutoff)))


def _radial(optics: Transmission, t: Tensor) -> tuple[Tensor, Tensor]:
    """Frequencies for t = 0 to 1 on each segment, and their slopes."""
    # The overlap of two discs starts and ends with the power 3/2 of the distance; a cosine makes it a power 3 of t.
    radii = [start + (stop - start) * (1 - torch.cos(math.pi * t)) / 2 for start, stop in _segments(optics)]
    slopes = [(stop - start) * torch.sin(math.pi * t) * math.pi / 2 for start, stop in _segments(optics)]
    return torch.cat(radii), torch.cat(slopes)


def _distances(optics: Transmission, z_um: Values, place: torch.device | str) -> tuple[Array, Tensor, Tensor]:
    """Distinct distances from focus (um, ascending); for each entry of z_um which one it is, and its sign."""
    z = np.round(np.asarray(z_um, dtype=np.float64).ravel(), 9)
    if not len(z) or not np.isfinite(z).all():
        raise InputError("defocus distances must be a list of one or more numbers, in um")
    distances, index = np.unique(np.abs(z), return_inverse=True)
    if distances[-1] > (most := MAX_WAVES / optics.axial_bandwidth):
        raise InputError(f"{distances[-1]:g} um from focus is too far for NA {optics.na:g}; stay within {most:.3g} um")
    return distances, torch.as_tensor(index.ravel(), device=place), torch.as_tensor(np.sign(z), device=place)


def _profile(optics: Transmission, radii: Tensor, distance: float, *, oblique: bool) -> Tensor:
    """Source averages of 2 cos and 2 sin of the defocus phase: (2, radii), float64."""
    # Near an NA of the whole index kz has its branch point just outside the pupil.
    least = max(16.0, 3 / math.sqrt(1 - optics.na / optics.immersion_index))
    # In steps of 8, so that few sets of nodes have to be made.
    nodes = 8 * math.ceil((least + 2.5 * distance * optics.axial_bandwidth) / 8)
    parts = torch.split(radii, max(1, BLOCK // nodes**2))
    return torch.cat([_average(optics, part, distance, nodes, oblique) for part in parts], dim=1)


def _average(optics: Transmission, radii: Tensor, distance: float, nodes: int, oblique: bool) -> Tensor:
    """`_profile` by `nodes` points in x on each of the two parts of the overlap, about half as many in y.

    Left of the line where the two circles cross, the source's (about 0) bounds the overlap, right of it the pupil's
    (about -f). With x from the arc's angle and y a share of its height the integrand is smooth up to the limits.
    """
    source, pupil = optics.source_radius, optics.pupil_radius
    t, weight, s, thin = (part.to(radii.device) for count in (nodes, nodes // 2 + 10) for part in _gauss(count))
    # The circles do not cross at small f; any f above 0 serves to say so without a division by zero.
    f = radii.clamp(min=1e-9 * pupil)[:, None]
    crossing = ((pupil**2 - source**2 - f**2) / (2 * f)).clamp(-source, source)
    height = torch.sqrt((source**2 - crossing**2).clamp(min=0))
    left = torch.atan2(height, -crossing)
    right = torch.atan2(height, crossing + f)
    x = torch.cat([-source * torch.cos(left * t), pupil * torch.cos(right * t) - f], dim=1)
    tall = torch.cat([source * torch.sin(left * t), pupil * torch.sin(right * t)], dim=1)
    share = torch.cat([left * weight, right * weight], dim=1) * tall**2 * (4 / (math.pi * source**2))
    rho2 = x[..., None] ** 2 + (tall[..., None] * s) ** 2
    shift = ((2 * x + f) * f)[..., None]
    kz_source, kz_pupil = (torch.sqrt((optics.wavenumber**2 - q2).clamp(min=0)) for q2 in (rho2, rho2 + shift))
    # kz_pupil - kz_source without the cancellation.
    phase = -2 * math.pi * distance * shift / (kz_source + kz_pupil)
    density = share[..., None] * thin * (optics.wavenumber / kz_pupil if oblique else 1)
    return torch.stack([(density * torch.cos(phase)).sum((1, 2)), (density * torch.sin(phase)).sum((1, 2))])


def _grid_responses(
    optics: Transmission, z_um: Array, shape_yx: tuple[int, int], pixel_um: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Oblique (absorption, phase), complex128 (n, Y, X), from pupils drawn on the FFT grid as waveorder 3.0.2 draws."""
    band = (optics.na + optics.na_illumination) / optics.wavelength_um
    axes = [(n, math.ceil(2 * pixel * band), pixel) for n, pixel in zip(shape_yx, pixel_um, strict=True)]
    fy, fx = (torch.fft.fftfreq(n * times, pixel / times, dtype=torch.float64) for n, times, pixel in axes)
    radius2 = fy[:, None] ** 2 + fx**2
    kz = torch.sqrt((optics.wavenumber**2 - radius2).clamp(min=0))
    # Its edges are sigmoids: of the pupil in frequency (1e4 um), of the source in kz (4 steps of the grid in x).
    pupil = torch.sigmoid(1e4 * (optics.pupil_radius - torch.sqrt(radius2)))
    edge = math.sqrt(optics.wavenumber**2 - (optics.na_illumination / optics.wavelength_um) ** 2)
    source = torch.sigmoid(4 * shape_yx[1] * pixel_um[1] * (kz - edge))
    wave = torch.exp(2j * math.pi * torch.from_numpy(z_um)[:, None, None] * kz) * pupil
    incident = torch.fft.fft2(source * pupil * wave)
    scattered = torch.fft.fft2(pupil * wave * (-1j * optics.wavenumber) / (kz + (1 - pupil) + 1e-15))
    forward, backward = (torch.fft.ifft2(part) for part in (incident.conj() * scattered, incident * scattered.conj()))
    rows, columns = (_lowest(n, times) for n, times, _ in axes)
    forward, backward = (part[:, rows][:, :, columns] / (source * pupil**2).sum() for part in (forward, backward))
    return 1j * (forward - backward), forward + backward


def _at_slices(transfer: list[Tensor], objects: list[Tensor]) -> Tensor:
    """Spectra at the depth of each slice; transfer at the distances 0, 1, ... slices. A convolution along z."""
    planes = len(objects[0])
    length = next_fast_len(2 * planes - 1)
    total = torch.zeros((), dtype=objects[0].dtype, device=objects[0].device)
    for part, spectrum, mirror in zip(transfer, objects, (1, -1), strict=True):
        gap = part.new_zeros(length - 2 * planes + 1, *part.shape[1:])
        kernel = torch.fft.fft(torch.cat([part, gap, mirror * part[1:].flip(0)]), dim=0)
        total = total - mirror * kernel * torch.fft.fft(spectrum, n=length, dim=0)
    return torch.narrow(torch.fft.ifft(total, dim=0), 0, 0, planes)


def _check_grid(shape: Sequence[int], spacing_um: Sequence[float]) -> None:
    if min(shape) < 1 or not all(math.isfinite(d) and d > 0 for d in spacing_um):
        raise InputError(f"a grid of {tuple(shape)} pixels of {spacing_um} um is impossible; give numbers above 0")


def _check_object(parts: tuple[Tensor, Tensor], voxel_zyx_um: Sequence[float]) -> None:
    first, second = ((tuple(part.shape), part.dtype) for part in parts)
    if first != second or parts[0].ndim != 3 or parts[0].dtype not in (torch.float32, torch.float64):
        raise InputError(f"absorption {first} and phase {second} do not fit; give both as (Z, Y, X) of one float type")
    _check_grid(parts[0].shape, voxel_zyx_um)


def _lowest(count: int, refine: int) -> Tensor:
    """Where an FFT of count * refine values holds its `count` lowest frequencies, in FFT order."""
    return torch.from_numpy((np.fft.ifftshift(np.arange(count)) - count // 2) % (count * refine))


def _mirrored(size: int, margin: int) -> Tensor:
    """Indices of an axis mirrored at both ends, `margin` or more on each side; a whole period, 2 size, never wraps."""
    index = (torch.arange(min(next_fast_len(size + 2 * margin), 2 * size)) - margin) % (2 * size)
    return torch.minimum(index, 2 * size - 1 - index)


@lru_cache(maxsize=64)
def _gauss(nodes: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on 0 to 1, float64."""
    x, weight = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(weight / 2)


def _chebyshev(count: int) -> tuple[Tensor, Tensor]:
    """Angles of the Chebyshev points, and the matrix from values there to the coefficients of the series."""
    angles = (torch.arange(count, dtype=torch.float64) + 0.5) * (math.pi / count)
    transform = torch.cos(torch.arange(count)[:, None] * angles) * (2 / count)
    transform[0] /= 2
    return angles, transform


def _evaluate(position: Tensor, coefficients: Tensor) -> Tensor:
    """Chebyshev series (degree, m) at positions (n,) from -1 to 1: (m, n)."""
    order = torch.arange(len(coefficients), device=position.device)
    parts = torch.split(torch.acos(position.clamp(-1, 1))[:, None], max(1, BLOCK // len(coefficients)))
    return torch.cat([torch.cos(order * angles) @ coefficients for angles in parts]).transpose(0, 1)
