"""What an evaluation found: scores per image and method, their totals, and how they are written down.

Invariant: an Evaluation decides every byte of its JSON, CSV and Markdown; numbers that are not defined are null, empty
or a dash there, never NaN. Totals are means over images with 95 % bootstrap intervals.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mrbcr_cli.metrics import CONFIDENCE, RESAMPLES, Mean, Scores, bootstrap_mean

SCHEMA = "mrbcr-evaluation"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Metric:
    """A column."""

    title: str
    unit: str
    digits: int
    higher_is_better: bool
    definition: str


METRICS: dict[str, Metric] = {
    "psnr_db": Metric("PSNR", "dB", 2, True, "10 log10(R^2 / MSE), R = max - min of the truth"),
    "ssim": Metric("SSIM", "", 3, True, "Wang 2004: Gaussian 1.5 px, K 0.01 0.03, data range R"),
    "nrmse": Metric("NRMSE", "", 4, False, "root mean square error over R"),
    "psnr_fit_db": Metric("PSNR fit", "dB", 2, True, "PSNR after the least-squares a p + b to the truth (CARE)"),
    "ssim_fit": Metric("SSIM fit", "", 3, True, "SSIM after the least-squares a p + b to the truth"),
    "nrmse_fit": Metric("NRMSE fit", "", 4, False, "NRMSE after the least-squares a p + b to the truth"),
    "pearson": Metric("Pearson", "", 3, True, "correlation coefficient of all pixels"),
    "frc_px": Metric("FRC", "px", 2, False, "1 / frequency where the ring correlation with the truth falls below 1/7"),
    "frc_single_px": Metric(
        "FRC of one image", "px", 2, False, "Koho 2019, 1/7, calibrated: the image against itself; noise must be white"
    ),
    "frc_um": Metric("FRC", "um", 4, False, "frc_px times the pixel"),
    "frc_single_um": Metric("FRC of one image", "um", 4, False, "frc_single_px times the pixel"),
}
COMPARED = ("psnr_db", "ssim", "psnr_fit_db", "ssim_fit")
"""Metrics of the paired differences."""


@dataclass(frozen=True)
class Row:
    """One method on one image."""

    image: str
    method: str
    scores: Scores
    setting: str = ""
    pixel_um: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What is known of the image (photons, haze, ...)."""

    def values(self) -> dict[str, float | None]:
        """By metric."""
        found = asdict(self.scores)
        for name in ("frc", "frc_single"):
            px = found[f"{name}_px"]
            found[f"{name}_um"] = None if px is None or self.pixel_um is None else px * self.pixel_um
        return found


@dataclass(frozen=True)
class Group:
    """Some of the images, by what they have in common."""

    by: str
    """ "all", "photons", "haze", "fwhm", "specimen"."""
    label: str
    images: frozenset[str]


@dataclass(frozen=True)
class Total:
    """Means of a method over a group."""

    group: Group
    method: str
    means: dict[str, Mean | None]


@dataclass(frozen=True)
class Difference:
    """A method minus another on the same images of a group, by metric: mean, and share of the images won."""

    group: Group
    method: str
    against: str
    means: dict[str, Mean | None]
    won: dict[str, float | None]


