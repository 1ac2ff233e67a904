"""--json: every event of real runs is as `mrbcr schema` describes it, and none is sent that it does not."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import tifffile

import mrbcr_cli
from mrbcr_cli.cli import run
from mrbcr_cli.console import EVENT_SCHEMA, Reporter
from mrbcr_cli.events import AnyEvent, event_schema
from mrbcr_cli.finish import Outcome
from tests.helpers import spots, tiny_weights

STRICT = jsonschema.Draft202012Validator(event_schema(strict=True))
OPEN = jsonschema.Draft202012Validator(event_schema())


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    return tiny_weights(folder / "tiny.safetensors", limits={"fwhm_px": [2.0, 6.0], "photons": [20.0, 5000.0]})


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command with --json, and return its exit code and events, each of which fits the description."""

    def call(*arguments: object) -> tuple[int, list[dict[str, Any]]]:
        capsys.readouterr()
        code = run([*map(str, arguments), "--json"])
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        for event in events:
            assert event["schema"] == EVENT_SCHEMA
            best = jsonschema.exceptions.best_match(STRICT.iter_errors(event))
            assert best is None, f"{event}: {best.message if best else ''}"
        return code, events

    return call


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(event["event"] for event in events))


def test_events_of_deconvolve(tmp_path: Path, weights: Path, told: Any) -> None:
    image = np.random.default_rng(0).poisson(100, (2, 130, 120)).astype(np.uint16)  # noise alone: outside the domain
    tifffile.imwrite(tmp_path / "in.tif", image, metadata={"axes": "ZYX"})
    (tmp_path / "broken.tif").write_bytes(b"none")
    args = ("deconvolve", tmp_path / "in.tif", "-m", weights, "--tile-size", 64)
    for name in ("a.ome.zarr", "a.ome.tif"):
        code, events = told(*args, "-o", tmp_path / name, "--dry-run")
        assert (code, kinds(events)) == (0, ["warning", "planned"])
        code, events = told(*args, "-o", tmp_path / name)
        assert (code, kinds(events)) == (0, ["warning", "block", "done"])
        done = events[-1]
        assert sum(done["share_of_time"].values()) == pytest.approx(1, abs=1e-3)
        blocks = [event["seconds"] for event in events if event["event"] == "block"]
        for step in ("read", "compute", "write"):
            assert done["seconds"][step] == pytest.approx(sum(block[step] for block in blocks), abs=2e-3)
        assert done["seconds"]["total"] >= done["seconds"]["blocks_wall"] >= 0
        assert kinds(told(*args, "-o", tmp_path / name)[1]) == ["unchanged"]
    code, events = told("deconvolve", tmp_path / "in.tif", tmp_path / "broken.tif", "-m", weights, "-o", tmp_path / "o")
    assert (code, events[-1]["event"], events[-1]["exit_code"]) == (3, "failed", 2)


def test_events_of_shards_and_finish(tmp_path: Path, weights: Path, told: Any) -> None:
    tifffile.imwrite(tmp_path / "in.tif", spots((2, 130, 120)), metadata={"axes": "ZYX"})
    out = tmp_path / "o.ome.zarr"
    args = ("deconvolve", tmp_path / "in.tif", "-m", weights, "--tile-size", 64, "-o", out)
    assert told(*args, "--shard", "0/2")[1][-1]["event"] == "shard"
    code, events = told("finish", out)
    assert (code, kinds(events)) == (3, ["missing"])
    assert told(*args, "--shard", "1/2")[0] == 0
    assert told("finish", out)[1][-1]["event"] == "done"
    assert kinds(told("finish", out)[1]) == ["unchanged"]
    assert kinds(told("finish", out, "--verify")[1]) == ["verified"]
    next(path for path in (out / "0" / "c").rglob("*") if path.is_file()).write_bytes(b"")
    code, events = told("finish", out, "--verify")
    assert (code, kinds(events)) == (3, ["damaged"])


def test_events_of_simulate_evaluate_and_train(tmp_path: Path, weights: Path, told: Any) -> None:
    optics = ("--preset", "63x/1.4oil", "--wavelength", 520, "--pixel", 0.08, "--z-step", 0.2)
    assert kinds(told("simulate", "psf", *optics, "--shape", 3, 15, 15, "-o", tmp_path / "psf.tif")[1]) == ["psf"]
    stack = ("simulate", "stack", *optics, "--specimen", "beads", "--shape", 4, 48, 48, "-o", tmp_path / "s.ome.zarr")
    assert kinds(told(*stack, "--dry-run")[1]) == ["planned"]
    assert kinds(told(*stack)[1]) == ["block", "stack"]
    pairs = ("simulate", "pairs", "--count", 20, "--patch", 48, "--planes", 3, "--specimen", "filaments")
    pairs = (*pairs, "--workers", 1, "-o", tmp_path / "p.zarr")
    assert kinds(told(*pairs, "--dry-run")[1]) == ["planned"]
    assert kinds(told(*pairs, "--figure", tmp_path / "p.png", "--npz", tmp_path / "npz")[1]) == ["done"]
    judge = ("evaluate", "--pairs", tmp_path / "p.zarr", "-m", weights, "--no-baselines", "--limit", 2)
    assert kinds(told(*judge, "-o", tmp_path / "s.json")[1]) == ["image", "done"]
    sharp = tmp_path / "s_truth.ome.zarr"
    assert kinds(told("evaluate", sharp, "--truth", sharp)[1]) == ["image", "done"]
    train = ("train", "-o", tmp_path / "run", "--pairs", tmp_path / "p.zarr", "--steps", 2, "--batch", 2, "--patch", 32)
    code, events = told(*train, "--log-every", 1, "--threads", 1)
    assert (code, kinds(events)) == (0, ["step", "trained"])


def test_every_kind_is_described() -> None:
    """Those that stand in the code, and the outcomes that are sent by their status."""
    sent: set[str] = set()
    for path in Path(mrbcr_cli.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("event", "_event") and node.args:
                first = node.args[0]
                sent |= {first.value} if isinstance(first, ast.Constant) else set()
            named = isinstance(node, ast.Call) and getattr(node.func, "id", "") == Outcome.__name__
            if named and isinstance(node.args[1], ast.Constant):
                sent.add(node.args[1].value)
    described = {model.model_fields["event"].annotation.__args__[0] for model in AnyEvent}
    assert sent == described
    assert {"planned", "done", "block", "failed", "verified", "step"} <= sent


def test_the_schema_is_one_and_open_to_what_comes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == event_schema()
    jsonschema.Draft202012Validator.check_schema(printed)
    event = {"event": "block", "schema": 1, "output": "o", "number": 3, "seconds": {"read": 0.1}}
    OPEN.validate({**event, "of_a_later_release": 1})
    with pytest.raises(jsonschema.ValidationError):
        STRICT.validate({**event, "of_a_later_release": 1})
    for wrong in ({**event, "schema": 2}, {**event, "event": "nonesuch"}, {k: event[k] for k in ("event", "schema")}):
        with pytest.raises(jsonschema.ValidationError):
            OPEN.validate(wrong)


def test_what_json_lacks_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter(as_json=True).event("step", loss=float("nan"), psnr=float("inf"), rest=[1.5, {"a": float("-inf")}])
    assert json.loads(capsys.readouterr().out)["rest"] == [1.5, {"a": None}]
