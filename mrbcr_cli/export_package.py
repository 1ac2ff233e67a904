"""A network as a package of the BioImage Model Zoo: ONNX, the weights file, test images and what to know of them.

Invariant: no package is handed on that bioimageio.spec finds fault with, or whose test output bioimageio.core does not
reproduce. Nothing in it is a pickle, and making it uses no network.

Intensities are normalised inside the graph and not by `scale_range` of the description, because the format knows no
way back: its postprocessing cannot undo a range that was measured on the input (spec 0.5), so the output would lose
the unit of the image.
"""

from __future__ import annotations

import contextlib
import gc
import io
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli import __version__
from mrbcr_cli.errors import InputError, MrbcrError
from mrbcr_cli.export_onnx import (
    CITATION,
    DOI,
    LARGEST_DIFFERENCE,
    OPSET,
    OUTPUTS,
    OnnxModel,
    make_onnx,
    need,
    percentiles_of,
    run_onnx,
)
from mrbcr_cli.export_words import documentation
from mrbcr_cli.network import MIN_SIZE_PX
from mrbcr_cli.weights import LoadedWeights, WeightsCard, read_weights

if TYPE_CHECKING:
    from bioimageio.spec.model.v0_5 import ModelDescr

SAMPLE_PX = 256
_SAMPLE_SEED = 20_240_930
"""That no training run draws."""


def make_package(
    loaded: LoadedWeights, authors: Sequence[str], sample_yx: NDArray[Any] | None = None
) -> tuple[bytes, OnnxModel]:
    """The zip, checked, and the ONNX model in it. `sample_yx`: the test image; None: one is simulated.

    Takes about a minute. Raises InputError where a package of the extra [export] is missing, MrbcrError where a check
    fails.
    """
    need("bioimageio.spec", "bioimageio.core")
    _need_working_spec()
    model = make_onnx(loaded, only_image=True)
    before = np.asarray(simulated(loaded.card) if sample_yx is None else sample_yx, np.float32)
    after = run_onnx(model.data, before)
    with tempfile.TemporaryDirectory(prefix="mrbcr-export-") as name, _quiet_bioimageio():
        folder = Path(name)
        _write_files(folder, loaded, model, before, after)
        target = folder / "package.zip"
        from bioimageio.spec import ValidationContext, save_bioimageio_package

        with ValidationContext(root=folder, raise_errors=True, progressbar=False):
            try:
                described = _described(loaded, authors, before)
                save_bioimageio_package(described, output_path=target, local_files_only=True)
            except ValueError as error:  # pydantic's, and the package's own
                raise MrbcrError(f"{loaded.path}: bioimageio.spec refuses the description: {error}") from error
        _check_package(target, loaded)
        return target.read_bytes(), model


def _need_working_spec() -> None:
    """Raise InputError where bioimageio.spec cannot write: 0.5.12 hands pydantic what versions from 2.14 on refuse."""
    from bioimageio.spec import ValidationContext
    from bioimageio.spec.model import v0_5 as spec

    with tempfile.TemporaryDirectory(prefix="mrbcr-export-") as name:
        (Path(name) / "a.onnx").touch()
        try:
            with ValidationContext(root=Path(name), perform_io_checks=False):
                spec.OnnxWeightsDescr(source=Path("a.onnx"), opset_version=OPSET).model_dump(mode="json")
        except (TypeError, ValueError) as error:
            raise InputError(
                f"this bioimageio.spec cannot write with this pydantic: pip install 'mrbcr[export]' 'pydantic<2.14' "
                f"({str(error)[:80]})"
            ) from error


