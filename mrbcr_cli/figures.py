"""Pictures of PSFs, training pairs, training and evaluation, as PNG: the home of matplotlib.

Invariant: drawn off screen, with perceptually uniform colour maps and physical scales; nothing here computes results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.errors import IncompleteError
from mrbcr_cli.intensity import PERCENTILES

Array = NDArray[Any]
LARGEST_SHOWN_PX = 1024
"""More pixels than a figure shows are not handed to matplotlib."""


def psf_figure(
    path: Path,
    responses: Mapping[str, Array],
    voxel_zyx_um: tuple[float, float, float],
    title: str,
    lines: Sequence[str] = (),
) -> None:
    """Write three sections of each PSF (z, y, x) and their three profiles as a PNG of exactly this path.

    `responses` are PSFs of one shape by name: one, or absorption and phase. Sections go through the brightest voxel of
    the first and show what rises above 0.5 % of its maximum.
    """
    figure, axes = _subplots(len(responses) + 1, 3, (11, 3.8 * (len(responses) + 1)))
    first = next(iter(responses.values()))
    peak = tuple(int(i) for i in np.unravel_index(int(np.abs(first).argmax()), first.shape))
    top = float(np.abs(first).max()) or 1.0
    signed = any(float(psf.min()) < -1e-3 * top for psf in responses.values())
    box = _support(np.max([np.abs(psf) for psf in responses.values()], axis=0) > 5e-3 * top)
    positions = [
        (np.arange(n) - p)[part] * v for n, p, v, part in zip(first.shape, peak, voxel_zyx_um, box, strict=True)
    ]
    style = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1} if signed else {"cmap": "magma", "vmin": 0, "vmax": 1}
    for row, (name, psf) in zip(axes, responses.items(), strict=False):
        shown = psf[box] / top if signed else np.clip(psf[box] / top, 0, None) ** 0.5
        image = _sections(
            row, shown, [p - b.start for p, b in zip(peak, box, strict=True)], positions, voxel_zyx_um, style
        )
        row[0].set_title(f"{name}, {'response' if signed else 'square root of intensity'}", fontsize=9)
        figure.colorbar(image, ax=row.tolist(), shrink=0.8)
    for axis, letter, k in zip(axes[-1], "xyz", (2, 1, 0), strict=True):
        for name, psf in responses.items():
            line = psf[tuple(box[i] if i == k else p for i, p in enumerate(peak))] / top
            axis.plot(positions[k], line, ".-", markersize=3, linewidth=1, label=name)
        if not signed:
            axis.axhline(0.5, color="0.7", linewidth=0.8)
        axis.set_xlabel(f"{letter} (um)")
        axis.set_title(f"profile along {letter}, maximum 1", fontsize=9)
    if len(responses) > 1:
        axes[-1][0].legend(fontsize=8)
    figure.suptitle("\n".join([title, *lines]), fontsize=10)
    _save(figure, path)


def _sections(
    row: Any,
    shown: Array,
    peak: Sequence[int],
    positions: Sequence[Array],
    voxel: Sequence[float],
    style: dict[str, Any],
) -> Any:
    """Draw XY, XZ and YZ through `peak` on three axes of equal scale; return the last image."""
    for axis, (across, down, cut, a, d) in zip(
        row, (("x", "y", 0, 2, 1), ("x", "z", 1, 2, 0), ("y", "z", 2, 1, 0)), strict=True
    ):
        plane = np.take(shown, peak[cut], axis=cut)
        box = (*_ends(positions[a], voxel[a]), *_ends(positions[d], voxel[d])[::-1])
        image = axis.imshow(plane, extent=box, interpolation="nearest", aspect="equal", **style)
        axis.set_xlabel(f"{across} (um)")
        axis.set_ylabel(f"{down} (um)")
    return image


def _support(above: Array) -> tuple[slice, ...]:
    """The smallest box that holds everything true, with two voxels around it."""
    parts = []
    for axis in range(above.ndim):
        found = np.flatnonzero(above.any(axis=tuple(a for a in range(above.ndim) if a != axis)))
        parts.append(slice(max(0, int(found[0]) - 2), min(above.shape[axis], int(found[-1]) + 3)))
    return tuple(parts)


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


def training_figure(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write loss, PSNR (training and validation) and learning rate over the steps of a log as a PNG."""
    figure, axes = _subplots(1, 3, (13, 3.6))
    loss, psnr, rate = axes[0]
    steps = [row["step"] for row in rows]
    loss.plot(steps, [row["loss"] for row in rows], linewidth=1)
    if all(row["loss"] > 0 for row in rows):
        loss.set_yscale("log")
    psnr.plot(steps, [row["psnr"] for row in rows], linewidth=1, label="training")
    held_out = [(row["step"], row["validation_psnr"]) for row in rows if "validation_psnr" in row]
    if held_out:
        psnr.plot(*zip(*held_out, strict=True), ".-", linewidth=1, label="held-out images")
    psnr.legend(fontsize=8)
    rate.plot(steps, [row["lr"] for row in rows], linewidth=1)
    for axis, title in ((loss, "loss"), (psnr, "PSNR (dB)"), (rate, "learning rate")):
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step")
    _save(figure, path)


