"""Processes for tasks: nothing dropped in silence, whatever the moment of a stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mrbcr_cli.errors import IncompleteError, InputError, InterruptedRunError
from mrbcr_cli.stream.pool import drive, workers_for

OUTPUT, PARTIAL = Path("out.zarr"), Path("out.zarr.partial")


def _square(offset: int, block: int) -> int:
    return block * block + offset


def _slow(block: int) -> int:
    time.sleep(0.2)
    return block


def _fails(block: int) -> int:
    if block == 1:
        raise InputError("block 1 is bad")
    return block


def _make_square() -> Callable[[int], int]:
    return partial(_square, 7)


def _make_slow() -> Callable[[int], int]:
    return _slow


def _make_failing() -> Callable[[int], int]:
    return _fails


def run(make: Any, blocks: Iterable[int], workers: int, on_done: Any, stop: threading.Event, window: int = 6) -> None:
    """All blocks by `make()` on so many processes."""
    with workers_for(workers, make) as submit:
        drive(((block,) for block in blocks), submit, window, on_done, stop.is_set, OUTPUT, PARTIAL)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_block_is_done_once(workers: int) -> None:
    seen = list[int]()
    run(_make_square, range(11), workers, seen.append, threading.Event())
    assert sorted(seen) == [k * k + 7 for k in range(11)]


def test_a_stop_with_blocks_in_the_queue_drops_none() -> None:
    """The stop comes when all blocks are handed out and some still wait: these are done, so the run is complete."""
    stop, seen = threading.Event(), list[int]()

    def blocks() -> Iterator[int]:
        yield from range(5)
        stop.set()

    run(_make_slow, blocks(), 2, seen.append, stop)
    assert sorted(seen) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_with_blocks_left_is_not_complete(workers: int) -> None:
    """What was begun is handed over, what was not is not, and the run says that it was interrupted."""
    stop, seen = threading.Event(), list[int]()

    def on_done(block: int) -> None:
        seen.append(block)
        stop.set()

    with pytest.raises(InterruptedRunError, match=r"out\.zarr\.partial"):
        run(_make_slow, range(9), workers, on_done, stop, window=workers)
    assert sorted(seen) == list(range(workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_block_is_raised(workers: int) -> None:
    with pytest.raises(IncompleteError, match="block 1 is bad"):
        run(_make_failing, range(4), workers, lambda _: None, threading.Event())
