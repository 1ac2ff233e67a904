"""Help and parser are one: every option is explained, its default is the one that applies, and examples parse."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from mrbcr_cli import cli_help
from mrbcr_cli.cli import app, run
from mrbcr_cli.optics.microscope import PRESETS
from mrbcr_cli.settings import DeconvolveSettings, OutputFormat
from mrbcr_cli.specimens import KINDS
from mrbcr_cli.template import TEMPLATES, UNITS, settings_class

SCREEN_LINES, SCREEN_COLUMNS = 50, 100
"""A screen: what a terminal window of common size shows at once."""
COUNTS = {"N", "X", "NA", "INDEX"}
"""Metavars of numbers without a unit."""
UNIT_IN_TEXT = ("um", "px", "nm", "image units", "percent", "Airy units", "rad", "counts", "electrons", "waves")
BARE = {
    *("pairs:--scale", "pairs:--gamma", "pairs:--na", "pairs:--na-illumination", "pairs:--ni", "pairs:--ns"),
    "pairs:--offset",
    *("pairs:--photons", "pairs:--background", "pairs:--haze", "pairs:--absorption", "pairs:--target-resolution"),
    *(
        "pairs:--qe",
        "pairs:--gain",
        "pairs:--splits",
        "pairs:--offset",
        "train:--scale-weights",
        "stack:--shape",
        "psf:--shape",
    ),
}
"""Several numbers without a unit, or counted in what the text names."""
COMMAND_LINE_ONLY = {
    "deconvolve": {"inputs", "output", "config", "as_json", "quiet", "debug", "dry_run", "shard", "cluster_config"},
    "train": {"output", "source", "device", "threads", "workers", "overwrite", "dry_run", "template", "config"},
    "simulate-pairs": {"output", "npz", "figure", "workers", "overwrite", "dry_run", "template", "config"},
    "simulate-stack": {"output", "overwrite", "dry_run", "config"},
    "simulate-psf": {
        *("output", "figure", "overwrite", "config", "from_beads", "bead_diameter", "min_snr", "saturation", "voxel"),
    },
}
FILE_ONLY = {
    "deconvolve": {"job_prologue", "interface"},
    "train": {"network", "bordered", "field", "exact", "domain", "trained_on", "licence", "limits"},
    "simulate-pairs": {"zernike"},
}
MESSAGES = {"as_json", "quiet", "debug", "help", "help_all"}


def commands() -> dict[str, Any]:
    """Every command by its words."""
    found: dict[str, Any] = {}

    def walk(group: Any, words: tuple[str, ...]) -> None:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                walk(command, (*words, name))
            else:
                found[" ".join((*words, name))] = command

    walk(typer.main.get_command(app), ())
    return found


COMMANDS = commands()
OPTIONS = [
    (words, parameter)
    for words, command in COMMANDS.items()
    for parameter in command.params
    if parameter.param_type_name == "option"
]
NAMES = [f"{words.split()[-1]}:{max(option.opts, key=len)}" for words, option in OPTIONS]


def default_text(option: Any) -> str:
    return str(option.help).rpartition("Default: ")[2].removesuffix(".")


@pytest.mark.parametrize(("words", "option"), OPTIONS, ids=NAMES)
def test_every_option_says_what_it_is_its_unit_and_its_default(words: str, option: Any) -> None:
    text, name = option.help, f"{words.split()[-1]}:{max(option.opts, key=len)}"
    assert text and text.endswith((".", ")")), name
    assert option.rich_help_panel, name
    plain_flag = option.is_flag and not option.secondary_opts
    assert plain_flag or option.required or "Default: " in text, f"{name}: {text}"
    if option.is_flag:
        return
    assert option.metavar, f"{name}: names no value"
    kind = option.type_descriptor.annotation if hasattr(option, "type_descriptor") else None
    if kind in (int, float):
        assert option.metavar in COUNTS | set(UNITS), f"{name}: the unit of {option.metavar}?"
    elif option.nargs > 1 or option.metavar == "LOW:HIGH":
        assert name in BARE or any(unit in text for unit in UNIT_IN_TEXT), f"{name}: has no unit: {text}"


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_fits_two_screens_and_ends_with_examples(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(SCREEN_COLUMNS))
    assert run([*words.split(), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 2 * SCREEN_LINES
    assert max(map(len, lines)) <= SCREEN_COLUMNS
    examples = COMMANDS[words].epilog.splitlines()
    at = next(number for number, line in enumerate(lines) if line.strip() == "Examples:")
    # One below the other: each begins a line, however it is folded.
    begun = [line.strip() for line in lines[at + 1 :] if line.strip().startswith(("mrbcr ", "torchrun ", "pip "))]
    assert len(begun) == len(examples)
    for line, example in zip(begun, examples, strict=True):
        assert example.startswith(line)


@pytest.mark.parametrize("words", COMMANDS)
def test_no_option_is_out_of_reach(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What --help leaves out, --help-all shows; and --help says that there is more."""
    monkeypatch.setenv("COLUMNS", str(SCREEN_COLUMNS))
    params = COMMANDS[words].params
    rare = [p for p in params if p.hidden]
    run([*words.split(), "--help"])
    short = capsys.readouterr().out
    assert bool(rare) == ("--help-all" in short)
    if rare:
        assert run([*words.split(), "--help-all"]) == 0
        full = capsys.readouterr().out
        for parameter in params:
            assert cli_help.option_text(parameter) in full
            assert (parameter in rare) == (f"{cli_help.option_text(parameter)} " not in short)


