"""What a method makes of nothing: false objects on empty background and beside beads, and a lattice in flat areas.

Invariant: what is counted as false is decided by the noise-free truth and a stated threshold, the same for every
method; a method that returns its input has a lattice number of about 1 and a false-object count that says how the
threshold deals with plain noise.

Scenes (256 px; several noise realisations): background of 0 (read noise alone, of 1.6 and 4 e), 3, 10, 30, 100, 1000
photons; single beads on a lattice of 64 px at several light levels; an empty half beside a half full of beads, so that
the range that the network sees is set by the beads; and one lone bead, too small to set the range: it is many times
brighter than what the network sees as 1. All are normalised as `mrbcr deconvolve` does it.

False object: a pixel that is the largest of its 5 x 5 neighbourhood and stands above the truth (noise-free background;
target, where there are beads) by more than 5 robust sigma of the output's error (1.4826 median absolute deviation, in
the flat area), and by more than 10 % of the input's range (percentiles 0.1 and 99.9); farther than 2 FWHM from any
bead. Counted per 10^4 px; also the tallest deviation from the truth in units of the input's range, and the standard
deviation of the output over that of the input.

Lattice: power of the output's spectrum (mean over realisations) at the lattice frequencies over the median power 3 to 6
frequency steps away; period 2: (1/2, 0), (0, 1/2), (1/2, 1/2); period 4: all that have a 1/4, with 0, 1/4 and 1/2.
The mean over each set (`fixed`) is ~1 where there is no lattice that keeps its phase; `worst`: the largest single one.
`modulated`: a lattice whose strength varies over the image has a broad peak, which has no contrast to its own flanks;
so the mean power within 1/32 of a lattice frequency over that from 1/32 to 1/16, the largest of the set: 1 for white
noise, up to 2 for a smooth spectrum. `percent_of_range`: RMS of all that lies within 1/32, in % of the input's range.

    python examples/evaluation/hallucination.py -o results/hallucination --model widefield
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import recording as rec
from numpy.typing import NDArray
from scipy import fft, ndimage

from mrbcr_cli.evaluation.baselines import Setting
from mrbcr_cli.optics.camera import Camera

SIGMAS, OF_RANGE = 5.0, 0.10
AWAY_FWHM = 2.0
PERIODS = (2, 4)
NEIGHBOURS = (3, 6)
BAND = 1 / 32
EMPTY_PHOTONS = (0.0, 3.0, 10.0, 30.0, 100.0, 1000.0)
BEAD_PHOTONS = (30.0, 100.0, 1000.0)
LONE_PHOTONS = (100.0, 1000.0, 5000.0)
Flat = tuple[slice, slice]


@dataclass(frozen=True, eq=False)
class Scene:
    """A recording, its beads (n, 2), and where it is flat."""

    label: str
    recorded: rec.Recording
    beads_yx: NDArray[np.float64]
    flat: Flat | None
    """None: nowhere."""


def make_scene(label: str, size_px: int, fwhm_px: float, seed: int, realisation: int) -> Scene:
    """The scene of a label: kind, photons and, where it is not 1.6 e, the read noise ("empty 0 4", "beads 100")."""
    kind, photons, *more = label.split()
    key = [seed, *label.encode(), realisation]
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    optics = rec.make_optics(fwhm_px)
    places = _places(kind, size_px, rng)
    level = float(photons)
    recorded = rec.record(
        np.column_stack([places, np.ones(len(places))]), optics, size_px, rng,
        photons_per_weight=level / rec.point_peak(optics),
        background_photons=level if kind == "empty" else rec.BACKGROUND * level,
        camera=Camera(read_noise_e=float(more[0]) if more else 1.6),
    )  # fmt: skip
    whole, half = slice(None), size_px // 2
    flat: dict[str, Flat | None] = {
        "empty": (whole, whole),
        "beads": None,
        "lone": None,
        # As many rows as columns; the beads end some 24 px before it.
        "beside": (slice(half // 2, half // 2 + half), slice(half, None)),
    }
    return Scene(label, recorded, places, flat[kind])


def _places(kind: str, size_px: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Where beads are (n, 2): nowhere, on a wide lattice, close together in the left half, or one in the middle."""
    if kind == "empty":
        return np.zeros((0, 2))
    cell_px = {"beads": 64, "beside": 16, "lone": size_px}[kind]
    centres = rec.cell_centres(size_px // cell_px, cell_px)
    centres = centres + rng.uniform(-2.0, 2.0, centres.shape)
    if kind != "beside":
        return np.asarray(centres)
    return np.asarray(centres[(centres[:, 1] > 24) & (centres[:, 1] < size_px // 2 - 24)])


def labels() -> list[str]:
    """All scenes."""
    found = [f"empty {p:g}" for p in EMPTY_PHOTONS] + ["empty 0 4"]
    return (
        found
        + [f"beads {p:g}" for p in BEAD_PHOTONS]
        + [f"beside {p:g}" for p in BEAD_PHOTONS]
        + [f"lone {p:g}" for p in LONE_PHOTONS]
    )


@dataclass(frozen=True)
class Deviations:
    """One image of one method."""

    false_objects: int
    area_px: int
    tallest: float
    """Largest positive deviation from the truth, in units of the input's range, away from beads."""
    noise_ratio: float
    """Robust sigma of the output's error over the input's, away from beads."""


def deviations(image: rec.Image, scene: Scene) -> Deviations:
    """See the module text."""
    recorded = scene.recorded
    span = input_span(recorded)
    error = np.asarray(image, np.float64) - recorded.target
    away = np.ones(error.shape, np.bool_)
    y, x = np.indices(error.shape)
    for at in scene.beads_yx:
        away &= np.hypot(y - at[0], x - at[1]) > AWAY_FWHM * recorded.optics.fwhm_px
    sigma, before = (robust_sigma(e[away]) for e in (error, recorded.counts.astype(np.float64) - recorded.mean))
    centred = error - float(np.median(error[away]))
    tops = (centred >= ndimage.maximum_filter(centred, size=5)) & away
    false = tops & (centred > SIGMAS * sigma) & (centred > OF_RANGE * span)
    return Deviations(int(false.sum()), int(away.sum()), float(centred[away].max()) / span, sigma / before)


def robust_sigma(values: NDArray[np.float64]) -> float:
    """Standard deviation of a normal distribution of the same median absolute deviation."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def power(piece_yx: NDArray[Any], span: float) -> NDArray[np.float64]:
    """Power spectrum of a piece without its mean, Hann-windowed, in units of `span`; its sum is the variance."""
    piece = np.asarray(piece_yx, np.float64) / span
    piece = piece - piece.mean()
    height, width = piece.shape
    window = np.hanning(height + 1)[:-1, None] * np.hanning(width + 1)[None, :-1]
    return np.asarray(np.abs(fft.fft2(piece * window)) ** 2 / (piece.size**2 * np.mean(window**2)))


def input_span(recorded: rec.Recording) -> float:
    """The range that the network sees, in counts."""
    low, high = np.percentile(recorded.counts, (0.1, 99.9))
    return max(float(high - low), 1.0)


@dataclass(frozen=True)
class Lattice:
    """What lies on the lattices of one period; see the module text."""

    fixed: float
    worst: float
    modulated: float
    percent_of_range: float
    share: float
    """Of the output's variance."""


def lattice(spectrum: NDArray[np.float64]) -> dict[int, Lattice]:
    """By period, of the mean of `power` over realisations."""
    height, width = spectrum.shape
    fy, fx = fft.fftfreq(height)[:, None], fft.fftfreq(width)[None, :]
    found = {}
    for period in PERIODS:
        sharp, wide, inside = [], [], np.zeros(spectrum.shape, np.bool_)
        for v, u in _frequencies(period):
            away = np.maximum(_gap(fy, v), _gap(fx, u))
            step = away * min(height, width)
            near = (step > NEIGHBOURS[0] - 0.5) & (step < NEIGHBOURS[1] + 0.5)
            at = spectrum[round(v * height) % height, round(u * width) % width]
            sharp.append(float(at / np.median(spectrum[near])))
            band = away <= BAND
            wide.append(float(spectrum[band].mean() / spectrum[(away > BAND) & (away <= 2 * BAND)].mean()))
            inside |= band | (np.maximum(_gap(fy, -v), _gap(fx, -u)) <= BAND)
        within, total = float(spectrum[inside].sum()), float(spectrum.sum())
        found[period] = Lattice(
            float(np.mean(sharp)), max(sharp), max(wide), 100 * within**0.5, within / total if total > 0 else 0.0
        )
    return found


def _gap(frequencies: NDArray[np.float64], at: float) -> NDArray[np.float64]:
    """Distance of frequencies from one of them, around the circle."""
    return np.asarray(np.abs((frequencies - at + 0.5) % 1.0 - 0.5))


def _frequencies(period: int) -> list[tuple[float, float]]:
    """Lattice frequencies (cycles per px) that this period has and the shorter ones have not; one of each +- pair."""
    steps = [k / period for k in range(period // 2 + 1)] + [-k / period for k in range(1, (period + 1) // 2)]
    shorter = {k / (period / 2) % 1 for k in range(period // 2)}
    every = [(v, u) for v, u in product(steps, steps) if u >= 0 and not (v % 1 in shorter and u % 1 in shorter)]
    return [f for f in every if f != (0.0, 0.0) and not (f[1] in (0.0, 0.5) and f[0] < 0)]


@dataclass(frozen=True)
class Found:
    """A method on all realisations of a scene."""

    scene: str
    method: str
    false_per_10k_px: float
    images_with_false: float
    """Share."""
    tallest: float
    """Mean over images of the tallest deviation, in units of the input's range."""
    noise_ratio: float
    lattice: dict[int, Lattice] | None


def run(
    scenes: Sequence[str], methods: Mapping[str, rec.Restore], settings: Sequence[Setting], *, size_px: int = 256,
    realisations: int = 8, fwhm_px: float = 4.0, seed: int = 0,
) -> list[Found]:  # fmt: skip
    """Every method on every scene."""
    found = []
    for label in scenes:
        seen: dict[str, list[Deviations]] = {}
        spectra: dict[str, NDArray[np.float64]] = {}
        for k in range(realisations):
            scene = make_scene(label, size_px, fwhm_px, seed, k)
            for name, image in rec.run_all(scene.recorded, methods, settings).items():
                seen.setdefault(name, []).append(deviations(image, scene))
                if scene.flat is not None:
                    spectrum = power(image[scene.flat], input_span(scene.recorded)) / realisations
                    spectra[name] = spectra.get(name, 0.0) + spectrum
        for name, several in seen.items():
            area = sum(d.area_px for d in several)
            found.append(
                Found(
                    scene=label,
                    method=name,
                    false_per_10k_px=1e4 * sum(d.false_objects for d in several) / area,
                    images_with_false=float(np.mean([d.false_objects > 0 for d in several])),
                    tallest=float(np.mean([d.tallest for d in several])),
                    noise_ratio=float(np.mean([d.noise_ratio for d in several])),
                    lattice=lattice(spectra[name]) if name in spectra else None,
                )
            )
    return found


def markdown(found: Sequence[Found], title: str) -> str:
    """One table a quantity: scenes down, methods across."""
    methods = list(dict.fromkeys(f.method for f in found))
    scenes = list(dict.fromkeys(f.scene for f in found))
    by_place = {(f.scene, f.method): f for f in found}

    def block(name: str, cell: Any, wanted: Sequence[str]) -> list[str]:
        rows = [[scene, *(cell(by_place[scene, m]) for m in methods)] for scene in wanted]
        return [f"## {name}", "", rec.table(["scene (photons)", *methods], rows), ""]

    parts = [f"# {title}", ""]
    parts += block(
        f"False objects per 10^4 px (> {SIGMAS:g} sigma and > {100 * OF_RANGE:g} % of the input's range)",
        lambda f: f"{f.false_per_10k_px:.2f}", scenes,
    )  # fmt: skip
    parts += block("Tallest deviation from the truth, of the input's range", lambda f: f"{f.tallest:.2f}", scenes)
    parts += block("Noise left: robust sigma over the input's", lambda f: f"{f.noise_ratio:.3f}", scenes)
    flat = [f.scene for f in found if f.lattice is not None and f.method == methods[0]]

    def numbers(f: Found) -> str:
        each = f.lattice or {}
        return "; ".join(
            f"{v.fixed:.1f} ({v.worst:.1f}), {v.modulated:.1f}, {v.percent_of_range:.2g} %" for v in each.values()
        )

    said = " and ".join(map(str, PERIODS))
    parts += block(f"Lattice, periods {said} px: fixed (worst), modulated, RMS of range", numbers, flat)
    return "\n".join(parts)


def figure(
    scenes: Sequence[str],
    methods: Mapping[str, rec.Restore],
    settings: Sequence[Setting],
    path: Path,
    fwhm_px: float,
    seed: int,
) -> None:
    """Input and outputs of one realisation of each scene, each in the range of its input; 128 px."""
    from matplotlib.figure import Figure

    names = [*methods, *map(rec.rl_name, settings)]
    fig = Figure(figsize=(2.2 * len(names), 2.3 * len(scenes)), layout="constrained")
    axes = fig.subplots(len(scenes), len(names), squeeze=False)
    for i, label in enumerate(scenes):
        scene = make_scene(label, 256, fwhm_px, seed, 0)
        low, high = np.percentile(scene.recorded.counts, (0.1, 99.9))
        for j, (name, image) in enumerate(rec.run_all(scene.recorded, methods, settings).items()):
            axes[i, j].imshow(image[64:192, 64:192], cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            axes[i, j].set_axis_off()
            axes[i, j].set_title(f"{name}\n{label}", fontsize=7)
    fig.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """See the module text."""
    parser = rec.parser_of("What a method makes of empty background, noise and single beads.")
    parser.add_argument("--fwhm", type=float, default=4.0, help="PSF FWHM, px")
    parser.add_argument("--realisations", type=int, default=16)
    parser.add_argument("--rl-iterations", type=int, nargs="*", default=[10, 50], help="none: no Richardson-Lucy")
    parser.add_argument("--scenes", nargs="+", default=labels(), help='such as "empty 100" "beside 30"')
    args = parser.parse_args(argv)
    methods = {"input": rec.identity, **rec.network_methods(args.model or ["widefield"])}
    settings = rec.rl_settings(args.rl_iterations)
    found = run(args.scenes, methods, settings, realisations=args.realisations, fwhm_px=args.fwhm, seed=args.seed)
    text = markdown(found, f"Nothing there: false objects and lattices, FWHM {args.fwhm:g} px")
    rec.write_results(args.output, {"seed": args.seed, "results": [asdict(f) for f in found]}, text)
    figure(args.scenes, methods, settings[:2], args.output.with_suffix(".png"), args.fwhm, args.seed)
    print(text)


if __name__ == "__main__":
    main()
