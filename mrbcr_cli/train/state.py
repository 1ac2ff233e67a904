"""All that changes in a run and must survive its end: weights, average, optimiser, counters, in one checkpoint file.

Invariant: a checkpoint is written beside the old one and renamed over it, so one that can be read always exists; a run
that goes on from it computes what an uninterrupted one would. No random state is kept: batches depend on the step.
"""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mrbcr_cli.errors import InputError
from mrbcr_cli.whole_file import replacing

FORMAT = 2


class Average:
    """Exponential moving average of the weights, with a shorter memory in the first steps."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state: dict[str, Tensor] = {k: v.detach().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards the weights of the network after step number `step`."""
        keep = min(self.decay, (1.0 + step) / (10.0 + step))
        for key, value in network.state_dict().items():
            if value.is_floating_point():
                self.state[key].lerp_(value, 1.0 - keep)
            else:
                self.state[key].copy_(value)


@dataclass
class Tally:
    """Sums since the last line of the log."""

    loss: float = 0.0
    psnr: float = 0.0
    steps: int = 0

    def add(self, loss: float, psnr: float) -> None:
        """Count one step."""
        self.loss, self.psnr, self.steps = self.loss + loss, self.psnr + psnr, self.steps + 1


@dataclass
class Run:
    """A training under way."""

    network: nn.Module
    average: Average
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    elapsed_s: float = 0.0
    """Over all restarts."""
    last_psnr: float = -math.inf
    """Of the last validation, dB; and the best so far."""
    best_psnr: float = -math.inf
    since_best: int = 0
    """Validations since the best one."""
    finished: bool = False
    tally: Tally = field(default_factory=Tally)

    def save(self, path: Path, fingerprint: str) -> None:
        """Write a checkpoint; raises OSError."""
        state = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "network": self.network.state_dict(),
            "average": self.average.state,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "counters": {name: getattr(self, name) for name in _COUNTERS},
            "tally": vars(self.tally),
        }
        with replacing(path) as file:
            torch.save(state, file)

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `read_checkpoint` gave."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        device = next(iter(self.average.state.values())).device
        self.average.state = {k: v.to(device) for k, v in state["average"].items()}
        for name in _COUNTERS:
            setattr(self, name, state["counters"][name])
        self.tally = Tally(**state["tally"])


_COUNTERS = ("step", "elapsed_s", "last_psnr", "best_psnr", "since_best", "finished")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running anything in it. Raises InputError for what is none of ours."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: is no checkpoint of mrbcr train, or damaged; --overwrite starts anew") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or "fingerprint" not in state:
        raise InputError(f"{path}: is no checkpoint of this version of mrbcr train; --overwrite starts anew")
    return state
