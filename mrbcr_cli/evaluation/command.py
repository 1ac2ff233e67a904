"""Carry out `mrbcr evaluate`: check names, evaluate, write JSON, CSV, report and figures, show the table.

Invariant: what can be refused is refused before anything is computed, and files appear whole, after all is known: a
run that ends in an error has written nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.console import Reporter
from mrbcr_cli.errors import InputError
from mrbcr_cli.evaluation.results import Evaluation, Row, json_text
from mrbcr_cli.images.write_array import check_free
from mrbcr_cli.whole_file import write_text


@dataclass(frozen=True)
class Outputs:
    """Where results go; None: nowhere."""

    json: Path | None = None
    csv: Path | None = None
    report: Path | None = None
    figures: Path | None = None
    figure_count: int = 8
    overwrite: bool = False

    def check(self, inputs: Sequence[Path]) -> None:
        """Refuse names that are taken, wrong, or inside an input. Raises InputError."""
        for path, suffix in ((self.json, ".json"), (self.csv, ".csv"), (self.report, ".md")):
            if path is not None:
                check_free(path, overwrite=self.overwrite, suffixes=(suffix,))
                if path.is_dir():
                    raise InputError(f"{path}: is a folder; name a {suffix} file")
        if self.figures is not None:
            self._check_figures(self.figures)
        for path in (self.json, self.csv, self.report, self.figures):
            for source in inputs if path is not None else ():
                if (
                    path is not None
                    and source.is_dir()
                    and source.resolve() in (path.resolve(), *path.resolve().parents)
                ):
                    raise InputError(f"{path}: lies inside {source}, which is evaluated; write elsewhere")

    def _check_figures(self, folder: Path) -> None:
        if self.figure_count < 1:
            raise InputError(f"--figure-count must be 1 or more, not {self.figure_count}")
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is a file; --figures names a folder")
        if folder.is_dir() and not self.overwrite and any(folder.glob("*.png")):
            raise InputError(f"{folder}: holds figures already; use --overwrite to replace them, or another folder")
        check_free(folder / "figure.png", overwrite=True, suffixes=(".png",))


def run_pairs(
    root: Path,
    models: Sequence[str],
    outputs: Outputs,
    reporter: Reporter,
    *,
    split: str,
    limit: int | None,
    baselines: bool,
    psf: Path | None,
    seed: int,
    device: str,
) -> None:
    """Evaluate models on pairs and write what was asked for. Raises InputError before anything is written."""
    from mrbcr_cli.evaluation.evaluate_pairs import PairImages, evaluate_pairs, pair_name, select_pairs

    outputs.check([root])
    if psf is not None and not baselines:
        raise InputError("--psf is for the baselines; leave it or --no-baselines out")
    _, numbers = select_pairs(root, split, limit)
    figures = _Figures(outputs, [pair_name(k) for k in numbers])

    def on_pair(images: PairImages, rows: tuple[Row, ...]) -> None:
        reporter.event("image", image=images.name, psnr_db={row.method: row.scores.psnr_db for row in rows})
        if images.name in figures.wanted:
            told = ", ".join(_fact(name, value) for name, value in images.facts.items() if value is not None)
            shown = {name: images.outputs[name] for name in _drawn_methods(images.outputs)}
            title = f"pair {images.name}: {told}"
            figures.keep(images.name, title, shown, images.truth, rows, images.pixel_um)

    evaluation = evaluate_pairs(
        root,
        models,
        split=split,
        limit=limit,
        baselines=baselines,
        psf=psf,
        seed=seed,
        device=device,
        reporter=reporter,
        on_pair=on_pair,
    )
    _finish(evaluation, outputs, figures, reporter)


def run_files(
    predictions: Sequence[str],
    truths: Sequence[str],
    inputs: Sequence[str],
    outputs: Outputs,
    reporter: Reporter,
    *,
    per: str,
    axes: str | None,
    seed: int,
) -> None:
    """Evaluate files and write what was asked for. Raises InputError before anything is written."""
    from mrbcr_cli.evaluation.evaluate_files import FileImages, evaluate_files, match_files

    if per not in ("image", "plane"):
        raise InputError(f"--per {per}: choose image or plane")
    outputs.check([Path(name) for name in (*predictions, *truths, *inputs)])
    sets = match_files(predictions, truths, inputs, axes=axes)
    figures = _Figures(outputs, [one.name for one in sets])

    def on_image(images: FileImages, rows: tuple[Row, ...]) -> None:
        for row in rows:
            reporter.event("image", image=row.image, method=row.method, **row.values())
        if images.name in figures.wanted:
            whole = rows if per == "image" else ()
            figures.keep(images.name, images.name, images.outputs, images.truth, whole, images.pixel_um)

    evaluation = evaluate_files(
        sets, per="plane" if per == "plane" else "image", seed=seed, reporter=reporter, on_image=on_image
    )
    _finish(evaluation, outputs, figures, reporter)


class _Figures:
    """The figures to draw when all is known, from images no larger than they show."""

    def __init__(self, outputs: Outputs, names: Sequence[str]) -> None:
        self._folder = outputs.figures
        count = 0 if self._folder is None else min(outputs.figure_count, len(names))
        places = np.unique(np.linspace(0, len(names) - 1, count).round()) if count else ()
        self.wanted = frozenset(names[int(k)] for k in places)
        """Spread evenly over the images."""
        self._kept: list[Callable[[], None]] = []

    def keep(
        self,
        name: str,
        title: str,
        images: Mapping[str, NDArray[Any]],
        truth: NDArray[Any],
        rows: Sequence[Row],
        pixel_um: float | None,
    ) -> None:
        """Remember a figure."""
        from mrbcr_cli.figures import LARGEST_SHOWN_PX, comparison_figure

        step = -(-max(truth.shape) // LARGEST_SHOWN_PX)
        if pixel_um is not None:
            title += f", {truth.shape[-1]} px = {truth.shape[-1] * pixel_um:.3g} um"
        shown = {method: image[::step, ::step].copy() for method, image in images.items()}
        captions = {row.method: _caption(row) for row in rows}
        path = (self._folder or Path()) / f"{name}.png"
        self._kept.append(partial(comparison_figure, path, shown, truth[::step, ::step].copy(), captions, title))

    def draw(self) -> str | None:
        """Draw them; return the folder, None where no figures were asked for."""
        for figure in self._kept:
            figure()
        return None if self._folder is None else str(self._folder)


def _caption(row: Row) -> str:
    scores = ((row.scores.psnr_db, ""), (row.scores.psnr_fit_db, " fit"))
    decibels = ", ".join(f"{value:.1f} dB{note}" for value, note in scores if value is not None)
    return "\n".join(part for part in (row.setting, decibels) if part)


def _drawn_methods(names: Iterable[str]) -> list[str]:
    """Input, explicit methods at their common setting, networks."""
    kept = [name for name in names if "oracle" not in name and "(fit)" not in name]
    return sorted(kept, key=lambda name: 0 if name == "input" else 1 if name in ("richardson-lucy", "wiener") else 2)


def _fact(name: str, value: Any) -> str:
    if name == "haze":
        return f"haze {100 * value:.0f} %"
    if name == "photons":
        return f"{value:.0f} photons"
    return f"{value:.1f} px FWHM" if name == "fwhm_px" else str(value)


def _finish(evaluation: Evaluation, outputs: Outputs, figures: _Figures, reporter: Reporter) -> None:
    from mrbcr_cli.evaluation.tables import report, summary

    texts: dict[str, tuple[Path | None, Callable[[], str]]] = {
        "output": (outputs.json, lambda: json_text(evaluation.to_json())),
        "csv": (outputs.csv, evaluation.to_csv),
        "report": (outputs.report, lambda: report(evaluation)),
    }
    written: dict[str, str] = {}
    for name, (path, make) in texts.items():
        if path is not None:
            write_text(path, make())
            written[name] = str(path)
            reporter.info(f"{path}: written")
    folder = figures.draw()
    if folder is not None:
        written["figures"] = folder
    overall = [t for t in evaluation.totals if t.group.by == "all"]
    totals = {t.method: {k: m and asdict(m) for k, m in t.means.items()} for t in overall}
    reporter.event("done", **written, images=len(evaluation.groups[0].images), totals=totals)
    reporter.data(summary(evaluation))
