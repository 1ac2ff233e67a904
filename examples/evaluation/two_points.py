"""How far apart two points, or two parallel lines, must be to come out as two: resolution where it can be counted.

Invariant: a trial is resolved by a stated rule on the true positions, the same for every method, and single objects
are put to the same rule, so that a method that splits everything gains nothing unseen.

Rule. Each image has one kind of object, one distance, one light level, and 25 places with their own sub-pixel position
and angle. Of a pair, a maximum is looked for within 0.35 FWHM of each true position (points: in the plane; lines: in
the profile across, averaged over 2 FWHM along); it must not lie at the rim of where it is looked for, and the lower
one must be at least half the higher, background taken off. Dip = 1 - lowest value between both / lower maximum.
Resolved: dip >= 26.5 % (Rayleigh), also reported for 5 % (about Sparrow). Resolution distance: the smallest from which
on at least 75 % of the trials are resolved, in units of the FWHM of the in-focus PSF. False dip: the same dip within
1 FWHM of the middle of a single point (on four lines through it) or line. Light: photons in the brightest pixel of one
point, or line, alone; background a tenth of it; read noise 1.6 e.

    python examples/evaluation/two_points.py -o results/two_points --model widefield

writes results/two_points.{json,md,png}. Richardson-Lucy knows PSF, background and read noise; its common setting is
the one of the highest share of resolved less share of falsely split trials on this very set (also: at each light
level). Sources: Rayleigh 1879 (Phil. Mag. 8, 261), dip of 26.5 %; Sparrow 1916 (Astrophys. J. 44, 76).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import recording as rec
from numpy.typing import NDArray
from scipy import ndimage

from mrbcr_cli.evaluation.baselines import Setting

Kind = Literal["points", "lines"]
KINDS: tuple[Kind, ...] = ("points", "lines")
RAYLEIGH, SPARROW = 0.265, 0.05
NEAR = 0.35
"""Of the FWHM: how far from the truth a maximum may lie."""
LEAST_RATIO = 0.5
SHARE = 0.75
CELLS = 5
CELL_FWHM = 10
LINE_FWHM = 5.0
SINGLE = 0.0
"""The "distance" of one object."""
Dips = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """One image's worth of trials; distance in FWHM, 0 for single objects."""

    kind: Kind
    fwhm_px: float
    photons: float
    distance: float
    repeat: int


@dataclass(frozen=True, eq=False)
class Trials:
    """Where the objects of an image are: middles (n, 2) and directions from one to the other (n,)."""

    centres_yx: NDArray[np.float64]
    angles: NDArray[np.float64]

    def ends(self, distance_px: float) -> NDArray[np.float64]:
        """True positions (n, 2 objects, 2)."""
        step = 0.5 * distance_px * np.stack([np.sin(self.angles), np.cos(self.angles)], axis=-1)
        return np.stack([self.centres_yx - step, self.centres_yx + step], axis=1)


def make_case(case: Case, seed: int) -> tuple[rec.Recording, Trials]:
    """Record a case; the random numbers are its own."""
    key = [seed, KINDS.index(case.kind), *(round(1000 * v) for v in (case.fwhm_px, case.photons, case.distance))]
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([*key, case.repeat])))
    optics = rec.make_optics(case.fwhm_px)
    cell_px = 2 * round(CELL_FWHM * case.fwhm_px / 2)
    centres = rec.cell_centres(CELLS, cell_px)
    centres = centres + rng.uniform(-2.0, 2.0, centres.shape)
    trials = Trials(centres, rng.uniform(0.0, 2 * np.pi, len(centres)))
    ends = trials.ends(case.distance * case.fwhm_px)
    objects = ends[:, :1] if case.distance == SINGLE else ends
    parts = [_object(case, at, angle) for both, angle in zip(objects, trials.angles, strict=True) for at in both]
    alone = _object(case, (32.0, 32.0), np.pi / 2)
    peak = float(rec.light_of(alone, optics, 64).max())
    recorded = rec.record(
        np.concatenate(parts), optics, CELLS * cell_px, rng, photons_per_weight=case.photons / peak,
        background_photons=rec.BACKGROUND * case.photons,
    )  # fmt: skip
    return recorded, trials


def _object(case: Case, at_yx: Sequence[float] | NDArray[np.float64], angle: float) -> rec.Points:
    """A point, or a line at right angles to the direction of the pair."""
    if case.kind == "points":
        return np.array([[at_yx[0], at_yx[1], 1.0]])
    return rec.line_points((float(at_yx[0]), float(at_yx[1])), angle + np.pi / 2, LINE_FWHM * case.fwhm_px)


