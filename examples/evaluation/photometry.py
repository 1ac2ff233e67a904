"""Whether brightness survives: integrated intensities of isolated beads after deconvolution, against the truth.

Invariant: every method is measured with the same apertures at the true positions, and the truth is the target's own
integrated intensity measured the same way, so that the target itself gives slope 1 and R^2 1.

Beads lie on a lattice of cells (12 FWHM wide), at random sub-pixel positions. Intensity of a bead: sum of the pixels
within 2 FWHM less the median of the ring from 3 to 4 FWHM, times the pixels of the aperture. "mixed": intensities over
two decades (log-uniform) in one image, so that one normalisation holds for all. "single": every image has one
intensity; images over two decades, each normalised by itself. Light: photons in the brightest pixel of the brightest
bead; background a tenth of it, read noise 1.6 e.

Fits, over all beads of a light level and FWHM: slope of measured = slope * truth (least squares through zero; the
brightest decide), its R^2 (1 - residual / scatter about the mean), slope and R^2 of log measured against log truth
(beads measured above 0), and per bead measured / truth - 1: median, and root mean square, by thirds of the brightness.
Bars: R^2 >= 0.99 and slope within 5 % of 1.

    python examples/evaluation/photometry.py -o results/photometry --model widefield
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import recording as rec
from numpy.typing import NDArray

from mrbcr_cli.evaluation.baselines import Setting

Kind = Literal["mixed", "single"]
KINDS: tuple[Kind, ...] = ("mixed", "single")
APERTURE_FWHM, RING_FWHM = 2.0, (3.0, 4.0)
CELLS, CELL_FWHM = 6, 12
DECADES = 2.0
SINGLE_LEVELS = 7
LEAST_R2, LARGEST_SLOPE_ERROR = 0.99, 0.05
Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Beads:
    """A recording and the places of its beads (n, 2)."""

    recorded: rec.Recording
    places_yx: Values


def make_image(kind: Kind, fwhm_px: float, photons: float, seed: int, number: int) -> Beads:
    """Image `number` of a condition; of "single" the numbers go through the intensities."""
    key = [seed, KINDS.index(kind), round(1000 * fwhm_px), round(photons), number]
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    optics = rec.make_optics(fwhm_px)
    cell_px = 2 * round(CELL_FWHM * fwhm_px / 2)
    centres = rec.cell_centres(CELLS, cell_px)
    places = centres + rng.uniform(-0.5 * fwhm_px, 0.5 * fwhm_px, centres.shape)
    if kind == "mixed":
        weights = 10.0 ** (-DECADES * rng.permutation(np.linspace(0.0, 1.0, len(places))))
    else:
        weights = np.full(len(places), 10.0 ** (-DECADES * (number % SINGLE_LEVELS) / (SINGLE_LEVELS - 1)))
    recorded = rec.record(
        np.column_stack([places, weights]), optics, CELLS * cell_px, rng,
        photons_per_weight=photons / rec.point_peak(optics), background_photons=rec.BACKGROUND * photons,
    )  # fmt: skip
    return Beads(recorded, places)


def intensities(image: NDArray[np.floating], places_yx: Values, fwhm_px: float) -> Values:
    """Aperture sum less local background of each bead (n,), in the image's unit times px."""
    values = np.asarray(image, np.float64)
    y, x = np.indices(values.shape)
    found = []
    for at in places_yx:
        distance = np.hypot(y - at[0], x - at[1])
        inside = distance <= APERTURE_FWHM * fwhm_px
        ring = (distance >= RING_FWHM[0] * fwhm_px) & (distance <= RING_FWHM[1] * fwhm_px)
        found.append(values[inside].sum() - inside.sum() * np.median(values[ring]))
    return np.array(found)


@dataclass(frozen=True)
class Fit:
    """A method's photometry at one condition; see the module text."""

    method: str
    kind: Kind
    fwhm_px: float
    photons: float
    slope: float
    r2: float
    log_slope: float
    log_r2: float
    beads_lost: float
    """Share measured at 0 or below."""
    bias: tuple[float, float, float]
    """Median of measured / truth - 1: dim, middle and bright third (by log intensity)."""
    rms: tuple[float, float, float]

    @property
    def good(self) -> bool:
        """Whether both bars are met."""
        return self.r2 >= LEAST_R2 and abs(self.slope - 1) <= LARGEST_SLOPE_ERROR


def fit(method: str, kind: Kind, fwhm_px: float, photons: float, true: Values, measured: Values) -> Fit:
    """All numbers of one condition."""
    slope = float((true * measured).sum() / (true**2).sum())
    scatter = float(((measured - measured.mean()) ** 2).sum())
    r2 = 1.0 - float(((measured - slope * true) ** 2).sum()) / scatter if scatter > 0 else 0.0
    kept = measured > 0
    log_slope, log_r2 = float("nan"), float("nan")
    if kept.sum() >= 3:
        a, b = np.log10(true[kept]), np.log10(measured[kept])
        log_slope = float(np.polyfit(a, b, 1)[0])
        log_r2 = float(np.corrcoef(a, b)[0, 1] ** 2)
    ratio = measured / true - 1
    level = np.log10(true / true.max()) / DECADES
    thirds = [level < -2 / 3, (level >= -2 / 3) & (level < -1 / 3), level >= -1 / 3]
    bias = tuple(float(np.median(ratio[t])) for t in thirds)
    rms = tuple(float(np.sqrt(np.mean(ratio[t] ** 2))) for t in thirds)
    return Fit(
        method, kind, fwhm_px, photons, slope, r2, log_slope, log_r2, float(1 - kept.mean()),
        (bias[0], bias[1], bias[2]), (rms[0], rms[1], rms[2]),
    )  # fmt: skip


