"""What goes over a staged lane comes back as over the plain one; the device is the CPU here, the path is the GPU's."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

from mrbcr_cli import lanes
from mrbcr_cli.intensity import IntensityRange
from mrbcr_cli.lanes import Lanes, StagedLane
from mrbcr_cli.network.mrbcr import Mrbcr
from mrbcr_cli.restore import Precision, Restorer


class CountingStream:
    """Stands for a CUDA stream: knows whether it is current, and how often it was waited for."""

    def __init__(self) -> None:
        self.current = False
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.current = True
        yield
        self.current = False


def staged() -> tuple[StagedLane, CountingStream]:
    stream = CountingStream()
    return StagedLane("cpu", stream, stream, pinned=False), stream


def test_staged_lane_gives_what_the_plain_one_gives_for_any_sizes_in_turn() -> None:
    lane, stream = staged()
    rng = np.random.default_rng(0)
    for number, shape in enumerate([(2, 20, 30), (1, 7, 5), (3, 40, 31), (2, 20, 30)]):
        planes = rng.random(shape, np.float32)
        before = planes.copy()

        def work(batch: Tensor) -> Tensor:
            return batch.mul_(3).add_(1).to(torch.float64)  # in place, and of another precision

        plain, out = np.empty_like(planes), np.empty_like(planes)
        Lanes("cpu").carry(planes.copy(), work, plain)
        lane.carry(planes, work, out)
        assert np.array_equal(out, plain) and np.array_equal(planes, before)
        assert stream.waits == number + 1


class Replay:
    """Stands for CUDA graphs: launching does the work again, from where it read and to where its result was."""

    def __init__(self) -> None:
        self.recorded = 0

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        self.recorded += 1
        result = torch.full_like(work(), torch.nan)  # recording alone computes nothing
        return lambda: result.copy_(work()), result


def test_recorded_works_give_what_others_give_and_are_recorded_once_for_each_name_and_shape() -> None:
    replay, stream = Replay(), CountingStream()
    lane = StagedLane("cpu", stream, stream, pinned=False, recorder=replay)
    rng = np.random.default_rng(0)
    factors = {"a": 2.0, "b": 3.0}
    for _ in range(3):
        for name, factor in factors.items():
            for shape in ((1, 8, 9), (2, 5, 7)):
                planes = rng.random(shape, np.float32)
                out = np.empty_like(planes)
                lane.carry(planes, lambda batch, by=factor: batch * by, out, name)  # type: ignore[misc]
                assert np.array_equal(out, planes * np.float32(factor))
    assert replay.recorded == 4
    lane.carry(planes, lambda batch: batch - 1, out)
    assert np.array_equal(out, planes - 1)
    assert replay.recorded == 4, "a work without a name is not recorded"


def test_a_lane_keeps_a_bounded_number_of_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "RECORDINGS", 3)
    lane = StagedLane("cpu", CountingStream(), pinned=False, recorder=Replay())
    planes = np.ones((1, 4, 4), np.float32)
    for number in range(10):
        out = np.empty_like(planes)
        lane.carry(planes, lambda batch, n=number: batch + n, out, number)  # type: ignore[misc]
        assert (out == 1 + number).all()
        assert len(lane._recordings) <= 3


def test_work_runs_on_the_stream_and_a_failure_leaves_the_lane_usable() -> None:
    lane, stream = staged()
    planes = np.ones((1, 4, 4), np.float32)
    out = np.zeros_like(planes)
    seen: list[bool] = []

    def fail(batch: Tensor) -> Tensor:
        seen.append(stream.current)
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        lane.carry(planes, fail, out)
    assert seen == [True] and not out.any()
    lane.carry(planes, lambda batch: batch + 1, out)
    assert (out == 2).all()


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_restorer_over_staged_lanes_is_the_restorer(precision: Precision, recorded: bool) -> None:
    """Several threads, each with its lane, tiles, batches and channels included, as on a GPU."""
    torch.manual_seed(0)
    network = Mrbcr().eval()
    plain = Restorer(network, 96, "cpu", precision, 2)
    over_lanes = Restorer(network, 96, "cpu", precision, 2)
    channels = [IntensityRange(100.0, 900.0 + 50 * k, guide=(0.1 * k,) * 22) for k in range(2)]
    places = [((True, True), (True, True), (True, True)), ((True, True), (False, True), (True, False))]
    rng = np.random.default_rng(1)
    blocks = [100 + 800 * rng.random((3, 40 + 8 * (k % 2), 72), np.float32) for k in range(3)]
    tasks = list(itertools.product(blocks, channels, places))
    expected = [plain.restore(*task) for task in tasks]
    own = threading.local()

    class Shared:
        def carry(self, *arguments: object) -> None:
            if not hasattr(own, "lane"):
                recorder = Replay() if recorded else None
                own.lane = StagedLane("cpu", CountingStream(), pinned=False, recorder=recorder)
            own.lane.carry(*arguments)

    over_lanes._lanes = Shared()  # type: ignore[assignment]
    with ThreadPoolExecutor(3) as pool:
        for found, wanted in zip(pool.map(lambda task: over_lanes.restore(*task), tasks), expected, strict=True):
            assert np.array_equal(found, wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_agrees_with_the_cpu_to_rounding() -> None:
    torch.manual_seed(0)
    network = Mrbcr().eval()
    block = np.random.default_rng(1).random((2, 200, 300), np.float32)
    borders = ((True, True),) * 3
    on_cpu = Restorer(network, 96, "cpu", "fp32", 1).restore(block, IntensityRange(0, 1), borders)
    on_gpu = Restorer(network, 96, "cuda", "fp32", 1).restore(block, IntensityRange(0, 1), borders)
    assert np.abs(on_gpu - on_cpu).max() < 1e-4
    recorded = Restorer(network, 96, "cuda", "fp32", 1, graphs=True)
    for _ in range(2):
        assert np.abs(recorded.restore(block, IntensityRange(0, 1), borders) - on_gpu).max() < 1e-4
