"""The plan of a run: everything that is decided, checked and measured before the first pixel is computed.

Invariant: making a plan writes nothing, and a plan that exists can be carried out; the fingerprint names all that the
pixels depend on (input, selection, methods, range, dtype) and nothing that they do not (tiles, workers, paths).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from mrbcr_cli.capacity import BASE_BYTES, Needs, Share, choose_grid, share_out
from mrbcr_cli.errors import InputError
from mrbcr_cli.images import OutputFormat, SourceSpec, open_source
from mrbcr_cli.images.base import ImageInfo, ImageReader, OutputSpec
from mrbcr_cli.intensity import IntensityRange
from mrbcr_cli.measure import with_graphs, with_measured
from mrbcr_cli.methods import ChannelMethod, here, plan_methods
from mrbcr_cli.places import is_remote
from mrbcr_cli.settings import DeconvolveSettings, parse_selection
from mrbcr_cli.stream.blocks import Grid
from mrbcr_cli.stream.engine import method_for
from mrbcr_cli.survey import outside_domain, sample_plane, survey_channels

FINGERPRINT_FORMAT = 1

_MOST = {"T": 1_000_000, "C": 4096, "Z": 1_000_000}
"""Time points, channels and planes are listed one by one; an image that claims more of them is damaged."""


@dataclass(frozen=True)
class Plan:
    """A run that can be carried out."""

    source: SourceSpec
    info: ImageInfo
    spec: OutputSpec
    """Without provenance: that is known at the end."""
    grid: Grid
    channels: tuple[int, ...]
    """Input index of each output channel."""
    methods: tuple[ChannelMethod, ...]
    ranges: tuple[IntensityRange, ...]
    input_fingerprint: str
    fingerprint: str
    needs: Needs
    share: Share
    notes: tuple[str, ...]
    domain: tuple[dict[str, Any] | None, ...] = ()
    """Of each output channel: what a `DomainEstimate` found; None or missing where nothing was looked for."""
    warnings: tuple[str, ...] = ()
    """In what the image lies outside the domain of its model."""

    @property
    def expected_bytes(self) -> int:
        """Expected peak memory of all processes that do blocks."""
        return self.share.processes * BASE_BYTES + self.share.workers * self.share.bytes_per_block

    def with_grid(self, grid: Grid, settings: DeconvolveSettings) -> Plan:
        """The same run cut another way (the grid of an unfinished run that is resumed)."""
        return replace(self, grid=grid, share=share_out(settings, self.info, self.needs, grid))

    @property
    def read_megapixels(self) -> float:
        """Pixels the method computes, halos included, in millions: the measure of work."""
        total = 1.0
        for k, axis in enumerate(self.grid.axes):
            sizes = 0
            for position in range(self.grid.counts[k]):
                start = position * self.grid.block_shape[k]
                stop = min(start + self.grid.block_shape[k], self.grid.shape[k])
                if axis in self.grid.picks:
                    sizes += stop - start
                    continue
                low = max(start + self.grid.offset[k] - self.grid.halo[k], 0)
                sizes += min(stop + self.grid.offset[k] + self.grid.halo[k], self.grid.input_shape[k]) - low
            total *= sizes
        return total / 1e6


@dataclass(frozen=True)
class Outline:
    """What of a plan needs no pixel: methods (but for those that measure their PSF or balance), blocks, dtype."""

    settings: DeconvolveSettings
    dtype: np.dtype[Any]
    channels: tuple[int, ...]
    methods: tuple[ChannelMethod, ...]
    percentiles: tuple[tuple[float, float], ...]
    needs: Needs
    grid: Grid
    share: Share


def outline(reader: ImageReader, settings: DeconvolveSettings, output_format: OutputFormat) -> Outline:
    """Decide all that the ranges play no part in. Raises InputError for what cannot be done."""
    info = reader.info
    settings, preferred_px = with_measured(settings)
    dtype = _output_dtype(info, settings, output_format)
    picks, offset, shape = _selection(info, settings)
    channels = picks.get("C", (0,))
    methods = plan_methods(settings, info, channels, lambda t, c, z: sample_plane(reader, settings, t, c, z))
    methods = with_graphs(methods, settings)
    percentiles = tuple(settings.percentiles or m.percentiles for m in methods)
    specs = dict.fromkeys(m.spec if settings.kind == "threads" else here(m.spec) for m in methods)
    needs = Needs.of([method_for(spec) for spec in specs])
    grid = choose_grid(settings, info, needs, shape, offset, picks, preferred_px)
    share = share_out(settings, info, needs, grid)
    return Outline(settings, dtype, channels, methods, percentiles, needs, grid, share)


def make_plan(
    source: SourceSpec,
    settings: DeconvolveSettings,
    output_format: OutputFormat,
    *,
    known_ranges: tuple[IntensityRange, ...] | None = None,
) -> Plan:
    """Open the source and decide everything; `known_ranges` spares the survey when an earlier run made it.

    Raises InputError (exit 2) for anything that cannot be done.
    """
    reader = open_source(source)
    try:
        return _plan(reader, source, settings, output_format, known_ranges)
    finally:
        reader.close()


def _plan(
    reader: ImageReader,
    source: SourceSpec,
    settings: DeconvolveSettings,
    output_format: OutputFormat,
    known_ranges: tuple[IntensityRange, ...] | None,
) -> Plan:
    info = reader.info
    made = outline(reader, settings, output_format)
    settings, grid, channels, methods = made.settings, made.grid, made.channels, made.methods
    ranges, notes, estimates = survey_channels(reader, settings, channels, methods, made.percentiles, known_ranges)
    check_background(settings, ranges, info)
    input_fingerprint = reader.fingerprint()
    identity = {
        "format": FINGERPRINT_FORMAT,
        "input": input_fingerprint,
        "axes": info.axes,
        "shape": list(grid.shape),
        "offset": list(grid.offset),
        "picks": {axis: list(p) for axis, p in grid.picks.items()},
        "methods": [m.fingerprint for m in methods],
        "range": list(settings.range) if settings.range else {"percentiles": [list(p) for p in made.percentiles]},
        # A run that refuses and one that zeroes differ only where the first one stops.
        "keeps_nan": settings.nan_policy == "keep",
        "dtype": made.dtype.name,
        "output_format": output_format,
        "compression": settings.compression if output_format == "ome-tiff" else None,
    }
    said = [*info.notes, *notes, *(note for m in methods for note in m.notes)]
    return Plan(
        source=source,
        info=info,
        spec=_output_spec(source, info, grid.shape, made.dtype, channels),
        grid=grid,
        channels=channels,
        methods=methods,
        ranges=ranges,
        input_fingerprint=input_fingerprint,
        fingerprint=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        needs=made.needs,
        share=made.share,
        notes=tuple(dict.fromkeys(said)),
        domain=tuple(e if e is None else e.to_dict() for e in estimates),
        warnings=outside_domain(channels, methods, estimates),
    )


def _output_spec(
    source: SourceSpec, info: ImageInfo, shape: tuple[int, ...], dtype: np.dtype[Any], channels: tuple[int, ...]
) -> OutputSpec:
    names, colors = (
        tuple(values[c] for c in channels) if values else () for values in (info.channel_names, info.channel_colors)
    )
    return OutputSpec(
        axes=info.axes,
        shape=shape,
        dtype=dtype,
        stored_axes=info.stored_axes,
        scale=info.scale,
        units=info.units,
        channel_names=names,
        channel_colors=colors,
        name=source.stem,
        source_ome_xml=info.ome_xml,
    )


def _output_dtype(info: ImageInfo, settings: DeconvolveSettings, output_format: OutputFormat) -> np.dtype[Any]:
    dtype = np.dtype(settings.output_dtype) if settings.output_dtype else info.dtype
    if settings.nan_policy == "keep" and info.dtype.kind == "f" and dtype.kind != "f":
        raise InputError(f"--nan-policy keep: {dtype} has no NaN; use --output-dtype float32 or --nan-policy zero")
    if output_format == "ome-tiff":
        from mrbcr_cli.images.tiff_write import check_tiff_dtype

        check_tiff_dtype(dtype)
    return dtype


def _selection(
    info: ImageInfo, settings: DeconvolveSettings
) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...], tuple[int, ...]]:
    """Return (picks for T and C, offset per axis, output shape) from --channels, --z and --t."""
    picks: dict[str, tuple[int, ...]] = {}
    offset, shape = [0] * len(info.axes), list(info.shape)
    for axis, option, text in (("T", "t", settings.t), ("C", "channels", settings.channels), ("Z", "z", settings.z)):
        if axis not in info.axes:
            if text is not None and _indices(text, option, 1, info) != [0]:
                raise InputError(f"--{option} {text}: {info.path} has no {axis} axis")
            continue
        k = info.axes.index(axis)
        if info.shape[k] > _MOST[axis]:
            raise InputError(f"{info.path}: claims {info.shape[k]} along {axis}; at most {_MOST[axis]} are deconvolved")
        chosen = list(range(info.shape[k])) if text is None else _indices(text, option, info.shape[k], info)
        if axis != "Z":
            picks[axis] = tuple(chosen)
        elif chosen != list(range(chosen[0], chosen[-1] + 1)):
            raise InputError(f"--z {text}: planes must be one range such as 4:20, so that they remain a stack")
        else:
            offset[k] = chosen[0]
        shape[k] = len(chosen)
    return picks, tuple(offset), tuple(shape)


def _indices(text: str, option: str, length: int, info: ImageInfo) -> list[int]:
    found: list[int] = []
    for part in parse_selection(text, option):
        if isinstance(part, slice):
            found += range(*part.indices(length))
        elif -length <= part < length:
            found.append(part % length)
        else:
            raise InputError(f"--{option} {text}: {info.path} has {length}, numbered from 0 to {length - 1}")
    if not found:
        raise InputError(f"--{option} {text}: selects nothing of {length} in {info.path}")
    if len(set(found)) != len(found):
        raise InputError(f"--{option} {text}: names something twice")
    return found


def check_background(settings: DeconvolveSettings, ranges: tuple[IntensityRange, ...], info: ImageInfo) -> None:
    highest = max(r.high for r in ranges)
    if settings.method != "network" and settings.background >= highest:
        raise InputError(
            f"--background {settings.background:g}: lies above nearly all of {info.path} ({highest:g}); "
            "it is the light that the specimen did not emit"
        )


def provenance(plan: Plan, settings: DeconvolveSettings, command: str, version: str) -> dict[str, Any]:
    """Return what the output says of itself, JSON-able, without the figures that are known only at the end."""
    return {
        "tool": "mrbcr",
        "version": version,
        "command": command,
        "folder": str(Path.cwd()),
        "fingerprint": plan.fingerprint,
        "input": {
            "name": Path(plan.source.label).name,
            "path": plan.source.label if is_remote(plan.source.label) else str(Path(plan.source.label).absolute()),
            "format": plan.info.format,
            "series": plan.info.series,
            "fingerprint": plan.input_fingerprint,
        },
        "selection": {axis: list(picks) for axis, picks in plan.grid.picks.items()}
        | (
            {"Z": [plan.grid.offset[plan.grid.axes.index("Z")], plan.grid.shape[plan.grid.axes.index("Z")]]}
            if "Z" in plan.grid.axes
            else {}
        ),
        "channels": [
            {
                "channel": channel,
                **method.description,
                "range": {"low": r.low, "high": r.high, "how": r.how},
                **({} if r.guide is None else {"guide": list(r.guide)}),
                **({"precision": "fp32"} if r.needs_fp32 else {}),
                **({} if r.precision_error is None else {"precision_error": r.precision_error}),
                **({} if estimate is None else {"estimate_of_domain": estimate}),
            }
            for channel, method, r, estimate in zip_longest(plan.channels, plan.methods, plan.ranges, plan.domain)
        ],
        "settings": json.loads(
            settings.model_dump_json(exclude={"overwrite", "resume", "work_dir", "report", "preview"})
        ),
        "grid": plan.grid.to_dict(),
        "notes": [*plan.notes, *plan.warnings],
        "warnings": list(plan.warnings),
    }
