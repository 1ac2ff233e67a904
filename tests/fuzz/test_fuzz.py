"""A few hundred mutated inputs (`python -m tests.fuzz` runs 20,000), and that the harness sees faults."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mrbcr_cli.cli import run
from tests.fuzz import cases, corpus
from tests.fuzz.__main__ import numbered
from tests.fuzz.driver import Worker, run_cases
from tests.fuzz.worker import wrong_with

COUNT = 300


def test_mutated_inputs_end_cleanly(tmp_path: Path) -> None:
    results = list(run_cases(numbered(COUNT, 1_000_000), tmp_path))
    assert len(results) == COUNT
    assert [r for r in results if r["faults"]] == []
    assert {0, 2} <= {r["code"] for r in results}


@pytest.mark.parametrize("kind", ["tiffs", "zarrs"])
def test_the_files_to_be_mutated_are_accepted(tmp_path: Path, kind: str) -> None:
    found: dict[str, corpus.Files] = getattr(corpus, kind)()
    for name, files in found.items():
        main = next(iter(files)).split("/")[0]
        arguments = cases.place(cases.Case(files, ["info", f"{{in}}/{main}"]), tmp_path / name)
        assert run(arguments) == 0, name


def test_a_case_is_the_same_every_time() -> None:
    for kind in cases.KINDS:
        assert cases.make_case(kind, 7) == cases.make_case(kind, 7)
        assert cases.make_case(kind, 7) != cases.make_case(kind, 8)


PROTOCOL = """
import json, os, sys
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    if line == "die 0\\n":
        os._exit(9)
    while line == "hang 0\\n":
        pass
    print(json.dumps({"case": line.strip(), "faults": []}), flush=True)
"""


def test_a_death_and_a_hang_are_charged_to_their_case(tmp_path: Path) -> None:
    faults = []
    for case in ("fine:0", "die:0", "hang:0"):
        worker = Worker(tmp_path, (sys.executable, "-c", PROTOCOL), hang_s=0.5)
        faults.append(worker.run(case)["faults"])
        worker.close()
    assert faults == [[], ["the process died (9)"], ["more than 0.5 s"]]


@pytest.mark.parametrize(
    ("code", "said", "words"),
    [
        (1, "error: unexpected KeyError: 1; run again with --debug and report it", "exit code 1"),
        (2, "Traceback (most recent call last):\nerror: x", "traceback"),
        (2, "", "0 errors"),
        (2, "error: a\nb\nc", "3 lines"),
        (2, "error: Unable to allocate 3 TiB", "memory"),
        (0, "x.py:3: RuntimeWarning: overflow", "warning of Python"),
        (2, "error: \x1b[31m", "control"),
    ],
)
def test_what_is_not_clean_is_seen(code: int, said: str, words: str) -> None:
    assert any(words in fault for fault in wrong_with(code, said, ""))


def test_what_is_clean_is_not() -> None:
    assert wrong_with(2, "note: x\nerror: y\n", "") == []
    assert wrong_with(0, "note: x\nwarning: y\n", "path\n") == []
