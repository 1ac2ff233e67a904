"""Fixtures that all tests share. `shared` is the only place that decides whether the reference data are here."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mrbcr_server import write_client
from tests.outputs import Outputs, make_outputs

TOP = Path(__file__).resolve().parents[1]
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


@pytest.fixture(scope="session")
def mrbcr_bin(no_measurements: None) -> Iterator[Path]:
    """A folder for the PATH with an `mrbcr` that starts at once, and this Python as python and python3."""
    with tempfile.TemporaryDirectory(prefix="mrbcr-") as name:  # short: the path of a socket has a limit
        folder = Path(name)
        (folder / "bin").mkdir()
        address = folder / "socket"
        environment = {**os.environ, "PYTHONPATH": str(TOP), "OMP_NUM_THREADS": "2", "MPLBACKEND": "Agg"}
        command = [sys.executable, "-m", "tests.mrbcr_server", str(address)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=TOP) as server:
            try:
                assert server.stdout is not None
                assert server.stdout.readline() == "ready\n"
                write_client(folder / "bin" / "mrbcr", address)
                for python in ("python", "python3"):
                    (folder / "bin" / python).write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
                    (folder / "bin" / python).chmod(0o755)
                yield folder / "bin"
            finally:
                server.kill()
