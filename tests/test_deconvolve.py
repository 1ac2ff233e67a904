"""The main job end to end: what goes in and how it is cut must not show in what comes out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from mrbcr_cli.images import read_provenance
from tests.helpers import deconvolve, pixels, spots, tiny_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


def write_zarr(path: Path, image: np.ndarray, axes: str, version: int = 3) -> None:
    """A minimal OME-Zarr without the help of the tool's own writer."""
    group = zarr.create_group(path, zarr_format=version)
    chunks = tuple(min(n, 64) if k >= image.ndim - 2 else 1 for k, n in enumerate(image.shape))
    group.create_array("0", data=image, chunks=chunks)
    multiscale = {
        "axes": [{"name": a.lower(), "type": {"T": "time", "C": "channel"}.get(a, "space")} for a in axes],
        "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0] * len(axes)}]}],
        "version": "0.4",
    }
    group.attrs.update(
        {"ome": {"version": "0.5", "multiscales": [multiscale]}} if version == 3 else {"multiscales": [multiscale]}
    )


def test_tiff_and_zarr_give_the_same_pixels(tmp_path: Path, weights: Path) -> None:
    image = spots((2, 3, 130, 171))
    tifffile.imwrite(tmp_path / "a.ome.tif", image, metadata={"axes": "CZYX"}, tile=(64, 64), compression="zlib")
    tifffile.imwrite(tmp_path / "b.tif", image.transpose(1, 0, 2, 3), imagej=True, metadata={"axes": "ZCYX"})
    write_zarr(tmp_path / "c.zarr", image, "CZYX")
    write_zarr(tmp_path / "d.zarr", image, "CZYX", version=2)
    results = {}
    for name in ("a.ome.tif", "b.tif", "c.zarr", "d.zarr"):
        output = tmp_path / f"out_{name}.ome.zarr"
        assert deconvolve(tmp_path / name, "-o", output, "-m", weights, "-q") == 0
        results[name] = pixels(output)
    assert results["a.ome.tif"].shape == image.shape
    assert not np.array_equal(results["a.ome.tif"], image)
    for name, result in results.items():
        assert np.array_equal(result, results["a.ome.tif"]), name


@pytest.mark.parametrize("suffix", [".ome.zarr", ".ome.tif"])
def test_workers_and_tiles_do_not_show(tmp_path: Path, weights: Path, suffix: str) -> None:
    tifffile.imwrite(tmp_path / "in.tif", spots((2, 333, 301)), metadata={"axes": "ZYX"})
    args = (tmp_path / "in.tif", "-m", weights, "-q", "--output-dtype", "float32")
    results = []
    for k, extra in enumerate(([], ["--workers", 1], ["--workers", 2, "--tile-size", 128], ["--tile-size", 104])):
        output = tmp_path / f"out{k}{suffix}"
        assert deconvolve(*args, "-o", output, *extra) == 0
        results.append(pixels(output))
    assert np.array_equal(results[0], results[1])
    spread = float(np.ptp(results[0]))
    for result in results[2:]:
        assert np.abs(result - results[0]).max() <= 2e-6 * spread


def test_same_tiles_give_the_same_bytes_with_one_and_two_workers(tmp_path: Path, weights: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", spots((2, 260, 260)), metadata={"axes": "ZYX"})
    for workers in (1, 2):
        output = tmp_path / f"{workers}.ome.zarr"
        extra = ("--workers", workers, "--tile-size", 128, "--output-dtype", "float32", "-q")
        assert deconvolve(tmp_path / "in.tif", "-o", output, "-m", weights, *extra) == 0
    assert np.array_equal(pixels(tmp_path / "1.ome.zarr"), pixels(tmp_path / "2.ome.zarr"))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "float64", ">u2", "int8"])
