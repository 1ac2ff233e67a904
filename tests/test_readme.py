"""Every code block of the README runs, as it is printed, on small files of the names that it uses.

What is changed before a block is run stands in `readme_world.SMALLER` (how many steps, pairs, jobs) and in `PLACES` (a
server in the place of another one). A comment before a block says which stand-ins it needs:

    <!-- run: install -->     `python3 -m venv` and `pip` are stand-ins (the pip knows the extras); `mrbcr` is real
    <!-- run: slurm -->       `sbatch` is one that runs the job's script here
    <!-- run: s3 -->          s3:// is a server of moto, https:// a server of files, both on this machine
    <!-- run: convert -->     ends where TensorFlow would read: no checkpoint is at hand
    <!-- run: yaml NAME -->   is read as the configuration NAME by the command that takes it
    <!-- run: needs MODULES -->  is skipped where one of the modules is not there
    <!-- test -->             not run: it is what runs these tests (.ci/run reads it)

A block without one is run with nothing replaced but `pip`. Blocks of ```text are no code.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mrbcr_cli.settings import load_settings
from tests.readme_world import TOP, build, end_jobs, smaller, write_stand_ins
from tests.s3_server import s3_server

README = TOP / "README.md"
ALSO = (TOP / "examples" / "hpc" / "README.md",)
"""Files whose blocks were the README's once, and are run like them."""
FENCE = re.compile(r"^(?:<!-- (?P<rule>[^>]*) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
NOT_RUN = {"test"}
"""Rules of blocks that are not run."""
STOPS_EARLY = {"convert"}
"""Rules of blocks that run up to what is not here, and are to say so."""


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block, and how it is to be run."""

    name: str
    language: str
    code: str
    rule: str
    """What the comment before it says after "run: "; empty without one."""


def blocks_of(path: Path) -> list[CodeBlock]:
    """Every fenced block of a file, named by its heading."""
    text, found = path.read_text(encoding="utf-8"), []
    for match in FENCE.finditer(text):
        headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text[: match.start()], flags=re.S), flags=re.M)
        name = re.sub(r"\W+", "-", headings[-1].lower()).strip("-")
        rule = (match["rule"] or "").removeprefix("run: ")
        found.append(CodeBlock(f"{path.parent.name}-{name}-{len(found)}", match["language"], match["code"], rule))
    return found


BLOCKS = [block for path in (README, *ALSO) for block in blocks_of(path)]
RUN = [block for block in BLOCKS if block.language in ("bash", "python") and block.rule not in NOT_RUN]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme") / "world"
    folder.mkdir()
    build(folder)
    return folder


@pytest.fixture
def place(world: Path, tmp_path: Path) -> Path:
    """A folder with all files, for one block alone."""
    return Path(shutil.copytree(world, tmp_path / "here"))


@pytest.fixture
def stand_ins(tmp_path: Path, mrbcr_bin: Path) -> Iterator[Path]:
    write_stand_ins(tmp_path / "bin", mrbcr_bin / "mrbcr")
    yield tmp_path / "bin"
    end_jobs(tmp_path / "bin")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def servers(place: Path) -> Iterator[tuple[dict[str, str], list[tuple[str, str]]]]:
    """(environment, what is replaced) with s3://bucket/in.ome.zarr and a web server that has path/in.ome.zarr."""
    from tests.helpers import deconvolve, spots

    source = place / "web" / "path" / "in.ome.zarr"
    source.parent.mkdir(parents=True)
    import tifffile

    tifffile.imwrite(place / "in.tif", spots((64, 64)))
    assert deconvolve(place / "in.tif", "-m", place / "mine.safetensors", "-o", source, "-q") == 0
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(place / "web")))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    upload = (
        "import fsspec; f = fsspec.filesystem('s3'); f.mkdir('bucket'); "
        f"f.put({str(source)!r}, 'bucket/in.ome.zarr', recursive=True)"
    )
    try:
        with s3_server() as environment:
            subprocess.run([sys.executable, "-c", upload], env={**os.environ, **environment}, check=True)
            yield (
                environment,
                [
                    ("https://host/path", f"http://127.0.0.1:{web.server_port}/path"),
                    ("/scratch/me", str(place / "scratch")),
                ],
            )
    finally:
        web.shutdown()
        web.server_close()


