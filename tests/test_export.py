"""What `mrbcr export` writes: the same pixels in other runtimes, the same weights when read back, or no file at all."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import socket
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from mrbcr_cli.cli import run
from mrbcr_cli.errors import InputError, MrbcrError
from mrbcr_cli.evaluation.networks import EvaluatedNetwork, load_networks
from mrbcr_cli.network.guide import guide_of_batch
from mrbcr_cli.network.halo import blobs_nchw
from mrbcr_cli.network.mrbcr import Mrbcr, MrbcrSettings
from mrbcr_cli.network.published import Published
from mrbcr_cli.network.whole_image import WholeImage
from mrbcr_cli.weights import LoadedWeights, build_network, load_weights, read_weights, save_weights
from mrbcr_cli.weights_package import read_packaged
from tests.helpers import TINY, card, deconvolve, pixels, spots, tiny_weights

SHAPES = ((64, 64), (16, 17), (33, 200), (129, 75), (144, 210))


def counts(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """An image of blobs as a camera counts them."""
    image = blobs_nchw(max(shape), seed)[0, 0, : shape[0], : shape[1]].numpy()
    return np.asarray(100 + 3000 * image).astype(np.uint16)


def of(architecture: str, path: Path) -> Path:
    """Weights of each kind of network that there is."""
    if architecture == "guided":
        return tiny_weights(path)
    torch.manual_seed(3)
    network: Mrbcr | Published
    if architecture == "published":
        network, settings = Published(), {}
    else:
        network = Mrbcr(MrbcrSettings(TINY.alpha, TINY.kt_pairs, TINY.b_pairs, stages=2, guided=False))
        settings = json.loads(json.dumps(network.settings_dict))
    name = {"published": "published"}.get(architecture, "mrbcr")
    save_weights(path, network.state_dict(), card(architecture=name, settings=settings))
    return path


@lru_cache(maxsize=1)
def network_of(weights: Path) -> EvaluatedNetwork:
    return load_networks([str(weights)], "cpu")[0]


def difference(found: np.ndarray, image: np.ndarray, weights: Path) -> float:
    """From what the tool makes of an image, in units of its range."""
    ours = network_of(weights)
    low, high = np.percentile(image, ours.percentiles)
    return float(np.abs(found - ours.restore(image)).max() / (high - low))


@pytest.mark.parametrize("architecture", ["guided", "unguided", "published"])
def test_the_whole_image_network_is_what_deconvolve_does(architecture: str, tmp_path: Path) -> None:
    weights = of(architecture, tmp_path / "w.safetensors")
    module = WholeImage(build_network(load_weights(weights)), (0.1, 99.9)).eval()
    given = [torch.full((1, 2), torch.nan), torch.full((1, 22), torch.nan)][: 1 + (architecture == "guided")]
    for shape in SHAPES[1:4] if architecture == "published" else SHAPES:
        image = counts(shape)
        with torch.no_grad():
            found = module(torch.from_numpy(image.astype(np.float32))[None, None], *given)[0]
        assert difference(found[0, 0].numpy(), image, weights) < 1e-5, shape


@pytest.mark.parametrize("shape", [(64, 64), (300, 200), (20, 90), (1100, 1030)])
def test_its_spectrum_is_the_guide(shape: tuple[int, int]) -> None:
    """Of fewer tiles than are chosen from, of many, and of less than one."""
    from mrbcr_cli.network.whole_image import _Spectrum

    image = blobs_nchw(max(shape), 4)[:, :, : shape[0], : shape[1]]
    assert torch.allclose(_Spectrum()(image), guide_of_batch(image), atol=1.1e-4)


@pytest.mark.parametrize("image", [np.full((20, 20), 7.0), np.eye(64) * (np.arange(64) == 3)])
def test_images_without_contrast_have_the_range_that_deconvolve_gives_them(image: np.ndarray) -> None:
    from mrbcr_cli.intensity import survey_channel
    from mrbcr_cli.network.whole_image import _range_of

    planes = image[None, None]
    wanted = survey_channel(planes.shape, lambda region: planes[region]).range
    (found,) = _range_of(torch.from_numpy(image.astype(np.float32)).flatten()[None], (0.1, 99.9)).tolist()
    assert found == pytest.approx([wanted.low, wanted.high])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("tiny") / "tiny.safetensors")


@pytest.fixture(scope="module")
def drawn_once() -> Iterator[None]:
    """Half a minute of torch for each graph: the tests of this file share it."""
    pytest.importorskip("onnxscript", reason="the extra [export] is not installed")
    from mrbcr_cli import export_onnx

    real, known = export_onnx._traced, {}

    def once(loaded: LoadedWeights) -> Any:
        if loaded.sha256 not in known:
            known[loaded.sha256] = real(loaded)
        return copy.deepcopy(known[loaded.sha256])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_onnx, "_traced", once)
        yield


@pytest.fixture(scope="module")
def onnx_file(tiny: Path, drawn_once: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    assert run(["export", str(tiny), "-o", str(path), "-q"]) == 0
    return path


def session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.slow
def test_onnx_runtime_agrees_at_any_size_and_batch(onnx_file: Path, tiny: Path) -> None:
    runner = session(onnx_file)
    assert [i.name for i in runner.get_inputs()] == ["image"]
    for shape in SHAPES[1:]:
        images = [counts(shape, seed) for seed in range(2)]
        batch = np.stack(images)[:, None].astype(np.float32)
        together = runner.run(["deconvolved"], {"image": batch})[0]
        assert together.shape == batch.shape
        for image, found in zip(images, together[:, 0], strict=True):
            assert difference(found, image, tiny) < 1e-4
            alone = runner.run(["deconvolved"], {"image": image[None, None].astype(np.float32)})[0]
            assert np.abs(alone[0, 0] - found).max() < 1e-4 * np.ptp(found)


@pytest.mark.slow
def test_tiles_that_are_told_the_whole_make_no_seams(onnx_file: Path) -> None:
    runner, halo = session(onnx_file), 96
    image = counts((400, 400))[None, None].astype(np.float32)
    whole, limits, guide = runner.run(None, {"image": image})
    tile = image[..., 200 - halo - 8 :, 200 - halo - 8 :]
    told = runner.run(["deconvolved"], {"image": tile, "range": limits, "guide": guide})[0]
    untold = runner.run(["deconvolved"], {"image": tile})[0]
    inner = whole[..., 200:, 200:]
    errors = [float(np.abs(t[..., halo + 8 :, halo + 8 :] - inner).max() / np.ptp(limits)) for t in (told, untold)]
    assert errors[0] < 1e-5
    assert errors[1] > 1e-3


@pytest.mark.slow
def test_a_file_says_what_it_is_and_holds_the_weights(onnx_file: Path, tiny: Path) -> None:
    import onnx

    from mrbcr_cli.export_onnx import card_of, read_initializers

    data, loaded = onnx_file.read_bytes(), load_weights(tiny)
    known = {entry.key: entry.value for entry in onnx.load_model_from_string(data).metadata_props}
    assert known["name"] == "tiny"
    assert known["licence"] == "MIT"
    assert known["weights_sha256"] == loaded.sha256 == hashlib.sha256(tiny.read_bytes()).hexdigest()
    assert "0.1 and 99.9" in known["normalisation"]
    assert card_of(data) == json.loads(loaded.card.to_json())
    found = read_initializers(data)
    left_out = loaded.state_dict.keys() - found.keys()
    assert all(key.startswith(("scales.1.project", "scales.2.project")) for key in left_out)
    for key in loaded.state_dict.keys() - left_out:
        assert found[key].tobytes() == loaded.state_dict[key].numpy().tobytes(), key
    assert [p.name for p in onnx_file.parent.iterdir()] == ["tiny.onnx"]  # one file, no data beside it


@pytest.mark.slow
def test_the_released_network_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript", reason="the extra [export] is not installed")
    monkeypatch.setattr("mrbcr_cli.export_onnx.CHECKED_SHAPES", ((16, 17), (33, 70)))  # it is a slow one
    weights = of("published", tmp_path / "w.safetensors")
    assert run(["export", str(weights), "-o", str(tmp_path / "w.onnx"), "-q"]) == 0
    image = counts((61, 83))
    found = session(tmp_path / "w.onnx").run(["deconvolved"], {"image": image[None, None].astype(np.float32)})[0]
    assert difference(found[0, 0], image, weights) < 1e-4


@pytest.fixture(scope="module")
def package(tiny: Path, drawn_once: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("bioimageio.core", reason="the extra [export] is not installed")
    from mrbcr_cli.export_package import _need_working_spec

    try:
        _need_working_spec()
    except InputError as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("package") / "tiny.zip"
    assert run(["export", str(tiny), "-o", str(path), "-q", "--author", "Ada Lovelace"]) == 0
    return path


@contextmanager
def leaving_files_open() -> Iterator[None]:
    """bioimageio.spec 0.5.12 leaves the zip open; what complains of that does so at the end of the block."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("the network is not for this")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.slow
