"""The domain check: invariant under what does not matter, right on known images, silent where nothing can be known."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from scipy import ndimage, special

from mrbcr_cli import carry_out as deconvolve_module
from mrbcr_cli.cli import run
from mrbcr_cli.domain import DomainEstimate, Windows, check_domain, choose_tiles, estimate_domain
from mrbcr_cli.errors import InputError
from mrbcr_cli.images import read_provenance
from mrbcr_cli.weights import WeightsCard, read_weights
from tests.helpers import card, deconvolve, pixels, spots, tiny_weights

Array = NDArray[np.float64]
LIMITS: dict[str, Any] = {"fwhm_px": [2, 6], "photons": [20, 5000]}


def specimen(size: int = 256, seed: int = 0) -> Array:
    """Bright blobs with edges of many sizes on a dark ground: power falls as about f^-2.5."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = 1
    image = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(size, size))) * frequency**-1.2, s=(size, size))
    return np.asarray((image - image.min()) / (image.max() - image.min()))


def photograph(fwhm_px: float, photons: float = 1000, seed: int = 0, size: int = 256) -> NDArray[np.uint16]:
    """The specimen through an Airy pattern of this width and pixels (0: neither), shot noise, gain 2, offset 100."""
    blurred = specimen(size, seed)
    if fwhm_px:
        pixel = np.sinc(np.fft.fftfreq(size))[:, None] * np.sinc(np.fft.rfftfreq(size))
        offset = np.fft.fftfreq(size) * size
        v = np.maximum(np.pi * 1.029 / fwhm_px * np.hypot(offset[:, None], offset[None]), 1e-9)
        psf = (2 * special.j1(v) / v) ** 2
        blurred = np.fft.irfft2(np.fft.rfft2(blurred) * np.fft.rfft2(psf / psf.sum()) * pixel, s=(size, size)).clip(0)
    light = np.random.default_rng(seed + 1).poisson(photons * (blurred - blurred.min()) / np.ptp(blurred))
    return (100 + 2 * light).astype(np.uint16)


def assert_same(one: DomainEstimate, other: DomainEstimate, rel: float) -> None:
    for field in fields(DomainEstimate):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert a == b if isinstance(a, str) or a is None else b == pytest.approx(a, rel=rel), field.name


@pytest.mark.parametrize(("gain", "offset"), [(7.0, -300.0), (1e-3, 5.0), (1e6, 1e9)])
def test_gain_and_offset_change_nothing(gain: float, offset: float) -> None:
    image = photograph(4)
    assert_same(estimate_domain([image]), estimate_domain([gain * image.astype(np.float64) + offset]), rel=1e-4)


@pytest.mark.parametrize("change", [np.transpose, np.flipud, np.fliplr, np.rot90])
def test_turning_the_image_changes_nothing(change: Any) -> None:
    image = photograph(3, 300)
    assert_same(estimate_domain([image]), estimate_domain([change(image)]), rel=1e-6)


def test_the_order_of_planes_changes_nothing() -> None:
    planes = [photograph(width, seed=seed) for seed, width in enumerate((3, 4, 5))]
    assert_same(estimate_domain(planes), estimate_domain(planes[::-1]), rel=1e-9)


def test_of_many_tiles_the_most_varied_are_taken() -> None:
    empty = np.random.default_rng(0).poisson(10, (128, 128))
    tiles = choose_tiles([empty, photograph(3, size=128)] + [empty] * 100)
    assert len(tiles) == 64
    assert tiles[0].max() > 10 * tiles[1].max()


def test_widths_of_known_blur_are_found() -> None:
    """Within 25 % each, and the bounds hold the truth."""
    for fwhm_px in (2.5, 3, 4, 6, 8, 12):
        found = estimate_domain([photograph(fwhm_px, 3000)])
        assert found.fwhm_px == pytest.approx(fwhm_px, rel=0.25), fwhm_px
        assert (found.fwhm_least_px or 0) < fwhm_px < 1.15 * (found.fwhm_most_px or 99), fwhm_px
        # Optics of this width pass nothing beyond 1.029 / FWHM, and little before.
        assert 0.3 / fwhm_px < (found.cutoff_cycles_per_px or 0) < 1.1 / fwhm_px, fwhm_px


@pytest.mark.parametrize("photons", [5, 20, 100, 1000, 5000])
def test_photons_are_counted_without_knowing_the_camera(photons: float) -> None:
    """Within a third from 20 on; noise adds to the peak of darker images."""
    found = estimate_domain([photograph(4, photons)])
    assert found.photons_peak is not None
    if photons >= 20:
        assert found.photons_peak == pytest.approx(photons, rel=0.35)
        assert (found.snr_peak or 0) ** 2 == pytest.approx(photons, rel=0.4)
    else:
        assert found.photons_peak < 15


