"""What every PSF must be, whatever the numbers: energy, centre, symmetry, cut-off, reciprocity, derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrbcr_cli.errors import InputError
from mrbcr_cli.optics.measure import centre_of_mass, cutoff_per_um, nyquist_um
from mrbcr_cli.optics.microscope import Grid, Microscope, Objective, find_preset
from mrbcr_cli.optics.psf import compute_psf, find_focus, sheet_profile
from mrbcr_cli.optics.zernike import order, parse_zernike, polynomial

SLOWLY = settings(max_examples=25, deadline=None, derandomize=True)
FLOAT64 = torch.float64


@st.composite
def microscopes(
    draw: Any, *, mismatched: bool = False, models: tuple[str, ...] = ("scalar", "vectorial")
) -> Microscope:
    """Any objective; with `mismatched` also any sample index (NA > ns included) and depth."""
    index = draw(st.sampled_from([1.0, 1.33, 1.406, 1.46, 1.515]))
    na = draw(st.floats(0.2, 0.985 * index))
    sample = draw(st.floats(1.3, 1.52)) if mismatched else None
    depth = draw(st.floats(0.0, 12.0)) if mismatched else 0.0
    wavelength = draw(st.floats(0.4, 0.8))
    return Microscope(Objective(na, index, sample, depth_um=depth), wavelength, model=draw(st.sampled_from(models)))


@SLOWLY
@given(microscopes(mismatched=True), st.floats(0.5, 1.4), st.sampled_from(["point", "pixel"]), st.integers(2, 6))
def test_symmetric_positive_and_sums_to_one(microscope: Microscope, coarse: float, sampling: Any, half: int) -> None:
    n = 2 * half + 1
    grid = Grid((3, n, n + 4), coarse * nyquist_um(microscope), 0.4, sampling)
    psf = compute_psf(microscope, grid, dtype=FLOAT64)
    assert float(psf.sum()) == pytest.approx(1.0, abs=1e-9)
    assert float(psf.min()) >= -1e-7 * float(psf.max())
    assert torch.equal(psf, psf.flip(1)) and torch.equal(psf, psf.flip(2))
    square = psf[:, :, 2:-2]
    assert torch.equal(square, square.transpose(1, 2))


@SLOWLY
@given(microscopes())
def test_centre_and_axial_symmetry_of_matched_indices(microscope: Microscope) -> None:
    grid = Grid((7, 31, 31), nyquist_um(microscope), 0.3)
    psf = compute_psf(microscope, grid, dtype=FLOAT64).numpy()
    assert max(map(abs, centre_of_mass(psf))) < 1e-5
    assert np.abs(psf - psf[::-1]).max() < 1e-9 * psf.max()
    assert np.unravel_index(psf.argmax(), psf.shape) == (3, 15, 15)


@SLOWLY
@given(microscopes(mismatched=True))
def test_no_light_beyond_the_cut_off(microscope: Microscope) -> None:
    """OTF of a plane beyond 1.02 times 2 NA / lambda below 1e-4; a window takes away what cutting the field adds."""
    pixel = 0.45 * nyquist_um(microscope)
    focus = torch.tensor([find_focus(microscope).z_um], dtype=FLOAT64)
    psf = compute_psf(microscope, Grid((1, 255, 255), pixel, 1.0, "point"), z_um=focus, dtype=FLOAT64)[0]
    taper = torch.hann_window(255, periodic=False, dtype=FLOAT64)
    windowed = psf * taper[:, None] * taper[None, :]
    otf = torch.fft.fft2(windowed).abs() / windowed.sum()
    f = torch.fft.fftfreq(255, pixel, dtype=FLOAT64)
    beyond = torch.hypot(f[:, None], f[None, :]) > 1.02 * cutoff_per_um(microscope)
    assert float(otf[beyond].max()) < 1e-4


@pytest.mark.parametrize("size", [127, 255])
def test_no_light_beyond_the_cut_off_without_a_window(size: int) -> None:
    """The tolerance of OPTICS.md for 127 px and more, on the plain transform, in a field that holds the PSF."""
    microscope = Microscope(Objective(1.2, 1.33), 0.52)
    pixel = 0.7 * nyquist_um(microscope)
    psf = compute_psf(microscope, Grid((1, size, size), pixel, 1.0, "point"), dtype=FLOAT64)[0]
    otf = torch.fft.fft2(torch.fft.ifftshift(psf)).abs() / psf.sum()
    f = torch.fft.fftfreq(size, pixel, dtype=FLOAT64)
    beyond = torch.hypot(f[:, None], f[None, :]) > 1.02 * cutoff_per_um(microscope)
    assert float(otf[beyond].max()) < 1e-4


def test_every_plane_holds_the_same_light() -> None:
    """NA 1.2, |z| <= 2.4 um, 255 px of 65 nm: at least 0.995 of the in-focus plane, and nearly all of the light."""
    microscope = Microscope(Objective(1.2, 1.33), 0.52)
    sums = compute_psf(microscope, Grid((31, 255, 255), 0.065, 0.16), normalize="plane", dtype=FLOAT64).sum((1, 2))
    assert float((sums / sums[15]).min()) >= 0.995
    assert 0.985 < float(sums[15]) < 1.0


@SLOWLY
@given(microscopes(mismatched=True), st.floats(0.3, 0.9))
def test_plane_energy_is_the_pupils(microscope: Microscope, coarse: float) -> None:
    """In a wide field nearly all of the light of Parseval's theorem is found, never more."""
    focus = torch.tensor([find_focus(microscope).z_um], dtype=FLOAT64)
    grid = Grid((1, 401, 401), coarse * nyquist_um(microscope), 1.0, "point")
    share = float(compute_psf(microscope, grid, z_um=focus, normalize="plane", dtype=FLOAT64).sum())
    assert 0.7 < share < 1.0 + 1e-6


