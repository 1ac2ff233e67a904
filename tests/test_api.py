"""Python use: arrays give the pixels that files give, however they are held and chunked, and lazily where dask is."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr

import mrbcr_cli
from mrbcr_cli import DomainWarning, InputError, MrbcrWarning, api, list_models
from mrbcr_cli import deconvolve as restore
from mrbcr_cli.images import array
from tests.helpers import deconvolve, pixels, spots, tiny_weights

# The random network of the tests clips many.
pytestmark = pytest.mark.filterwarnings("ignore:.*were clipped:mrbcr_cli.MrbcrWarning")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


def through_files(folder: Path, image: np.ndarray, axes: str, *options: object) -> np.ndarray:
    """What the command line makes of the image."""
    tifffile.imwrite(folder / "in.ome.tif", image, metadata={"axes": axes})
    assert deconvolve(folder / "in.ome.tif", "-o", folder / "out.ome.zarr", "-q", *options) == 0
    return pixels(folder / "out.ome.zarr")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
def test_arrays_and_files_give_the_same_pixels(tmp_path: Path, weights: Path, dtype: str) -> None:
    image = spots((2, 3, 130, 171)).clip(0, 255).astype(dtype)
    expected = through_files(tmp_path, image, "CZYX", "-m", weights)
    result = restore(image, model=weights, axes="CZYX")
    assert result.dtype == image.dtype
    assert np.array_equal(result, expected)


def test_options_mean_what_they_mean_on_the_command_line(tmp_path: Path, weights: Path) -> None:
    image = spots((3, 150, 140))
    options = ("-m", weights, "--channels", "2,0", "--range", 50, 900, "--tile-size", 64, "--output-dtype", "float32")
    expected = through_files(tmp_path, image, "CYX", *options)
    common: dict[str, Any] = {"model": weights, "axes": "CYX", "range": (50, 900), "tile_size": 64}
    for chosen, dtype in (([2, 0], "float32"), ("2,0", np.float32)):
        assert np.array_equal(restore(image, **common, channels=chosen, output_dtype=dtype), expected)
    lazy = restore(da.from_array(image, chunks=(2, 40, 150)), **common, channels=[2, 0], output_dtype="float32")
    assert lazy.chunks == ((1, 1), (40, 40, 40, 30), (140,))
    assert np.array_equal(lazy.compute(), expected)
    each = restore(image, **{**common, "model": {0: weights, 1: str(weights), 2: weights}}, output_dtype="float32")
    assert np.array_equal(each[[2, 0]], expected)


@pytest.mark.parametrize(
    "chunks",
    [(1, 200, 190), (2, 17, 33), (1, 96, 96), (2, (1, 199), (100, 90)), (1, (64, 0, 136), 190), (2, 200, 7)],
    ids=str,
)
def test_the_chunks_of_dask_do_not_show(weights: Path, chunks: Any) -> None:
    image = spots((2, 200, 190))
    whole = restore(image, model=weights, tile_size=64)
    lazy = restore(da.from_array(image, chunks=-1).rechunk(chunks), model=weights, tile_size=64)
    assert lazy.shape == image.shape
    assert lazy.dtype == image.dtype
    assert lazy.chunks == da.from_array(image, chunks=-1).rechunk(chunks).chunks
    assert np.array_equal(lazy.compute(), whole)
    assert np.array_equal(lazy[1, 30:75, 101:].compute(), whole[1, 30:75, 101:])


def test_blocks_do_not_show(weights: Path) -> None:
    image = spots((333, 301)).astype(np.float32)
    whole = restore(image, model=weights)
    for tile in (104, 128):
        assert np.abs(restore(image, model=weights, tile_size=tile) - whole).max() <= 2e-6 * np.ptp(whole)


def test_nothing_is_computed_before_it_is_asked_for(weights: Path) -> None:
    image, asked = spots((2, 160, 160)), []

    def source(block: np.ndarray) -> np.ndarray:
        asked.append(block.shape)
        return block

    lazy = restore(da.from_array(image, chunks=(1, 80, 80)).map_blocks(source, meta=image), model=weights)
    assert asked == []
    assert np.array_equal(lazy.compute(), restore(image, model=weights))
    assert len(asked) == 16  # every chunk twice: once for the ranges, once for the blocks


def test_a_part_needs_the_chunks_under_it_alone(weights: Path) -> None:
    lazy = restore(da.from_array(spots((5, 400, 64)), chunks=(1, 50, 64)), model=weights, tile_size=64)
    lazy = lazy.rechunk(lazy.chunks)
    graph = dask.optimize(lazy[2, 100:110])[0].__dask_graph__()
    read = [key for key in dict(graph) if isinstance(key, tuple) and str(key[0]).startswith("array-")]
    assert all(key[1] == 2 for key in read)
    assert len(read) < 8


def test_graphs_travel_to_other_processes(weights: Path) -> None:
    import cloudpickle

    image = spots((2, 100, 90))
    lazy = restore(da.from_array(image, chunks=(1, 64, 50)), model=weights)
    again = cloudpickle.loads(cloudpickle.dumps(lazy))
    assert np.array_equal(again.compute(scheduler="synchronous"), restore(image, model=weights))
    assert lazy.name == restore(da.from_array(image, chunks=(1, 64, 50)), model=weights).name


@pytest.mark.parametrize("shards", [None, (1, 128, 128)])
def test_zarr_comes_back_lazily_in_whole_files(tmp_path: Path, weights: Path, shards: Any) -> None:
    image = spots((2, 200, 190))
    stored = zarr.create_array(tmp_path / "a.zarr", data=image, chunks=(1, 64, 64), shards=shards)
    lazy = restore(stored, model=weights)
    assert isinstance(lazy, da.Array)
    assert lazy.chunksize == (shards or (1, 64, 64))
    assert np.array_equal(lazy.compute(), restore(image, model=weights))


@pytest.mark.parametrize("axes", ["YXC", "XCY", "CYX"])
def test_axes_come_in_any_order(weights: Path, axes: str) -> None:
    image = spots((2, 70, 60))
    expected = restore(image, axes="CYX", model=weights)
    order = ["CYX".index(axis) for axis in axes]
    turned = image.transpose(order)
    assert np.array_equal(restore(turned, axes=axes.lower(), model=weights), expected.transpose(order))
    lazy = restore(da.from_array(turned, chunks=20), axes=axes, model=weights)
    assert lazy.chunksize == (20 if turned.shape[0] > 2 else 2, 20 if turned.shape[1] > 2 else 2, lazy.chunksize[2])
    assert np.array_equal(lazy.compute(), expected.transpose(order))
    assert np.array_equal(
        restore(image.byteswap().view(image.dtype.newbyteorder()), axes="CYX", model=weights), expected
    )


@pytest.mark.filterwarnings("ignore:Voxel size .* unknown:mrbcr_cli.MrbcrWarning")
def test_explicit_methods_take_a_psf_of_memory_or_disk(tmp_path: Path) -> None:
    image = spots((120, 110))
    y, x = np.mgrid[-7:8, -7:8]
    psf = np.exp(-(x**2 + y**2) / 8).astype(np.float32)
    np.save(tmp_path / "psf.npy", psf)
    chosen = ("--method", "richardson-lucy", "--psf", tmp_path / "psf.npy", "--iterations", 5, "--background", 90)
    expected = through_files(tmp_path, image, "YX", *chosen)
    more: dict[str, Any] = {"method": "richardson-lucy", "iterations": 5, "background": 90}
    for given in (psf, tmp_path / "psf.npy"):
        assert np.array_equal(restore(image, psf=given, **more), expected)
    assert np.array_equal(restore(da.from_array(image, chunks=50), psf=psf, **more).compute(), expected)
    lazy = restore(da.from_array(image, chunks=50), method="wiener", psf=psf, balance=0.01)
    assert np.array_equal(lazy.compute(), restore(image, method="wiener", psf=psf, balance=0.01))


def test_what_a_user_must_know_is_a_warning_of_its_own(tmp_path: Path) -> None:
    limits = {"fwhm_px": [2.0, 6.0], "photons": [20.0, 5000.0]}
    judged = tiny_weights(tmp_path / "judged.safetensors", limits=limits)
    noise = np.random.default_rng(0).poisson(100, (128, 128)).astype(np.uint16)
    with pytest.warns(DomainWarning, match="channel 0"):
        restore(noise, model=judged)
    lazy = restore(da.from_array(noise, chunks=64), model=judged)
    with pytest.warns(DomainWarning, match="channel 0"):
        lazy.compute(scheduler="synchronous")
    restore(noise, model=judged, domain_check=False)
    with pytest.warns(MrbcrWarning, match="all pixels seen are equal"):
        restore(np.full((64, 64), 7, np.uint16), model=judged, domain_check=False)
    with pytest.warns(MrbcrWarning, match="clipped"):
        restore(spots((64, 64), dtype="float32") - 500, model=judged, domain_check=False, output_dtype="uint8")


def test_what_cannot_be_done_is_said(weights: Path) -> None:
    image = spots((64, 64))
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        ("cells.tif", {}, "mrbcr deconvolve FILE"),
        (np.zeros((2, 3, 64, 64)), {}, "axes='CZYX'"),
        (np.zeros((64, 64, 3), np.uint8), {}, "looks like colour"),
        (np.zeros((64, 64), bool), {}, "no intensities"),
        (np.zeros((0, 64)), {}, "no pixels"),
        (np.ma.masked_less(image, 100), {}, "mask"),
        (image, {"axes": "ZYX"}, "letters"),
        (image, {"axes": "QX"}, "unknown"),
        (image, {"model": "nonesuch"}, "nonesuch"),
        (image, {"tile_size": 33}, "multiple"),
        (image, {"channels": 1}, "--channels 1"),
        (image, {"range": (5, 5)}, "LOW < HIGH"),
        (image, {"pixel_um": -1.0}, "pixel_um"),
        (image, {"method": "richardson-lucy"}, "--psf"),
        (image, {"iterations": 3}, "iterations"),
        (da.from_array(image), {"method": "blind"}, "lazy"),
        (da.from_array(image), {"method": "wiener", "psf": np.ones((3, 3))}, "balance="),
        (da.from_array(image), {"progress": print}, "ProgressBar"),
    ]
    for given, options, said in wrong:
        if "method" not in options and "model" not in options:
            options["model"] = weights
        with pytest.raises(InputError, match=said):
            restore(given, **options)
    bad = image.astype(np.float32)
    bad[3, 4] = np.nan
    with pytest.raises(InputError, match="NaN"):
        restore(bad, model=weights)
    lazy = restore(da.from_array(bad), model=weights)
    with pytest.raises(InputError, match="NaN"):
        lazy.compute()
    kept = restore(bad, model=weights, nan_policy="keep")
    assert int(np.isnan(kept).sum()) == 1


def test_progress_is_told(weights: Path) -> None:
    told: list[tuple[int, int]] = []
    restore(spots((2, 100, 90)), model=weights, tile_size=64, progress=lambda done, total: told.append((done, total)))
    assert told == [(k + 1, 8) for k in range(8)]


def test_the_process_is_left_as_it_was(weights: Path) -> None:
    import torch

    before, image = torch.get_num_threads(), spots((100, 100))
    untouched = image.copy()
    restore(image, model=weights, tile_size=64, workers=2)
    assert torch.get_num_threads() == before
    assert np.array_equal(image, untouched)


def test_the_package_is_cheap_and_its_function_is_no_module() -> None:
    program = (
        "import sys, mrbcr_cli; assert not {'numpy', 'torch', 'typer'} & set(sys.modules), 'heavy'; "
        "import mrbcr_cli.batch, mrbcr_cli.cli, mrbcr_cli.cli_deconvolve; from mrbcr_cli import deconvolve; "
        "assert callable(deconvolve) and deconvolve.__module__ == 'mrbcr_cli.api'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])
    assert set(mrbcr_cli.__all__) <= set(dir(mrbcr_cli))
    assert "widefield" in list_models()
    with pytest.raises(AttributeError, match="nonesuch"):
        _ = mrbcr_cli.nonesuch  # type: ignore[attr-defined]


def test_the_example_runs() -> None:
    found = doctest.testmod(api)
    assert found.attempted >= 5
    assert found.failed == 0


def test_the_options_are_those_of_the_function() -> None:
    parameters = dict(inspect.signature(restore).parameters)
    del parameters["image"]
    assert list(parameters) == list(api.Options.__annotations__) or set(parameters) == set(api.Options.__annotations__)


@pytest.mark.slow
def test_types_tell_lazy_from_done(tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(
        "from typing import Any\n"
        "import dask.array as da, numpy as np, zarr\n"
        "from numpy.typing import NDArray\n"
        "from mrbcr_cli import deconvolve\n"
        "def use(a: NDArray[np.uint16], b: da.Array, c: zarr.Array[Any]) -> None:\n"
        "    reveal_type(deconvolve(a, tile_size=64))\n"
        "    reveal_type(deconvolve(b, axes='TYX'))\n"
        "    reveal_type(deconvolve(c, channels=[0]))\n"
        "    deconvolve(a, tile_sise=64)\n"
    )
    said = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", "pyproject.toml", str(tmp_path / "use.py")],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    revealed = [line.split('"')[1] for line in said.splitlines() if "Revealed type" in line]
    assert [text.partition("[")[0] for text in revealed] == ["numpy.ndarray", *["dask.array.core.Array"] * 2]
    assert "tile_sise" in said


def test_reader_of_arrays_never_copies_what_it_is_not_asked_for() -> None:
    image = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    reader = array.ArrayReader(image, axes="ZYX", pixel_um=(0.3, 0.1, 0.1))
    part = reader.read((slice(1, 2), slice(0, 2), slice(1, 3)))
    assert np.array_equal(part, image[1:2, :2, 1:3])
    assert reader.info.scale == (0.3, 0.1, 0.1)
    with pytest.raises(ValueError, match="outside"):
        reader.read((slice(0, 3), slice(0, 2), slice(1, 3)))
