"""A store of pairs from elsewhere is not trusted: what does not fit together, leads out or is damaged is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mrbcr_cli.errors import InputError
from mrbcr_cli.images.pairs_store import create_pairs, finish_pairs, read_info, read_pairs, write_shard


@pytest.fixture
def store(tmp_path: Path) -> Path:
    root = tmp_path / "pairs.zarr"
    rng = np.random.default_rng(0)
    create_pairs(root, 3, 16, np.dtype(np.uint16))
    sharp = rng.random((3, 16, 16), np.float32)
    write_shard(root, 0, (1000 * sharp).astype(np.uint16), sharp, [{"index": k} for k in range(3)])
    finish_pairs(root, {"train": (0, 2), "test": (2, 3)}, {"command": "mrbcr simulate pairs"})
    return root


def test_what_was_written_comes_back(store: Path) -> None:
    info = read_info(store)
    assert (info.count, info.patch_px, info.splits) == (3, 16, {"train": (0, 2), "test": (2, 3)})
    blurred, sharp, records = read_pairs(store, 1, 3)
    assert np.array_equal(blurred, (1000 * sharp).astype(np.uint16))
    assert [record["index"] for record in records] == [1, 2]


def test_arrays_that_do_not_fit_together_are_refused(store: Path) -> None:
    document = store / "sharp" / "zarr.json"
    claims = json.loads(document.read_text())
    claims["shape"][0] = 4
    document.write_text(json.dumps(claims))
    with pytest.raises(InputError, match="do not fit together"):
        read_info(store)


def test_an_array_that_is_a_link_out_of_the_store_is_refused(store: Path, tmp_path: Path) -> None:
    (store / "sharp").rename(tmp_path / "elsewhere")
    (store / "sharp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="no finished training pairs"):
        read_info(store)


def test_a_damaged_record_is_an_error_that_names_the_pairs(store: Path) -> None:
    import zarr

    records = zarr.open_array(store / "records", mode="r+")
    records[1, :5] = np.frombuffer(b"{{{{{", np.uint8)
    with pytest.raises(InputError, match="a record of pairs 0 to 2 is no JSON"):
        read_pairs(store, 0, 3)