@settings(max_examples=20, deadline=None, derandomize=True)
@given(microscopes(mismatched=True, models=("scalar", "vectorial", "born-wolf")), st.sampled_from(["point", "pixel"]))
def test_pupil_agrees_with_radial_tables(microscope: Microscope, sampling: Any) -> None:
    """Both ways compute one PSF, in one unit; nothing but the sampling of the pupil lies between them."""
    from dataclasses import replace

    grid = Grid((3, 41, 41), 0.9 * nyquist_um(microscope), 0.3, sampling)
    radial = compute_psf(microscope, grid, normalize="none", dtype=FLOAT64)
    through = compute_psf(replace(microscope, zernike_waves=((4, 0.0),)), grid, normalize="none", dtype=FLOAT64)
    objective = microscope.objective
    # The tolerance of OPTICS.md for aberrated PSFs; where rays leave the emitter almost sideways, of its widest gate.
    limit = 1e-3 if objective.na < 0.97 * objective.ns or objective.depth_um == 0 else 1.5e-2
    assert float((radial - through).abs().max() / radial.max()) < limit


@pytest.mark.parametrize("model", ["scalar", "vectorial"])
def test_reciprocity_under_flips_of_the_aberration(model: Any) -> None:
    """The conjugate pupil gives the mirror image: even terms change sign with z, odd ones mirror the plane."""
    objective, grid = Objective(1.1, 1.33), Grid((5, 41, 41), 0.08, 0.3, "point")

    def psf(*waves: tuple[int, float]) -> torch.Tensor:
        return compute_psf(Microscope(objective, 0.52, model=model, zernike_waves=waves), grid, dtype=FLOAT64)

    plain, negative = psf((12, 0.1), (5, 0.07)), psf((12, -0.1), (5, -0.07))
    assert torch.allclose(plain, negative.flip(0), atol=1e-9 * float(plain.max()))
    coma, turned = psf((7, 0.1)), psf((7, -0.1))
    assert torch.allclose(coma, turned.flip(1), atol=1e-9 * float(coma.max()))
    assert torch.allclose(psf((8, 0.1)), coma.transpose(1, 2), atol=1e-9 * float(coma.max()))
    assert not torch.allclose(coma, turned, atol=1e-2 * float(coma.max()))


def test_tilt_moves_the_psf_towards_larger_indices() -> None:
    """+x is the column, +y the row; one wave RMS of tilt moves by 4 waves over the diameter, lambda / NA * 2."""
    grid = Grid((1, 81, 81), 0.05, 1.0, "point")
    for j, axis in ((2, 2), (1, 1)):
        microscope = Microscope(Objective(1.0, 1.33), 0.5, model="scalar", zernike_waves=((j, 0.25),))
        shift = centre_of_mass(compute_psf(microscope, grid, dtype=FLOAT64).numpy() ** 2)
        expected = 0.25 * 2 * 0.5 / 1.0 / 0.05
        assert abs(shift[axis]) == pytest.approx(expected, rel=0.02)
        assert abs(shift[3 - axis]) < 1e-6


def test_defocus_is_a_move_of_the_stage() -> None:
    """Paraxially Z4 of w waves RMS is a stage shift of 2 sqrt(3) w * 2 n lambda / NA^2 / 2."""
    objective = Objective(0.1, 1.0)
    step = 4 * np.sqrt(3) * 0.2 * 0.5 / 0.1**2
    grid = Grid((3, 31, 31), 1.0, step, "point")
    still = compute_psf(Microscope(objective, 0.5, model="scalar"), grid, normalize="none", dtype=FLOAT64)
    moved = Microscope(objective, 0.5, model="scalar", zernike_waves=((4, 0.2),))
    shifted = compute_psf(moved, grid, normalize="none", dtype=FLOAT64)
    near = [float((shifted[1] - still[k]).abs().max() / still.max()) for k in (0, 2)]
    assert min(near) < 5e-3
    assert float((shifted[1] - still[1]).abs().max() / still.max()) > 0.05


