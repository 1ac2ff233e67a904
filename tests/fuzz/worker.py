"""The process that runs cases one after the other and says what came of each; it may die, and its driver sees that.

Invariant: one JSON line on stdout for each line `kind number` on stdin, nothing else; a case may write below its own
`out` folder alone, and what it does is watched by an audit hook, not guessed from what is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import io
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import typer

PEAK_BYTES = 2 * 10**9
ADDRESS_BYTES = 3 * 2**30
"""Address space a case may add: more is refused by the kernel, and the refusal is a failure of the case."""
ALARM_S = 9
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}
_RUNS = {
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "pty.spawn",
    "code.__new__",
}
_UNPICKLED = ("mrbcr_cli", "numpy", "distributed", "dask", "tlz", "toolz", "functools", "collections", "_operator")


class Watch:
    """What the interpreter does while a case runs (PEP 578)."""

    def __init__(self) -> None:
        self.active = False
        self.writable: tuple[str, ...] = ()
        self.readable: tuple[str, ...] = ()
        self.faults: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "open":
            self._opened(*arguments)
        elif event in _CHANGES:
            for path in arguments[: 2 if event in ("os.rename", "os.symlink", "os.link") else 1]:
                if isinstance(path, str | bytes | os.PathLike) and not self._within(path, self.writable):
                    self.faults.append(f"{event} {os.fsdecode(path)}")
        elif event in _RUNS and event != "code.__new__":
            self.faults.append(f"{event} {arguments[:2]}"[:200])
        elif event == "pickle.find_class" and not str(arguments[0]).startswith(_UNPICKLED):
            self.faults.append(f"unpickled {arguments}")

    def _opened(self, path: Any, mode: Any, flags: Any) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        writes = bool(isinstance(flags, int) and flags & _WRITES)
        if writes and not self._within(path, self.writable):
            self.faults.append(f"opened for writing {os.fsdecode(path)}")
        elif not writes and not self._within(path, self.readable):
            self.faults.append(f"read {os.fsdecode(path)}")

    def _within(self, path: Any, folders: tuple[str, ...]) -> bool:
        return os.path.realpath(os.fsdecode(path)).startswith(folders)


def main(base: Path) -> None:
    """Serve cases from stdin, with `base` for their files."""
    protocol = os.fdopen(os.dup(1), "w", buffering=1)
    log = (base / "worker.log").open("a")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    faulthandler.enable(log)
    temporary = base / "tmp"
    temporary.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = os.environ["MRBCR_CACHE_DIR"] = str(temporary)
    os.chdir(temporary)
    watch = Watch()
    typer.main.get_command = functools.cache(typer.main.get_command)  # building the parser takes longer than most cases
    _warm_up(base)
    limit = _status_bytes("VmSize") + ADDRESS_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps({"ready": True}), file=protocol)
    for line in sys.stdin:
        kind, number = line.split()
        faulthandler.dump_traceback_later(ALARM_S, file=log)
        result = run_case(kind, int(number), base / "case", watch)
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(result), file=protocol)


def _warm_up(base: Path) -> None:
    """Import what the commands import lazily, so that a case is charged with its own work alone."""
    from mrbcr_cli.restore import tune_allocator
    from tests.fuzz import cases

    tune_allocator()
    folder = base / "warm"
    for kind, number in (("tiff", 0), ("zarr", 0), ("weights", 1), ("yaml", 0), ("yaml", 1), ("psf", 0)):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            shutil.rmtree(folder, ignore_errors=True)
            _run(cases.place(cases.make_case(kind, number), folder))
    case = cases.Case(
        cases.corpus.plain_image() | cases.corpus.weights(),
        ["deconvolve", "{in}/image.tif", "-o", "{out}/o.ome.zarr", "-m", "{in}/w.safetensors", "-q"],
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        _run(cases.place(case, folder))
    shutil.rmtree(folder, ignore_errors=True)


def _run(arguments: list[str]) -> int:
    from mrbcr_cli.cli import run

    return run(arguments)


def run_case(kind: str, number: int, folder: Path, watch: Watch) -> dict[str, Any]:
    """Run one case and return its exit code, times, peak memory and what was wrong with it."""
    from tests.fuzz import cases

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    case = cases.make_case(kind, number)
    arguments = cases.place(case, folder)
    (folder / "out").mkdir()
    top = str(Path(__file__).resolve().parents[2])
    watch.writable = (f"{folder}/out", str(folder.parent / "tmp"), "/dev/null") if case.writes else ("/dev/null",)
    watch.readable = (
        str(folder), str(folder.parent / "tmp"), top, sys.prefix, sys.base_prefix, "/proc", "/sys", "/dev", "/usr/lib",
        "/usr/share/zoneinfo", "/etc/mime.types", "/etc/ld.so", "/lib",
    )  # fmt: skip
    watch.faults = []
    _give_back_memory()
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    wall, cpu = time.monotonic(), time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        watch.active = True
        try:
            code = _run(arguments)
        finally:
            watch.active = False
    said, printed = (_text(stream) for stream in (err, out))
    result = {
        "case": f"{kind}:{number}",
        "code": code,
        "wall_s": round(time.monotonic() - wall, 3),
        "cpu_s": round(time.process_time() - cpu, 3),
        "peak_bytes": _status_bytes("VmHWM"),
        "said": said[-600:],
    }
    faults = [*dict.fromkeys(watch.faults), *wrong_with(code, said, printed)]
    if result["peak_bytes"] > PEAK_BYTES:
        faults.append("more than 2 GB of memory")
    if not case.writes and any((folder / "out").iterdir()):
        faults.append("wrote an output")
    shutil.rmtree(folder, ignore_errors=True)
    return result | {"faults": faults}


def _give_back_memory() -> None:
    """Return what earlier cases freed, and start the peak anew, so that it is this case's own."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _text(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def wrong_with(code: int, said: str, printed: str) -> list[str]:
    """What is not clean about how a command ended."""
    faults = []
    if code not in (0, 2, 3, 4):
        faults.append(f"exit code {code}")
    if "Traceback" in said or "run again with --debug" in said:
        faults.append("a traceback or an unexpected error")
    if any(word in said for word in ("MemoryError", "Unable to allocate", "can't allocate", "not enough memory")):
        faults.append("tried to take memory that is not there")
    lines = [line for line in said.splitlines() if not line.startswith(("note: ", "warning: "))]
    errors = [line for line in lines if line.startswith("error: ")]
    if code != 0 and (len(errors) != 1 or len(lines) > 2):
        faults.append(f"{len(errors)} errors in {len(lines)} lines")
    if code == 0 and any("Warning: " in line for line in lines):
        faults.append("a warning of Python")
    if any((ord(char) < 32 and char != "\n") or ord(char) == 127 for char in said + printed):
        faults.append("control characters")
    return faults


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