def test_dtype_survives(tmp_path: Path, weights: Path, dtype: str) -> None:
    image = spots((96, 80)).clip(0, 120).astype(np.dtype(dtype).newbyteorder("="))
    tifffile.imwrite(tmp_path / "in.tif", image, byteorder=">" if dtype.startswith(">") else "<")
    assert deconvolve(tmp_path / "in.tif", "-o", tmp_path / "out.ome.zarr", "-m", weights, "-q") == 0
    result = pixels(tmp_path / "out.ome.zarr")
    assert result.dtype == image.dtype
    assert result.shape == image.shape
    # The random network is no deconvolution, but it starts from y: the picture must still be there.
    assert np.corrcoef(result.ravel().astype(float), image.ravel().astype(float))[0, 1] > 0.5


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (7, 5), (16, 16), (33, 17)])
def test_images_smaller_than_the_network_go_through(tmp_path: Path, weights: Path, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 1000, shape).astype(np.uint16)
    tifffile.imwrite(tmp_path / "in.tif", image, photometric="minisblack")
    assert deconvolve(tmp_path / "in.tif", "-o", tmp_path / "o.ome.zarr", "-m", weights, "-q", "--axes", "YX") == 0
    assert pixels(tmp_path / "o.ome.zarr").shape == shape


def test_a_constant_image_stays_constant_with_a_silent_network(tmp_path: Path, weights: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", np.full((64, 64), 7, np.uint16))
    assert deconvolve(tmp_path / "in.tif", "-o", tmp_path / "o.ome.zarr", "-m", weights, "-q") == 0
    note = " ".join(read_provenance(tmp_path / "o.ome.zarr")["notes"])
    assert "equal" in note


def test_intensities_scale_with_the_input(tmp_path: Path, weights: Path) -> None:
    image = spots((128, 128)).astype(np.float32)
    for name, values in (("a", image), ("b", 10 * image + 500)):
        tifffile.imwrite(tmp_path / f"{name}.tif", values)
        assert deconvolve(tmp_path / f"{name}.tif", "-o", tmp_path / f"{name}.ome.zarr", "-m", weights, "-q") == 0
    a, b = pixels(tmp_path / "a.ome.zarr"), pixels(tmp_path / "b.ome.zarr")
    assert np.abs((b - 500) / 10 - a).max() <= 1e-4 * np.ptp(a)


def test_selection_equals_cutting_the_whole(tmp_path: Path, weights: Path) -> None:
    image = spots((3, 4, 5, 70, 64))
    tifffile.imwrite(tmp_path / "in.ome.tif", image, metadata={"axes": "TCZYX"})
    common = ("-m", weights, "-q", "--range", 100, 2000, "--output-dtype", "float32")
    assert deconvolve(tmp_path / "in.ome.tif", "-o", tmp_path / "all.ome.zarr", *common) == 0
    chosen = ("--channels", "3,1", "--z", "1:4", "--t", "-1")
    assert deconvolve(tmp_path / "in.ome.tif", "-o", tmp_path / "some.ome.zarr", *common, *chosen) == 0
    whole, some = pixels(tmp_path / "all.ome.zarr"), pixels(tmp_path / "some.ome.zarr")
    assert np.array_equal(some, whole[2:3, [3, 1], 1:4])


def test_each_channel_can_have_its_own_model(tmp_path: Path, weights: Path) -> None:
    other = tiny_weights(tmp_path / "other.safetensors", seed=5, name="other")
    image = spots((2, 80, 80))
    tifffile.imwrite(tmp_path / "in.ome.tif", image, metadata={"axes": "CYX"})
    common = (tmp_path / "in.ome.tif", "-q", "--range", 100, 2000)
    assert deconvolve(*common, "-o", tmp_path / "a.ome.zarr", "-m", weights) == 0
    assert deconvolve(*common, "-o", tmp_path / "b.ome.zarr", "-m", other) == 0
    assert deconvolve(*common, "-o", tmp_path / "mix.ome.zarr", "-m", f"0={weights}", "-m", f"1={other}") == 0
    a, b, mix = (pixels(tmp_path / f"{n}.ome.zarr") for n in ("a", "b", "mix"))
    assert np.array_equal(mix[0], a[0])
    assert np.array_equal(mix[1], b[1])
    assert not np.array_equal(a[1], b[1])


def test_scale_names_and_source_xml_survive_both_ways(tmp_path: Path, weights: Path) -> None:
    from mrbcr_cli.images import find_source, open_source

    meta = {
        "axes": "CZYX",
        "PhysicalSizeX": 0.13,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": 0.13,
        "PhysicalSizeYUnit": "µm",
        "PhysicalSizeZ": 290.0,
        "PhysicalSizeZUnit": "nm",
        "Channel": {"Name": ["DAPI", "GFP"]},
    }
    tifffile.imwrite(tmp_path / "in.ome.tif", spots((2, 3, 64, 64)), metadata=meta)
    with tifffile.TiffFile(tmp_path / "in.ome.tif") as tif:
        xml = tif.ome_metadata
    assert deconvolve(tmp_path / "in.ome.tif", "-o", tmp_path / "a.ome.zarr", "-m", weights, "-q") == 0
    assert deconvolve(tmp_path / "a.ome.zarr", "-o", tmp_path / "b.ome.tif", "-m", weights, "-q") == 0
    for name in ("in.ome.tif", "a.ome.zarr", "b.ome.tif"):
        reader = open_source(find_source(str(tmp_path / name)))
        info = reader.info
        reader.close()
        in_um = [s * {"nanometer": 1e-3}.get(u, 1.0) for s, u in zip(info.scale[1:], info.units[1:], strict=True)]
        assert in_um == pytest.approx([0.29, 0.13, 0.13]), name
        assert info.channel_names == ("DAPI", "GFP"), name
    assert (tmp_path / "a.ome.zarr" / "OME" / "METADATA.ome.xml").read_text() == xml


def test_provenance_says_how_it_was_made(tmp_path: Path, weights: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", spots((64, 64)))
    for name in ("o.ome.zarr", "o.ome.tif"):
        assert deconvolve(tmp_path / "in.tif", "-o", tmp_path / name, "-m", weights, "-q") == 0
        record = read_provenance(tmp_path / name)
        assert record["channels"][0]["weights_sha256"]
        assert record["channels"][0]["range"]["low"] < record["channels"][0]["range"]["high"]
        assert record["input"]["name"] == "in.tif"
        assert "clipped_fraction" in record


def test_clipping_is_counted(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite(tmp_path / "in.tif", spots((64, 64), dtype="float32") - 500)
    args = (tmp_path / "in.tif", "-o", tmp_path / "o.ome.zarr", "-m", weights, "--output-dtype", "uint8", "--json")
    assert deconvolve(*args) == 0
    done = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert done["event"] == "done"
    assert 0.5 < done["clipped_fraction"] <= 1
    assert pixels(tmp_path / "o.ome.zarr").min() == 0


@pytest.mark.parametrize("policy", ["zero", "keep"])
def test_nan_goes_through_when_asked(tmp_path: Path, weights: Path, policy: str) -> None:
    image = spots((64, 64)).astype(np.float32)
    image[3, 4], image[20, 5] = np.nan, np.inf
    tifffile.imwrite(tmp_path / "in.tif", image)
    args = (tmp_path / "in.tif", "-o", tmp_path / "o.ome.zarr", "-m", weights, "-q", "--nan-policy", policy)
    assert deconvolve(*args) == 0
    result = pixels(tmp_path / "o.ome.zarr")
    assert int((~np.isfinite(result)).sum()) == (2 if policy == "keep" else 0)
    assert read_provenance(tmp_path / "o.ome.zarr")["non_finite"] == 2


def test_a_folder_of_planes_is_one_stack(tmp_path: Path, weights: Path) -> None:
    stack = spots((4, 50, 60))
    (tmp_path / "planes").mkdir()
    for k, plane in enumerate(stack):
        tifffile.imwrite(
            tmp_path / "planes" / f"p{k + 8}.tif", plane, photometric="minisblack"
        )  # p8 p9 p10 p11: natural order
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack", metadata={"axes": "ZYX"})
    for name, source in (
        ("a", tmp_path / "planes"),
        ("b", tmp_path / "stack.tif"),
        ("c", tmp_path / "planes" / "*.tif"),
    ):
        assert deconvolve(source, "-o", tmp_path / f"{name}.ome.zarr", "-m", weights, "-q") == 0
    assert np.array_equal(pixels(tmp_path / "a.ome.zarr"), pixels(tmp_path / "b.ome.zarr"))
    assert np.array_equal(pixels(tmp_path / "a.ome.zarr"), pixels(tmp_path / "c.ome.zarr"))


def test_several_inputs_go_on_past_a_broken_one(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "c"):
        tifffile.imwrite(tmp_path / f"{name}.tif", spots((64, 64)))
    (tmp_path / "b.tif").write_bytes(b"this is no TIFF")
    inputs = [tmp_path / f"{n}.tif" for n in "abc"]
    assert deconvolve(*inputs, "-o", tmp_path / "out", "-m", weights) == 3
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [str(tmp_path / "out" / f"{n}.ome.zarr") for n in "ac"]
    assert "b.tif" in captured.err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.ome.zarr", "c.ome.zarr"]


def test_a_finished_output_is_recognised_and_another_is_not_touched(tmp_path: Path, weights: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", spots((64, 64)))
    other = tiny_weights(tmp_path / "other.safetensors", seed=9)
    for name in ("o.ome.zarr", "o.ome.tif"):
        output = tmp_path / name
        args = (tmp_path / "in.tif", "-o", output, "-q")
        assert deconvolve(*args, "-m", weights) == 0
        before = pixels(output)
        assert deconvolve(*args, "-m", weights) == 0
        assert deconvolve(*args, "-m", weights, "--no-resume") == 2
        assert deconvolve(*args, "-m", other) == 4
        assert np.array_equal(pixels(output), before)
        assert deconvolve(*args, "-m", other, "--overwrite") == 0
        assert not np.array_equal(pixels(output), before)
        assert not output.with_name(output.name + ".partial").exists()


def test_dry_run_writes_nothing(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite(tmp_path / "in.tif", spots((64, 64)))
    before = sorted(tmp_path.rglob("*"))
    assert deconvolve(tmp_path / "in.tif", "-o", tmp_path / "new" / "o.ome.zarr", "-m", weights, "--dry-run") == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert "would write 64x64 YX uint16" in capsys.readouterr().out


def test_yaml_and_options_mean_the_same(tmp_path: Path, weights: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", spots((64, 64)))
    (tmp_path / "run.yaml").write_text(f"model: {weights}\noutput-dtype: float32\nrange: [100, 900]\n")
    assert deconvolve(tmp_path / "in.tif", "-o", tmp_path / "a.ome.zarr", "-q", "-c", tmp_path / "run.yaml") == 0
    options = ("-m", weights, "--output-dtype", "float32", "--range", 100, 900)
    assert deconvolve(tmp_path / "in.tif", "-o", tmp_path / "b.ome.zarr", "-q", *options) == 0
    assert np.array_equal(pixels(tmp_path / "a.ome.zarr"), pixels(tmp_path / "b.ome.zarr"))


@pytest.mark.parametrize("extra", [[], ["--output-format", "ome-zarr-0.4"]])
def test_zarr_output_validates_and_others_read_it(tmp_path: Path, weights: Path, extra: list[str]) -> None:
    import dask.array as da
    import yaozarrs

    image = spots((2, 2, 3, 70, 300))
    tifffile.imwrite(tmp_path / "in.ome.tif", image, metadata={"axes": "TCZYX"})
    output = tmp_path / "o.ome.zarr"
    assert deconvolve(tmp_path / "in.ome.tif", "-o", output, "-m", weights, "-q", *extra) == 0
    yaozarrs.validate_zarr_store(str(output))
    assert np.array_equal(da.from_zarr(str(output / "0")).compute(), pixels(output))


def test_tiff_output_parses_and_others_read_it(tmp_path: Path, weights: Path) -> None:
    import ome_types

    image = spots((2, 2, 3, 70, 90))
    tifffile.imwrite(tmp_path / "in.ome.tif", image, metadata={"axes": "TCZYX", "PhysicalSizeX": 0.1})
    assert deconvolve(tmp_path / "in.ome.tif", "-o", tmp_path / "o.ome.tif", "-m", weights, "-q") == 0
    parsed = ome_types.from_tiff(tmp_path / "o.ome.tif").images[0].pixels
    assert (parsed.size_t, parsed.size_c, parsed.size_z, parsed.size_y, parsed.size_x) == image.shape
    assert parsed.physical_size_x == pytest.approx(0.1)
    assert tifffile.imread(tmp_path / "o.ome.tif").shape == image.shape
