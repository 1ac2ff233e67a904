"""What a report page shows is measured from bounded reads, however large the image is.

Pictures decode to within half a step, and what was left out is said.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from mrbcr_cli.cli import run
from mrbcr_cli.images import find_source, open_source
from mrbcr_cli.report.embed import decode, encode
from mrbcr_cli.report.measures import histogram, reblur, residual
from mrbcr_cli.report.pair import Side, Spot, Window, levels_of, met_bytes
from mrbcr_cli.report.places import best_windows, richest
from mrbcr_cli.report.view import Limits
from tests.helpers import deconvolve, pixels, spots, tiny_weights
from tests.report_pages import data_of

Said = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("w") / "w.safetensors")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
@pytest.mark.parametrize("holes", [False, True])
def test_what_is_encoded_decodes_to_within_half_a_step(dtype: str, holes: bool) -> None:
    if holes and dtype != "float32":
        pytest.skip("integers have no NaN")
    rng = np.random.default_rng(0)
    image = (rng.random((7, 13)) * 200 - (100 if dtype in ("int16", "float32") else 0)).astype(dtype)
    if holes:
        image[2, 3], image[0, 0] = np.nan, np.inf
    for step in (None, 0.5, 3.0):
        encoded = encode(image, step)
        finite = np.isfinite(image)
        found = decode(encoded)
        assert np.array_equal(np.isfinite(found), finite)
        assert np.abs(found - image)[finite].max() <= encoded["step"] / 2 * (1 + 1e-6)
    if dtype != "float32":
        assert np.array_equal(decode(encode(image)), image)
        ends = np.array([[np.iinfo(dtype).min, np.iinfo(dtype).max]], dtype)
        assert np.array_equal(decode(encode(ends)), ends)


def test_a_constant_and_an_empty_image_are_measured_without_a_word_too_many(tmp_path: Path, weights: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full((64, 80), 9, np.uint16))
    nan = np.full((40, 50), np.nan, np.float32)
    tifffile.imwrite(tmp_path / "b.tif", nan)
    for name, more in (("a", ()), ("b", ("--nan-policy", "keep"))):
        page = tmp_path / f"{name}.html"
        assert (
            deconvolve(tmp_path / f"{name}.tif", "-m", weights, "-o", tmp_path / f"{name}.ome.zarr", *more, "-q") == 0
        )
        assert (
            run(["report", str(tmp_path / f"{name}.ome.zarr"), "-o", str(page), "--preview", f"{page}.png", "-q"]) == 0
        )
        view = data_of(page)["views"][0]
        assert "why" in view["frc"] and "why" in view["residual"]


class Counted:
    """A reader that counts the bytes of the chunks that it is asked for."""

    def __init__(self, reader: Any) -> None:
        self.reader, self.info, self.bytes = reader, reader.info, 0

    def read(self, region: Any) -> Any:
        self.bytes += met_bytes(self.info, region)
        return self.reader.read(region)

    def close(self) -> None:
        self.reader.close()


@pytest.fixture
def large(tmp_path: Path) -> Callable[[int], Side]:
    """A plane of 4096 x 3072 px, whose bright corner has structure, with 0 or more coarser levels."""
    import zarr

    image = np.full((4096, 3072), 100, np.uint16)
    image[3000:3200, 1000:1200] = spots((200, 200))
    array = zarr.create_array(str(tmp_path / "l.zarr"), shape=image.shape, chunks=(256, 256), dtype="u2")
    array[:] = image

    def side(levels: int) -> Side:
        readers = [Counted(open_source(find_source(str(tmp_path / "l.zarr"))))]
        for k in range(1, levels + 1):
            small = zarr.create_array(str(tmp_path / f"l{k}.zarr"), data=image[:: 2**k, :: 2**k], chunks=(256, 256))
            assert small.ndim == 2
            readers.append(Counted(open_source(find_source(str(tmp_path / f"l{k}.zarr")))))
        return Side(tuple(readers), None)  # type: ignore[arg-type]

    return side


def test_an_overview_comes_from_the_level_that_fits(large: Callable[[int], Side]) -> None:
    side = large(3)
    small = side.overview(Spot(0, 0), 600, 1 << 30)
    assert small.level == 3 and small.pixels_yx.shape == (512, 384) and small.share_read == 1
    assert side.levels[0].bytes == 0  # type: ignore[attr-defined]
    side.close() if hasattr(side, "close") else None


def test_an_overview_without_a_pyramid_is_the_mean_of_all_or_a_bounded_sample(large: Callable[[int], Side]) -> None:
    side = large(0)
    image = side.read_plane(Spot(0, 0), Window(0, 0, 4096, 3072)).astype(float)
    side.levels[0].bytes = 0  # type: ignore[attr-defined]
    whole = side.overview(Spot(0, 0), 512, 1 << 30)
    assert whole.share_read == 1 and np.allclose(whole.pixels_yx, image.reshape(512, 8, 384, 8).mean((1, 3)))
    assert side.levels[0].bytes <= 2 * 2 * image.size  # type: ignore[attr-defined]
    side.levels[0].bytes = 0  # type: ignore[attr-defined]
    budget = 20 * 256 * 256 * 2
    sampled = side.overview(Spot(0, 0), 512, budget)
    assert 0 < sampled.share_read < 0.2 and sampled.pixels_yx.shape == (5, 4)
    assert side.levels[0].bytes <= budget  # type: ignore[attr-defined]


def test_the_richest_place_is_found_where_the_structure_is(large: Callable[[int], Side]) -> None:
    from mrbcr_cli.report.pair import Pair

    pair = Pair(large(0), large(2))
    (window,) = best_windows(pair, Spot(0, 0), 256, 1)
    assert abs(window.y + 128 - 3100) < 100 and abs(window.x + 128 - 1100) < 100
    assert richest(np.zeros((50, 50)), (10, 10), 2)[1:] == []


def test_a_pyramid_of_an_output_is_read_where_it_has_one(tmp_path: Path, weights: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", spots((600, 700)))
    assert deconvolve(tmp_path / "a.tif", "-m", weights, "-o", tmp_path / "o.ome.zarr", "-q") == 0
    reader = open_source(find_source(str(tmp_path / "o.ome.zarr")))
    levels = levels_of(reader)
    assert [level.info.shape for level in levels] == [(600, 700), (300, 350), (150, 175)]
    whole = levels[1].read((slice(0, 300), slice(0, 350)))
    assert np.abs(whole - pixels(tmp_path / "o.ome.zarr").reshape(300, 2, 350, 2).mean((1, 3))).max() <= 0.5


def test_the_true_output_under_the_true_psf_leaves_nothing(tmp_path: Path) -> None:
    from scipy.ndimage import convolve

    rng = np.random.default_rng(0)
    truth = rng.random((5, 60, 60))
    psf = rng.random((3, 5, 5)).astype(np.float32)
    psf /= psf.sum()
    blurred = 3 + 2 * convolve(truth, psf.astype(float), mode="constant")
    again = reblur(truth[1:4], psf)
    fitted, figures = residual(blurred[2, 2:-2, 2:-2], again)
    assert figures["relative"] < 1e-6 and figures["gain"] == pytest.approx(2) and figures["offset"] == pytest.approx(3)
    assert np.allclose(fitted, blurred[2, 2:-2, 2:-2])


def test_richardson_lucy_is_held_against_its_own_psf(tmp_path: Path, capsys: Said) -> None:
    from scipy.ndimage import gaussian_filter

    psf = gaussian_filter(np.pad(np.ones((1, 1)), 7), 1.5)
    tifffile.imwrite(tmp_path / "psf.tif", psf.astype(np.float32))
    tifffile.imwrite(tmp_path / "a.tif", spots((128, 128)))
    args = ("--method", "richardson-lucy", "--psf", tmp_path / "psf.tif", "--iterations", "5", "-q")
    assert deconvolve(tmp_path / "a.tif", "-o", tmp_path / "o.ome.tif", *args) == 0
    page = tmp_path / "o_report.html"
    assert run(["report", str(tmp_path / "o.ome.tif"), "-q"]) == 0
    found = data_of(page)["views"][0]["residual"]
    assert "the PSF that the run used" in found["psf"] and found["correlation"] > 0.9
    tifffile.imwrite(tmp_path / "psf.tif", gaussian_filter(psf, 2).astype(np.float32))
    assert run(["report", str(tmp_path / "o.ome.tif"), "-q"]) == 0
    assert "no longer the PSF" in data_of(page)["views"][0]["residual"]["why"]


def test_a_psf_is_simulated_where_the_metadata_allow(tmp_path: Path, weights: Path) -> None:
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Instrument ID="Instrument:0">'
        '<Objective ID="Objective:0" LensNA="1.2" Immersion="Water"/></Instrument><Image ID="Image:0">'
        '<ObjectiveSettings ID="Objective:0"/><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="120" '
        'SizeY="100" SizeZ="1" SizeC="1" SizeT="1" PhysicalSizeX="0.1" PhysicalSizeY="0.1">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="1" EmissionWavelength="520"/><TiffData/></Pixels></Image></OME>'
    )
    tifffile.imwrite(tmp_path / "a.ome.tif", spots((100, 120)), description=xml, metadata=None)
    assert deconvolve(tmp_path / "a.ome.tif", "-m", weights, "-o", tmp_path / "o.ome.zarr", "-q") == 0
    assert run(["report", str(tmp_path / "o.ome.zarr"), "-q"]) == 0
    found = data_of(tmp_path / "o_report.html")["views"][0]["residual"]
    assert "NA 1.2, 520 nm" in found["psf"] and np.isfinite(found["rms"])


def test_many_views_are_bounded_and_what_was_left_out_is_said(tmp_path: Path, weights: Path, capsys: Said) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", spots((9, 5, 48, 56)), metadata={"axes": "TCYX"})
    output = tmp_path / "o.ome.zarr"
    assert deconvolve(tmp_path / "a.ome.tif", "-m", weights, "-o", output, "-q") == 0
    page = tmp_path / "o_report.html"
    assert run(["report", str(output), "-q"]) == 0
    assert {(v["c"], v["t"]) for v in data_of(page)["views"]} == {(c, t) for c in (0, 1, 3, 4) for t in (0, 4, 8)}
    assert "5 channels, of which 0, 1, 3, 4 are shown" in page.read_text()
    assert run(["report", str(output), "-q", "--channels", "2", "--t", "3:5"]) == 0
    assert [(v["c"], v["t"]) for v in data_of(page)["views"]] == [(2, 3), (2, 4)]
    for wrong in (("--t", "9"), ("--channels", "x"), ("--channels", "0:5")):
        assert run(["report", str(output), *wrong]) == 2


def test_limits_of_all_views_together_do_not_grow(tmp_path: Path) -> None:
    plane = Window(0, 0, 20_000, 20_000)
    sizes = [views * Limits(views).longest_side_px(plane) ** 2 for views in (1, 2, 4, 8, 12)]
    assert max(sizes) <= 1.2 * (1 << 20)


def test_bins_of_integers_hold_whole_levels() -> None:
    image = np.arange(1000, dtype=np.uint16)
    found = histogram(image, image)
    steps = np.diff(found["edges"])
    assert np.all(steps == steps[0]) and steps[0] == int(steps[0]) and sum(found["before"]) == 1000
