"""Run the benchmarks, write one table (Markdown, JSON): `python -m tests.benchmarks [NAME...] [--quick] [--out DIR]`.

Every ratio is taken within one run on one machine, which the table describes. Without names all benchmarks run
(about 20 minutes on 2 cores); --quick shrinks them to see that they work, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mrbcr_cli.capacity import cpu_info
from mrbcr_cli.restore import tune_allocator
from tests.benchmarks import (
    domain,
    explicit,
    gpu,
    memory,
    networks,
    pairs,
    peers,
    psf,
    scaling,
    simulate_stack,
    soak,
    startup,
    streaming,
    training,
)

BENCHMARKS: dict[str, Callable[[Path, bool], list[dict[str, Any]]]] = {
    "startup": startup.measure,
    "networks": networks.measure,
    "peers": peers.measure,
    "streaming": streaming.measure,
    "memory": memory.measure,
    "explicit": explicit.measure,
    "training": training.measure,
    "gpu": gpu.measure,
    "psf": psf.measure,
    "pairs": pairs.measure,
    "stack": simulate_stack.measure,
    "domain": domain.measure,
    "scaling": scaling.measure,
    "soak": soak.measure,
}


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    import torch

    return {
        "cpu": cpu_info()[0] or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_GB": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="default: all")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    parser.add_argument("--peer", type=Path, help="virtual environment of the TensorFlow peer, made when missing")
    parser.add_argument("--scratch", type=Path, help="folder on a disk with 4 GB free; default: a temporary one")
    args = parser.parse_args()
    if args.peer is not None:
        os.environ[peers.PEER] = str(args.peer)
    # As the tool does, before any thread has a heap of its own.
    tune_allocator()
    where = machine()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        for name in args.names or BENCHMARKS:
            place = Path(scratch) / name
            place.mkdir()
            for row in BENCHMARKS[name](place, args.quick):
                rows.append({"benchmark": name, **row})
                print(json.dumps(rows[-1]), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "benchmarks.json").write_text(
        json.dumps({"machine": where, "quick": args.quick, "rows": rows}, indent=2)
    )
    lines = ["| benchmark | figure | value | unit | note |", "|---|---|---|---|---|"]
    lines += [f"| {r['benchmark']} | {r['figure']} | {r['value']} | {r['unit']} | {r.get('note', '')} |" for r in rows]
    head = ", ".join(f"{key} {value}" for key, value in where.items())
    (args.out / "benchmarks.md").write_text(f"Machine: {head}\n\n" + "\n".join(lines) + "\n")
    print(f"wrote {args.out / 'benchmarks.md'}")


if __name__ == "__main__":
    main()
