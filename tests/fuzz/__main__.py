"""`python -m tests.fuzz --count 20000`: run many cases, one after the other; prints the failures and a summary.

Invariant: results are appended to a file of JSON lines as they come; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fuzz.cases import SHARES
from tests.fuzz.driver import run_cases


def numbered(count: int, seed: int) -> list[str]:
    """`count` cases from `seed` on, the kinds interleaved in their shares."""
    found = [
        ((k + 0.5) / (share * count), f"{kind}:{seed + k}")
        for kind, share in SHARES.items()
        for k in range(round(share * count))
    ]
    return [case for _, case in sorted(found)]


def main() -> int:
    """Run what the command line says; 1 where a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000, help="cases to run (20000)")
    parser.add_argument("--seed", type=int, default=0, help="number of the first case of each kind (0)")
    parser.add_argument("--log", type=Path, help="file of results; a rerun goes on from it")
    parser.add_argument("cases", nargs="*", help="single cases, e.g. tiff:17, instead of a count")
    given = parser.parse_args()
    wanted = given.cases or numbered(given.count, given.seed)
    results = _read(given.log)
    todo = [case for case in wanted if case not in results]
    with tempfile.TemporaryDirectory(prefix="mrbcr-fuzz-") as base:
        for result in run_cases(todo, Path(base)):
            results[result["case"]] = result
            if given.log:
                with given.log.open("a") as log:
                    print(json.dumps(result), file=log)
            if result["faults"] or given.cases:
                print(
                    f"{result['case']}: {result['code']} {'; '.join(result['faults'])} | {result['said']}", flush=True
                )
    return summarise([results[case] for case in wanted])


def _read(log: Path | None) -> dict[str, dict[str, Any]]:
    if log is None or not log.exists():
        return {}
    lines = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return {result["case"]: result for result in map(json.loads, lines)}


def summarise(results: list[dict[str, Any]]) -> int:
    """Print counts, the slowest case and the highest peak; 1 where a case failed."""
    kinds: dict[str, Counter[str]] = {}
    for result in results:
        counts = kinds.setdefault(result["case"].split(":")[0], Counter())
        counts["failed" if result["faults"] else f"exit {result['code']}"] += 1
    for kind, counts in kinds.items():
        print(f"{kind:8} {sum(counts.values()):6} cases: " + ", ".join(f"{k} {n}" for k, n in sorted(counts.items())))
    timed = [r for r in results if r["code"] is not None]
    if timed:
        slow, big = max(timed, key=lambda r: r["cpu_s"]), max(timed, key=lambda r: r["peak_bytes"])
        print(f"slowest {slow['case']}: {slow['cpu_s']} s of CPU, {slow['wall_s']} s by the clock")
        print(f"largest {big['case']}: {big['peak_bytes'] / 1e6:.0f} MB at the peak")
    failed = [r["case"] for r in results if r["faults"]]
    print(f"{len(results)} cases, {len(failed)} failed" + (": " + " ".join(failed) if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
