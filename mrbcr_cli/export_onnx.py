"""A network as one ONNX file: recorded images in, deconvolved images out, any batch, height and width.

Invariant: the weights are initializers under the names and with the bits that the weights file has, so they can be read
back, all but those that only the half and quarter size outputs of training need; no file is handed on before ONNX
Runtime has made of test images what the tool itself makes of them.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mrbcr_cli import __version__
from mrbcr_cli.errors import InputError, MrbcrError
from mrbcr_cli.weights import LoadedWeights, build_network

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

OPSET = 18
"""ONNX Runtime from 1.14 on, and the runtimes in browsers and Java, know it."""
LARGEST_DIFFERENCE = 1e-4
"""Of the intensity range, between ONNX Runtime and the tool itself."""
CHECKED_SHAPES = ((64, 64), (77, 131), (16, 17), (33, 160), (150, 93))
"""Height and width of test images: smaller than a tile of the spectrum, odd, of no common multiple."""
PREFIX = "network."
"""Before the name of each weight in the graph."""
IMAGE, RANGE, GUIDE = "image", "range", "guide"
OUTPUTS = ("deconvolved", "range_used", "guide_used")
CITATION = (
    "R. Li, M. Kudryashev, A. Yakimovich. Solving the inverse problem of microscopy deconvolution with a residual "
    "Beylkin-Coifman-Rokhlin neural network. ECCV 2024"
)
DOI = "10.1007/978-3-031-73226-3_22"
_OF_COARSE_OUTPUTS = re.compile(r"scales\.[12]\.project\.|b\.[24]\.out\.")
"""Weights that the full-size image does not depend on."""
_INSTALL = "pip install 'mrbcr[export]'"
_TRACED_SHAPE = (2, 1, 90, 131)
"""Of the image that the graph is drawn with: no size that special cases hold for."""


@dataclass(frozen=True)
class OnnxModel:
    """A checked ONNX file and how far ONNX Runtime was from the tool on the test images, of the intensity range."""

    data: bytes
    difference: float


def make_onnx(loaded: LoadedWeights, *, only_image: bool = False) -> OnnxModel:
    """Export a network and check it; `only_image`: without range and guide, which can be given and are returned.

    Takes about half a minute. Raises InputError where a package of the extra [export] is missing, and MrbcrError where
    ONNX Runtime makes something else of the test images than the tool does.
    """
    need("onnx", "onnxscript", "onnxruntime")
    model = _traced(loaded)
    _tidy(model, set(loaded.state_dict))
    if only_image:
        del model.graph.output[1:], model.graph.input[1:]
    _describe(model, loaded)
    import onnx

    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    _check_weights(data, loaded)
    return OnnxModel(data, check_onnx(data, loaded))


def run_onnx(data: bytes, image_yx: NDArray[Any], **given: NDArray[np.float32]) -> NDArray[np.float32]:
    """Deconvolve an image (y, x) with ONNX Runtime on the CPU; `given`: range (1, 2) or guide (1, 22)."""
    (restored,) = _session(data).run([OUTPUTS[0]], {IMAGE: np.asarray(image_yx, np.float32)[None, None], **given})
    found: NDArray[np.float32] = restored[0, 0]
    return found


def check_onnx(data: bytes, loaded: LoadedWeights) -> float:
    """Largest difference of ONNX Runtime from `mrbcr deconvolve` on test images, in units of their range.

    Several sizes; each image alone, and two in a batch. Raises MrbcrError above 1e-4.
    """
    from mrbcr_cli.evaluation.networks import load_networks
    from mrbcr_cli.network.halo import blobs_nchw

    session, (ours,) = _session(data), load_networks((loaded.path,), "cpu")
    largest = 0.0
    for number, (height, width) in enumerate(CHECKED_SHAPES):
        blobs = [blobs_nchw(max(height, width), number + seed)[:, :, :height, :width] for seed in (0, 50)]
        images = [(100 + 3000 * b).round().numpy().astype(np.float32) for b in blobs]
        # One alone, then both: a graph may be right for one of them only.
        alone = session.run([OUTPUTS[0]], {IMAGE: images[0]})[0]
        both = session.run([OUTPUTS[0]], {IMAGE: np.concatenate(images[::-1])})[0]
        for image, results in zip(images, ((alone[0], both[1]), (both[0],)), strict=True):
            counts = image[0, 0].astype(np.uint16)
            low, high = np.percentile(counts, ours.percentiles)
            wanted = ours.restore(counts)
            for found in results:
                largest = max(largest, float(np.abs(found[0] - wanted).max() / (high - low)))
    if not largest <= LARGEST_DIFFERENCE:
        raise MrbcrError(
            f"{loaded.path}: ONNX Runtime differs from mrbcr by {largest:.1e} of the intensity range, more than "
            f"{LARGEST_DIFFERENCE:g}; nothing was written; report it with the versions of torch, onnx and onnxruntime"
        )
    return largest


def read_initializers(data: bytes) -> dict[str, NDArray[Any]]:
    """The weights of a file that `make_onnx` made, by the names of the weights file."""
    import onnx

    graph = onnx.load_model_from_string(data).graph
    return {
        each.name.removeprefix(PREFIX): onnx.numpy_helper.to_array(each)
        for each in graph.initializer
        if each.name.startswith(PREFIX)
    }


def percentiles_of(loaded: LoadedWeights) -> tuple[float, float]:
    """What the weights card takes for 0 and 1, in percent of the pixels."""
    return float(loaded.card.normalisation["low"]), float(loaded.card.normalisation["high"])


def need(*packages: str) -> None:
    """Raise InputError where one of these packages is missing."""
    from importlib import import_module

    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            raise InputError(f"exporting needs {package} ({error}): {_INSTALL}") from error


def _session(data: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _traced(loaded: LoadedWeights) -> Any:
    """The graph as torch draws it, an onnx.ModelProto."""
    import torch

    from mrbcr_cli.network.guide import GUIDE_BINS
    from mrbcr_cli.network.whole_image import WholeImage

    module = WholeImage(build_network(loaded), percentiles_of(loaded)).eval().requires_grad_(False)
    inputs: dict[str, Tensor] = {
        IMAGE: torch.linspace(0, 1, int(np.prod(_TRACED_SHAPE))).reshape(_TRACED_SHAPE),
        RANGE: torch.full((1, 2), torch.nan),
    }
    if module.spectrum is not None:
        inputs[GUIDE] = torch.full((1, GUIDE_BINS), torch.nan)
    free = torch.export.Dim.AUTO
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            dynamo=True,
            dynamic_shapes=({0: free, 2: free, 3: free}, *(None,) * (len(inputs) - 1)),
            input_names=list(inputs),
            output_names=list(OUTPUTS[: len(inputs)]),
            opset_version=OPSET,
            optimize=False,  # it would fold weights into others, which could not be read back
            verbose=False,
        )
    if program is None:
        raise MrbcrError("torch.onnx.export returned no program; update torch")
    model = program.model_proto
    _with_defaults(model, {name: tensor.numpy() for name, tensor in inputs.items() if name != IMAGE})
    return model


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """What torch and its exporter say of themselves is not about the model: of torchvision, of their own future."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _with_defaults(model: Any, values: Mapping[str, NDArray[Any]]) -> None:
    """Inputs that need not be given: an initializer of the same name is their default."""
    import onnx

    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in values.items())


