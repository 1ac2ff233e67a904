"""The doctor reports all of the machine, nothing that is secret, and names what is missing with its cure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from mrbcr_cli.cli import run
from mrbcr_cli.doctor import machine, report, self_test, software
from mrbcr_cli.doctor.findings import Findings, Trouble, short
from mrbcr_cli.weights import list_weights

SECTIONS = (
    *("Versions", "Optional extras", "Processor", "Memory", "Devices", "Codecs", "Folders", "Cluster", "Environment"),
    *("Embedded models", "Self-test"),
)


@pytest.fixture(scope="module")
def findings() -> list[Findings]:
    return report.examine()


def test_it_reports_everything_and_this_machine_is_well(findings: list[Findings]) -> None:
    assert tuple(part.title for part in findings) == SECTIONS
    facts = report.as_facts(findings)
    assert {"mrbcr", "python", "platform", "torch", "dask", "zarr", "tifffile"} <= set(facts["Versions"])
    assert set(facts["Embedded models"]) == set(list_weights())
    assert all("sha256" in text for text in facts["Embedded models"].values())
    assert "zstd" in facts["Codecs"]["TIFF"]
    assert "locks work" in facts["Folders"]["temporary folder"]
    needed, _ = report.troubles_of(findings)
    assert needed == []


def test_the_text_can_be_pasted(findings: list[Findings]) -> None:
    text = report.as_text(findings)
    for title in SECTIONS:
        assert f"\n### {title}\n" in text
    for line in text.splitlines():
        assert not line or line.startswith(("#", "- ")), line
    assert text.count("### What is missing") == 1


def test_json_says_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, findings: list[Findings]
) -> None:
    monkeypatch.setattr(report, "examine", lambda: findings)
    assert run(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(report.as_facts(findings)))


def test_what_is_needed_and_missing_ends_in_exit_3(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Findings("Codecs", {}, (Trouble("no zstd of TIFF", "pip install --upgrade imagecodecs", needed=True),))
    monkeypatch.setattr(report, "examine", lambda: [broken])
    assert run(["doctor"]) == 3
    said = capsys.readouterr()
    assert "- **needed**: no zstd of TIFF: pip install --upgrade imagecodecs" in said.out
    assert said.err == "error: no zstd of TIFF; what to do is said above\n"


def test_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "do-not-show"
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "FSSPEC_S3_SECRET", "SLURM_JWT", "DASK_TOKEN", "MY_KEY"):
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("SLURM_JOB_USER", "someone")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = machine.environment()
    assert secret not in str(found)
    assert "someone" not in str(found)
    assert "MY_KEY" not in str(found)
    assert "AWS_SECRET_ACCESS_KEY" in found.facts["set, not shown"]
    assert found.facts["OMP_NUM_THREADS"] == "3"


def test_home_is_shortened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert short(tmp_path / "data" / "x.tif") == "~/data/x.tif"
    assert short(tmp_path) == "~"
    assert short(f"{tmp_path}2/x") == f"{tmp_path}2/x"


def test_a_folder_without_locks_or_writing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRBCR_WORK_DIR", str(tmp_path / "not_there"))
    found = machine.folders()
    assert any("MRBCR_WORK_DIR: cannot be written to" in trouble.what for trouble in found.troubles)
    monkeypatch.setenv("MRBCR_WORK_DIR", str(tmp_path))
    monkeypatch.setattr(machine, "_locks", lambda folder: False)
    found = machine.folders()
    assert "locks do not work" in found.facts["MRBCR_WORK_DIR"]
    assert any("no locks" in trouble.what for trouble in found.troubles)
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_missing_or_old_is_named_with_its_cure() -> None:
    found = software.versions([Requirement("no-such-package-of-ours>=2"), Requirement("numpy<1")])
    assert [(t.needed, t.cure) for t in found.troubles] == [
        (True, "pip install 'no-such-package-of-ours>=2'"),
        (True, "pip install 'numpy<1'"),
    ]
    assert found.facts["no-such-package-of-ours"] == "missing"


def test_extras_are_those_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "_extras", lambda: ["remote", "convert", "test"])
    asked = [
        Requirement("numpy; extra == 'remote'"),
        Requirement("no-such-package-of-ours; extra == 'convert'"),
        Requirement("another-one; extra == 'test'"),
    ]
    found = software.extras(asked)
    assert found.facts["remote"] == f"numpy {metadata.version('numpy')}"
    assert found.facts["convert"] == "missing: no-such-package-of-ours"
    assert "test" not in found.facts
    assert [(t.needed, t.cure) for t in found.troubles] == [(False, "pip install 'mrbcr[convert]'")]


def test_a_model_that_is_not_the_one_installed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "_recorded_hashes", lambda: {"widefield": "0" * 64})
    found = software.models()
    assert "NOT what was installed" in found.facts["widefield"]
    assert [t.needed for t in found.troubles] == [True]


def test_the_self_test_notices_other_results(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {**self_test.EXPECTED, "mean": self_test.EXPECTED["mean"] + 20}
    monkeypatch.setattr(self_test, "measure", lambda: wrong)
    assert [t.needed for t in self_test.self_test().troubles] == [True]

    def broken() -> dict[str, float]:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(self_test, "measure", broken)
    assert "RuntimeError: no kernel" in self_test.self_test().troubles[0].what


def test_the_self_test_agrees_well_within_its_tolerance() -> None:
    found = self_test.measure()
    for name, value in self_test.EXPECTED.items():
        assert abs(found[name] - value) < 0.05 * self_test.TOLERANCE * self_test.EXPECTED["maximum"], name


def test_an_examination_that_falls_over_is_a_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    def falls() -> Findings:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(machine, "memory", falls)
    monkeypatch.setattr(self_test, "self_test", lambda: Findings("Self-test"))
    parts = {part.title: part for part in report.examine()}
    assert "ZeroDivisionError: oh" in parts["Memory"].troubles[0].what


def test_a_gpu_that_torch_does_not_see_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100, 550.1, 81559 MiB'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = machine.devices()
    assert found.facts["GPUs of the driver"] == ["NVIDIA H100, 550.1, 81559 MiB"]
    assert "CUDA build" in found.troubles[0].cure
    program.write_text("#!/bin/sh\nexit 9\n")
    assert "failed" in machine.devices().facts["GPUs of the driver"][0]


def test_cores_that_the_control_group_takes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cpu_quota", lambda: 0.5)
    found = machine.cores()
    assert found.facts["quota of the control group"] == "0.5 cores"
    assert found.troubles[0].cure == "give --workers 1"


def test_without_the_package_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    for name in ("requires", "metadata", "files"):
        monkeypatch.setattr(metadata, name, gone)
    assert software.requirements() == []
    found = software.versions([])
    assert "not installed as a package" in found.troubles[0].what
    assert software._recorded_hashes() == {}
    assert software._extras() == []


def test_pip_writes_down_what_verifies_the_models(tmp_path: Path) -> None:
    """The hash in a RECORD is read as it is written: sha256=, base64 for URLs, without padding."""
    info = tmp_path / "mrbcr-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mrbcr\nVersion: 0.1.0\n")
    digest = "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"  # of nothing
    (info / "RECORD").write_text(f"mrbcr_cli/models/a.safetensors,sha256={digest},0\n")
    code = "from mrbcr_cli.doctor.software import _recorded_hashes as r; print(r()['a'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
