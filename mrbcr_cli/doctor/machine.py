"""Cores, memory, devices, folders, schedulers and the environment of this process.

Invariant: nothing is left behind (folders are tried with a temporary file), and no value of the environment is reported
that is not on a list of harmless ones.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from mrbcr_cli.console import bytes_text
from mrbcr_cli.doctor.findings import Findings, Trouble, said, short

CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve", "bf16")
COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "qsub", "bsub", "nvidia-smi", "apptainer", "singularity")
HARMLESS = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "TMPDIR", "COLUMNS"),
    *("MRBCR_WORK_DIR", "MRBCR_CACHE_DIR", "MRBCR_SHARED", "FSSPEC_S3_ANON", "PYTORCH_CUDA_ALLOC_CONF"),
    *("SLURM_JOB_ID", "SLURM_JOB_NUM_NODES", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "SLURM_MEM_PER_NODE"),
    *("SLURM_MEM_PER_CPU", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_GPUS", "SLURM_GPUS_ON_NODE", "SLURM_RESTART_COUNT"),
    *("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
)
"""Variables whose values are shown."""
NAMES_ONLY = ("MRBCR_", "SLURM_", "AWS_", "FSSPEC_", "DASK_", "GOOGLE_", "AZURE_")
"""Of these only that they are set: there are keys, tokens and names of users among them."""
LITTLE_MEMORY = 1.5e9
"""What the defaults take on two cores, see the README."""
LITTLE_DISK = 1e9


def cores() -> Findings:
    """Cores, those that this process may use, and what they can do."""
    from mrbcr_cli.capacity import cpu_count, cpu_info

    facts: dict[str, Any] = {"cores of the machine": os.cpu_count(), "cores this process may use": cpu_count()}
    quota = _cpu_quota()
    if quota is not None:
        facts["quota of the control group"] = f"{quota:g} cores"
    model, flags = cpu_info()
    if model:
        facts["model"] = model
    facts["instructions"] = ", ".join(flag for flag in CPU_FLAGS if flag in flags) or "unknown"
    troubles = []
    if quota is not None and quota < cpu_count():
        what = f"the control group allows {quota:g} cores, mrbcr sees {cpu_count()}"
        troubles.append(Trouble(what, f"give --workers {max(1, int(quota))}", needed=False))
    return Findings("Processor", facts, tuple(troubles))


def _cpu_quota() -> float | None:
    """Cores that the control group grants; None without a limit."""
    for quota_file, period_file in (
        ("/sys/fs/cgroup/cpu.max", None),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    ):
        try:
            words = Path(quota_file).read_text(encoding="ascii").split()
            words += Path(period_file).read_text(encoding="ascii").split() if period_file else []
            quota, period = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):
            continue  # no such file, or "max"
        if quota > 0 and period > 0:
            return quota / period
    return None


def memory() -> Findings:
    """Memory of the machine, and what this process may still take."""
    from mrbcr_cli.capacity import available_memory_bytes

    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = available_memory_bytes()
    facts: dict[str, Any] = {"of the machine": bytes_text(total), "available to this process": bytes_text(free)}
    limit = _memory_limit()
    if limit is not None and limit < total:
        facts["limit of the control group"] = bytes_text(limit)
    troubles = []
    if free < LITTLE_MEMORY:
        what = f"only {bytes_text(free)} of memory are free; the defaults take about {bytes_text(LITTLE_MEMORY)}"
        troubles.append(Trouble(what, "close other programs, or give --workers 1 --tile-size 512", needed=False))
    return Findings("Memory", facts, tuple(troubles))


def _memory_limit() -> int | None:
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(name).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue  # no such control group, or "max"
    return None


def devices() -> Findings:
    """What torch computes on, and with which threads."""
    try:
        import torch
    except (ImportError, OSError) as error:
        what = f"torch does not load ({said(error)})"
        return Findings("Devices", {}, (Trouble(what, "pip install --force-reinstall torch", needed=True),))
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "CPU kernels": torch.backends.cpu.get_cpu_capability(),
    }
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(seen):
        properties = torch.cuda.get_device_properties(number)
        free, _ = torch.cuda.mem_get_info(number)
        facts[f"cuda:{number}"] = (
            f"{properties.name}, {bytes_text(properties.total_memory)}, {bytes_text(free)} free, "
            f"compute capability {properties.major}.{properties.minor}"
        )
    facts["CUDA"] = torch.version.cuda or "this PyTorch is built without"
    if torch.backends.mps.is_available():
        facts["MPS"] = "present; mrbcr does not use it"
    driver = _gpus_of_the_driver()
    if driver:
        facts["GPUs of the driver"] = driver
    troubles = []
    if driver and not seen:
        cure = "install a CUDA build of PyTorch (https://pytorch.org/get-started/locally) within torch<2.14"
        troubles.append(Trouble("there is a GPU, but PyTorch does not see it", cure, needed=False))
    return Findings("Devices", facts, tuple(troubles))


def _gpus_of_the_driver() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        query = "--query-gpu=name,driver_version,memory.total"
        done = subprocess.run(
            [program, query, "--format=csv,noheader"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return [f"nvidia-smi failed ({said(error)})"]
    return [" ".join(line.split()) for line in done.stdout.splitlines() if line.strip()]


def folders() -> Findings:
    """Folders that runs write to: free space, and whether locks and renames work there."""
    places = {"current folder": Path.cwd(), "temporary folder": Path(tempfile.gettempdir())}
    if os.environ.get("MRBCR_WORK_DIR"):
        places["MRBCR_WORK_DIR"] = Path(os.environ["MRBCR_WORK_DIR"])
    facts, troubles = {}, []
    for name, folder in places.items():
        text, wrong = _try_folder(folder)
        facts[name] = text
        troubles += [Trouble(f"{name}: {what}", cure, needed=False) for what, cure in wrong]
    return Findings("Folders", facts, tuple(troubles))


def _try_folder(folder: Path) -> tuple[str, list[tuple[str, str]]]:
    try:
        free = shutil.disk_usage(folder).free
        words = [short(folder), _file_system(folder), f"{bytes_text(free)} free"]
        with tempfile.TemporaryDirectory(dir=folder, prefix=".mrbcr-doctor-") as inside:
            locks, renames = _locks(Path(inside)), _renames(Path(inside))
    except OSError as error:
        return f"{short(folder)}: cannot be written to ({said(error)})", [
            ("cannot be written to", "write OUTPUT to another folder")
        ]
    words += [f"locks {'work' if locks else 'do not work'}", f"renames {'work' if renames else 'do not work'}"]
    wrong = []
    if not locks:
        wrong.append(("its file system has no locks", "do not run finish there while a shard is at work"))
    if not renames:
        wrong.append(("its file system cannot rename", "write OUTPUT to another file system"))
    if free < LITTLE_DISK:
        wrong.append((f"only {bytes_text(free)} free", "make room: an output is about as large as its input"))
    return ", ".join(word for word in words if word), wrong


def _locks(folder: Path) -> bool:
    try:
        import fcntl

        with (folder / "lock").open("w") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _renames(folder: Path) -> bool:
    try:
        (folder / "a").mkdir()
        (folder / "a" / "file").write_bytes(b"x")
        (folder / "a").rename(folder / "b")
        return (folder / "b" / "file").read_bytes() == b"x"
    except OSError:
        return False


def _file_system(folder: Path) -> str:
    """Type of the file system, of the mount that is nearest above the folder; empty where that is not known."""
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    mounts = {words[1]: words[2] for words in (line.split() for line in lines) if len(words) > 2}
    above = [str(folder.resolve()), *map(str, folder.resolve().parents)]
    return next((mounts[name] for name in above if name in mounts), "")


def schedulers() -> Findings:
    """Commands of clusters that are on the PATH, and dask's own configuration."""
    found = [name for name in COMMANDS if shutil.which(name)]
    facts: dict[str, Any] = {"commands": ", ".join(found) or "none of a cluster"}
    try:
        import dask.config

        files = [short(path) for folder in dask.config.paths for path in sorted(Path(folder).glob("*.y*ml"))]
        facts["dask configuration"] = ", ".join(files) or "none of yours"
        for key in ("temporary-directory", "jobqueue.slurm.queue", "jobqueue.slurm.interface"):
            value = dask.config.get(key, None)
            if value is not None:
                facts[f"dask {key}"] = short(str(value))
    except (ImportError, OSError, ValueError) as error:
        facts["dask configuration"] = f"cannot be read ({said(error)})"
    return Findings("Cluster", facts)


def environment() -> Findings:
    """Variables that change what mrbcr does. Of what may be secret only the name."""
    facts = {name: short(os.environ[name]) for name in HARMLESS if name in os.environ}
    hidden = sorted(name for name in os.environ if name.startswith(NAMES_ONLY) and name not in HARMLESS)
    if hidden:
        facts["set, not shown"] = ", ".join(hidden)
    return Findings("Environment", facts)
