"""mrbcr evaluate on simulated pairs: baselines know the truth, models run as in deconvolve, refusals in one line.

The true PSF of a record turns the target into the pair again.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from mrbcr_cli.console import Reporter
from mrbcr_cli.evaluation.baselines import ALL_SETTINGS, ITERATIONS, Setting, choose, richardson_lucy, wiener
from mrbcr_cli.evaluation.evaluate_pairs import PairImages, evaluate_pairs
from mrbcr_cli.evaluation.results import METRICS, SCHEMA_VERSION, Row
from mrbcr_cli.evaluation.true_psf import read_exposure, true_psf_yx
from mrbcr_cli.images.pairs_store import read_pairs
from mrbcr_cli.metrics import measure, psnr
from mrbcr_cli.simulate.pair import make_pair
from mrbcr_cli.simulate.pairs import PairsTarget, plan_pairs, simulate_pairs
from mrbcr_cli.simulate.pairs_settings import PairsSettings
from mrbcr_cli.workfolder import Target
from tests.evaluations import assert_refused, evaluate
from tests.helpers import deconvolve, pixels, tiny_weights

COUNT, PATCH = 7, 48


def make_store(path: Path, **settings: Any) -> Path:
    """A store of pairs, all in test."""
    values = {"count": COUNT, "patch": PATCH, "planes": 3, "splits": (0, 0, 1), "fwhm": (2.0, 4.0), **settings}
    simulate_pairs(PairsSettings(**values), PairsTarget(Target(path, "ome-zarr")), Reporter(quiet=True), workers=1)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("pairs") / "pairs.zarr", aberration=(0.0, 0.06), scmos=0.3)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


def by_method(rows: tuple[Row, ...], method: str) -> dict[str, Row]:
    return {row.image: row for row in rows if row.method == method}


# The true PSF


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"zernike": {7: 0.12, 8: -0.1, 12: 0.05}},
        {"defocus": 0.3, "depth": 5.0, "ns": 1.37},
        {"microscope": "confocal", "aberration": 0.06},
        {"microscope": "light-sheet"},
    ],
)
def test_true_psf_turns_the_target_into_the_pair(change: dict[str, Any]) -> None:
    """One plane, no haze, a target as sharp as a pixel: recorded = target * PSF, in register and in the same counts."""
    settings = PairsSettings(
        **{
            **{"patch": 128, "planes": 1, "haze": 0, "photons": 1e6, "gain": 0.05, "read_noise": 0, "scmos": 0},
            **{"na": 1.1, "ni": 1.33, "fwhm": 2.5, "target_resolution": 0.05, "target_least": 0.2},
            **change,
        }
    )
    core = np.s_[34:-34, 34:-34]
    made = (make_pair(plan_pairs(settings), index) for index in range(20))
    pair = next(p for p in made if np.ptp(p.blurred[core]) > 0.3 * np.ptp(p.blurred))
    psf = true_psf_yx(pair.record, 65)
    assert psf.shape == (65, 65) and psf.dtype == np.float64
    assert psf.sum() == pytest.approx(1.0) and psf.min() >= 0
    sharp = pair.sharp.astype(np.float64)

    def error(image: NDArray[np.float64]) -> float:
        return float(np.sqrt(np.mean((image[core] - pair.blurred[core]) ** 2)) / np.ptp(pair.blurred[core]))

    again = fftconvolve(sharp, psf, mode="same")
    assert error(again) < 0.01
    assert error(np.roll(again, 1, 0)) > 3 * error(again) and error(np.roll(again, 1, 1)) > 3 * error(again)


def test_exposure_is_the_camera_s(store: Path) -> None:
    """The darkest target is background and haze: what the record says, in photo-electrons; and back to counts."""
    blurred, sharp, records = read_pairs(store, 0, COUNT)
    for image, target, record in zip(blurred, sharp, records, strict=True):
        exposure = read_exposure(record)
        assert np.allclose(exposure.counts(exposure.electrons(image)), image, rtol=1e-5)
        assert exposure.electrons(target).min() >= exposure.background_e - 1e-3


# Baselines


def problem(photons: float = 300.0) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """Noisy electrons with a background of 20, their PSF, their truth."""
    axis = np.arange(-10, 11)
    psf = np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * 1.7**2))
    psf /= psf.sum()
    rng = np.random.default_rng(0)
    truth = np.zeros((64, 64))
    truth[tuple(rng.integers(8, 56, (2, 30)))] = 20 * photons
    blurred = fftconvolve(truth, psf, mode="same").clip(0) + 20
    return rng.poisson(blurred).astype(np.float32), psf, truth + 20


def test_one_run_gives_every_number_of_iterations() -> None:
    electrons, psf, _ = problem()
    together = richardson_lucy(electrons, psf, 20.0, (1, 4, 9), 1.5)
    for count, image in zip((1, 4, 9), together, strict=True):
        assert np.array_equal(richardson_lucy(electrons, psf, 20.0, (count,), 1.5)[0], image)


def test_baselines_sharpen_and_keep_flat_light() -> None:
    electrons, psf, truth = problem()
    smooth = fftconvolve(truth - 20, psf, mode="same") + 20
    assert psnr(richardson_lucy(electrons, psf, 20.0, (30,))[0], truth) > psnr(smooth, truth) + 1
    assert psnr(wiener(electrons, psf, (1e-3,))[0], truth) > psnr(electrons, truth)
    flat = np.full((64, 64), 20.0, np.float32)
    for image in (*richardson_lucy(flat, psf, 20.0, (1, 30), 2.0), *wiener(flat, psf, (1e-3, 1.0))):
        assert np.allclose(image, 20.0, rtol=1e-3)


def test_choice_is_the_best_mean_and_the_best_each() -> None:
    settings = ALL_SETTINGS["richardson-lucy"]
    scores = np.random.default_rng(0).normal(20, 1, (5, len(settings), 2))
    tried: list[dict[Setting, tuple[float, float]]] = [
        {s: (float(a), float(b)) for s, (a, b) in zip(settings, image, strict=True)} for image in scores
    ]
    nothing = dict.fromkeys(settings, (float("nan"), float("nan")))
    for column, criterion in enumerate(("psnr_db", "psnr_fit_db")):
        choice = choose("richardson-lucy", [*tried, nothing], criterion)  # type: ignore[arg-type]
        assert choice.common == settings[int(scores[..., column].mean(0).argmax())]
        assert choice.own[:5] == tuple(settings[int(k)] for k in scores[..., column].argmax(1))
        assert choice.own[5] == choice.common, "a flat truth has no say"
    assert len(settings) == 2 * len(ITERATIONS)
    with pytest.raises(ValueError, match="no images"):
        choose("wiener", [])


# Pairs


def test_oracles_are_the_best_of_their_kind(store: Path, weights: Path) -> None:
    found = evaluate_pairs(store, [str(weights)])
    assert {row.image for row in found.rows} == {f"{k:06d}" for k in range(COUNT)}
    for kind in ("richardson-lucy", "wiener"):
        common, plain, fit = (by_method(found.rows, kind + end) for end in ("", " oracle", " oracle (fit)"))
        for image, row in common.items():
            assert plain[image].scores.psnr_db >= row.scores.psnr_db >= 0  # type: ignore[operator]
            assert fit[image].scores.psnr_fit_db >= row.scores.psnr_fit_db  # type: ignore[operator]
        described = found.methods[kind]
        tried = {(t["value"], t["through_target_gaussian"]): t["mean_db"] for t in described["tried"]}
        mean = np.mean([row.scores.psnr_db for row in common.values()])
        assert mean == pytest.approx(max(tried.values()), rel=1e-6) and len(tried) == len(ALL_SETTINGS[kind])
        best = max(tried, key=lambda key: tried[key])
        assert described["setting"].endswith("Gaussian") == best[1]


def test_a_model_does_what_deconvolve_does(store: Path, weights: Path, tmp_path: Path) -> None:
    outputs: dict[str, PairImages] = {}
    evaluation = evaluate_pairs(
        store,
        [str(weights)],
        limit=3,
        baselines=False,
        on_pair=lambda images, rows: outputs.__setitem__(images.name, images),
    )
    assert list(evaluation.methods) == ["input", "tiny"] and evaluation.against == "input"
    blurred, sharp, _ = read_pairs(store, 0, 3)
    for k in range(3):
        tifffile.imwrite(tmp_path / f"{k}.tif", blurred[k])
        assert deconvolve(
            *(tmp_path / f"{k}.tif", "-o", tmp_path / f"{k}_out.ome.zarr", "-m", weights, "-q"),
            *("--output-dtype", "float32"),
        ) == 0  # fmt: skip
        ours = outputs[f"{k:06d}"].outputs["tiny"]
        assert np.array_equal(ours, pixels(tmp_path / f"{k}_out.ome.zarr"))
        assert by_method(evaluation.rows, "tiny")[f"{k:06d}"].scores == measure(ours, sharp[k])


def test_groups_and_differences_add_up(store: Path, weights: Path) -> None:
    found = evaluate_pairs(store, [str(weights)], seed=3)
    by: dict[str, int] = {}
    for group in found.groups:
        by[group.by] = by.get(group.by, 0) + len(group.images)
    assert by == dict.fromkeys(("all", "photons", "haze", "fwhm", "specimen"), COUNT)
    total = next(t for t in found.totals if t.group.by == "all" and t.method == "tiny").means["psnr_db"]
    peer = next(t for t in found.totals if t.group.by == "all" and t.method == "richardson-lucy").means["psnr_db"]
    gap = next(d for d in found.differences if d.group.by == "all" and d.method == "tiny")
    assert total is not None and peer is not None and gap.means["psnr_db"] is not None
    assert gap.means["psnr_db"].mean == pytest.approx(total.mean - peer.mean)
    ours, theirs = (by_method(found.rows, name) for name in ("tiny", "richardson-lucy"))
    wins = [ours[k].scores.psnr_db > theirs[k].scores.psnr_db for k in ours]  # type: ignore[operator]
    assert gap.won["psnr_db"] == pytest.approx(np.mean(wins))


def test_pairs_end_to_end(store: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tiny_weights(tmp_path / "other.safetensors", seed=1)
    arguments = ("--pairs", store, "-m", weights, "-m", other, "--limit", 4, "--figure-count", 2)
    files = ("-o", tmp_path / "s.json", "--csv", tmp_path / "s.csv", "--report", tmp_path / "s.md")
    assert evaluate(*arguments, *files, "--figures", tmp_path / "figures") == 0
    out = capsys.readouterr().out
    assert out.startswith("| method") and "tiny (2)" in out and "richardson-lucy oracle" in out
    stored = json.loads((tmp_path / "s.json").read_text())
    assert stored["schema_version"] == SCHEMA_VERSION and stored["source"]["count"] == 4
    assert set(stored["metrics"]) == set(METRICS)
    assert stored["images"][0]["frc_um"] == pytest.approx(
        stored["images"][0]["frc_px"] * stored["images"][0]["pixel_um"]
    )
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert len(rows) == len(stored["images"]) == 4 * len(stored["methods"])
    assert "By haze" in (tmp_path / "s.md").read_text()
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["000000.png", "000003.png"]
    before = [Path(p).read_bytes() for p in files[1::2]]
    assert evaluate(*arguments, *files, "--figures", tmp_path / "figures", "--overwrite", "-q") == 0
    assert [Path(p).read_bytes() for p in files[1::2]] == before, "the same command gives the same bytes"


def test_pairs_as_events(store: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--pairs", store, "-m", weights, "--no-baselines", "--limit", 2, "--json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["event"] for e in events] == ["image", "image", "done"]
    assert events[-1]["totals"]["tiny"]["psnr_db"]["count"] == 2


def test_brightfield_pairs(tmp_path: Path, weights: Path) -> None:
    """Absorption is deconvolved by its own transfer function, and it helps; that phase is left out is said."""
    settings = {"microscope": "brightfield", "phase": 0.0, "photons": 3e4, "haze": None, "thickness": 0.3, "count": 4}
    found = evaluate_pairs(make_store(tmp_path / "b.zarr", **settings), [str(weights)])
    assert any("phase is not modelled" in note for note in found.notes)
    blurred, deconvolved = (
        np.mean([row.scores.psnr_fit_db for row in by_method(found.rows, name).values()])
        for name in ("input", "richardson-lucy oracle (fit)")
    )
    assert deconvolved > blurred + 1


def test_an_empty_truth_gives_no_scores_and_a_note(tmp_path: Path, weights: Path) -> None:
    import zarr

    store = make_store(tmp_path / "p.zarr", count=3)
    group = zarr.open_group(store, mode="r+")
    group["sharp"][1] = 100.0  # type: ignore[index]
    found = evaluate_pairs(store, [str(weights)])
    assert any("no scores for 000001:" in note for note in found.notes)
    for row in found.rows:
        assert (row.scores.psnr_db is None) == (row.scores.ssim_fit is None) == (row.image == "000001")
    total = next(t for t in found.totals if t.group.by == "all" and t.method == "tiny").means["psnr_db"]
    assert total is not None and total.count == 2
    json.dumps(found.to_json(), allow_nan=False)


def stored_psf(path: Path, sigma: float = 1.5) -> Path:
    axis = np.arange(-8, 9)
    z = np.arange(-2, 3)[:, None, None]
    width = sigma * np.sqrt(1 + z**2)
    psf = np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * width**2)) / width**2
    np.savez(path, psf=psf, scale_zyx_um=np.array([0.3, 0.1, 0.1]))
    return path


def test_pairs_of_a_psf_file_need_it(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, other = stored_psf(tmp_path / "own.npz"), stored_psf(tmp_path / "other.npz", 2.5)
    store = make_store(tmp_path / "p.zarr", psf=own, fwhm=(2.0, 6.0), count=3)
    assert evaluate("--pairs", store, "-m", weights) == 2
    assert "own.npz" in (said := capsys.readouterr().err) and "--psf" in said
    assert not any("not known" in note for note in evaluate_pairs(store, [str(weights)], psf=own).notes)
    assert any("not known" in note for note in evaluate_pairs(store, [str(weights)], psf=other).notes)
    assert evaluate_pairs(store, [str(weights)], baselines=False).against == "input"


# Refusals

BAD_PAIRS: dict[str, tuple[Callable[[Path, Path, Path], tuple[object, ...]], str]] = {
    "no store": (lambda s, w, d: ("--pairs", d / "gone.zarr", "-m", w), "no such file"),
    "no pairs": (lambda s, w, d: ("--pairs", d, "-m", w), "no finished training pairs"),
    "predictions too": (lambda s, w, d: (w, "--pairs", s, "-m", w), "cannot be given with --pairs"),
    "truth too": (lambda s, w, d: ("--pairs", s, "-m", w, "--truth", w), "cannot be given with --pairs"),
    "unknown split": (lambda s, w, d: ("--pairs", s, "-m", w, "--split", "tests"), "--split tests"),
    "empty split": (lambda s, w, d: ("--pairs", s, "-m", w, "--split", "train"), "no pairs there"),
    "limit": (lambda s, w, d: ("--pairs", s, "-m", w, "--limit", 0), "--limit"),
    "unknown model": (lambda s, w, d: ("--pairs", s, "-m", "nothing"), "nothing"),
    "model twice": (lambda s, w, d: ("--pairs", s, "-m", w, "-m", w), "name each once"),
    "device": (lambda s, w, d: ("--pairs", s, "-m", w, "--device", "abacus"), "abacus"),
    "missing PSF": (lambda s, w, d: ("--pairs", s, "-m", w, "--psf", d / "gone.npz"), "no such PSF"),
    "PSF without baselines": (lambda s, w, d: ("--pairs", s, "-m", w, "--psf", w, "--no-baselines"), "--no-baselines"),
    "output in the store": (lambda s, w, d: ("--pairs", s, "-m", w, "-o", s / "s.json"), "lies inside"),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_bad_pairs_are_refused(
    case: str, store: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, words = BAD_PAIRS[case]
    assert_refused(arguments(store, weights, tmp_path), words, tmp_path, capsys)


def test_damaged_pairs_are_refused(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import zarr

    store = make_store(tmp_path / "p.zarr", count=2)
    group = zarr.open_group(store, mode="r+")
    sharp = group["sharp"][1]  # type: ignore[index]
    group["sharp"][1] = np.full_like(sharp, np.nan)  # type: ignore[index]
    assert_refused(("--pairs", store, "-m", weights), "NaN", tmp_path, capsys)
    group["sharp"][1] = sharp  # type: ignore[index]
    record = json.dumps({"index": 1}).encode()
    group["records"][1] = np.frombuffer(record.ljust(8192, b"\0"), np.uint8)  # type: ignore[index]
    assert_refused(("--pairs", store, "-m", weights), "does not describe", tmp_path, capsys)
