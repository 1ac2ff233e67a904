"""What a run writes down of itself at its start, and how later processes join it: other shards, reruns, `finish`.

Invariant: the first header of a run holds all that its end needs (so that no input, model or GPU is needed there), and
whoever joins takes blocks, ranges and what was judged from it, not from what this machine would have chosen.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mrbcr_cli import __version__
from mrbcr_cli.errors import FingerprintError, IncompleteError
from mrbcr_cli.images import SourceSpec
from mrbcr_cli.images.base import OutputSpec
from mrbcr_cli.intensity import IntensityRange
from mrbcr_cli.places import Place
from mrbcr_cli.plan import Plan, provenance
from mrbcr_cli.remote_output import await_other
from mrbcr_cli.settings import DeconvolveSettings
from mrbcr_cli.stream.blocks import Grid
from mrbcr_cli.stream.ledger import Ledger, LedgerContents, LockedError
from mrbcr_cli.stream.shards import RunLedger, Shard
from mrbcr_cli.workfolder import (
    BusyError,
    MovedOnError,
    Target,
    begin,
    begin_there,
    busy,
    drop_partial,
    standing_run,
    unfinished_run,
)

_ATTEMPTS = 20
"""Looks at a working folder that others begin or finish at the same moment; two are enough but for rare ill luck."""


@dataclass(frozen=True)
class RunRecord:
    """What the header of a run says, read back."""

    spec: OutputSpec
    """With provenance, but for the figures that are known only at the end; without the source's XML."""
    grid: Grid
    source: dict[str, Any]
    """What was typed, where, and how it is read."""
    input_fingerprint: str
    fingerprint: str
    format: str
    overwrite: bool
    notes: tuple[str, ...]

    @property
    def compression(self) -> Any:
        """Of a TIFF."""
        return self.spec.provenance["settings"]["compression"]


def header_of(plan: Plan, target: Target, settings: DeconvolveSettings, command: str) -> dict[str, Any]:
    """What stands in the first line of the ledger of a run that begins; JSON-able."""
    spec = plan.spec
    return {
        "fingerprint": plan.fingerprint,
        "id": uuid.uuid4().hex,
        "version": __version__,
        "grid": plan.grid.to_dict(),
        "ranges": [asdict(r) for r in plan.ranges],
        "notes": list(plan.notes),
        "domain": list(plan.domain),
        "warnings": list(plan.warnings),
        "command": command,
        "format": target.format,
        "overwrite": settings.overwrite,
        **({"url": str(target.path)} if target.remote else {}),
        "source": _source_dict(plan.source),
        "spec": {
            "axes": spec.axes,
            "shape": list(spec.shape),
            "dtype": spec.dtype.name,
            "stored_axes": spec.stored_axes,
            "scale": list(spec.scale),
            "units": list(spec.units),
            "channel_names": list(spec.channel_names),
            "channel_colors": list(spec.channel_colors),
            "name": spec.name,
        },
        "provenance": provenance(plan, settings, command, __version__),
    }


def _source_dict(source: SourceSpec) -> dict[str, Any]:
    return {
        "text": source.label,
        "folder": str(Path.cwd()),
        "series": source.series,
        "axes": source.axes,
        "split_rgb": source.split_rgb,
    }


