"""`mrbcr deconvolve`: its options, grouped in panels.

Invariant: an option that was not given is None here, so that a YAML file can be told from the command line; the real
defaults are in DeconvolveSettings and said in the help.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mrbcr_cli.cli_cluster import (
    Account,
    BlockTimeout,
    Cluster,
    ClusterConfig,
    Cores,
    GpusPerJob,
    JobExtra,
    Jobs,
    Memory,
    Queue,
    Walltime,
)
from mrbcr_cli.cli_help import (
    DEVICES,
    DTYPES,
    METHODS,
    OUTPUT_FORMATS,
    PRECISIONS,
    HelpAll,
    complete_model,
    option,
)
from mrbcr_cli.cli_options import (
    Axes,
    Compression,
    Config,
    Debug,
    DryRun,
    Json,
    OutputPlace,
    Quiet,
    Series,
    ShardText,
    SplitRgb,
    WorkDir,
)
from mrbcr_cli.console import Reporter, command_line

METHOD, IMAGE, INTENSITY, OUTPUT, RUN = "Method", "Image and selection", "Intensities", "Output", "Running"
EXPLICIT = "Richardson-Lucy, Wiener, blind"

EPILOG = """\
mrbcr deconvolve cells.tif -o cells_sharp.ome.zarr
mrbcr deconvolve day1/*.tif -o sharp/ --output-format ome-tiff
mrbcr deconvolve cells.tif -o cells_sharp.tif -m 0=widefield -m 1=mine.safetensors
mrbcr deconvolve cells.tif -o cells_rl.tif --method richardson-lucy --psf psf.tif
mrbcr deconvolve big.zarr -o sharp.ome.zarr --cluster slurm --jobs 16  # the same again resumes"""


def deconvolve(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="TIFF, OME-TIFF, ImageJ TIFF or OME-Zarr (s3://, https:// too); a folder or quoted glob of TIFF "
            "planes is one stack; - reads names from stdin. With several inputs OUTPUT is a folder.",
            show_default=False,
        ),
    ],
    output: OutputPlace,
    model: Annotated[
        list[str] | None,
        option(
            METHOD,
            "--model",
            "-m",
            metavar="MODEL",
            complete=complete_model,
            help="Embedded model or weights file; C=MODEL for channel C; repeat. Default: widefield.",
        ),
    ] = None,
    method: Annotated[
        str | None,
        option(
            METHOD,
            metavar="NAME",
            complete=METHODS,
            help="network, richardson-lucy, wiener or blind. Default: network.",
        ),
    ] = None,
    domain_check: Annotated[
        bool | None,
        option(
            METHOD,
            "--domain-check/--no-domain-check",
            help="Warn of images unlike those the model is for. Default: yes.",
        ),
    ] = None,
    psf: Annotated[
        Path | None,
        option(EXPLICIT, metavar="FILE", help="PSF (TIFF, npy, npz): needed, except by blind. Default: none."),
    ] = None,
    psf_voxel_um: Annotated[
        tuple[float, float, float] | None,
        option(EXPLICIT, metavar="Z Y X", help="Voxel of the PSF, um. Default: what its file says."),
    ] = None,
    iterations: Annotated[
        int | None, option(EXPLICIT, metavar="N", help="Iterations, of Richardson-Lucy and blind. Default: 30.")
    ] = None,
    tv: Annotated[
        float | None,
        option(EXPLICIT, metavar="X", help="Total-variation strength, Richardson-Lucy, 0 to 0.1. Default: 0."),
    ] = None,
    background: Annotated[
        float | None,
        option(EXPLICIT, metavar="COUNTS", help="Light not of the specimen, in image units. Default: 0."),
    ] = None,
    acceleration: Annotated[
        bool | None,
        option(EXPLICIT, "--acceleration/--no-acceleration", help="Richardson-Lucy: fewer iterations do. Default: no."),
    ] = None,
    balance: Annotated[
        float | None,
        option(EXPLICIT, metavar="X", help="Wiener: noise over signal. Default: estimated."),
    ] = None,
    axes: Axes = None,
    series: Series = None,
    split_rgb: SplitRgb = None,
    channels: Annotated[
        str | None, option(IMAGE, metavar="LIST", help="Channels, from 0, e.g. 0,2 or 1:3. Default: all.")
    ] = None,
    z: Annotated[
        str | None, option(IMAGE, "--z", metavar="LIST", help="Planes, from 0, e.g. 4:20. Default: all.")
    ] = None,
    t: Annotated[
        str | None, option(IMAGE, "--t", metavar="LIST", help="Time points, from 0, e.g. 0:10. Default: all.")
    ] = None,
    intensity_range: Annotated[
        tuple[float, float] | None,
        option(
            INTENSITY,
            "--range",
            metavar="LOW HIGH",
            help="What the network sees as 0 and 1, in image units. Default: by --percentiles.",
        ),
    ] = None,
    percentiles: Annotated[
        tuple[float, float] | None,
        option(
            INTENSITY,
            metavar="LOW HIGH",
            help="The range as percentiles of each channel, percent. Default: the model's, 0.1 99.9.",
        ),
    ] = None,
    nan_policy: Annotated[
        str | None,
        option(
            INTENSITY,
            metavar="NAME",
            complete=("refuse", "zero", "keep"),
            help="NaN and infinity: refuse, zero or keep. Default: refuse.",
        ),
    ] = None,
    output_format: Annotated[
        str | None,
        option(
            OUTPUT,
            metavar="NAME",
            complete=OUTPUT_FORMATS,
            help="ome-zarr (0.5), ome-zarr-0.4 or ome-tiff. Default: by the name, else ome-zarr.",
        ),
    ] = None,
    output_dtype: Annotated[
        str | None,
        option(OUTPUT, metavar="TYPE", complete=DTYPES, help="uint8, uint16, float32, ... Default: the input's."),
    ] = None,
    compression: Compression = None,
    overwrite: Annotated[bool | None, option(OUTPUT, "--overwrite", help="Replace an existing output.")] = None,
    resume: Annotated[
        bool | None,
        option(OUTPUT, "--resume/--no-resume", help="Go on with an unfinished run; skip a finished one. Default: yes."),
    ] = None,
    work_dir: WorkDir = None,
    report: Annotated[
        Path | None,
        option(OUTPUT, metavar="HTML", help="Also a page on it, as mrbcr report; or a folder. Default: none."),
    ] = None,
    preview: Annotated[
        Path | None,
        option(OUTPUT, metavar="PNG", help="Also a picture, before and after; or a folder. Default: none."),
    ] = None,
    tile_size: Annotated[
        int | None, option(RUN, metavar="PX", help="Width of a block. Default: by the memory.")
    ] = None,
    tile_overlap: Annotated[
        int | None,
        option(RUN, metavar="PX", help="Context around a block. Default: what the model needs."),
    ] = None,
    batch_size: Annotated[int | None, option(RUN, metavar="N", help="Planes run together. Default: 1.")] = None,
    device: Annotated[
        str | None,
        option(RUN, metavar="NAME", complete=DEVICES, help="auto, cpu, cuda or cuda:N. Default: auto."),
    ] = None,
    precision: Annotated[
        str | None,
        option(RUN, metavar="NAME", complete=PRECISIONS, help="fp32, bf16 or fp16. Default: fp32."),
    ] = None,
    workers: Annotated[
        int | None, option(RUN, metavar="N", help="Blocks at a time. Default: the cores that memory allows.")
    ] = None,
    shard: ShardText = None,
    cluster: Cluster = None,
    cluster_config: ClusterConfig = None,
    block_timeout: BlockTimeout = None,
    jobs: Jobs = None,
    cores: Cores = None,
    memory: Memory = None,
    gpus_per_job: GpusPerJob = None,
    walltime: Walltime = None,
    queue: Queue = None,
    account: Account = None,
    job_extra: JobExtra = None,
    dry_run: DryRun = False,
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
    help_all: HelpAll = False,
) -> None:
    """Remove blur from images: same axes, same scale, same intensity units, any size."""
    given = dict(locals())
    apart = ("inputs", "output", "config", "as_json", "quiet", "debug", "dry_run", "shard", "help_all")
    options = {name: value for name, value in given.items() if name not in apart and value is not None}
    if "intensity_range" in options:
        options["range"] = options.pop("intensity_range")
    reporter = Reporter(quiet=quiet, as_json=as_json)

    from mrbcr_cli.restore import tune_allocator

    tune_allocator()  # before torch takes its first block
    from mrbcr_cli.batch import deconvolve_batch
    from mrbcr_cli.settings import load_settings
    from mrbcr_cli.stdin_names import expand_names
    from mrbcr_cli.stream.shards import parse_shard

    share = None if shard is None else parse_shard(shard, os.environ)
    settings = load_settings(config, options)
    names = expand_names(inputs)
    deconvolve_batch(names, output, settings, reporter, command=command_line(), dry_run=dry_run, shard=share)
