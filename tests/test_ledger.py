"""The ledger: what it says is done survives any kill; what it does not say is not done."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrbcr_cli.stream.ledger import BlockRecord, Ledger, read_ledger


def written(path: Path, count: int = 3) -> bytes:
    with Ledger(path, {"fingerprint": "abc"}) as ledger:
        for number in range(count):
            ledger.append(BlockRecord(number, f"sum{number}", clipped=number, seconds={"read": 0.5}, notes=("n",)))
    return path.read_bytes()


def test_records_come_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    written(path)
    contents = read_ledger(path)
    assert contents is not None
    assert contents.header["fingerprint"] == "abc"
    assert contents.records[2] == BlockRecord(2, "sum2", clipped=2, seconds={"read": 0.5}, notes=("n",))


def test_cut_anywhere_it_holds_a_prefix_of_the_records_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    data = written(path)
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        contents = read_ledger(path)
        whole_lines = data[:length].count(b"\n")
        assert (contents is None) == (whole_lines == 0)
        if contents is None:
            continue
        assert sorted(contents.records) == list(range(whole_lines - 1))
        with Ledger(path, {"fingerprint": "abc"}) as ledger:
            ledger.append(BlockRecord(9, "new"))
        again = read_ledger(path)
        assert again is not None
        assert sorted(again.records) == [*range(whole_lines - 1), 9]


def test_garbage_lines_count_as_not_done(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    data = written(path)
    path.write_bytes(data + b'\x00\xff garbage\n{"unknown": 1}\n[1]\n')
    contents = read_ledger(path)
    assert contents is not None
    assert sorted(contents.records) == [0, 1, 2]


@pytest.mark.parametrize("data", [b"", b"\n", b"not json\n", b'{"ledger": 99}\n'])
def test_what_is_no_ledger_is_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(data)
    assert read_ledger(path) is None
    assert read_ledger(tmp_path / "missing") is None
