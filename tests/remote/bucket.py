"""Trees of keys below a URL or a folder, and when two of them are the same.

Every byte counts, but for what names a command or a place. The import skips its test where a package is missing.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from mrbcr_cli.places import place
from tests.shard_runs import without_command

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("s3fs", reason="the extra [remote] is not installed")
pytest.importorskip("moto.server", reason="moto[server] of the extra [test] is not installed")

BLOCKS = 12
BUCKET = "s3://bucket"


def forget() -> None:
    """Have the next call connect anew."""
    fsspec.filesystem("s3").clear_instance_cache()


def upload(folder: Path, url: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            (place(url) / path.relative_to(folder)).write_bytes(path.read_bytes())  # type: ignore[union-attr]


def tree(where: str | Path) -> dict[str, bytes]:
    """Every key below a place and its bytes."""
    if isinstance(where, Path):
        return {p.relative_to(where).as_posix(): p.read_bytes() for p in where.rglob("*") if p.is_file()}
    fs, key = fsspec.url_to_fs(where)
    fs.invalidate_cache()
    return {name[len(key) :].lstrip("/"): fs.cat_file(name) for name in fs.find(key)} if fs.exists(key) else {}


def without_paths(value: Any) -> Any:
    """JSON without what tells where the source lay, and how many worked on it."""
    if isinstance(value, dict):
        return {k: without_paths(v) for k, v in value.items() if k not in ("text", "path", "folder", "workers")}
    return [without_paths(v) for v in value] if isinstance(value, list) else value


def documents(data: bytes) -> Any:
    return without_paths(without_command([json.loads(line) for line in data.splitlines()]))


def assert_same(one: str | Path, other: str | Path) -> None:
    """The same keys and the same bytes, apart from what names a command or a place."""
    a, b = tree(one), tree(other)
    assert sorted(a) == sorted(b)
    for name in a:
        if name.endswith(".jsonl"):
            assert documents(a[name]) == documents(b[name]), name
        elif name.endswith(("zarr.json", ".zattrs")):
            both = [without_paths(without_command(json.loads(t[name]))) for t in (a, b)]
            assert both[0] == both[1], name
        else:
            assert a[name] == b[name], name


def url(request: pytest.FixtureRequest, scheme: str = BUCKET) -> str:
    """An output of this test's own."""
    return f"{scheme}/{zlib.crc32(request.node.name.encode()):08x}/o.ome.zarr"


def partial_of(work: Path) -> Path:
    (found,) = work.glob("*.partial")
    return found
