"""Carry out a plan: working folder, blocks, and unless it is a shard the end of the run.

Invariant: the same command may be run again after any end of a run, and ends with the pixels of an undisturbed one;
blocks that are done, by this process or another, are not done again.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import asdict
from typing import Any

from mrbcr_cli.console import Reporter, clock_text
from mrbcr_cli.errors import FingerprintError, IncompleteError, InterruptedRunError
from mrbcr_cli.finish import Outcome, complete, end_of_earlier_run
from mrbcr_cli.images import SourceSpec
from mrbcr_cli.places import RemoteError
from mrbcr_cli.plan import Plan, make_plan
from mrbcr_cli.planned import would_write
from mrbcr_cli.remote_output import goes_first, take_away
from mrbcr_cli.resume import enter, header_of, joined, ranges_of
from mrbcr_cli.settings import DeconvolveSettings
from mrbcr_cli.stream.cluster import Clients
from mrbcr_cli.stream.drive import DriveResult, drive
from mrbcr_cli.stream.engine import Job, RefusedError, describe, forget_run
from mrbcr_cli.stream.records import BlockRecord, Spent
from mrbcr_cli.stream.shards import RunLedger, Shard
from mrbcr_cli.stream.signals import stop_on_signal
from mrbcr_cli.workfolder import Target, check_target, clear_away, finished_before, standing_run, unfinished_run


def deconvolve_file(
    source: SourceSpec,
    target: Target,
    settings: DeconvolveSettings,
    reporter: Reporter,
    *,
    clients: Clients,
    command: str,
    dry_run: bool = False,
    shard: Shard | None = None,
) -> Outcome:
    """Deconvolve one image, or its share of it. Raises the MrbcrError that says what went wrong and what is left."""
    check_target(source, target)
    try:
        before = finished_before(target, resume=settings.resume, overwrite=settings.overwrite)
        contents = unfinished_run(target) if settings.resume else None
        if settings.overwrite and goes_first(target):
            reporter.info(
                f"note: {target.path}: stands until the new run begins, not until it is done; nothing can step aside "
                "at a URL"
            )
    except RemoteError as error:
        raise IncompleteError(f"{target.path}: cannot be looked at ({error.strerror})") from error
    plan = make_plan(source, settings, target.format, known_ranges=ranges_of(contents, settings))
    ours = contents is not None and contents.header.get("fingerprint") == plan.fingerprint
    if before is not None:
        if before.get("fingerprint") != plan.fingerprint:
            raise FingerprintError(
                f"{target.path}: exists, made from another input, model or settings; "
                "use --overwrite or another --output"
            )
        if ours or (target.remote and standing_run(target)[0] == plan.fingerprint):
            end_of_earlier_run(target)
        reporter.info(f"{target.path}: already done, nothing to do")
        return Outcome(target.path, "unchanged", {"fingerprint": plan.fingerprint})
    same = joined(plan, contents, settings, target)
    if same is None and contents is not None:
        plan = make_plan(source, settings, target.format)  # those ranges were another image's
    for note in (same or plan).notes:
        reporter.info(f"note: {note}")
    for warning in (same or plan).warnings:
        reporter.warn(f"{source.label}: {warning}")
        reporter.event("warning", input=source.label, output=str(target.path), message=warning)
    if dry_run:
        told = describe_plan(same or plan, target) | would_write(
            same or plan, target, settings, None if same is None else contents
        )
        return Outcome(target.path, "planned", told)
    try:
        return _carry_out(plan, target, settings, reporter, clients, command, shard)
    except OSError as error:
        raise IncompleteError(
            f"{target.path}: cannot write ({error.strerror or error}); what is done is kept, "
            "run the same command to resume"
        ) from error
    finally:
        forget_run()


def _carry_out(
    plan: Plan,
    target: Target,
    settings: DeconvolveSettings,
    reporter: Reporter,
    clients: Clients,
    command: str,
    shard: Shard | None,
) -> Outcome:
    started = time.monotonic()
    plan, ledger = enter(plan, target, settings, command, shard)
    total = len(plan.grid)
    share = range(total) if shard is None else shard.blocks(total)
    with ledger:
        resumed = sum(number in ledger.records for number in share)
        if resumed:
            reporter.info(f"resuming {target.path.name}: {resumed} of {len(share)} blocks are done")
        spent = Spent()
        result = _drive(plan, _job(plan, target, settings), target, ledger, reporter, clients, share, spent)
        _raise_if_unfinished(result, plan, target, ledger, share)
        _raise_if_input_changed(plan, target, ledger)
        figures: dict[str, Any] = {
            "blocks_resumed": resumed,
            "blocks_redone": len(result.redone),
            "workers": plan.share.workers,
        }
        wall_s = round(time.monotonic() - started, 3)
        figures["share_of_time"] = spent.shares(wall_s * plan.share.workers)
        if shard is not None:
            done = len(ledger.records)
            summary = {"shard": str(shard), "blocks": len(share), **figures, "seconds": {"blocks_wall": wall_s}}
        else:
            header = header_of(plan, target, settings, command)
            kept = {"blocks_wall_seconds": wall_s, **figures}
            xml = plan.spec.source_ome_xml
            summary = complete(header, ledger.records, target, reporter, source_xml=xml, of_process=kept) | figures
            total_s = round(time.monotonic() - started, 3)
            summary["seconds"] |= {"blocks_wall": wall_s, "finish": round(total_s - wall_s, 3), "total": total_s}
    if shard is not None:
        reporter.info(
            f"{target.path}: shard {shard} is done ({len(share)} of {total} blocks; {done} by all that this one knows "
            f"of); when all shards are, mrbcr finish {target.path}"
        )
        return Outcome(target.path, "shard", {"fingerprint": plan.fingerprint, **summary})
    clear_away(target)
    _say_done(target, plan, summary, reporter)
    return Outcome(target.path, "done", summary)


def _job(plan: Plan, target: Target, settings: DeconvolveSettings) -> Job:
    return Job(
        run=plan.fingerprint,
        source=plan.source,
        store=str(target.store),
        folder=str(target.partial) if target.remote else None,
        grid=plan.grid,
        methods=tuple(m.spec for m in plan.methods),
        ranges=plan.ranges,
        dtype=plan.spec.dtype.name,
        nan_policy=settings.nan_policy,
        torch_threads=plan.share.torch_threads,
    )


def _drive(
    plan: Plan,
    job: Job,
    target: Target,
    ledger: RunLedger,
    reporter: Reporter,
    clients: Clients,
    share: range,
    spent: Spent,
) -> DriveResult:
    remaining = [n for n in share if n not in ledger.records]
    if not remaining:
        return DriveResult()
    label = plan.source.stem
    shown: set[str] = set()
    with (
        stop_on_signal(reporter.info) as stop,
        reporter.progress(label, len(share), done=len(share) - len(remaining)) as progress,
    ):

        def on_done(record: BlockRecord) -> None:
            ledger.append(record)
            spent.add(record)
            pixels = math.prod(s.stop - s.start for s in plan.grid.block(record.block).core)
            progress.advance(pixels / 1e6)
            reporter.event("block", output=str(target.path), number=record.block, seconds=record.seconds)
            for note in record.notes:
                if note not in shown:
                    shown.add(note)
                    reporter.warn(note)

        return drive(clients, job, iter(remaining), plan.share.workers, on_done, stop)


def _raise_if_unfinished(result: DriveResult, plan: Plan, target: Target, ledger: RunLedger, share: range) -> None:
    resume = "run the same command to resume"
    if isinstance(result.fatal, RefusedError) and not ledger.records and ledger.path == target.ledger:
        # Refused input leaves nothing behind, unless work was done by then; the ledger goes first, its lock is ours.
        if target.remote:
            take_away(target)
        target.ledger.unlink()
        shutil.rmtree(target.partial)
        raise result.fatal
    if result.interrupted:
        kept = target.partial if target.remote else target.partial.name
        raise InterruptedRunError(f"{target.path}: interrupted; finished blocks are kept in {kept}, {resume}")
    if result.fatal is not None:
        raise IncompleteError(f"{target.path}: stopped ({describe(result.fatal)}); finished blocks are kept, {resume}")
    if result.failed:
        number, why = next(iter(result.failed.items()))
        raise IncompleteError(
            f"{target.path}: {len(result.failed)} of {len(share)} blocks failed (block {number}: {why}); "
            f"the others are kept, {resume}"
        )


def _raise_if_input_changed(plan: Plan, target: Target, ledger: RunLedger) -> None:
    """Pixels that were read while the input changed or was out of reach are not to be trusted."""
    from mrbcr_cli.images import open_source

    reader = open_source(plan.source)
    try:
        same = reader.fingerprint() == plan.input_fingerprint
    finally:
        reader.close()
    if not same:
        if target.remote and ledger.path == target.ledger:
            take_away(target)
        ledger.path.unlink()
        raise FingerprintError(f"{plan.source.label}: changed while it was read; run the same command to start again")


def describe_plan(plan: Plan, target: Target | None) -> dict[str, Any]:
    """Return a plan as JSON-able facts, for --dry-run and `mrbcr info --plan`."""
    described: dict[str, Any] = {
        "input": plan.source.label,
        "axes": plan.grid.axes,
        "shape": list(plan.grid.shape),
        "dtype": plan.spec.dtype.name,
        "blocks": len(plan.grid),
        "block_shape": list(plan.grid.block_shape),
        "halo": list(plan.grid.halo),
        "workers": plan.share.workers,
        "torch_threads": plan.share.torch_threads,
        "expected_memory_bytes": plan.expected_bytes,
        "megapixels_with_halo": round(plan.read_megapixels, 3),
        "channels": [m.description for m in plan.methods],
        "ranges": [asdict(r) for r in plan.ranges],
        "fingerprint": plan.fingerprint,
        "notes": list(plan.notes),
        "domain": list(plan.domain),
        "warnings": list(plan.warnings),
    }
    return described if target is None else {"output": str(target.path), "format": target.format, **described}


def _shares_text(shares: dict[str, float]) -> str:
    """What the workers did, in words, where reading and writing cost more than a tenth of their time."""
    if shares["read"] + shares["write"] <= 0.1:
        return ""
    named = {"reading": "read", "computing": "compute", "writing": "write", "waiting": "wait"}
    return "; " + ", ".join(f"{100 * shares[key]:.0f} % {word}" for word, key in named.items())


def _say_done(target: Target, plan: Plan, summary: dict[str, Any], reporter: Reporter) -> None:
    fresh = summary["pixels"] * (1 - summary["blocks_resumed"] / summary["blocks"])
    speed = fresh / 1e6 / max(summary["seconds"]["total"], 1e-9)
    reporter.info(
        f"{target.path}: {'x'.join(map(str, plan.grid.shape))} {plan.grid.axes} in "
        f"{clock_text(summary['seconds']['total'])} ({speed:.2f} Mpixel/s{_shares_text(summary['share_of_time'])})"
    )
    if summary["clipped"]:
        share = 100 * summary["clipped_fraction"]
        reporter.info(
            f"{share:.2g} % of the pixels left the range of {plan.spec.dtype} and were clipped; "
            "--output-dtype float32 keeps them"
        )
    if summary["non_finite"]:
        reporter.warn(f"{summary['non_finite']} pixels of the input were NaN or infinite")
