"""Brightfield transfer functions: what must hold for any optics, then closed forms, brute force, reference files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.optics.brightfield import (
    MAX_WAVES,
    Transmission,
    image_planes,
    point_images,
    transfer_functions_2d,
    transfer_functions_3d,
)

Array = NDArray[np.float64]
DRY = Transmission(na=0.75, na_illumination=0.5, wavelength_um=0.55, immersion_index=1.0)
OIL = Transmission(na=1.4, na_illumination=0.9, wavelength_um=0.55, immersion_index=1.515)
FILES = {
    "B01_brightfield_dry0.75_cond0.50": (DRY, (0.5, 0.15, 0.15)),
    "B02_brightfield_oil1.40_cond0.90": (OIL, (0.2, 0.1, 0.1)),
}
steady = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@st.composite
def any_optics(draw: st.DrawFn) -> Transmission:
    index = draw(st.sampled_from([1.0, 1.33, 1.515]))
    na = index * draw(st.floats(0.05, 0.985))
    # The condenser from coherent through equal to the objective's to wider.
    na_ill = min(na * draw(st.sampled_from([0.0, 0.01, 0.3, 0.8, 0.999, 1.0, 1.2])), 0.99 * index)
    return Transmission(na, na_ill, draw(st.floats(0.35, 0.9)), index)


def overlap(optics: Transmission, radius: Array) -> Array:
    """Area shared by source and pupil disc at a distance, over the source's area."""
    small, big = sorted((optics.source_radius, optics.pupil_radius))
    d = np.maximum(radius, 1e-12)
    small_angle = np.arccos(np.clip((d**2 + small**2 - big**2) / (2 * d * small), -1, 1))
    big_angle = np.arccos(np.clip((d**2 + big**2 - small**2) / (2 * d * big), -1, 1))
    lens = small**2 * (small_angle - np.sin(2 * small_angle) / 2) + big**2 * (big_angle - np.sin(2 * big_angle) / 2)
    return lens / (math.pi * small**2)


def frequencies(shape_yx: tuple[int, int], pixel_um: float) -> Array:
    fy, fx = (np.fft.fftfreq(n, pixel_um) for n in shape_yx)
    return np.hypot(fy[:, None], fx)


def averaged_source(optics: Transmission, radius: float, z_um: float, oblique: bool) -> complex:
    """Source average of the defocus phasor by half a million points and hard edges: nothing shared with the package."""
    r = (np.arange(500) + 0.5) / 500
    angle = (np.arange(1000) + 0.5) * (math.pi / 1000)
    rho = optics.source_radius * r[:, None]
    q2 = rho**2 + radius**2 + 2 * rho * radius * np.cos(angle)
    inside = q2 < optics.pupil_radius**2
    kz, kz0 = np.sqrt(np.where(inside, optics.wavenumber**2 - q2, 1)), np.sqrt(optics.wavenumber**2 - rho**2)
    values = np.where(inside, np.exp(2j * math.pi * z_um * (kz - kz0)), 0)
    return complex((values * (optics.wavenumber / kz if oblique else 1) * rho).mean() / rho.mean())


def abbe(a: Array, p: Array, optics: Transmission, z_um: float, pixel_um: float, points: int = 700) -> Array:
    """Intensity of the mask exp(-a + i p), to all orders: one coherent image for each point of the source.

    The light runs towards the objective; the focal plane at z > 0 lies before the mask, so the field goes back by z.
    """
    spectrum = np.fft.fft2(np.exp(-a + 1j * p))
    fy, fx = (np.fft.fftfreq(n, pixel_um) for n in a.shape)
    total = np.zeros(a.shape)
    for k in range(points):
        # A sunflower: points of equal area over the disc.
        r, angle = optics.source_radius * math.sqrt((k + 0.5) / points), k * math.pi * (3 - math.sqrt(5))
        q2 = (fy[:, None] + r * math.sin(angle)) ** 2 + (fx + r * math.cos(angle)) ** 2
        kz = np.sqrt(np.maximum(optics.wavenumber**2 - q2, 0))
        total += np.abs(np.fft.ifft2(spectrum * (q2 < optics.pupil_radius**2) * np.exp(-2j * math.pi * z_um * kz))) ** 2
    return total / points


def soft_disc(size: int, radius_px: float, width_px: float = 1.5) -> Array:
    y, x = np.indices((size, size)) - size // 2
    return 1 / (1 + np.exp((np.hypot(y, x) - radius_px) / width_px))


