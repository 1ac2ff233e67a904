"""The ledger: what it says is done survives any kill; what it does not say is not done."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrbcr_cli.stream.ledger import Ledger, read_ledger
from mrbcr_cli.stream.records import BlockRecord, Records


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


_NUMBERS = st.one_of(st.integers(0, 2**62), st.integers(2**64, 2**70))
_TIMES = st.floats(0, 1e6, allow_nan=False)
_SECONDS = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"read": _TIMES, "compute": _TIMES, "write": _TIMES}),
    st.dictionaries(st.sampled_from(["write", "read", "camera"]), _TIMES),
)
_CHECKSUMS = st.one_of(st.binary(min_size=16, max_size=16).map(bytes.hex), st.text(max_size=40), st.just("A" * 32))


@given(
    st.lists(
        st.builds(
            BlockRecord,
            st.integers(0, 9),
            _CHECKSUMS,
            _NUMBERS,
            _NUMBERS,
            _SECONDS,
            st.lists(st.text(max_size=9), max_size=2).map(tuple),
        )
    )
)
def test_packed_records_are_a_dict_of_records(records: list[BlockRecord]) -> None:
    packed, plain = Records(), dict[int, BlockRecord]()
    for record in records:
        packed[record.block] = plain[record.block] = record
    assert list(packed.items()) == list(plain.items())
    for block in list(plain)[::2]:
        assert packed.pop(block) == plain.pop(block)
    assert (list(packed), len(packed)) == (list(plain), len(plain))
    assert all((block in packed) == (block in plain) for block in range(10))