def measure(image: rec.Image, recorded: rec.Recording, trials: Trials, case: Case) -> Dips:
    """Dip of every trial, 0 where there are no two maxima in the right places (n,)."""
    above = np.asarray(image, np.float64) - recorded.background
    spline = ndimage.spline_filter(above, order=3, output=np.float64, mode="mirror")
    fwhm = case.fwhm_px
    if case.distance == SINGLE:
        turns = (0.0, 0.25, 0.5, 0.75) if case.kind == "points" else (0.0,)
        profiles = [_profiles(spline, trials, case, trials.angles + np.pi * turn, fwhm) for turn in turns]
        found: Dips = np.max([[_largest_dip(p) for p in lines] for lines in profiles], axis=0)
        return found
    if case.kind == "points":
        return _point_dips(spline, trials.ends(case.distance * fwhm), NEAR * fwhm)
    reach = case.distance * fwhm / 2 + NEAR * fwhm
    profiles_t = _profiles(spline, trials, case, trials.angles, reach)
    return np.array([_line_dip(p, reach, case.distance * fwhm / 2, NEAR * fwhm) for p in profiles_t])


def _at(spline: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values at (..., 2) sub-pixel places."""
    flat = places.reshape(-1, 2).T
    values = ndimage.map_coordinates(spline, flat, order=3, prefilter=False, mode="mirror")
    return np.asarray(values.reshape(places.shape[:-1]))


def _point_dips(spline: NDArray[np.float64], ends: NDArray[np.float64], radius: float) -> Dips:
    step = radius / 8
    grid = np.stack(np.meshgrid(*[np.arange(-8, 9) * step] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    grid = grid[np.hypot(*grid.T) <= radius + 1e-9]
    values = _at(spline, ends[:, :, None, :] + grid)
    best = values.argmax(-1)
    heights = np.take_along_axis(values, best[..., None], -1)[..., 0]
    inside = np.hypot(grid[best][..., 0], grid[best][..., 1]) < radius - 0.75 * step
    maxima = ends + grid[best]
    along = np.linspace(0.0, 1.0, 41)[:, None]
    between = _at(spline, maxima[:, :1] * (1 - along) + maxima[:, 1:] * along)
    return _dip(heights, between.min(-1), inside.all(-1))


def _profiles(
    spline: NDArray[np.float64], trials: Trials, case: Case, angles: NDArray[np.float64], reach: float
) -> NDArray[np.float64]:
    """Profiles (n, 2 m + 1) along `angles` through the middles, to `reach` px on both sides; of lines the mean over
    2 FWHM along them."""
    t = np.linspace(-reach, reach, 2 * round(reach / 0.1) + 1)
    s = np.array([0.0]) if case.kind == "points" else np.linspace(-case.fwhm_px, case.fwhm_px, 15)
    across = np.stack([np.sin(angles), np.cos(angles)], axis=-1)[:, None, None, :]
    along = np.stack([np.cos(angles), -np.sin(angles)], axis=-1)[:, None, None, :]
    places = trials.centres_yx[:, None, None, :] + t[:, None, None] * across + s[:, None] * along
    return np.asarray(_at(spline, places).mean(-1))


def _line_dip(profile: NDArray[np.float64], reach: float, at: float, near: float) -> float:
    t = np.linspace(-reach, reach, len(profile))
    tops = []
    for place in (-at, at):
        window = np.flatnonzero(np.abs(t - place) <= near + 1e-9)
        top = int(window[profile[window].argmax()])
        # The outer end of a window is an end of the profile; a maximum at either end is none.
        if top in (window[0], window[-1]):
            return 0.0
        tops.append(top)
    if tops[0] >= tops[1]:
        return 0.0
    heights = profile[tops][None]
    return float(_dip(heights, profile[tops[0] : tops[1] + 1].min()[None], np.array([True]))[0])


def _dip(heights: NDArray[np.float64], lowest: NDArray[np.float64], valid: NDArray[np.bool_]) -> Dips:
    low, high = heights.min(-1), heights.max(-1)
    valid = valid & (low > 0) & (low >= LEAST_RATIO * high)
    dips: Dips = np.where(valid, 1.0 - lowest / np.where(valid, low, 1.0), 0.0)
    return dips


def _largest_dip(profile: NDArray[np.float64]) -> float:
    """The deepest dip between two maxima of a profile of which the lower is at least half the higher."""
    left, right = np.maximum.accumulate(profile), np.maximum.accumulate(profile[::-1])[::-1]
    dips = _dip(np.stack([left, right], axis=-1), profile, np.ones(len(profile), np.bool_))
    return float(dips.max())


def resolution_distance(distances: Sequence[float], shares: Sequence[float]) -> float | None:
    """The smallest distance from which on all shares are at least `SHARE`; None where there is none."""
    found = None
    for distance, share in sorted(zip(distances, shares, strict=True), reverse=True):
        if share < SHARE:
            break
        found = distance
    return found


def run(
    cases: Sequence[Case], methods: Mapping[str, rec.Restore], settings: Sequence[Setting], seed: int
) -> dict[str, dict[Case, Dips]]:
    """Dips by method and case."""
    dips: dict[str, dict[Case, Dips]] = {}
    for case in cases:
        recorded, trials = make_case(case, seed)
        for name, image in rec.run_all(recorded, methods, settings).items():
            dips.setdefault(name, {})[case] = measure(image, recorded, trials, case)
    return dips


def make_cases(
    fwhms: Sequence[float], photons: Sequence[float], distances: Sequence[float], repeats: int
) -> list[Case]:
    """All combinations, single objects included."""
    return [
        Case(kind, f, p, d, r)
        for kind in KINDS for f in fwhms for p in photons for d in (SINGLE, *distances) for r in range(repeats)
    ]  # fmt: skip


@dataclass(frozen=True)
class Found:
    """One method on one kind, width and light level; `fwhm_px` None: the mean over all."""

    method: str
    kind: Kind
    fwhm_px: float | None
    photons: float
    shares: dict[float, float]
    """Resolved (Rayleigh), by distance in FWHM."""
    shares_sparrow: dict[float, float]
    false_dips: float
    false_sparrow: float

    def distance(self, *, sparrow: bool = False) -> float | None:
        """In FWHM."""
        shares = self.shares_sparrow if sparrow else self.shares
        return resolution_distance(list(shares), list(shares.values()))


def summarise(dips: Mapping[str, Mapping[Case, Dips]]) -> list[Found]:
    """For every method, kind and light level: all widths together, then each."""
    found = []
    for method, by_case in dips.items():
        cases = list(by_case)
        widths = sorted({c.fwhm_px for c in cases})
        groups: list[float | None] = [None, *widths] if len(widths) > 1 else [None]
        for kind in KINDS:
            for photons in sorted({c.photons for c in cases}):
                for width in groups:
                    mine = {
                        c: d
                        for c, d in by_case.items()
                        if c.kind == kind and c.photons == photons and width in (None, c.fwhm_px)
                    }
                    if mine:
                        found.append(_found(method, kind, width, photons, mine))
    return found


def _found(method: str, kind: Kind, width: float | None, photons: float, mine: Mapping[Case, Dips]) -> Found:
    shares: list[dict[float, float]] = []
    for least in (RAYLEIGH, SPARROW):
        by_distance = {
            d: np.concatenate([dips for c, dips in mine.items() if c.distance == d])
            for d in sorted({c.distance for c in mine})
        }
        shares.append({d: float((dips >= least).mean()) for d, dips in by_distance.items()})
    false = [s.pop(SINGLE) for s in shares]
    return Found(method, kind, width, photons, shares[0], shares[1], false[0], false[1])


def choose(found: Sequence[Found], names: Sequence[str], photons: float | None = None) -> str:
    """The method with the most resolved less falsely split trials, at one light level or at all."""

    def score(name: str) -> float:
        mine = [f for f in found if f.method == name and f.fwhm_px is None and photons in (None, f.photons)]
        return float(np.mean([np.mean(list(f.shares.values())) - f.false_dips for f in mine]))

    return max(names, key=score)


def chosen_rows(found: Sequence[Found], settings: Sequence[Setting]) -> tuple[list[Found], dict[str, Any]]:
    """The methods that are no Richardson-Lucy, and its best settings under plain names; and what was chosen."""
    plain = {f"RL{' + target blur' if b else ''}": [rec.rl_name(s) for s in settings if s.blurred == b] for b in (0, 1)}
    every = [name for names in plain.values() for name in names]
    rows = [f for f in found if f.method not in every]
    chosen: dict[str, Any] = {}
    for label, names in plain.items():
        if not names:
            continue
        common = choose(found, names)
        chosen[label] = common
        rows += [_renamed(f, label) for f in found if f.method == common]
        each = {p: choose(found, names, p) for p in sorted({f.photons for f in found})}
        chosen[f"{label}, each light level"] = {f"{p:g}": name for p, name in each.items()}
        rows += [_renamed(f, f"{label}, each light level") for f in found if f.method == each[f.photons]]
    return rows, chosen


def _renamed(found: Found, name: str) -> Found:
    return Found(name, *(getattr(found, k) for k in list(Found.__dataclass_fields__)[1:]))


def markdown(rows: Sequence[Found], chosen: Mapping[str, Any], title: str) -> str:
    """Tables: resolution distance by light, and false dips; a star where a quarter or more of single ones is split."""
    photons = sorted({f.photons for f in rows})
    parts = [f"# {title}", "", "Resolution distance in FWHM of the in-focus PSF; * a quarter or more of single objects"]
    parts += ["is split too, so that the distance means nothing; - not within the distances tried.", ""]
    widths: list[float | None] = list(dict.fromkeys(f.fwhm_px for f in rows))
    for kind in KINDS:
        for width in widths:
            mine = [f for f in rows if f.kind == kind and f.fwhm_px == width]
            if not mine:
                continue
            said = "all widths" if width is None else f"FWHM {width:g} px"
            for sparrow in (False, True) if width is None else (False,):
                rule = "dip 5 %" if sparrow else "dip 26.5 %"
                parts += [f"## {kind}, {said}, {rule}", "", _distance_table(mine, photons, sparrow), ""]
            if width is None:
                parts += [f"## single {kind} falsely split (dip 26.5 %), share", "", _false_table(mine, photons), ""]
    parts += ["Richardson-Lucy settings chosen: " + "; ".join(f"{k}: {v}" for k, v in chosen.items())]
    return "\n".join(parts)


def _distance_table(mine: Sequence[Found], photons: Sequence[float], sparrow: bool) -> str:
    def cell(method: str, p: float) -> str:
        one = next((f for f in mine if f.method == method and f.photons == p), None)
        if one is None:
            return ""
        distance, false = one.distance(sparrow=sparrow), one.false_sparrow if sparrow else one.false_dips
        return ("-" if distance is None else f"{distance:.2f}") + ("*" if false >= 1 - SHARE else "")

    names = list(dict.fromkeys(f.method for f in mine))
    head = ["method", *(f"{p:g} photons" for p in photons)]
    return rec.table(head, [[name, *(cell(name, p) for p in photons)] for name in names])


def _false_table(mine: Sequence[Found], photons: Sequence[float]) -> str:
    names = list(dict.fromkeys(f.method for f in mine))
    values = {(f.method, f.photons): f.false_dips for f in mine}
    rows = [[name, *(f"{values[name, p]:.2f}" for p in photons)] for name in names]
    return rec.table(["method", *(f"{p:g} photons" for p in photons)], rows)


def figure(rows: Sequence[Found], path: Path) -> None:
    """Share resolved against distance, a panel for each kind and light level."""
    from matplotlib.figure import Figure

    photons = sorted({f.photons for f in rows})
    fig = Figure(figsize=(3.2 * len(photons), 6.4), layout="constrained")
    axes = fig.subplots(2, len(photons), sharex=True, sharey=True, squeeze=False)
    for i, kind in enumerate(KINDS):
        for j, p in enumerate(photons):
            for f in rows:
                if (f.kind, f.photons, f.fwhm_px) == (kind, p, None) and "each" not in f.method:
                    axes[i, j].plot(list(f.shares), list(f.shares.values()), label=f.method)
            axes[i, j].axhline(SHARE, color="0.7", lw=0.8)
            axes[i, j].set_title(f"{kind}, {p:g} photons", fontsize=9)
    axes[0, 0].legend(fontsize=7)
    fig.supxlabel("distance / FWHM")
    fig.supylabel("share of pairs resolved (dip 26.5 %)")
    fig.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """See the module text."""
    parser = rec.parser_of("How far apart two points or lines must be to come out as two.")
    parser.add_argument("--fwhm", type=float, nargs="+", default=[3.0, 4.0, 5.0], help="PSF FWHM, px")
    parser.add_argument("--photons", type=float, nargs="+", default=[30.0, 100.0, 300.0, 1000.0, 5000.0])
    parser.add_argument("--step", type=float, default=0.05, help="of the distances 0.5 to 1.5, FWHM")
    parser.add_argument("--repeats", type=int, default=1, help="images (25 trials) a condition")
    parser.add_argument("--rl-iterations", type=int, nargs="*", default=list(rec.RL_ITERATIONS), help="none: no RL")
    args = parser.parse_args(argv)
    methods = {"input": rec.identity, **rec.network_methods(args.model or ["widefield"]), "target itself": rec.truth}
    settings = rec.rl_settings(args.rl_iterations)
    distances = [round(0.5 + k * args.step, 4) for k in range(round(1.0 / args.step) + 1)]
    dips = run(make_cases(args.fwhm, args.photons, distances, args.repeats), methods, settings, args.seed)
    rows, chosen = chosen_rows(summarise(dips), settings)
    keys = list(Found.__dataclass_fields__)
    written = [
        {**{k: getattr(f, k) for k in keys}, "distance": f.distance(), "distance_sparrow": f.distance(sparrow=True)}
        for f in rows
    ]
    text = markdown(rows, chosen, "Two points, two lines")
    rec.write_results(args.output, {"seed": args.seed, "chosen": chosen, "results": written}, text)
    figure(rows, args.output.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
