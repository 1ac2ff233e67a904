"""`mrbcr export`: a model for other programs, as one ONNX file, a BioImage Model Zoo package or its plain weights.

Invariant: what can be known to fail fails before anything is computed, and a file gets its name only when it is whole
and checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from mrbcr_cli.console import Reporter
from mrbcr_cli.errors import InputError
from mrbcr_cli.weights import list_weights, load_weights, read_weights
from mrbcr_cli.whole_file import replacing

ExportFormat = Literal["onnx", "bioimageio", "safetensors"]
SUFFIX_OF: dict[str, ExportFormat] = {".onnx": "onnx", ".zip": "bioimageio", ".safetensors": "safetensors"}


def format_of(output: Path, asked: str | None) -> ExportFormat:
    """What to write: what was asked for, else what the name says. Raises InputError."""
    if asked is not None:
        for known in get_args(ExportFormat):
            if asked == known:
                return known  # type: ignore[no-any-return]
        raise InputError(f"--format {asked}: use {', '.join(get_args(ExportFormat))}")
    found = SUFFIX_OF.get(output.suffix.lower())
    if found is None:
        raise InputError(f"{output}: its name tells no format; end it in .onnx or .zip, or give --format")
    return found


def export(
    model: str,
    output: Path,
    reporter: Reporter,
    *,
    asked: str | None = None,
    authors: Sequence[str] = (),
    overwrite: bool = False,
) -> None:
    """Write `model` (an embedded name, a weights file or a package) to `output`.

    Raises InputError for wrong input, a missing package of the extra [export] or a place that cannot be written to,
    and MrbcrError where what was made fails its check; then nothing is written.
    """
    kind = format_of(output, asked)
    if output.exists() and not overwrite:
        raise InputError(f"{output}: exists; choose another name or use --overwrite")
    if not output.parent.is_dir():
        raise InputError(f"{output.parent}: no such folder to write to")
    if kind == "safetensors":
        _write(output, read_weights(model).data)
        return
    loaded = load_weights(model)
    reporter.info(f"exporting {loaded.card.name} takes about a minute")
    if kind == "onnx":
        from mrbcr_cli.export_onnx import make_onnx

        made = make_onnx(loaded)
        data = made.data
    else:
        from mrbcr_cli.export_package import make_package

        data, made = make_package(loaded, _authors(model, authors, reporter))
        reporter.info("bioimageio.spec finds the package valid, bioimageio.core reproduces its test output")
    reporter.info(
        f"ONNX Runtime differs from mrbcr by at most {made.difference:.1e} of the intensity range (images of 5 sizes)"
    )
    _write(output, data)
    reporter.event(
        "exported", output=str(output), format=kind, weights_sha256=loaded.sha256, largest_difference=made.difference
    )


def _authors(model: str, authors: Sequence[str], reporter: Reporter) -> Sequence[str]:
    if authors:
        return authors
    if model in list_weights():
        return ("The mrbcr developers",)
    reporter.warn("the package names no author of these weights; give --author NAME")
    return ("unknown",)


def _write(output: Path, data: bytes) -> None:
    try:
        with replacing(output) as file:
            file.write(data)
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror or error})") from error
