"""Bad input: one clear line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from mrbcr_cli.cli import run
from tests.helpers import card, deconvolve, spots, tiny_weights


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "w").mkdir()
    return tiny_weights(tmp_path / "w" / "tiny.safetensors")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    tifffile.imwrite(tmp_path / "in.tif", spots((64, 72)))
    return tmp_path / "in.tif"


def refused(capsys: pytest.CaptureFixture[str], output: Path, *arguments: object, code: int = 2) -> str:
    """Run, check exit code, brevity and that nothing was written; return what was said."""
    before = sorted(output.parent.rglob("*")) if output.parent.exists() else []
    assert deconvolve(*arguments, "-o", output) == code
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note:")]
    assert 1 <= len(said) <= 2, said
    assert said[0].startswith("error: ")
    assert "Traceback" not in " ".join(said)
    after = sorted(output.parent.rglob("*")) if output.parent.exists() else []
    assert after == before
    return " ".join(said)


def test_missing_file(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.tif" in refused(capsys, tmp_path / "o.ome.zarr", tmp_path / "nowhere.tif", "-m", weights)


def test_folder_without_images(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("hello")
    assert "no TIFF" in refused(capsys, tmp_path / "o.ome.zarr", tmp_path / "empty", "-m", weights)


def test_pattern_that_matches_nothing(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "matches" in refused(capsys, tmp_path / "o.ome.zarr", tmp_path / "*.tiff", "-m", weights)


@pytest.mark.parametrize("part", [0, 4, 100, 0.5, 0.99])
def test_truncated_tiff(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], part: float) -> None:
    tifffile.imwrite(tmp_path / "whole.tif", spots((5, 64, 64)), photometric="minisblack", tile=(32, 32))
    data = (tmp_path / "whole.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: int(part * len(data)) if 0 < part < 1 else int(part)])
    assert "cut.tif" in refused(capsys, tmp_path / "o.ome.zarr", tmp_path / "cut.tif", "-m", weights)


@pytest.mark.parametrize("suffix", [".czi", ".dv", ".nd2", ".lif", ".ims", ".oir"])
def test_foreign_formats(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(b"x" * 100)
    assert "bioformats2raw" in refused(capsys, tmp_path / "o.ome.zarr", tmp_path / f"a{suffix}", "-m", weights)


def test_foreign_formats_without_the_extra(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for suffix, name in ((".czi", "Zeiss CZI"), (".nd2", "Nikon ND2"), (".lif", "Leica LIF"), (".dv", "DeltaVision")):
        (tmp_path / f"a{suffix}").write_bytes(b"x" * 100)
        said = refused(capsys, tmp_path / "o.ome.zarr", tmp_path / f"a{suffix}", "-m", weights)
        assert f"reading {name} needs an extra: pip install 'mrbcr[formats]'" in said
        assert f"bioformats2raw a{suffix} a.zarr" in said


def test_rgb(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    assert "--split-rgb" in refused(capsys, tmp_path / "o.ome.zarr", tmp_path / "rgb.tif", "-m", weights)


@pytest.mark.parametrize("dtype", ["complex64", "bool"])
def test_dtypes_that_are_no_intensities(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    tifffile.imwrite(tmp_path / "in.tif", np.zeros((32, 32), dtype))
    zarr.create_array(tmp_path / "in.zarr", data=np.zeros((32, 32), dtype))
    for name in ("in.tif", "in.zarr"):
        refused(capsys, tmp_path / "o.ome.zarr", tmp_path / name, "-m", weights)


def test_axis_of_no_length(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zarr.create_array(tmp_path / "in.zarr", shape=(0, 32, 32), dtype="u2", chunks=(1, 32, 32))
    refused(capsys, tmp_path / "o.ome.zarr", tmp_path / "in.zarr", "-m", weights, "--axes", "ZYX")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_a_number(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], value: float) -> None:
    image = spots((64, 64)).astype(np.float32)
    image[10, 10] = value
    tifffile.imwrite(tmp_path / "in.tif", image)
    assert "--nan-policy" in refused(capsys, tmp_path / "o.ome.zarr", tmp_path / "in.tif", "-m", weights)
    # With a fixed range nothing is surveyed: the block finds it, and still nothing is left behind.
    fixed = ("-m", weights, "--range", 0, 1000)
    assert "--nan-policy" in refused(capsys, tmp_path / "o.ome.zarr", tmp_path / "in.tif", *fixed)


@pytest.mark.parametrize("axes", ["QYX", "ZYY", "ZX", "", "TCZYX", "YXX"])
def test_axis_letters(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], axes: str) -> None:
    tifffile.imwrite(tmp_path / "in.tif", spots((5, 32, 32)), photometric="minisblack")
    assert "axes" in refused(capsys, tmp_path / "o.ome.zarr", tmp_path / "in.tif", "-m", weights, "--axes", axes)


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        (["-m", "3=TINY"], "numbered from 0"),
        (["-m", "0=TINY", "-m", "0=TINY"], "two models"),
        (["-m", "nosuchmodel"], "nosuchmodel"),
        (["-m", "TINY", "--tile-size", "-256"], "tile-size"),
        (["-m", "TINY", "--tile-size", "100"], "multiple of 8"),
        (["-m", "TINY", "--tile-size", "0"], "tile-size"),
        (["-m", "TINY", "--tile-overlap", "13"], "multiple of 8"),
        (["-m", "TINY", "--tile-overlap", "-8"], "tile-overlap"),
        (["-m", "TINY", "--channels", "1"], "channels"),
        (["-m", "TINY", "--z", "0:0"], "z"),
        (["-m", "TINY", "--z", "a"], "z"),
        (["-m", "TINY", "--range", "5", "5"], "LOW < HIGH"),
        (["-m", "TINY", "--percentiles", "50", "101"], "percentiles"),
        (["-m", "TINY", "--device", "tpu"], "device"),
        (["-m", "TINY", "--device", "cuda:99"], "device"),
        (["-m", "TINY", "--precision", "fp8"], "precision"),
        (["-m", "TINY", "--output-dtype", "complex64"], "output-dtype"),
        (["-m", "TINY", "--method", "magic"], "method"),
        (["-m", "TINY", "--method", "wiener"], "--psf"),
        (["-m", "TINY", "--workers", "0"], "workers"),
        (["-m", "TINY", "--series", "7"], "series"),
        (["-m", "TINY", "--no-such-option"], "no-such-option"),
    ],
)
def test_options(
    tmp_path: Path, image: Path, weights: Path, capsys: pytest.CaptureFixture[str], extra: list[str], word: str
) -> None:
    extra = [text.replace("TINY", str(weights)) for text in extra]
    assert word in refused(capsys, tmp_path / "o.ome.zarr", image, *extra)


def test_weights_of_another_architecture(tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from mrbcr_cli.weights import save_weights

    save_weights(tmp_path / "odd.safetensors", {"some.weight": torch.ones(3)}, card())
    assert "odd.safetensors" in refused(capsys, tmp_path / "o.ome.zarr", image, "-m", tmp_path / "odd.safetensors")


def test_truncated_weights(tmp_path: Path, image: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = weights.read_bytes()
    for length in (0, 5, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.safetensors").write_bytes(data[:length])
        refused(capsys, tmp_path / "o.ome.zarr", image, "-m", tmp_path / "cut.safetensors")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl"])
def test_pickles(tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    (tmp_path / f"w{suffix}").write_bytes(b"\x80\x04.")
    said = refused(capsys, tmp_path / "o.ome.zarr", image, "-m", tmp_path / f"w{suffix}")
    assert "code" in said


def test_output_inside_the_input(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zarr.create_array(tmp_path / "in.zarr", data=spots((32, 32)))
    said = refused(capsys, tmp_path / "in.zarr" / "o.ome.zarr", tmp_path / "in.zarr", "-m", weights)
    assert "inside" in said


def test_output_is_the_input(tmp_path: Path, image: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = image.read_bytes()
    refused(capsys, image, image, "-m", weights, "--overwrite")
    assert image.read_bytes() == before


@pytest.mark.parametrize("name", ["o.ome.zarr", "o.tif", "folder.zarr"])
def test_output_exists(
    tmp_path: Path, image: Path, weights: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    output = tmp_path / name
    if name.endswith(".zarr"):
        output.mkdir()
        (output / "precious.txt").write_text("keep me")
    else:
        output.write_bytes(b"precious")
    assert "--overwrite" in refused(capsys, output, image, "-m", weights)
    assert output.exists()


def test_two_inputs_of_one_name(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "same.tif", spots((32, 32)))
    inputs = [tmp_path / f / "same.tif" for f in "ab"]
    assert "same" in refused(capsys, tmp_path / "out", *inputs, "-m", weights)


def test_several_inputs_into_one_file(
    tmp_path: Path, image: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "folder" in refused(capsys, tmp_path / "o.ome.tif", image, image, "-m", weights)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("nosuch: 1\n", "nosuch"),
        ("- a\n", "mapping"),
        ("tile_size: [1\n", "YAML"),
        ("tile_size: many\n", "tile-size"),
        ("x: !!python/object/apply:os.system [true]\n", "YAML"),
    ],
)
def test_configuration(
    tmp_path: Path, image: Path, weights: Path, capsys: pytest.CaptureFixture[str], text: str, word: str
) -> None:
    (tmp_path / "run.yaml").write_text(text)
    assert word in refused(capsys, tmp_path / "o.ome.zarr", image, "-m", weights, "-c", tmp_path / "run.yaml")


def test_unwritable_output_is_exit_3(
    tmp_path: Path, image: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write anywhere: there the call itself is made to fail as the kernel would make it fail."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):
        real = Path.mkdir

        def mkdir(self: Path, *args: object, **kwargs: object) -> None:
            if folder in self.parents:
                raise PermissionError(13, "Permission denied", str(self))
            real(self, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(Path, "mkdir", mkdir)
    assert deconvolve(image, "-o", folder / "o.ome.zarr", "-m", weights, "-q") == 3
    assert "Permission denied" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_full_disk_is_exit_3_and_a_rerun_resumes(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mrbcr_cli.images import omezarr_level

    tifffile.imwrite(tmp_path / "in.tif", spots((6, 64, 64)), photometric="minisblack")
    args = (tmp_path / "in.tif", "-o", tmp_path / "o.ome.zarr", "-m", weights, "-q", "--json", "--workers", 1)
    real, count = omezarr_level.Level.write, 0

    def write(self: object, region: object, block: object) -> str:
        nonlocal count
        count += 1
        if count > 3:
            raise OSError(28, "No space left on device")
        return real(self, region, block)  # type: ignore[arg-type]

    monkeypatch.setattr(omezarr_level.Level, "write", write)
    assert deconvolve(*args) == 3
    captured = capsys.readouterr()
    assert "No space left" in captured.err
    assert captured.out.count('"block"') == 3
    monkeypatch.undo()
    assert deconvolve(*args) == 0
    assert capsys.readouterr().out.count('"event": "block"') == 3


def test_a_block_that_fails_is_named_and_the_others_are_kept(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mrbcr_cli import restore

    tifffile.imwrite(tmp_path / "in.tif", spots((5, 64, 64)), photometric="minisblack")
    args = (tmp_path / "in.tif", "-o", tmp_path / "o.ome.zarr", "-m", weights, "-q", "--json", "--workers", 1)
    real, calls = restore.Restorer.restore, 0

    def fail_third(self: restore.Restorer, *arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls in (3, 6):  # the third block, and its second try at the end of the queue
            raise ValueError("cosmic ray")
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(restore.Restorer, "restore", fail_third)
    code = deconvolve(*args)
    captured = capsys.readouterr()
    monkeypatch.undo()
    if code == 0:  # the retry came at another call: it was mended, which is as good
        assert captured.out.count('"event": "block"') == 5
        return
    assert code == 3
    assert "cosmic ray" in captured.err
    assert deconvolve(*args) == 0
    assert capsys.readouterr().out.count('"event": "block"') == 1


def test_info_of_what_is_no_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.tif").write_bytes(b"II*\0garbage")
    assert run(["info", str(tmp_path / "x.tif")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_no_arguments_show_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert "deconvolve" in capsys.readouterr().out
    assert run(["nosuchcommand"]) == 2
