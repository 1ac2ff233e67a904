"""Endless training data, simulated while the network trains: fields of light, exposed anew each time they are used.

Invariant: field i and what is cut from it at step s are functions of the settings, the seed and these numbers alone:
neither the number of workers nor an interruption changes a batch. Scenes are drawn on worker processes; on an
accelerator they are imaged (FFT) and exposed there.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrbcr_cli.optics.camera import expose_batch, mean_counts_batch
from mrbcr_cli.simulate.conditions import Conditions, Light, draw_conditions, draw_light
from mrbcr_cli.simulate.image_scene import Imaged, image_scene
from mrbcr_cli.simulate.pair import PairsJob
from mrbcr_cli.simulate.scene import draw_scene
from mrbcr_cli.stream.pool import Submit, Work
from mrbcr_cli.train.batches import Batch, normalise
from mrbcr_cli.train.explicit import Optics, deconvolve_patches, told_optics

_DIMMEST = 0.05
"""Of the field's peak: a crop whose own peak is below is exposed as if it had this one, or empty ground would be
amplified into structure."""
_SEED_FIELD, _SEED_BATCH = 1, 2


@dataclass(frozen=True, eq=False)
class _Drawn:
    """A scene before the optics: planes (n, field, field) float16 and its conditions."""

    planes: NDArray[np.float16]
    conditions: Conditions


def draw_field(job: PairsJob, field_px: int, stream: int, index: int) -> _Drawn:
    """Draw the scene of field `index` of a stream (one for each process of a distributed run)."""
    seed = np.random.SeedSequence([job.settings.seed, _SEED_FIELD, stream, index])
    rng = np.random.Generator(np.random.Philox(seed))
    conditions = draw_conditions(rng, job.settings, job.psf.focus if job.psf is not None else None)
    scene, _ = draw_scene(rng, job.settings, conditions, job.sources_of("train"), field_px)
    return _Drawn(scene.astype(np.float16), conditions)


@dataclass(frozen=True, eq=False)
class _Field:
    """An imaged scene."""

    light: Tensor
    """Signal, haze and target, (3, field, field) float16."""
    transmitted: bool
    optics: Optics | None
    """What explicit methods are told; None where there is no PSF, or nobody asks."""


@dataclass(frozen=True, eq=False)
class _Packed:
    """A `_Field` on its way from a worker: a tensor would hold an open file in this process as long as it lives."""

    light: NDArray[np.float16]
    transmitted: bool
    psf_yx: NDArray[np.float32] | None
    target_fwhm_px: float

    @classmethod
    def of(cls, field: _Field) -> _Packed:
        """Pack a field of a CPU."""
        if field.optics is None:
            return cls(field.light.numpy(), field.transmitted, None, 0.0)
        return cls(field.light.numpy(), field.transmitted, field.optics.psf_yx.numpy(), field.optics.target_fwhm_px)

    def field(self) -> _Field:
        """The field again."""
        optics = None if self.psf_yx is None else Optics(torch.from_numpy(self.psf_yx), self.target_fwhm_px)
        return _Field(torch.from_numpy(self.light), self.transmitted, optics)


def make_field(job: PairsJob, field_px: int, stream: int, device: str, peers: bool, index: int) -> _Packed | _Drawn:
    """Field `index`, imaged, with its optics where `peers` want them; where the device is an accelerator only drawn."""
    drawn = draw_field(job, field_px, stream, index)
    return _Packed.of(_image(job, drawn, "cpu", peers)) if device == "cpu" else drawn


def _image(job: PairsJob, drawn: _Drawn, device: str, peers: bool) -> _Field:
    scene = torch.from_numpy(drawn.planes).to(device).float()
    imaged = image_scene(scene, drawn.conditions, job.psf, device)
    scale = imaged.peak() or 1.0
    stacked = torch.stack((imaged.signal, imaged.haze, imaged.sharp)) / scale
    optics = told_optics(drawn.conditions, job.psf, device) if peers else None
    return _Field(stacked.half(), imaged.transmitted, optics)


def field_maker(job: PairsJob, field_px: int, stream: int, device: str, peers: bool) -> Work:
    """What makes fields in a worker process, on one thread of its own."""
    torch.set_num_threads(1)
    return partial(make_field, job, field_px, stream, device, peers)


class SimulatedBatches:
    """Batches from a pool of `capacity` fields, of which `fresh` a step are replaced by new ones, the oldest first."""

    def __init__(
        self, job: PairsJob, submit: Submit, *, field_px: int, capacity: int, fresh: float, stream: int, device: str,
        seed: int, ahead: int = 8, peers: bool = False,
    ) -> None:  # fmt: skip
        """`ahead`: fields asked for before they are needed; `peers`: whether batches show what Richardson-Lucy makes
        of the inputs.
        """
        self.job, self.field_px, self.capacity, self.fresh = job, field_px, capacity, fresh
        self.stream, self.device, self.seed, self._ahead = stream, device, seed, ahead
        self._submit, self._peers = submit, peers
        self._fields: dict[int, _Field] = {}
        self._asked: deque[tuple[int, Future[Any]]] = deque()
        self._next = 0

    def batch(self, step: int, count: int, size_px: int) -> Batch:
        """Inputs and targets of a step, normalised, (count, 1, size, size) float32 on the device."""
        newest = self._advance(step)
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, _SEED_BATCH, self.stream, step])))
        slots = newest - rng.integers(0, self.capacity, count)
        lights = [draw_light(rng, self.job.settings) for _ in range(count)]
        pieces = [self._cut(int(slot), size_px, light, rng) for slot, light in zip(slots, lights, strict=True)]
        photons, sharp = (torch.stack(images) for images in zip(*(piece[:2] for piece in pieces), strict=True))
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**63)))
        cameras = [light.camera for light in lights]
        counts = expose_batch(photons, cameras, [light.scmos for light in lights], generator)
        optics = [piece[2] for piece in pieces if piece[2] is not None]
        peers = None
        if self._peers and len(optics) == count:
            peers = deconvolve_patches(counts, optics, [light.background_photons for light in lights], cameras)[:, None]
        return normalise(counts[:, None], mean_counts_batch(sharp, cameras)[:, None], rng, peers)

    def _advance(self, step: int) -> int:
        """Have the fields of a step in the pool; return the newest of them."""
        newest = self.capacity - 1 + int(step * self.fresh)
        oldest = newest - self.capacity + 1
        self._next = max(self._next, oldest)
        self._asked = deque((i, f) for i, f in self._asked if i >= oldest)
        for index in [i for i in self._fields if i < oldest]:
            del self._fields[index]
        while True:
            while self._next <= newest + self._ahead and len(self._asked) < self._ahead:
                self._asked.append((self._next, self._submit(self._next)))
                self._next += 1
            if newest in self._fields or not self._asked or self._asked[0][0] > newest:
                return newest
            index, future = self._asked.popleft()
            made = future.result()
            self._fields[index] = (
                made.field() if isinstance(made, _Packed) else _image(self.job, made, self.device, self._peers)
            )

    def _cut(
        self, index: int, size_px: int, light: Light, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Optics | None]:
        """Photons and target photons of a random piece of a field, turned and mirrored, and its optics."""
        field = self._fields[index]
        # Never across the ends of the field, where unlike structures meet in a straight line.
        y, x = (int(n) for n in rng.integers(0, self.field_px - size_px + 1, 2))
        turns, mirror = int(rng.integers(4)), bool(rng.random() < 0.5)
        piece = field.light[:, y : y + size_px, x : x + size_px].float()
        piece = torch.rot90(piece.flip(-1) if mirror else piece, turns, (1, 2))
        imaged = Imaged(piece[0], piece[1], piece[2], field.transmitted)
        photons, sharp = imaged.photons(light.photons, light.background_photons, max(imaged.peak(), _DIMMEST))
        return photons, sharp, None if field.optics is None else field.optics.turned(turns, mirror)