def test_images_within_the_domain_raise_no_warning() -> None:
    for seed, (fwhm_px, photons) in enumerate([(2, 5000), (2.5, 20), (3, 100), (4, 1000), (5, 50), (6, 5000)]):
        assert check_domain(estimate_domain([photograph(fwhm_px, photons, seed)]), LIMITS) == (), fwhm_px


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (photograph(10), "finest detail is about 1. px wide .*2 to 6 px.*bin it 2 x 2"),
        (photograph(14, 3000), "bin it 3 x 3"),
        (photograph(0, 5000), "size of its pixels"),
        (photograph(4, 3), "fewer than 20 photons"),
        (np.random.default_rng(0).poisson(50, (256, 256)), "no structure"),
        (np.full((128, 128), 7), "no structure"),
        (specimen() > 0.6, "label"),
        (ndimage.label(ndimage.gaussian_filter(specimen(), 3) > 0.5)[0], "label"),
        (np.minimum(photograph(4), 900), "saturated"),
        (photograph(4) + 60 * (np.indices((256, 256))[0] % 2), "pattern"),
    ],
    ids=["wide", "wider", "sharp", "dark", "noise", "constant", "mask", "labels", "saturated", "interlaced"],
)
def test_images_outside_are_named_in_one_sentence(image: Array, words: str) -> None:
    said = check_domain(estimate_domain([image]), LIMITS)
    assert len(said) == 1
    assert re.search(words, said[0]), said


def test_only_the_limits_that_are_there_are_checked() -> None:
    wide, dark = estimate_domain([photograph(10)]), estimate_domain([photograph(4, 3)])
    assert check_domain(wide, {"photons": [20, 5000]}) == check_domain(dark, {"fwhm_px": [2, 6]}) == ()
    assert check_domain(wide, {"fwhm_px": [4, 16]}) == check_domain(dark, {"photons": [1, 100], "other": [0, 1]}) == ()


@pytest.mark.parametrize(
    "planes",
    [
        [],
        [np.zeros((5, 7))],
        [np.ones((1, 1000), np.uint8)],
        [np.full((128, 128), np.nan)],
        [np.full((128, 128), np.inf, np.float32)],
    ],
    ids=["none", "tiny", "line", "nan", "inf"],
)
def test_what_cannot_be_told_is_none(planes: list[Array]) -> None:
    found = estimate_domain(planes)
    assert found == DomainEstimate("unknown")
    assert check_domain(found, LIMITS) == ()
    assert json.loads(json.dumps(found.to_dict()))["fwhm_px"] is None


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int64", "float16", "float32"])
@pytest.mark.parametrize("kind", ["constant", "ramp", "spot", "checkers"])
def test_odd_images_of_any_dtype_are_survived(kind: str, dtype: str) -> None:
    y, x = np.indices((96, 130))
    image = {"constant": 0 * y, "ramp": x, "spot": (y == 40) & (x == 50), "checkers": (x + y) % 2}[kind].astype(dtype)
    found = estimate_domain([image])
    json.dumps(found.to_dict(), allow_nan=False)
    check_domain(found, LIMITS)


def test_tiles_with_nan_are_left_out() -> None:
    image = photograph(4, size=512).astype(np.float32)
    holed = image.copy()
    holed[3, 5], holed[300, 400] = np.nan, np.inf
    found = estimate_domain([holed])
    assert 0 < found.tiles < estimate_domain([image]).tiles
    assert found.fwhm_px == pytest.approx(estimate_domain([image]).fwhm_px, rel=0.2)


def test_windows_are_kept_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrbcr_cli.domain.EXACT_PIXELS", 250)
    windows = Windows()
    for _ in range(5):
        windows.keep(np.zeros((10, 10)))
    assert len(windows.planes) == 2


def test_cards_keep_their_limits_and_old_ones_their_bytes(tmp_path: Path) -> None:
    path = tiny_weights(tmp_path / "a.safetensors", limits=LIMITS)
    assert read_weights(path).card == card(limits=LIMITS)
    old = card().to_json()
    assert "limits" not in old
    assert WeightsCard.from_json(old, "old").limits is None


def test_limits_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_weights(tmp_path / "a.safetensors", limits=LIMITS)
    assert run(["weights", "show", str(path)]) == 0
    assert '{"fwhm_px": [2, 6], "photons": [20, 5000]}' in capsys.readouterr().out


@pytest.mark.parametrize(
    "limits",
    [{"fwhm_px": [6, 2]}, {"fwhm_px": 4}, {"fwhm_px": [2]}, {"photons": [-1, 5]}, {"photons": ["a", 5]}, {"x": [0, 0]}],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="limits"):
        card(limits=limits).to_json()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors", limits=LIMITS)


