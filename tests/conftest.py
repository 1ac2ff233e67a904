"""Fixtures that all tests share. `shared` is the only place that decides whether the reference data are here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("MRBCR_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real images, PSFs and published weights; the test skips where a plain clone has none."""
    if not (SHARED / "DESIGN.md").is_file():
        pytest.skip("reference data not found beside the repository (set MRBCR_SHARED to its folder)")
    return SHARED