@pytest.mark.parametrize("kind", ["widefield", "confocal", "two-photon", "light-sheet"])
def test_gradient_in_the_zernike_coefficients(kind: Any) -> None:
    microscope = Microscope(
        Objective(1.0, 1.33), 0.55, kind, 0.5 if kind != "two-photon" else 0.9, zernike_waves=((4, 0.0), (7, 0.0))
    )
    grid = Grid((1, 5, 5), 0.1, 0.3, "pixel")

    def compute(waves: torch.Tensor) -> torch.Tensor:
        return compute_psf(microscope, grid, normalize="none", waves=waves, dtype=FLOAT64)

    waves = torch.tensor([0.05, -0.03], dtype=FLOAT64, requires_grad=True)
    assert torch.autograd.gradcheck(compute, (waves,), eps=1e-5, atol=1e-6, rtol=1e-4)


def test_batch_equals_one_by_one() -> None:
    microscope = Microscope(Objective(1.2, 1.33), 0.52, zernike_waves=((5, 0.0), (12, 0.0)))
    grid = Grid((3, 15, 17), 0.09, 0.3)
    waves = torch.tensor([[[0.1, 0.0], [0.0, 0.05]], [[-0.1, 0.02], [0.0, 0.0]]], dtype=FLOAT64)
    batch = compute_psf(microscope, grid, waves=waves)
    assert batch.shape == (2, 2, 3, 15, 17)
    for i in range(2):
        for k in range(2):
            assert torch.equal(batch[i, k], compute_psf(microscope, grid, waves=waves[i, k]))


@pytest.mark.parametrize("kind", ["widefield", "confocal", "two-photon", "light-sheet"])
def test_pixel_sampling_is_the_mean_of_points(kind: Any) -> None:
    microscope = Microscope(Objective(0.9, 1.33), 0.55, kind, 0.5 if kind != "two-photon" else 0.9)
    pixel, fine = 0.12, 15
    pixels = compute_psf(microscope, Grid((1, 9, 9), pixel, 0.3), normalize="none", dtype=FLOAT64)[0]
    points = compute_psf(
        microscope, Grid((1, 9 * fine, 9 * fine), pixel / fine, 0.3, "point"), normalize="none", dtype=FLOAT64
    )[0]
    means = points.reshape(9, fine, 9, fine).mean((1, 3))
    assert float((pixels - means).abs().max() / means.max()) < 2e-3  # the midpoint rule of the test errs by 1/15^2


def test_even_sizes_say_where_the_centre_is() -> None:
    microscope = Microscope(Objective(0.8, 1.0), 0.5)
    with pytest.raises(InputError, match=r"even.*--centring"):
        Grid((3, 16, 16), 0.1, 0.5)
    at_voxel = compute_psf(microscope, Grid((4, 16, 16), 0.1, 0.5, centring="voxel"), normalize="none", dtype=FLOAT64)
    odd = compute_psf(microscope, Grid((5, 17, 17), 0.1, 0.5), normalize="none", dtype=FLOAT64)
    assert torch.allclose(at_voxel, odd[:4, :16, :16], rtol=0, atol=1e-12)
    between = compute_psf(microscope, Grid((4, 16, 16), 0.1, 0.5, centring="between"), dtype=FLOAT64)
    assert torch.equal(between, between.flip(1)) and max(map(abs, centre_of_mass(between.numpy()))) < 1e-9
    mixed = compute_psf(microscope, Grid((1, 16, 17), 0.1, 0.5, centring="between"), normalize="none", dtype=FLOAT64)
    assert torch.allclose(mixed[0, :, 8:], mixed[0, :, :9].flip(1), rtol=0, atol=1e-9)


def test_pinhole_limits() -> None:
    """A closed pinhole gives the product of both PSFs; an open one the excitation alone."""
    objective, grid = Objective(1.2, 1.33), Grid((3, 21, 21), 0.05, 0.3, "point")

    def widefield(wavelength: float) -> torch.Tensor:
        return compute_psf(Microscope(objective, wavelength), grid, normalize="none", dtype=FLOAT64)

    def confocal(pinhole_au: float) -> torch.Tensor:
        microscope = Microscope(objective, 0.52, "confocal", 0.488, pinhole_au)
        return compute_psf(microscope, grid, normalize="max", dtype=FLOAT64)

    product = widefield(0.488) * widefield(0.52)
    assert torch.allclose(confocal(0.01), product / product.max(), atol=1e-3)
    excitation = widefield(0.488) / widefield(0.488).max()
    assert torch.allclose(confocal(60.0), excitation, atol=1e-2)


