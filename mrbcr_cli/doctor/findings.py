"""What an examination finds: facts to report, and troubles with their cures.

Invariant: an examination never raises; what it cannot find out is said in the place of the fact, and nothing secret is
ever in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Trouble:
    """Something that is missing or broken."""

    what: str
    cure: str
    """What to do, a command where there is one."""
    needed: bool
    """Whether mrbcr cannot do its work without; else something optional is not to be had."""


@dataclass(frozen=True)
class Findings:
    """A section of the report."""

    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    """By name; text, numbers, or lists of text. JSON-able."""
    troubles: tuple[Trouble, ...] = ()


def short(path: str | Path) -> str:
    """A path without the name of the user: the home folder as ~."""
    text, home = str(path), str(Path.home())
    return "~" + text.removeprefix(home) if home != "/" and (text == home or text.startswith(home + "/")) else text


def said(error: BaseException) -> str:
    """An error on one line, with home folders shortened."""
    text = " ".join(str(error).split())[:200] or type(error).__name__
    home = str(Path.home())
    return text.replace(home, "~") if home != "/" else text
