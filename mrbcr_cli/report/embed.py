"""Arrays and JSON inside a page: compact, exact to a stated step, and unable to become markup.

Invariant: `decode(encode(a))` is `a` to within half a step (integers: exactly, where their span fits 16 bits), NaN
stays NaN; and no text, wherever it comes from, ends the element that it stands in.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

HOLE = 65535
"""Code of what is not finite."""


def encode(array: Array, step: float | None = None) -> dict[str, Any]:
    """An array as 16-bit codes: value = low + step * code; low bytes then high bytes, deflated, in base64.

    `step` is the wanted fineness, by default the finest that 16 bits allow; integers need none below 1. With `delta`
    each code is the difference (modulo 65536) from its left neighbour's.
    """
    values = np.asarray(array, np.float64)
    finite = np.isfinite(values)
    low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
    whole = array.dtype.kind in "iu" and high - low < HOLE + int(finite.all())
    least = (high - low) / (HOLE - 1)
    fineness = max(least, step or 0.0, 1.0 if whole else 0.0)
    if whole:
        fineness = float(math.floor(fineness))
    codes = np.zeros(values.shape, np.uint16)
    if fineness > 0:
        codes[finite] = np.round((values[finite] - low) / fineness).astype(np.uint16)
    codes[~finite] = HOLE
    delta = np.diff(codes, axis=-1, prepend=np.zeros_like(codes[..., :1]))
    packed = [_pack(codes), _pack(delta)]
    better = int(len(packed[1]) < len(packed[0]))
    return {
        "shape": list(values.shape),
        "low": low,
        "step": fineness,
        "holes": not bool(finite.all()),
        "delta": bool(better),
        "data": base64.b64encode(packed[better]).decode(),
    }


def decode(encoded: dict[str, Any]) -> NDArray[np.float64]:
    """What a page makes of `encode`'s dictionary (float64; NaN where it was not finite)."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(encoded["data"])), np.uint8).reshape(2, -1)
    codes = (raw[0].astype(np.uint16) | raw[1].astype(np.uint16) << 8).reshape(encoded["shape"])
    if encoded["delta"]:
        codes = np.cumsum(codes, axis=-1, dtype=np.uint16)
    values = encoded["low"] + encoded["step"] * codes.astype(np.float64)
    if encoded["holes"]:
        values[codes == HOLE] = np.nan
    return np.asarray(values)


def _pack(codes: NDArray[np.uint16]) -> bytes:
    return zlib.compress((codes & 255).astype(np.uint8).tobytes() + (codes >> 8).astype(np.uint8).tobytes(), 7)


def safe_json(values: Any) -> str:
    """JSON for a script element: no text in it can close the element or open a comment. Raises ValueError for NaN."""
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
