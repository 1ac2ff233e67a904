"""Evaluate predictions in files against their truths in files: TIFF, OME-TIFF, OME-Zarr, any axes, any size.

Invariant: names and shapes are checked before a pixel is read, and three planes at most are in memory (prediction,
truth, input), so an image may be far larger than it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli.console import Reporter
from mrbcr_cli.errors import InputError
from mrbcr_cli.evaluation.results import Evaluation, Group, Row, unscored
from mrbcr_cli.images import TIFF_SUFFIXES, SourceSpec, find_source, open_source
from mrbcr_cli.images.base import ImageInfo, ImageReader
from mrbcr_cli.metrics import Array, measure_planes

PREDICTION, INPUT = "prediction", "input"
Per = Literal["image", "plane"]
Place = tuple[int, int, int]
"""t, c, z."""


@dataclass(frozen=True)
class FileSet:
    """A prediction, its truth and perhaps the input it was made from."""

    name: str
    prediction: SourceSpec
    truth: SourceSpec
    input: SourceSpec | None = None


@dataclass(frozen=True, eq=False)
class FileImages:
    """The middle plane of an evaluated image, for a figure."""

    name: str
    outputs: Mapping[str, NDArray[Any]]
    """The input first, where there is one."""
    truth: NDArray[Any]
    pixel_um: float | None


def evaluate_files(
    sets: Sequence[FileSet],
    *,
    per: Per = "image",
    seed: int = 0,
    reporter: Reporter | None = None,
    on_image: Callable[[FileImages, tuple[Row, ...]], None] | None = None,
) -> Evaluation:
    """Evaluate images; `per`: one result an image (over all of its planes), or one a plane. `seed`: of the bootstrap.

    `on_image` is handed the middle plane of every image (figures). Raises InputError for images that cannot be read,
    whose sizes differ or that hold NaN.
    """
    say = reporter or Reporter(quiet=True)
    if not sets:
        raise InputError("there is nothing to evaluate: name predictions and their truths")
    notes: dict[str, None] = {}
    for one in sets:
        with _Opened(one) as images:
            images.check()
            notes |= dict.fromkeys(images.notes())
    rows: list[Row] = []
    with say.progress("evaluate", len(sets), unit="images") as progress:
        for one in sets:
            with _Opened(one) as images:
                own = _score(one, images, per)
                if on_image is not None:
                    on_image(images.middle(), own)
            rows += own
            progress.advance()
    names = frozenset(row.image for row in rows)
    with_input = any(row.method == INPUT for row in rows)
    methods = {name: {"kind": name} for name in ((INPUT, PREDICTION) if with_input else (PREDICTION,))}
    files = [
        {
            "image": one.name,
            "prediction": Path(one.prediction.label).name,
            "truth": Path(one.truth.label).name,
            "input": None if one.input is None else Path(one.input.label).name,
        }
        for one in sets
    ]
    return Evaluation(
        source={"files": files, "per": per},
        methods=methods,
        rows=tuple(rows),
        groups=(Group("all", "all", names),),
        against=INPUT if with_input else None,
        seed=seed,
        notes=(*notes, *unscored(rows, "the truth has one value everywhere")),
    )


def _score(one: FileSet, images: _Opened, per: Per) -> tuple[Row, ...]:
    rows = []
    pixel_um = images.pixel_um()
    everywhere = images.places()
    parts = [everywhere] if per == "image" else [[place] for place in everywhere]
    for places in parts:
        name = one.name if per == "image" else one.name + images.suffix(places[0])
        for method in images.readers:
            planes = partial(images.planes, method, places)
            rows.append(Row(name, method, measure_planes(planes), "", pixel_um))
    return tuple(rows)


class _Opened:
    """The open images of a set; a context manager."""

    def __init__(self, one: FileSet) -> None:
        self.set = one
        self._stack = ExitStack()
        self.readers: dict[str, ImageReader] = {}

    def __enter__(self) -> _Opened:
        with ExitStack() as opening:
            sources = {INPUT: self.set.input, PREDICTION: self.set.prediction}
            for method, source in sources.items():
                if source is not None:
                    self.readers[method] = opening.enter_context(closing(open_source(source)))
            self.truth: ImageReader = opening.enter_context(closing(open_source(self.set.truth)))
            self._stack = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def check(self) -> None:
        """Refuse images of different sizes, without pixels, or of complex numbers. Raises InputError."""
        true = self.truth.info
        for method, reader in self.readers.items():
            info = reader.info
            wrong = [a for a in "TCZYX" if info.size(a) != true.size(a)]
            if wrong:
                ours, theirs = (", ".join(f"{a} {i.size(a)}" for a in wrong) for i in (info, true))
                raise InputError(f"{info.path}: has {ours}, its truth {true.path} {theirs}; they must be of one size")
            if 0 in info.shape:
                raise InputError(f"{info.path}: has no pixels ({method})")
        for info in (true, *(reader.info for reader in self.readers.values())):
            if info.dtype.kind not in "biuf":
                raise InputError(f"{info.path}: holds {info.dtype}; only real numbers can be compared")

    def notes(self) -> list[str]:
        """What the readers had to guess."""
        infos = [self.truth.info, *(reader.info for reader in self.readers.values())]
        return [f"{Path(info.path).name}: {note}" for info in infos for note in info.notes]

    def places(self) -> list[Place]:
        """Every plane."""
        info = self.truth.info
        return [(t, c, z) for t in range(info.size("T")) for c in range(info.size("C")) for z in range(info.size("Z"))]

    def suffix(self, place: Place) -> str:
        """What tells a plane from the others of its image: " t0 c1 z5", axes of one left out."""
        info = self.truth.info
        named = zip("tcz", place, strict=True)
        return "".join(f" {letter}{number}" for letter, number in named if info.size(letter.upper()) > 1)

    def planes(self, method: str, places: Sequence[Place]) -> Iterator[tuple[Array, Array]]:
        """Planes of a method's image and of the truth."""
        return ((read_plane(self.readers[method], place), read_plane(self.truth, place)) for place in places)

    def middle(self) -> FileImages:
        """The plane in the middle of time and depth, of the first channel."""
        info = self.truth.info
        place = (info.size("T") // 2, 0, info.size("Z") // 2)
        outputs = {method: read_plane(reader, place) for method, reader in self.readers.items()}
        return FileImages(self.set.name, outputs, read_plane(self.truth, place), self.pixel_um())

    def pixel_um(self) -> float | None:
        """Of the truth, or of the prediction where that is silent."""
        return self.truth.info.scale_um("X") or self.readers[PREDICTION].info.scale_um("X")


def read_plane(reader: ImageReader, place: Place) -> NDArray[Any]:
    """One plane (y, x) in the image's own dtype. Raises InputError for NaN, infinity and data that cannot be read."""
    info = reader.info
    at = dict(zip("TCZ", place, strict=True))
    region = tuple(
        slice(at[axis], at[axis] + 1) if axis in at else slice(0, n)
        for axis, n in zip(info.axes, info.shape, strict=True)
    )
    plane = reader.read(region)
    plane = plane.reshape(plane.shape[-2:])
    if plane.dtype.kind == "f" and not np.isfinite(plane).all():
        where = _where(info, place)
        bad = int(np.count_nonzero(~np.isfinite(plane)))
        raise InputError(f"{info.path}: {bad} of {plane.size} pixels{where} are NaN or infinite; nothing is compared")
    return plane


def _where(info: ImageInfo, place: Place) -> str:
    named = [f"{a}={k}" for a, k in zip("TCZ", place, strict=True) if info.size(a) > 1]
    return f" at {', '.join(named)}" if named else ""


def match_files(
    predictions: Sequence[str], truths: Sequence[str], inputs: Sequence[str] = (), *, axes: str | None = None
) -> tuple[FileSet, ...]:
    """Pair predictions with truths (and inputs): in order, or by name where one folder stands against one folder.

    A folder that is no OME-Zarr is a folder of images. `axes`: order on disk of files that do not say. Raises
    InputError for what is missing, empty or left over.
    """
    if not predictions:
        raise InputError("no prediction is named; give files or a folder before --truth, or --pairs")
    if not truths:
        raise InputError("--truth: name the truth of each prediction, in the same order, or a folder with their names")
    folders = [len(names) == 1 and _is_folder(names[0]) for names in (predictions, truths, inputs) if names]
    if all(folders):
        return _by_name(predictions[0], truths[0], inputs[0] if inputs else None, axes)
    if any(_is_folder(name) for name in (*predictions, *truths, *inputs)):
        raise InputError("folders are matched by name: give one folder of predictions and one of --truth (and --input)")
    for what, names in (("--truth", truths), ("--input", inputs)):
        if names and len(names) != len(predictions):
            raise InputError(f"{what}: {len(names)} files for {len(predictions)} predictions; each needs its own")
    ours, theirs, origins = (
        [find_source(name, axes=axes) for name in names] for names in (predictions, truths, inputs)
    )
    given: list[SourceSpec | None] = [*origins] or [None] * len(ours)
    names = _unlike([source.stem for source in ours])
    return tuple(FileSet(*parts) for parts in zip(names, ours, theirs, given, strict=True))


def _by_name(predictions: str, truths: str, inputs: str | None, axes: str | None) -> tuple[FileSet, ...]:
    ours, theirs = _images_of(predictions, axes), _images_of(truths, axes)
    origin = _images_of(inputs, axes) if inputs is not None else None
    for folder, names, other in ((truths, theirs, ours), (predictions, ours, theirs)):
        missing = sorted(other.keys() - names.keys())
        if missing:
            raise InputError(f"{folder}: holds no image named {missing[0]} ({len(missing)} missing of {len(other)})")
    lost = sorted(ours.keys() - origin.keys()) if origin is not None else []
    if lost:
        raise InputError(f"{inputs}: holds no image named {lost[0]} ({len(lost)} missing of {len(ours)})")
    return tuple(FileSet(name, ours[name], theirs[name], origin[name] if origin else None) for name in sorted(ours))


def _images_of(folder: str, axes: str | None) -> dict[str, SourceSpec]:
    """Images in a folder by name. Raises InputError where there are none, or two of one name."""
    from mrbcr_cli.images.omezarr_documents import is_zarr

    found: dict[str, SourceSpec] = {}
    try:
        entries = sorted(Path(folder).iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror or error})") from error
    for path in entries:
        tiff = path.is_file() and path.name.lower().endswith(TIFF_SUFFIXES)
        if path.name.startswith(".") or not (tiff or (path.is_dir() and is_zarr(path))):
            continue
        source = find_source(str(path), axes=axes)
        if source.stem in found:
            other = Path(found[source.stem].label).name
            raise InputError(f"{folder}: {path.name} and {other} have one name; leave one out")
        found[source.stem] = source
    if not found:
        raise InputError(f"{folder}: holds no TIFF and no OME-Zarr image")
    return found


def _is_folder(name: str) -> bool:
    from mrbcr_cli.images.omezarr_documents import is_zarr

    path = Path(name)
    return path.is_dir() and not is_zarr(path)


def _unlike(names: Sequence[str]) -> list[str]:
    """The names, those that occur again with a number."""
    seen: dict[str, int] = {}
    unlike = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unlike.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unlike
