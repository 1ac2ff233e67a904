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
from mrbcr_cli.cli_options import Axes, Debug, Json, OutputPlace, Quiet, Series, ShardText, SplitRgb, WorkDir
from mrbcr_cli.console import Reporter, command_line

METHOD, IMAGE, INTENSITY, OUTPUT, RUN = "Method", "Image and selection", "Intensities", "Output", "Running"

EPILOG = (
    "Examples:  mrbcr deconvolve cells.tif -o cells.ome.zarr   ·   "
    "mrbcr deconvolve day1/*.ome.tif -o out/ --output-format ome-tiff   ·   "
    "mrbcr deconvolve beads.tif -o beads_rl.tif --method richardson-lucy --psf psf.tif"
)


def deconvolve(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="TIFF, OME-TIFF, ImageJ TIFF or OME-Zarr (also at a URL: s3://bucket/in.ome.zarr); a folder or quoted "
            "glob of TIFF planes is one stack. - reads names from stdin, one a line (or find -print0). With several "
            "inputs OUTPUT is a folder.",
            show_default=False,
        ),
    ],
    output: OutputPlace,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="Embedded model or weights file; C=MODEL for one channel (repeat). Default: widefield.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="network, richardson-lucy, wiener or blind. Default: network.", rich_help_panel=METHOD),
    ] = None,
    psf: Annotated[
        Path | None, typer.Option(help="PSF (TIFF, npy, npz) for richardson-lucy, wiener.", rich_help_panel=METHOD)
    ] = None,
    psf_voxel_um: Annotated[
        tuple[float, float, float] | None,
        typer.Option(
            metavar="Z Y X", help="Voxel size of the PSF in um. Default: what its file says.", rich_help_panel=METHOD
        ),
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(help="Richardson-Lucy iterations. Default: 30.", rich_help_panel=METHOD)
    ] = None,
    tv: Annotated[
        float | None,
        typer.Option(help="Total-variation strength of Richardson-Lucy, 0 to 0.1. Default: 0.", rich_help_panel=METHOD),
    ] = None,
    background: Annotated[
        float | None,
        typer.Option(help="Light the specimen did not emit, in image units. Default: 0.", rich_help_panel=METHOD),
    ] = None,
    acceleration: Annotated[
        bool | None,
        typer.Option("--acceleration/--no-acceleration", help="Accelerated Richardson-Lucy.", rich_help_panel=METHOD),
    ] = None,
    balance: Annotated[
        float | None,
        typer.Option(help="Wiener noise-to-signal balance. Default: estimated.", rich_help_panel=METHOD),
    ] = None,
    domain_check: Annotated[
        bool | None,
        typer.Option(
            "--domain-check/--no-domain-check",
            help="Warn of images unlike those the model was made for. Default: yes.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    axes: Axes = None,
    series: Series = None,
    split_rgb: SplitRgb = None,
    channels: Annotated[
        str | None, typer.Option(help="Channels, e.g. 0,2 or 1:3. Default: all.", rich_help_panel=IMAGE)
    ] = None,
    z: Annotated[
        str | None, typer.Option("--z", help="Planes, e.g. 4:20. Default: all.", rich_help_panel=IMAGE)
    ] = None,
    t: Annotated[
        str | None, typer.Option("--t", help="Time points, e.g. 0 or 0:10. Default: all.", rich_help_panel=IMAGE)
    ] = None,
    intensity_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            "--range",
            metavar="LOW HIGH",
            help="Intensities the network sees as 0 and 1, in image units. Default: percentiles of each channel.",
            rich_help_panel=INTENSITY,
        ),
    ] = None,
    percentiles: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LOW HIGH",
            help="Percentiles of the range, in percent. Default: the model's, 0.1 99.9.",
            rich_help_panel=INTENSITY,
        ),
    ] = None,
    nan_policy: Annotated[
        str | None,
        typer.Option(help="NaN and infinity: refuse, zero or keep. Default: refuse.", rich_help_panel=INTENSITY),
    ] = None,
    output_dtype: Annotated[
        str | None,
        typer.Option(help="uint8, uint16, float32, ... Default: the input's.", rich_help_panel=OUTPUT),
    ] = None,
    output_format: Annotated[
        str | None,
        typer.Option(
            help="ome-zarr (0.5), ome-zarr-0.4 or ome-tiff. Default: by the name, else ome-zarr.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    compression: Annotated[
        str | None, typer.Option(help="Of TIFF: zstd, deflate or none. Default: zstd.", rich_help_panel=OUTPUT)
    ] = None,
    overwrite: Annotated[
        bool | None, typer.Option("--overwrite", help="Replace an existing output.", rich_help_panel=OUTPUT)
    ] = None,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--no-resume",
            help="Continue an unfinished run; skip a finished one. Default: resume.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    work_dir: WorkDir = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Also a page on the output (see mrbcr report); with several inputs a folder for the pages.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Also a picture of before and after; with several inputs a folder for the pictures.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    tile_size: Annotated[
        int | None, typer.Option(help="Block size in px. Default: by available memory.", rich_help_panel=RUN)
    ] = None,
    tile_overlap: Annotated[
        int | None,
        typer.Option(help="Context around a block in px (halo). Default: what the model needs.", rich_help_panel=RUN),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Planes run together. Default: 1.", rich_help_panel=RUN)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or cuda:N. Default: auto.", rich_help_panel=RUN)
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16. Default: fp32.", rich_help_panel=RUN)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Blocks at a time. Default: the cores that memory allows.", rich_help_panel=RUN)
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, write nothing.", rich_help_panel=RUN)
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", help="YAML with any of these options; those given here win.", rich_help_panel=RUN
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Remove blur from images: same axes, same scale, same intensity units, any size."""
    given = dict(locals())
    apart = ("inputs", "output", "config", "as_json", "quiet", "debug", "dry_run", "shard")
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
