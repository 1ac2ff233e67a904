"""Fixtures of the simulated stacks. They change how a stack is cut into blocks, never what it shows."""

from __future__ import annotations

import pytest

from mrbcr_cli.simulate import stack_plan
from mrbcr_cli.simulate.stack_grid import make_grid

SMALL_BLOCK = (5, 48, 32)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut even small stacks into many blocks, none of which divides them."""
    monkeypatch.setattr(stack_plan, "choose_grid", lambda shape, *_: make_grid(shape, SMALL_BLOCK))
