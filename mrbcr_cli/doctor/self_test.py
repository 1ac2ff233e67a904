"""A tiny deconvolution, held against what it gave where the package was made.

Invariant: image and expectation are formulas and figures, not files, so that the test needs nothing but the network.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.doctor.findings import Findings, Trouble, said

MODEL = "widefield"
SIZE_PX = 128
EXPECTED = {"maximum": 2972.07, "mean": 112.256, "standard deviation": 153.185}
"""Of the result, in counts, in float32 on a CPU."""
TOLERANCE = 2e-3
"""Of the maximum: what the order of sums may change, with much to spare."""


def example_image() -> NDArray[np.float32]:
    """Twelve blurred points of 1,000 counts on a background of 100, with noise: (y, x), the same on every machine."""
    y, x = np.mgrid[:SIZE_PX, :SIZE_PX].astype(np.float64)
    image = np.full((SIZE_PX, SIZE_PX), 100.0)
    for number in range(12):
        row, column = 12 + 47 * number % 104, 12 + 71 * number % 104
        image += 1000 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * 1.7**2))
    noise = np.sum([_uniform(number) for number in range(4)], axis=0) - 2.0  # of standard deviation 0.58
    noisy: NDArray[np.float32] = (image + np.sqrt(image) * noise).astype(np.float32)
    return noisy


def _uniform(seed: int) -> NDArray[np.float64]:
    """Numbers from 0 to 1, (y, x), by integers alone (splitmix64: Steele, Lea and Flood 2014)."""
    state = np.arange(SIZE_PX**2, dtype=np.uint64) + np.uint64(1 + seed * SIZE_PX**2)
    state *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)).astype(np.float64).reshape(SIZE_PX, SIZE_PX) / 2**53


def measure() -> dict[str, float]:
    """Deconvolve the image with the embedded model and return the figures of EXPECTED."""
    import torch

    from mrbcr_cli.intensity import survey_channel, with_guide
    from mrbcr_cli.restore import Restorer
    from mrbcr_cli.weights import build_network, load_weights

    image = example_image()
    survey = survey_channel((1, 1, *image.shape), lambda region: image[None, None][region])
    restorer = Restorer(build_network(load_weights(MODEL)), 0, "cpu", "fp32", 1)
    with torch.inference_mode():
        result = restorer.restore(image[None], with_guide(survey.range, [image]), ((True, True),) * 3)[0]
    return {
        "maximum": float(result.max()),
        "mean": float(result.mean()),
        "standard deviation": float(result.std()),
    }


def self_test() -> Findings:
    """Whether the network gives here what it should."""
    start = time.monotonic()
    try:
        found = measure()
    except Exception as error:  # whatever is broken here is what is to be reported
        what = f"a small deconvolution failed: {type(error).__name__}: {said(error)}"
        return Findings("Self-test", {"result": "FAILED"}, (Trouble(what, "report it, with this text", needed=True),))
    seconds = time.monotonic() - start
    off = max(abs(found[name] - EXPECTED[name]) for name in EXPECTED) / EXPECTED["maximum"]
    facts = {
        "deconvolution": f"{SIZE_PX} x {SIZE_PX} px with {MODEL}, {seconds:.2f} s with loading",
        "difference": f"{off:.1e} of the maximum (up to {TOLERANCE:g} is right)",
    }
    if off <= TOLERANCE:
        return Findings("Self-test", facts)
    what = f"a small deconvolution is off by {off:.1e} of its maximum"
    cure = "install torch and mrbcr anew; report it, with this text, if that does not help"
    return Findings("Self-test", facts, (Trouble(what, cure, needed=True),))
