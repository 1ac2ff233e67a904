"""From a kind and a number to files and a command line.

Invariant: everything of a case is drawn from `random.Random(f"{kind}:{number}")`.
"""

from __future__ import annotations

import json
import pickle
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.fuzz import corpus, mutate, mutate_tiff

Arguments = list[str]


@dataclass(frozen=True)
class Case:
    """What is run: `arguments` of mrbcr, with {in} and {out} for the two folders; `writes`: whether it may write."""

    files: corpus.Files
    arguments: Arguments
    writes: bool = False


def make_case(kind: str, number: int) -> Case:
    """The case of that kind and number."""
    return KINDS[kind](random.Random(f"{kind}:{number}"))


def place(case: Case, folder: Path) -> Arguments:
    """Write the files into `folder`/in and return the arguments."""
    for name, data in case.files.items():
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return [text.replace("{in}", str(folder / "in")).replace("{out}", str(folder / "out")) for text in case.arguments]


def _image_command(name: str, rng: random.Random) -> tuple[Arguments, bool]:
    """How an image is looked at: mostly described or planned, now and then deconvolved by a tiny network."""
    draw = rng.random()
    extra = rng.choice(([], [], [], [], ["--split-rgb"], ["--axes", "ZYX"], ["--series", "1"]))
    if draw < 0.55:
        return ["info", f"{{in}}/{name}", *extra, *rng.choice(([], ["--json"]))], False
    run = ["deconvolve", f"{{in}}/{name}", "-o", "{out}/o.ome.zarr", "-m", "{in}/w.safetensors", "--device", "cpu"]
    if draw < 0.98:
        return [*run, "--dry-run", *extra], False
    return [*run, "-q", "--workers", "1", *extra], True


def _tiff_case(rng: random.Random) -> Case:
    files = dict(corpus.tiffs()[rng.choice(sorted(corpus.tiffs()))])
    main = next(iter(files))
    changed = rng.choice(sorted(files)) if rng.random() < 0.2 else main
    files[changed] = mutate_tiff.mutated(files[changed], rng)
    arguments, writes = _image_command(main, rng)
    return Case(files | corpus.weights(), arguments, writes)


def _zarr_case(rng: random.Random) -> Case:
    files = dict(corpus.zarrs()[rng.choice(sorted(corpus.zarrs()))])
    documents = [name for name in files if name.rsplit("/", 1)[-1] in ("zarr.json", ".zarray", ".zattrs", ".zgroup")]
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(documents if rng.random() < 0.85 else sorted(files))
        if name in documents and name in files:
            files[name] = mutate.json_document(_parsed(files[name]), rng)
        elif rng.random() < 0.2:
            files[name] = zlib.compress(bytes(rng.choice((10**6, 10**8))))  # a chunk that grows when it is decoded
        else:
            files[name] = mutate.data(files[name], rng)
    if rng.random() < 0.05:
        files.pop(rng.choice(sorted(files)))
    arguments, writes = _image_command("in.zarr", rng)
    return Case(files | corpus.weights(), arguments, writes)


def _parsed(document: bytes) -> object:
    try:
        return json.loads(document)
    except (ValueError, RecursionError):  # mutated before
        return {}


def _weights_case(rng: random.Random) -> Case:
    data = corpus.weights()["w.safetensors"]
    length = int.from_bytes(data[:8], "little")
    header, tensors = json.loads(data[8 : 8 + length]), data[8 + length :]
    how = rng.random()
    if how < 0.4:
        card = json.loads(header["__metadata__"]["mrbcr"])
        header["__metadata__"]["mrbcr"] = mutate.json_document(card, rng).decode("utf-8", "replace")
        data = _safetensors(json.dumps(header).encode(), tensors)
    elif how < 0.75:
        data = _safetensors(mutate.json_document(header, rng), tensors)
    elif how < 0.85:
        stated = rng.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1))
        data = stated.to_bytes(8, "little") + data[8:]
    elif how < 0.88:
        data = pickle.dumps(_Touch(), protocol=rng.randrange(6))
    else:
        data = mutate.data(data, rng, 0, rng.choice((8, length, None)))
    files = {"w.safetensors": data}
    draw = rng.random()
    if draw < 0.5:
        return Case(files, ["weights", "show", "{in}/w.safetensors", *rng.choice(([], ["--json"]))])
    run = ["deconvolve", "{in}/image.tif", "-o", "{out}/o.ome.zarr", "-m", "{in}/w.safetensors", "--device", "cpu"]
    writes = draw > 0.97
    return Case(files | corpus.plain_image(), run + (["-q", "--workers", "1"] if writes else ["--dry-run"]), writes)


