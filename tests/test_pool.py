"""Processes for blocks: nothing dropped in silence, whatever the moment of a stop."""

from __future__ import annotations

import threading
import time

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


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_with_blocks_in_the_queue_is_not_complete(workers: int) -> None:
    """All blocks fit into the queue, so none is left to hand out when the stop comes; some are never made."""
    stop, seen = threading.Event(), list[int]()

    def on_done(block: int, _: int) -> None:
        seen.append(block)
        stop.set()

    complete = run_blocks(_slow, 0, range(3 * workers), workers=workers, on_done=on_done, stop=stop)
    assert complete == (sorted(seen) == list(range(3 * workers)))
    assert workers > 1 or not complete


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_block_is_raised(workers: int) -> None:
    with pytest.raises(InputError, match="block 1 is bad"):
        run_blocks(_fails, 0, range(4), workers=workers, on_done=lambda *_: None, stop=threading.Event())
