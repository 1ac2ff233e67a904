"""What a user may set of `mrbcr train`, checked before anything is opened.

Invariant: a settings object that exists is valid by itself and, with the data, decides the run: every loss and every
weight, on the same kind of machine. Only `minutes` (a schedule by the clock) gives that up, and says so.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mrbcr_cli.simulate.pairs_settings import PairsSettings

DATA = ("simulate", "pairs", "input_dir", "npz")
"""The four kinds of data; exactly one is given."""
LEAST_PATCH_PX = 32
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class TrainSettings(BaseModel):
    """All options of `mrbcr train` except the output."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    simulate: PairsSettings | None = None
    """Settings of `simulate pairs`: data are simulated while the network trains."""
    pairs: tuple[Path, ...] = ()
    """Zarr groups of `mrbcr simulate pairs`."""
    input_dir: Path | None = None
    target_dir: Path | None = None
    npz: Path | None = None
    """Arrays `low` and `gt`, (n, y, x)."""
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the images of folders and NPZ that is held out."""
    validation_pairs: Annotated[int, Field(ge=1, le=100_000)] = 96
    """Pairs looked at in a validation, and simulated for it from held-out sources."""

    model: Literal["mrbcr", "published"] = "mrbcr"
    network: dict[str, Any] = Field(default_factory=dict)
    """Constructor settings of the network; one of init grows into them. Default: those of init, or of the smaller
    embedded models (0.20 million parameters)."""
    init: str | None = None
    """Embedded model or weights file to start from."""

    steps: Annotated[int, Field(ge=1, le=100_000_000)] = 30_000
    minutes: Positive | None = None
    """Length of the run by the clock instead of by `steps`."""
    batch: Annotated[int, Field(ge=1, le=65536)] = 8
    """Patches a step and process."""
    accumulate: Annotated[int, Field(ge=1, le=1024)] = 1
    patch: Annotated[int, Field(ge=LEAST_PATCH_PX, le=2048)] | None = None
    """px, a multiple of 16. None: 192, and at most what stored pairs have."""
    bordered: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of the steps whose patches are whole images, continued by reflection. Default: 0.25."""
    pool: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    """Simulated fields kept at a time."""
    fresh: Annotated[float, Field(ge=0, le=1000)] = 0.25
    """Fields replaced by new ones a step."""
    field: Annotated[int, Field(ge=64, le=4096)] = 240
    """Simulated field, px; patches are cut from it. Default: 240."""

    lr: Positive = 2e-3
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-4
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of the run in which the learning rate rises."""
    clip: Positive = 1.0
    """Largest norm of the gradient."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    loss: Literal["mse", "charbonnier", "log", "gain"] = "mse"
    gain_floor: Annotated[float, Field(ge=0, le=100)] = 0.3
    """Of loss gain: share of the error of the best of some smoothings (with simulate and fluorescence: and of
    Richardson-Lucy that is told the PSF) below which little more is gained. Default: 0.3."""
    fft_weight: Annotated[float, Field(ge=0, le=100)] = 0.05
    scale_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    exact: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of the run, its end, in fp32 whatever `precision`. Default: 0.2."""

    every: Annotated[int, Field(ge=1)] = 1000
    """Steps between validations and checkpoints."""
    log_every: Annotated[int, Field(ge=1)] = 100
    patience: Annotated[int, Field(ge=0)] = 0
    """Validations without a better PSNR before the run ends early; 0: never."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    tensorboard: bool = False

    name: str = "trained"
    domain: str = ""
    """Which images the weights are for, for their card. Default: not said."""
    trained_on: str = ""
    """What they were trained on, for their card. Default: not said."""
    licence: str = "MIT"
    """Of the weights, for their card. Default: MIT."""
    limits: dict[str, tuple[float, float]] | None = None
    """Domain of the weights, for their card: images are checked against it (fwhm_px, photons, read_noise_e).
    Default: none."""

    @field_validator("pairs", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value

    @field_validator("scale_weights")
    @classmethod
    def _weights(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if not all(math.isfinite(w) and w >= 0 for w in value) or value[0] <= 0:
            raise ValueError(f"needs three weights of 0 or more, the first above 0, not {value}")
        return value

    @field_validator("patch")
    @classmethod
    def _aligned(cls, value: int | None) -> int | None:
        if value is not None and value % 16:
            raise ValueError(f"must be a multiple of 16 px, not {value}")
        return value

    @model_validator(mode="after")
    def _one_kind_of_data(self) -> TrainSettings:
        given = [name for name in DATA if getattr(self, name) not in (None, ())]
        named = ", ".join("--" + name.replace("_", "-") for name in DATA)
        if not given:
            raise ValueError(f"no training data; give one of {named}")
        if len(given) > 1:
            raise ValueError(f"give one kind of training data of {named}, not {len(given)}")
        if (self.input_dir is None) != (self.target_dir is None):
            raise ValueError("input-dir and target-dir belong together")
        if self.network and self.model == "published":
            raise ValueError("the published network has no settings; leave network out")
        return self
