"""Simulated stacks: no trace of blocks or workers; light is kept; PSF, truth and record as promised.

A stack depends on its settings and seed alone, and its record makes it again.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaozarrs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import fftconvolve

from mrbcr_cli.images import read_provenance
from mrbcr_cli.optics.imaging import (
    Kernel,
    cells_of,
    convolve,
    fft_lengths,
    interpolate_cells,
    make_transform,
    split_kernel,
)
from mrbcr_cli.optics.microscope import Grid as PsfGrid
from mrbcr_cli.optics.microscope import Microscope
from mrbcr_cli.optics.psf import compute_psf
from mrbcr_cli.simulate.stack_blocks import BlockMaker
from mrbcr_cli.simulate.stack_grid import choose_grid, lengths_of, make_grid, sampled_blocks, spectrum_bytes
from tests.helpers import pixels
from tests.simulate.stack_runs import OIL, SMALL, noise_free, plan, point_volume, simulate

# --- the convolution --------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_block_of_any_cut_is_a_crop_of_the_plain_convolution(data: st.DataObject) -> None:
    half = [data.draw(st.integers(0, 3)) for _ in range(3)]
    shape = [data.draw(st.integers(1, 9)) for _ in range(3)]
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    kernel = rng.normal(size=[2 * h + 1 for h in half]).astype(np.float32)
    first, count = data.draw(st.integers(-6, 8)), data.draw(st.integers(1, 12))
    light = np.zeros((shape[0] + 40, *(n + 2 * h for n, h in zip(shape[1:], half[1:], strict=True))), np.float32)
    light[20 + first : 20 + first + count] = rng.random((count, *light.shape[1:]))
    whole = fftconvolve(light.astype(float), kernel, mode="same")
    core = tuple(slice(h, h + n) for h, n in zip(half[1:], shape[1:], strict=True))
    expected = whole[20 : 20 + shape[0], core[0], core[1]]

    low, high = max(first, -half[0]), min(first + count, shape[0] + half[0])
    lengths = fft_lengths(tuple(half), tuple(shape), (first, first + count))  # type: ignore[arg-type]
    slabs = [(k, light[20 + k : 20 + k + 1]) for k in range(low, high)]
    found = convolve(make_transform(kernel, lengths), slabs, tuple(shape))  # type: ignore[arg-type]
    np.testing.assert_allclose(found, expected, atol=1e-6 * kernel.size)


def test_splitting_a_psf_loses_no_light_and_changes_it_by_less_than_what_it_calls_dim() -> None:
    z, y, x = np.meshgrid(np.arange(-6, 7), np.arange(-50, 51), np.arange(-50, 51), indexing="ij")
    width = 1 + 2.0 * np.abs(z)
    psf = (np.exp(-(y**2 + x**2) / (2 * width**2)) / (2 * np.pi * width**2)).astype(np.float32)
    kernel = split_kernel(psf.copy())
    assert kernel.far is not None
    np.testing.assert_allclose(kernel.plane_sums, psf.sum((1, 2)), rtol=2e-4)
    lost = psf.sum((1, 2), dtype=np.float64) * 0.5
    kernel = split_kernel(psf * np.float32(0.5), plane_energy=2 * lost)
    np.testing.assert_allclose(kernel.plane_sums[:3], 2 * lost[:3], rtol=2e-3)  # planes that have a dim part


def test_cells_spread_over_their_pixels_without_loss_or_shift() -> None:
    first, last = cells_of(21, 75, 8)
    cells = np.zeros((last - first, last - first), np.float32)
    cells[3, 4] = 1
    spread = interpolate_cells(cells, (first, first), (slice(21, 75), slice(21, 75)), 8)
    assert spread.sum() == pytest.approx(64, rel=1e-5)
    middle = (spread.sum(1) @ np.arange(21, 75) / 64, spread.sum(0) @ np.arange(21, 75) / 64)
    assert middle == pytest.approx(((first + 3.5) * 8 - 0.5, (first + 4.5) * 8 - 0.5), abs=1e-4)


@pytest.mark.parametrize("shape", [(1, 8, 8), (64, 512, 512), (100, 3000, 700), (5000, 40_000, 40_000)])
def test_blocks_fit_memory_and_the_looked_at_ones_are_spread(shape: tuple[int, int, int]) -> None:
    kernel = Kernel(np.zeros((41, 129, 129), np.float32), np.zeros((81, 61, 61), np.float32))
    grid = choose_grid(shape, kernel, (0, shape[0]))
    lengths = lengths_of(grid, kernel, (0, shape[0]))
    assert spectrum_bytes(lengths.near) < 320e6
    found = sampled_blocks(grid)
    assert len(set(found)) == len(found) == min(4, len(grid))
    assert all(0 <= number < len(grid) for number in found)


# --- the image --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"specimen": "nuclei,beads", "thickness": 4.0, "truth_fwhm": 0.3},
        {"specimen": "filaments", "microscope": "confocal", "wavelength_ex": 488.0},
        {"specimen": "cytoplasm", "microscope": "brightfield", "phase": 0.5},
        {"specimen": "membranes", "zernike": "8=0.1"},
    ],
)
def test_the_cut_into_blocks_does_not_show(options: dict[str, Any]) -> None:
    made = plan(shape=(9, 88, 72), **options)
    whole, whole_truth = noise_free(made)
    cut, cut_truth = noise_free(made, (4, 33, 40))
    assert np.abs(cut - whole).max() < 1e-5 * np.abs(whole).max()
    assert np.abs(cut_truth - whole_truth).max() <= 1e-6 * whole_truth.max()
    assert whole_truth.min() >= 0 and np.abs(whole).max() > 0


@pytest.mark.parametrize("kind", ["widefield", "confocal"])
def test_a_bright_voxel_is_imaged_as_the_psf(tmp_path: Path, kind: str) -> None:
    source = point_volume(tmp_path / "point.tif", (15, 160, 160), (7, 80, 80))
    made = plan(source=source, microscope=kind, wavelength_ex=488.0, ns=1.4, depth=2.0)
    image, truth = noise_free(made)
    assert truth[7, 80, 80] == truth.sum() == 1
    grid = PsfGrid((15, 161, 161), 0.08, 0.2, made.imaging.sampling)  # type: ignore[arg-type]
    assert isinstance(made.setup.optics, Microscope)
    psf = compute_psf(made.setup.optics, grid, normalize="max").numpy()[:, :160, :160]
    assert np.unravel_index(image.argmax(), image.shape) == np.unravel_index(psf.argmax(), psf.shape)
    assert np.abs(image / image.max() - psf).max() < 1e-3


def test_every_widefield_plane_holds_all_light(tmp_path: Path) -> None:
    """Mirrored borders give back what leaves: the sum of each plane is the truth's, near and far from focus."""
    source = point_volume(tmp_path / "point.tif", (31, 64, 96), (4, 20, 70))
    image, truth = noise_free(plan(source=source))
    np.testing.assert_allclose(image.sum((1, 2)), float(truth.sum()), rtol=2e-3)


