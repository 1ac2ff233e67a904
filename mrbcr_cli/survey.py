"""The look at an image's pixels before the first block: intensity ranges, spectra, domain, cost of reduced precision.

Invariant: what is found depends on the pixels and the settings alone, never on the format, the chunks or the blocks; no
pixel is read twice for it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.domain import DomainEstimate, Windows, check_domain, estimate_domain
from mrbcr_cli.errors import InputError
from mrbcr_cli.images.base import ImageInfo, ImageReader, Region
from mrbcr_cli.intensity import IntensityRange, survey_channel, with_guide
from mrbcr_cli.methods import ChannelMethod
from mrbcr_cli.precision import with_precision_error
from mrbcr_cli.restore import NetworkSpec
from mrbcr_cli.settings import DeconvolveSettings

_LARGEST_SAMPLE_PX = 2048


def survey_channels(
    reader: ImageReader,
    settings: DeconvolveSettings,
    channels: tuple[int, ...],
    methods: tuple[ChannelMethod, ...],
    percentiles: tuple[tuple[float, float], ...],
    known: tuple[IntensityRange, ...] | None,
) -> tuple[tuple[IntensityRange, ...], list[str], tuple[DomainEstimate | None, ...]]:
    """Return each channel's range, from --range, an earlier run or a survey, and what the user must know of it.

    Channels to be judged get an estimate of what they are, those of guided networks their spectrum, those in reduced
    precision what it costs, from the pixels of the survey; nothing is read twice.
    """
    if known is not None and len(known) == len(channels):
        return known, [], ()  # the earlier run judged them
    info, notes, ranges = reader.info, [], []
    estimates: list[DomainEstimate | None] = []
    shape = (info.size("T"), info.size("Z"), info.size("Y"), info.size("X"))
    for channel, method, low_high in zip(channels, methods, percentiles, strict=True):
        judge = settings.domain_check and bool(method.limits)
        probed = isinstance(method.spec, NetworkSpec) and method.spec.precision != "fp32"
        looked_at = judge or method.guided or probed
        if settings.range is not None and info.dtype.kind != "f" and not looked_at:
            ranges.append(IntensityRange(*settings.range))
            estimates.append(None)
            continue
        seen = Windows() if looked_at else None
        survey = survey_channel(shape, _channel_reader(reader, channel, seen), low_high)
        if survey.non_finite and settings.nan_policy == "refuse":
            raise _not_finite(info, survey.non_finite, survey.looked_at)
        estimates.append(estimate_domain(seen.planes) if seen is not None and judge else None)
        found = survey.range
        if settings.range is not None:  # surveyed for NaN, domain and spectrum alone
            found = IntensityRange(*settings.range)
        else:
            notes += [f"channel {channel}: {note}" for note in survey.notes]
        if seen is not None and method.guided:
            found = with_guide(found, seen.planes)
        if seen is not None and isinstance(method.spec, NetworkSpec) and probed:
            found, said = with_precision_error(found, method.spec, seen.planes)
            notes += [] if said is None else [f"channel {channel}: {said}"]
        ranges.append(found)
    return tuple(ranges), notes, tuple(estimates)


def _channel_reader(
    reader: ImageReader, channel: int, seen: Windows | None
) -> Callable[[tuple[slice, slice, slice, slice]], NDArray[Any]]:
    """Return what reads (t, z, y, x) regions of one plane each of a channel, keeping them in `seen`."""

    def read(region: tuple[slice, slice, slice, slice]) -> NDArray[Any]:
        by_axis = {"C": slice(channel, channel + 1), **dict(zip("TZYX", region, strict=True))}
        pixels = reader.read(full_region(reader.info, by_axis))
        if seen is not None:
            seen.keep(pixels.reshape(pixels.shape[-2:]))
        return pixels

    return read


def outside_domain(
    channels: tuple[int, ...], methods: tuple[ChannelMethod, ...], estimates: tuple[DomainEstimate | None, ...]
) -> tuple[str, ...]:
    """Say of each channel that was judged in what it lies outside the limits of its model."""
    return tuple(
        f"channel {channel}: {text}"
        for channel, method, estimate in zip_longest(channels, methods, estimates)
        if estimate is not None
        for text in check_domain(estimate, method.limits or {})
    )


def full_region(info: ImageInfo, by_axis: dict[str, slice]) -> Region:
    """Return a region in the image's axes from slices by letter; axes not named are taken whole."""
    return tuple(by_axis.get(axis, slice(0, size)) for axis, size in zip(info.axes, info.shape, strict=True))


def sample_plane(reader: ImageReader, settings: DeconvolveSettings, t: int, c: int, z: int) -> NDArray[Any]:
    """The middle of one plane, at most 2,048 px wide: enough for a spectrum, bounded for any image.

    Non-finite pixels are 0 there, or refused, as the user's policy says. Raises InputError.
    """
    info = reader.info
    by_axis = {"T": slice(t, t + 1), "C": slice(c, c + 1), "Z": slice(z, z + 1)}
    for axis in "YX":
        size = info.size(axis)
        start = max((size - _LARGEST_SAMPLE_PX) // 2, 0)
        by_axis[axis] = slice(start, min(start + _LARGEST_SAMPLE_PX, size))
    plane = reader.read(full_region(info, by_axis))
    plane = plane.reshape(plane.shape[-2:])
    if plane.dtype.kind == "f" and not np.isfinite(plane).all():
        if settings.nan_policy == "refuse":
            raise _not_finite(info, int((~np.isfinite(plane)).sum()), plane.size)
        plane = np.nan_to_num(plane, nan=0.0, posinf=0.0, neginf=0.0)
    return plane


def _not_finite(info: ImageInfo, count: int, looked_at: int) -> InputError:
    return InputError(
        f"{info.path}: {count} of {looked_at} pixels looked at are NaN or infinite; "
        "use --nan-policy zero or keep to go on"
    )
