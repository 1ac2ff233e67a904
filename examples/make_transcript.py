"""Do the eight tasks of the README in a fresh installation, and write down what was typed and what came back.

    python examples/make_transcript.py                    # about ten minutes; writes examples/TRANSCRIPT.md
    python examples/make_transcript.py --checkpoint DIR   # with a TensorFlow checkpoint of the authors to convert

A copy of what git knows of the repository is installed into a virtual environment of its own, in a temporary folder.
Commands are those of the README with names of files that are at hand; long output is cut, and said to be. What differs
between machines is written in one way: the folder is ~/mrbcr, the shell shows "$".
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
MOST_LINES = 24
PIP_OF_ITSELF = ("WARNING: Location", "[notice]")
"""How lines begin that pip writes of the machine that it runs on."""
STAND_INS = """python -c "
import os, tifffile, zarr
pairs = zarr.open_group('pairs.zarr', mode='r')
for kind, folder in (('blurred', 'raw'), ('sharp', 'sharp_truth')):
    os.mkdir(folder)
    for n in range(10):
        tifffile.imwrite(f'{folder}/field{n}.tif', pairs[kind][n])
\""""


@dataclass(frozen=True)
class Task:
    """A task of the README and the lines that do it."""

    title: str
    said: str
    lines: tuple[str, ...]


INSTALL = Task(
    "Set up",
    "The two commands of “Start”, then a look at the machine.",
    (
        "python3 -m venv .venv && .venv/bin/pip install --quiet .",
        ".venv/bin/mrbcr deconvolve examples/data/cells.ome.tif -o cells_sharp.ome.tif --overwrite",
        "source .venv/bin/activate",
        "mrbcr doctor | tail -n 12",
    ),
)
TASKS = (
    Task(
        "1. Own data in one command",
        "A colleague's file: first a look, then the command, then the same again.",
        (
            "mrbcr simulate stack -q -o mine.ome.tif --specimen nuclei --shape 4 384 384 --preset 20x/0.75 --no-truth",
            "mrbcr info mine.ome.tif --plan",
            "mrbcr deconvolve mine.ome.tif -o mine_sharp.ome.zarr",
            "mrbcr deconvolve mine.ome.tif -o mine_sharp.ome.zarr",
        ),
    ),
    Task(
        "2. A whole folder",
        "Three images; then one more, and the same command.",
        (
            "mkdir day1 && for n in 1 2 3; do mrbcr simulate stack -q -o day1/image$n.ome.tif --specimen vesicles"
            " --shape 1 256 256 --preset 20x/0.75 --seed $n --no-truth; done",
            "mrbcr deconvolve day1/*.tif -o sharp/ --output-format ome-tiff",
            "cp day1/image1.ome.tif day1/image4.ome.tif",
            "mrbcr deconvolve day1/*.tif -o sharp/ --output-format ome-tiff",
        ),
    ),
    Task(
        "3. On a cluster",
        "No cluster is at hand, so the two ways that work everywhere: processes, and shards run one after the other.",
        (
            "mrbcr deconvolve mine.ome.tif -o by_processes.ome.zarr --cluster local --workers 2",
            "for i in 0 1; do mrbcr deconvolve mine.ome.tif -o by_shards.ome.zarr --shard $i/2; done",
            "mrbcr finish by_shards.ome.zarr --verify",
            "diff -r by_processes.ome.zarr/0/c by_shards.ome.zarr/0/c && echo the same pixels",
        ),
    ),
    Task(
        "4. A PSF from an objective",
        "63x/1.4 oil, 5 µm deep in water; then Richardson-Lucy with the PSF of the dry objective of task 1.",
        (
            "mrbcr simulate psf -o psf.ome.tif --preset 63x/1.4oil --ns 1.33 --depth 5 --wavelength 520"
            " --figure psf.png",
            "mrbcr simulate psf -q -o psf20.ome.tif --like mine.ome.tif --preset 20x/0.75 --shape 1 25 25",
            "mrbcr deconvolve mine.ome.tif -o mine_rl.ome.tif --method richardson-lucy --psf psf20.ome.tif"
            " --iterations 30",
        ),
    ),
    Task(
        "5. Train on own pairs",
        "Two folders with equal names. Stand-ins for your images first: pairs in counts of one camera, as TIFF. "
        "Twenty steps show the way; a real run takes thousands.",
        (
            "mrbcr simulate pairs -q -o pairs.zarr --specimen filaments --count 10 --patch 192 --photons 100 --seed 1",
            STAND_INS,
            "mrbcr train -o mine --input-dir raw/ --target-dir sharp_truth/ --init widefield --lr 5e-4 --steps 20"
            " --every 10 --batch 4 --patch 96",
            "ls mine",
            "mrbcr deconvolve raw/field0.tif -o field0_mine.tif --model mine/best.safetensors",
        ),
    ),
    Task(
        "6. Evaluate",
        "An image of task 5 by the embedded model and by the one trained on 20 steps; then models on simulated pairs.",
        (
            "mrbcr deconvolve -q raw/field0.tif -o field0_widefield.tif",
            "mrbcr evaluate field0_widefield.tif field0_mine.tif --truth sharp_truth/field0.tif sharp_truth/field0.tif",
            "mrbcr simulate pairs -q -o test.zarr --count 6 --patch 96 --splits 0 0 1",
            "mrbcr evaluate --pairs test.zarr -m widefield -o scores.json --report scores.md | head -n 8",
        ),
    ),
    Task(
        "7. Convert the authors' weights",
        "",
        (
            "pip install --quiet '.[convert]'",
            "mrbcr weights convert their_checkpoint/ -o theirs.safetensors --name theirs --licence MIT",
            "mrbcr weights show theirs.safetensors",
            "mrbcr deconvolve examples/data/cells.ome.tif -o cells_theirs.ome.tif -m theirs.safetensors --channels 0",
        ),
    ),
    Task("8. From Python", "", ("python examples/08_from_python.py",)),
)


def main() -> None:
    """Install, do the tasks, write the transcript. Ends with an error where a command fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="folder of a TensorFlow checkpoint of the authors")
    parser.add_argument("--output", type=Path, default=HERE / "TRANSCRIPT.md", help="file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mrbcr-transcript-") as name:
        folder = Path(name) / "mrbcr"
        _copy(folder)
        if args.checkpoint:
            (folder / "their_checkpoint").symlink_to(args.checkpoint.resolve())
        parts = [
            "# The eight tasks, typed and answered",
            "Made by `python examples/make_transcript.py` in a fresh virtual environment, by the README alone. Times "
            f"are of one machine with two cores. Output of more than {MOST_LINES} lines is cut in the middle.",
        ]
        shell = _Shell(folder)
        for task in (INSTALL, *TASKS):
            print(task.title, file=sys.stderr, flush=True)
            said, lines = task.said, task.lines
            if task.title.startswith("7") and not args.checkpoint:
                said = "Without a checkpoint at hand the example makes a stand-in with random weights."
                lines = (lines[0], "examples/07_convert_weights.sh")
            elif task.title.startswith("7"):
                said = "`their_checkpoint/` is the network of the ECCV 2024 paper, as its authors give it away."
            if task.title.startswith("8") and not (folder / "mrbcr_cli" / "api.py").exists():
                said, lines = "This version has no Python interface for arrays yet.", ()
            parts += [
                f"## {task.title}",
                *([said] if said else []),
                *(["```console\n" + shell.play(lines) + "```"] if lines else []),
            ]
        args.output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _copy(folder: Path) -> None:
    """What git knows of the repository, as a clone would have it."""
    folder.mkdir(parents=True)
    files = subprocess.run(["git", "ls-files", "-z"], cwd=HERE.parent, capture_output=True, check=True).stdout
    subprocess.run(["xargs", "-0", "cp", "--parents", "-t", str(folder)], cwd=HERE.parent, input=files, check=True)


