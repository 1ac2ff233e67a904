"""The measures of examples/evaluation on tiny settings, with methods whose results are known.

Invariant: a perfect method gets a perfect mark, a method with a known fault the mark that names it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation_scripts import generator, hal, pho, rec, two

# ---- recording ----


def test_light_and_target_of_a_point_hold_its_weight_at_its_place() -> None:
    optics = rec.make_optics(4.0)
    points = np.array([[30.3, 34.8, 7.0]])
    for image in (rec.light_of(points, optics, 64), rec.target_of(points, optics, 64)):
        assert image.sum() == pytest.approx(7.0, rel=1e-3)
        weight = image**2
        centre = [(weight.sum(1 - axis) * np.arange(64)).sum() / weight.sum() for axis in (0, 1)]
        assert centre == pytest.approx([30.3, 34.8], abs=0.02)


def test_the_psf_has_the_width_it_is_named_by() -> None:
    from mrbcr_cli.optics.measure import profile_fwhm

    for fwhm in (3.0, 5.0):
        psf = rec.make_optics(fwhm).psf(63)
        # The pixel widens it a little.
        assert fwhm < (profile_fwhm(psf[31], 1.0) or 0) < 1.06 * fwhm


def test_a_line_is_as_bright_as_it_is_long_and_straight() -> None:
    points = rec.line_points((10.0, 20.0), np.pi / 2, 12.0)
    assert points[:, 2].sum() == pytest.approx(12.0)
    assert points[:, 1] == pytest.approx(20.0)
    assert np.ptp(points[:, 0]) == pytest.approx(12.0, abs=0.3)


def test_the_same_seed_records_the_same_counts() -> None:
    optics, points = rec.make_optics(3.0), np.array([[20.0, 20.0, 1.0]])
    first, again, other = (
        rec.record(points, optics, 48, generator(s), photons_per_weight=500.0, background_photons=9.0).counts
        for s in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_richardson_lucy_comes_nearer_to_the_target() -> None:
    optics = rec.make_optics(4.0)
    points = np.array([[24.0, 20.0, 1.0], [24.0, 26.0, 1.0]])
    one = rec.record(points, optics, 48, generator(), photons_per_weight=4e4, background_photons=100.0)
    (found,) = rec.richardson_lucy(one, rec.rl_settings((50,), (True,))).values()
    before, after = (float(((image - one.target) ** 2).mean()) for image in (rec.identity(one), found))
    assert after < 0.3 * before


# ---- two points ----


def dips_of(method: rec.Restore, distances: tuple[float, ...], photons: float = 1e7) -> list[two.Found]:
    cases = two.make_cases([4.0], [photons], distances, 1)
    return two.summarise(two.run(cases, {"method": method}, [], 0))


def test_the_truth_resolves_to_its_own_limit_and_splits_nothing() -> None:
    for found in dips_of(rec.truth, (0.5, 0.55, 0.75, 1.0)):
        # A Gaussian of half the FWHM dips by 26.5 % at 0.6 FWHM.
        assert found.shares[0.5] == 0
        assert found.distance() == 0.75
        assert found.false_dips == found.false_sparrow == 0


def test_the_input_without_noise_resolves_at_the_rayleigh_distance() -> None:
    # 0.61 lambda / NA is 1.2 times the FWHM of 0.51 lambda / NA.
    for found in dips_of(lambda one: one.mean, (1.05, 1.15, 1.25, 1.35)):
        assert found.shares[1.05] == 0
        assert found.distance() == 1.25


def test_maxima_in_the_wrong_place_do_not_count() -> None:
    moved = dips_of(lambda one: np.roll(one.target, (3, 3), (0, 1)), (1.0, 1.4))
    assert max(max(found.shares.values()) for found in moved) < 0.5


def test_a_method_that_splits_everything_is_found_out() -> None:
    def split(one: rec.Recording) -> rec.Image:
        return sum(np.roll(one.target, shift, axis) / 4 for axis in (0, 1) for shift in (-2, 2))

    points, lines = dips_of(split, (1.0,))
    # Lines at 45 degrees are moved onto themselves.
    assert points.false_dips > 0.9
    assert 0.2 < lines.false_dips < 0.9
    assert two.markdown([points], {}, "title").count("*") > two.markdown(dips_of(rec.truth, (1.0,)), {}, "t").count("*")


def test_a_flat_result_resolves_nothing() -> None:
    for found in dips_of(lambda one: np.full_like(one.target, one.background + 5), (1.5,)):
        assert found.distance() is None
        assert found.false_dips == 0


def test_resolution_distance_has_no_gaps() -> None:
    assert two.resolution_distance((0.5, 0.6, 0.7, 0.8), (0.8, 0.2, 0.75, 1.0)) == 0.7
    assert two.resolution_distance((0.5, 0.6), (1.0, 0.7)) is None
    assert two.resolution_distance((0.5, 0.6), (0.9, 0.9)) == 0.5


def test_the_setting_of_richardson_lucy_that_is_chosen_does_not_split() -> None:
    shares = {0.5: 1.0, 1.0: 1.0}
    splitting = two.Found("a", "points", None, 100.0, shares, shares, 0.9, 0.9)
    careful = two.Found("b", "points", None, 100.0, {0.5: 0.0, 1.0: 1.0}, shares, 0.0, 0.0)
    assert two.choose([splitting, careful], ["a", "b"]) == "b"


def test_two_points_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "-o",
        str(tmp_path / "two"),
        "--fwhm",
        "3",
        "--photons",
        "1000",
        "--step",
        "1.0",
        "--rl-iterations",
        "10",
    ]
    two.main(arguments)
    written = json.loads((tmp_path / "two.json").read_text())
    assert {row["method"] for row in written["results"]} >= {"input", "network widefield", "RL", "RL + target blur"}
    assert (tmp_path / "two.md").read_text().strip() == capsys.readouterr().out.strip()
    assert (tmp_path / "two.png").stat().st_size > 5000
    first = (tmp_path / "two.json").read_bytes()
    two.main(arguments)
    assert (tmp_path / "two.json").read_bytes() == first


# ---- hallucination ----


def lattice_of(method: rec.Restore, scene: str = "empty 100") -> dict[int, hal.Lattice]:
    (found,) = hal.run([scene], {"method": method}, [], size_px=128, realisations=8)
    assert found.lattice is not None
    return found.lattice


@pytest.mark.parametrize("scene", ["empty 0", "empty 100", "beside 100"])
def test_plain_noise_has_no_lattice(scene: str) -> None:
    for lattice in lattice_of(rec.identity, scene).values():
        assert 0.4 < lattice.fixed < 2.0
        assert 0.7 < lattice.modulated < 1.4


def test_a_checkerboard_is_found() -> None:
    y, x = np.indices((128, 128))
    for step, period in ((1, 2), (2, 4)):
        # Half the noise's standard deviation.
        board = 10.0 * ((-1.0) ** (y // step + x // step))
        found = lattice_of(lambda one, board=board: rec.identity(one) + board.astype(np.float32))
        assert found[period].worst > 50
        assert found[6 - period].worst < 6


def test_a_lattice_that_comes_and_goes_is_found_by_its_broad_peak() -> None:
    from scipy import ndimage

    y, x = np.indices((128, 128))
    rng = generator(5)

    def waving(one: rec.Recording) -> rec.Image:
        smooth = ndimage.gaussian_filter(rng.standard_normal(y.shape), 8.0, mode="wrap")
        return (one.target + 5 * smooth / smooth.std() * (-1.0) ** (y + x)).astype(np.float32)

    found = lattice_of(waving)[2]
    assert found.modulated > 10
    assert found.percent_of_range == pytest.approx(100 * 5 / 125, rel=0.4)


@pytest.mark.parametrize("scene", ["empty 30", "beads 100", "lone 1000"])
def test_the_truth_has_no_false_objects_and_planted_ones_are_counted(scene: str) -> None:
    y, x = np.indices((128, 128))

    def planted(one: rec.Recording) -> rec.Image:
        blobs = sum(np.exp(-((y - a) ** 2 + (x - b) ** 2) / 4.0) for a, b in ((10, 90), (64, 4), (120, 118)))
        noise = generator(1).normal(0, 0.01, y.shape)
        return (one.target + 0.3 * hal.input_span(one) * blobs + noise).astype(np.float32)

    good, bad = hal.run([scene], {"truth": rec.truth, "planted": planted}, [], size_px=128, realisations=2)
    assert good.false_per_10k_px == 0
    assert good.tallest == 0
    area = hal.deviations(*_truth_of(scene)).area_px
    assert bad.false_per_10k_px == pytest.approx(3 / area * 1e4, rel=0.01)
    assert bad.images_with_false == 1
    assert bad.tallest == pytest.approx(0.3, rel=0.05)


def _truth_of(label: str) -> tuple[rec.Image, hal.Scene]:
    scene = hal.make_scene(label, 128, 4.0, 0, 0)
    return scene.recorded.target, scene


def test_lattice_frequencies_are_each_there_once() -> None:
    assert sorted(hal._frequencies(2)) == [(0.0, 0.5), (0.5, 0.0), (0.5, 0.5)]
    quarter = hal._frequencies(4)
    # 16 places of the lattice of 4 px, less the 4 of the lattice of 2 px, in pairs of opposite ones.
    assert len(quarter) == len(set(quarter)) == 6
    seen = {((v * s) % 1, (u * s) % 1) for v, u in quarter for s in (1, -1)}
    assert len(seen) == 12


def test_hallucination_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hal.main(
        ["-o", str(tmp_path / "h"), "--realisations", "1", "--rl-iterations", "5", "--scenes", "empty 10", "lone 100"]
    )
    written = json.loads((tmp_path / "h.json").read_text())
    assert {row["scene"] for row in written["results"]} == {"empty 10", "lone 100"}
    assert len(written["results"]) == 2 * 4
    assert "Lattice" in capsys.readouterr().out
    assert (tmp_path / "h.png").stat().st_size > 5000


# ---- photometry ----


def fits_of(method: rec.Restore, photons: float = 1000.0) -> list[pho.Fit]:
    fits, _ = pho.run([3.0], [photons], {"method": method}, [], images=1)
    assert [f.kind for f in fits] == ["mixed", "single"]
    return fits


def test_the_truth_is_its_own_measure() -> None:
    for found in fits_of(rec.truth):
        assert found.slope == pytest.approx(1, abs=1e-12)
        assert found.r2 == pytest.approx(1, abs=1e-12)
        assert found.log_slope == pytest.approx(1, abs=1e-9)
        assert found.beads_lost == 0
        assert found.good


def test_beads_too_bright_too_dim_or_bent_are_found_out() -> None:
    for found in fits_of(lambda one: 2 * one.target - 500):
        assert found.slope == pytest.approx(2, abs=1e-5)
        assert not found.good
    for found in fits_of(lambda one: one.background + (one.target - one.background).clip(0, 200)):
        assert found.slope < 0.9
        assert found.log_slope < 0.95
        assert found.bias[2] < found.bias[0]


def test_the_input_loses_the_light_outside_its_aperture() -> None:
    for found in fits_of(lambda one: one.mean):
        assert 0.8 < found.slope < 0.93
        assert found.log_slope == pytest.approx(1, abs=0.02)


def test_an_aperture_holds_a_bead_and_no_background() -> None:
    image = np.full((64, 64), 100.0)
    image[30:33, 30:33] += 5
    assert pho.intensities(image, np.array([[31.0, 31.0]]), 4.0)[0] == pytest.approx(45)


def test_photometry_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pho.main(
        ["-o", str(tmp_path / "p"), "--fwhm", "3", "--photons", "500", "--images", "1", "--rl-iterations", "5"]
    )  # fmt: skip
    written = json.loads((tmp_path / "p.json").read_text())
    assert len(written["results"]) == 2 * 4
    assert "| met |" in capsys.readouterr().out
    assert (tmp_path / "p.png").stat().st_size > 5000