def test_a_run_warns_once_and_keeps_it(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite(tmp_path / "in.tif", np.stack([photograph(12), photograph(4)]), metadata={"axes": "CYX"})
    output = tmp_path / "out.ome.zarr"
    assert deconvolve(tmp_path / "in.tif", "-o", output, "-m", weights, "--json", "-q") == 0
    captured = capsys.readouterr()
    warned = [line for line in captured.err.splitlines() if line.startswith("warning")]
    assert len(warned) == 1 and "in.tif: channel 0: its finest detail" in warned[0]
    events = [json.loads(line) for line in captured.out.splitlines()]
    said = [event["message"] for event in events if event["event"] == "warning"]
    assert len(said) == 1 and said[0] in warned[0]
    record = read_provenance(output)
    assert record["notes"].count(said[0]) == events[-1]["notes"].count(said[0]) == 1
    found = [channel["estimate_of_domain"] for channel in record["channels"]]
    assert found[0]["fwhm_px"] > 8 > 6 > found[1]["fwhm_px"]


def test_nothing_is_said_of_good_images_nor_without_limits_nor_when_switched_off(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tifffile.imwrite(tmp_path / "good.tif", photograph(4))
    tifffile.imwrite(tmp_path / "wide.tif", photograph(12))
    unlimited = tiny_weights(tmp_path / "free.safetensors")
    for name, model, extra in (("good", weights, ()), ("wide", unlimited, ()), ("wide", weights, "off")):
        arguments = ("-m", model, "--overwrite", *(["--no-domain-check"] if extra else []))
        assert deconvolve(tmp_path / f"{name}.tif", "-o", tmp_path / "out.ome.zarr", *arguments) == 0
        assert "warning" not in capsys.readouterr().err
        channel = read_provenance(tmp_path / "out.ome.zarr")["channels"][0]
        assert ("estimate_of_domain" in channel) == (name == "good")


def test_the_check_changes_no_pixel_and_no_fingerprint(tmp_path: Path, weights: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", photograph(12))
    for name, extra in (("on", ()), ("off", ("--no-domain-check",)), ("range", ("--range", 100, 2000))):
        assert deconvolve(tmp_path / "in.tif", "-o", tmp_path / f"{name}.ome.zarr", "-m", weights, "-q", *extra) == 0
    on, off, given = (read_provenance(tmp_path / f"{name}.ome.zarr") for name in ("on", "off", "range"))
    assert on["fingerprint"] == off["fingerprint"]
    assert np.array_equal(pixels(tmp_path / "on.ome.zarr"), pixels(tmp_path / "off.ome.zarr"))
    assert given["channels"][0]["range"]["how"] == "given"
    assert any("finest detail" in note for note in given["notes"])


def test_a_resumed_run_warns_again_without_looking_again(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(tmp_path / "in.tif", photograph(12))
    arguments = (tmp_path / "in.tif", "-o", tmp_path / "out.ome.zarr", "-m", weights, "-q")

    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(deconvolve_module, "complete", full)
        assert deconvolve(*arguments) == 3
    first = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    monkeypatch.setattr("mrbcr_cli.survey.estimate_domain", full)
    assert deconvolve(*arguments) == 0
    again = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert again == first and len(first) == 1
    assert read_provenance(tmp_path / "out.ome.zarr")["channels"][0]["estimate_of_domain"]["fwhm_px"] > 8


def test_sampled_images_are_judged_from_the_samples(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrbcr_cli.intensity.EXACT_PIXELS", 1000)
    tifffile.imwrite(tmp_path / "in.tif", photograph(12))
    assert deconvolve(tmp_path / "in.tif", "-o", tmp_path / "out.ome.zarr", "-m", weights, "-q") == 0
    assert "finest detail" in capsys.readouterr().err
    assert "sampled" in read_provenance(tmp_path / "out.ome.zarr")["channels"][0]["range"]["how"]


def test_explicit_methods_take_no_domain_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite(tmp_path / "in.tif", spots((96, 96)))
    code = deconvolve(tmp_path / "in.tif", "-o", tmp_path / "o.ome.zarr", "--method", "blind", "--no-domain-check")
    assert code == 2 and "domain-check" in capsys.readouterr().err


def test_info_shows_what_was_found(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite(tmp_path / "in.tif", photograph(12))
    assert run(["info", str(tmp_path / "in.tif"), "--plan", "--model", str(weights)]) == 0
    assert "finest detail" in capsys.readouterr().out
    assert run(["info", str(tmp_path / "in.tif"), "--plan", "--model", str(weights), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan["domain"][0]["content"] == "image" and len(plan["warnings"]) == 1