def test_a_flag_that_can_be_turned_off_says_so() -> None:
    by_name = {p.name: cli_help.option_text(p) for p in COMMANDS["deconvolve"].params}
    assert by_name["resume"] == "--[no-]resume"
    assert by_name["output"] == "-o, --output FILE"
    stack = {p.name: cli_help.option_text(p) for p in COMMANDS["simulate stack"].params}
    assert stack["aplanatic"] == "--aplanatic/--uniform"


@pytest.mark.parametrize("name", TEMPLATES)
def test_options_are_settings_and_settings_are_options(name: str) -> None:
    template = TEMPLATES[name]
    options = {"range" if p.name == "intensity_range" else p.name for p in COMMANDS[" ".join(template.words)].params}
    fields = set(settings_class(template).model_fields)
    assert options - fields == (COMMAND_LINE_ONLY[name] | MESSAGES) & options
    assert COMMAND_LINE_ONLY[name] <= options
    assert fields - options == FILE_ONLY.get(name, set())


def meant(text: str) -> set[str]:
    """Ways to write a default: "0:0.5" and "1 1 1" are numbers, "yes" is true, what follows a semicolon is other."""
    text = text.partition(";")[0]
    words: set[str] = {text, text.partition(" (")[0]}
    return words | {text.replace(":", " ")}


