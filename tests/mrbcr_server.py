"""An `mrbcr` that starts at once, for shell scripts that call it many times: each call is a fork of one process that
has imported everything. What runs is `mrbcr_cli.cli.main` with the caller's arguments, folder, environment and files.

    python -m tests.mrbcr_server SOCKET
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

HEAVY = (
    *("torch", "zarr", "dask.array", "distributed", "tifffile", "imagecodecs", "scipy.ndimage", "skimage.metrics"),
    *("matplotlib.pyplot", "mrbcr_cli.batch", "mrbcr_cli.finish", "mrbcr_cli.train.command", "mrbcr_cli.describe"),
    *("mrbcr_cli.evaluation.command", "mrbcr_cli.simulate.pairs", "mrbcr_cli.simulate.stack"),
)

CLIENT = """#!{python} -ISE
import array, json, os, socket, sys
if "--cluster" in sys.argv or "--cluster-config" in sys.argv:  # its workers are processes of their own: the real one
    os.execv({python!r}, [{python!r}, "-c", "from mrbcr_cli.cli import main; main()", *sys.argv[1:]])
line = socket.socket(socket.AF_UNIX)
line.connect({address!r})
call = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(line, [len(call).to_bytes(8, "big")], [0, 1, 2])
line.sendall(call)
code = line.recv(1)
sys.exit(code[0] if code else 137)
"""


def write_client(file: Path, address: Path) -> None:
    """Write the program `mrbcr` that asks the server."""
    file.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    file.chmod(0o755)


def serve(address: str) -> None:
    """Fork for each call, until a signal."""
    for name in HEAVY:
        importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(16)
        print("ready", flush=True)
        while True:
            line, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(line)
            line.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _answer(line: socket.socket) -> None:
    """Become the command that is asked for; never returns."""
    code = 1
    try:
        length, files, _, _ = socket.recv_fds(line, 8, 3)
        size, text = int.from_bytes(length, "big"), b""
        while len(text) < size:
            text += line.recv(size - len(text))
        arguments, folder, environment = json.loads(text)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = arguments
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from mrbcr_cli.cli import main

        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        line.sendall(bytes([code & 255]))
        os._exit(code & 255)


if __name__ == "__main__":
    serve(sys.argv[1])
