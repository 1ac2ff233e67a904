"""OME-Zarr that cannot be read: damage, types that are no intensities and ways out of the store are refused by name.

A chunk that is damaged is an error, never pixels; only one that is missing is the fill value.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.omezarr import is_zarr, open_omezarr
from tests.images.omezarr_files import STORES, make_array, make_image, multiscale, pixels, put_json, whole


@pytest.mark.parametrize("dtype", ["bool", "complex64", "S4", "U3", "M8[s]"])
def test_types_that_are_no_intensities_are_refused(tmp_path: Path, dtype: str) -> None:
    make_array(tmp_path / "a.zarr", np.zeros((4, 4), dtype), "0.4")
    with pytest.raises(InputError, match="cannot be deconvolved"):
        open_omezarr(tmp_path / "a.zarr")


def test_structured_arrays_and_empty_axes_are_refused(tmp_path: Path) -> None:
    make_array(tmp_path / "s.zarr", np.zeros((4, 4), [("a", "i2"), ("b", "f4")]), "0.4")
    make_array(tmp_path / "z.zarr", np.zeros((0, 4), "u2"), "0.4", chunks=(1, 4))
    for name in ("s", "z"):
        with pytest.raises(InputError):
            open_omezarr(tmp_path / f"{name}.zarr")


@pytest.mark.parametrize("name", ["../secret", "/secret", "0/../../secret", "C:\\secret", "..\\secret", "", 3, "a\0b"])
def test_dataset_paths_may_not_leave_the_store(tmp_path: Path, name: object) -> None:
    make_array(tmp_path / "secret", pixels((8, 9)))
    path = str(tmp_path / "secret") if name == "/secret" else name
    entry = multiscale("yx") | {"datasets": [{"path": path}]}
    root = make_image(tmp_path / "a.zarr", pixels((8, 9)), "yx", extra={"multiscales": [entry]})
    with pytest.raises(InputError, match=r"outside the store|no path"):
        open_omezarr(root)


def test_links_may_not_leave_the_store(tmp_path: Path) -> None:
    make_array(tmp_path / "secret", pixels((8, 9)))
    root = make_image(tmp_path / "a.zarr", pixels((8, 9)), "yx")
    shutil.rmtree(root / "0")
    (root / "0").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="leaves the store"):
        open_omezarr(root)
    (root / "0").unlink()
    (root / "0").symlink_to(root / "0")
    with pytest.raises(InputError):
        open_omezarr(root)


def test_a_link_to_the_store_itself_is_fine(tmp_path: Path) -> None:
    root = make_image(tmp_path / "a.zarr", pixels((8, 9)), "yx")
    (tmp_path / "link.zarr").symlink_to(root)
    assert open_omezarr(tmp_path / "link.zarr").info.shape == (8, 9)


@pytest.mark.parametrize("document", ["{", "[]", '{"multiscales": 3}', '{"multiscales": [{}]}', "[" * 100_000])
def test_damaged_documents_are_refused(tmp_path: Path, document: str) -> None:
    root = make_image(tmp_path / "a.zarr", pixels((8, 9)), "yx")
    (root / ".zattrs").write_text(document)
    with pytest.raises(InputError, match=r"a\.zarr") as caught:
        open_omezarr(root)
    assert len(str(caught.value).splitlines()) <= 2


def test_a_dataset_that_is_not_there_is_refused(tmp_path: Path) -> None:
    root = make_image(tmp_path / "a.zarr", pixels((8, 9)), "yx")
    shutil.rmtree(root / "0")
    with pytest.raises(InputError, match="not there"):
        open_omezarr(root)


def test_an_unknown_codec_is_refused_when_opening(tmp_path: Path) -> None:
    root = make_image(tmp_path / "a.zarr", pixels((8, 9)), "yx")
    document = json.loads((root / "0" / ".zarray").read_text())
    put_json(root / "0" / ".zarray", document | {"compressor": {"id": "jxl-from-mars"}})
    with pytest.raises(InputError, match="zarr cannot open this array"):
        open_omezarr(root)


@pytest.mark.parametrize("path", ["missing.zarr", "empty", "file.zarr"])
def test_what_is_no_store_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.zarr").write_bytes(b"PK")
    assert not is_zarr(tmp_path / path)
    with pytest.raises(InputError):
        open_omezarr(tmp_path / path)


def damaged(path: Path, how: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "empty": b"",
            "half": content[:middle],
            "minus one": content[:-1],
            "garbage": bytes(range(256)) * (len(content) // 256 + 1),
        }[how]
    )


@pytest.mark.parametrize("how", ["empty", "half", "minus one", "garbage"])
@pytest.mark.parametrize("name", ["v2", "v2-raw", "v3", "v3-sharded", "v3-gzip", "v3-start-index"])
def test_a_damaged_chunk_is_an_error_that_names_array_and_region(tmp_path: Path, name: str, how: str) -> None:
    if name == "v3-start-index":
        shards = {"shape": (2, 8, 10), "index_location": "start"}
        store: dict[str, Any] = {"version": "0.5", "chunks": (1, 4, 5), "shards": shards, "compressors": None}
    else:
        store = dict(STORES[name])
    root = make_image(tmp_path / "a.zarr", pixels((2, 8, 10)), "zyx", **store)
    files = [f for f in (root / "0").rglob("*") if f.is_file() and not f.name.startswith(".") and f.suffix != ".json"]
    damaged(max(files), how)
    with pytest.raises(InputError, match=r"a\.zarr.*\[0:2, 0:8, 0:10\]"):
        whole(open_omezarr(root))
    assert np.array_equal(
        whole(open_omezarr(make_image(tmp_path / "b.zarr", pixels((2, 8, 10)), "zyx", **store))), pixels((2, 8, 10))
    )


def test_a_missing_chunk_is_the_fill_value(tmp_path: Path) -> None:
    root = make_image(
        tmp_path / "a.zarr",
        pixels((10, 10)) + 1,
        "yx",
        fill_value=7,
        chunk_key_encoding=STORES["v2"]["chunk_key_encoding"],
    )
    (root / "0" / "1" / "1").unlink()
    read = whole(open_omezarr(root))
    assert (read[5:, 5:] == 7).all()
    np.testing.assert_array_equal(read[:5], pixels((10, 10))[:5] + 1)
