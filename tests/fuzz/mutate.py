"""Mutations of bytes, of text and of trees (JSON, YAML): pure functions of a seeded `random.Random`.

Invariant: nothing here reads a clock, a file or global state.
"""

from __future__ import annotations

import copy
import json
import random
import re
from typing import Any

NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 7, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64),
    *(10**6, 10**12, 10**30, -(2**63), 0.5, -0.0, 1e-300, 1e308, float("nan"), float("inf"), -float("inf")),
)
TEXTS = (
    *("", " ", "0", "..", "../../etc/passwd", "/etc/passwd", "\\\\host\\share", "C:\\x", "a\0b", "a\nb", "\x1b[31mred"),
    *("x" * 5000, "µ", "\ud83d", "\u202e", "-1", "1e999", "NaN", "None", "true", "[]", "{}", "%s%n", "${HOME}"),
    *("file:///etc/passwd", "http://127.0.0.1:9/x", "__class__", "zstd", "gzip", "blosc", "bytes"),
    *("sharding_indexed", "<u2", "|O", "object", "uint16", "r16"),
)  # fmt: skip
LITERALS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": None}, [0] * 70, ["y", "x"])


def value(rng: random.Random) -> Any:
    """Any value that JSON can write, and some that it should not."""
    choice = rng.random()
    if choice < 0.45:
        return rng.choice(NUMBERS)
    if choice < 0.7:
        return rng.choice(TEXTS)
    if choice < 0.93:
        return copy.deepcopy(rng.choice(LITERALS))
    nested: Any = rng.choice(NUMBERS)
    for _ in range(rng.choice((2, 10, 200))):
        nested = [nested] if rng.random() < 0.5 else {"a": nested}
    return nested


def tree(document: Any, rng: random.Random) -> Any:
    """A copy of a JSON-like document with one to four nodes changed, removed, renamed, doubled or swapped."""
    try:
        document = copy.deepcopy(document)
    except RecursionError:  # nested by a mutation before
        return value(rng)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = _places(document)
        if not places or rng.random() < 0.02:
            document = value(rng)
            continue
        parent, key = rng.choice(places)
        _change(parent, key, places, rng)
    return document


def _places(document: Any) -> list[tuple[Any, Any]]:
    found, todo = [], [document]
    while todo:
        node = todo.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            found.append((node, key))
            todo.append(node[key])
        if len(found) > 2000:
            break
    return found


def _change(parent: Any, key: Any, places: list[tuple[Any, Any]], rng: random.Random) -> None:
    how = rng.choice(("value", "value", "value", "nudge", "remove", "rename", "double", "swap", "wrap"))
    if how == "value":
        parent[key] = value(rng)
    elif how == "nudge" and type(parent[key]) in (int, float):
        parent[key] = rng.choice(
            (-parent[key], parent[key] * 1000003, parent[key] + 1, parent[key] / 7, str(parent[key]))
        )
    elif how == "nudge" and isinstance(parent[key], str):
        parent[key] = text(parent[key], rng)
    elif how == "remove":
        del parent[key]
    elif how == "rename" and isinstance(parent, dict):
        parent[rng.choice(("", "x", str(key).upper(), f"{key} ", *map(str, TEXTS[:8])))] = parent.pop(key)
    elif how == "double" and isinstance(parent, list):
        parent.extend(copy.deepcopy(parent[key]) for _ in range(rng.choice((1, 2, 100))))
    elif how == "swap":
        other, name = rng.choice(places)
        if name in other if isinstance(other, dict) else name < len(other):
            parent[key] = copy.deepcopy(other[name])
    else:
        parent[key] = rng.choice(([parent[key]], {"a": parent[key]}, [parent[key]] * 3))


def json_document(document: Any, rng: random.Random) -> bytes:
    """A mutated document as JSON, now and then broken as text, or nested without end."""
    if rng.random() < 0.03:
        depth = rng.choice((100, 900, 3000, 100_000))
        return rng.choice((b"[" * depth, b"[" * depth + b"]" * depth, b'{"a":' * depth))
    written = json.dumps(tree(document, rng)).encode()
    return data(written, rng) if rng.random() < 0.15 else written


def text(original: str, rng: random.Random) -> str:
    """Text with a number blown up, a piece doubled, removed or replaced."""
    numbers = list(re.finditer(r"\d+(\.\d+)?", original))
    how = rng.choice(("number", "number", "double", "cut", "insert", "drop"))
    if how == "number" and numbers:
        at = rng.choice(numbers)
        return original[: at.start()] + str(rng.choice(NUMBERS)) + original[at.end() :]
    first = rng.randrange(len(original) + 1)
    last = min(len(original), first + rng.choice((1, 2, 8, 40)))
    if how == "double":
        return original[:last] + original[first:last] * rng.choice((1, 2, 50)) + original[last:]
    if how == "cut":
        return original[:first]
    if how == "insert":
        return original[:first] + rng.choice(TEXTS) + original[first:]
    return original[:first] + original[last:]


def data(original: bytes, rng: random.Random, low: int = 0, high: int | None = None) -> bytes:
    """Bytes with bits flipped, bytes set, a piece moved, removed or cut off; within [low, high) where given."""
    changed = bytearray(original)
    high = len(changed) if high is None else min(high, len(changed))
    if high <= low:
        return original
    how = rng.choice(("bits", "bits", "bytes", "move", "remove", "cut", "zero"))
    at = rng.randrange(low, high)
    length = rng.choice((1, 2, 4, 8, 64))
    if how == "bits":
        for _ in range(rng.choice((1, 1, 2, 8, 32))):
            changed[rng.randrange(low, high)] ^= 1 << rng.randrange(8)
    elif how == "bytes":
        for _ in range(rng.choice((1, 2, 8))):
            changed[rng.randrange(low, high)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    elif how == "move":
        source = rng.randrange(low, high)
        changed[at : at + length] = changed[source : source + length]
    elif how == "remove":
        del changed[at : at + length]
    elif how == "cut":
        del changed[at:]
    else:
        changed[at : at + length] = bytes(len(changed[at : at + length]))
    return bytes(changed)