def simulated(card: WeightsCard) -> NDArray[np.uint16]:
    """A recorded image (256, 256) of the kind that the model is for, as far as its card tells the kind."""
    from mrbcr_cli.simulate.pair import PairsJob, make_pair
    from mrbcr_cli.simulate.pairs_settings import PairsSettings

    common: dict[str, Any] = {
        "patch": SAMPLE_PX,
        "seed": _SAMPLE_SEED,
        "na": (1.0, 1.0),
        "pixel": (0.065, 0.065),
        "scmos": 0.0,
    }
    if "transmitted light" in card.domain:
        settings = PairsSettings(
            **common,
            microscope="brightfield",
            specimen=("membranes",),
            thickness=(2.0, 2.0),
            photons=(5000.0, 5000.0),
            absorption=(0.25, 0.25),
            phase=(0.0, 0.0),
        )
    else:
        settings = PairsSettings(
            **common,
            microscope="confocal" if "confocal" in card.name + card.domain else "widefield",
            specimen=("filaments",),
            wavelength=(525.0, 525.0),
            photons=(300.0, 300.0),
            background=(0.05, 0.05),
            gain=(2.0, 2.0),
        )
    image: NDArray[np.uint16] = make_pair(PairsJob(settings, (), (), (1, 0, 0)), 0).blurred.astype(np.uint16)
    return image


def _write_files(
    folder: Path, loaded: LoadedWeights, model: OnnxModel, before: NDArray[np.float32], after: NDArray[np.float32]
) -> None:
    from PIL import Image

    (folder / "weights.onnx").write_bytes(model.data)
    # The bytes that were exported: the package is a model of this tool as well.
    (folder / f"{_file_name(loaded.card)}.safetensors").write_bytes(read_weights(loaded.path).data)
    (folder / "documentation.md").write_text(documentation(loaded, model.difference), encoding="utf-8")
    low, high = np.percentile(before, percentiles_of(loaded))
    greys = [(np.clip((im - low) / (high - low), 0, 1) * 255).astype(np.uint8) for im in (before, after)]
    for name, image, grey in zip(("input", "output"), (before, after), greys, strict=True):
        with (folder / f"test_{name}.npy").open("wb") as file:
            np.save(file, image[None, None])
        Image.fromarray(grey).save(folder / f"sample_{name}.png")
    # Twice as wide as high, as the zoo wants its covers: before and after, in the same grey scale.
    side = min(before.shape)
    Image.fromarray(np.hstack([grey[:side, :side] for grey in greys])).save(folder / "cover.png")


def _described(loaded: LoadedWeights, authors: Sequence[str], sample: NDArray[np.float32]) -> ModelDescr:
    """The description (rdf.yaml) of the files in the folder of the current validation context."""
    from bioimageio.spec.model import v0_5 as spec

    card = loaded.card
    unit = float(np.diff(np.percentile(sample, percentiles_of(loaded)))[0])
    people = [spec.Author(name=name) for name in authors]
    return spec.ModelDescr(
        name=_public_name(card),
        description=_shortened(
            f"Removes blur and noise from light-microscopy images with m-rBCR (ECCV 2024). For: {card.domain}", 500
        ),
        authors=people,
        cite=[spec.CiteEntry(text=CITATION, doi=spec.Doi(DOI))],
        license=_licence(spec, card),
        documentation=_file(spec, "documentation.md"),
        covers=[_file(spec, "cover.png")],
        attachments=[_file(spec, f"{_file_name(card)}.safetensors")],
        tags=["deconvolution", "restoration", "denoising", "fluorescence-light-microscopy", "2d", "pytorch", "m-rbcr"],
        version=spec.Version(__version__),
        timestamp=card.created,  # type: ignore[arg-type]
        inputs=[_input(spec)],
        outputs=[_output(spec)],
        weights=spec.WeightsDescr(
            onnx=spec.OnnxWeightsDescr(
                source=Path("weights.onnx"),
                opset_version=OPSET,
                authors=people,
                comment=f"made from {_file_name(card)}.safetensors by mrbcr {__version__}",
            )
        ),
        config=_config(spec, loaded, unit),
    )


