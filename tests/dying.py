"""Run mrbcr in this process and die at the N-th call of a function: `python -m tests.dying MODULE:NAME N SIGNAL ...`.

Moments are counted in calls, never in time, so that a test dies at the same place on any machine.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from mrbcr_cli.cli import run


def main(arguments: list[str]) -> int:
    """Arm the function and run the rest of the arguments."""
    where, count, number, *rest = arguments
    module, _, name = where.partition(":")
    owner: Any = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    real = getattr(owner, last)
    left = int(count)

    def dying(*values: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), int(number))
        return real(*values, **options)

    setattr(owner, last, dying)
    return run(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