def test_light_beyond_the_borders_counts() -> None:
    inner = plan(specimen="cytoplasm", shape=(5, 32, 32), thickness=1.0)
    thick = plan(specimen="cytoplasm", shape=(5, 32, 32), thickness=6.0)
    (image, truth), (hazy, same) = noise_free(inner), noise_free(thick)
    assert np.abs(truth - same).max() < 0.3 * truth.max()  # the same voxels, but for what bends at the slab's faces
    assert hazy.mean() > 1.5 * image.mean()
    assert image.sum() > truth.sum()  # more comes from the sides than leaves: truth is light of one plane each


def test_truth_and_image_lie_on_each_other() -> None:
    image, truth = noise_free(
        plan(specimen="filaments:mesh", shape=(12, 96, 96), microscope="confocal", wavelength_ex=488)
    )
    spectra = [np.fft.fftn(part - part.mean()) for part in (image, truth)]
    correlation = np.fft.ifftn(spectra[0] * spectra[1].conj()).real
    assert np.unravel_index(correlation.argmax(), correlation.shape) == (0, 0, 0)


def test_the_truth_can_be_blurred_and_keeps_its_light(tmp_path: Path) -> None:
    source = point_volume(tmp_path / "point.tif", (17, 48, 48), (8, 24, 24))
    _, truth = noise_free(plan(source=source, truth_fwhm=0.4))
    assert truth.sum() == pytest.approx(1, rel=1e-4)
    half = truth[8, 24] >= truth.max() / 2
    assert half.sum() * 0.08 == pytest.approx(0.4, abs=0.08)
    assert (truth[:, 24, 24] >= truth.max() / 2).sum() in (2, 3)  # planes 0.2 um apart


