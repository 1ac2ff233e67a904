"""What a model makes of real images, for looking at: input beside output, at the image's own pixels.

Invariant: the pixels shown are those that `mrbcr deconvolve --output-dtype float32` writes for the file (all of its
planes, in tiles, one range a channel), and input and output of a row share one display range.

One PNG an image and channel, of its middle plane (and first time point), input on the left, output on the right:
row 1, a crop of up to 384 px around what has most contrast, from percentile 0.5 to 99.8 of the input's crop;
row 2, its busiest 96 px, four times enlarged; row 3, the darkest 96 px of the plane, four times enlarged, stretched to
the output's own 4 sigma around its median, where lattices, tiles and false structure would show.

    python examples/evaluation/real_images.py FOLDER_OR_FILES -o results/real --model widefield --tile-size 128

also writes real.json and real.md: for every image the power near the lattices of 2 px over that around them
(`modulated` of hallucination.py), in and out, on the dark piece; and the mean step across tile borders over the mean
step between pixels 2 and 3 px away, in and out, over the plane (about 1: no tiles to be seen; an image compressed in
blocks has its own).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import recording as rec
from hallucination import lattice, power
from numpy.typing import NDArray
from scipy import ndimage

from mrbcr_cli.errors import MrbcrError
from mrbcr_cli.images import TIFF_SUFFIXES, find_source, open_source

CROP_PX, DETAIL_PX, ENLARGED, GAP_PX = 384, 96, 4, 8
SHOWN_PERCENT = (0.5, 99.8)
DARK_SIGMAS = 4.0
Plane = NDArray[np.float32]
Place = tuple[slice, slice]


@dataclass(frozen=True)
class Seen:
    """One channel of an image."""

    image: str
    channel: int
    shape_yx: tuple[int, int]
    lattice_in: float
    lattice_out: float
    seams_in: float
    seams_out: float


def find_images(inputs: Sequence[Path]) -> list[Path]:
    """The files themselves, and the TIFF files and OME-Zarr folders of folders, in order."""
    found: list[Path] = []
    for path in inputs:
        if path.is_dir() and not path.name.endswith(".zarr"):
            names = sorted(path.iterdir())
            found += [p for p in names if p.name.lower().endswith((*TIFF_SUFFIXES, ".zarr"))]
        else:
            found.append(path)
    return found


def middle_planes(path: Path) -> list[Plane]:
    """The middle plane of the first time point, for each channel."""
    reader = open_source(find_source(str(path)))
    try:
        info = reader.info
        planes = []
        for channel in range(info.size("C")):
            at = {"T": 0, "C": channel, "Z": info.size("Z") // 2}
            region = tuple(
                slice(at[axis], at[axis] + 1) if axis in at else slice(0, size)
                for axis, size in zip(info.axes, info.shape, strict=True)
            )
            planes.append(np.asarray(reader.read(region), np.float32).reshape(info.shape[-2:]))
        return planes
    finally:
        reader.close()


def deconvolve(path: Path, model: str, tile_px: int | None, folder: Path) -> list[Plane]:
    """Middle planes of what `mrbcr deconvolve` writes. Raises RuntimeError with its exit code."""
    from mrbcr_cli.cli import run

    output = folder / f"{path.name}.ome.zarr"
    options = ["--model", model, "--output-dtype", "float32", "--nan-policy", "zero", "--quiet"]
    options += [] if tile_px is None else ["--tile-size", str(tile_px)]
    with contextlib.redirect_stdout(io.StringIO()):
        code = run(["deconvolve", str(path), "-o", str(output), *options])
    if code:
        raise RuntimeError(f"mrbcr deconvolve ended with exit code {code}")
    return middle_planes(output)


def windows(plane: Plane, size_px: int, *, bright: bool) -> Place:
    """The piece (at most size x size) with the most contrast, or (not bright) with the least light."""
    size = tuple(min(size_px, n) for n in plane.shape)
    smooth = ndimage.gaussian_filter(plane, 2.0)
    wanted = np.abs(smooth - ndimage.gaussian_filter(plane, 8.0)) if bright else -smooth
    score = ndimage.uniform_filter(wanted, size, mode="constant", cval=float(wanted.min()))
    y, x = np.unravel_index(int(score.argmax()), score.shape)
    top, left = (min(max(int(c) - n // 2, 0), full - n) for c, n, full in zip((y, x), size, plane.shape, strict=True))
    return slice(top, top + size[0]), slice(left, left + size[1])


def seams(plane: Plane, tile_px: int) -> float:
    """Mean step across tile borders over that between neighbours nearby; NaN where there is no border."""
    ratios = []
    for image in (plane, plane.T):
        steps = np.abs(np.diff(image.astype(np.float64), axis=0))
        borders = np.arange(tile_px - 1, len(steps), tile_px)
        near = np.unique(np.concatenate([borders + k for k in (-3, -2, 2, 3)])) if len(borders) else borders
        near = near[(near >= 0) & (near < len(steps))]
        if len(near) and float(steps[near].mean()) > 0:
            ratios.append(float(steps[borders].mean() / steps[near].mean()))
    return float(np.mean(ratios)) if ratios else float("nan")


def near_lattice(plane: Plane, place: Place) -> float:
    """Power near the lattices of 2 px over that around them; NaN for pieces too small or flat."""
    piece = plane[place]
    piece = piece[: piece.shape[0] // 4 * 4, : piece.shape[1] // 4 * 4]
    if min(piece.shape) < 64 or float(np.ptp(piece)) == 0:
        return float("nan")
    return lattice(power(piece, float(np.ptp(piece))))[2].modulated


def mosaic(before: Plane, after: Plane) -> NDArray[np.float32]:
    """The picture, 0 to 1; see the module text."""
    crop = windows(before, CROP_PX, bright=True)
    detail = windows(before[crop], DETAIL_PX, bright=True)
    dark = windows(before, DETAIL_PX, bright=False)
    low, high = (float(v) for v in np.percentile(before[crop], SHOWN_PERCENT))
    middle = float(np.median(after[dark]))
    reach = DARK_SIGMAS * max(1.4826 * float(np.median(np.abs(after[dark] - middle))), 1e-9)
    rows = [
        _row([image[crop] for image in (before, after)], low, high, 1),
        _row([image[crop][detail] for image in (before, after)], low, high, ENLARGED),
        _row([im[dark] for im in (before, after)], middle - reach, middle + reach, ENLARGED),
    ]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, GAP_PX), (0, width - row.shape[1])), constant_values=1.0) for row in rows]
    return np.concatenate(padded).astype(np.float32)


def _row(images: Iterable[Plane], low: float, high: float, enlarged: int) -> NDArray[np.float32]:
    scaled = [np.clip((image - low) / max(high - low, 1e-9), 0, 1) for image in images]
    larger = [np.kron(image, np.ones((enlarged, enlarged), np.float32)) for image in scaled]
    return np.concatenate([np.pad(im, ((0, 0), (0, GAP_PX)), constant_values=1.0) for im in larger], axis=1)


def look(path: Path, model: str, tile_px: int | None, folder: Path) -> list[Seen]:
    """Deconvolve one image, write its pictures, and measure. Raises MrbcrError, RuntimeError."""
    from matplotlib.image import imsave

    before = middle_planes(path)
    with tempfile.TemporaryDirectory() as scratch:
        after = deconvolve(path, model, tile_px, Path(scratch))
    found = []
    for channel, (recorded, restored) in enumerate(zip(before, after, strict=True)):
        recorded = np.nan_to_num(recorded, posinf=0.0, neginf=0.0)
        name = path.name + (f"-c{channel}" if len(before) > 1 else "")
        imsave(folder / f"{name}.png", mosaic(recorded, restored), cmap="gray", vmin=0.0, vmax=1.0)
        dark = windows(recorded, DETAIL_PX, bright=False)
        each = [near_lattice(im, dark) for im in (recorded, restored)]
        steps = [seams(im, tile_px or 1 << 30) for im in (recorded, restored)]
        found.append(Seen(path.name, channel, (recorded.shape[0], recorded.shape[1]), *each, *steps))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """See the module text."""
    parser = argparse.ArgumentParser(description="Input beside output of real images, for looking at.")
    parser.add_argument("inputs", type=Path, nargs="+", help="files, or folders of TIFF and OME-Zarr")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder")
    parser.add_argument("--model", default="widefield")
    parser.add_argument("--tile-size", type=int, default=128, help="px; small, so that seams would show")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    seen: list[Seen] = []
    failed: dict[str, str] = {}
    for path in find_images(args.inputs):
        try:
            seen += look(path, args.model, args.tile_size, args.output)
        except (MrbcrError, RuntimeError) as error:
            failed[path.name] = str(error)
    head = ["image", "channel", "y x", "lattice in", "lattice out", "seams in", "seams out"]
    rows = [
        [s.image, s.channel, "{} {}".format(*s.shape_yx)]
        + [f"{v:.2f}" for v in (s.lattice_in, s.lattice_out, s.seams_in, s.seams_out)]
        for s in seen
    ]
    text = "\n".join([rec.table(head, rows), "", *(f"{name}: {why}" for name, why in failed.items())])
    values: dict[str, Any] = {"images": [_finite(asdict(s)) for s in seen], "failed": failed}
    rec.write_results(args.output / "real", values, text)
    print(text)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in values.items()}


if __name__ == "__main__":
    main()
