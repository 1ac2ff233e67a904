"""What scaling out costs: processes of this machine, and the real `drive` on up to 64 workers whose blocks only sleep.

The workers of the second part are dask workers in threads of this process: they stand for machines, and share its
interpreter with scheduler and driver, so that what is measured is a lower bound of what 64 machines would do.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil

from mrbcr_cli.cluster_settings import ClusterSettings
from mrbcr_cli.images import SourceSpec
from mrbcr_cli.intensity import survey_boxes
from mrbcr_cli.stream import drive as driving
from mrbcr_cli.stream.blocks import Grid
from mrbcr_cli.stream.cluster import Clients, quietly
from mrbcr_cli.stream.engine import Job
from mrbcr_cli.stream.ledger import Ledger
from mrbcr_cli.stream.records import BlockRecord, Records
from tests.benchmarks.common import command, stack

MANY = 1_000_000
_LIMIT_S = 300.0


def measure(scratch: Path, quick: bool) -> list[dict[str, Any]]:
    """Rows: seconds of 1 and 2 processes; efficiency of 1 to 64 workers; time and memory a block; time to the first."""
    return [
        *_processes(scratch, quick),
        *_sleeping(scratch, (1, 4) if quick else (1, 4, 16, 64), 3 if quick else 60),
        *_nothing(scratch, 2_000 if quick else MANY),
        *_first_block(scratch, 10_000 if quick else MANY),
        *_remembered(20_000 if quick else MANY),
        *_sent(),
    ]


def _processes(scratch: Path, quick: bool) -> Iterator[dict[str, Any]]:
    planes, size = (1, 512) if quick else (3, 2048)
    source = stack(scratch / "in.zarr", planes, size, filled=planes)
    walls = {}
    for label, extra in (
        ("threads", ("--workers", 2)),
        ("1 process", ("--cluster", "local", "--workers", 1)),
        ("2 processes", ("--cluster", "local", "--workers", 2)),
    ):
        output = scratch / f"{label}.ome.zarr"
        arguments = command("deconvolve", source, "-o", output, "--tile-size", 512, "-q", "--json", *extra)
        said = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
        walls[label] = json.loads(said.splitlines()[-1])["seconds"]["blocks_wall"]
        blocks = planes * (size // 512) ** 2
        note = f"{blocks} blocks of 512 px; with the start of the processes, without planning and pyramid"
        yield {"figure": f"deconvolve, {label}", "value": walls[label], "unit": "s", "note": note}
    yield {
        "figure": "speed-up of 2 processes over 1",
        "value": round(walls["1 process"] / walls["2 processes"], 2),
        "unit": "ratio",
        "note": "one process has all cores for torch, two have half of them each",
    }


def _sleeping(scratch: Path, counts: tuple[int, ...], each: int) -> Iterator[dict[str, Any]]:
    for workers in counts:
        blocks = each * workers
        with _stub(workers, scratch, lambda: time.sleep(1.0)) as run:
            started, busy = time.perf_counter(), time.process_time()
            with Ledger(scratch / f"{workers}.jsonl", {}) as ledger:
                run(blocks, ledger.append, threading.Event())
            wall, busy = time.perf_counter() - started, time.process_time() - busy
        yield {
            "figure": f"efficiency, {workers} workers, blocks of 1 s",
            "value": round(100 * blocks / workers / wall, 1),
            "unit": "%",
            "note": f"{blocks} blocks in {wall:.1f} s with the check of the workers and the ledger, "
            f"{1e3 * busy / blocks:.1f} ms/block of a core; bar 90 at 64",
        }


def _nothing(scratch: Path, blocks: int) -> Iterator[dict[str, Any]]:
    process, stop = psutil.Process(), threading.Event()
    done, samples = 0, list[tuple[int, float]]()

    def on_done(_: BlockRecord) -> None:
        nonlocal done
        done += 1
        if done % 50 == 0 and len(samples) < 20_000:
            samples.append((done, process.memory_info().rss / 1e6))
            if time.perf_counter() - started > _LIMIT_S:
                stop.set()

    with _stub(4, scratch, lambda: None) as run:
        started, busy = time.perf_counter(), time.process_time()
        run(blocks, on_done, stop)
        wall, busy = time.perf_counter() - started, time.process_time() - busy
    late = [s for s in samples if s[0] > done / 4]
    slope = float(np.polyfit(*zip(*late, strict=True), 1)[0])
    yield {
        "figure": "scheduler, driver and 4 workers, a block that does nothing",
        "value": round(1e3 * wall / done, 3),
        "unit": "ms/block",
        "note": f"{done} blocks in {wall:.0f} s, of which {1e3 * busy / done:.3f} ms/block of a core",
    }
    yield {
        "figure": "growth of memory, by a line through the last three quarters",
        "value": round(slope * 1e6, 1),
        "unit": "MB per 1,000,000 blocks",
        "note": f"{late[0][1]:.0f} MB after {late[0][0]} blocks, {late[-1][1]:.0f} MB after {late[-1][0]}; no ledger",
    }


def _first_block(scratch: Path, blocks: int) -> Iterator[dict[str, Any]]:
    """The whole command on a sparse stack whose planes hold an image where the survey looks, as in a full one."""
    sampled = sorted({region[1].start for region in survey_boxes((1, blocks, 512, 512))})
    source = stack(scratch / "long.zarr", blocks, 512, filled=1, also=sampled)
    arguments = command("deconvolve", source, "-o", scratch / "long.ome.zarr", "-q", "--json", "--no-resume")
    for label, extra in (("threads", ()), ("2 processes", ("--cluster", "local", "--workers", "2"))):
        started = time.perf_counter()
        process = subprocess.Popen([*arguments, *extra], stdout=subprocess.PIPE, text=True)
        if process.stdout is None:
            raise RuntimeError("no pipe")
        for line in process.stdout:
            if json.loads(line)["event"] == "block":
                break
        else:
            raise RuntimeError("the run ended without a block")
        took = time.perf_counter() - started
        process.terminate()
        process.communicate()
        yield {
            "figure": f"command to first block of {blocks}, {label}",
            "value": round(took, 2),
            "unit": "s",
            "note": "an OME-Zarr, one block a plane of 512 px, the default model, its survey included; bar 10",
        }


def _remembered(blocks: int) -> Iterator[dict[str, Any]]:
    process = psutil.Process()
    before, records = process.memory_info().rss, Records()
    for number in range(blocks):
        times = {"read": 0.1 + number, "compute": 0.8, "write": 0.1}
        records[number] = BlockRecord(number, f"{number:032x}", seconds=times)
    yield {
        "figure": "records of finished blocks, in the driver",
        "value": round((process.memory_info().rss - before) / len(records)),
        "unit": "MB per 1,000,000 blocks",
    }


def _sent() -> Iterator[dict[str, Any]]:
    from mrbcr_cli.stream.worker import work_on

    task = pickle.dumps((work_on, ("0123456789ab", MANY, None, None)))
    yield {"figure": "function and arguments of a task, pickled", "value": len(task), "unit": "bytes"}


@contextmanager
def _stub(workers: int, scratch: Path, work: Callable[[], None]) -> Iterator[Callable[..., None]]:
    """A function that drives so many blocks, of which each does `work` and no more, on so many dask workers."""

    def run_block(_: Job, number: int) -> BlockRecord:
        work()
        return BlockRecord(number, "0" * 32, seconds={"read": 0.1, "compute": 0.8, "write": 0.1})

    def run(blocks: int, on_done: Callable[[BlockRecord], None], stop: threading.Event) -> None:
        grid = Grid("ZYX", (blocks, 64, 64), (blocks, 64, 64), (1, 64, 64), (0, 0, 0), (0, 0, 0), {})
        job = Job("stub", SourceSpec(("none",), "none"), str(scratch / "none.zarr"), grid, (), (), "u2", "refuse", 1)
        result = driving.drive(clients, job, iter(range(blocks)), workers, on_done, stop)
        if result.fatal is not None or result.failed:
            raise RuntimeError(f"{result.fatal} {result.failed}")

    with (
        mock.patch("mrbcr_cli.stream.engine.run_block", run_block),
        mock.patch("mrbcr_cli.stream.engine.try_out", lambda _: None),
        _StandIns(workers) as clients,
    ):
        clients.get()
        yield run


class _StandIns(Clients):
    """Clients as of --cluster local, but each worker is a thread of this process."""

    def __init__(self, workers: int) -> None:
        super().__init__(ClusterSettings(cluster="local", workers=workers), workers)

    def _manager(self) -> AbstractContextManager[Any]:
        return quietly(_stand_ins(self.threads))


@contextmanager
def _stand_ins(workers: int) -> Iterator[Any]:
    import dask
    from distributed import Client, LocalCluster

    from mrbcr_cli.stream.cluster_local import QUIET, SCHEDULER, SILENT, extensions

    with (
        dask.config.set({**QUIET, **SCHEDULER}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            silence_logs=SILENT,
            scheduler_kwargs={"extensions": extensions()},
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client
