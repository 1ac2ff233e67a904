"""How blocks are cut, and what is remembered of a machine, change how fast a run is and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from mrbcr_cli import capacity, measure
from mrbcr_cli.cli import run
from mrbcr_cli.measure import TileSpeed, cache_file, measured, with_measured
from mrbcr_cli.settings import DeconvolveSettings
from tests.helpers import deconvolve, pixels, spots, tiny_weights


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MRBCR_CACHE_DIR", str(tmp_path / "cache"))
    return tiny_weights(tmp_path / "tiny.safetensors")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    tifffile.imwrite(tmp_path / "in.tif", spots((2, 1200, 400)), metadata={"axes": "ZYX"}, photometric="minisblack")
    return tmp_path / "in.tif"


def plan_of(image: Path, weights: Path, capsys: pytest.CaptureFixture[str], *more: object) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["info", str(image), "--plan", "-m", str(weights), "--json", *map(str, more)]) == 0
    plan: dict[str, Any] = json.loads(capsys.readouterr().out)["plan"]
    return plan


def test_what_is_measured_is_used_and_changes_no_pixel(
    tmp_path: Path, weights: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deconvolve(image, "-o", tmp_path / "before.ome.zarr", "-m", weights, "-q") == 0
    before = plan_of(image, weights, capsys)
    monkeypatch.setattr(measure, "TILES_PX", (128, 304))
    monkeypatch.setattr(measure, "_seconds", lambda _, shape, *__: 1.0 if shape[1] < 400 else 100.0)
    plan = plan_of(image, weights, capsys, "--measure")
    assert [row["tile_px"] for row in plan["measured"]] == [128, 304]
    assert plan["measured"][0]["megapixels_per_s"] > plan["measured"][1]["megapixels_per_s"]
    assert max(plan["block_shape"][1:]) <= 128 < max(before["block_shape"][1:])
    assert plan_of(image, weights, capsys)["block_shape"] == plan["block_shape"]
    assert max(plan_of(image, weights, capsys, "--tile-size", 304)["block_shape"][1:]) == 304
    assert deconvolve(image, "-o", tmp_path / "after.ome.zarr", "-m", weights, "-q") == 0
    assert np.abs(pixels(tmp_path / "after.ome.zarr").astype(int) - pixels(tmp_path / "before.ome.zarr")).max() <= 1


def test_it_really_measures(weights: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "TILES_PX", (64, 128))
    said: list[str] = []
    settings = DeconvolveSettings(model=(str(weights),))
    from mrbcr_cli.images import find_source
    from mrbcr_cli.plan import make_plan

    spec: Any = make_plan(find_source(str(image)), settings, "ome-zarr").methods[0].spec
    speeds = measure.measure(settings, spec, said.append)
    assert len(said) == len(speeds) == 2
    assert speeds[0].megapixels_per_s >= speeds[1].megapixels_per_s > 0
    assert measured(settings) == speeds[0]


def test_what_is_remembered_is_of_this_model_precision_and_machine(weights: Path, tmp_path: Path) -> None:
    settings = DeconvolveSettings(model=(str(weights),))
    measure._remember(settings, [TileSpeed(1536, 1, 2.0), TileSpeed(512, 1, 1.0)])
    assert with_measured(settings) == (settings, 1536)
    other = tiny_weights(tmp_path / "other.safetensors", seed=1)
    for unlike in (
        settings.model_copy(update={"precision": "bf16"}),
        settings.model_copy(update={"tile_size": 256}),
        settings.model_copy(update={"model": (str(other),)}),
        settings.model_copy(update={"method": "wiener"}),
    ):
        assert measured(unlike) is None
    measure._remember(settings.model_copy(update={"precision": "bf16"}), [TileSpeed(512, 1, 3.0)])
    assert with_measured(settings)[1] == 1536  # one does not drop the other


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"format": 1}', '{"format": 1, "machines": 3}', '{"format": 9}', "[" * 9999]
)
def test_a_damaged_record_is_none(weights: Path, text: str) -> None:
    settings = DeconvolveSettings(model=(str(weights),))
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text(text)
    assert measured(settings) is None
    measure._remember(settings, [TileSpeed(512, 1, 1.0)])
    assert measured(settings) == TileSpeed(512, 1, 1.0)


def test_a_cache_that_cannot_be_written_is_an_error(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    monkeypatch.setenv("MRBCR_CACHE_DIR", str(blocker / "cache"))
    monkeypatch.setattr(measure, "TILES_PX", (64,))
    assert run(["info", str(image), "--measure"]) == 2
    assert "MRBCR_CACHE_DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shape", "bytes_per_voxel", "blocks"),
    [
        ((1, 2048, 2048), 100, (2048, 2048)),
        ((1, 2048, 2048), 168, (1024, 2048)),
        ((1, 9000, 9000), 168, (1000, 1800)),
        ((1, 9000, 300), 168, (1800, 304)),
        ((1, 2048, 2048), 900, (512, 512)),
        ((1, 2048, 2048), 1250, (512, 512)),
        ((1, 2048, 2048), 2500, (256, 512)),
    ],
)
def test_blocks_are_kept_to_a_size_and_halved_before_they_are_quartered(
    shape: tuple[int, int, int], bytes_per_voxel: int, blocks: tuple[int, int]
) -> None:
    from mrbcr_cli.images.base import ImageInfo

    info: Any = ImageInfo.__new__(ImageInfo)
    for name, value in (("axes", "ZYX"), ("shape", shape)):
        object.__setattr__(info, name, value)
    needs = capacity.Needs(8, (0, 96, 96), bytes_per_voxel)
    settings = DeconvolveSettings(device="cpu")
    grid = capacity.choose_grid(settings, info, needs, shape, (0, 0, 0), {})
    assert grid.block_shape == (1, *blocks)
    need = capacity.block_bytes(info, needs, grid.block_shape)
    together = need * capacity.share_out(settings, info, needs, grid).workers
    assert together <= 500_000_000 * max(2, capacity.cpu_count())
    larger = capacity.choose_grid(settings, info, needs, shape, (0, 0, 0), {}, preferred_px=2048)
    assert larger.block_shape[2] >= grid.block_shape[2]


@pytest.mark.parametrize("cores", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(("bytes_per_voxel", "at_once"), [(168, lambda cores: cores), (1250, lambda cores: cores // 2)])
def test_hungry_blocks_run_half_as_many_at_once_and_no_core_idles(
    cores: int, bytes_per_voxel: int, at_once: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mrbcr_cli.images.base import ImageInfo

    monkeypatch.setattr(capacity, "cpu_count", lambda: cores)
    monkeypatch.setattr(capacity, "available_memory_bytes", lambda: 10**12)
    info: Any = ImageInfo.__new__(ImageInfo)
    for name, value in (("axes", "ZYX"), ("shape", (64, 2048, 2048))):
        object.__setattr__(info, name, value)
    needs, settings = capacity.Needs(8, (0, 112, 112), bytes_per_voxel), DeconvolveSettings(device="cpu")
    grid = capacity.choose_grid(settings, info, needs, (64, 2048, 2048), (0, 0, 0), {})
    share = capacity.share_out(settings, info, needs, grid)
    assert share.workers == max(1, at_once(cores))
    assert share.torch_threads == cores // share.workers
    assert share.workers * share.bytes_per_block <= 500_000_000 * max(cores, 2)


@pytest.mark.parametrize(("off", "used"), [(0.0, True), (0.1, False), (None, False)])
def test_graphs_are_used_where_they_are_faster_and_do_the_same(
    off: float | None, used: bool, weights: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a method in place of the network: what stands for graphs is off by so much, or fails."""
    from mrbcr_cli.images import find_source
    from mrbcr_cli.plan import make_plan

    settings = DeconvolveSettings(model=(str(weights),))
    source = find_source(str(image))
    plain: Any = make_plan(source, settings, "ome-zarr").methods[0]

    class Graphs:
        alignment_px, halo_zyx, bytes_per_voxel = 8, (0, 16, 16), 100

        def __init__(self, spec: Any) -> None:
            self.graphs = spec.graphs

        def restore(self, block: Any, *_: object) -> Any:
            if self.graphs and off is None:
                raise RuntimeError("operation not permitted when stream is capturing")
            return block + (off if self.graphs else 0.0)

    with monkeypatch.context() as patch:
        patch.setattr(measure, "on_gpu", lambda _: True)
        patch.setattr(measure, "method_for", Graphs)
        patch.setattr(measure, "TILES_PX", (64,))
        patch.setattr(measure, "BATCHES_ON_GPU", (1,))
        patch.setattr(measure, "_seconds", lambda method, *_: 0.5 if method.graphs else 1.0)
        said: list[str] = []
        found = measure.measure(settings, plain.spec, said.append)
        best = measured(settings)
    assert [speed.graphs for speed in found] == ([True, False] if used else [False])
    assert best == found[0]
    assert used or "not used" in said[-1]
    monkeypatch.setattr(measure, "measured", lambda _: best)
    method: Any = make_plan(source, settings, "ome-zarr").methods[0]
    assert method.spec.graphs is used
    assert method.fingerprint == plain.fingerprint, "they change no pixel, so a run may go on with or without them"