def test_float32_is_near_float64() -> None:
    grid = Grid((5, 31, 31), 0.08, 0.3)
    for waves in ((), ((7, 0.1),)):
        microscope = Microscope(Objective(1.3, 1.515, 1.33, depth_um=3.0), 0.52, zernike_waves=waves)
        single, double = (compute_psf(microscope, grid, normalize="max", dtype=t) for t in (torch.float32, FLOAT64))
        assert single.dtype == torch.float32
        assert float((single.double() - double).abs().max()) < 2e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_agrees_with_cpu() -> None:
    grid = Grid((5, 31, 31), 0.08, 0.3)
    for waves in ((), ((7, 0.1),)):
        microscope = Microscope(Objective(1.3, 1.515, 1.33), 0.52, zernike_waves=waves)
        here, there = (compute_psf(microscope, grid, dtype=FLOAT64, device=d) for d in ("cpu", "cuda"))
        assert torch.allclose(here, there.cpu(), atol=1e-12)


@pytest.mark.parametrize("sheet", ["gaussian", "swept"])
def test_light_sheet_thins_with_its_na(sheet: Any) -> None:
    z = torch.linspace(-5, 5, 201, dtype=FLOAT64)
    widths = []
    for na in (0.05, 0.1, 0.2):
        microscope = Microscope(Objective(1.0, 1.33), 0.52, "light-sheet", 0.488, na_illumination=na, sheet=sheet)
        profile = sheet_profile(microscope, z)
        assert float(profile.max()) == pytest.approx(1.0) and float(profile[100]) == pytest.approx(1.0)
        widths.append(float(profile.sum()))
    assert widths[0] / widths[1] == pytest.approx(2.0, rel=0.15) and widths[1] / widths[2] == pytest.approx(
        2.0, rel=0.1
    )


def test_zernike_polynomials_are_orthonormal() -> None:
    axis = (torch.arange(800, dtype=FLOAT64) + 0.5) / 400 - 1
    y, x = axis[:, None].expand(800, 800), axis[None, :].expand(800, 800)
    rho, phi = torch.hypot(y, x), torch.atan2(y, x)
    inside = rho <= 1
    modes = torch.stack([polynomial(j, rho[inside], phi[inside]) for j in range(28)])
    gram = modes @ modes.T / modes.shape[1]
    assert float((gram - torch.eye(28, dtype=FLOAT64)).abs().max()) < 5e-3
    assert [order(j) for j in (0, 1, 2, 3, 4, 5, 7, 8, 12, 24)] == [
        (0, 0), (1, -1), (1, 1), (2, -2), (2, 0), (2, 2), (3, -1), (3, 1), (4, 0), (6, 0),
    ]  # fmt: skip


def test_zernike_text() -> None:
    assert parse_zernike("4=0.1,11=-0.05") == ((4, 0.1), (11, -0.05))
    for text in ("4", "4=x", "a=1", "4=0.1;5=2"):
        with pytest.raises(InputError, match="--zernike must look like"):
            parse_zernike(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"na": 1.4, "n_immersion": 1.33}, "not below the immersion index"),
        ({"na": -0.1}, "must be positive"),
        ({"na": float("nan")}, "must be positive"),
        ({"na": 1.0, "n_sample": 0.9}, "refractive index"),
        ({"na": 1.0, "depth_um": -1.0}, "depth"),
        ({"na": 1.0, "coverslip_um": 0.0}, "coverslip"),
    ],
)
def test_impossible_objectives(change: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Objective(**change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"wavelength_um": 520.0}, "between 250 and 1400 nm"),
        ({"kind": "confocal"}, "--wavelength-ex"),
        ({"kind": "confocal", "wavelength_ex_um": 0.488, "pinhole_au": 0.0}, "pinhole"),
        ({"kind": "nosuch"}, "unknown microscope"),
        ({"zernike_waves": ((-1, 0.1),)}, "negative"),
        ({"zernike_waves": ((4, 0.1), (4, 0.2))}, "twice"),
        ({"zernike_waves": ((4, float("inf")),)}, "number of waves"),
    ],
)
def test_impossible_microscopes(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Microscope(Objective(1.0, 1.33), **change)


def test_presets() -> None:
    assert find_preset("63x/1.4 oil").objective.na == 1.4
    assert find_preset("10x/0.3 dry") is find_preset("10X/0.3")
    assert find_preset("40x/1.2 water") is find_preset("40x/1.2w")
    with pytest.raises(InputError, match=r"100x/1\.49tirf"):
        find_preset("60x/1.4")


def test_public_names_are_all_there() -> None:
    from mrbcr_cli import optics

    assert all(getattr(optics, name) is not None for name in optics.__all__)
    with pytest.raises(AttributeError):
        _ = optics.nosuch
