"""Evaluate networks on a set of simulated pairs, against Richardson-Lucy and Wiener that know how each was made.

Invariant: a pair's scores depend on the pair, the weights and (common settings) the set alone; two passes over the set,
one pair in memory at a time. The same command gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.console import Reporter
from mrbcr_cli.errors import InputError
from mrbcr_cli.evaluation.baselines import (
    ALL_SETTINGS,
    CRITERIA,
    KINDS,
    Choice,
    Problem,
    Setting,
    Tried,
    choose,
    run_settings,
    try_settings,
)
from mrbcr_cli.evaluation.networks import EvaluatedNetwork, load_networks
from mrbcr_cli.evaluation.results import Evaluation, Group, Row, unscored
from mrbcr_cli.evaluation.true_psf import PsfOf, given_psf, read_exposure, read_optics, true_psf_yx
from mrbcr_cli.images.pairs_store import PairsInfo, read_info, read_pairs
from mrbcr_cli.metrics import NO_SCORES, measure
from mrbcr_cli.optics.brightfield import Transmission

INPUT = "input"
HAZE_EDGES = (0.2, 0.4)
FWHM_EDGES_PX = (3.3, 4.7)


@dataclass(frozen=True, eq=False)
class StoredPair:
    """One pair: counts recorded, counts of the target, how it was made."""

    index: int
    blurred: NDArray[Any]
    sharp: NDArray[np.float32]
    record: dict[str, Any]

    @property
    def name(self) -> str:
        """See `pair_name`."""
        return pair_name(self.index)


def pair_name(index: int) -> str:
    """What a pair is called in the results."""
    return f"{index:06d}"


@dataclass(frozen=True, eq=False)
class PairImages:
    """One pair and what the methods made of it, for a figure: everything in counts."""

    name: str
    facts: Mapping[str, Any]
    outputs: Mapping[str, NDArray[Any]]
    """By method, the input first."""
    truth: NDArray[np.float32]
    pixel_um: float | None


OnPair = Callable[[PairImages, tuple[Row, ...]], None]


def evaluate_pairs(
    root: Path,
    models: Sequence[str] = ("widefield",),
    *,
    split: str = "test",
    limit: int | None = None,
    baselines: bool = True,
    psf: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    reporter: Reporter | None = None,
    on_pair: OnPair | None = None,
) -> Evaluation:
    """Evaluate `models` (embedded names or weights files) on the pairs of one split of a store at `root`.

    `limit`: the first so many pairs. `psf`: a PSF file for the baselines instead of the pairs' own. `seed`: of the
    bootstrap. `on_pair` is handed the images of every pair (figures). Raises InputError before anything is computed
    where it can be known, for pairs that hold no numbers as soon as they are met.
    """
    say = reporter or Reporter(quiet=True)
    info, numbers = select_pairs(root, split, limit)
    networks = load_networks(models, device)
    notes: list[str] = []
    peers = _Peers.of(info, psf, read_pair(root, numbers[0]), notes) if baselines else None
    passes = 1 if peers is None else 2
    with say.progress("evaluate", passes * len(numbers), unit="pairs") as progress:
        plans: tuple[Plan, ...] = ()
        if peers is not None:
            tried = []
            for pair in _pairs(root, numbers):
                tried.append(peers.try_all(pair))
                progress.advance()
            plans = make_plans(tried)
        rows: list[Row] = []
        for position, pair in enumerate(_pairs(root, numbers)):
            outputs, settings = _outputs(pair, networks, peers, plans, position)
            own = _score(pair, outputs, settings)
            rows += own
            if on_pair is not None:
                on_pair(PairImages(pair.name, _facts(pair), outputs, pair.sharp, _pixel_um(pair)), own)
            progress.advance()
    if peers is not None:
        notes += peers.notes(plans)
    notes += unscored(rows, "there is nothing to see, the truth's range is below the noise of one pixel")
    return Evaluation(
        source=_source(root, split, numbers, info),
        methods={
            INPUT: {"kind": INPUT},
            **{n.name: n.description for n in networks},
            **{p.name: p.to_json() for p in plans},
        },
        rows=tuple(rows),
        groups=group_pairs(rows),
        against="richardson-lucy" if plans else INPUT,
        seed=seed,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class Plan:
    """An explicit method under the name it has in the results."""

    name: str
    choice: Choice
    oracle: bool

    def setting(self, position: int) -> Setting:
        """For the image at this position of the set."""
        return self.choice.own[position] if self.oracle else self.choice.common

    def to_json(self) -> dict[str, Any]:
        """JSON-able: what it is, and (common settings) the mean of every setting tried."""
        means = self.choice.means_db
        described = {
            "kind": self.choice.common.kind,
            "setting": "each image's own" if self.oracle else self.choice.common.text(),
            "chosen_by": ("each image's " if self.oracle else "mean ") + self.choice.criterion,
        }
        if self.oracle:
            return described
        tried = [{"value": s.value, "through_target_gaussian": s.blurred, "mean_db": v} for s, v in means.items()]
        return {**described, "at_edge_of_grid": self.choice.at_edge(), "tried": tried}


def make_plans(tried: Sequence[Tried]) -> tuple[Plan, ...]:
    """Each explicit method at the set's best setting and at each image's, by PSNR, and by PSNR after the affine fit.

    Where both criteria agree on the set's best it is there once.
    """
    plans = []
    for kind in KINDS:
        plain, fit = (choose(kind, tried, criterion) for criterion in CRITERIA)
        plans.append(Plan(kind, plain, False))
        if fit.common != plain.common:
            plans.append(Plan(f"{kind} (fit)", fit, False))
        plans += [Plan(f"{kind} oracle", plain, True), Plan(f"{kind} oracle (fit)", fit, True)]
    return tuple(plans)


def _source(root: Path, split: str, numbers: range, info: PairsInfo) -> dict[str, Any]:
    mark = info.attributes.get("fingerprint")
    return {"pairs": root.name, "split": split, "first": numbers[0], "count": len(numbers), "fingerprint": mark}


def select_pairs(root: Path, split: str, limit: int | None) -> tuple[PairsInfo, range]:
    """The store and the numbers of the pairs to evaluate. Raises InputError where there are none."""
    if not root.exists():
        raise InputError(f"{root}: no such file or folder; make pairs with mrbcr simulate pairs")
    info = read_info(root)
    if split not in info.splits:
        raise InputError(f"--split {split}: {root} has {', '.join(info.splits)}")
    first, stop = info.splits[split]
    if first == stop:
        sizes = ", ".join(f"{name} {b - a}" for name, (a, b) in info.splits.items())
        raise InputError(f"--split {split}: {root} has no pairs there ({sizes})")
    if limit is not None and limit < 1:
        raise InputError(f"--limit must be 1 or more, not {limit}")
    return info, range(first, stop if limit is None else min(stop, first + limit))


def read_pair(root: Path, index: int) -> StoredPair:
    """One pair. Raises InputError where it cannot be read or holds NaN."""
    try:
        blurred, sharp, records = read_pairs(root, index, index + 1)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{root}: pair {index} cannot be read ({error})") from error
    for name, image in (("blurred", blurred), ("sharp", sharp)):
        if not np.isfinite(image).all():
            raise InputError(f"{root}: {name} of pair {index} holds NaN or infinity; make the pairs again")
    return StoredPair(index, blurred[0], sharp[0], records[0])


def _pairs(root: Path, numbers: Sequence[int]) -> Iterator[StoredPair]:
    return (read_pair(root, index) for index in numbers)


@dataclass(frozen=True, eq=False)
class _Peers:
    """The explicit methods on a set of pairs."""

    psf_of: PsfOf
    transmitted: bool

    @classmethod
    def of(cls, info: PairsInfo, psf: Path | None, first: StoredPair, notes: list[str]) -> _Peers:
        """Find the PSF of the pairs, from the first one. Raises InputError where there is none."""
        transmitted = isinstance(read_optics(first.record), Transmission)
        read_exposure(first.record)
        if psf is None:
            true_psf_yx(first.record, 15)
            return cls(true_psf_yx, transmitted)
        if transmitted:
            raise InputError(f"--psf {psf}: is an intensity PSF; brightfield pairs have none")
        psf_of, is_own = given_psf(psf, info.attributes.get("settings", {}))
        psf_of(first.record, 15)
        if not is_own(first.record):
            notes.append(f"the baselines use the PSF {psf.name}, which is not known to be the one of the pairs")
        return cls(psf_of, transmitted)

    def problem(self, pair: StoredPair) -> Problem:
        """In photo-electrons."""
        exposure = read_exposure(pair.record)
        return Problem(
            exposure.electrons(pair.blurred),
            self.psf_of(pair.record, min(pair.blurred.shape)),
            exposure.background_e,
            exposure.read_noise_e,
            exposure.target_fwhm_px,
        )

    def run(self, pair: StoredPair, settings: Sequence[Setting]) -> dict[Setting, NDArray[np.float32]]:
        """Estimates in counts."""
        back = read_exposure(pair.record).counts
        return {s: back(image) for s, image in run_settings(self.problem(pair), settings).items()}

    def try_all(self, pair: StoredPair) -> Tried:
        """Every setting there is; NaN where there is nothing to see."""
        if is_empty(pair):
            return {s: (math.nan, math.nan) for kind in KINDS for s in ALL_SETTINGS[kind]}
        return try_settings(self.run(pair, [s for kind in KINDS for s in ALL_SETTINGS[kind]]), pair.sharp)

    def notes(self, plans: Sequence[Plan]) -> list[str]:
        """What a reader must know of them."""
        said = [
            "baselines know the true in-focus PSF, background, gain, offset and read noise (not an sCMOS's maps); "
            "their settings are the best for these very images, by the truth"
        ]
        said += [
            f"{p.name}: the best setting is at the end of those tried"
            for p in plans
            if not p.oracle and p.choice.at_edge()
        ]
        if self.transmitted:
            said.append("brightfield: the in-focus response to absorption stands in for the PSF; phase is not modelled")
        return said


def _outputs(
    pair: StoredPair,
    networks: Sequence[EvaluatedNetwork],
    peers: _Peers | None,
    plans: Sequence[Plan],
    position: int,
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """What every method makes of a pair, in counts, and the settings of those that have some; by name."""
    outputs: dict[str, NDArray[Any]] = {INPUT: pair.blurred}
    outputs |= {network.name: network.restore(pair.blurred) for network in networks}
    named = {plan.name: plan.setting(position) for plan in plans}
    if peers is not None:
        found = peers.run(pair, tuple(dict.fromkeys(named.values())))
        outputs |= {name: found[setting] for name, setting in named.items()}
    return outputs, {name: setting.text() for name, setting in named.items()}


def is_empty(pair: StoredPair) -> bool:
    """Whether the truth has nothing to see: its range is below the noise (shot and read) that one pixel has there.

    PSNR over such a range would say how noisy an empty image is, some 60 dB below the others. Raises InputError for a
    foreign record.
    """
    exposure = read_exposure(pair.record)
    truth = (pair.sharp.astype(np.float64) - exposure.offset_adu) / exposure.gain_adu
    noise = math.sqrt(max(float(truth.mean()), 0.0) + exposure.read_noise_e**2)
    return float(np.ptp(truth)) <= noise


def _score(pair: StoredPair, outputs: Mapping[str, NDArray[Any]], settings: Mapping[str, str]) -> tuple[Row, ...]:
    facts, pixel_um, empty = _facts(pair), _pixel_um(pair), is_empty(pair)
    return tuple(
        Row(
            pair.name, name, NO_SCORES if empty else measure(image, pair.sharp), settings.get(name, ""), pixel_um, facts
        )
        for name, image in outputs.items()
    )


def _pixel_um(pair: StoredPair) -> float | None:
    value = pair.record.get("conditions", {}).get("pixel_um")
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _facts(pair: StoredPair) -> dict[str, Any]:
    """What the groups are made by, from the record."""
    conditions, origin = pair.record.get("conditions", {}), pair.record.get("origin", {})
    kind = origin["specimen"]["kind"] if "specimen" in origin else "sharp image"
    return {
        "photons": conditions.get("photons"),
        "haze": pair.record.get("haze_share"),
        "fwhm_px": conditions.get("fwhm_px"),
        "specimen": kind,
    }


def group_pairs(rows: Sequence[Row]) -> tuple[Group, ...]:
    """All images; thirds by photons; by haze, width and specimen, at fixed edges. Empty groups are left out."""
    facts = {row.image: row.facts for row in rows}
    groups = [Group("all", "all", frozenset(facts))]
    photons = {k: float(f["photons"]) for k, f in facts.items() if f.get("photons") is not None}
    if len(photons) >= 3:
        low, high = (float(v) for v in np.quantile(list(photons.values()), (1 / 3, 2 / 3)))
        groups += _split(
            "photons",
            photons,
            (low, high),
            ("photons below {0:.0f}", "photons {0:.0f} to {1:.0f}", "photons from {1:.0f}"),
        )
    haze = {k: 100 * float(f["haze"]) for k, f in facts.items() if f.get("haze") is not None}
    groups += _split(
        "haze",
        haze,
        tuple(100 * e for e in HAZE_EDGES),
        ("haze below {0:.0f} %", "haze {0:.0f} to {1:.0f} %", "haze from {1:.0f} %"),
    )
    widths = {k: float(f["fwhm_px"]) for k, f in facts.items() if f.get("fwhm_px") is not None}
    groups += _split(
        "fwhm", widths, FWHM_EDGES_PX, ("FWHM below {0:.1f} px", "FWHM {0:.1f} to {1:.1f} px", "FWHM from {1:.1f} px")
    )
    kinds = sorted({str(f["specimen"]) for f in facts.values() if f.get("specimen") is not None})
    groups += [
        Group("specimen", kind, frozenset(k for k, f in facts.items() if f.get("specimen") == kind)) for kind in kinds
    ]
    return tuple(group for group in groups if group.images)


def _split(by: str, values: Mapping[str, float], edges: tuple[float, ...], labels: Sequence[str]) -> list[Group]:
    """Below the first edge, between both, from the second on."""
    bins = {k: int(np.searchsorted(edges, v, side="right")) for k, v in values.items()}
    return [
        Group(by, text.format(*edges), frozenset(k for k, b in bins.items() if b == n)) for n, text in enumerate(labels)
    ]
