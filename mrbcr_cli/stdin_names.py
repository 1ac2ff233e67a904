"""`-` among the inputs of a command: names that another program writes to our stdin.

Invariant: names are taken as they are, byte for byte; one a line, or where there is a NUL, separated by NULs (find
-print0). Waiting for a person to type them would look like a hang, so a terminal is refused.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import BinaryIO

from mrbcr_cli.errors import InputError

MARK = "-"


def expand_names(inputs: Sequence[str], stdin: BinaryIO | None = None) -> list[str]:
    """Return `inputs` with the names from stdin in the place of `-`.

    Raises InputError where stdin is a terminal or closed, holds no name, or is asked for twice.
    """
    if MARK not in inputs:
        return list(inputs)
    if inputs.count(MARK) > 1:
        raise InputError("-: stdin can be read once only; give - once")
    source = stdin or (sys.stdin.buffer if sys.stdin is not None else None)
    if source is None or source.closed:
        raise InputError("-: stdin is closed; pipe names into it, one a line")
    if source.isatty():
        raise InputError(
            "-: reads file names from stdin, which is a terminal; pipe them: find . -name '*.tif' | mrbcr deconvolve "
            "- -o out/ (a file called - is ./-)"
        )
    names = split_names(source.read())
    if not names:
        raise InputError("-: no file name came in on stdin; did the program before the pipe find anything?")
    at = inputs.index(MARK)
    return [*inputs[:at], *names, *inputs[at + 1 :]]


def split_names(data: bytes) -> list[str]:
    """Names in what came in: separated by NULs where there is one, else one a line; empty ones are left out."""
    parts = data.split(b"\0") if b"\0" in data else [line.removesuffix(b"\r") for line in data.split(b"\n")]
    return [os.fsdecode(part) for part in parts if part]