def written(value: Any) -> set[str]:
    """Ways to write a value of the settings in help."""
    if isinstance(value, bool):
        return {"yes" if value else "no"}
    if isinstance(value, tuple):
        one = {f"{value[0]:g}"} if len(set(value)) == 1 and isinstance(value[0], float) else set()
        return one | {" ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value)}
    return {f"{value:g}" if isinstance(value, float) else str(value)}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_default_in_the_help_is_that_of_the_settings(name: str) -> None:
    template = TEMPLATES[name]
    fields = settings_class(template).model_fields
    compared = 0
    for parameter in COMMANDS[" ".join(template.words)].params:
        info = fields.get("range" if parameter.name == "intensity_range" else parameter.name)
        if info is None:
            continue
        default = info.get_default(call_default_factory=True)
        assert parameter.default is None, f"{parameter.name}: a default of the parser would hide the configuration's"
        if default in (None, ()):
            continue  # found out later: the help says how
        if parameter.is_flag and not parameter.secondary_opts:
            assert default is False
            continue
        assert meant(default_text(parameter)) & written(default), f"{parameter.name}: {parameter.help} but {default!r}"
        compared += 1
    assert compared >= 10


@pytest.mark.parametrize("words", COMMANDS)
def test_examples_parse(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each runs through the parser up to the command itself."""
    for line in COMMANDS[words].epilog.splitlines():
        typed = shlex.split(line.partition("  #")[0].partition(" >")[0])
        if typed[0] == "torchrun":
            typed = ["mrbcr", *typed[typed.index("mrbcr_cli") + 1 :]]
        if typed[0] != "mrbcr":
            assert typed[:2] == ["pip", "install"]
            continue
        found = next(w for w in sorted(COMMANDS, key=len, reverse=True) if typed[1:][: len(w.split())] == w.split())
        command, rest = COMMANDS[found], typed[1 + len(found.split()) :]
        with command.make_context("mrbcr", rest, resilient_parsing=False) as context:
            assert not context.args, line


def test_words_that_a_shell_completes_are_those_that_are_accepted() -> None:
    fields = DeconvolveSettings.model_fields
    assert get_args(fields["method"].annotation) == cli_help.METHODS
    assert get_args(OutputFormat) == cli_help.OUTPUT_FORMATS
    assert get_args(fields["compression"].annotation) == cli_help.COMPRESSIONS
    assert get_args(fields["precision"].annotation) == cli_help.PRECISIONS
    assert tuple(p.name for p in PRESETS) == cli_help.PRESETS
    assert tuple(KINDS) == cli_help.KINDS
    for words, name in (("simulate pairs", "simulate-pairs"), ("simulate psf", "simulate-psf")):
        kinds = settings_class(TEMPLATES[name]).model_fields["microscope"].annotation
        assert set(cli_help.MICROSCOPES) <= {*get_args(kinds), *(k for a in get_args(kinds) for k in get_args(a))}, (
            words
        )


def complete(line: str, *, cwd: Path, environment: dict[str, str] | None = None) -> list[str]:
    """What bash is offered for the last word of a line, by a process of its own."""
    words = line.split(" ")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "from mrbcr_cli.cli import main; main()"],
        env={
            **os.environ,
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
            "_MRBCR_COMPLETE": "complete_bash",
            "PYTHONPATH": str(Path(__file__).parents[1]),
            **(environment or {}),
        },
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    imported = {entry.rpartition("|")[2].strip() for entry in done.stderr.splitlines()}
    assert not imported & {"torch", "dask", "zarr", "tifffile", "matplotlib"}, "completion must be quick"
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mrbcr decon", {"deconvolve"}),
        ("mrbcr ", {"deconvolve", "info", "train", "simulate", "evaluate", "finish", "init", "doctor", "weights"}),
        ("mrbcr simulate ", {"psf", "stack", "pairs"}),
        ("mrbcr deconvolve --output-f", {"--output-format"}),
        ("mrbcr deconvolve a.tif --method ", set(cli_help.METHODS)),
        ("mrbcr deconvolve a.tif --output-format ome-z", {"ome-zarr", "ome-zarr-0.4"}),
        ("mrbcr deconvolve a.tif --precision b", {"bf16"}),
        ("mrbcr deconvolve a.tif -m w", {"widefield"}),
        ("mrbcr deconvolve a.tif -m mi", {"mine.safetensors"}),
        ("mrbcr deconvolve a.tif -m 0=c", {"0=confocal"}),
        ("mrbcr weights show b", {"brightfield"}),
        ("mrbcr simulate psf --preset 6", {"63x/1.4oil"}),
        ("mrbcr init simulate-p", {"simulate-psf", "simulate-pairs"}),
    ],
)
def test_a_shell_completes(line: str, expected: set[str], tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").touch()
    offered = set(complete(line, cwd=tmp_path))
    assert expected <= offered
    if not line.endswith(" "):
        assert offered == expected


def test_folders_lead_to_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run1").mkdir()
    (tmp_path / "run1" / "best.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    assert "run1/" in cli_help.complete_model("ru")
    assert "run1/best.safetensors" in cli_help.complete_model("run1/")
    assert cli_help.complete_model("no/such/folder/")[0] == "brightfield"


def test_help_is_plain_where_it_is_piped() -> None:
    """No colours in a file, and nothing but the text."""
    done = subprocess.run(
        [sys.executable, "-m", "mrbcr_cli", "deconvolve", "--help"],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "100"},
    )
    assert b"\x1b" not in done.stdout
    assert done.stderr == b""
    assert io.BytesIO(done.stdout).readlines()[1].strip() == b"Usage: mrbcr deconvolve [OPTIONS] INPUT..."
