"""An output and its input, found again from the output's provenance.

Invariant: nothing is paired silently: an input of another shape is refused, one of other content is announced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mrbcr_cli.errors import InputError
from mrbcr_cli.images import find_source, open_source, read_provenance
from mrbcr_cli.images.base import ImageReader
from mrbcr_cli.places import Place
from mrbcr_cli.report.pair import Pair, Side, levels_of
from mrbcr_cli.stream.blocks import Grid


def read_record(output: Place) -> dict[str, Any]:
    """The provenance of a finished output. Raises InputError where there is none."""
    try:
        there = output.exists()
    except OSError as error:
        raise InputError(f"{output}: cannot be looked at ({error.strerror})") from error
    if not there:
        raise InputError(f"{output}: no such output; give what mrbcr deconvolve wrote")
    record = read_provenance(output)
    if record is None or not isinstance(record.get("grid"), dict) or not isinstance(record.get("input"), dict):
        raise InputError(f"{output}: is no finished output of mrbcr deconvolve; a page is made of those alone")
    return dict(record)


def open_pair(output: Place, record: dict[str, Any], given: str | None, warn: Callable[[str], None]) -> Pair:
    """Open an output and its input: the one `given`, else where the output says that it was.

    `warn` hears when the input is not the same bytes as then. Raises InputError where it is not to be found or cannot
    be the input.
    """
    grid = _grid(record, output)
    after = open_source(find_source(str(output)))
    try:
        if (after.info.axes, after.info.shape) != (grid.axes, grid.shape):
            raise InputError(f"{output}: its pixels are not those that its provenance describes; deconvolve again")
        before = _open_input(output, record, given)
    except BaseException:
        after.close()
        raise
    pair = Pair(Side(levels_of(before), grid), Side(levels_of(after), None))
    try:
        if (before.info.axes, before.info.shape) != (grid.axes, grid.input_shape):
            shapes = ["x".join(map(str, shape)) for shape in (before.info.shape, grid.input_shape)]
            raise InputError(
                f"{before.info.path}: is {shapes[0]} {before.info.axes}, but {output} was made of {shapes[1]} "
                f"{grid.axes}; give its input with --input"
            )
        if before.fingerprint() != record["input"].get("fingerprint"):
            warn(
                f"{before.info.path}: is not, byte for byte, what {output} was made of (changed, or copied without its "
                "time); before and after may not belong together"
            )
    except BaseException:
        pair.close()
        raise
    return pair


def _grid(record: dict[str, Any], output: Place) -> Grid:
    try:
        return Grid.from_dict(record["grid"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{output}: its provenance is damaged ({error!r}); deconvolve again") from error


def _open_input(output: Place, record: dict[str, Any], given: str | None) -> ImageReader:
    known = record["input"].get("path")
    if given is None and known is None:
        raise InputError(f"{output}: does not say where its input is; name it with --input")
    settings = record.get("settings", {})
    how = {name: settings.get(name) for name in ("series", "axes")}
    split = bool(settings.get("split_rgb"))
    try:
        return open_source(find_source(str(given or known), **how, split_rgb=split))
    except InputError as error:
        if given is not None:
            raise
        raise InputError(f"{output}: its input cannot be read where it was ({error}); name it with --input") from error
