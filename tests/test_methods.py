"""Explicit and blind methods through the same engine as the networks."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from mrbcr_cli.images import read_provenance
from tests.helpers import deconvolve, pixels, spots, tiny_weights


def gaussian(shape: tuple[int, ...], sigma: tuple[float, ...]) -> NDArray[np.float32]:
    axes = [np.arange(n) - n // 2 for n in shape]
    grid = np.meshgrid(*axes, indexing="ij")
    psf = np.exp(-sum((g / s) ** 2 / 2 for g, s in zip(grid, sigma, strict=True)))
    return (psf / psf.sum()).astype(np.float32)


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, spots((12, 150, 140)), photometric="minisblack", metadata={"axes": "ZYX"})
    return path


def test_richardson_lucy_in_3d_is_the_method_itself(tmp_path: Path, stack: Path) -> None:
    from mrbcr_cli.classical import RichardsonLucy
    from mrbcr_cli.intensity import IntensityRange
    from mrbcr_cli.psf_files import load_psf

    tifffile.imwrite(tmp_path / "psf.tif", gaussian((7, 13, 13), (1.5, 2, 2)), photometric="minisblack")
    output = tmp_path / "o.ome.zarr"
    args = ("--method", "richardson-lucy", "--psf", tmp_path / "psf.tif", "--iterations", 5, "--background", 90)
    assert deconvolve(stack, "-o", output, *args, "-q", "--output-dtype", "float32") == 0
    psf = load_psf(tmp_path / "psf.tif", image_scale_zyx_um=(None,) * 3, is_3d=True)
    image = tifffile.imread(stack).astype(np.float32)
    direct = RichardsonLucy(psf, iterations=5, background=90).restore(image, IntensityRange(0, 1))
    assert np.abs(pixels(output) - direct).max() <= 1e-4 * np.ptp(direct)


@pytest.mark.parametrize("method", ["richardson-lucy", "wiener"])
def test_blocks_of_an_explicit_method_show_little(tmp_path: Path, stack: Path, method: str) -> None:
    np.save(tmp_path / "psf.npy", gaussian((1, 13, 13), (1, 2, 2))[0])
    common = (stack, "--method", method, "--psf", tmp_path / "psf.npy", "-q", "--output-dtype", "float32")
    assert deconvolve(*common, "-o", tmp_path / "whole.ome.zarr", "--iterations", 10) == 0
    assert deconvolve(*common, "-o", tmp_path / "tiles.ome.zarr", "--iterations", 10, "--tile-size", 64) == 0
    whole, tiles = pixels(tmp_path / "whole.ome.zarr"), pixels(tmp_path / "tiles.ome.zarr")
    assert np.abs(whole - tiles).max() <= 5e-3 * np.ptp(whole)


def test_a_2d_psf_deconvolves_each_plane_by_itself(tmp_path: Path, stack: Path) -> None:
    np.save(tmp_path / "psf.npy", gaussian((13, 13), (2, 2)))
    common = ("--method", "richardson-lucy", "--psf", tmp_path / "psf.npy", "-q", "--iterations", 5)
    assert deconvolve(stack, "-o", tmp_path / "all.ome.zarr", *common) == 0
    assert deconvolve(stack, "-o", tmp_path / "one.ome.zarr", *common, "--z", 7) == 0
    assert np.array_equal(pixels(tmp_path / "one.ome.zarr")[0], pixels(tmp_path / "all.ome.zarr")[7])


def test_blind_finds_the_width_of_its_blur_and_saves_it(tmp_path: Path) -> None:
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(2)
    sharp = (rng.random((512, 512)) < 0.02) * rng.gamma(1.0, 1.0, (512, 512))
    image = rng.poisson(20 + 3000 * gaussian_filter(sharp, 1.7)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "in.tif", image)
    assert deconvolve(tmp_path / "in.tif", "-o", tmp_path / "o.ome.tif", "--method", "blind", "-q") == 0
    record = read_provenance(tmp_path / "o.ome.tif")
    assert record is not None
    estimate = record["channels"][0]["estimate"]  # type: ignore[index]
    assert estimate["fwhm_px"] == pytest.approx(2.355 * 1.7, rel=0.15)


def test_nan_psf_is_refused(shared: Path, tmp_path: Path, stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    psf = shared / "data" / "test" / "NaN_psf.tif"
    assert deconvolve(stack, "-o", tmp_path / "o.ome.zarr", "--method", "wiener", "--psf", psf) == 2
    assert "NaN" in capsys.readouterr().err
    assert not (tmp_path / "o.ome.zarr.partial").exists()


def test_two_runs_on_one_node_do_not_collide(tmp_path: Path, stack: Path) -> None:
    """Dask's usual dashboard port may be taken by another user's run."""
    weights = tiny_weights(tmp_path / "tiny.safetensors")
    with socket.socket() as taken:
        try:
            taken.bind(("0.0.0.0", 8787))
            taken.listen()
        except OSError:
            pass  # somebody else holds it: as good
        assert deconvolve(stack, "-o", tmp_path / "o.ome.zarr", "-m", weights, "-q", "--z", 0) == 0
    assert pixels(tmp_path / "o.ome.zarr").shape == (1, 150, 140)
