"""Make the page, the picture or both on a finished output.

Invariant: files appear whole or not at all, beside an output that is only read; of many channels and time points as
many are shown as a page of a few megabytes can hold, and what was left out is said.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrbcr_cli.console import Reporter
from mrbcr_cli.places import Place
from mrbcr_cli.report.kernels import Kernel, kernel_for
from mrbcr_cli.report.pair import Pair
from mrbcr_cli.report.places import chosen
from mrbcr_cli.report.request import Request
from mrbcr_cli.report.sources import open_pair, read_record
from mrbcr_cli.report.view import Limits, make_view
from mrbcr_cli.whole_file import write_text

MOST_CHANNELS = 4
MOST_VIEWS = 12
"""Channels times time points."""


@dataclass(frozen=True)
class Choice:
    """What of an output is shown, and with which PSF and input; None: found out."""

    input: str | None = None
    psf: Path | None = None
    channels: str | None = None
    t: str | None = None


def write_request(output: Place, request: Request, reporter: Reporter, choice: Choice | None = None) -> None:
    """Write what is asked for on a finished output, and say so.

    Raises InputError where output and input cannot be paired, IncompleteError where the disk does not take a file.
    """
    wanted = choice or Choice()
    record = read_record(output)
    warnings: list[str] = []

    def warn(text: str) -> None:
        warnings.append(text)
        reporter.warn(text)

    with open_pair(output, record, wanted.input, warn) as pair:
        if request.picture is not None:
            from mrbcr_cli.report.preview import write_preview

            write_preview(request.picture, pair, record, output)
            reporter.event("preview", output=str(output), path=str(request.picture))
            reporter.info(f"{request.picture}: preview of {output}")
        if request.page is not None:
            started = time.monotonic()
            facts = _page(output, record, pair, wanted, warnings, reporter)
            write_text(request.page, facts)
            seconds = round(time.monotonic() - started, 3)
            size = request.page.stat().st_size
            reporter.event("report", output=str(output), path=str(request.page), bytes=size, seconds=seconds)
            reporter.info(f"{request.page}: report on {output} ({size / 1e6:.1f} MB)")


def _page(
    output: Place, record: dict[str, Any], pair: Pair, choice: Choice, warnings: list[str], reporter: Reporter
) -> str:
    from mrbcr_cli.report.page import render_page

    info = pair.info
    channels = chosen(choice.channels, "channels", info.size("C"), MOST_CHANNELS)
    times = chosen(choice.t, "t", info.size("T"), max(1, MOST_VIEWS // len(channels)))
    kernels: dict[int, Kernel] = {}
    views = []
    limits = Limits(len(channels) * len(times))
    with reporter.progress(f"{output.name} report", limits.views, unit="views") as progress:
        for c in channels:
            described = _described(record, c)
            kernels[c] = kernel_for(record, described, pair.before.info, choice.psf)
            for t in times:
                views.append(make_view(pair, t, c, kernels[c], limits))
                progress.advance()
    return render_page(output, record, pair, views, warnings, made=time.strftime("%Y-%m-%d %H:%M"))


def _described(record: dict[str, Any], c: int) -> dict[str, Any]:
    """What the provenance says of an output channel."""
    channels = record.get("channels")
    found = channels[c] if isinstance(channels, list) and c < len(channels) else None
    return found if isinstance(found, dict) else {}
