"""An evaluation as Markdown: the table a terminal shows, and the whole report.

Invariant: every number comes from `Evaluation.totals` and `.differences`; nothing is computed here but text.
"""

from __future__ import annotations

from collections.abc import Sequence

from mrbcr_cli.evaluation.results import COMPARED, METRICS, Difference, Evaluation, Total
from mrbcr_cli.metrics import Mean

_SHOWN = ("psnr_db", "psnr_fit_db", "ssim", "ssim_fit", "nrmse", "pearson", "frc_px", "frc_single_px")
_SHORT = ("psnr_db", "psnr_fit_db", "ssim_fit")
_BY = {
    "photons": "By light (thirds of the images by photons at the peak)",
    "haze": "By haze (share of the light from out of focus)",
    "fwhm": "By width of the PSF",
    "specimen": "By specimen",
}


def summary(evaluation: Evaluation) -> str:
    """Markdown of the means over all images and the paired differences; for a terminal."""
    parts = [_means_table([t for t in evaluation.totals if t.group.by == "all"], _SHOWN)]
    overall = [d for d in evaluation.differences if d.group.by == "all"]
    if overall:
        parts += [f"Minus {overall[0].against}, image by image:", _difference_table(overall, COMPARED)]
    parts += ["\n".join(f"note: {note}" for note in evaluation.notes)] if evaluation.notes else []
    return "\n\n".join(parts)


def report(evaluation: Evaluation) -> str:
    """The whole report as Markdown."""
    count = len(evaluation.groups[0].images)
    source = evaluation.source
    what = f"`{source['pairs']}`, split {source['split']}" if "pairs" in source else "files"
    lines = [f"# mrbcr evaluate: {what}, {count} image{'s' * (count != 1)}", ""]
    lines += ["Means over images; in brackets what holds the mean with 95 % confidence (bootstrap).", ""]
    lines += [_means_table([t for t in evaluation.totals if t.group.by == "all"], tuple(METRICS), intervals=True), ""]
    if evaluation.against is not None:
        lines += [f"## Minus {evaluation.against}, image by image", ""]
        lines += ["Mean difference, and the share of the images where the method is the better one.", ""]
        lines += [_difference_table([d for d in evaluation.differences if d.group.by == "all"], COMPARED), ""]
    for by, title in _BY.items():
        totals = [t for t in evaluation.totals if t.group.by == by]
        if totals:
            lines += [f"## {title}", "", _means_table(totals, _SHORT, grouped=True), ""]
            gaps = [d for d in evaluation.differences if d.group.by == by]
            lines += [f"Minus {evaluation.against}:", "", _difference_table(gaps, _SHORT, grouped=True), ""]
    lines += _methods(evaluation)
    lines += ["## Definitions", ""]
    lines += [f"- {m.title}{f' ({m.unit})' if m.unit else ''}: {m.definition}" for m in METRICS.values()]
    lines += ["", *(f"Note: {note}." for note in evaluation.notes)]
    return "\n".join(lines).rstrip() + "\n"


def _methods(evaluation: Evaluation) -> list[str]:
    lines = ["## Methods", ""]
    for name, facts in evaluation.methods.items():
        told = [facts["setting"]] if "setting" in facts else []
        told += [f"chosen by {facts['chosen_by']}"] if "chosen_by" in facts else []
        told += [f"weights {facts['weights_sha256'][:12]}"] if "weights_sha256" in facts else []
        lines.append(f"- {name}: {', '.join(told)}" if told else f"- {name}")
    return [*lines, ""]


def _means_table(
    totals: Sequence[Total], names: Sequence[str], *, grouped: bool = False, intervals: bool = False
) -> str:
    names = [name for name in names if any(t.means[name] for t in totals)]
    rows = []
    for total in totals:
        cells = [_mean(total.means[name], METRICS[name].digits, intervals=intervals) for name in names]
        rows.append([*_head(total.group.label, len(total.group.images), grouped), total.method, *cells])
    return _table([*(("images", "n") if grouped else ()), "method", *(_title(name) for name in names)], rows)


def _difference_table(differences: Sequence[Difference], names: Sequence[str], *, grouped: bool = False) -> str:
    rows = []
    for gap in differences:
        cells = []
        for name in names:
            won = gap.won[name]
            text = _mean(gap.means[name], METRICS[name].digits, signed=True, intervals=True)
            cells.append(text if won is None else f"{text}, better in {100 * won:.0f} %")
        rows.append([*_head(gap.group.label, len(gap.group.images), grouped), gap.method, *cells])
    return _table([*(("images", "n") if grouped else ()), "method", *(_title(name) for name in names)], rows)


def _head(label: str, count: int, grouped: bool) -> list[str]:
    return [label, str(count)] if grouped else []


def _title(name: str) -> str:
    metric = METRICS[name]
    return f"{metric.title} ({metric.unit})" if metric.unit else metric.title


def _mean(mean: Mean | None, digits: int, *, signed: bool = False, intervals: bool = False) -> str:
    if mean is None:
        return "-"
    sign = "+" if signed else ""
    text = f"{mean.mean:{sign}.{digits}f}"
    if intervals and mean.low is not None and mean.high is not None:
        text += f" [{mean.low:{sign}.{digits}f}, {mean.high:{sign}.{digits}f}]"
    return text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(head))]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])