def _input(spec: Any) -> Any:
    size = spec.ParameterizedSize(min=MIN_SIZE_PX, step=1)
    return spec.InputTensorDescr(
        id="image",
        description="Recorded image in any unit, of any bit depth; planes of a stack as a batch",
        axes=[
            spec.BatchAxis(),
            spec.ChannelAxis(channel_names=["intensity"]),
            *(spec.SpaceInputAxis(id=axis, size=size) for axis in "yx"),
        ],
        test_tensor=_file(spec, "test_input.npy"),
        sample_tensor=_file(spec, "sample_input.png"),
        data=spec.IntervalOrRatioDataDescr(type="float32"),
        preprocessing=[spec.EnsureDtypeDescr(kwargs=spec.EnsureDtypeKwargs(dtype="float32"))],
    )


def _output(spec: Any) -> Any:
    def same(axis: str) -> Any:
        return spec.SpaceOutputAxis(id=axis, size=spec.SizeReference(tensor_id="image", axis_id=axis))

    return spec.OutputTensorDescr(
        id=OUTPUTS[0],
        description="Deconvolved image, in the unit of the input",
        axes=[spec.BatchAxis(), spec.ChannelAxis(channel_names=["intensity"]), same("y"), same("x")],
        test_tensor=_file(spec, "test_output.npy"),
        sample_tensor=_file(spec, "sample_output.png"),
        data=spec.IntervalOrRatioDataDescr(type="float32"),
    )


def _config(spec: Any, loaded: LoadedWeights, unit: float) -> Any:
    card = loaded.card
    low, high = percentiles_of(loaded)
    tolerance = spec.ReproducibilityTolerance(
        relative_tolerance=0.0, absolute_tolerance=LARGEST_DIFFERENCE * unit, mismatched_elements_per_million=0
    )
    known = spec.BioimageioConfig(
        reproducibility_tolerance=[tolerance],
        architecture_type="m-rBCR" if card.architecture == "mrbcr" else "m-rBCR (published)",
        task="image restoration (deconvolution)",
        modality=_shortened(card.domain, 200),
        model_parameter_count=sum(t.numel() for t in loaded.state_dict.values()),
        out_of_scope_use=(
            "Images outside the domain: undersampled ones, structured illumination, far fewer photons or much thicker "
            "haze. The output can then be wrong while looking right."
        ),
    )
    ours = {
        "weights_sha256": loaded.sha256,
        "normalisation": {"kind": "percentile", "low": low, "high": high, "where": "in the graph, and undone there"},
        "whole_image": "range and power spectrum are measured on each input; run whole planes",
        "tiles": {"halo_px": card.effective_halo_px, "start_multiple_of_px": 8 if card.architecture == "mrbcr" else 4},
    }
    return spec.Config(bioimageio=known, mrbcr=ours)


def _check_package(package: Path, loaded: LoadedWeights) -> None:
    """Let bioimageio.spec validate what was written and bioimageio.core run it. Raises MrbcrError."""
    from bioimageio.core import test_model

    summary = test_model(package, weight_format="onnx")
    if summary.status != "passed":
        wrong = [f"{detail.name}: {error.msg}" for detail in summary.details for error in detail.errors]
        raise MrbcrError(
            f"{loaded.path}: bioimageio finds the package {summary.status}: {'; '.join(wrong) or 'no reason given'}"
        )


@contextmanager
def _quiet_bioimageio() -> Iterator[None]:
    """What bioimageio logs and draws on stderr is not for this tool's users; what it finds comes as its summary."""
    from loguru import logger

    logger.disable("bioimageio")
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
            gc.collect()  # it leaves the package open; what complains of that does so here
    finally:
        logger.enable("bioimageio")


def _file(spec: Any, name: str) -> Any:
    return spec.FileDescr(source=Path(name))


def _licence(spec: Any, card: WeightsCard) -> Any:
    """The licence where it is of the SPDX list, which is all that the format takes; else the documentation has it."""
    try:
        return spec.LicenseId(card.licence)
    except ValueError:
        return None


def _file_name(card: WeightsCard) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", card.name)[:60] or "weights"


def _public_name(card: WeightsCard) -> str:
    """Letters, digits and a few signs are all that the zoo allows."""
    return re.sub(r"[^A-Za-z0-9_+\- ()]+", " ", f"m-rBCR deconvolution ({card.name})")[:64]


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3].rstrip() + "..."