# ---------------------------------------------------------------- invariants


@steady
@given(any_optics(), st.floats(0.03, 0.6), st.floats(0.1, 8.0), st.booleans())
def test_symmetries_and_bounds(optics: Transmission, pixel_um: float, waves: float, oblique: bool) -> None:
    z = waves / optics.axial_bandwidth
    a, p = transfer_functions_2d(optics, [-z, 0.0, z], (18, 18), pixel_um, oblique=oblique)
    assert a.dtype == torch.float64 and a.shape == p.shape == (3, 18, 18)
    torch.testing.assert_close(a[0], a[2], rtol=0, atol=0)
    torch.testing.assert_close(p[0], -p[2], rtol=0, atol=0)
    assert not p[1].any()
    for part in (a, p):
        torch.testing.assert_close(part, part.transpose(1, 2), rtol=0, atol=0)
        # A quarter turn about zero frequency.
        turned = torch.rot90(torch.fft.fftshift(part, dim=(1, 2))[:, 1:, 1:], dims=(1, 2))
        torch.testing.assert_close(torch.fft.fftshift(part, dim=(1, 2))[:, 1:, 1:], turned, rtol=0, atol=0)
        outside = frequencies((18, 18), pixel_um) > 1.0000001 * optics.cutoff
        assert not part.numpy()[:, outside].any()
    assert p[:, 0, 0].abs().max() < 1e-6
    if not oblique:
        torch.testing.assert_close(a[:, 0, 0], torch.full((3,), 2.0, dtype=torch.float64), rtol=0, atol=1e-6)
        assert torch.hypot(a, p).max() <= 2 + 1e-6
    assert (torch.hypot(a, p) <= a[1] + 1e-5).all()


@steady
@given(any_optics(), st.integers(1, 40), st.integers(1, 40), st.floats(0.02, 1.0))
def test_in_focus_absorption_is_the_overlap_on_any_grid(
    optics: Transmission, height: int, width: int, pixel_um: float
) -> None:
    a, _ = transfer_functions_2d(optics, [0.0], (height, width), pixel_um)
    radius = frequencies((height, width), pixel_um)
    # Where the coherent edge lies within rounding of a sample either side is right.
    clear = abs(radius - optics.pupil_radius) > 1e-5 * optics.pupil_radius
    assert np.abs(a[0].numpy() - 2 * overlap(optics, radius))[clear].max(initial=0) < 2e-6


@settings(steady, max_examples=6)
@given(any_optics(), st.floats(0.05, 0.95), st.floats(-4.0, 4.0), st.booleans())
def test_every_frequency_agrees_with_a_sum_over_source_points(
    optics: Transmission, share: float, waves: float, oblique: bool
) -> None:
    radius, z = share * optics.cutoff, waves / optics.axial_bandwidth
    pixel_um = 1 / (4 * radius)
    a, p = transfer_functions_2d(optics, [z], (4, 4), pixel_um, oblique=oblique)
    expected = 2 * averaged_source(optics, radius, z, oblique)
    assert abs(complex(a[0, 0, 1], p[0, 0, 1]) - expected) < 3e-4


@pytest.mark.parametrize("optics", [DRY, OIL, Transmission(0.95, 0.95, 0.5, 1.0)])
def test_far_from_focus_too(optics: Transmission) -> None:
    """Thirty waves of defocus: low frequencies carry what is left, and turn many times over the source."""
    z, step = 30 / optics.axial_bandwidth, 0.005 * optics.cutoff
    a, p = transfer_functions_2d(optics, [z], (1, 200), 1 / (200 * step))
    for k in (1, 2, 4, 10, 60):
        expected = 2 * averaged_source(optics, k * step, z, False)
        assert abs(complex(a[0, 0, k], p[0, 0, k]) - expected) < 1e-4


@pytest.mark.parametrize("optics", [DRY, OIL, Transmission(0.3, 0.3, 0.5, 1.0)])
@pytest.mark.parametrize("pixel_um", [0.05, 0.1])
def test_transfer_ends_at_the_cutoff(optics: Transmission, pixel_um: float) -> None:
    a, p = transfer_functions_2d(optics, [0.0, 0.7], (127, 127), pixel_um)
    radius = frequencies((127, 127), pixel_um)
    cutoff = (optics.na + optics.na_illumination) / optics.wavelength_um
    assert optics.cutoff == pytest.approx(cutoff, rel=1e-12)
    assert not a.numpy()[:, radius > 1.02 * cutoff].any() and not p.numpy()[:, radius > 1.02 * cutoff].any()
    assert (a.numpy()[0, radius < 0.9 * cutoff] > 1e-3).all()


