"""What a refusal of a hostile file has to be: one clean line on stderr, nothing on stdout, an exit code.

A dry run is the command to refuse in, for it comes before any cost.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mrbcr_cli.cli import run
from tests.helpers import tiny_weights

Said = pytest.CaptureFixture[str]


def refused(capsys: Said, *arguments: object, code: int = 2) -> str:
    """Run the tool, check that it says one clean line and writes nothing to stdout; return the line."""
    assert run([str(argument) for argument in arguments]) == code
    caught = capsys.readouterr()
    lines = [line for line in caught.err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert lines[0].isprintable()
    assert "unexpected" not in lines[0]
    assert caught.out == ""
    return lines[0]


def planned(tmp_path: Path, image: Path, *more: object) -> list[object]:
    """The arguments of a dry run on `image` with a tiny network."""
    weights = tmp_path / "tiny.safetensors"
    if not weights.exists():
        tiny_weights(weights)
    return ["deconvolve", image, "-o", tmp_path / "o.ome.zarr", "-m", weights, "--dry-run", *more]
