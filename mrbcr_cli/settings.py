"""What a user may set, checked before anything is opened; YAML in and out.

Invariant: a settings object that exists is valid by itself; what depends on the image is checked when it is planned.
The names of the fields are the long options of the command line with underscores.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mrbcr_cli.cluster_settings import ClusterSettings
from mrbcr_cli.configuration import load_configuration, read_yaml
from mrbcr_cli.errors import InputError

MethodName = Literal["network", "richardson-lucy", "wiener", "blind"]
OutputFormat = Literal["ome-zarr", "ome-zarr-0.4", "ome-tiff"]
DTYPES = (
    *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64"),
)


class DeconvolveSettings(ClusterSettings):
    """All options of `mrbcr deconvolve` except inputs and output."""

    model: tuple[str, ...] = ("widefield",)
    method: MethodName = "network"
    psf: Path | None = None
    psf_voxel_um: tuple[float, float, float] | None = None
    """Voxel size of the PSF along z, y, x, for files that do not say it."""
    iterations: Annotated[int, Field(ge=1, le=10_000)] = 30
    tv: Annotated[float, Field(ge=0, lt=1)] = 0.0
    background: Annotated[float, Field(ge=0)] = 0.0
    acceleration: bool = False
    balance: Annotated[float, Field(gt=0)] | None = None
    domain_check: bool = True
    """Warn of images outside the domain of the model, where its card gives limits."""

    axes: str | None = None
    series: Annotated[int, Field(ge=0)] | None = None
    split_rgb: bool = False
    channels: str | None = None
    z: str | None = None
    t: str | None = None

    range: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None
    """None: those of the model's card, 0.1 and 99.9 for explicit methods."""
    nan_policy: Literal["refuse", "zero", "keep"] = "refuse"

    output_dtype: str | None = None
    output_format: OutputFormat | None = None
    compression: Literal["zstd", "deflate", "none"] = "zstd"

    tile_size: Annotated[int, Field(ge=16)] | None = None
    tile_overlap: Annotated[int, Field(ge=0)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 1
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    overwrite: bool = False
    resume: bool = True
    work_dir: Path | None = None
    """Where the working folder of an output at a URL lies; None: here."""
    report: Path | None = None
    """Where a page on the finished output goes: an .html file, or a folder."""
    preview: Path | None = None
    """The same for a picture, a .png file."""

    @field_validator("model", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("output_dtype")
    @classmethod
    def _known_dtype(cls, value: str | None) -> str | None:
        if value is not None and value not in DTYPES:
            raise ValueError(f"must be one of {', '.join(DTYPES)}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> DeconvolveSettings:
        if self.range is not None and not (self.range[0] < self.range[1] and all(map(math.isfinite, self.range))):
            raise ValueError("range needs finite LOW < HIGH")
        if self.percentiles is not None and not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError("percentiles need 0 <= LOW < HIGH <= 100")
        if self.method in ("richardson-lucy", "wiener") and self.psf is None:
            raise ValueError(f"method {self.method} needs a point spread function: give --psf FILE")
        if self.method in ("network", "blind") and self.psf is not None:
            raise ValueError(f"method {self.method} takes no PSF: leave --psf out, or choose --method richardson-lucy")
        self._refuse_unused()
        for name in ("channels", "z", "t"):
            text = getattr(self, name)
            if text is not None:
                parse_selection(text, name)
        return self

    def _refuse_unused(self) -> None:
        """An option that the method does not look at would be a silent mistake."""
        network_only = ("model", "tile_overlap", "precision", "batch_size", "domain_check")
        explicit_only = ("psf_voxel_um", "iterations", "tv", "background", "acceleration", "balance")
        unused = explicit_only if self.method == "network" else network_only
        for name in unused:
            if name in self.model_fields_set:
                raise ValueError(f"{name.replace('_', '-')} means nothing to method {self.method}; leave it out")

    @field_validator("channels", "z", "t", mode="before")
    @classmethod
    def _selection_text(cls, value: Any) -> Any:
        """YAML writes 3 and [0, 2] where the command line has text."""
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, list) and value and all(type(item) is int for item in value):
            return ",".join(map(str, value))
        return value

    def models_by_channel(self) -> dict[int | None, str]:
        """Return the model of each channel named as C=MODEL, and under None the one for all others.

        Raises InputError when a channel is named twice.
        """
        found: dict[int | None, str] = {}
        for text in self.model:
            match = re.fullmatch(r"(\d+)=(.+)", text)
            channel, name = (int(match[1]), match[2]) if match else (None, text)
            if channel in found:
                which = "all channels" if channel is None else f"channel {channel}"
                raise InputError(f"--model: {which} has two models, {found[channel]} and {name}; give one")
            found[channel] = name
        return found


def parse_selection(text: str, name: str) -> list[slice | int]:
    """Parse "3", "0,2,5", "4:20", ":10", "-1" or a mix with commas. Raises ValueError that names the option."""
    parts: list[slice | int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d+)?\s*(:)?\s*(-?\d+)?\s*", part)
        if match is None or not (match[1] or match[2]) or (match[3] and not match[2]):
            raise ValueError(f"{name} must look like 3, 0,2,5 or 4:20, not {text!r}")
        if match[2]:
            parts.append(slice(int(match[1]) if match[1] else None, int(match[3]) if match[3] else None))
        else:
            parts.append(int(match[1]))
    return parts


def load_settings(path: Path | None, overrides: dict[str, Any]) -> DeconvolveSettings:
    """Read a YAML file (if any), lay that of --cluster-config over it, then the given options, and check the whole.

    Raises InputError in one line: what is wrong and with which option.
    """
    given = dict(overrides)
    cluster = given.pop("cluster_config", None)
    if cluster is not None:
        of_cluster = read_yaml(Path(cluster))
        strange = sorted(of_cluster.keys() - ClusterSettings.model_fields.keys())
        if strange:
            raise InputError(
                f"{cluster}: unknown option {strange[0]!r}; known are {', '.join(sorted(ClusterSettings.model_fields))}"
            )
        given = {**of_cluster, **given}
    return load_configuration(DeconvolveSettings, path, given, "mrbcr deconvolve")
