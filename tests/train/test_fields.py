"""Fields simulated while a network trains: the same on every device, batches that depend on the step alone."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from mrbcr_cli.simulate.pair import PairsJob
from mrbcr_cli.simulate.pairs import plan_pairs
from mrbcr_cli.stream.pool import workers_for
from mrbcr_cli.train import fields
from mrbcr_cli.train.fields import SimulatedBatches, field_maker
from mrbcr_cli.train.train_settings import TrainSettings


def test_fields_are_the_same_wherever_they_are_imaged(simulation: Path) -> None:
    """On an accelerator the scene is drawn by a worker and imaged there; half precision in between costs 0.1 %."""
    settings = TrainSettings(**json.loads(simulation.read_text()))
    assert settings.simulate is not None
    job = plan_pairs(settings.simulate)
    drawn = fields.make_field(job, 64, 0, "cuda", 5)
    assert isinstance(drawn, fields._Drawn)
    there, here = fields._image(job, drawn, "cpu"), _made(job, 0, 5)
    assert not here.transmitted and here.light.dtype == torch.float16
    assert torch.equal(there.light, here.light)
    assert there.optics is not None and here.optics is not None
    assert torch.equal(there.optics.psf_yx, here.optics.psf_yx)
    assert float(here.optics.psf_yx.sum()) == pytest.approx(1) and float(here.optics.psf_yx.min()) >= 0
    assert not torch.equal(here.light, _made(job, 1, 5).light)  # another process of the group
    assert not torch.equal(here.light, _made(job, 0, 6).light)


def _made(job: PairsJob, stream: int, index: int) -> fields._Field:
    made = fields.make_field(job, 64, stream, "cpu", index)
    assert isinstance(made, fields._Field)
    return made


@pytest.mark.parametrize("microscope", ["widefield", "brightfield"])
def test_batches_show_the_peer_where_there_is_a_psf(simulation: Path, microscope: str) -> None:
    """In the units of the inputs, and nearer to the targets in the mean; transmitted light has no PSF."""
    values = json.loads(simulation.read_text())
    values["simulate"] |= {"microscope": microscope, "photons": [500, 2000]}
    settings = TrainSettings(**values)
    assert settings.simulate is not None
    job = plan_pairs(settings.simulate)
    with workers_for(1, partial(field_maker, job, 64, 0, "cpu")) as submit:
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
    settings = TrainSettings(**json.loads(simulation.read_text()))
    assert settings.simulate is not None
    job = plan_pairs(settings.simulate)
    batches = []
    for steps, ahead in ((range(8), 1), ((7,), 5)):
        with workers_for(1, partial(field_maker, job, 64, 0, "cpu")) as submit:
            data = SimulatedBatches(
                job, submit, field_px=64, capacity=3, fresh=0.5, stream=0, device="cpu", seed=1, ahead=ahead
            )
            batches.append([data.batch(step, 3, 32) for step in steps][-1])
    assert all(torch.equal(a, b) for a, b in zip(*(batch[:2] for batch in batches), strict=True))
    inputs, targets, _ = batches[0]
    assert inputs.shape == targets.shape == (3, 1, 32, 32) and torch.isfinite(inputs).all()
