"""Pictures of PSFs and training pairs, as PNG: the home of matplotlib.

Invariant: drawn off screen, with perceptually uniform colour maps and physical scales; nothing here computes results.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import IncompleteError

Array = NDArray[Any]


def psf_figure(
    path: Path, psf_zyx: Array, voxel_zyx_um: tuple[float, float, float], title: str, lines: Sequence[str] = ()
) -> None:
    """Write the three sections through the brightest voxel and the three profiles as a PNG of exactly this path."""
    figure, axes = _subplots(2, 3, (11, 7.6))
    peak = np.unravel_index(int(np.abs(psf_zyx).argmax()), psf_zyx.shape)
    top = float(np.abs(psf_zyx).max()) or 1.0
    signed = float(psf_zyx.min()) < -1e-3 * top
    shown = psf_zyx / top if signed else np.clip(psf_zyx / top, 0, None) ** 0.5
    style = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1} if signed else {"cmap": "magma", "vmin": 0, "vmax": 1}
    extent = [(np.arange(n) - int(p)) * v for n, p, v in zip(psf_zyx.shape, peak, voxel_zyx_um, strict=True)]
    sections = (("XY", "x", "y", 0, 2, 1), ("XZ", "x", "z", 1, 2, 0), ("YZ", "y", "z", 2, 1, 0))
    for axis, (name, across, down, cut, a, d) in zip(axes[0], sections, strict=True):
        plane = np.take(shown, int(peak[cut]), axis=cut)
        box = (*_ends(extent[a], voxel_zyx_um[a]), *_ends(extent[d], voxel_zyx_um[d])[::-1])
        image = axis.imshow(plane, extent=box, interpolation="nearest", aspect="equal", **style)
        axis.set_xlabel(f"{across} (um)")
        axis.set_ylabel(f"{down} (um)")
        axis.set_title(f"{name}, {'response' if signed else 'square root of intensity'}", fontsize=9)
    figure.colorbar(image, ax=axes[0].tolist(), shrink=0.8)
    for axis, name, k in zip(axes[1], "xyz", (2, 1, 0), strict=True):
        line = psf_zyx[tuple(slice(None) if i == k else int(p) for i, p in enumerate(peak))] / top
        axis.plot(extent[k], line, ".-", markersize=3, linewidth=1)
        axis.axhline(0.5, color="0.7", linewidth=0.8)
        axis.set_xlabel(f"{name} (um)")
        axis.set_title(f"profile along {name}, maximum 1", fontsize=9)
    figure.suptitle(title if not lines else title + "\n" + "\n".join(lines), fontsize=10)
    _save(figure, path)


def pairs_figure(path: Path, blurred: Array, sharp: Array, captions: Sequence[str]) -> None:
    """Write a contact sheet of pairs (n, y, x): recorded above its target, each pair on the recorded image's range."""
    columns = min(8, len(blurred))
    rows = -(-len(blurred) // columns)
    figure, axes = _subplots(2 * rows, columns, (1.75 * columns, 3.75 * rows))
    for axis in axes.ravel():
        axis.set_axis_off()
    for k, (low_res, target, caption) in enumerate(zip(blurred, sharp, captions, strict=True)):
        row, column = 2 * (k // columns), k % columns
        low, high = np.percentile(low_res, (0.5, 99.8))
        axes[row, column].imshow(low_res, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
        axes[row, column].set_title(caption, fontsize=6)
        low, high = np.percentile(target, (0.5, 99.8))
        axes[row + 1, column].imshow(target, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
    figure.suptitle("recorded (above) and target (below)", fontsize=9)
    _save(figure, path)


def _subplots(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _ends(centres: Array, step: float) -> tuple[float, float]:
    return float(centres[0]) - step / 2, float(centres[-1]) + step / 2


def _save(figure: Any, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(partial, format="png", dpi=110)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise IncompleteError(f"{path}: cannot be written ({error.strerror or error})") from error
