"""Fixtures of the tests at URLs: a server of S3 for the whole folder, and a job whose input lies in its bucket.

The job is not to be changed. What needs the extra [remote] is imported by the fixtures: a conftest cannot skip.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tifffile

from tests.helpers import deconvolve, spots, tiny_weights
from tests.s3_server import s3_server


@pytest.fixture(scope="package", autouse=True)
def s3() -> Iterator[str]:
    """A server of S3 on a free port, with an empty bucket; its address."""
    from tests.remote.bucket import forget, fsspec

    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("bucket")
        yield environment["AWS_ENDPOINT_URL"]
        forget()


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, where working folders come to lie."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture(scope="package")
def job(tmp_path_factory: pytest.TempPathFactory, s3: str) -> dict[str, Any]:
    """An input of 12 blocks as TIFF, as OME-Zarr on a disk and in the bucket; arguments; the outputs on a disk."""
    from tests.remote.bucket import BUCKET, upload

    folder = tmp_path_factory.mktemp("job")
    weights = tiny_weights(folder / "tiny.safetensors")
    tifffile.imwrite(folder / "in.ome.tif", spots((3, 200, 200)), metadata={"axes": "ZYX", "PhysicalSizeX": 0.1})
    args = ("-m", weights, "--tile-size", 112, "-q")
    assert deconvolve(folder / "in.ome.tif", *args, "-o", folder / "in.ome.zarr") == 0
    upload(folder / "in.ome.zarr", f"{BUCKET}/in.ome.zarr")
    whole = folder / "o.ome.zarr"
    assert deconvolve(folder / "in.ome.zarr", *args, "-o", whole) == 0
    return {"folder": folder, "args": args, "whole": whole, "weights": weights}
