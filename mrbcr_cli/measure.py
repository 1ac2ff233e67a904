"""Tile and batch sizes tried out on this machine, and what was found remembered for later runs on it.

Invariant: what is remembered changes how fast a run is, never its pixels; a record that is missing, damaged or of
another machine, model, precision or PyTorch counts as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import platform
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mrbcr_cli.capacity import Needs, at_once, cpu_count, cpu_info, memory_for_blocks, on_gpu
from mrbcr_cli.intensity import IntensityRange
from mrbcr_cli.methods import ChannelMethod
from mrbcr_cli.restore import Method, NetworkSpec, resolve_device
from mrbcr_cli.settings import DeconvolveSettings
from mrbcr_cli.stream.engine import method_for
from mrbcr_cli.whole_file import replace_text

TILES_PX = (512, 768, 1024, 1536, 2048)
BATCHES_ON_GPU = (1, 4, 16)
_REPEATS = 3
_FORMAT = 2


@dataclass(frozen=True)
class TileSpeed:
    """What one size of blocks gives."""

    tile_px: int
    batch_size: int
    megapixels_per_s: float
    """Of the output: what is computed for the halo does not count."""
    graphs: bool = False
    """Whether the kernels of a tile are launched as one CUDA graph."""


def cache_file() -> Path:
    """Where measurements are kept: $MRBCR_CACHE_DIR, else the user's cache folder."""
    own = os.environ.get("MRBCR_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME")
    folder = Path(own) if own else (Path(base) if base else Path.home() / ".cache") / "mrbcr"
    return folder / "tiles.json"


def measured(settings: DeconvolveSettings) -> TileSpeed | None:
    """What was found best for these settings on this machine; None where nothing was, or it does not apply."""
    if settings.method != "network" or settings.kind != "threads" or settings.tile_size is not None:
        return None
    known = _known()
    with contextlib.suppress(ValueError, TypeError, KeyError):
        best = known[_key(settings)]["best"] if known else {}
        sizes = int(best["tile_px"]), int(best["batch_size"])
        speed = TileSpeed(*sizes, float(best["megapixels_per_s"]), bool(best["graphs"]) and on_gpu(settings))
        allowed = BATCHES_ON_GPU if on_gpu(settings) else (1,)
        return speed if speed.tile_px in TILES_PX and speed.batch_size in allowed else None
    return None


def with_measured(settings: DeconvolveSettings) -> tuple[DeconvolveSettings, int | None]:
    """The settings with the batch size that was found best unless the user sets one, and the tile size found best."""
    best = measured(settings)
    if best is None:
        return settings, None
    if "batch_size" not in settings.model_fields_set:
        settings = settings.model_copy(update={"batch_size": best.batch_size})
    return settings, best.tile_px


def with_graphs(methods: tuple[ChannelMethod, ...], settings: DeconvolveSettings) -> tuple[ChannelMethod, ...]:
    """The methods, their networks launched as CUDA graphs where that was found best."""
    best = measured(settings)
    if best is None or not best.graphs:
        return methods
    return tuple(
        replace(m, spec=replace(m.spec, graphs=True)) if isinstance(m.spec, NetworkSpec) else m for m in methods
    )


def measure(settings: DeconvolveSettings, spec: NetworkSpec, say: Callable[[str], None]) -> list[TileSpeed]:
    """Try tile and batch sizes that fit memory, keep the best for later runs, return all, the fastest first.

    Raises OSError where the cache cannot be written.
    """
    found = []
    cuda = on_gpu(settings)
    for batch, graphs in itertools.product(BATCHES_ON_GPU, (False, True)) if cuda else ((1, False),):
        method = method_for(replace(spec, batch_size=batch, graphs=graphs))
        needs = Needs.of([method])
        for tile in TILES_PX:
            read = tile + 2 * needs.halo_zyx[1]
            need = batch * read * read * needs.bytes_per_voxel
            slots = 1 if cuda else at_once(needs, need, (tile, tile), cpu_count())
            if slots * need > memory_for_blocks(settings):
                continue
            size = f"tile {tile} px, batch {batch}" + (", CUDA graphs" if graphs else "")
            plain = method_for(replace(spec, batch_size=batch))
            if graphs and (why := _disagrees(method, plain, (batch, read, read))):
                say(f"{size}: not used ({why})")
                continue
            taken = _seconds(method, (batch, read, read), slots, max(1, cpu_count() // slots))
            found.append(TileSpeed(tile, batch, round(slots * batch * tile * tile / taken / 1e6, 3), graphs))
            say(f"{size}: {found[-1].megapixels_per_s} Mpixel/s of output")
    found.sort(key=lambda speed: -speed.megapixels_per_s)
    if found:
        _remember(settings, found)
    return found


def _disagrees(method: Method, plain: Method, shape_zyx: tuple[int, int, int]) -> str:
    """Why a method that should do what another does is not to be used; empty where it may be."""
    drawn = np.random.default_rng(1).random((4, *shape_zyx), np.float32)
    inner = ((True, True), (False, False), (False, False))
    try:
        # As in a run: one thread records while the other computes, and what was recorded is launched for other blocks.
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda block: method.restore(block, IntensityRange(0, 1), inner), drawn))
    except RuntimeError as error:
        return f"it failed: {str(error).splitlines()[0]}"
    expected = [plain.restore(block, IntensityRange(0, 1), inner) for block in drawn]
    off = float(np.abs(np.stack(found) - np.stack(expected)).max())
    return "" if off < 1e-3 else f"the result is off by {off:.2g} of the range"


def _seconds(method: Method, shape_zyx: tuple[int, int, int], slots: int, torch_threads: int) -> float:
    """Median time in which `slots` threads each do one block of the inside of an image."""
    import torch

    block = np.random.default_rng(0).random(shape_zyx, np.float32)

    def work() -> None:
        torch.set_num_threads(torch_threads)
        method.restore(block, IntensityRange(0, 1), ((True, True), (False, False), (False, False)))

    taken = []
    for _ in range(_REPEATS + 1):
        threads = [threading.Thread(target=work) for _ in range(slots)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken.append(time.perf_counter() - started)
    return sorted(taken[1:])[_REPEATS // 2]


def _remember(settings: DeconvolveSettings, speeds: list[TileSpeed]) -> None:
    path, known = cache_file(), _known()
    table = [asdict(speed) for speed in speeds]
    known[_key(settings)] = {"machine": _machine(settings), "best": table[0], "all": table}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps({"format": _FORMAT, "machines": known}, indent=1) + "\n")


def _known() -> dict[str, Any]:
    """What was found on all machines; empty where there is no sound record."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        found = json.loads(cache_file().read_text())
        if found["format"] == _FORMAT:
            return dict(found["machines"])
    return {}


def _key(settings: DeconvolveSettings) -> str:
    from mrbcr_cli.weights import load_weights

    models = sorted({load_weights(name).sha256 for name in settings.models_by_channel().values()})
    facts = {**_machine(settings), "models": models, "precision": settings.precision, "halo": settings.tile_overlap}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _machine(settings: DeconvolveSettings) -> dict[str, Any]:
    import torch

    device = resolve_device(settings.device)
    name = torch.cuda.get_device_name(torch.device(device)) if device.startswith("cuda") else _cpu_name()
    return {"device": name, "cores": cpu_count(), "torch": torch.__version__}


def _cpu_name() -> str:
    return cpu_info()[0] or platform.processor() or platform.machine()
