"""What a run leaves in its folder: checkpoint, weights, log as JSON lines and CSV, curves, settings.

Invariant: the log holds one line a step that is logged, in order, and none beyond the checkpoint a resumed run starts
from; weights appear whole or not at all. Only rank 0 has a journal.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mrbcr_cli.console import Progress, clock_text
from mrbcr_cli.errors import IncompleteError, InputError
from mrbcr_cli.train.state import Run
from mrbcr_cli.whole_file import replace_text

CHECKPOINT, BEST, LAST = "last.ckpt", "best.safetensors", "last.safetensors"
LOG, TABLE, CURVES, SETTINGS, LOCK = "train.jsonl", "train.csv", "curves.png", "train.yaml", "train.lock"
FILES = frozenset({CHECKPOINT, BEST, LAST, LOG, TABLE, CURVES, SETTINGS, LOCK, "tensorboard"})
_KEEP_EVERY_S = 300.0
"""Longest time between checkpoints, where validations are rarer."""

SaveWeights = Callable[[Path, Run], None]


class Journal:
    """Writes a run's folder; fulfils the loop's Log."""

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        save_weights: SaveWeights,
        *,
        patches_a_step: int,
        progress: Progress,
        say: Callable[[str], None],
        event: Callable[..., None],
        minutes: float | None = None,
        tensorboard: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.fingerprint, self._save_weights = folder, fingerprint, save_weights
        self._patches, self._progress, self._say, self._clock = patches_a_step, progress, say, clock
        self._event, self._minutes = event, minutes
        self._board = _board(folder) if tensorboard else None
        self._mark = (clock(), 0)
        self._kept = clock()

    def resume(self, step: int) -> None:
        """Drop what was logged after the checkpoint that the run starts from."""
        rows = [row for row in read_log(self.folder / LOG) if row["step"] <= step]
        replace_text(self.folder / LOG, "".join(json.dumps(row) + "\n" for row in rows))
        self._mark = (self._clock(), step)

    def line(self, values: dict[str, Any], run: Run) -> None:
        """Add a line to the log and say it."""
        now, (then, before) = self._clock(), self._mark
        self._mark = (now, run.step)
        rate = (run.step - before) * self._patches / max(now - then, 1e-9)
        row = {**values, "patches_per_s": round(rate, 2), "elapsed_s": round(run.elapsed_s, 2)}
        try:
            with (self.folder / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise self._unwritable(error) from error
        if self._board is not None:
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(name, value, run.step)
        validation = f", validation {row['validation_psnr']:.2f} dB" if "validation_psnr" in row else ""
        of = f" of {self._progress.total}" if self._minutes is None else ""
        if self._minutes is None:
            left = run.elapsed_s * max(self._progress.total - run.step, 0) / max(run.step, 1)
        else:
            left = max(60 * self._minutes - run.elapsed_s, 0.0)
        self._say(
            f"step {run.step}{of}: loss {row['loss']:.4g}, PSNR {row['psnr']:.2f} dB"
            f"{validation}, {rate:.1f} patches/s, {clock_text(left)} to go"
        )
        self._event("step", **row)
        done = run.step if self._minutes is None else int(run.elapsed_s)
        self._progress.advance(steps=done - self._progress.done)
        if now - self._kept > _KEEP_EVERY_S:
            self.keep(run, best=False)

    def keep(self, run: Run, *, best: bool) -> None:
        """Write checkpoint, weights, table and curves. Raises IncompleteError when the disk does not take them."""
        self._kept = self._clock()
        try:
            if best:
                self._save_weights(self.folder / BEST, run)
            self._save_weights(self.folder / LAST, run)
            run.save(self.folder / CHECKPOINT, self.fingerprint)
            rows = read_log(self.folder / LOG)
            replace_text(self.folder / TABLE, _as_csv(rows))
        except (OSError, InputError) as error:
            raise self._unwritable(error) from error
        if rows:
            from mrbcr_cli.figures import training_figure

            training_figure(self.folder / CURVES, rows)
        if self._board is not None:
            self._board.flush()

    def _unwritable(self, error: Exception) -> IncompleteError:
        return IncompleteError(f"{self.folder}: cannot be written ({error}); run the same command to resume")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Lines of a log; a torn last one is ignored. Empty where there is no log."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _as_csv(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def check_tensorboard() -> None:
    """Raises InputError when TensorBoard is wanted and missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError("--tensorboard needs the tensorboard package: pip install 'mrbcr[tensorboard]'")


def _board(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder / "tensorboard")