def run(
    fwhms: Sequence[float], photons: Sequence[float], methods: Mapping[str, rec.Restore], settings: Sequence[Setting],
    *, images: int = 4, seed: int = 0, kinds: Sequence[Kind] = KINDS,
) -> tuple[list[Fit], dict[tuple[str, Kind, float, float], tuple[Values, Values]]]:  # fmt: skip
    """Fits, and the measurements (true, measured) behind them by (method, kind, FWHM, photons)."""
    raw: dict[tuple[str, Kind, float, float], list[tuple[Values, Values]]] = {}
    for kind in kinds:
        for fwhm in fwhms:
            for p in photons:
                for number in range(images if kind == "mixed" else SINGLE_LEVELS):
                    beads = make_image(kind, fwhm, p, seed, number)
                    true = intensities(beads.recorded.target, beads.places_yx, fwhm)
                    for name, image in rec.run_all(beads.recorded, methods, settings).items():
                        measured = intensities(image, beads.places_yx, fwhm)
                        raw.setdefault((name, kind, fwhm, p), []).append((true, measured))
    joined = {k: (np.concatenate([t for t, _ in v]), np.concatenate([m for _, m in v])) for k, v in raw.items()}
    return [fit(*key, *values) for key, values in joined.items()], joined


def markdown(fits: Sequence[Fit], title: str) -> str:
    """One table a kind."""
    head = ["photons", "FWHM px", "method", "slope", "R^2", "log slope", "log R^2", "lost"]
    head += ["bias dim / middle / bright", "RMS dim / middle / bright", "bars"]
    parts = [f"# {title}", ""]
    for kind in dict.fromkeys(f.kind for f in fits):
        mine = sorted((f for f in fits if f.kind == kind), key=lambda f: (f.photons, f.fwhm_px))
        rows = [
            [
                f"{f.photons:g}", f"{f.fwhm_px:g}", f.method, f"{f.slope:.3f}", f"{f.r2:.4f}", f"{f.log_slope:.3f}",
                f"{f.log_r2:.3f}", f"{100 * f.beads_lost:.0f} %", " / ".join(f"{100 * v:+.0f} %" for v in f.bias),
                " / ".join(f"{100 * v:.0f} %" for v in f.rms), "met" if f.good else "missed",
            ]
            for f in mine
        ]  # fmt: skip
        parts += [f"## {kind}", "", rec.table(head, rows), ""]
    return "\n".join(parts)


def figure(joined: Mapping[tuple[str, Kind, float, float], tuple[Values, Values]], fwhm: float, path: Path) -> None:
    """Measured against true, log-log, a panel for each kind and light level."""
    from matplotlib.figure import Figure

    photons = sorted({key[3] for key in joined})
    kinds = list(dict.fromkeys(key[1] for key in joined))
    fig = Figure(figsize=(3.4 * len(photons), 3.4 * len(kinds)), layout="constrained")
    axes = fig.subplots(len(kinds), len(photons), squeeze=False)
    for (name, kind, width, p), (true, measured) in joined.items():
        if width == fwhm:
            axis = axes[kinds.index(kind), photons.index(p)]
            axis.plot(true, np.maximum(measured, 0.3 * true.min()), ".", ms=4, alpha=0.6, label=name)
            axis.set_title(f"{kind}, {p:g} photons, FWHM {fwhm:g} px", fontsize=8)
    for axis in axes.flat:
        axis.set(xscale="log", yscale="log")
        axis.axline((1e3, 1e3), (1e4, 1e4), color="0.6", lw=0.8)
    axes[0, 0].legend(fontsize=7)
    fig.supxlabel("integrated intensity of the target (counts)")
    fig.supylabel("measured")
    fig.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """See the module text."""
    parser = rec.parser_of("Integrated intensities of beads after deconvolution.")
    parser.add_argument("--fwhm", type=float, nargs="+", default=[3.0, 5.0], help="PSF FWHM, px")
    parser.add_argument("--photons", type=float, nargs="+", default=[100.0, 1000.0, 5000.0])
    parser.add_argument("--images", type=int, default=4, help="of the mixed kind a condition")
    parser.add_argument("--rl-iterations", type=int, nargs="*", default=[20, 100])
    args = parser.parse_args(argv)
    methods = {"input": rec.identity, **rec.network_methods(args.model or ["widefield"]), "target itself": rec.truth}
    settings = rec.rl_settings(args.rl_iterations, (False,))
    fits, joined = run(args.fwhm, args.photons, methods, settings, images=args.images, seed=args.seed)
    text = markdown(fits, "Photometry of beads over two decades")
    rec.write_results(args.output, {"seed": args.seed, "results": [{**asdict(f), "good": f.good} for f in fits]}, text)
    figure(joined, args.fwhm[-1], args.output.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
