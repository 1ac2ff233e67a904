"""Runs of `mrbcr evaluate` in this process, and what every refusal of it has to be.

A refusal is one line, and nothing is written.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mrbcr_cli.cli import run


def evaluate(*arguments: object) -> int:
    return run(["evaluate", *map(str, arguments)])


def assert_refused(arguments: tuple[object, ...], words: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, one line that says why, nothing written."""
    capsys.readouterr()
    before = sorted(folder.rglob("*"))
    assert evaluate(*arguments, "-q") == 2
    said = capsys.readouterr()
    lines = said.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0], said.err
    assert said.out == "" and sorted(folder.rglob("*")) == before
