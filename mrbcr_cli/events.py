"""Every event of `--json`: one JSON object a line of stdout, described here once, printed by `mrbcr schema`.

Invariant: an event that a command sends is a model here with all of its fields (a test sends them all). Fields may be
added within a version; one that is taken away or means something else makes a new one (`console.EVENT_SCHEMA`).
Readers should leave fields and events alone that they do not know.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from mrbcr_cli.console import EVENT_SCHEMA

Bytes = Annotated[int, Field(ge=0, description="bytes")]
Seconds = Annotated[float, Field(ge=0, description="seconds")]
Share = Annotated[float, Field(ge=0, le=1)]


class Event(BaseModel):
    """What all events have."""

    model_config = ConfigDict(extra="forbid")
    schema_: Literal[1] = Field(alias="schema", description="version of this description")


class BlockSeconds(BaseModel):
    """Wall time of the steps of blocks, summed."""

    model_config = ConfigDict(extra="forbid")
    read: Seconds = Field(description="reading and decoding the input")
    compute: Seconds = Field(description="in the network or method")
    write: Seconds = Field(description="compressing and writing level 0")


class RunSeconds(BlockSeconds):
    """Of all blocks, those of earlier runs that were resumed included, and of this run as a whole."""

    blocks_wall: Seconds | None = Field(default=None, description="from the first block of this run to its last")
    finish: Seconds | None = Field(default=None, description="pyramid and metadata, or the TIFF")
    total: Seconds | None = Field(default=None, description="of this run")


class ShareOfTime(BaseModel):
    """What the workers did with blocks_wall x workers: where read and write are large, disks and codecs hold it up."""

    model_config = ConfigDict(extra="forbid")
    read: Share
    compute: Share
    write: Share
    wait: Share = Field(description="for blocks to begin or for each other")


class Range(BaseModel):
    """The affine map of a channel."""

    low: float
    high: float
    how: str
    guide: list[float] | None
    precision_error: float | None


class LevelFacts(BaseModel):
    """A resolution level of the output."""

    model_config = ConfigDict(extra="forbid")
    shape: list[int]
    bytes: Bytes
    chunks: list[int] | None
    shards: list[int] | None


class WrittenFile(BaseModel):
    """A file or folder that would be written."""

    model_config = ConfigDict(extra="forbid")
    path: str
    what: str = Field(description="image, working folder, ...")
    bytes: Bytes | None = Field(description="at most, before compression; null where unknown")
    temporary: bool = Field(description="gone when the run is complete")
    exists: bool = Field(description="something is there now")


class PlannedEvent(Event):
    """deconvolve --dry-run: what would be done and written."""

    event: Literal["planned"]
    output: str
    format: str
    input: str
    axes: str
    shape: list[int]
    dtype: str
    blocks: int
    block_shape: list[int]
    halo: list[int]
    workers: int
    torch_threads: int
    expected_memory_bytes: Bytes
    megapixels_with_halo: float
    channels: list[dict[str, Any]]
    ranges: list[Range]
    fingerprint: str
    notes: list[str]
    domain: list[dict[str, Any] | None]
    warnings: list[str]
    levels: list[LevelFacts]
    bytes: Bytes = Field(description="of all levels, before compression")
    compression: str
    files: list[WrittenFile]
    replaces: str | None = Field(description="what --overwrite would replace")
    blocks_done: int = Field(description="by the unfinished run that would be resumed")


class WarningEvent(Event):
    """deconvolve: the image lies outside the domain of its model."""

    event: Literal["warning"]
    input: str
    output: str
    message: str


class BlockEvent(Event):
    """deconvolve, simulate stack: a block is on disk."""

    event: Literal["block"]
    output: str
    number: int
    seconds: dict[str, Seconds]


class FailedEvent(Event):
    """deconvolve: an input failed; others go on."""

    event: Literal["failed"]
    input: str
    error: str
    exit_code: int


class DoneEvent(Event):
    """deconvolve, finish: the output is complete."""

    event: Literal["done"]
    output: str
    fingerprint: str
    blocks: int
    pixels: int
    clipped: int = Field(description="pixels that left the range of the output's dtype")
    clipped_fraction: Share
    non_finite: int = Field(description="NaN or infinite pixels of the input")
    seconds: RunSeconds
    share_of_time: ShareOfTime | None = None
    notes: list[str]
    blocks_resumed: int | None = None
    blocks_redone: int | None = None
    workers: int | None = None
    verified: bool | None = Field(default=None, description="finish: every block was read back")


class UnchangedEvent(Event):
    """deconvolve, finish: the output was complete before."""

    event: Literal["unchanged"]
    output: str
    fingerprint: str | None


class VerifiedEvent(Event):
    """finish --verify: every block of a complete output agrees with its checksum."""

    event: Literal["verified"]
    output: str
    fingerprint: str | None
    blocks: int


class ShardEvent(Event):
    """deconvolve --shard: this share is done."""

    event: Literal["shard"]
    output: str
    fingerprint: str
    shard: str
    blocks: int
    blocks_resumed: int
    blocks_redone: int
    workers: int
    share_of_time: ShareOfTime
    seconds: dict[str, Seconds]


class MissingEvent(Event):
    """finish: blocks are not done."""

    event: Literal["missing"]
    output: str
    blocks: list[list[int]] = Field(description="first and last of each run of numbers")
    shards: dict[str, list[int]] = Field(description="by number of shards: those to run again")


class DamagedEvent(Event):
    """finish --verify: blocks that do not agree with their checksums; they count as not done."""

    event: Literal["damaged"]
    output: str
    blocks: list[int]


class PsfEvent(Event):
    """simulate psf: written. What it was computed from stands beside."""

    model_config = ConfigDict(extra="allow")
    event: Literal["psf"]
    output: str
    notes: list[str]
    warnings: list[str]


class PlannedStackEvent(Event):
    """simulate stack --dry-run."""

    event: Literal["planned"]
    output: str
    truth: str | None
    axes: str
    shape: list[int]
    dtype: str
    voxel_zyx_um: list[float]
    bytes: Bytes
    truth_bytes: Bytes
    blocks: int
    block_shape: list[int]
    workers: int
    expected_memory_bytes: Bytes
    psf: dict[str, Any]
    fingerprint: str
    yaml: str
    notes: list[str]


class StackEvent(Event):
    """simulate stack: written. What it was computed from stands beside."""

    model_config = ConfigDict(extra="allow")
    event: Literal["stack"]
    output: str
    truth: str | None
    seconds: Seconds


class PlannedPairsEvent(Event):
    """simulate pairs --dry-run."""

    event: Literal["planned"]
    output: str
    pairs: int
    splits: dict[str, list[int]] = Field(description="first pair and the one after the last")
    sources: dict[str, str] = Field(description="split of each")
    bytes: Bytes


class DonePairsEvent(PlannedPairsEvent):
    """simulate pairs: written."""

    event: Literal["done"]  # type: ignore[assignment]
    npz: list[str] | None = None
    figure: str | None = None


class ImageEvent(Event):
    """evaluate: an image is scored; of files one for each method with its scores, of pairs PSNR by method."""

    model_config = ConfigDict(extra="allow")
    event: Literal["image"]
    image: str
    method: str | None = None
    psnr_db: float | dict[str, float | None] | None = None


class DoneEvaluateEvent(Event):
    """evaluate: totals, and the files that were written."""

    event: Literal["done"]
    images: int
    totals: dict[str, dict[str, Any]] = Field(description="by method and metric: mean and confidence interval")
    output: str | None = None
    csv: str | None = None
    report: str | None = None
    figures: str | None = None


class StepEvent(Event):
    """train: a line of the log."""

    model_config = ConfigDict(extra="allow")
    event: Literal["step"]
    step: int
    loss: float | None
    psnr: float | None
    patches_per_s: float
    elapsed_s: Seconds
    validation_psnr: float | None = None


class TrainedEvent(Event):
    """train: the run is finished."""

    event: Literal["trained"]
    weights: str


class ReportEvent(Event):
    """deconvolve --report, report: the page on an output is written."""

    event: Literal["report"]
    output: str
    path: str
    bytes: Bytes
    seconds: Seconds


class PreviewEvent(Event):
    """deconvolve --preview, report --preview: the picture is written."""

    event: Literal["preview"]
    output: str
    path: str


class ExportedEvent(Event):
    """export: the model is written, and agrees with this tool."""

    event: Literal["exported"]
    output: str
    format: str
    weights_sha256: str
    largest_difference: float | None = Field(description="to mrbcr, in units of the intensity range; null: bit-equal")


AnyEvent = (
    *(PlannedEvent, WarningEvent, BlockEvent, FailedEvent, DoneEvent, UnchangedEvent, VerifiedEvent, ShardEvent),
    *(MissingEvent, DamagedEvent, PsfEvent, PlannedStackEvent, StackEvent, PlannedPairsEvent, DonePairsEvent),
    *(ImageEvent, DoneEvaluateEvent, StepEvent, TrainedEvent, ReportEvent, PreviewEvent),
    ExportedEvent,
)


def event_schema(*, strict: bool = False) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a line of `--json`; `strict` refuses fields that are not described.

    Without it a line of a later release with more fields is still valid.
    """
    union: Any = AnyEvent[0]
    for model in AnyEvent[1:]:
        union = union | model
    schema = TypeAdapter(union).json_schema(by_alias=True)
    for part in schema["$defs"].values():
        closed = part.pop("additionalProperties", None)
        if strict and closed is False:
            part["additionalProperties"] = False
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"mrbcr --json, version {EVENT_SCHEMA}",
        **schema,
    }
