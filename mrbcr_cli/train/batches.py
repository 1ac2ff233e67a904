"""What the loop asks for: batches of normalised inputs and targets, from pairs that lie ready or are simulated.

Invariant: batch `step` is a function of the data, the seed and the step, never of what was asked before, so a resumed
run sees what an uninterrupted one would. Input and target of a patch go through one affine map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrbcr_cli.intensity import PERCENTILES

_AS_IT_IS = 0.5
"""Share of the patches normalised by themselves alone; the others as a part of a larger, brighter image would be."""


class Batch(NamedTuple):
    """What a step learns from, (N, 1, size, size) float32 each, normalised alike."""

    inputs: Tensor
    targets: Tensor
    peers: Tensor | None = None
    """What an explicit method that is told the optics makes of the inputs, where that is known and asked for."""


class Batches(Protocol):
    """Training data."""

    def batch(self, step: int, count: int, size_px: int) -> Batch:
        """Inputs and targets of a step; random pieces, turned and mirrored."""
        ...


def normalise(recorded: Tensor, target: Tensor, rng: np.random.Generator | None, peers: Tensor | None = None) -> Batch:
    """Map all (N, 1, H, W) so that percentiles of the recorded become 0 and 1; `rng` widens the range of some."""
    low, high = percentiles(recorded)
    if rng is not None:
        count = len(recorded)
        wider = rng.random(count) >= _AS_IT_IS
        below = np.where(wider, rng.uniform(0.0, 0.3, count), 0.0)
        above = np.where(wider, np.exp(rng.uniform(np.log(0.02), np.log(3.0), count)), 0.0)
        span = high - low
        low = low - span * _column(below, span)
        high = high + span * _column(above, span)
    span = high - low
    return Batch((recorded - low) / span, (target - low) / span, None if peers is None else (peers - low) / span)


def percentiles(recorded: Tensor) -> tuple[Tensor, Tensor]:
    """Percentiles 0.1 and 99.9 of each image, (N, 1, 1, 1) each, linear between pixels; never equal."""
    flat = recorded.flatten(1).float()
    position = [p / 100 * (flat.shape[1] - 1) for p in PERCENTILES]
    ends = []
    for place, largest in zip((position[0], flat.shape[1] - 1 - position[1]), (False, True), strict=True):
        below = int(place)
        values = flat.topk(min(below + 2, flat.shape[1]), largest=largest).values
        a, b = values[:, below], values[:, min(below + 1, values.shape[1] - 1)]
        ends.append(a + (b - a) * (place - below))
    low, high = (end[:, None, None, None] for end in ends)
    return low, torch.where(high > low, high, low + 1.0)


def _column(values: NDArray[np.float64], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None, None, None]


@dataclass(frozen=True, eq=False)
class PairSet:
    """Pairs in memory: recorded and target images of any sizes, float32, in the same units each pair."""

    recorded: tuple[NDArray[np.float32], ...]
    target: tuple[NDArray[np.float32], ...]
    names: tuple[str, ...]


class StoredBatches:
    """Random pieces of stored pairs."""

    def __init__(self, pairs: PairSet, *, seed: int, stream: int, device: str) -> None:
        self.pairs, self.seed, self.stream, self.device = pairs, seed, stream, device

    def batch(self, step: int, count: int, size_px: int) -> Batch:
        """Inputs and targets of a step; every pair is as likely."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, 3, self.stream, step])))
        pieces = [_piece(self.pairs, int(k), size_px, rng) for k in rng.integers(0, len(self.pairs.recorded), count)]
        recorded, target = (torch.from_numpy(np.stack([p[i] for p in pieces])[:, None]).to(self.device) for i in (0, 1))
        return normalise(recorded, target, rng)


def _piece(
    pairs: PairSet, index: int, size_px: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    recorded, target = pairs.recorded[index], pairs.target[index]
    y, x = (int(rng.integers(0, n - size_px + 1)) for n in recorded.shape)
    turns, mirror = int(rng.integers(4)), bool(rng.random() < 0.5)
    cut = []
    for image in (recorded, target):
        piece = np.rot90(image[y : y + size_px, x : x + size_px], turns)
        cut.append(np.ascontiguousarray(piece[:, ::-1] if mirror else piece))
    return cut[0], cut[1]
