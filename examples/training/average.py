"""The mean of weights that went out of one another: one network that is better than each of them.

Invariant: all are of one shape, and every tensor of the result is the mean of theirs in float32, whatever the order;
weights that are named twice count twice. Runs that began from common weights lie in one valley of the loss, and its
middle generalises best (Izmailov et al., UAI 2018; Wortsman et al., ICML 2022).

    python examples/training/average.py OUT.safetensors WEIGHTS WEIGHTS...
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mrbcr_cli.errors import InputError
from mrbcr_cli.weights import LoadedWeights, load_weights, save_weights


def average(loaded: Sequence[LoadedWeights]) -> dict[str, torch.Tensor]:
    """The mean of each tensor (float32). Raises InputError where the networks are not of one shape."""
    first = loaded[0]
    for other in loaded[1:]:
        if (other.card.architecture, other.card.settings) != (first.card.architecture, first.card.settings):
            raise InputError(f"{other.path} and {first.path} hold networks of different shapes")
    return {
        key: torch.stack([each.state_dict[key].double() for each in loaded]).mean(0).float()
        for key in sorted(first.state_dict)
    }


def main(argv: list[str]) -> int:
    """Write the mean; return 0."""
    if len(argv) < 3:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    target, loaded = Path(argv[0]), [load_weights(text) for text in argv[1:]]
    told = Counter(each.card.notes for each in loaded)
    said = "; ".join(notes if count == 1 else f"{count} times {notes}" for notes, count in told.items())
    card = replace(loaded[0].card, effective_halo_px=None, notes=f"mean of {len(loaded)} weights: {said}")
    print(f"{target}: {save_weights(target, average(loaded), card)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
