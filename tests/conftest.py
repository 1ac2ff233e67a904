"""Fixtures that all tests share. `shared` is the only place that decides whether the reference data are here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.outputs import Outputs, make_outputs

SHARED = Path(os.environ.get("MRBCR_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real images, PSFs and published weights; the test skips where a plain clone has none."""
    if not (SHARED / "DESIGN.md").is_file():
        pytest.skip("reference data not found beside the repository (set MRBCR_SHARED to its folder)")
    return SHARED


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    """An image of two named channels, deconvolved and written in every format; not to be changed."""
    return make_outputs(tmp_path_factory.mktemp("outputs"))


@pytest.fixture(autouse=True, scope="session")
def no_measurements(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a user has measured on this machine does not choose the blocks of tests; nor do tests leave any."""
    os.environ["MRBCR_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