@pytest.mark.parametrize("na_ill", [0.0, 1e-5])
def test_coherent_limit(na_ill: float) -> None:
    optics = Transmission(1.2, na_ill, 0.5, 1.33)
    z = np.array([-3.0, -0.4, 0.0, 0.4, 3.0])
    a, p = transfer_functions_2d(optics, z, (64, 64), 0.1)
    radius = frequencies((64, 64), 0.1)
    kz = np.sqrt(np.maximum((1.33 / 0.5) ** 2 - radius**2, 0))
    defocus = 2 * math.pi * z[:, None, None] * (kz - 1.33 / 0.5)
    inside = radius < 1.2 / 0.5
    assert np.abs(a.numpy() - 2 * np.cos(defocus) * inside).max() < 1e-6
    assert np.abs(p.numpy() - 2 * np.sin(defocus) * inside).max() < 1e-6


def test_a_condenser_beyond_the_objective_acts_as_one_of_its_na() -> None:
    wide, equal = Transmission(0.5, 0.8, 0.5, 1.0), Transmission(0.5, 0.5, 0.5, 1.0)
    for found, expected in zip(
        transfer_functions_2d(wide, [0.0, 2.0], (32, 32), 0.2),
        transfer_functions_2d(equal, [0.0, 2.0], (32, 32), 0.2),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert wide.cutoff == equal.cutoff == 2.0


def test_pixels_need_not_be_square_and_output_has_the_dtype_asked_for() -> None:
    whole, _ = transfer_functions_2d(OIL, [0.3], (40, 40), 0.1)
    oblong, _ = transfer_functions_2d(OIL, [0.3], (20, 40), (0.2, 0.1), dtype=torch.float32)
    assert oblong.dtype == torch.float32
    kept = torch.arange(20) - 20 * (torch.arange(20) >= 10)
    torch.testing.assert_close(oblong[0], whole[0, kept].float())


@pytest.mark.parametrize(
    "values",
    [
        {"na": 0.0},
        {"na": 1.6},
        {"na": math.nan},
        {"na_illumination": -0.1},
        {"na_illumination": 1.6},
        {"wavelength_um": 550.0},
        {"wavelength_um": math.nan},
        {"immersion_index": 0.9},
    ],
)
def test_impossible_optics_are_refused_in_one_line(values: dict[str, float]) -> None:
    usual = {"na": 0.75, "na_illumination": 0.5, "wavelength_um": 0.55, "immersion_index": 1.515}
    with pytest.raises(InputError, match="give") as caught:
        Transmission(**(usual | values))
    assert "\n" not in str(caught.value) and f"{next(iter(values.values())):g}" in str(caught.value)


def test_impossible_sizes_are_refused() -> None:
    slice_ = torch.zeros(1, 8, 8)
    far = 1.1 * MAX_WAVES / DRY.axial_bandwidth
    for call in (
        lambda: transfer_functions_2d(DRY, [0.0], (0, 8), 0.1),
        lambda: transfer_functions_2d(DRY, [0.0], (8, 8), -0.1),
        lambda: transfer_functions_2d(DRY, [], (8, 8), 0.1),
        lambda: transfer_functions_2d(DRY, [math.nan], (8, 8), 0.1),
        lambda: transfer_functions_2d(DRY, [far], (8, 8), 0.1),
        lambda: transfer_functions_3d(DRY, (4, 8, 8), (0.0, 0.1, 0.1)),
        lambda: transfer_functions_3d(DRY, (4, 8, 8), (0.5, 0.1, 0.1), window="box"),  # type: ignore[arg-type]
        lambda: transfer_functions_3d(DRY, (4, 8, 8), (0.5, 0.1, 0.1), pupils="soft"),  # type: ignore[arg-type]
        lambda: image_planes(slice_, slice_[0], DRY, (0.5, 0.1, 0.1)),
        lambda: image_planes(slice_, slice_.double(), DRY, (0.5, 0.1, 0.1)),
        lambda: image_planes(slice_.int(), slice_.int(), DRY, (0.5, 0.1, 0.1)),
        lambda: image_planes(slice_, slice_, DRY, (0.5, 0.1, 0.1), focus_um=[]),
        lambda: point_images(DRY, [0.0], (8, 9), 0.1),
        lambda: point_images(DRY, [0.0], (9, 9), 0.1, "mean"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("optics", "pixel_um"), [(DRY, 0.15), (OIL, 0.08), (Transmission(0.75, 0.75, 0.55, 1.0), 0.15)]
)
@pytest.mark.parametrize("strengths", [(1e-3, 0.0), (0.0, 1e-3), (1e-3, -2e-3)])
def test_weak_disc_agrees_with_abbe(optics: Transmission, pixel_um: float, strengths: tuple[float, float]) -> None:
    size, depths = 64, (-1.5, 0.0, 1.5)
    a, p = (strength * soft_disc(size, 6) for strength in strengths)
    z = [waves / optics.axial_bandwidth for waves in depths]
    found = image_planes(
        *(torch.from_numpy(part)[None] for part in (a, p)), optics, (1.0, pixel_um, pixel_um), focus_um=z, oblique=False
    )
    # Beyond the middle the two differ by their borders, mirrored here and periodic there.
    middle = slice(size // 4, -size // 4)
    for image, distance in zip(found.numpy(), z, strict=True):
        expected = abbe(a, p, optics, distance, pixel_um)
        error = np.abs(image - expected)[middle, middle].max()
        assert error < 1.5e-3 * 2 * max(map(abs, strengths))


def test_transfer_functions_alone_agree_with_abbe_to_a_thousandth() -> None:
    """The same grid, both periodic: what is left is the second order and the number of source points."""
    a, p = 2e-4 * soft_disc(48, 5), -3e-4 * soft_disc(48, 8)
    ta, tp = transfer_functions_2d(DRY, [2.0], (48, 48), 0.15)
    contrast = np.fft.ifft2(-ta[0].numpy() * np.fft.fft2(a) + tp[0].numpy() * np.fft.fft2(p)).real
    expected = abbe(a, p, DRY, 2.0, 0.15, points=3000) - 1
    assert np.abs(contrast - expected).max() < 1.5e-3 * np.abs(expected).max()


def test_phase_reverses_through_focus_as_the_becke_line_does() -> None:
    """Raise the focus (z < 0, towards the objective) and the light moves into the higher index."""
    phase = torch.from_numpy(0.05 * soft_disc(96, 7, 2.5))[None]
    below, focus, above = image_planes(
        torch.zeros_like(phase), phase, DRY, (1.0, 0.15, 0.15), focus_um=[3.0, 0.0, -3.0], oblique=False
    )
    assert above[48, 48] > 1.004 and below[48, 48] < 0.996
    torch.testing.assert_close(above - 1, 1 - below, rtol=0, atol=1e-12)
    assert (focus - 1).abs().max() < 1e-12


def test_uniform_objects() -> None:
    """Phase without structure is invisible; a slab absorbs along the oblique way, 1 / cos averaged over the source."""
    flat = torch.full((5, 16, 12), 0.01, dtype=torch.float64)
    zero = torch.zeros_like(flat)
    torch.testing.assert_close(image_planes(zero, flat, OIL, (0.3, 0.1, 0.1)), zero + 1, rtol=0, atol=1e-9)
    sine = OIL.na_illumination / OIL.immersion_index
    way = 2 * (1 - math.sqrt(1 - sine**2)) / sine**2
    for oblique, factor in ((True, way), (False, 1.0)):
        image = image_planes(flat, zero, OIL, (0.3, 0.1, 0.1), oblique=oblique)
        torch.testing.assert_close(image, zero + 1 - 2 * 5 * 0.01 * factor, rtol=0, atol=1e-7)


@pytest.mark.parametrize("size", [65, 193])
def test_borders_are_mirrors(size: int) -> None:
    """Half an object at the border is imaged as the half of the whole object."""
    middle = size // 2
    whole = torch.from_numpy(0.01 * soft_disc(size, 9))[None, middle - 16 : middle + 16, :-1]
    whole = (whole + whole.flip(2)) / 2
    for z in ([0.0], [-2.0], [10.0]):
        for part in ((whole, 0 * whole), (0 * whole, whole)):
            full = image_planes(*part, DRY, (1.0, 0.15, 0.15), focus_um=z)[:, :, middle:]
            half = image_planes(part[0][..., middle:], part[1][..., middle:], DRY, (1.0, 0.15, 0.15), focus_um=z)
            assert (full - half).abs().max() < 4e-4 * 0.02


def test_planes_at_slices_are_planes_at_their_depths() -> None:
    generator = torch.Generator().manual_seed(1)
    a, p = (0.01 * torch.rand(7, 20, 18, generator=generator, dtype=torch.float64) for _ in range(2))
    voxel = (0.4, 0.12, 0.1)
    at_slices = image_planes(a, p, OIL, voxel)
    at_depths = image_planes(a, p, OIL, voxel, focus_um=0.4 * np.arange(7))
    torch.testing.assert_close(at_slices, at_depths, rtol=0, atol=1e-9)
    single = image_planes(a.float(), p.float(), OIL, voxel)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), at_slices, rtol=0, atol=1e-5)


def test_a_slice_is_seen_from_either_side_with_opposite_phase() -> None:
    """An object turned over in z gives its planes turned over, with the phase contrast reversed."""
    generator = torch.Generator().manual_seed(2)
    a, p = (0.01 * torch.rand(6, 16, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    voxel = (0.3, 0.1, 0.1)
    turned = image_planes(a.flip(0), -p.flip(0), DRY, voxel).flip(0)
    torch.testing.assert_close(turned, image_planes(a, p, DRY, voxel), rtol=0, atol=1e-10)


def test_gradient_is_that_of_a_linear_map() -> None:
    generator = torch.Generator().manual_seed(3)
    parts = [torch.rand(3, 10, 9, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    for focus in (None, [0.1, 0.5]):
        image = image_planes(parts[0], parts[1], DRY, (0.5, 0.2, 0.2), focus_um=focus)
        weight = torch.rand(image.shape, generator=generator, dtype=torch.float64)
        gradients = torch.autograd.grad((weight * (image - 1)).sum(), parts)
        through = sum((gradient * part).sum() for gradient, part in zip(gradients, parts, strict=True))
        torch.testing.assert_close(through, (weight * (image - 1)).sum(), rtol=1e-9, atol=0)
        assert all(gradient.abs().max() > 1e-3 for gradient in gradients)


# ---------------------------------------------------------------- points


@pytest.mark.parametrize(
    ("optics", "pixel_um"), [(DRY, 0.1), (OIL, 0.06), (Transmission(1.49, 1.49, 0.4, 1.515), 0.04)]
)
def test_point_images_are_the_transfer_functions_in_space(optics: Transmission, pixel_um: float) -> None:
    z = [-1.0 / optics.axial_bandwidth, 0.0, 2.0 / optics.axial_bandwidth]
    points = point_images(optics, z, (21, 33), pixel_um)
    assert points.shape == (2, 3, 21, 33) and points.dtype == torch.float64
    assert float(points[0, 1, 10, 16]) == pytest.approx(-1, abs=1e-9)
    assert float(points[0].abs().max()) == pytest.approx(1, abs=1e-9) and not points[1, 1].any()
    a, p = transfer_functions_2d(optics, z, (513, 513), pixel_um)
    spatial = torch.stack([torch.fft.ifft2(-a).real, torch.fft.ifft2(p).real])
    spatial = torch.fft.fftshift(spatial, dim=(2, 3))[:, :, 256 - 10 : 256 + 11, 256 - 16 : 256 + 17]
    torch.testing.assert_close(points, spatial / spatial[0].abs().max(), rtol=0, atol=1e-5)


def test_pixels_are_means_over_their_square() -> None:
    z = [-0.5, 0.0, 1.0]
    pixels = point_images(OIL, z, (11, 11), 0.12, "pixel")
    fine = point_images(OIL, z, (11 * 15, 11 * 15), 0.12 / 15)
    means = fine.reshape(2, 3, 11, 15, 11, 15).mean((3, 5))
    torch.testing.assert_close(pixels, means / means[0].abs().max(), rtol=0, atol=2e-3)
    assert (pixels - point_images(OIL, z, (11, 11), 0.12)).abs().max() > 1e-2


# ---------------------------------------------------------------- thick objects


def test_hann_window_leaves_phase_imaginary_and_absorption_real() -> None:
    for planes in (8, 9):
        real, imag = transfer_functions_3d(OIL, (planes, 12, 12), (0.2, 0.1, 0.1))
        assert real.real.abs().max() < 1e-12 < real.imag.abs().max()
        assert imag.imag.abs().max() < 1e-12 < imag.real.abs().max()


def test_thick_transfer_of_a_slice_of_potential_is_its_image() -> None:
    """One slice in the middle of the stack: no plane wraps around, so the 3-D product is the stack of its images."""
    planes, size, (dz, pixel) = 12, 48, (0.3, 0.12)
    real, imag = transfer_functions_3d(DRY, (planes, size, size), (dz, pixel, pixel), window="none")
    potential = np.zeros((2, planes, size, size))
    potential[:, planes // 2] = np.array([0.02, 0.03])[:, None, None] * soft_disc(size, 4)
    spectra = np.fft.fftn(potential, axes=(1, 2, 3))
    contrast = np.fft.ifftn(real.numpy() * spectra[0] - imag.numpy() * spectra[1])
    scale = dz * DRY.wavelength_um / (4 * math.pi * DRY.immersion_index)
    phase, absorption = (torch.from_numpy(scale * part) for part in potential)
    image = image_planes(absorption, phase, DRY, (dz, pixel, pixel)).numpy() - 1
    middle = slice(size // 4, -size // 4)
    difference = np.abs(contrast - image)[:, middle, middle].max()
    assert difference < 5e-3 * np.abs(image).max()


def test_planes_beyond_the_axial_nyquist_distance_are_refined() -> None:
    dz = 1.6 / (2 * OIL.axial_bandwidth)
    for pupils in ("exact", "grid"):
        wide = transfer_functions_3d(OIL, (8, 10, 10), (dz, 0.1, 0.1), pupils=pupils)  # type: ignore[arg-type]
        fine = transfer_functions_3d(OIL, (16, 10, 10), (dz / 2, 0.1, 0.1), pupils=pupils)  # type: ignore[arg-type]
        kept = [0, 1, 2, 3, 12, 13, 14, 15]
        for found, expected in zip(wide, fine, strict=True):
            torch.testing.assert_close(found, expected[kept], rtol=0, atol=1e-12)


# ---------------------------------------------------------------- reference files


@pytest.mark.parametrize("name", FILES)
def test_overlap_files(shared: Path, name: str) -> None:
    optics, (_, _, dx) = FILES[name]
    expected = np.load(shared / "psf" / f"{name}__analytic.npz")["absorption_tf_2d_infocus"]
    found, phase = transfer_functions_2d(optics, [0.0], expected.shape[1:], dx / 2)
    assert np.abs(found.numpy() - expected).max() < 1e-6 and not phase.any()


@pytest.mark.parametrize("name", FILES)
def test_waveorder_files(shared: Path, name: str) -> None:
    """Its discretisation reproduces its numbers; the exact discs differ by what the coarse pupils cost."""
    optics, voxel = FILES[name]
    stored = np.load(shared / "psf" / f"{name}__waveorder.npz")
    for pupils, limits in (("grid", (3e-6, 3e-6)), ("exact", (0.1, 0.015))):
        found = transfer_functions_3d(
            optics,
            stored["real_potential_tf_re"].shape,
            voxel,
            window="hann-symmetric",
            pupils=pupils,  # type: ignore[arg-type]
        )
        for part, kind, limit in zip(found, ("real", "imag"), limits, strict=True):
            expected = stored[f"{kind}_potential_tf_re"] + 1j * stored[f"{kind}_potential_tf_im"]
            assert np.abs(part.numpy() - expected).max() < limit * np.abs(expected).max()


@pytest.mark.parametrize("name", FILES)
def test_waveorder_pupils_approach_the_exact_ones_as_the_field_grows(name: str) -> None:
    optics, voxel = FILES[name]
    exact = transfer_functions_3d(optics, (16, 48, 48), voxel)
    errors = []
    for times in (1, 4):
        coarse = transfer_functions_3d(optics, (16, 48 * times, 48 * times), voxel, pupils="grid")
        kept = (np.arange(48) - 48 * (np.arange(48) >= 24)) * times
        errors.append(
            [
                float((part[:, kept][:, :, kept] - true).abs().max() / true.abs().max())
                for part, true in zip(coarse, exact, strict=True)
            ]
        )
    assert max(errors[1]) < 0.02 and all(late < early / 3 for early, late in zip(*errors, strict=True))
