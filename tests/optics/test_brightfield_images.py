"""Brightfield images: those of weak objects agree with Abbe theory, and the means of imaging with each other.

Images, point images and thick objects come from the same transfer functions, whatever the sampling.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mrbcr_cli.optics.brightfield import (
    Transmission,
    image_planes,
    point_images,
    transfer_functions_2d,
    transfer_functions_3d,
)
from tests.optics.brightfield_optics import DRY, OIL

Array = NDArray[np.float64]


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
