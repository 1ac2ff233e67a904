"""The command line: parse, call, map errors to exit codes; no logic.

Invariant: every foreseeable failure leaves as one or two lines on stderr with its exit code (0 done, 1 unexpected,
2 bad input, 3 incomplete, 4 another run's output, 75 interrupted); heavy imports happen inside the command that needs
them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mrbcr_cli import __version__
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
from mrbcr_cli.cli_evaluate import EPILOG as EVALUATE_EPILOG
from mrbcr_cli.cli_evaluate import ManyValues, evaluate
from mrbcr_cli.cli_finish import EPILOG as FINISH_EPILOG
from mrbcr_cli.cli_finish import finish
from mrbcr_cli.cli_options import Axes, Debug, Json, OutputPlace, Quiet, Series, ShardText, SplitRgb, WorkDir
from mrbcr_cli.cli_simulate import simulate_app
from mrbcr_cli.cli_train import EPILOG as TRAIN_EPILOG
from mrbcr_cli.cli_train import train
from mrbcr_cli.console import Reporter, command_line
from mrbcr_cli.errors import IncompleteError, InterruptedRunError, MrbcrError

app = typer.Typer(
    name="mrbcr",
    help="Deconvolve light-microscopy stacks of any size with the m-rBCR network.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
weights_app = typer.Typer(help="List, inspect and convert network weights.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")
app.add_typer(simulate_app, name="simulate")
app.command("evaluate", cls=ManyValues, epilog=EVALUATE_EPILOG)(evaluate)
app.command(epilog=TRAIN_EPILOG)(train)
app.command(epilog=FINISH_EPILOG)(finish)

METHOD, IMAGE, INTENSITY, OUTPUT, RUN = "Method", "Image and selection", "Intensities", "Output", "Running"


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"mrbcr {__version__}")
        raise typer.Exit


@app.command(
    epilog="Examples:  mrbcr deconvolve cells.tif -o cells.ome.zarr   ·   "
    "mrbcr deconvolve day1/*.ome.tif -o out/ --output-format ome-tiff   ·   "
    "mrbcr deconvolve beads.tif -o beads_rl.tif --method richardson-lucy --psf psf.tif"
)
def deconvolve(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="TIFF, OME-TIFF, ImageJ TIFF or OME-Zarr (also at a URL: s3://bucket/in.ome.zarr); a folder or quoted "
            "glob of TIFF planes is one stack. With several inputs OUTPUT is a folder.",
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
    from mrbcr_cli.stream.shards import parse_shard

    share = None if shard is None else parse_shard(shard, os.environ)
    settings = load_settings(config, options)
    deconvolve_batch(inputs, output, settings, reporter, command=command_line(), dry_run=dry_run, shard=share)


@app.command()
def info(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Image to describe.", show_default=False)],
    axes: Axes = None,
    series: Series = None,
    split_rgb: SplitRgb = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Also how it would be deconvolved: blocks, halo, memory, time.")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="With --plan: try tile and batch sizes, remember the best for this machine."),
    ] = False,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model of the plan. Default: widefield.")] = None,
    tile_size: Annotated[int | None, typer.Option(help="Block size of the plan in px.")] = None,
    workers: Annotated[int | None, typer.Option(help="Workers of the plan.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, one object a file.")] = False,
    debug: Debug = False,
) -> None:
    """Show an image's axes, sizes, chunks and metadata; with --plan what deconvolving it would take."""
    from mrbcr_cli.describe import describe_image, print_description
    from mrbcr_cli.settings import load_settings

    given = {"axes": axes, "series": series, "split_rgb": split_rgb, "model": model, "tile_size": tile_size}
    options = {name: value for name, value in {**given, "workers": workers}.items() if value is not None}
    settings, reporter = load_settings(None, options), Reporter()
    failed: list[MrbcrError] = []
    for name in files:
        try:
            facts = describe_image(name, settings, plan=plan or measure, measure=measure, say=reporter.info)
            print_description(facts, as_json=as_json)
        except MrbcrError as error:
            if len(files) == 1:
                raise
            reporter.error(str(error))
            failed.append(error)
    if failed:
        raise IncompleteError(f"{len(failed)} of {len(files)} files could not be described")


@weights_app.command("list")
def weights_list(
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False, debug: Debug = False
) -> None:
    """List the models inside the package."""
    from mrbcr_cli.describe import print_table
    from mrbcr_cli.weights import weights_table

    print_table(weights_table(), as_json=as_json)


@weights_app.command("show")
def weights_show(
    name: Annotated[str, typer.Argument(help="Embedded model or weights file.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    debug: Debug = False,
) -> None:
    """Show the card of a weights file: domain, training, halo, SHA-256."""
    from mrbcr_cli.describe import print_facts
    from mrbcr_cli.weights import describe_weights

    print_facts(describe_weights(name), as_json=as_json)


@weights_app.command("convert")
def weights_convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT_DIR", help="Folder with checkpoint, *.index, *.data-*.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Weights file to write (.safetensors).")],
    name: Annotated[str | None, typer.Option("--name", help="Name in the card. Default: the folder's.")] = None,
    licence: Annotated[str, typer.Option("--licence", help="Licence of the weights, kept in the card.")] = "unknown",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    debug: Debug = False,
) -> None:
    """Convert a TensorFlow checkpoint of the authors' m-rBCR or DeBCR (needs the \\[convert] extra)."""
    from datetime import UTC, datetime

    from mrbcr_cli.weights_convert import convert_checkpoint

    now = datetime.now(UTC).isoformat(timespec="seconds")
    convert_checkpoint(checkpoint, output, created=now, name=name, licence=licence, overwrite=overwrite)
    print(output)


_TYPER_INTERRUPTED = 130

_UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""Base of what the parser raises: typer's own copy of click from 0.26 on, click's class before."""


def main(argv: list[str] | None = None) -> None:
    """Run the tool and exit with its code; the entry point of `mrbcr`."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="surrogateescape")  # a path that is no UTF-8 is printed byte for byte
    sys.exit(run(argv))


def run(argv: list[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    reporter = Reporter()
    try:
        code: Any = typer.main.get_command(app)(args=arguments, prog_name="mrbcr", standalone_mode=False)
        if code == _TYPER_INTERRUPTED:  # typer swallows KeyboardInterrupt
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except _UsageError as error:
        said = " ".join(error.format_message().split()).rstrip(".")
        if said:  # no arguments at all: the help was printed instead
            reporter.error(f"{said}; see --help")
        return 2
    except (typer.Abort, KeyboardInterrupt):
        reporter.error("interrupted; run the same command to resume")
        return InterruptedRunError.exit_code
    except MrbcrError as error:
        _trace(arguments)
        reporter.error(str(error))
        return error.exit_code
    except BrokenPipeError:
        return 1  # the reader of our stdout has gone
    except Exception as error:  # the last resort: anything that is a bug
        _trace(arguments)
        reporter.error(f"unexpected {type(error).__name__}: {error}; run again with --debug and report it")
        return 1


def _trace(arguments: list[str]) -> None:
    if "--debug" in arguments:
        import traceback

        traceback.print_exc()
