"""Pages on outputs: one safe file whose pictures and figures are those of the pixels that were read.

What a page cannot have is asked for, announced or refused, and the output stays whatever becomes of its page.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from mrbcr_cli import metrics
from mrbcr_cli.cli import run
from mrbcr_cli.images import read_provenance
from mrbcr_cli.report.embed import decode, safe_json
from mrbcr_cli.report.pair import Spot, Window
from mrbcr_cli.report.sources import open_pair, read_record
from tests.helpers import deconvolve, pixels, spots, tiny_weights
from tests.report_pages import data_of

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
    assert (
        f"report {tmp_path / 'pages' / 'a_report.html'}: " in capsys.readouterr().out
        and not (tmp_path / "pages").exists()
    )
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

    monkeypatch.setattr(command, "write_text", full)
    tifffile.imwrite(tmp_path / "a.tif", spots((64, 80)))
    args = (tmp_path / "a.tif", "-m", weights, "-o", tmp_path / "o.ome.zarr", "--report", tmp_path / "r.html")
    assert deconvolve(*args) == 3
    said = capsys.readouterr()
    assert (
        "is complete" in said.err and "No space left" in said.err and said.out.split() == [str(tmp_path / "o.ome.zarr")]
    )
    assert read_provenance(tmp_path / "o.ome.zarr") is not None and not (tmp_path / "r.html").exists()


def test_a_page_is_read_beside_its_output_record(made: Path) -> None:
    record = read_record(made / "out.ome.zarr")
    warned: list[str] = []
    with open_pair(made / "out.ome.zarr", record, None, warned.append) as pair:
        whole = Window(0, 0, 200, 260)
        assert np.array_equal(pair.before.read_plane(Spot(0, 1, 2), whole), tifffile.imread(made / "in.ome.tif")[1, 3])
    assert not warned
