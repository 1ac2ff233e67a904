"""Processes for blocks: nothing dropped in silence, whatever the moment of a stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from mrbcr_cli.errors import InputError
from mrbcr_cli.stream.pool import run_blocks


def _square(offset: int, block: int) -> int:
    return block * block + offset


def _slow(_: int, block: int) -> int:
    time.sleep(0.2)
    return block


def _fails(_: int, block: int) -> int:
    if block == 1:
        raise InputError("block 1 is bad")
    return block


@pytest.mark.parametrize("workers", [1, 2])
def test_every_block_is_done_once(workers: int) -> None:
    seen: dict[int, int] = {}
    assert run_blocks(_square, 7, range(11), workers=workers, on_done=seen.__setitem__, stop=threading.Event())
    assert seen == {k: k * k + 7 for k in range(11)}


def test_a_stop_with_blocks_in_the_queue_is_not_complete() -> None:
    """The stop comes when all blocks are handed out and some still wait: these are dropped, so the run is not done."""
    stop, seen = threading.Event(), list[int]()

    def blocks() -> Iterator[int]:
        yield from range(5)
        stop.set()

    complete = run_blocks(_slow, 0, blocks(), workers=2, on_done=lambda block, _: seen.append(block), stop=stop)
    assert len(seen) < 5 and not complete


def test_a_stop_in_one_process() -> None:
    stop, seen = threading.Event(), list[int]()

    def on_done(block: int, _: int) -> None:
        seen.append(block)
        stop.set()

    assert not run_blocks(_square, 0, range(3), workers=1, on_done=on_done, stop=stop)
    assert seen == [0]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_block_is_raised(workers: int) -> None:
    with pytest.raises(InputError, match="block 1 is bad"):
        run_blocks(_fails, 0, range(4), workers=workers, on_done=lambda *_: None, stop=threading.Event())
