"""The scripts of examples/evaluation as modules, imported in this one place since they belong to no package.

They are those of the checkout, never of an installation.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "evaluation"))

import compare
import hallucination as hal
import photometry as pho
import real_images
import recording as rec
import two_points as two
import unet

__all__ = ["compare", "generator", "hal", "pho", "real_images", "rec", "two", "unet"]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))
