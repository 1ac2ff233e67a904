"""What the user sees while the tool works: a bar on a terminal, plain heartbeat lines in a log file, JSON on request.

Invariant: stdout carries only data a script may read (paths, JSON lines); everything else goes to stderr. The pure
parts of the tool never print: they are handed a Reporter.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

HEARTBEAT_S = 30.0
EVENT_SCHEMA = 1
"""Version of the events (`events.py`): it changes when a field is taken away or means something else."""


class Reporter:
    """Messages and progress. `quiet` drops all but warnings and errors; `as_json` writes events to stdout."""

    def __init__(
        self,
        *,
        quiet: bool = False,
        as_json: bool = False,
        out: TextIO | None = None,
        err: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.quiet = quiet
        self.as_json = as_json
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._clock = clock

    def info(self, text: str) -> None:
        """A line for people, on stderr; dropped by --quiet."""
        if not self.quiet:
            print(plain(text), file=self._err, flush=True)

    def warn(self, text: str) -> None:
        """A line that is never dropped, on stderr."""
        print(f"warning: {plain(text)}", file=self._err, flush=True)

    def error(self, text: str) -> None:
        """Why the run failed, on stderr."""
        print(f"error: {plain(text)}", file=self._err, flush=True)

    def event(self, kind: str, **values: Any) -> None:
        """One JSON object on a line of stdout, with --json only; `events.py` has all kinds and their fields."""
        if self.as_json:
            told = _json_able({"event": kind, "schema": EVENT_SCHEMA, **values})
            print(json.dumps(told, default=str, allow_nan=False), file=self._out, flush=True)

    def data(self, text: str) -> None:
        """A line on stdout for scripts (the path of a finished output); --json has its own events instead."""
        if not self.as_json:
            print(text, file=self._out, flush=True)

    @contextmanager
    def progress(self, label: str, total: int, unit: str = "blocks", done: int = 0) -> Iterator[Progress]:
        """Show the progress of `total` steps, of which `done` were finished by an earlier run."""
        if self.quiet:
            yield Progress(total, done, self._clock)
        elif self._err.isatty():
            with _Bar(label, total, unit, done, self._clock) as bar:
                yield bar
        else:
            beat = _Heartbeat(label, total, unit, done, self._clock, self.info)
            yield beat
            if beat.done > done:
                beat.finish()


def _json_able(value: Any) -> Any:
    """Numbers that JSON does not have (NaN, infinity) become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _json_able(inner) for key, inner in value.items()}
    return [_json_able(inner) for inner in value] if isinstance(value, list | tuple) else value


class Progress:
    """Counts steps and work; shows nothing (the base of the bar and the heartbeat)."""

    def __init__(self, total: int, done: int, clock: Callable[[], float]) -> None:
        self.total, self.done, self._first, self._clock = total, done, done, clock
        self.megapixels = 0.0
        self._start = clock()

    def advance(self, megapixels: float = 0.0, steps: int = 1) -> None:
        """Count finished steps and the output pixels in them (in millions)."""
        self.done += steps
        self.megapixels += megapixels
        self._show()

    def rate(self) -> str:
        """Speed and time to go, in words."""
        elapsed = max(self._clock() - self._start, 1e-9)
        fresh = self.done - self._first
        left = (self.total - self.done) * elapsed / fresh if fresh else 0.0
        speed = f"{self.megapixels / elapsed:.2f} Mpixel/s, " if self.megapixels else ""
        return f"{speed}{clock_text(elapsed)} gone, {clock_text(left)} to go"

    def _show(self) -> None:
        """Nothing to show."""


class _Heartbeat(Progress):
    """A line every 30 s, for log files."""

    def __init__(
        self, label: str, total: int, unit: str, done: int, clock: Callable[[], float], say: Callable[[str], None]
    ) -> None:
        super().__init__(total, done, clock)
        self._label, self._unit, self._say = label, unit, say
        self._last = self._start
        self._said = -1

    def _show(self) -> None:
        if self._clock() - self._last >= HEARTBEAT_S:
            self._last = self._clock()
            self._line()

    def _line(self) -> None:
        self._said = self.done
        self._say(f"{self._label}: {self.done} of {self.total} {self._unit}, {self.rate()}")

    def finish(self) -> None:
        """Say the last state once."""
        if self._said != self.done:
            self._line()


class _Bar(Progress):
    """A rich progress bar on a terminal."""

    def __init__(self, label: str, total: int, unit: str, done: int, clock: Callable[[], float]) -> None:
        super().__init__(total, done, clock)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._rich = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("{task.fields[rate]}"),
            console=Console(stderr=True),
        )
        self._task = self._rich.add_task(label, total=total, completed=done, rate="")

    def _show(self) -> None:
        self._rich.update(self._task, completed=self.done, rate=self.rate())

    def __enter__(self) -> _Bar:
        self._rich.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._rich.stop()


def plain(text: str) -> str:
    """Text on one line that cannot steer a terminal: what does not print (controls, line ends, surrogates) is escaped.

    File names and metadata are anybody's: one may hold a line end, an escape sequence or a change of direction.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def clock_text(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def bytes_text(count: float) -> str:
    """Return a size in decimal units, as disks are sold: 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def command_line() -> str:
    """Return the command as it was typed, for the record; without the path of the program."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
