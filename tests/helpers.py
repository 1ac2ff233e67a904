"""Small makers that several test files share: synthetic images, tiny weights, runs of the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from mrbcr_cli.cli import run
from mrbcr_cli.network.mrbcr import Mrbcr, MrbcrSettings
from mrbcr_cli.weights import WeightsCard, save_weights

TINY = MrbcrSettings(alpha=2, kt_pairs=((1, 1), (1,), (1,)), b_pairs=((1, 1), (1,), (1,)))


def card(name: str = "tiny", **changes: Any) -> WeightsCard:
    """A valid card of an mrbcr network with settings TINY."""
    import json

    values: dict[str, Any] = {
        "name": name,
        "architecture": "mrbcr",
        "settings": json.loads(json.dumps(Mrbcr(TINY).settings_dict)),
        "normalisation": {"kind": "percentile", "low": 0.1, "high": 99.9},
        "domain": "tests",
        "trained_on": "nothing",
        "licence": "MIT",
        "created_by": "mrbcr tests",
        "created": "2026-01-01",
        "effective_halo_px": 96,
    }
    return WeightsCard(**{**values, **changes})


def tiny_weights(path: Path, seed: int = 0, **changes: Any) -> Path:
    """Write the weights of a tiny random network, with branches and tones strong enough to change the image."""
    import torch

    torch.manual_seed(seed)
    network = Mrbcr(TINY)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("second.weight", "project.weight", "coarsest.weight")):
                parameter.mul_(2)
            elif name.startswith("tones.out"):  # at the start the spectrum of the image changes nothing
                parameter.normal_(0, 0.1)
    save_weights(path, network.state_dict(), card(**changes))
    return path


def spots(shape: tuple[int, ...], seed: int = 0, dtype: str = "uint16") -> NDArray[Any]:
    """Blurred points with shot noise on a background of 100; the last two axes are Y and X."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    image = (rng.random(shape) < 0.005).astype(np.float32)
    image = gaussian_filter(image, (0,) * (len(shape) - 2) + (2.0, 2.0))
    image = 100 + 2000 * image / max(float(image.max()), 1e-9)
    return rng.poisson(image).astype(dtype)


def deconvolve(*arguments: object) -> int:
    """Run `mrbcr deconvolve` in this process and return its exit code."""
    return run(["deconvolve", *map(str, arguments)])


def pixels(path: Path) -> NDArray[Any]:
    """Pixels of an output: level 0 of an OME-Zarr, or a whole TIFF."""
    if path.is_dir():
        return np.asarray(zarr.open_group(path, mode="r")["0"][:])  # type: ignore[index]
    return np.asarray(tifffile.imread(path))


def full_after(monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    """Let the run end with a full disk after so many blocks."""
    from mrbcr_cli.stream.ledger import Ledger

    real, done = Ledger.append, 0

    def full(self: Any, record: Any) -> None:
        nonlocal done
        done += 1
        if done > blocks:
            raise OSError(28, "No space left on device")
        real(self, record)

    monkeypatch.setattr(Ledger, "append", full)


APPEND = "mrbcr_cli.stream.ledger:Ledger.append"
"""Where a block is written down as done, for `die_at`."""


def die_at(where: str, count: int, number: int, *arguments: object) -> tuple[int, str]:
    """Run `mrbcr deconvolve` in a process that gets a signal at the `count`-th call of a function; code and stderr."""
    command = [sys.executable, "-m", "tests.dying", where, str(count), str(int(number)), "deconvolve"]
    ended = subprocess.run(
        [*command, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return ended.returncode, ended.stderr