def play(code: str, place: Path, programs: list[Path], **more: str) -> subprocess.CompletedProcess[str]:
    """Run lines of bash, each of which has to succeed; processes that are left are ended."""
    environment = {
        **os.environ,
        # The scripts of other packages (bioimageio) lie beside this Python, which need not be on the PATH.
        "PATH": os.pathsep.join([*map(str, programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(TOP),
        "OMP_NUM_THREADS": "2",
        "COLUMNS": "100",
        **more,
    }
    command = ["bash", "-euo", "pipefail", "-c", code]
    with subprocess.Popen(
        command,
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output = process.communicate(timeout=300)[0] if "& dask" not in code else _read(process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, output, "")


def _read(process: subprocess.Popen[str]) -> str:
    """What is said until bash ends, whatever it leaves in the background with the same pipe."""
    process.wait(timeout=300)
    os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[0]


@pytest.mark.parametrize("block", RUN, ids=[block.name for block in RUN])
def test_a_block_runs(block: CodeBlock, place: Path, mrbcr_bin: Path, stand_ins: Path) -> None:
    kind, _, what = block.rule.partition(" ")
    assert kind in ("", "install", "slurm", "s3", "convert", "needs"), f"no rule {block.rule!r}"
    for module in what.split() if kind == "needs" else ():
        if not _is_there(module):
            pytest.skip(f"{module} is not there")
    if block.language == "python":
        done = subprocess.run(
            [sys.executable, "-c", block.code],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(TOP)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return
    code, more = smaller(block.code), {}
    with contextlib.ExitStack() as stack:
        if kind == "s3":
            more, replaced = stack.enter_context(servers(place))
            for before, after in replaced:
                assert before in code
                code = code.replace(before, after)
        done = play(code, place, [mrbcr_bin, stand_ins] if kind != "install" else [stand_ins], **more)
    if kind in STOPS_EARLY:
        _stopped_where_tensorflow_would_read(done)
        return
    assert done.returncode == 0, f"{code}\n{done.stdout}"
    assert "Traceback" not in done.stdout, done.stdout
    assert "error:" not in done.stdout, done.stdout


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package above it
        return False


def _stopped_where_tensorflow_would_read(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 2, done.stdout
    there = importlib.util.find_spec("tensorflow") is not None
    assert ("damaged" if there else "pip install 'mrbcr[convert]'") in done.stdout, done.stdout


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=lambda block: block.name)
def test_a_configuration_is_accepted(block: CodeBlock, tmp_path: Path) -> None:
    kind, _, name = block.rule.partition(" ")
    assert kind == "yaml"
    (tmp_path / name).write_text(block.code)
    assert load_settings(None, {"cluster_config": tmp_path / name}).model_fields_set


def test_all_code_is_run_but_what_is_said() -> None:
    """A block in a language of its own, or with a rule of its own, would be left out unseen."""
    assert {block.language for block in BLOCKS} <= {"bash", "python", "yaml", "text"}
    left = [block for block in BLOCKS if block.language != "text" and block not in RUN and block.language != "yaml"]
    assert [(block.rule, block.language) for block in left] == [("test", "bash")]
    assert README.read_text().count("```") == 2 * len(blocks_of(README))


def test_the_test_command_is_the_one_that_ci_reads() -> None:
    script = (TOP / ".ci" / "run").read_text()
    command = next(line for line in script.splitlines() if line.startswith("command=$(awk"))
    read = subprocess.run(
        ["bash", "-c", f'{command}; echo "$command"'], cwd=TOP, capture_output=True, text=True, check=True
    )
    (block,) = [block for block in BLOCKS if block.rule == "test"]
    assert read.stdout.strip() == block.code.strip()
    assert "pytest" in block.code


@pytest.mark.parametrize(
    "path", [README, *sorted((TOP / "examples").rglob("*.md"))], ids=lambda p: p.parent.name + p.name
)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```|<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.S)
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif "://" not in target:
            assert (path.parent / target.partition("#")[0]).exists(), f"{path.name}: {target}"


def test_the_results_are_those_of_the_report() -> None:
    """The README's table is the report's, rounded."""
    report = (TOP / "examples" / "evaluation" / "widefield.md").read_text()
    rows = {
        "recorded image": "input",
        "Richardson-Lucy, best common iterations": "richardson-lucy",
        "Richardson-Lucy, stopped for each image by looking at the truth": "richardson-lucy oracle",
        "Wiener, best common balance": "wiener",
        "**`widefield`**": "widefield",
    }
    text = README.read_text()
    for label, method in rows.items():
        cells = [c.strip(" *") for c in re.search(rf"^\| {re.escape(label)} \|(.*)\|$", text, re.M)[1].split("|")]  # type: ignore[index]
        total = [c.split() for c in re.search(rf"^\| {re.escape(method)} +\|(.*)\|$", report, re.M)[1].split("|")]  # type: ignore[index]
        light = {
            part: re.search(rf"^\| photons {part} +\| \d+ +\| {re.escape(method)} +\| +([\d.]+)", report, re.M)[1]  # type: ignore[index]
            for part in ("below 112", "from 823")
        }
        expected = (total[0][0], light["below 112"], light["from 823"], total[1][0])
        for said, measured, digits in zip(cells, expected, (1, 1, 1, 2), strict=True):
            assert abs(float(said) - float(measured)) <= 0.5001 * 10**-digits, f"{label}: {said} but {measured}"


def test_no_path_of_a_machine_is_in_what_is_read() -> None:
    for path in [README, *(TOP / "examples").rglob("*.md"), *(TOP / "examples").glob("*.sh")]:
        assert not re.search(r"/(root|home|work|Users|tmp/pytest)/", path.read_text(encoding="utf-8")), path
