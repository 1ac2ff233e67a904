"""Specimens: every box is a crop of one fixed world, light is kept, and nothing sits on a lattice."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from mrbcr_cli.errors import InputError
from mrbcr_cli.specimens import KINDS, STYLES, Specimen, chosen_style, draw_specimen, render
from mrbcr_cli.specimens.field import lattice_noise, make_grid, root_key, scatter, stratified
from mrbcr_cli.specimens.splat import area, covered, splat_balls, splat_points, splat_segments, splat_shells

STYLED = [(kind, style) for kind in KINDS for style in STYLES[kind]]
VOXELS = [(0.1, 0.1, 0.1), (0.3, 0.065, 0.065), (0.4, 0.1, 0.13)]
USUAL = ((-2.0, 0.0, 0.0), (10, 80, 80), (0.4, 0.2, 0.2))


@st.composite
def boxes(draw):
    """A specimen, a box, and a box inside it (as low and high voxel)."""
    kind, style = draw(st.sampled_from(STYLED))
    specimen = Specimen(
        kind,
        draw(st.integers(-5, 2**70)),
        style,
        density=draw(st.sampled_from([0.3, 1.0, 4.0])),
        size=draw(st.sampled_from([0.6, 1.0])),
        coverage=draw(st.sampled_from([1.0, 1.0, 0.5])),
        thickness_um=draw(st.sampled_from([None, 3.0])),
    )
    shape = tuple(draw(st.integers(2, most)) for most in (8, 40, 40))
    low = tuple(draw(st.integers(0, n - 1)) for n in shape)
    high = tuple(draw(st.integers(a + 1, n)) for a, n in zip(low, shape, strict=True))
    origin = (draw(st.floats(-2.0, 1.0)), draw(st.floats(-300.0, 300.0)), draw(st.sampled_from([0.0, -1.0, 12345.6])))
    return specimen, origin, shape, draw(st.sampled_from(VOXELS)), low, high


@settings(max_examples=150, deadline=None, derandomize=True)
@given(boxes())
def test_a_sub_box_is_a_crop_bit_for_bit(case):
    specimen, origin, shape, voxel, low, high = case
    whole = render(specimen, origin, shape, voxel)
    inner = tuple(at + first * side for at, first, side in zip(origin, low, voxel, strict=True))
    part = render(specimen, inner, tuple(b - a for a, b in zip(low, high, strict=True)), voxel)
    crop = whole[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    np.testing.assert_array_equal(part, crop)


@pytest.mark.parametrize(("kind", "style"), STYLED)
def test_blocks_of_a_wide_field_fit_together(kind, style):
    specimen = Specimen(kind, 3, style, density=2.0, thickness_um=6.0)
    voxel = (0.3, 0.11, 0.11)
    whole = render(specimen, (-0.9, 40.0, -7.0), (5, 130, 130), voxel)
    for y, x in ((0, 0), (65, 65)):
        part = render(specimen, (-0.9, 40.0 + y * 0.11, -7.0 + x * 0.11), (5, 65, 65), voxel)
        np.testing.assert_array_equal(part, whole[:, y : y + 65, x : x + 65])


def test_pieces_of_any_size_give_the_same_volume(monkeypatch):
    from mrbcr_cli.specimens import rendering

    specimen = Specimen("mixed", 4, "epithelium", thickness_um=4.0)
    whole = render(specimen, *USUAL)
    monkeypatch.setattr(rendering, "_PIECE_VOXELS", 3 * 80 * 80)
    np.testing.assert_array_equal(render(specimen, *USUAL), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_default_settings_show_something_that_the_seed_alone_decides(kind):
    first, again, other = (render(Specimen(kind, seed), *USUAL) for seed in (11, 11, 12))
    assert first.dtype == np.float32 and first.shape == USUAL[1]
    assert np.isfinite(first).all() and first.min() >= 0
    assert first.tobytes() == again.tobytes()
    assert first.max() > 0 and other.max() > 0
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(("kind", "style"), STYLED)
def test_half_the_voxel_summed_by_two_shows_the_same(kind, style):
    specimen = Specimen(kind, 22, style, density=3.0, thickness_um=4.0)
    coarse = render(specimen, (-1.6, 3.0, 5.0), (8, 96, 96), (0.4, 0.1, 0.1))
    fine = render(specimen, (-1.6, 3.0, 5.0), (16, 192, 192), (0.2, 0.05, 0.05))
    summed = fine.reshape(8, 2, 96, 2, 96, 2).sum(axis=(1, 3, 5))
    seen = [ndimage.gaussian_filter(volume, (1.0, 2.0, 2.0))[1:-1, 6:-6, 6:-6] for volume in (coarse, summed)]
    assert seen[0].max() > 0
    assert np.abs(seen[0] - seen[1]).sum() < 0.15 * seen[1].sum()
    assert seen[0].sum() == pytest.approx(seen[1].sum(), rel=0.08)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_over_seeds_is_about_the_same_everywhere(kind):
    total = np.zeros((2, 20, 20))
    for seed in range(60):
        volume = render(
            Specimen(kind, seed, spread=0.0, thickness_um=3.0), (-1.0, 0.0, 0.0), (2, 20, 20), (1.0, 0.8, 0.8)
        )
        total += np.minimum(volume / max(float(volume.mean()), 1e-9), 20)
    quarters = total.sum(axis=0).reshape(2, 10, 2, 10).mean(axis=(1, 3))
    assert quarters.max() < 1.5 * quarters.min()


def test_objects_prefer_no_place_in_their_hash_cells():
    low, high = np.array([-30.0] * 3), np.array([30.0] * 3)
    for objects in (
        scatter(root_key(1, "a"), [6.0] * 3, 9.0, low, high),
        stratified(root_key(1, "a"), [1.5] * 3, low, high),
    ):
        cell = 6.0 if len(objects.key) < 20000 else 1.5
        part = objects.position_zyx_um / cell % 1.0
        expected = len(part) / 8
        for axis in range(3):
            counts = np.bincount((part[:, axis] * 8).astype(int), minlength=8)
            assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)
    scattered = scatter(root_key(1, "a"), [6.0] * 3, 9.0, low, high)
    assert len(scattered.key) == pytest.approx(9000, abs=5 * math.sqrt(9000))


def test_lattice_noise_is_as_strong_on_the_nodes_as_between_them():
    squares, total = np.zeros(8), 0.0
    for seed in range(6):
        noise = lattice_noise(root_key(seed, "n"), 0.8, make_grid((0.0, 0.0, 0.0), (40, 80, 80), (0.1, 0.1, 0.1)))
        squares += (noise**2).mean(axis=(0, 1)).reshape(10, 8).mean(axis=0) / 6
        total += float(noise.mean()) / 6
    assert abs(total) < 0.05
    assert squares.max() < 1.2 * squares.min()
    assert 0.7 < squares.mean() < 1.3


@pytest.mark.parametrize("voxel", VOXELS)
def test_light_does_not_depend_on_the_voxel(voxel):
    shape = tuple(math.ceil(6.0 / side) for side in voxel)
    grid = make_grid((-3.0, -3.0, -3.0), shape, voxel)
    centre, one = np.array([[0.013, -0.27, 0.41]]), np.ones(1)
    assert splat_points(grid, centre, 3 * one).sum() == pytest.approx(3.0, rel=1e-5)
    along = splat_segments(grid, centre, centre + np.array([[0.3, 0.2, -0.1]]), 5 * one, 0.4)
    assert along.sum() == pytest.approx(5 * math.sqrt(0.14), rel=1e-5)
    for radius in (0.03, 0.2, 0.9):
        for splat in (splat_balls, splat_shells):
            volume = splat(grid, centre, radius * one, 7 * one)
            assert volume.sum() == pytest.approx(7.0, rel=1e-4)
            for axis in range(3):
                weight = volume.sum(axis=tuple(other for other in range(3) if other != axis))
                middle = float((weight * grid.centres_um(axis)).sum() / weight.sum())
                # A voxel's integral of a ball smaller than the voxel says only which voxel it is in.
                slack = 0.12 * voxel[axis] + max(0.0, 0.5 * voxel[axis] - radius)
                assert middle == pytest.approx(centre[0, axis], abs=slack)


@pytest.mark.parametrize("voxel", VOXELS)
def test_level_sets_give_the_volume_and_area_of_a_ball(voxel):
    shape = tuple(math.ceil(5.0 / side) for side in voxel)
    grid = make_grid((-2.5, -2.5, -2.5), shape, voxel)
    z, y, x = (grid.padded(1).centres_um(axis) for axis in range(3))
    level = (1.9 - np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)).astype(np.float32)
    ball = float(covered(level).sum()) * math.prod(voxel)
    assert ball == pytest.approx(4 / 3 * math.pi * 1.9**3, rel=0.01)
    assert area(level, grid).sum() == pytest.approx(4 * math.pi * 1.9**2, rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_a_thin_specimen_is_dark_outside_its_thickness(kind):
    volume = render(Specimen(kind, 2, density=3.0, thickness_um=2.0), (-3.0, 0.0, 0.0), (12, 60, 60), (0.5, 0.2, 0.2))
    assert volume[4:8].max() > 0
    assert volume[:4].max() == 0 and volume[8:].max() == 0


def test_coverage_leaves_empty_background():
    shares = []
    for seed in range(12):
        specimen = Specimen("cytoplasm", seed, "grain", coverage=0.4, thickness_um=3.0)
        shares.append((render(specimen, (-0.5, 0, 0), (1, 60, 60), (1.0, 1.0, 1.0)) > 1e-3).mean())
    assert 0.25 < np.mean(shares) < 0.55


def test_a_record_in_json_makes_the_specimen_again():
    rng = np.random.default_rng(5)
    for _ in range(20):
        specimen = draw_specimen(rng, thickness_um=4.0)
        record = json.loads(json.dumps(dataclasses.asdict(specimen)))
        assert Specimen(**record) == specimen
        assert chosen_style(specimen) in STYLES[specimen.kind]


def test_draws_follow_the_generator_and_the_kinds_asked_for():
    first = [draw_specimen(np.random.default_rng(3), ["beads", "nuclei"]) for _ in range(2)]
    assert first[0] == first[1]
    rng = np.random.default_rng(3)
    assert {draw_specimen(rng, ["beads", "nuclei"]).kind for _ in range(30)} == {"beads", "nuclei"}
    assert {draw_specimen(rng).kind for _ in range(200)} == set(KINDS)
    named = {(s.kind, s.style) for s in (draw_specimen(rng, ["beads:doublets", "nuclei"]) for _ in range(30))}
    assert named == {("beads", "doublets"), ("nuclei", "")}


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: Specimen("cats", 1), "'cats'.*beads, filaments"),
        (lambda: Specimen("beads", 1, "stripes"), "'stripes'.*points, clusters"),
        (lambda: Specimen("beads", 1, density=0.0), "density is 0.0"),
        (lambda: Specimen("beads", 1, size=math.nan), "size is nan"),
        (lambda: Specimen("beads", 1, coverage=0.0), "coverage is 0.0"),
        (lambda: Specimen("beads", 1, thickness_um=-1.0), "thickness is -1.0"),
        (lambda: draw_specimen(np.random.default_rng(1), ["cats"]), "'cats'"),
        (lambda: render(Specimen("beads", 1), (0, 0, 0), (2, 2, 2), (0.1, 0.0, 0.1)), "voxel size"),
        (lambda: render(Specimen("beads", 1), (0, 0, 0), (2, 0, 2), (0.1, 0.1, 0.1)), "shape"),
        (lambda: render(Specimen("beads", 1), (0, math.inf, 0), (2, 2, 2), (0.1, 0.1, 0.1)), "origin"),
        (lambda: render(Specimen("beads", 1), (0, 0), (2, 2, 2), (0.1, 0.1, 0.1)), "origin"),
    ],
)
def test_wrong_values_are_refused_in_one_line(act, words):
    with pytest.raises(InputError, match=words) as caught:
        act()
    assert "\n" not in str(caught.value)
