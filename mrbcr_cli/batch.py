"""Several inputs, one warm process: name the outputs, run one after the other, go on past a broken file.

Invariant: which file goes where is settled, without collisions, before the first one is opened; each file succeeds or
fails by itself.
"""

from __future__ import annotations

import glob
from pathlib import Path

from mrbcr_cli.capacity import default_workers
from mrbcr_cli.carry_out import deconvolve_file
from mrbcr_cli.console import Reporter
from mrbcr_cli.errors import IncompleteError, InputError, InterruptedRunError, MrbcrError
from mrbcr_cli.finish import Outcome
from mrbcr_cli.images import SUFFIX_OF, OutputFormat, SourceSpec, find_source, output_format
from mrbcr_cli.places import Place, RemoteError, RemotePath, is_writable, place
from mrbcr_cli.planned import already_done_text, entry, planned_text
from mrbcr_cli.report.request import add_pages, requests_for
from mrbcr_cli.settings import DeconvolveSettings
from mrbcr_cli.stream.cluster import Clients
from mrbcr_cli.stream.engine import describe
from mrbcr_cli.stream.shards import Shard
from mrbcr_cli.stream.signals import interrupt_on_signal
from mrbcr_cli.workfolder import PARTIAL_SUFFIX, Target


def deconvolve_batch(
    inputs: list[str],
    output: str | Place,
    settings: DeconvolveSettings,
    reporter: Reporter,
    *,
    command: str,
    dry_run: bool = False,
    shard: Shard | None = None,
) -> list[Outcome]:
    """Deconvolve each input, or with `shard` its share of each.

    With one input its own error is raised; with several IncompleteError counts the failures. Raises InputError before
    anything is opened when two outputs would have the same name, or when a shard would drop the work of others.
    """
    if shard is not None:
        _refuse_with_shard(settings)
    targets = _targets(inputs, output, settings)
    requests = requests_for([target.path for target in targets], settings.report, settings.preview)
    outcomes: list[Outcome] = []
    failures = 0
    with interrupt_on_signal(), _clients(settings, reporter) as clients:
        clients.check()
        for text, target, request in zip(inputs, targets, requests, strict=True):
            try:
                outcome = deconvolve_file(
                    _source(text, settings),
                    target,
                    settings,
                    reporter,
                    clients=clients,
                    command=command,
                    dry_run=dry_run,
                    shard=shard,
                )
                outcomes.append(outcome)
                if outcome.status == "planned":
                    outcome.summary["files"] += [entry(path, "report", None) for path in request.paths]
                _report(outcome, reporter, dry_run=dry_run)
                add_pages(outcome, request, text, reporter)
            except InterruptedRunError:
                raise
            except KeyboardInterrupt as error:
                raise InterruptedRunError(f"{target.path}: interrupted; run the same command to resume") from error
            except MrbcrError as error:
                reporter.event("failed", input=text, error=str(error), exit_code=error.exit_code)
                if len(inputs) == 1:
                    raise
                failures += 1
                reporter.error(str(error))
            except Exception as error:
                if len(inputs) == 1:
                    raise
                failures += 1  # a bug met on one file must not lose the night's other files
                reporter.event("failed", input=text, error=describe(error), exit_code=1)
                reporter.error(f"{text}: unexpected {describe(error)}")
    if failures:
        raise IncompleteError(f"{failures} of {len(inputs)} inputs failed; run the same command again for these alone")
    return outcomes


def _refuse_with_shard(settings: DeconvolveSettings) -> None:
    if settings.overwrite or not settings.resume:
        option = "--overwrite" if settings.overwrite else "--no-resume"
        raise InputError(
            f"{option} with --shard: each shard would drop what the others have done; remove the old output and its "
            f"{PARTIAL_SUFFIX} folder instead"
        )
    if settings.report or settings.preview:
        option = "--report" if settings.report else "--preview"
        raise InputError(
            f"{option} with --shard: the output is not there before all shards are done; run mrbcr report "
            "OUTPUT after mrbcr finish"
        )


