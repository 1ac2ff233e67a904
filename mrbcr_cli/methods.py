"""From settings to methods: which network or explicit method each channel gets, ready to be built on any worker.

Invariant: a MethodSpec holds everything that its Method depends on, by value or by hash; so two specs that are equal
give the same pixels, and `fingerprint` says so across machines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.base import ImageInfo
from mrbcr_cli.intensity import PERCENTILES
from mrbcr_cli.restore import Method, NetworkSpec, check_device_name, resolve_device
from mrbcr_cli.settings import DeconvolveSettings

if TYPE_CHECKING:
    from mrbcr_cli.psf_grid import Psf
    from mrbcr_cli.stream.engine import MethodSpec

ReadPlane = Callable[[int, int, int], NDArray[Any]]
"""(t, channel, z) in input coordinates -> (Y, X) plane."""

_BLIND_PLANES = 16


@dataclass(frozen=True)
class ExplicitSpec:
    """Richardson-Lucy or Wiener with its PSF by value."""

    kind: str
    psf_bytes: bytes
    psf_shape_zyx: tuple[int, ...]
    psf_source: str
    iterations: int
    tv: float
    background: float
    acceleration: bool
    balance: float
    device: str

    def build(self) -> Method:
        """Make the method. Raises InputError for values out of range."""
        from mrbcr_cli.classical import RichardsonLucy, Wiener
        from mrbcr_cli.psf_grid import Psf

        values = np.frombuffer(self.psf_bytes, np.float32).reshape(self.psf_shape_zyx)
        psf = Psf(values, self.psf_source)
        device = resolve_device(self.device)
        if self.kind == "wiener":
            return Wiener(psf, self.balance, device=device)
        return RichardsonLucy(
            psf,
            iterations=self.iterations,
            tv=self.tv,
            background=self.background,
            accelerate=self.acceleration,
            device=device,
        )


@dataclass(frozen=True)
class ChannelMethod:
    """The method of one output channel: its recipe, what identifies it, and what the output should say of it."""

    spec: MethodSpec
    fingerprint: dict[str, Any]
    """Everything the pixels depend on; no paths."""
    description: dict[str, Any]
    notes: tuple[str, ...] = ()
    percentiles: tuple[float, float] = PERCENTILES
    """Of the intensity range this method was made for, unless the user sets others."""
    limits: dict[str, Any] | None = None
    """The domain of a network, to hold images against; None where it is not known."""
    guided: bool = False
    """Whether it wants the spectrum of the channel with the range."""


def plan_methods(
    settings: DeconvolveSettings, info: ImageInfo, channels: tuple[int, ...], read_plane: ReadPlane
) -> tuple[ChannelMethod, ...]:
    """Return the method of each selected channel (`channels`: input indices).

    Raises InputError when a model, PSF or device is not there or does not fit the image.
    """
    # Threads of this process share its device; each worker of a cluster finds its own when it builds the method.
    device = resolve_device(settings.device) if settings.kind == "threads" else check_device_name(settings.device)
    if settings.method == "network":
        return _networks(settings, info, channels, device)
    try:
        if settings.method == "blind":
            return tuple(_blind(settings, info, channel, read_plane, device) for channel in channels)
        return _explicit(settings, info, read_plane, channels, device)
    except InputError as error:
        # What speaks of planes and spectra must say of which file, in a batch of many.
        said = str(error)
        raise error if info.path in said or str(settings.psf) in said else InputError(f"{info.path}: {said}") from error


def _networks(
    settings: DeconvolveSettings, info: ImageInfo, channels: tuple[int, ...], device: str
) -> tuple[ChannelMethod, ...]:
    from mrbcr_cli.weights import build_network, load_weights

    by_channel = settings.models_by_channel()
    count = info.size("C")
    for named in by_channel:
        if named is not None and named >= count:
            raise InputError(
                f"--model {named}={by_channel[named]}: {info.path} has {count} channel{'s' * (count > 1)}, "
                f"numbered from 0"
            )
    missing = [c for c in channels if c not in by_channel and None not in by_channel]
    if missing:
        raise InputError(
            f"--model: channel {missing[0]} has no model; name one for it, or one without C= for all others"
        )
    found = {}
    for name in sorted({by_channel.get(c, by_channel.get(None, "")) for c in channels}):
        loaded = load_weights(name)
        network = build_network(loaded)
        halo = settings.tile_overlap
        if halo is None:
            halo = loaded.card.effective_halo_px or network.default_halo_px
        elif halo % network.alignment_px:
            raise InputError(f"--tile-overlap {halo}: must be a multiple of {network.alignment_px} for model {name}")
        spec = NetworkSpec(_for_any_folder(name), loaded.sha256, device, settings.precision, settings.batch_size, halo)
        identity = {"sha256": loaded.sha256, "precision": settings.precision, "halo_px": halo}
        described = {
            "method": "network",
            "model": loaded.card.name,
            "architecture": loaded.card.architecture,
            "weights_sha256": loaded.sha256,
            "precision": settings.precision,
            "device": device,
            "halo_px": halo,
        }
        low, high = (float(loaded.card.normalisation[key]) for key in ("low", "high"))
        guided = getattr(network, "tones", None) is not None
        found[name] = ChannelMethod(
            spec, identity, described, percentiles=(low, high), limits=loaded.card.limits, guided=guided
        )
    return tuple(found[by_channel.get(c, by_channel.get(None, ""))] for c in channels)


def _for_any_folder(name: str) -> str:
    """A model's name as workers that were started elsewhere can use it: a file's path from the root."""
    from mrbcr_cli.weights import list_weights

    return name if name in list_weights() else str(Path(name).absolute())


def _explicit(
    settings: DeconvolveSettings, info: ImageInfo, read_plane: ReadPlane, channels: tuple[int, ...], device: str
) -> tuple[ChannelMethod, ...]:
    if settings.psf is None:
        raise InputError(f"--method {settings.method} needs --psf FILE")
    psf = psf_for(info, settings.psf, settings.psf_voxel_um)
    return tuple(_with_psf(settings, info, psf, channel, read_plane, device) for channel in channels)


def psf_for(info: ImageInfo, path: Path, voxel_zyx_um: tuple[float, float, float] | None) -> Psf:
    """The PSF in a file, on the grid of an image; `voxel_zyx_um` for files that do not say it. Raises InputError."""
    from mrbcr_cli.psf_files import load_psf

    return load_psf(
        path,
        image_scale_zyx_um=scale_zyx_um(info),
        psf_scale_zyx_um=voxel_zyx_um,
        image_shape_zyx=(info.size("Z"), info.size("Y"), info.size("X")),
        is_3d=info.size("Z") > 1,
    )


def _with_psf(
    settings: DeconvolveSettings, info: ImageInfo, psf: Psf, channel: int, read_plane: ReadPlane, device: str
) -> ChannelMethod:
    balance = settings.balance or 0.0
    if settings.method == "wiener" and settings.balance is None:
        from mrbcr_cli.blind import estimate_balance

        balance = estimate_balance(sample_planes(info, channel, read_plane), psf)
    kind = "wiener" if settings.method == "wiener" else "richardson-lucy"
    spec = ExplicitSpec(
        kind=kind,
        psf_bytes=np.ascontiguousarray(psf.values_zyx, np.float32).tobytes(),
        psf_shape_zyx=tuple(psf.values_zyx.shape),
        psf_source=psf.source,
        iterations=settings.iterations,
        tv=settings.tv,
        background=settings.background,
        acceleration=settings.acceleration,
        balance=balance,
        device=device,
    )
    values: dict[str, Any] = {"psf_sha256": psf.fingerprint()}
    if kind == "wiener":
        values["balance"] = balance
    else:
        names = ("iterations", "tv", "background", "acceleration")
        values |= {name: getattr(settings, name) for name in names}
    described = {"method": settings.method, "psf": psf.source, "psf_shape_zyx": list(psf.values_zyx.shape), **values}
    return ChannelMethod(spec, {"kind": kind, **values}, {**described, "device": device}, psf.notes)


def _blind(
    settings: DeconvolveSettings, info: ImageInfo, channel: int, read_plane: ReadPlane, device: str
) -> ChannelMethod:
    from mrbcr_cli.blind import estimate_psf_width

    estimate = estimate_psf_width(sample_planes(info, channel, read_plane))
    method = _with_psf(settings, info, estimate.psf(), channel, read_plane, device)
    pixel_um = scale_zyx_um(info)[1]
    size = f"{estimate.fwhm_px:.2f} px" + (f" ({1000 * estimate.fwhm_px * pixel_um:.0f} nm)" if pixel_um else "")
    note = f"channel {channel}: PSF estimated from the image's spectrum, FWHM {size}"
    if estimate.confidence == "low":
        note += "; the estimate is uncertain: compare with a measured PSF (--psf)"
    described = {**method.description, "estimate": estimate.to_dict()}
    return ChannelMethod(method.spec, method.fingerprint, described, (*method.notes, note))


def sample_planes(info: ImageInfo, channel: int, read_plane: ReadPlane) -> list[NDArray[np.float32]]:
    """Return up to 16 whole planes of a channel, evenly spread over time and depth, as float32."""
    pairs = [(t, z) for t in range(info.size("T")) for z in range(info.size("Z"))]
    picks = np.unique(np.linspace(0, len(pairs) - 1, min(_BLIND_PLANES, len(pairs))).round().astype(int))
    return [read_plane(pairs[k][0], channel, pairs[k][1]).astype(np.float32) for k in picks]


def scale_zyx_um(info: ImageInfo) -> tuple[float | None, float | None, float | None]:
    """Return the voxel size along z, y, x in micrometres; None where it is not known as a length."""
    z, y, x = (info.scale_um(axis) for axis in "ZYX")
    return z, y, x


def here(spec: MethodSpec) -> MethodSpec:
    """The recipe for this process, which plans but may lack the device that the workers have."""
    return replace(spec, device="cpu") if isinstance(spec, NetworkSpec | ExplicitSpec) else spec
