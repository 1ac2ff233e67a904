"""OME-Zarr stores as other programs write them: each holds the pixels and metadata it is given, in any layout of zarr.

Nothing here is read back by the reader under test; that is what the tests do.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import zarr

UNITS = {"t": ("time", "second"), "c": ("channel", None), "z": ("space", "micrometer")}


def pixels(shape: tuple[int, ...], dtype: str = "uint16") -> np.ndarray[Any, Any]:
    values = np.arange(int(np.prod(shape))) * 7919 % 60000
    return values.reshape(shape).astype(dtype)


def axis(name: str) -> dict[str, Any]:
    kind, unit = UNITS.get(name, ("space", "micrometer"))
    return {"name": name, "type": kind} | ({"unit": unit} if unit else {})


def multiscale(axes: str, scale: list[float] | None = None, path: str = "0") -> dict[str, Any]:
    transforms = [{"type": "scale", "scale": scale or [1.0] * len(axes)}]
    return {
        "version": "0.4",
        "axes": [axis(name) for name in axes],
        "datasets": [{"path": path, "coordinateTransformations": transforms}],
    }


def put_json(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def make_array(folder: Path, data: np.ndarray[Any, Any], version: str = "0.4", **how: Any) -> None:
    """An array as others write them; `how` goes to zarr."""
    how.setdefault("chunks", tuple(min(n, 5) for n in data.shape))
    with (
        warnings.catch_warnings()
    ):  # zarr warns of codecs and types that v3 does not standardise; files have them all the same
        warnings.simplefilter("ignore")
        array = zarr.create_array(folder, shape=data.shape, dtype=data.dtype, zarr_format=int(version[-1]) - 2, **how)
        array[...] = data


def make_image(
    root: Path, data: np.ndarray[Any, Any], axes: str, version: str = "0.4", *, extra: Any = None, **how: Any
) -> Path:
    make_array(root / "0", data, version, **how)
    ome = {"multiscales": [multiscale(axes)], **(extra or {})}
    if version == "0.4":
        put_json(root / ".zgroup", {"zarr_format": 2})
        put_json(root / ".zattrs", ome)
    else:
        attributes = {"ome": {"version": "0.5", **ome}}
        put_json(root / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes})
    return root


def whole(reader: Any) -> Any:
    return reader.read(tuple(slice(0, n) for n in reader.info.shape))


STORES: dict[str, dict[str, Any]] = {
    "v2": {"version": "0.4", "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "v2-dots": {"version": "0.4", "chunk_key_encoding": {"name": "v2", "separator": "."}},
    "v2-big-endian": {"version": "0.4", "dtype": ">u2"},
    "v2-fortran": {"version": "0.4", "order": "F"},
    "v2-raw": {"version": "0.4", "compressors": None},
    "v2-delta-zlib": {"version": "0.4", "compressors": {"id": "zlib", "level": 1}, "float": True},
    "v3": {"version": "0.5"},
    "v3-sharded": {"version": "0.5", "chunks": (1, 4, 5), "shards": (2, 8, 10)},
    "v3-gzip": {"version": "0.5", "compressors": {"name": "gzip", "configuration": {"level": 1}}},
    "v3-big-endian": {"version": "0.5", "serializer": {"name": "bytes", "configuration": {"endian": "big"}}},
    "v3-numcodecs": {"version": "0.5", "compressors": {"name": "numcodecs.lzma", "configuration": {}}},
    "v3-v2-keys": {"version": "0.5", "chunk_key_encoding": {"name": "v2", "separator": "."}},
}
