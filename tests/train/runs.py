"""Tiny runs of `mrbcr train` in this process, and what of their log the clock leaves alone.

The same options give the same curve.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mrbcr_cli.cli import run
from mrbcr_cli.train.journal import read_log

TINY = {"batch": 2, "patch": 32, "steps": 8, "every": 4, "log_every": 2, "validation_pairs": 2, "seed": 3}
EXACT = ("step", "loss", "psnr", "lr", "validation_psnr")


def options(values: dict[str, Any]) -> list[str]:
    return [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def train(out: Path, *arguments: object, **values: Any) -> int:
    return run(["train", "-o", str(out), "--threads", "1", *map(str, arguments), *options({**TINY, **values})])


def curve(out: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    return [{k: v for k, v in row.items() if k in EXACT} for row in read_log(out / "train.jsonl")]
