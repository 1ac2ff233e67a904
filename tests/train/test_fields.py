"""Fields simulated while a network trains: the same on every device, batches that depend on the step alone."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from mrbcr_cli.evaluation.true_psf import true_psf_yx
from mrbcr_cli.simulate.image_scene import focus_psf
from mrbcr_cli.simulate.pair import PairsJob
from mrbcr_cli.simulate.pairs import plan_pairs
from mrbcr_cli.stream.pool import workers_for
from mrbcr_cli.train import fields
from mrbcr_cli.train.fields import SimulatedBatches, field_maker
from mrbcr_cli.train.train_settings import TrainSettings


def _job(simulation: Path, **changes: object) -> PairsJob:
    """What the configuration simulates, with these changes."""
    values = json.loads(simulation.read_text())
    values["simulate"] |= changes
    settings = TrainSettings(**values)
    assert settings.simulate is not None
    return plan_pairs(settings.simulate)


def test_fields_are_the_same_wherever_they_are_imaged(simulation: Path) -> None:
    """On an accelerator the scene is drawn by a worker and imaged there; half precision in between costs 0.1 %."""
    job = _job(simulation)
    drawn = fields.make_field(job, 64, 0, "cuda", True, 5)
    assert isinstance(drawn, fields._Drawn)
    there, here = fields._image(job, drawn, "cpu", True), _made(job, 0, 5)
    assert not here.transmitted and here.light.dtype == torch.float16
    assert torch.equal(there.light, here.light)
    assert there.optics is not None and here.optics is not None
    assert torch.equal(there.optics.psf_yx, here.optics.psf_yx)
    assert float(here.optics.psf_yx.sum()) == pytest.approx(1) and float(here.optics.psf_yx.min()) >= 0
    assert not torch.equal(here.light, _made(job, 1, 5).light)  # another process of the group
    assert not torch.equal(here.light, _made(job, 0, 6).light)


def _made(job: PairsJob, stream: int, index: int) -> fields._Field:
    made = fields.make_field(job, 64, stream, "cpu", True, index)
    assert isinstance(made, fields._Packed)
    return made.field()


@pytest.mark.parametrize("microscope", ["widefield", "brightfield"])
def test_batches_show_the_peer_where_there_is_a_psf(simulation: Path, microscope: str) -> None:
    """In the units of the inputs, and nearer to the targets in the mean; transmitted light has no PSF."""
    job = _job(simulation, microscope=microscope, photons=[500, 2000])
    with workers_for(1, partial(field_maker, job, 64, 0, "cpu", True)) as submit:
        common = {"field_px": 64, "capacity": 8, "fresh": 0.5, "stream": 0, "device": "cpu", "seed": 1}
        batch, plain = (SimulatedBatches(job, submit, **common, peers=peers).batch(0, 8, 64) for peers in (True, False))
    assert plain.peers is None and torch.equal(plain.inputs, batch.inputs)
    if microscope == "brightfield":
        assert batch.peers is None
        return
    assert batch.peers is not None and batch.peers.shape == batch.inputs.shape
    off = [(image - batch.targets).square().mean((1, 2, 3)).log().mean() for image in (batch.peers, batch.inputs)]
    assert off[0] < off[1]


def test_batches_depend_on_the_step_alone(simulation: Path) -> None:
    """Asked for out of order, as after a restart, and with other prefetching."""
    job = _job(simulation)
    batches = []
    for steps, ahead in ((range(8), 1), ((7,), 5)):
        with workers_for(1, partial(field_maker, job, 64, 0, "cpu", False)) as submit:
            data = SimulatedBatches(
                job, submit, field_px=64, capacity=3, fresh=0.5, stream=0, device="cpu", seed=1, ahead=ahead
            )
            batches.append([data.batch(step, 3, 32) for step in steps][-1])
    assert all(torch.equal(a, b) for a, b in zip(*(batch[:2] for batch in batches), strict=True))
    inputs, targets, _ = batches[0]
    assert inputs.shape == targets.shape == (3, 1, 32, 32) and torch.isfinite(inputs).all()


def test_fields_of_other_processes_hold_no_open_files(simulation: Path) -> None:
    """A tensor in shared memory keeps a descriptor open; a pool has more fields than a process may have files."""
    job = _job(simulation)
    with workers_for(2, partial(field_maker, job, 64, 0, "cpu", True)) as submit:
        made = submit(3).result()
    assert isinstance(made, fields._Packed)
    field, here = made.field(), _made(job, 0, 3)
    assert not field.light.is_shared() and torch.equal(field.light, here.light)
    assert field.optics is not None and here.optics is not None and not field.optics.psf_yx.is_shared()
    assert torch.equal(field.optics.psf_yx, here.optics.psf_yx)


@pytest.mark.parametrize("microscope", ["widefield", "confocal"])
def test_told_psf_is_the_true_one(simulation: Path, microscope: str) -> None:
    """That of an evaluation, which knows the optics from the record of a pair, but for what is cut off."""
    job = _job(simulation, microscope=microscope, aberration=[0.05, 0.05], fwhm=[3, 4])
    conditions = fields.draw_field(job, 64, 0, 5).conditions
    told = focus_psf(conditions, None, 49)
    true = true_psf_yx({"conditions": json.loads(json.dumps(conditions.record()))}, 49)
    assert told is not None
    np.testing.assert_allclose(told.numpy(), true, atol=1e-5)
