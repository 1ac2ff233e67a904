"""Put trained weights into the package, with a card that says what they were measured to do.

Invariant: the tensors are those of the weights it is given (a run's, or the mean of some), unchanged; everything the
card adds (halo, limits, figures) comes from the run's YAML, from the network itself, or from an evaluation report,
never from a hand.

    python examples/training/embed.py RUN/best.safetensors examples/training/widefield.yaml REPORT.json \
        mrbcr_cli/models/widefield.safetensors
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from mrbcr_cli.configuration import load_configuration
from mrbcr_cli.network.halo import measure_effective_halo
from mrbcr_cli.train.train_settings import TrainSettings
from mrbcr_cli.weights import build_network, load_weights, save_weights


def figures(report: dict[str, Any], name: str) -> str:
    """The totals of a report in a sentence."""
    totals = {t["method"]: t["metrics"]["psnr_db"] for t in report["totals"] if t["by"] == "all"}
    scores = {method: found["mean"] for method, found in totals.items() if found is not None}
    count = report["source"]["count"]
    listed = "; ".join(f"{method} {value:.2f} dB" for method, value in scores.items())
    return f"{count} simulated test pairs of unseen images, mean PSNR: {listed} (model {name})"


def main(argv: list[str]) -> int:
    """Write the embedded model; return 0."""
    if len(argv) != 4:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    weights, recipe, report, target = (Path(text) for text in argv)
    # What is simulated plays no part in the card, and its sources are not named in the YAML.
    settings = load_configuration(TrainSettings, recipe, {"simulate": {}}, "mrbcr train")
    loaded = load_weights(weights)
    halo = measure_effective_halo(build_network(loaded))
    found = figures(json.loads(report.read_text(encoding="utf-8")), settings.name)
    card = replace(
        loaded.card,
        name=settings.name,
        domain=settings.domain,
        trained_on=settings.trained_on,
        limits=None if settings.limits is None else {k: list(v) for k, v in settings.limits.items()},
        effective_halo_px=halo,
        notes=f"{found}. Made by examples/training/{recipe.name}: {loaded.card.notes}. Outside its domain, for "
        "undersampled images, thick haze and structured illumination, its output can be wrong while looking right.",
    )
    print(f"{target}: {save_weights(target, loaded.state_dict, card)}, halo {halo} px")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
