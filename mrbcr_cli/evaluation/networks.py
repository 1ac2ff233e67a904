"""Networks to evaluate: the same path from counts to counts as `mrbcr deconvolve`, on an image in memory.

Invariant: `restore` gives the pixels that `mrbcr deconvolve --output-dtype float32` writes for the same image and
model, range and normalisation included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.intensity import survey_channel, with_guide
from mrbcr_cli.restore import Method, Restorer, resolve_device
from mrbcr_cli.weights import build_network, load_weights


@dataclass(frozen=True, eq=False)
class EvaluatedNetwork:
    """A network under the name it has in the results."""

    name: str
    method: Method
    percentiles: tuple[float, float]
    description: dict[str, Any]

    def restore(self, image_yx: NDArray[Any]) -> NDArray[np.float32]:
        """The restored image (y, x; float32, units of the image)."""
        planes = image_yx[None, None]
        intensity = survey_channel(planes.shape, lambda region: planes[region], self.percentiles).range
        if self.method.guided:
            intensity = with_guide(intensity, [image_yx])
        block = np.ascontiguousarray(image_yx[None], np.float32)
        restored: NDArray[np.float32] = self.method.restore(block, intensity, ((True, True),) * 3)[0]
        return restored


def load_networks(models: Sequence[str], device: str) -> tuple[EvaluatedNetwork, ...]:
    """Load embedded models or weights files, in order; equal names are told apart by number.

    Raises InputError for what is no model, a model named twice, and a device that is not there.
    """
    place = resolve_device(device)
    networks: list[EvaluatedNetwork] = []
    seen: dict[str, str] = {}
    for model in models:
        loaded = load_weights(model)
        if loaded.sha256 in seen:
            raise InputError(f"--model {model}: the same weights as {seen[loaded.sha256]}; name each once")
        seen[loaded.sha256] = model
        network = build_network(loaded)
        halo = loaded.card.effective_halo_px or network.default_halo_px
        method = Restorer(network, halo, place, "fp32", 1)
        taken = sum(n.description["model"] == loaded.card.name for n in networks)
        name = f"{loaded.card.name} ({taken + 1})" if taken else loaded.card.name
        described = {"kind": "network", "model": loaded.card.name, "weights_sha256": loaded.sha256, "file": model}
        low, high = (float(loaded.card.normalisation[key]) for key in ("low", "high"))
        networks.append(EvaluatedNetwork(name, method, (low, high), described))
    return tuple(networks)