def test_a_package_is_valid_and_reproduces_its_test_output(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bioimageio.core import test_model as run_model_test
    from bioimageio.spec import load_model_description

    offline(monkeypatch)
    with leaving_files_open():
        summary = run_model_test(package)
        described = load_model_description(package)
        assert summary.status == "passed", summary.format()
        assert described.validation_summary.status in ("passed", "valid-format")
        assert described.cite[0].doi == "10.1007/978-3-031-73226-3_22"
        assert (str(described.license), described.authors[0].name) == ("MIT", "Ada Lovelace")
        assert described.covers
        del described, summary


@pytest.mark.slow
def test_bioimageio_predicts_what_deconvolve_writes(package: Path, tiny: Path) -> None:
    from bioimageio.core import create_prediction_pipeline
    from bioimageio.core.digest_spec import create_sample_for_model
    from bioimageio.spec import load_model_description

    image = counts((150, 211))
    with leaving_files_open():
        described = load_model_description(package)
        with create_prediction_pipeline(described) as pipeline:
            sample = create_sample_for_model(described, inputs={"image": image[None, None]})
            found = pipeline.predict_sample_without_blocking(sample).members["deconvolved"].data.to_numpy()
        del described, pipeline, sample
    assert difference(found[0, 0], image, tiny) < 1e-4


@pytest.mark.slow
def test_a_package_is_a_model_of_this_tool(package: Path, tiny: Path, tmp_path: Path) -> None:
    assert read_weights(package).data == tiny.read_bytes()
    tifffile.imwrite(tmp_path / "in.tif", spots((80, 90)))
    for name, model in (("a", tiny), ("b", package)):
        assert deconvolve(tmp_path / "in.tif", "-o", tmp_path / f"{name}.ome.tif", "-m", model, "-q") == 0
    assert np.array_equal(pixels(tmp_path / "a.ome.tif"), pixels(tmp_path / "b.ome.tif"))
    assert run(["export", str(package), "-o", str(tmp_path / "back.safetensors"), "-q"]) == 0
    assert (tmp_path / "back.safetensors").read_bytes() == tiny.read_bytes()


def test_wrong_wishes_fail_before_anything_is_computed(tiny: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.onnx"
    there.write_bytes(b"mine")
    for output, more in (
        (there, []),
        (tmp_path / "x.tflite", []),
        (tmp_path / "x.onnx", ["--format", "keras"]),
        (tmp_path / "nowhere" / "x.onnx", []),
    ):
        assert run(["export", str(tiny), "-o", str(output), *more]) == 2
    assert run(["export", "no-such-model", "-o", str(tmp_path / "x.onnx")]) == 2
    assert there.read_bytes() == b"mine"
    assert [p.name for p in tmp_path.iterdir()] == ["there.onnx"]


@pytest.mark.parametrize(("suffix", "missing"), [(".onnx", "onnxscript"), (".zip", "bioimageio.core")])
def test_a_missing_package_is_named_with_the_command(
    suffix: str,
    missing: str,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("bioimageio.core", reason="the extra [export] is not installed")
    monkeypatch.setitem(sys.modules, missing, None)
    assert run(["export", str(tiny), "-o", str(tmp_path / f"x{suffix}"), "-q"]) == 2
    said = capsys.readouterr().err
    assert missing in said
    assert "pip install 'mrbcr[export]'" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_does_not_agree_gets_no_name(
    onnx_file: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mrbcr_cli import export_onnx

    monkeypatch.setattr(export_onnx, "CHECKED_SHAPES", ((33, 70),))
    other = load_weights(tiny_weights(tmp_path / "other.safetensors", seed=9))
    with pytest.raises(MrbcrError, match="differs from mrbcr by"):
        export_onnx.check_onnx(onnx_file.read_bytes(), other)
    monkeypatch.setattr(export_onnx, "LARGEST_DIFFERENCE", 1e-12)
    assert run(["export", str(tiny), "-o", str(tmp_path / "x.onnx"), "-q"]) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["other.safetensors"]


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
        for name, data in members.items():
            package.writestr(name, data)
    return path


def test_zips_that_hold_no_weights_of_ours_are_refused(tmp_path: Path, tiny: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle.zip")
    cases = {
        tmp_path / "pickle.zip": "no pickles",
        zipped(tmp_path / "none.zip", {"rdf.yaml": b"", "weights.onnx": b""}): "holds one",
        zipped(tmp_path / "two.zip", {"a.safetensors": b"", "b.safetensors": b""}): "this one 2",
        zipped(tmp_path / "odd.zip", {"a.safetensors": b"nonsense"}): "safetensors file",
    }
    whole = zipped(tmp_path / "whole.zip", {"a.safetensors": tiny.read_bytes()}).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:900])
    cases[tmp_path / "cut.zip"] = "damaged"
    for path, reason in cases.items():
        with pytest.raises(InputError, match=reason):
            read_weights(path)


def test_no_more_is_decompressed_than_weights_may_have(tmp_path: Path) -> None:
    path = zipped(tmp_path / "bomb.zip", {"a.safetensors": bytes(5 * 2**20)})
    with pytest.raises(InputError, match="larger than 1 MiB"):
        read_packaged(path, 2**20)
