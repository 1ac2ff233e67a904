"""mrbcr from Python: `mrbcr_cli.deconvolve` for arrays.

Invariant: an array gives the pixels that the command line gives for the same image; arguments are its long options with
underscores, with the same defaults, and are checked by the same code (DeconvolveSettings).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import InputError

if TYPE_CHECKING:
    import dask.array as da
    import zarr

    from mrbcr_cli.array_runs import Progress
    from mrbcr_cli.settings import DeconvolveSettings

Model = str | Path | Mapping[int, str | Path]


class Options(TypedDict, total=False):
    """The keyword arguments of `deconvolve`, for those who pass them on."""

    model: Model
    axes: str | None
    range: tuple[float, float] | None
    percentiles: tuple[float, float] | None
    method: Literal["network", "richardson-lucy", "wiener", "blind"]
    psf: str | Path | NDArray[Any] | None
    psf_voxel_um: tuple[float, float, float] | None
    iterations: int | None
    tv: float | None
    background: float | None
    acceleration: bool | None
    balance: float | None
    pixel_um: float | tuple[float, float, float] | None
    channels: int | str | Sequence[int] | None
    nan_policy: Literal["refuse", "zero", "keep"]
    domain_check: bool
    output_dtype: str | np.dtype[Any] | None
    device: str
    precision: Literal["fp32", "bf16", "fp16"]
    tile_size: int | None
    workers: int | None
    progress: Progress | None


@overload
def deconvolve(image: da.Array, **options: Unpack[Options]) -> da.Array: ...
@overload
def deconvolve(image: zarr.Array[Any], **options: Unpack[Options]) -> da.Array: ...
@overload
def deconvolve(image: NDArray[Any], **options: Unpack[Options]) -> NDArray[Any]: ...
def deconvolve(
    image: Any,
    *,
    model: Model = "widefield",
    axes: str | None = None,
    range: tuple[float, float] | None = None,
    percentiles: tuple[float, float] | None = None,
    method: Literal["network", "richardson-lucy", "wiener", "blind"] = "network",
    psf: str | Path | NDArray[Any] | None = None,
    psf_voxel_um: tuple[float, float, float] | None = None,
    iterations: int | None = None,
    tv: float | None = None,
    background: float | None = None,
    acceleration: bool | None = None,
    balance: float | None = None,
    pixel_um: float | tuple[float, float, float] | None = None,
    channels: int | str | Sequence[int] | None = None,
    nan_policy: Literal["refuse", "zero", "keep"] = "refuse",
    domain_check: bool = True,
    output_dtype: str | np.dtype[Any] | None = None,
    device: str = "auto",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    tile_size: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Any:
    """Remove blur from an image: same axes, same intensity units, same dtype, no seams.

    An array of numpy is deconvolved now. One of dask comes back as one of dask, in the same chunks, and nothing is
    computed before you ask for it, not even the intensity range: that and the spectrum of each whole channel are one
    task of the graph, which reads the array once on its own (so that no chunk waits in memory for it) before the
    blocks do. One of zarr comes back as one of dask too, so that its size does not matter: `result.to_zarr(...)`.
    However an array is chunked, the pixels are those of `mrbcr deconvolve` for a file of the same pixels.

    >>> import numpy as np
    >>> from mrbcr_cli import deconvolve
    >>> image = np.random.default_rng(0).poisson(100, (2, 96, 80)).astype(np.uint16)
    >>> sharp = deconvolve(image, domain_check=False)
    >>> sharp.shape, sharp.dtype
    ((2, 96, 80), dtype('uint16'))

    Lazily, so that napari computes what it shows (image.ome.zarr has axes TCZYX):

    >>> import dask.array as da
    >>> stack = da.from_zarr("image.ome.zarr/0")                                              # doctest: +SKIP
    >>> viewer.add_image(deconvolve(stack, axes="TCZYX", channels=[0, 2]))                    # doctest: +SKIP

    Args:
        image: Integers or floats, of numpy (memory maps too), dask or zarr.
        model: Embedded model (see `list_models`) or a file of weights; {0: "widefield", 1: "mine.safetensors"} gives
            each channel its own.
        axes: A letter of TCZYX for each axis, in any order. Default: YX or ZYX; more than three axes must be named.
            Every plane is deconvolved by itself by the networks, also those along Z.
        range: Intensities (low, high) that the network sees as 0 and 1. Default: percentiles of each whole channel.
        percentiles: Those of the range, in percent. Default: the model's, 0.1 and 99.9.
        method: "network", or the explicit "richardson-lucy", "wiener" (both with `psf`), "blind".
        psf: File (TIFF, npy, npz) or array (YX or ZYX).
        psf_voxel_um: Voxel size (z, y, x) of the PSF in micrometres.
        iterations, tv, background, acceleration: Of richardson-lucy. Default: 30, 0, 0, False.
        balance: Noise-to-signal balance of wiener. Default: estimated (not for lazy arrays).
        pixel_um: Pixel size of the image in micrometres, one number or (z, y, x); used to bring a PSF onto its grid.
        channels: Indices along C, as 2, [0, 2] or "1:3". Default: all.
        nan_policy: "refuse", "zero" or "keep", for NaN and infinity.
        domain_check: Warn (DomainWarning) of images unlike those the model was made for.
        output_dtype: As in "float32", which keeps all. Default: the image's; integers are rounded and clipped, with an
            MrbcrWarning where that is more than 0.1 % of the pixels of an array of numpy.
        device: "auto", "cpu", "cuda" or "cuda:N". Arrays come and go in main memory.
        precision: "fp32", "bf16" or "fp16"; too coarse for a channel, it is float32, with an MrbcrWarning.
        tile_size: Block size in pixels. Default: by available memory.
        workers: Blocks at a time in a process. Default: the cores that memory allows.
        progress: For arrays of numpy: called with (blocks done, blocks in all) after each.

    Returns:
        The image, in the order of its axes; with `channels` only those.

    Raises:
        InputError: An argument or the image is wrong; of lazy arrays what lies in the pixels is said when they are
            computed. Messages name the options of the command line (--nan-policy is nan_policy).
    """
    given = {name: value for name, value in locals().items() if name not in ("image", "axes", "pixel_um", "progress")}
    from mrbcr_cli.array_runs import deconvolve_lazily, deconvolve_now
    from mrbcr_cli.images.array import ArrayReader, is_dask, is_zarr_array

    if not all(hasattr(image, name) for name in ("shape", "dtype", "__getitem__")):
        kind = type(image).__name__
        raise InputError(f"image: is a {kind}, not an array of numpy, dask or zarr (files: mrbcr deconvolve FILE)")
    if type(image).__module__.startswith("xarray"):
        raise InputError("image: is of xarray; pass its array and axes: deconvolve(x.data, axes=''.join(x.dims))")
    with _settings(given) as settings:
        if is_zarr_array(image):
            import dask.array as da

            image = da.from_array(image, chunks=getattr(image, "shards", None) or image.chunks)
        if is_dask(image):
            if progress is not None:
                raise InputError("progress: is for arrays of numpy; dask has its own (dask.diagnostics.ProgressBar)")
            return deconvolve_lazily(ArrayReader(image, axes=axes, pixel_um=pixel_um), image, settings)
        image = image if isinstance(image, np.ndarray) else np.asarray(image)
        return deconvolve_now(ArrayReader(image, axes=axes, pixel_um=pixel_um), settings, progress)


def list_models() -> tuple[str, ...]:
    """Names of the embedded models, sorted; `mrbcr weights show NAME` says what each is for."""
    from mrbcr_cli.weights import list_weights

    return list_weights()


_DEFAULTS = {"method": "network", "nan_policy": "refuse", "device": "auto", "precision": "fp32", "model": "widefield"}


@contextlib.contextmanager
def _settings(given: dict[str, Any]) -> Iterator[DeconvolveSettings]:
    """The arguments as settings, checked; a PSF that is an array lies in a file for as long as they are used."""
    from mrbcr_cli.settings import load_settings

    options = {name: value for name, value in given.items() if value is not None and value is not True}
    options = {name: value for name, value in options.items() if not _is_default(name, value)}
    if given["acceleration"]:
        options["acceleration"] = True
    if "model" in options:
        options["model"] = _models(options["model"])
    if isinstance(options.get("output_dtype"), np.dtype | type):
        options["output_dtype"] = np.dtype(options["output_dtype"]).name
    if "channels" in options and not isinstance(options["channels"], str):
        options["channels"] = ",".join(str(int(index)) for index in np.atleast_1d(options["channels"]))
    with contextlib.ExitStack() as stack:
        if "psf" in options and not isinstance(options["psf"], str | Path):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mrbcr-psf-")))
            np.save(folder / "psf.npy", np.asarray(options["psf"]), allow_pickle=False)
            options["psf"] = folder / "psf.npy"
        yield load_settings(None, options)


def _is_default(name: str, value: Any) -> bool:
    return name in _DEFAULTS and isinstance(value, str) and value == _DEFAULTS[name]


def _models(model: Model) -> list[str]:
    if isinstance(model, Mapping):
        return [f"{channel}={name}" for channel, name in model.items()]
    return [str(model)]
