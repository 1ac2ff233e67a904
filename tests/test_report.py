"""Pages on outputs: one safe file whose pictures and figures are those of the pixels, from bounded reads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from mrbcr_cli import metrics
from mrbcr_cli.cli import run
from mrbcr_cli.images import find_source, open_source, read_provenance
from mrbcr_cli.report.embed import decode, encode, safe_json
from mrbcr_cli.report.measures import histogram, reblur, residual
from mrbcr_cli.report.pair import Side, Spot, Window, levels_of, met_bytes
from mrbcr_cli.report.places import best_windows, richest
from mrbcr_cli.report.sources import open_pair, read_record
from mrbcr_cli.report.view import Limits
from tests.helpers import deconvolve, pixels, spots, tiny_weights

MOST_BYTES = 8_000_000
Said = pytest.CaptureFixture[str]
EVIL = "</script><script>document.title='evil'</script>&\"'<!--"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("w") / "w.safetensors")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """A folder with a stack of two channels, its outputs as Zarr and as TIFF, and a page on each."""
    folder = tmp_path_factory.mktemp("made")
    image = spots((2, 5, 200, 260))
    tifffile.imwrite(
        folder / "in.ome.tif",
        image,
        metadata={
            "axes": "CZYX",
            "PhysicalSizeX": 0.1,
            "PhysicalSizeY": 0.1,
            "PhysicalSizeZ": 0.3,
            "Channel": {"Name": ["actin", EVIL]},
        },
    )
    for name in ("out.ome.zarr", "out.ome.tif"):
        page = folder / (name.rpartition(".")[2] + ".html")
        assert (
            deconvolve(folder / "in.ome.tif", "-m", weights, "-o", folder / name, "--report", page, "-q", "--z", "1:5")
            == 0
        )
    return folder


def data_of(page: Path) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)
    assert found
    return json.loads(found[1])


def test_the_page_needs_nothing_from_elsewhere_and_runs_its_own_script_alone(made: Path) -> None:
    text = (made / "zarr.html").read_text()
    assert len(text) < MOST_BYTES
    assert not re.findall(r"(?:src|href|url|import)\s*[=(]\s*[\"']?(?:https?:)?//", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy and "default-src 'none'" in policy[1] and re.search(r"script-src 'sha256-[\w+/=]+'", policy[1])
    assert text.count("<script>") == 1 and text.count("</script>") == 2


def test_metadata_never_become_markup(made: Path) -> None:
    text = (made / "zarr.html").read_text()
    assert EVIL not in text and "document.title='evil'" in text.replace("&#x27;", "'")
    assert EVIL in data_of(made / "zarr.html")["channels"]["1"]
    assert json.loads(safe_json({"a": EVIL})) == {"a": EVIL} and "<" not in safe_json(EVIL)


def test_pictures_decode_to_the_pixels_that_were_read(made: Path) -> None:
    before, after = tifffile.imread(made / "in.ome.tif")[:, 1:5], pixels(made / "out.ome.zarr")
    for view in data_of(made / "zarr.html")["views"]:
        c, z = view["c"], view["z"]
        y, x, h, w = view["details"][0]["place"]
        for side, image in (("before", before), ("after", after)):
            assert np.array_equal(decode(view["details"][0][side]), image[c, z, y : y + h, x : x + w])
            small = view["overview"][side]
            assert np.abs(decode(small) - image[c, z]).max() <= small["step"] / 2 + 1e-9
            volume = view["stack"]["volume"]
            first, depth, top, left, height, width = volume["place"]
            block = image[c, first : first + depth, top : top + height, left : left + width]
            assert np.abs(decode(volume[side]) - block).max() <= volume[side]["step"] / 2 + 1e-9
            for axis, name in ((0, "xy"), (1, "xz")):
                found = view["stack"]["projections"][side][name]
                assert np.abs(decode(found) - image[c].max(axis)).max() <= found["step"] / 2 + 1e-9


def test_figures_are_those_of_metrics(made: Path) -> None:
    before, after = tifffile.imread(made / "in.ome.tif")[:, 1:5], pixels(made / "out.ome.zarr")
    for view in data_of(made / "zarr.html")["views"]:
        y, x, h, w = view["measured"]
        for side, image in (("before", before), ("after", after)):
            plane = image[view["c"], view["z"], y : y + h, x : x + w]
            assert view["frc"][f"{side}_px"] == metrics.single_image_resolution_px(plane)
            assert sum(view["histogram"][side]) == image[view["c"]].size


def test_a_tiff_and_a_zarr_give_the_same_page(made: Path) -> None:
    one, other = (data_of(made / f"{name}.html") for name in ("zarr", "tif"))
    for view in (*one["views"], *other["views"]):
        del view["overview"]["levels"]
    assert one == other


def test_the_output_alone_is_enough_and_holds_what_the_run_counted(made: Path, capsys: Said) -> None:
    record: Any = read_provenance(made / "out.ome.tif")
    assert record["clipped"] >= 0 and record["run"]["seconds"]["compute"] > 0
    assert record["input"]["path"] == str(made / "in.ome.tif")
    assert (
        run(["report", str(made / "out.ome.zarr"), "-o", str(made / "again.html"), "--preview", str(made / "p.png")])
        == 0
    )
    said = capsys.readouterr()
    assert said.out.split() == [str(made / "again.html"), str(made / "p.png")]
    assert data_of(made / "again.html") == data_of(made / "zarr.html")
    assert (made / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_an_input_that_is_gone_is_asked_for_and_another_is_announced(
    tmp_path: Path, weights: Path, capsys: Said
) -> None:
    image = spots((100, 120))
    tifffile.imwrite(tmp_path / "in.tif", image)
    assert deconvolve(tmp_path / "in.tif", "-m", weights, "-o", tmp_path / "o.ome.tif", "-q") == 0
    (tmp_path / "in.tif").rename(tmp_path / "moved.tif")
    assert run(["report", str(tmp_path / "o.ome.tif")]) == 2
    assert "--input" in capsys.readouterr().err
    assert run(["report", str(tmp_path / "o.ome.tif"), "--input", str(tmp_path / "moved.tif")]) == 0
    assert "warning" not in capsys.readouterr().err and (tmp_path / "o_report.html").is_file()
    tifffile.imwrite(tmp_path / "other.tif", image + 1)
    assert run(["report", str(tmp_path / "o.ome.tif"), "--input", str(tmp_path / "other.tif")]) == 0
    assert "byte for byte" in capsys.readouterr().err
    assert "byte for byte" in (tmp_path / "o_report.html").read_text()
    tifffile.imwrite(tmp_path / "large.tif", spots((130, 120)))
    assert run(["report", str(tmp_path / "o.ome.tif"), "--input", str(tmp_path / "large.tif")]) == 2
    assert run(["report", str(tmp_path / "moved.tif")]) == 2
    assert "no finished output" in capsys.readouterr().err


def test_names_are_refused_before_anything_is_computed(tmp_path: Path, weights: Path, capsys: Said) -> None:
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(tmp_path / name, spots((64, 64)))
    one, both = [tmp_path / "a.tif"], [tmp_path / "a.tif", tmp_path / "b.tif"]
    for inputs, more, said in (
        (both, ("--report", tmp_path / "r.html"), "give a folder"),
        (one, ("--report", tmp_path / "r.png"), "must end in .html"),
        (one, ("--preview", tmp_path / "r.jpg"), "must end in .png"),
        (one, ("--report", "s3://bucket/r.html"), "disks alone"),
        (one, ("--report", tmp_path / "r.html", "--shard", "0/2"), "mrbcr report"),
        (one, ("--report", tmp_path / "a.tif" / "r.html"), "where a folder must be"),
    ):
        assert deconvolve(*inputs, "-m", weights, "-o", tmp_path / "out", *more) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_several_inputs_a_dry_run_and_an_output_that_is_done(tmp_path: Path, weights: Path, capsys: Said) -> None:
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(tmp_path / name, spots((64, 80)))
    args = (
        tmp_path / "a.tif",
        tmp_path / "b.tif",
        "-m",
        weights,
        "-o",
        tmp_path / "out",
        "--report",
        tmp_path / "pages",
    )
    assert deconvolve(*args, "--dry-run") == 0
    assert "a_report.html: would be written" in capsys.readouterr().out and not (tmp_path / "pages").exists()
    assert deconvolve(*args, "--json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    pages = [event["path"] for event in events if event["event"] == "report"]
    assert pages == [str(tmp_path / "pages" / f"{name}_report.html") for name in "ab"]
    Path(pages[0]).unlink()
    assert deconvolve(*args, "-q") == 0
    assert Path(pages[0]).is_file()
    assert capsys.readouterr().out.split() == [str(tmp_path / "out" / f"{name}.ome.zarr") for name in "ab"]


def test_a_page_that_fails_keeps_the_output_and_is_said(
    tmp_path: Path, weights: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mrbcr_cli.report import command

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "_write", full)
    tifffile.imwrite(tmp_path / "a.tif", spots((64, 80)))
    args = (tmp_path / "a.tif", "-m", weights, "-o", tmp_path / "o.ome.zarr", "--report", tmp_path / "r.html")
    assert deconvolve(*args) == 3
    said = capsys.readouterr()
    assert (
        "is complete" in said.err and "No space left" in said.err and said.out.split() == [str(tmp_path / "o.ome.zarr")]
    )
    assert read_provenance(tmp_path / "o.ome.zarr") is not None and not (tmp_path / "r.html").exists()


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


def test_a_page_is_read_beside_its_output_record(made: Path) -> None:
    record = read_record(made / "out.ome.zarr")
    warned: list[str] = []
    with open_pair(made / "out.ome.zarr", record, None, warned.append) as pair:
        whole = Window(0, 0, 200, 260)
        assert np.array_equal(pair.before.read_plane(Spot(0, 1, 2), whole), tifffile.imread(made / "in.ome.tif")[1, 3])
    assert not warned