def _tidy(model: Any, weights: set[str]) -> None:
    """Drop what the exporter notes for itself, name the axes, and keep constants once that are there several times."""
    graph = model.graph
    for thing in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *model.functions):
        del thing.metadata_props[:]
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]
    del graph.value_info[:]
    for value, axes in (
        (graph.input[0], "NCHW"),
        *((out, "NCHW"[:n]) for out, n in zip(graph.output, (4, 2, 2), strict=False)),
    ):
        dims = value.type.tensor_type.shape.dim
        for dim, name in zip(dims, axes, strict=True):
            if not dim.HasField("dim_value"):
                dim.dim_param = {"N": "images", "H": "height", "W": "width"}[name]
    _share_constants(graph, weights)


def _share_constants(graph: Any, weights: set[str]) -> None:
    """The wavelet filters are in every block; weights stay, also where two are equal (zero biases)."""
    first: dict[tuple[Any, ...], str] = {}
    instead: dict[str, str] = {}
    kept = []
    for each in graph.initializer:
        key = (each.data_type, tuple(each.dims), each.raw_data)
        fixed = each.name.removeprefix(PREFIX) in weights or each.name in (RANGE, GUIDE) or not each.raw_data
        if not fixed and first.setdefault(key, each.name) != each.name:
            instead[each.name] = first[key]
        else:
            kept.append(each)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for node in graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]


def _describe(model: Any, loaded: LoadedWeights) -> None:
    card = loaded.card
    model.producer_name, model.producer_version = "mrbcr", __version__
    model.graph.name = card.name
    model.doc_string = (
        f"{card.name}: deconvolution of light-microscopy images by m-rBCR. Input '{IMAGE}': images x 1 x height x "
        f"width, float32, finite, from 16 px, in any unit; output '{OUTPUTS[0]}': the same in the same unit. Each "
        "image is normalised by its own percentiles and told its own power spectrum, both inside the graph. The pieces "
        "of one image need the range and spectrum of the whole as further inputs, which a file that `mrbcr export` "
        f"wrote as .onnx takes as '{RANGE}' (1, 2) and '{GUIDE}' (1, 22)."
    )
    low, high = percentiles_of(loaded)
    entries = {
        "name": card.name,
        "version": __version__,
        "licence": card.licence,
        "weights_sha256": loaded.sha256,
        "normalisation": f"in the graph: percentiles {low:g} and {high:g} of each image become 0 and 1, and back",
        "domain": card.domain,
        "citation": f"{CITATION}, doi {DOI}",
        "card": card.to_json(),
    }
    for key, text in entries.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, text


def _check_weights(data: bytes, loaded: LoadedWeights) -> None:
    """Raises MrbcrError where a weight cannot be read back bit for bit."""
    found = read_initializers(data)
    for key, tensor in loaded.state_dict.items():
        wanted = tensor.float().numpy()
        if key not in found and _OF_COARSE_OUTPUTS.match(key):
            continue
        if key not in found or found[key].tobytes() != wanted.tobytes():
            raise MrbcrError(f"{loaded.path}: {key!r} did not come through the export unchanged; nothing was written")


def card_of(data: bytes) -> dict[str, Any]:
    """The weights card in a file that `make_onnx` made."""
    import onnx

    entries = {each.key: each.value for each in onnx.load_model_from_string(data).metadata_props}
    card: dict[str, Any] = json.loads(entries["card"])
    return card