def test_brightfield_absorbers_are_dark_and_phase_turns_over_in_focus(tmp_path: Path) -> None:
    source = point_volume(tmp_path / "point.tif", (9, 64, 64), (4, 32, 32))
    dark, _ = noise_free(plan(source=source, microscope="brightfield", absorption=0.4, phase=0.0))
    assert dark[4, 32, 32] == dark.min() < 0
    bent, _ = noise_free(plan(source=source, microscope="brightfield", absorption=0.0, phase=0.4))
    assert np.abs(bent[4]).max() < 1e-4 * np.abs(bent).max()
    np.testing.assert_allclose(bent[2], -bent[6], atol=1e-5 * float(np.abs(bent).max()))
    assert bent[6, 32, 32] < 0 < bent[2, 32, 32]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_blocks")
def test_workers_formats_and_seeds(tmp_path: Path) -> None:
    """One worker or two, TIFF or Zarr: the same bytes; another seed: others."""
    assert simulate(*SMALL, "--scmos", "-o", tmp_path / "one.ome.zarr", "--workers", 1) == 0
    assert simulate(*SMALL, "--scmos", "-o", tmp_path / "two.ome.tif", "--workers", 2) == 0
    first, truth = pixels(tmp_path / "one.ome.zarr"), pixels(tmp_path / "one_truth.ome.zarr")
    np.testing.assert_array_equal(first, pixels(tmp_path / "two.ome.tif"))
    np.testing.assert_array_equal(truth, pixels(tmp_path / "two_truth.ome.tif"))
    assert first.shape == truth.shape == (10, 96, 80)
    assert (first.dtype, truth.dtype) == (np.dtype("u2"), np.dtype("f4"))
    options = (*SMALL, "--scmos", "--seed", 4, "--no-truth", "--workers", 1)
    assert simulate(*options, "-o", tmp_path / "other.ome.zarr") == 0
    assert (pixels(tmp_path / "other.ome.zarr") != first).mean() > 0.9
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "one.ome.zarr", "one_truth.ome.zarr", "other.ome.zarr", "two.ome.tif", "two_truth.ome.tif",
    ]  # fmt: skip


@pytest.mark.usefixtures("small_blocks")
def test_a_sensor_has_the_same_pixels_in_every_plane() -> None:
    made = plan(specimen="nuclei", shape=(10, 96, 80), scmos=True)
    maker = BlockMaker(made.job)
    whole = BlockMaker(replace(made.job, grid=make_grid((10, 96, 80), (10, 96, 80))))
    maps = whole._maps((slice(0, 10), slice(0, 96), slice(0, 80)))
    for number in range(len(made.job.grid)):
        core = made.job.grid.block(number).core
        np.testing.assert_array_equal(maker._maps(core).gain_adu, maps.crop(core[1], core[2]).gain_adu)


def test_photons_background_and_camera_are_as_asked(tmp_path: Path) -> None:
    output = tmp_path / "o.ome.zarr"
    camera = ("--qe", 0.5, "--gain", 4, "--offset", 50, "--read-noise", 0, "--bit-depth", 16)
    assert simulate(*SMALL, *camera, "--photons", 3000, "--background", 100, "-o", output) == 0
    light = (pixels(output).astype(float) - 50) / 4 / 0.5
    image, truth = noise_free(plan(specimen="nuclei,beads=2", shape=(10, 96, 80)))
    factor = read_provenance(output)["light"]["factor"]  # type: ignore[index]
    peak = np.sort(image.ravel())[-max(1, int(np.ceil(1e-4 * image.size)))]
    assert factor * peak == pytest.approx(3000, rel=1e-4)
    np.testing.assert_allclose(pixels(tmp_path / "o_truth.ome.zarr"), truth * np.float32(factor), rtol=1e-5)
    expected = factor * image + 100
    assert (light - expected).mean() == pytest.approx(0, abs=0.5)
    assert ((light - expected) ** 2 / (expected / 0.5)).mean() == pytest.approx(1, rel=0.02)  # photon noise alone


