"""What `mrbcr init` prints is accepted as it is and means the defaults; each of its lines is accepted when set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mrbcr_cli.cli import run
from mrbcr_cli.configuration import load_configuration
from mrbcr_cli.errors import InputError
from mrbcr_cli.settings import load_settings
from mrbcr_cli.template import TEMPLATES, settings_class

OPTION = re.compile(r"^#?([a-z][a-z0-9-]*): (.+)$")
SURROUNDINGS: dict[str, list[dict[str, Any]]] = {
    "deconvolve": [
        {"method": "richardson-lucy", "psf": "psf.tif"},
        {"method": "wiener", "psf": "psf.tif"},
        {"cluster": "slurm"},
        {"cluster": "local"},
    ],
    "train": [{"pairs": ()}, {"pairs": (), "input_dir": "a"}, {"pairs": (), "target_dir": "a"}],
    "simulate-pairs": [{"source": ["sharp.tif"]}],
    "simulate-stack": [{"specimen": (), "shape": None}],
}
"""What an option may need beside it, where it means nothing alone."""


def printed(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run(["init", *name.split("-")]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", TEMPLATES)
def test_unchanged_it_is_the_defaults(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(printed(name, capsys))
    kind, needed = settings_class(TEMPLATES[name]), TEMPLATES[name].needed
    assert load_configuration(kind, tmp_path / "run.yaml", {}, "test") == kind(**needed)


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_option_is_in_it_with_what_it_does(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(name, capsys).splitlines()
    found = [(match[1], number) for number, line in enumerate(lines) if (match := OPTION.match(line))]
    assert sorted(option.replace("-", "_") for option, _ in found) == sorted(
        settings_class(TEMPLATES[name]).model_fields
    )
    for option, number in found:
        assert lines[number - 1].startswith("# "), f"{option} is not explained"
        block = " ".join(line[2:] for line in lines[max(i for i in range(number) if not lines[i]) + 1 : number])
        assert "Default: " in block or option.replace("-", "_") in TEMPLATES[name].needed, f"{option}: {block}"
        assert "null" not in lines[number], f"{option}: no example of what could stand there (template.EXAMPLES)"
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_line_is_accepted_when_it_is_set(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines, kind = printed(name, capsys).splitlines(), settings_class(TEMPLATES[name])
    for number, line in enumerate(lines):
        match = OPTION.match(line)
        if match is None or not line.startswith("#"):
            continue
        file = tmp_path / "run.yaml"
        file.write_text("\n".join([*lines[:number], line[1:], *lines[number + 1 :]]))
        field, refused = match[1].replace("-", "_"), []
        for around in ({}, *SURROUNDINGS.get(name, [])):
            try:
                loaded = load_configuration(kind, file, {k: v for k, v in around.items() if k != field}, "test")
            except InputError as error:
                refused.append(str(error))
                continue
            assert field in loaded.model_fields_set
            break
        else:
            pytest.fail(f"{line} is not accepted: {refused}")


def test_the_command_line_wins_over_the_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = printed("deconvolve", capsys).replace("#tile-size: 1024", "tile-size: 512").replace("#workers", "workers")
    (tmp_path / "run.yaml").write_text(text)
    settings = load_settings(tmp_path / "run.yaml", {"tile_size": 256})
    assert (settings.tile_size, settings.workers) == (256, 2)


def test_what_has_no_configuration_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "simulate"]) == 2
    assert "simulate-pairs" in capsys.readouterr().err
