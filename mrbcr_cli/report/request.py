"""Which pages and pictures a user asks for, and where each goes.

Invariant: names are settled and refused before anything is computed; two outputs never share one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mrbcr_cli.console import Reporter
from mrbcr_cli.errors import IncompleteError, InputError, MrbcrError
from mrbcr_cli.finish import Outcome
from mrbcr_cli.images import SourceSpec
from mrbcr_cli.places import Place, is_remote
from mrbcr_cli.stream.engine import describe

PAGE_SUFFIXES = (".html", ".htm")
PICTURE_SUFFIXES = (".png",)


@dataclass(frozen=True)
class Request:
    """Files to write on one output; None: not asked for."""

    page: Path | None = None
    picture: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Those that are asked for."""
        return tuple(path for path in (self.page, self.picture) if path is not None)


def stem_of(output: Place) -> str:
    """Name of an output without folder and suffixes."""
    return SourceSpec((str(output),), str(output)).stem


def page_beside(output: Place) -> Path:
    """Where the page on an output goes unless the user says: beside it; of one at a URL, here."""
    folder = output.parent if isinstance(output, Path) else Path()
    return folder / f"{stem_of(output)}_report.html"


def requests_for(outputs: Sequence[Place], page: Path | None, picture: Path | None) -> list[Request]:
    """What to write on each output, of --report and --preview: a file, or a folder (of several outputs always).

    Raises InputError for names that are no page or picture, that lie where no file can, or that two outputs share.
    """
    pages = _named(outputs, page, "--report", PAGE_SUFFIXES, "_report.html")
    pictures = _named(outputs, picture, "--preview", PICTURE_SUFFIXES, "_preview.png")
    return [Request(*both) for both in zip(pages, pictures, strict=True)]


def _named(
    outputs: Sequence[Place], given: Path | None, option: str, suffixes: tuple[str, ...], ending: str
) -> list[Path | None]:
    if given is None:
        return [None] * len(outputs)
    if is_remote(str(given)) or "://" in str(given) or any(part.endswith(":") for part in given.parts[:1]):
        raise InputError(f"{option} {given}: is written to disks alone; give a path")
    if given.suffix.lower() in suffixes and not given.is_dir():
        if len(outputs) > 1:
            raise InputError(f"{option} {given}: names one file, but there are {len(outputs)} inputs; give a folder")
        _check_folder(given.parent, option)
        return [given]
    if given.suffix and not given.is_dir():
        raise InputError(f"{option} {given}: must end in {' or '.join(suffixes)}, or be a folder")
    _check_folder(given, option)
    found = [given / f"{stem_of(output)}{ending}" for output in outputs]
    if len(set(found)) < len(found):
        raise InputError(f"{option} {given}: two outputs would have the same name there; run them separately")
    return list(found)


def _check_folder(folder: Path, option: str) -> None:
    for place in (folder, *folder.parents):
        if place.exists():
            if not place.is_dir():
                raise InputError(f"{option}: {place} is a file where a folder must be")
            return


def add_pages(outcome: Outcome, request: Request, source: str, reporter: Reporter) -> None:
    """Write what was asked for on an output that a run has just made, or found done.

    Raises IncompleteError where that fails: the output is complete and stays.
    """
    if not request.paths or outcome.status not in ("done", "unchanged"):
        return
    from mrbcr_cli.report.command import Choice, write_request

    try:
        write_request(outcome.output, request, reporter, Choice(input=source))
    except Exception as error:  # whatever it is, the output is there and its run must not count as lost
        said = str(error) if isinstance(error, MrbcrError | OSError) else f"unexpected {describe(error)}"
        raise IncompleteError(
            f"{outcome.output}: is complete, but {' and '.join(map(str, request.paths))} could not be made ({said}); "
            f"mrbcr report {outcome.output} tries again"
        ) from error
