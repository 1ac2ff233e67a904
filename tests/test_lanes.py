"""What goes over a staged lane comes back as over the plain one; the device is the CPU here, the path is the GPU's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_restorer_over_staged_lanes_is_the_restorer(precision: Precision) -> None:
    """Several threads, each with its lane, tiles and batches included, as on a GPU."""
    torch.manual_seed(0)
    network = Mrbcr().eval()
    plain = Restorer(network, 96, "cpu", precision, 2)
    over_lanes = Restorer(network, 96, "cpu", precision, 2)
    intensity = IntensityRange(100.0, 900.0, guide=(0.1,) * 22)
    rng = np.random.default_rng(1)
    blocks = [100 + 800 * rng.random((3, 40 + 8 * k, 72), np.float32) for k in range(4)]
    expected = [plain.restore(block, intensity, ((True, True),) * 3) for block in blocks]

    def restore(block: np.ndarray) -> np.ndarray:
        return over_lanes.restore(block, intensity, ((True, True),) * 3)

    class Shared:
        def carry(self, *arguments: object) -> None:
            staged()[0].carry(*arguments)  # type: ignore[arg-type]

    over_lanes._lanes = Shared()  # type: ignore[assignment]
    with ThreadPoolExecutor(3) as pool:
        for found, wanted in zip(pool.map(restore, blocks), expected, strict=True):
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