def test_the_record_makes_the_same_stack_again(tmp_path: Path) -> None:
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Instrument ID="Instrument:0"><Objective '
        'ID="Objective:0" LensNA="1.2" Immersion="Water"/></Instrument><Image ID="Image:0"><ObjectiveSettings '
        'ID="Objective:0"/><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="8" SizeY="8" SizeZ="1" '
        'SizeC="1" SizeT="1" PhysicalSizeX="0.07" PhysicalSizeY="0.07" PhysicalSizeZ="0.3"><Channel '
        'ID="Channel:0:0" SamplesPerPixel="1" EmissionWavelength="610"/><TiffData/></Pixels></Image></OME>'
    )
    like = tmp_path / "like.ome.tif"
    tifffile.imwrite(like, np.zeros((8, 8), np.uint8), description=xml, metadata=None)
    options = ("--like", like, "--specimen", "vesicles:shells", "--shape", 6, 48, 48, "--photons", 80, "--seed", 9)
    assert simulate(*options, "--truth-dtype", "uint16", "-o", tmp_path / "a.ome.zarr") == 0
    record = read_provenance(tmp_path / "a.ome.zarr")
    assert record is not None
    assert (record["na"], record["wavelength_nm"], record["seed"]) == (1.2, 610.0, 9)
    assert {"command", "version", "specimen", "optics", "camera", "light", "psf", "yaml"} <= set(record)
    like.unlink()
    (tmp_path / "again.yaml").write_text(str(record["yaml"]))
    assert simulate("-c", tmp_path / "again.yaml", "-o", tmp_path / "b.ome.zarr") == 0
    for name in ("", "_truth"):
        np.testing.assert_array_equal(pixels(tmp_path / f"a{name}.ome.zarr"), pixels(tmp_path / f"b{name}.ome.zarr"))
    assert pixels(tmp_path / "b_truth.ome.zarr").dtype == np.uint16
    same = read_provenance(tmp_path / "b.ome.zarr")
    assert same is not None and (same["fingerprint"], same["yaml"]) == (record["fingerprint"], record["yaml"])


def test_a_users_volume_keeps_its_voxels(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).random((6, 40, 56)).astype(np.float32)
    metadata = {"axes": "ZYX", "PhysicalSizeX": 0.1, "PhysicalSizeY": 0.1, "PhysicalSizeZ": 0.4}
    tifffile.imwrite(tmp_path / "in.ome.tif", volume, photometric="minisblack", metadata=metadata)
    output = tmp_path / "o.ome.tif"
    assert simulate("--source", tmp_path / "in.ome.tif", "--na", 1.2, "--ni", 1.33, "-o", output) == 0
    record = read_provenance(output)
    assert record is not None
    truth = pixels(tmp_path / "o_truth.ome.tif")
    np.testing.assert_allclose(truth, volume * (truth.max() / volume.max()), rtol=1e-5)
    import ome_types

    for path in (output, tmp_path / "o_truth.ome.tif"):
        parsed = ome_types.from_tiff(path).images[0].pixels
        assert (parsed.size_z, parsed.size_y, parsed.size_x) == (6, 40, 56)
        assert (parsed.physical_size_z, parsed.physical_size_x) == (0.4, 0.1)
        assert parsed.physical_size_x_unit.value == "µm"


def test_brightfield_has_the_photons_of_the_bright_field(tmp_path: Path) -> None:
    output = tmp_path / "bf.ome.zarr"
    options = (*OIL, "--specimen", "nuclei", "--shape", 5, 64, 64, "--microscope", "brightfield", "--photons", 4000)
    assert simulate(*options, "--background", 0, "--absorption", 0.2, "--phase", 0, "-o", output) == 0
    light = (pixels(output).astype(float) - 100) / 2 / 0.8
    assert 0.7 * 4000 < np.percentile(light, 1) < np.percentile(light, 90) < 1.05 * 4000
    columns = pixels(tmp_path / "bf_truth.ome.zarr").sum(0)
    assert columns.max() == pytest.approx(1, rel=1e-4)  # of so few columns the largest is the percentile
    yaozarrs.validate_zarr_store(str(output))
    yaozarrs.validate_zarr_store(str(tmp_path / "bf_truth.ome.zarr"))


def test_a_dry_run_writes_nothing_and_tells_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = ("--shape", 200, 20_000, 20_000)
    assert simulate(*OIL, "--specimen", "beads", *shape, "-o", tmp_path / "o.ome.zarr", "--dry-run", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["event"] == "planned"
    assert facts["bytes"] == 2 * 200 * 20_000**2
    assert facts["truth_bytes"] == 2 * facts["bytes"]
    assert facts["blocks"] > 1000
    assert not list(tmp_path.iterdir())
