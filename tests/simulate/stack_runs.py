"""Runs of `mrbcr simulate stack` in this process, and plans of stacks whose images are made without noise.

Nothing is written but by `simulate`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from mrbcr_cli.cli import run
from mrbcr_cli.simulate.stack_blocks import BlockMaker
from mrbcr_cli.simulate.stack_grid import make_grid
from mrbcr_cli.simulate.stack_plan import StackPlan, plan_stack, source_of
from mrbcr_cli.simulate.stack_settings import StackSettings
from mrbcr_cli.workfolder import Target

OIL = ("--preset", "63x/1.4oil", "--wavelength", 520, "--pixel", 0.08, "--z-step", 0.2)
SMALL = (*OIL, "--specimen", "nuclei,beads=2", "--shape", 10, 96, 80, "--seed", 3)


def simulate(*arguments: object) -> int:
    return run(["simulate", "stack", *map(str, arguments), "-q"])


def plan(**options: Any) -> StackPlan:
    values = {"preset": "63x/1.4oil", "wavelength": 520.0, "pixel": 0.08, "z_step": 0.2, "seed": 3, **options}
    chosen = StackSettings(**values)
    return plan_stack(chosen, source_of(chosen), Target(Path("never.ome.zarr"), "ome-zarr"))


def noise_free(made: StackPlan, block: tuple[int, int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Image and truth of a whole stack, put together from blocks of this shape."""
    grid = make_grid(made.spec.shape, block or made.spec.shape)  # type: ignore[arg-type]
    maker = BlockMaker(replace(made.job, grid=grid))
    image, truth = np.empty(grid.shape, np.float32), np.empty(grid.shape, np.float32)
    for number in range(len(grid)):
        core = grid.block(number).core
        image[core], truth[core] = maker.image(core)
    return image, truth


def point_volume(path: Path, shape: tuple[int, int, int], at: tuple[int, int, int]) -> Path:
    volume = np.zeros(shape, np.uint16)
    volume[at] = 1000
    tifffile.imwrite(path, volume, photometric="minisblack", metadata={"axes": "ZYX"})
    return path
