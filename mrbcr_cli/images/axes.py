"""Axis letters: what a user may say, what a file means, and the canonical order.

Invariant: every function is pure and returns letters of TCZYX only; what cannot be decided is an InputError that
names the shape and the letters allowed, never a silent guess (a guess that is made comes back as a note).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.base import CANONICAL_AXES

ALLOWED = ", ".join(CANONICAL_AXES)


@dataclass(frozen=True)
class AxisReading:
    """How the stored axes of an image are to be understood."""

    letters: tuple[str, ...]
    """One per stored axis: a letter of TCZYX, "S" (samples of a pixel, to be folded into C), "" (length 1, dropped)."""
    notes: tuple[str, ...] = ()
    """Plain sentences about what was guessed."""

    @property
    def stored_axes(self) -> str:
        """Letters on disk in their order; samples count as C where no other axis does."""
        letters = [letter for letter in self.letters if letter]
        if "S" in letters:
            letters = [x for x in letters if x != "S"] if "C" in letters else ["C" if x == "S" else x for x in letters]
        return "".join(letters)


def canonical_order(axes: str) -> str:
    """Return the letters of `axes` in the order TCZYX; raises ValueError for any other letter."""
    return "".join(sorted(axes, key=CANONICAL_AXES.index))


def format_shape(shape: Sequence[int]) -> str:
    """Return "31 x 61 x 57"."""
    return " x ".join(str(size) for size in shape)


def parse_axes(text: str, *, shape: Sequence[int] | None = None, where: str = "--axes") -> str:
    """Return the user's axis string in upper case, checked.

    Any order is accepted ("ZYX", "tyx", "YXC"); with `shape` the number of letters must fit it. Axes of length 1 may
    be left out, so a string is matched to `shape` first and then to `shape` without its ones.

    Raises InputError for an empty string, a letter outside TCZYX, a repeated letter, a missing Y or X, a wrong count.
    """
    axes = text.strip().upper()
    seen = f" (the stored shape is {format_shape(shape)})" if shape is not None else ""
    unknown = sorted(set(axes) - set(CANONICAL_AXES))
    if unknown:
        raise InputError(f"{where}: axis {unknown[0]!r} in {text!r} is unknown; allowed are {ALLOWED}{seen}")
    if len(set(axes)) != len(axes):
        raise InputError(f"{where}: an axis is named twice in {text!r}; name each of {ALLOWED} at most once{seen}")
    if "Y" not in axes or "X" not in axes:
        raise InputError(f"{where}: {text!r} must name both Y and X; allowed are {ALLOWED}{seen}")
    if shape is not None and len(axes) not in (len(shape), _count_long(shape)):
        raise InputError(
            f"{where}: {text!r} has {len(axes)} letters for {len(shape)} stored axes{seen}; "
            f"give one letter of {ALLOWED} per axis, in the stored order"
        )
    return axes


def interpret_axes(
    found: str, shape: Sequence[int], *, path: str, user: str | None = None, split_rgb: bool = False, guess: bool = True
) -> AxisReading:
    """Decide what each stored axis means from the letters `found` in the file (tifffile's codes) or from the user's.

    An axis of length 1 with an unknown letter is dropped. One longer unknown axis is taken as Z, with a note, where
    `guess` allows and Z is free. Samples ("S", RGB) are refused unless `split_rgb` or the user's own letters name them.

    Raises InputError where the letters leave a doubt.
    """
    if user is not None:
        return AxisReading(_user_letters(parse_axes(user, shape=shape, where=f"{path}: --axes"), shape))
    letters = [
        "" if size == 1 and letter not in CANONICAL_AXES else letter for letter, size in zip(found, shape, strict=True)
    ]
    notes: list[str] = []
    if "S" in letters:
        samples = shape[letters.index("S")]
        if not split_rgb:
            raise InputError(
                f"{path}: holds colour pixels (RGB or alike: {samples} samples each, shape {format_shape(shape)}); "
                "give --split-rgb to treat each as a channel, --axes if they are none, or save one channel as greyscale"
            )
        notes.append(f"The {samples} samples of each pixel are treated as channels.")
    unknown = [index for index, letter in enumerate(letters) if letter and letter not in CANONICAL_AXES + "S"]
    if len(unknown) == 1 and guess and "Z" not in letters:
        size = shape[unknown[0]]
        letters[unknown[0]] = "Z"
        notes.append(f"The file does not name its axis of length {size}: taken as Z. Give --axes to choose otherwise.")
    named = [letter for letter in letters if letter]
    if set(named) - set(CANONICAL_AXES + "S") or len(set(named)) != len(named) or not {"Y", "X"} <= set(named):
        raise InputError(
            f"{path}: cannot tell the axes of shape {format_shape(shape)} (the file says {found!r}); "
            f"give --axes with one letter of {ALLOWED} per axis"
        )
    return AxisReading(tuple(letters), tuple(notes))


def _count_long(shape: Sequence[int]) -> int:
    return sum(size != 1 for size in shape)


def _user_letters(axes: str, shape: Sequence[int]) -> tuple[str, ...]:
    if len(axes) == len(shape):
        return tuple(axes)
    rest = iter(axes)
    return tuple("" if size == 1 else next(rest) for size in shape)