def _targets(inputs: list[str], output: str | Place, settings: DeconvolveSettings) -> list[Target]:
    """Where each input's result goes, after all that can be refused by names alone."""
    try:
        targets = name_targets(inputs, place(output), settings.output_format, settings.work_dir)
    except RemoteError as error:
        raise IncompleteError(
            f"{output}: cannot be looked at ({error.strerror}); run the same command again"
        ) from error
    _refuse_memory_elsewhere([*inputs, *(str(target.path) for target in targets)], settings)
    if settings.overwrite:
        _refuse_to_replace_inputs(inputs, targets)
    return targets


def _clients(settings: DeconvolveSettings, reporter: Reporter) -> Clients:
    elsewhere = settings.kind in ("slurm", "address")
    here = 1 if elsewhere else settings.workers or default_workers(settings)
    return Clients(settings, here, reporter.info, reporter.warn, settings.device)


def name_targets(
    inputs: list[str], output: Place, wanted: OutputFormat | None, work_dir: Path | None = None
) -> list[Target]:
    """Return where each input's result goes.

    Raises InputError for a name that contradicts the format, several inputs into one file, or two equal names.
    """
    remote = isinstance(output, RemotePath)
    named = output_format(output) if remote or _looks_finished(output) or not output.is_dir() else None
    if remote:
        _check_remote_output(output, wanted or named)
    if named is not None:
        if len(inputs) > 1:
            raise InputError(f"{output}: names one file, but there are {len(inputs)} inputs; give a folder")
        if wanted is not None and wanted.split("-")[1] != named.split("-")[1]:
            raise InputError(f"{output}: the name says {named}, --output-format says {wanted}; change one of them")
        return [Target(output, wanted or named, work_dir)]
    if output.suffix.lower() in _NOT_WRITTEN:
        raise InputError(f"{output}: {output.suffix} is not written; use .ome.zarr, .ome.tif or a folder")
    if output.is_file() if remote else output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file, not a folder, and its name is not .ome.zarr, .ome.tif or .tif")
    chosen: OutputFormat = wanted or "ome-zarr"
    targets: dict[Place, str] = {}
    for text in inputs:
        path = output / (SourceSpec((text,), text).stem + SUFFIX_OF[chosen])
        if path in targets:
            raise InputError(f"{path}: both {targets[path]} and {text} would be written there; run them separately")
        targets[path] = text
    return [Target(path, chosen, work_dir) for path in targets]


_NOT_WRITTEN = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".czi", ".nd2", ".lif", ".ims", ".h5", ".hdf5", ".n5")


def _check_remote_output(output: Place, wanted: OutputFormat | None) -> None:
    if not is_writable(output):
        raise InputError(f"{output}: such a place is for reading alone; write to a disk, or to s3://, gs:// or az://")
    if wanted == "ome-tiff":
        raise InputError(f"{output}: TIFF is not written to URLs; write OME-Zarr there, or TIFF to a disk")
    if glob.has_magic(str(output)):
        raise InputError(f"{output}: a name with *, [ or ] cannot be written to a URL; choose another --output")


def _refuse_memory_elsewhere(texts: list[str], settings: DeconvolveSettings) -> None:
    for text in texts:
        if text.startswith("memory://") and settings.kind != "threads":
            raise InputError(f"{text}: exists in this process alone, so --cluster cannot share it; leave --cluster out")


def _refuse_to_replace_inputs(inputs: list[str], targets: list[Target]) -> None:
    given = {place(text).resolve() for text in inputs}
    for target in targets:
        if target.path.resolve() in given:
            raise InputError(f"{target.path}: is an output and an input of the same command; choose another --output")


def _looks_finished(output: Place) -> bool:
    """A folder that is named like a zarr is an output to be checked, not a folder to put outputs in."""
    return output.name.lower().endswith(".zarr")


def _source(text: str, settings: DeconvolveSettings) -> SourceSpec:
    return find_source(text, series=settings.series, axes=settings.axes, split_rgb=settings.split_rgb)


def _report(outcome: Outcome, reporter: Reporter, *, dry_run: bool) -> None:
    reporter.event(outcome.status, **{"output": str(outcome.output), **outcome.summary})
    if outcome.status == "planned":
        reporter.data(planned_text(outcome.output, outcome.summary))
    elif dry_run:
        reporter.data(already_done_text(outcome.output))
    elif outcome.status != "shard":  # whose output is not there yet
        reporter.data(str(outcome.output))