class _Touch:
    """A pickle of this runs a command when it is loaded; the judge would see it."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        import os

        return os.system, ("touch owned",)


def _safetensors(header: bytes, tensors: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + tensors


YAML_PIECES = (
    "x: !!python/object/apply:os.system ['touch owned']\n",
    "!!python/object/new:os.system ['touch owned']\n",
    "device: !!python/name:os.system\n",
    "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "network: {guided: [*c,*c,*c,*c,*c,*c,*c,*c,*c]}\n",
    "network: &n {guided: *n}\n",
    "<<: &m {a: 1}\n",
    "<<: [1, 2]\n",
    "? [a, b]\n: 1\n",
    "? {a: b}\n: 1\n",
    "seed: 2001-99-99\n",
    "seed: 2001-12-14t21:59:43.10-99:99\n",
    "seed: " + "9" * 5000 + "\n",
    "seed: 0o17\n",
    "device: !!binary 'x=='\n",
    "device: !!float x\n",
    "device: !!int ''\n",
    "range: [.nan, .inf]\n",
    "range: [1e400, -1e400]\n",
    "device: '\\ud800'\n",
    'device: "\\ud800"\n',
    'device: "\\x1b[31m\\n\\0"\n',
    "model: [" * 300,
    "- " * 2000 + "x\n",
    "%YAML 9.9\n---\n",
    "--- a\n--- b\n",
    "\x00",
    "\ufeff",
    "device: cuda:99999999999999999999\n",
)


def _dumped(document: object) -> bytes:
    """A document as YAML; as JSON, which is YAML too, where PyYAML cannot write it for its depth."""
    try:
        written = yaml.safe_dump(document, allow_unicode=True, sort_keys=False)
    except RecursionError:
        written = json.dumps(document)
    return written.encode("utf-8", "surrogatepass")


def _yaml_case(rng: random.Random) -> Case:
    command = rng.choice(sorted(corpus.CONFIGURATIONS))
    written = corpus.CONFIGURATIONS[command]
    how = rng.random()
    if how < 0.55:
        text = _dumped(mutate.tree(yaml.safe_load(written), rng))
    elif how < 0.75:
        lines = written.splitlines(keepends=True)
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(YAML_PIECES))
        text = "".join(lines).encode("utf-8", "surrogatepass")
    elif how < 0.9:
        text = mutate.text(written, rng).encode("utf-8", "surrogatepass")
    else:
        text = mutate.data(written.encode(), rng)
    commands = {
        "deconvolve": ["deconvolve", "{in}/image.tif", "-o", "{out}/o.ome.zarr", "-m", "{in}/w.safetensors"],
        "pairs": ["simulate", "pairs", "-o", "{out}/o.zarr"],
        "stack": ["simulate", "stack", "-o", "{out}/o.ome.zarr"],
        "train": ["train", "-o", "{out}/run", "--workers", "1", "--device", "cpu"],
    }
    files = {"c.yaml": text}
    if command == "deconvolve":
        files |= corpus.plain_image() | corpus.weights()
    return Case(files, [*commands[command], "-c", "{in}/c.yaml", "--dry-run"])


def _psf_case(rng: random.Random) -> Case:
    kind = rng.choice(sorted(corpus.psfs()))
    (name, data), *_ = corpus.psfs()[kind].items()
    how = rng.random()
    if how < 0.5 and kind == "npy":
        header = data[10:128].decode("latin-1")
        changed = mutate.text(header, rng).encode("utf-8", "replace")[: 2**16 - 1]
        data = data[:8] + len(changed).to_bytes(2, "little") + changed + data[128:]
    elif how < 0.55:
        data = pickle.dumps(_Touch(), protocol=rng.randrange(6))
    else:
        data = mutate.data(data, rng)
    run = [
        "deconvolve",
        "{in}/image.tif",
        "-o",
        "{out}/o.ome.zarr",
        "--device",
        "cpu",
        "--method",
        "wiener",
        "--balance",
        "0.01",
    ]
    return Case({name: data} | corpus.plain_image(), [*run, "--psf", f"{{in}}/{name}", "--dry-run"])


KINDS: dict[str, Callable[[random.Random], Case]] = {
    "tiff": _tiff_case,
    "zarr": _zarr_case,
    "weights": _weights_case,
    "yaml": _yaml_case,
    "psf": _psf_case,
}
SHARES = {"tiff": 0.4, "zarr": 0.25, "weights": 0.15, "yaml": 0.15, "psf": 0.05}
"""What part of a run each kind is."""