def read_header(header: Mapping[str, Any], where: Place) -> RunRecord:
    """Read a header back. Raises FingerprintError for one of another version, IncompleteError for a damaged one."""
    began = header.get("version")
    if began != __version__:
        raise FingerprintError(
            f"{where}: was begun by mrbcr {began}, this is {__version__}; finish it with that version, or deconvolve "
            "again with --no-resume"
        )
    try:
        spec = dict(header["spec"])
        tuples = ("shape", "scale", "units", "channel_names", "channel_colors")
        spec |= {name: tuple(spec[name]) for name in tuples}
        record = dict(header["provenance"])
        return RunRecord(
            spec=OutputSpec(**{**spec, "dtype": np.dtype(spec["dtype"]), "provenance": record}),
            grid=Grid.from_dict(header["grid"]),
            source=dict(header["source"]),
            input_fingerprint=str(record["input"]["fingerprint"]),
            fingerprint=str(header["fingerprint"]),
            format=str(header["format"]),
            overwrite=bool(header["overwrite"]),
            notes=tuple(map(str, [*header["notes"], *header["warnings"]])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise IncompleteError(
            f"{where}: does not say how the run is finished ({error!r}); run the mrbcr deconvolve command again"
        ) from error


def ranges_of(contents: LedgerContents | None, settings: DeconvolveSettings) -> tuple[IntensityRange, ...] | None:
    """The ranges an unfinished run was begun with; None where they are to be found anew."""
    found = None if contents is None else _ranges(contents)
    if found is not None and settings.range is not None and any((r.low, r.high) != settings.range for r in found):
        return None
    return found


def _ranges(contents: LedgerContents) -> tuple[IntensityRange, ...] | None:
    try:
        return tuple(IntensityRange.from_dict(r) for r in contents.header["ranges"])
    except (KeyError, TypeError, ValueError):
        return None


def joined(plan: Plan, contents: LedgerContents | None, settings: DeconvolveSettings, target: Target) -> Plan | None:
    """The plan as the unfinished run in the working folder has it; None where there is none that is to be kept.

    Raises FingerprintError where it is of another input, model, settings, version or tile size.
    """
    if contents is None:
        return None
    if contents.header.get("fingerprint") != plan.fingerprint:
        if settings.overwrite:
            return None
        raise FingerprintError(
            f"{target.partial}: holds an unfinished run of another input, model or settings; "
            "use --overwrite or --no-resume to drop it, or another --output"
        )
    began = contents.header.get("version")
    if began != __version__:
        raise FingerprintError(
            f"{target.partial}: was begun by mrbcr {began}, this is {__version__}; use --no-resume to start again"
        )
    grid = Grid.from_dict(contents.header["grid"])
    if settings.tile_size is not None and grid.block_shape != plan.grid.block_shape:
        raise FingerprintError(
            f"{target.partial}: was begun with blocks of {grid.block_shape[-2]} x {grid.block_shape[-1]} px; "
            "leave --tile-size out to resume it, or use --no-resume to start again"
        )
    notes = tuple(dict.fromkeys([*map(str, contents.header.get("notes", [])), *plan.notes]))
    judged: dict[str, Any] = {}
    if settings.domain_check:
        judged = {
            "domain": tuple(contents.header.get("domain", ())),
            "warnings": tuple(contents.header.get("warnings", ())),
        }
    return replace(plan.with_grid(grid, settings), notes=notes, ranges=_ranges(contents) or plan.ranges, **judged)


def enter(
    plan: Plan, target: Target, settings: DeconvolveSettings, command: str, shard: Shard | None
) -> tuple[Plan, RunLedger]:
    """Join the run in the working folder, or begin it; return the plan as all of the run have it, and the open ledger.

    Several processes may do so at the same moment: one begins, the others join. Raises IncompleteError where another
    process is in the way, FingerprintError as `joined`, OSError where the disk does not take it.
    """
    for _ in range(_ATTEMPTS):
        try:
            standing = standing_run(target)
            contents = unfinished_run(target) if settings.resume else None
            ours = joined(plan, contents, settings, target)
            if ours is not None and contents is not None:
                return ours, RunLedger(target.ledger, contents.header, shard)
            drop_partial(target, standing)
            header = header_of(plan, target, settings, command)
            if _begin(target, plan, header):
                return plan, RunLedger(target.ledger, header, shard)
        except (MovedOnError, FileNotFoundError):
            continue  # begun, dropped or finished by another process since we looked
        except (LockedError, BusyError) as error:
            if target.remote and shard is not None:
                await_other()  # perhaps another shard, which lays the store out at the URL
                continue
            raise busy(target, shard) from error
    raise busy(target, shard)


def _begin(target: Target, plan: Plan, header: dict[str, Any]) -> bool:
    """Lay out a working folder: the empty store, what the end needs of the source, and last the ledger."""
    if target.remote:
        return begin_there(target, header, lambda: _lay_out(target.store, plan, target.zarr_version))

    def fill(staged: Target) -> None:
        _lay_out(staged.store, plan, staged.zarr_version)
        Ledger(staged.ledger, header).close()

    return begin(target, fill)


def _lay_out(store: Place, plan: Plan, version: Any) -> None:
    from mrbcr_cli.images.omezarr_write import create_level0, keep_source_xml, plan_layout

    create_level0(store, plan.spec, plan_layout(plan.spec, plan.grid.block_shape, version), version)
    if plan.spec.source_ome_xml is not None:
        keep_source_xml(store, plan.spec.source_ome_xml, version)