def comparison_figure(
    path: Path, images: Mapping[str, Array], truth_yx: Array, captions: Mapping[str, str], title: str
) -> None:
    """Write planes (y, x) by name beside the truth, and below each its difference from the truth, as a PNG.

    Grey: from the 0.1 to the 99.9 percentile of all planes. Errors: image minus truth, in the same unit, red where too
    bright, saturated at the 99.5 percentile of all. `captions` go below the names. Planes wider than
    `LARGEST_SHOWN_PX` are better thinned out before.
    """
    truth = np.asarray(truth_yx, np.float64)
    shown = {name: np.asarray(image, np.float64) for name, image in images.items()}
    low, high = np.percentile([truth, *shown.values()], PERCENTILES)
    errors = {name: image - truth for name, image in shown.items()}
    span = float(np.percentile(np.abs(list(errors.values())), 99.5)) or 1.0
    columns = len(shown) + 1
    figure, axes = _subplots(2, columns, (2.4 * columns + 0.6, 5.8))
    for axis in axes.ravel():
        axis.set_axis_off()
    grey = {"cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-9 * max(abs(low), 1.0)), "interpolation": "nearest"}
    for column, (name, image) in enumerate([*shown.items(), ("truth", truth)]):
        axes[0, column].imshow(image, **grey)
        axes[0, column].set_title(f"{name}\n{captions.get(name, '')}".rstrip(), fontsize=7)
    drawn = None
    for column, (name, error) in enumerate(errors.items()):
        drawn = axes[1, column].imshow(error, cmap="RdBu_r", vmin=-span, vmax=span, interpolation="nearest")
        axes[1, column].set_title(f"{name} - truth", fontsize=7)
    if drawn is not None:
        beside = axes[1, -1].inset_axes((0.02, 0.05, 0.08, 0.9))
        figure.colorbar(drawn, cax=beside, label="image - truth, in the image's unit")
    figure.suptitle(title, fontsize=9)
    _save(figure, path)


@dataclass(frozen=True, eq=False)
class PreviewRow:
    """One channel of `preview_figure`: pictures (y, x) before and after, on one grey scale."""

    label: str
    overview: tuple[Array, Array]
    """Whole planes, made small."""
    zoom: tuple[Array, Array]
    """The same window of both, in full resolution."""
    zoom_yxhw: tuple[int, int, int, int]
    """Where the window lies in the plane, px."""
    plane_yx: tuple[int, int]
    """Size of the plane, px."""
    grey: tuple[float, float]
    """Intensities that are black and white."""


def preview_figure(path: Path, rows: Sequence[PreviewRow], title: str, pixel_um: float | None) -> None:
    """Write overviews and windows of each row, before and after, as a PNG of exactly this path; scale bars in um.

    Without a pixel size (um) there are no bars, which is said.
    """
    height, width = rows[0].plane_yx
    figure, axes = _subplots(len(rows), 4, (13, 0.6 + len(rows) * min(4.6, 0.45 + 3.1 * max(height / width, 0.4))))
    for line, row in zip(axes, rows, strict=True):
        low, high = row.grey
        style = {"cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-9 * max(abs(low), 1.0))}
        top, left, tall, wide = row.zoom_yxhw
        for axis, image, name in zip(line[:2], row.overview, ("before", "after"), strict=True):
            box = (0, row.plane_yx[1], row.plane_yx[0], 0)
            axis.imshow(image, extent=box, interpolation="antialiased", **style)
            axis.add_patch(_rectangle(left, top, wide, tall))
            _plain_picture(axis, name, row.plane_yx[1], pixel_um)
        for axis, image, name in zip(line[2:], row.zoom, ("before", "after"), strict=True):
            box = (left, left + wide, top + tall, top)
            axis.imshow(image, extent=box, interpolation="nearest", **style)
            _plain_picture(axis, f"{name}, {wide} x {tall} px", wide, pixel_um)
        said = "\n".join(_drawable(part) for part in (row.label, f"grey {low:.4g} to {high:.4g}") if part)
        line[0].text(-0.03, 0.5, said, rotation=90, ha="right", va="center", fontsize=8, transform=line[0].transAxes)
    unknown = "" if pixel_um else " (pixel size unknown: no scale bar)"
    figure.suptitle(f"{_drawable(title)}{unknown}; one grey scale for before and after", fontsize=9)
    _save(figure, path)


def round_length(largest: float) -> float:
    """The largest of 1, 2, 5, 10, 20, ... (and fractions) that is not above `largest` (> 0)."""
    decade = 10.0 ** np.floor(np.log10(largest))
    return float(max(decade * step for step in (1, 2, 5) if decade * step <= largest * (1 + 1e-9)))


def colour_map(name: str) -> bytes:
    """256 colours of a matplotlib colour map, RGB bytes."""
    from matplotlib import colormaps

    colours = colormaps[name](np.linspace(0, 1, 256), bytes=True)
    return np.ascontiguousarray(np.asarray(colours)[:, :3]).tobytes()


def _plain_picture(axis: Any, title: str, width_px: int, pixel_um: float | None) -> None:
    """Title, no ticks, and a scale bar in the lower right corner."""
    axis.set_title(title, fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])
    if not pixel_um:
        return
    import matplotlib.patheffects as effects

    length = round_length(0.3 * width_px * pixel_um)
    share = length / (width_px * pixel_um)
    drawn = axis.plot([0.96 - share, 0.96], [0.045, 0.045], color="white", linewidth=3, transform=axis.transAxes)
    text = axis.text(
        0.96 - share / 2, 0.07, f"{length:g} µm", color="white", fontsize=8, ha="center", transform=axis.transAxes
    )
    for artist in (*drawn, text):
        artist.set_path_effects([effects.withStroke(linewidth=artist_width(artist), foreground="black")])


def artist_width(artist: Any) -> float:
    """Width of the dark rim that keeps a bar or text readable on bright pixels."""
    return float(artist.get_linewidth()) + 1.5 if hasattr(artist, "get_linewidth") else 1.5


def _rectangle(left: float, top: float, width: float, height: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((left, top), width, height, fill=False, edgecolor="#ffb000", linewidth=1.2)


def _drawable(text: str) -> str:
    """Text without what matplotlib takes for mathematics, or its fonts lack."""
    return "".join(c if c.isprintable() and ord(c) < 0x530 else "?" for c in text).replace("$", r"\$")


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
