"""Signals: the first asks a run to stop cleanly, the second Ctrl-C ends it at once; both leave it resumable.

Invariant: handlers only set an event; the engine looks at it between blocks, and the former handlers come back after.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mrbcr_cli.errors import InterruptedRunError

_ENDING = (signal.SIGTERM, *((signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ()))
"""What a scheduler sends before it takes the node away."""


@contextmanager
def stop_on_signal(say: Callable[[str], None]) -> Iterator[threading.Event]:
    """Set an event on SIGINT, SIGTERM or SIGUSR1, once; the second Ctrl-C ends the process at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # handlers can be set in the main thread only; a caller elsewhere has its own
        return

    def handle(number: int, _frame: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            # At once: waiting for the workers would take as long as the block under way. The ledger is sound.
            say("ended at once; run the same command to resume")
            os._exit(InterruptedRunError.exit_code)
        stop.set()
        say(f"{signal.Signals(number).name}: finishing the blocks under way, then stopping")

    with _handled((signal.SIGINT, *_ENDING), handle):
        yield stop


@contextmanager
def interrupt_on_signal() -> Iterator[None]:
    """Turn SIGTERM and SIGUSR1 into KeyboardInterrupt where no blocks are under way (planning, pyramid, TIFF)."""

    def handle(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handled(_ENDING, handle):
        yield


@contextmanager
def _handled(numbers: tuple[signal.Signals, ...], handler: Callable[[int, object], None]) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
