"""What `mrbcr deconvolve` writes, opened by the libraries of viewers: under Node, and drawn in a browser.

Invariant: they find the same pixels, bit for bit, and a picture of them on the screen. Everything is served from this
machine; npm packages come from the registry once, as the lock file pins them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.outputs import CHANNELS, SCALE_ZYX_UM, SHAPE_CZYX, ZARRS, Outputs, level_shapes
from tests.serving import serve

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).parent / "viewers"
LONGEST_S = 300


def call(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LONGEST_S, check=False)


@pytest.fixture(scope="session")
def viewers(request: pytest.FixtureRequest) -> Path:
    """A folder with the scripts and what they import, kept from one run of the tests to the next."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    lock = SOURCE / "package-lock.json"
    folder = Path(request.config.cache.mkdir("viewers")) / hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    for file in SOURCE.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    complete = folder / "complete"
    if not complete.exists():
        done = call(folder, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
        if done.returncode:
            pytest.skip(f"npm ci failed: {' '.join(done.stderr.split())[-300:]}")
        complete.touch()
    return folder


@pytest.fixture(scope="session")
def site(outputs: Outputs, viewers: Path) -> Iterator[str]:
    """Address of a server of the outputs, with a page that shows them."""
    folder = outputs.tiff.parent
    bundling = ["npx", "--no", "esbuild", "page.mjs", "--bundle", "--format=esm", "--splitting", "--log-level=error"]
    built = call(viewers, *bundling, f"--outdir={folder / 'bundle'}")
    assert built.returncode == 0, built.stderr
    shutil.copy(viewers / "page.html", folder)
    with serve(folder) as address:
        yield address


def read_with(library: str, viewers: Path, url: str) -> dict[str, Any]:
    done = call(viewers, "node", "read.mjs", library, url)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["axes"] == ["c", "z", "y", "x"]
    assert found["channels"] == CHANNELS
    return found


def checksum(image: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


@pytest.mark.parametrize("version", ZARRS)
def test_zarrita(outputs: Outputs, viewers: Path, site: str, version: str) -> None:
    store = outputs.zarr[version]
    levels = read_with("zarrita", viewers, f"{site}/{store.name}")["levels"]
    group = zarr.open_group(store, mode="r")
    assert [tuple(level["shape"]) for level in levels] == level_shapes()
    assert {level["dtype"] for level in levels} == {"uint16"}
    assert levels[0]["sha256"] == checksum(outputs.wanted)
    wanted = [checksum(np.asarray(group[str(k)])) for k in range(len(levels))]
    assert [level["sha256"] for level in levels] == wanted


@pytest.mark.parametrize("version", ZARRS)
def test_ome_zarr_js(outputs: Outputs, viewers: Path, site: str, version: str) -> None:
    found = read_with("ome-zarr.js", viewers, f"{site}/{outputs.zarr[version].name}")
    assert tuple(found["shape"]) == SHAPE_CZYX
    assert found["scales"][0] == pytest.approx([1, *SCALE_ZYX_UM])
    first = outputs.wanted[tuple(slice(n) for n in found["chunk"]["shape"])]
    assert found["chunk"]["sha256"] == checksum(first)


@pytest.fixture(scope="session")
def chromium() -> str:
    named = os.environ.get("CHROMIUM")
    found = named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("Chromium is not installed (set CHROMIUM to its path)")
    return found


@pytest.mark.parametrize("version", ZARRS)
def test_viv_draws_it_in_a_browser(
    outputs: Outputs, viewers: Path, site: str, chromium: str, tmp_path: Path, version: str
) -> None:
    """One image pixel a screen pixel: the picture is compared with the plane, channel by channel."""
    from PIL import Image

    plane, (height, width) = 1, SHAPE_CZYX[-2:]
    url = f"{site}/page.html?url={site}/{outputs.zarr[version].name}&size={width},{height}&z={plane}"
    picture = tmp_path / "screen.png"
    done = call(viewers, "node", "screenshot.mjs", chromium, url, str(width), str(height), str(picture))
    assert done.returncode == 0, done.stderr
    with Image.open(picture) as image:
        screen = np.asarray(image.convert("RGB")).astype(float)
    assert screen.shape == (height, width, 3)
    # The channels are green and magenta: each colour of the screen is one of them.
    for colour, channel in ((1, 0), (0, 1)):
        wanted = outputs.wanted[channel, plane].astype(float)
        low, high = np.percentile(wanted, (0.1, 99.9))
        shown = np.clip((wanted - low) / (high - low), 0, 1)
        assert np.corrcoef(screen[..., colour].ravel(), shown.ravel())[0, 1] > 0.98
