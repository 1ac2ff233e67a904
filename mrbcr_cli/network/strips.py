"""Convolutions in strips and in place, so that what lies between two of them is never held whole.

Invariant: the result is that of the convolutions on the whole map (up to rounding), whatever the strips. A strip is
overwritten only when the next one, which sees some of its rows, has been computed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mrbcr_cli.network.kernels import Kernel, joins
from mrbcr_cli.network.wavelets import WaveletBank

STRIP_BYTES = 2**23
"""Features of a strip on a CPU: rows of one image or several small images. Smaller ones are slower, and 8 MB is little
beside a block. A GPU takes all at once; it would idle otherwise."""
_SHORTEST = 8
"""Rows; in shorter strips too much is computed twice."""


def add_(target: Tensor, source: Tensor, kernel: Kernel) -> Tensor:
    """Add the convolution of `source` (N, C, H, W) to `target` (N, K, H, W); return `target`."""
    for image, low, high in _strips(target):
        kernel.add_to(target[image, :, low:high], *_around(source[image], kernel, low, high))
    return target


def add_synthesis_(target: Tensor, bands: Tensor, bank: WaveletBank) -> Tensor:
    """Add the synthesis of `bands` (N, 4 K, H, W) to `target` (N, K, 2 H, 2 W); return `target`."""
    phases = Kernel(bank.synthesis_kernel.to(bands.dtype), None)
    for image, low, high in _strips(bands):
        strip = phases(*_around(bands[image], phases, low, high))
        target[image, :, 2 * low : 2 * high] += F.pixel_shuffle(strip, 2)
    return target


def residual_(bands: Tensor, first: Kernel, second: Kernel, passing: Tensor | None) -> Tensor:
    """Turn `bands` (N, C, H, W) into bands * passing + second(relu(first(bands))); return `bands`.

    The kernels are three rows high. `passing` is (1, C, 1, 1), or None for 1.
    """
    height = bands.shape[2]
    waiting: tuple[Tensor, Tensor, int, int] | None = None
    for image, low, high in _strips(bands):
        top, bottom = max(low - 1, 0), min(high + 1, height)
        features = first.rectified(*_around(bands[image], first, top, bottom))
        if waiting is not None:
            _join_(second, passing, *waiting)
        waiting = bands[image, :, low:high], features, low - top, bottom - high
    if waiting is not None:
        _join_(second, passing, *waiting)
    return bands


def _join_(second: Kernel, passing: Tensor | None, rows: Tensor, features: Tensor, above: int, below: int) -> None:
    if passing is not None and not joins(rows):
        torch.addcmul(second(features, above, below), rows, passing, out=rows)
        return
    if passing is not None:
        rows *= passing
    second.add_to(rows, features, above, below)


def _strips(features: Tensor) -> Iterator[tuple[slice, int, int]]:
    """Of each strip the images (a part of the batch), its first row and the one after its last."""
    count, channels, height, width = features.shape
    row_bytes = channels * width * features.element_size()
    if features.device.type != "cpu":
        images, rows = count, height
    else:
        images = max(STRIP_BYTES // (height * row_bytes), 1)
        rows = height if images > 1 else max(STRIP_BYTES // row_bytes, _SHORTEST)
    for first in range(0, count, images):
        for low in range(0, height, rows):
            yield slice(first, min(first + images, count)), low, min(low + rows, height)


def _around(source: Tensor, kernel: Kernel, low: int, high: int) -> tuple[Tensor, int, int]:
    """What a kernel wants to see for rows `low` to `high`: these with its context, and how much of that there is."""
    reach = kernel.weight.shape[2] // 2
    top, bottom = max(low - reach, 0), min(high + reach, source.shape[2])
    return source[:, :, top:bottom], low - top, bottom - high
