"""Files made to do harm: each is refused in one line before it costs anything, or read as the plain data it is.

The cases of images are in test_hostile_images; those that concern one reader alone are in its own tests (dataset paths
and links of arrays in images/test_omezarr_refused, entities in images/test_tiff_meta, the safetensors layout in
test_weights, truncation in test_bad_input); mutations of everything are in tests/fuzz.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from mrbcr_cli.cli import run
from mrbcr_cli.errors import InputError
from mrbcr_cli.images import tiff_source
from mrbcr_cli.weights import build_network, load_weights
from tests.helpers import card, spots, tiny_weights
from tests.refusals import Said, planned, refused

# --- pickles and arrays ----------------------------------------------------------------------------------------------


class Payload:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_renamed_pickles_are_never_run(tmp_path: Path, capsys: Said, protocol: int) -> None:
    canary = tmp_path / "owned"
    data = pickle.dumps(Payload(canary), protocol=protocol)
    tifffile.imwrite(tmp_path / "in.tif", spots((2, 64, 64)), photometric="minisblack")
    for name in ("w.safetensors", "p.npz", "p.npy"):
        (tmp_path / name).write_bytes(data)
    refused(capsys, "weights", "show", tmp_path / "w.safetensors")
    rest = ("-o", tmp_path / "o.ome.zarr", "--method", "richardson-lucy", "--dry-run")
    for name in ("p.npz", "p.npy"):
        refused(capsys, "deconvolve", tmp_path / "in.tif", "--psf", tmp_path / name, *rest)
    refused(capsys, "train", "-o", tmp_path / "run", "--npz", tmp_path / "p.npz", "--dry-run")
    assert not canary.exists()


def test_pickles_inside_numpy_files_are_never_run(tmp_path: Path, capsys: Said) -> None:
    canary = tmp_path / "owned"
    objects = np.array([[Payload(canary)] * 3] * 3, dtype=object)
    np.save(tmp_path / "p.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "p.npz", psf=objects, low=objects, gt=objects)
    tifffile.imwrite(tmp_path / "in.tif", spots((2, 64, 64)), photometric="minisblack")
    rest = ("-o", tmp_path / "o.ome.zarr", "--method", "richardson-lucy", "--dry-run")
    for name in ("p.npz", "p.npy"):
        assert "pickle" in refused(capsys, "deconvolve", tmp_path / "in.tif", "--psf", tmp_path / name, *rest)
    assert "pickle" in refused(capsys, "train", "-o", tmp_path / "run", "--npz", tmp_path / "p.npz", "--dry-run")
    assert not canary.exists()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 3), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999999999999, 3), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (",
        "{'descr': '|O', 'fortran_order': False, 'shape': (3, 3), }",
        "__import__('os').system('touch owned')",
        "(" * 5000,
    ],
)
def test_numpy_headers_that_lie_are_refused(tmp_path: Path, capsys: Said, header: str) -> None:
    text = header.encode() + b"\n"
    (tmp_path / "p.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(72))
    tifffile.imwrite(tmp_path / "in.tif", spots((2, 64, 64)), photometric="minisblack")
    arguments = ("deconvolve", tmp_path / "in.tif", "-o", tmp_path / "o.ome.zarr", "--psf", tmp_path / "p.npy")
    assert "p.npy" in refused(capsys, *arguments, "--method", "richardson-lucy", "--dry-run")


# --- weights ---------------------------------------------------------------------------------------------------------


def test_a_card_that_asks_for_gigabytes_of_network_is_refused_by_the_shapes(tmp_path: Path) -> None:
    huge = {"alpha": 64, "kt_pairs": [[16] * 4] * 3, "b_pairs": [[16] * 4] * 3, "stages": 3, "guided": True}
    path = tiny_weights(tmp_path / "w.safetensors", settings=huge)
    with pytest.raises(InputError, match=r"w\.safetensors"):
        build_network(load_weights(path))


@pytest.mark.parametrize(
    "header",
    [
        {name: {"dtype": "F32", "shape": [2], "data_offsets": [at, at + 8]} for name, at in (("a", 0), ("b", 4))},
        {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2**63, 2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
    ],
)  # fmt: skip
def test_tensors_that_overlap_or_overflow_are_refused(tmp_path: Path, capsys: Said, header: dict[str, Any]) -> None:
    text = json.dumps({"__metadata__": {"mrbcr": card().to_json()}, **header}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(12))
    assert "damaged" in refused(capsys, "weights", "show", tmp_path / "w.safetensors")


# --- YAML ------------------------------------------------------------------------------------------------------------

LAUGHING = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHING,
        "network: &n {guided: *n}\n",
        "network: &n [*n]\n",
        "<<: [&m {a: 1}, *m]\nnosuch: 1\n",
        "seed: !!python/name:os.system\n",
        "seed: !!python/object/new:os.system [touch owned]\n",
        "seed: !!python/module:antigravity\n",
        "seed: !!timestamp 2001-99-99\n",
        "seed: 2001-12-14t21:59:43.10-99:99\n",
        "seed: " + "9" * 5000 + "\n",
        "seed: !!binary 'x=='\n",
        "seed: !!float x\n",
        "name: '\x00'\n",
        "- " * 3000 + "x\n",
        "# " + "x" * 300_000 + "\n",
    ],
)
@pytest.mark.parametrize("command", [["train"], ["simulate", "pairs"]])
def test_yaml_that_runs_swells_or_breaks_is_refused(
    tmp_path: Path, capsys: Said, text: str, command: list[str]
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    said = refused(capsys, *command, "-o", tmp_path / "o", "-c", tmp_path / "c.yaml", "--dry-run")
    assert "c.yaml" in said
    assert len(said) < 2000


def test_aliases_as_people_use_them_are_fine(tmp_path: Path, capsys: Said) -> None:
    (tmp_path / "c.yaml").write_text("na: &r [0.5, 1.4]\nhaze: [0, 0.6]\nbackground: [0, 0.5]\ngamma: *r\ncount: 2\n")
    assert run(["simulate", "pairs", "-o", str(tmp_path / "o.zarr"), "-c", str(tmp_path / "c.yaml"), "--dry-run"]) == 0


# --- names and words -------------------------------------------------------------------------------------------------

NAMES = [
    "a\nerror: all is well.tif",
    "a\x1b[2J.tif",
    "a\u202etif.exe",
    "-o.tif",
    "--help.tif",
    "a\udcff.tif",
    "a\r.tif",
]


@pytest.mark.parametrize("name", NAMES)
def test_file_names_cannot_steer_the_terminal(tmp_path: Path, capsys: Said, name: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(b"no TIFF")
    said = refused(capsys, "info", "--", name)
    assert "is not a TIFF file" in said
    refused(capsys, *planned(tmp_path, Path("--"), name)[:1], "-o", "o.ome.zarr", "--dry-run", "--", name)


def test_words_in_files_cannot_steer_the_terminal(tmp_path: Path, capsys: Said) -> None:
    bad = "\x1b]0;owned\x07\nname  embedded"
    path = tiny_weights(tmp_path / "w.safetensors", name=bad, domain=bad)
    assert run(["weights", "show", str(path)]) == 0
    tifffile.imwrite(
        tmp_path / "a.ome.tif", spots((2, 16, 16)), photometric="minisblack",
        metadata={"axes": "CYX", "Channel": {"Name": ["a&#27;[2J", "b"]}},
    )  # fmt: skip
    assert run(["info", str(tmp_path / "a.ome.tif")]) == 0
    printed = capsys.readouterr().out
    assert all(line.isprintable() for line in printed.splitlines())
    assert sum(line.startswith("name ") for line in printed.splitlines()) == 1


def test_the_limit_of_a_segment_is_what_the_reader_enforces() -> None:
    assert tiff_source.MAX_SEGMENT_BYTES == 2**30