@dataclass(frozen=True)
class Evaluation:
    """Everything found. `methods` in the order they are shown, with what identifies each."""

    source: dict[str, Any]
    """What was evaluated: files, or pairs and their split."""
    methods: dict[str, dict[str, Any]]
    rows: tuple[Row, ...]
    groups: tuple[Group, ...]
    against: str | None
    """The method the others are compared with."""
    seed: int
    notes: tuple[str, ...] = ()

    @cached_property
    def totals(self) -> tuple[Total, ...]:
        """Means of every method over every group."""
        return tuple(self._totals())

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        """Every method minus the one they are compared with, image by image."""
        return tuple(self._differences())

    def _totals(self) -> Iterator[Total]:
        table = self._table()
        for group in self.groups:
            for method in self.methods:
                rows = [v for image, v in table[method].items() if image in group.images]
                yield Total(group, method, {name: self._mean([row[name] for row in rows]) for name in METRICS})

    def _differences(self) -> Iterator[Difference]:
        if self.against is None:
            return
        table = self._table()
        for group in self.groups:
            for method in self.methods:
                if method == self.against:
                    continue
                ours, theirs = table[method], table[self.against]
                gaps = {name: _gaps(ours, theirs, group, name) for name in COMPARED}
                means = {name: self._mean(gap) for name, gap in gaps.items()}
                won = {name: float(np.mean([g > 0 for g in gap])) if gap else None for name, gap in gaps.items()}
                yield Difference(group, method, self.against, means, won)

    def _table(self) -> dict[str, dict[str, dict[str, float | None]]]:
        table: dict[str, dict[str, dict[str, float | None]]] = {method: {} for method in self.methods}
        for row in self.rows:
            table[row.method][row.image] = row.values()
        return table

    def _mean(self, values: Sequence[float | None]) -> Mean | None:
        return bootstrap_mean(np.array([v for v in values if v is not None], np.float64), self.seed)

    def to_json(self) -> dict[str, Any]:
        """JSON-able, with its schema's name and version."""
        from mrbcr_cli import __version__

        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "version": __version__,
            "source": self.source,
            "seed": self.seed,
            "interval": {"confidence": CONFIDENCE, "kind": "percentile bootstrap over images", "resamples": RESAMPLES},
            "metrics": {k: {"unit": m.unit, "definition": m.definition} for k, m in METRICS.items()},
            "methods": self.methods,
            "totals": [
                {**_group(t.group), "method": t.method, "metrics": {k: m and asdict(m) for k, m in t.means.items()}}
                for t in self.totals
            ],
            "differences": [
                {
                    **_group(d.group),
                    "method": d.method,
                    "against": d.against,
                    "metrics": {k: m and {**asdict(m), "won": d.won[k]} for k, m in d.means.items()},
                }
                for d in self.differences
            ],
            "images": [
                {
                    **{"image": row.image, "method": row.method, "setting": row.setting, "pixel_um": row.pixel_um},
                    **row.facts,
                    **row.values(),
                }
                for row in self.rows
            ],
            "notes": list(self.notes),
        }

    def to_csv(self) -> str:
        """One line an image and method."""
        facts = list(dict.fromkeys(name for row in self.rows for name in row.facts))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", "method", "setting", "pixel_um", *facts, *METRICS])
        for row in self.rows:
            values = row.values()
            numbers = [row.pixel_um, *(row.facts.get(name) for name in facts), *(values[name] for name in METRICS)]
            writer.writerow([row.image, row.method, row.setting, *("" if v is None else v for v in numbers)])
        return text.getvalue()


def _gaps(ours: Mapping[str, Any], theirs: Mapping[str, Any], group: Group, name: str) -> list[float]:
    pairs = [(v[name], theirs[k][name]) for k, v in ours.items() if k in group.images and k in theirs]
    return [a - b for a, b in pairs if a is not None and b is not None]


def _group(group: Group) -> dict[str, Any]:
    return {"by": group.by, "group": group.label, "images": len(group.images)}


def unscored(rows: Sequence[Row], why: str) -> list[str]:
    """A note on images without scores; nothing where there are none."""
    names = sorted({row.image for row in rows if row.scores.nrmse is None})
    if not names:
        return []
    many = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"no scores for {names[0]}{many}: {why}"]


def json_text(values: Mapping[str, Any]) -> str:
    """JSON without NaN; a line for every entry of a list or dictionary at the top."""
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {_lines(value)}" for key, value in values.items()) + "\n}\n"


def _lines(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(json.dumps(entry, allow_nan=False) for entry in value) + "\n]"
    if isinstance(value, dict) and value:
        entries = (f"{json.dumps(key)}: {json.dumps(entry, allow_nan=False)}" for key, entry in value.items())
        return "{\n" + ",\n".join(entries) + "\n}"
    return json.dumps(value, allow_nan=False)
