"""Shards: one run shared out among processes that never talk, each with its own ledger in the working folder.

Invariant: the main ledger's first line is what all agree on, and its lock is the working folder's: shards share it, all
else holds it alone. A block that any ledger of the run names is done.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from mrbcr_cli.errors import InputError
from mrbcr_cli.stream.ledger import Ledger, LockedError, hold, read_ledger
from mrbcr_cli.stream.records import BlockRecord, Records

_SLURM = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
_NAME = re.compile(r"ledger\.(\d+)-of-(\d+)\.jsonl")


@dataclass(frozen=True, order=True)
class Shard:
    """Share `index` (from 0) of `count`: a contiguous range of blocks, so that neighbours share what is read."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def blocks(self, total: int) -> range:
        """The blocks of this shard; shares differ by one block at most and together are all of `total`."""
        return range(self.index * total // self.count, (self.index + 1) * total // self.count)

    @property
    def ledger_name(self) -> str:
        """Name of the shard's ledger in the working folder."""
        return f"ledger.{self.index:04d}-of-{self.count:04d}.jsonl"


def parse_shard(text: str, environment: Mapping[str, str]) -> Shard:
    """Read I/N (I from 0 to N-1), or for "auto" what SLURM says of its job array. Raises InputError."""
    if text == "auto":
        return _slurm_shard(environment)
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
    if match is None:
        raise InputError(f"--shard {text}: must be I/N, such as 0/16 for the first of 16, or auto")
    shard = Shard(int(match[1]), int(match[2]))
    if not shard.index < shard.count:
        raise InputError(
            f"--shard {text}: shards are numbered from 0, so of {shard.count} the last is "
            f"{max(shard.count - 1, 0)}/{shard.count}; in SLURM, --array=0-{max(shard.count - 1, 0)}"
        )
    return shard


def _slurm_shard(environment: Mapping[str, str]) -> Shard:
    try:
        task, first, count = (int(environment[name]) for name in _SLURM)
        step = int(environment.get("SLURM_ARRAY_TASK_STEP") or 1)
    except (KeyError, ValueError) as error:
        raise InputError(f"--shard auto: needs {', '.join(_SLURM)} of a SLURM job array; or give I/N") from error
    index, rest = divmod(task - first, max(step, 1))
    if rest or not 0 <= index < count:
        raise InputError(
            f"--shard auto: task {task} is none of {count} in a row from {first}, as --array=0-15 has them; give I/N"
        )
    return Shard(index, count)


def shard_ledgers(folder: Path) -> dict[Shard, Path]:
    """The shards' ledgers in a working folder."""
    found = {}
    for path in folder.iterdir():
        if match := _NAME.fullmatch(path.name):
            found[Shard(int(match[1]), int(match[2]))] = path
    return dict(sorted(found.items()))


def run_id(header: Mapping[str, Any]) -> tuple[Any, Any]:
    """What tells one run in a working folder from another that took its place."""
    return header.get("fingerprint"), header.get("id")


class RunLedger:
    """What a process holds of a run: the working folder's lock, its own ledger, and all that any ledger says is done.

    A context manager. Without a shard it holds the folder alone.
    """

    def __init__(self, main: Path, header: dict[str, Any], shard: Shard | None = None) -> None:
        """Join the run whose main ledger is there. Raises LockedError where another process is in the way, and
        FileNotFoundError where that run is gone or another has taken its place (so look again).
        """
        self._lock = None if shard is None else hold(main, shared=True)
        try:
            self.path = main if shard is None else main.with_name(shard.ledger_name)
            if not main.exists():
                raise FileNotFoundError(2, "the run is gone", str(main))
            own = {name: header.get(name) for name in ("fingerprint", "id", "version")}
            self._own = Ledger(self.path, header if shard is None else {**own, "shard": [shard.index, shard.count]})
        except BaseException:
            self._unlock()
            raise
        try:
            self._check_same(main, header)
            self.shards = {s: p for s, p in shard_ledgers(main.parent).items() if p != self.path}
            self._others: MutableMapping[int, BlockRecord] = Records()
            self.records: Mapping[int, BlockRecord] = ChainMap(self._own.records, self._others)
            """Of each finished block one record: that of this process's ledger where it has one."""
            self._also: dict[int, set[str]] = {}
            for path in [*self.shards.values(), *([] if self.path == main else [main])]:
                contents = read_ledger(path)
                if contents is not None and run_id(contents.header) == run_id(header):
                    self._merge(contents.records)
        except BaseException:
            self.close()
            raise

    def _check_same(self, main: Path, header: dict[str, Any]) -> None:
        contents = read_ledger(main)
        for found in (self._own.header, {} if contents is None else contents.header):
            if run_id(found) != run_id(header):
                raise FileNotFoundError(2, "another run has taken its place", str(main))

    def _merge(self, records: Mapping[int, BlockRecord]) -> None:
        for number, record in records.items():
            known = self.records.get(number)
            if known is None:
                self._others[number] = record
            elif known.checksum != record.checksum:
                self._also.setdefault(number, set()).add(record.checksum)

    def checksums(self, block: int) -> set[str]:
        """What any ledger says of a finished block; more than one where different machines did it twice."""
        return {self.records[block].checksum, *self._also.get(block, ())}

    def append(self, record: BlockRecord) -> None:
        """Add a finished block and put it on disk. Raises OSError when the disk is full."""
        self._own.append(record)
        self._others.pop(record.block, None)
        self._also.pop(record.block, None)

    def take_back(self, blocks: Iterable[int]) -> None:
        """Say in every ledger that names them that blocks are not done. Only for who holds the folder alone."""
        gone = sorted(set(blocks))
        header = self._own.header
        for path in self.shards.values():
            with Ledger(path, header) as ledger:
                for number in gone:
                    if number in ledger.records:
                        ledger.take_back(number)
        for number in gone:
            if number in self._own.records:
                self._own.take_back(number)
            self._others.pop(number, None)
            self._also.pop(number, None)

    def close(self) -> None:
        """Let go of the ledger and of the folder."""
        self._own.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> RunLedger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def ranges_text(numbers: Iterable[int], most: int = 20) -> str:
    """Numbers in words, neighbours as ranges: "3, 7-9"; beyond `most` ranges only how many there are."""
    ranges = list(runs_of(numbers))
    said = ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges[:most])
    return said + (f" and {len(ranges) - most} more ranges" if len(ranges) > most else "")


def runs_of(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """First and last of every run of neighbours among ascending numbers."""
    first = last = None
    for number in numbers:
        if last is not None and number == last + 1:
            last = number
            continue
        if first is not None and last is not None:
            yield first, last
        first = last = number
    if first is not None and last is not None:
        yield first, last


__all__ = ["LockedError", "RunLedger", "Shard", "parse_shard", "ranges_text", "run_id", "runs_of", "shard_ledgers"]