class _Shell:
    """Commands one after the other, with the environment that `source .venv/bin/activate` leaves."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        keep = ("HOME", "LANG", "PIP_INDEX_URL", "PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "TMPDIR")
        self._environment = {name: os.environ[name] for name in keep if name in os.environ}
        self._environment |= {"PATH": "/usr/local/bin:/usr/bin:/bin", "COLUMNS": "100", "TERM": "dumb"}
        self._environment["PATH"] = f"{Path(sys.base_prefix) / 'bin'}:{self._environment['PATH']}"

    def play(self, lines: tuple[str, ...]) -> str:
        """What a terminal would show."""
        shown = ""
        for line in lines:
            shown += f"$ {line}\n"
            if line.startswith("source "):
                self._environment["PATH"] = f"{self._folder / '.venv' / 'bin'}:{self._environment['PATH']}"
                continue
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", line],
                cwd=self._folder,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                sys.exit(f"{line}\n{done.stdout}\nended with {done.returncode}")
            shown += self._cut(done.stdout)
        return shown

    def _cut(self, text: str) -> str:
        text = text.replace(str(self._folder), "~/mrbcr")
        text = re.sub(re.escape(str(Path.home())) + r"(?=/|\b)", "~", text) if str(Path.home()) != "/" else text
        lines = [line.rstrip() for line in text.splitlines() if not line.startswith(PIP_OF_ITSELF)]
        while lines and not lines[0]:
            del lines[0]
        if len(lines) > MOST_LINES:
            half = MOST_LINES // 2
            lines = [*lines[:half], f"... ({len(lines) - 2 * half} lines) ...", *lines[-half:]]
        return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    main()
