"""Image formation of a volume on a CPU, plane by plane: what a 3-D FFT does, in pieces that fit the cache.

Invariant: it computes what `ImagingModel` computes, up to rounding, whatever the number of threads. A volume's FFT
passes the whole memory once an axis; here every plane is blurred back, compared and transformed again in one go, planes
that the block does not have are left out, and threads share planes and rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mrbcr_cli.imaging_model import ImagingModel, Weight, multiply_

if TYPE_CHECKING:
    from mrbcr_cli.psf_grid import Psf

_ROWS = 8
"""Rows whose columns along z are transformed together: some megabytes, as much as a core's cache holds."""


def imaging_model(
    psf: Psf, block: tuple[int, ...], device: torch.device, background: float, span: float
) -> ImagingModel:
    """Return the model of blocks of this shape (z, y, x) that is the fastest on the device; close it after use."""
    kind = VolumeModel if psf.is_3d and device.type == "cpu" else ImagingModel
    return kind(psf, block, device, background, span)


class VolumeModel(ImagingModel):
    """The model of a block with a 3-D PSF; as many threads as torch has where it is made."""

    def __init__(self, psf: Psf, block: tuple[int, ...], device: torch.device, background: float, span: float) -> None:
        super().__init__(psf, block, device, background, span)
        self._block = block
        self._spectrum = torch.empty_like(self.transfer)
        self._crew = _Crew(torch.get_num_threads())

    def close(self) -> None:
        """End the threads."""
        self._crew.close()

    def correction(self, estimate: Tensor, data: Tensor, weight: Weight) -> Tensor:
        """Return H^T(data / (H estimate + background)) / H^T 1, the factor that Richardson-Lucy multiplies with."""
        factor = torch.empty(self.shape)
        self._correct(estimate, data, weight, lambda z, found: factor[z].copy_(found))
        return factor

    def improve_(self, estimate: Tensor, data: Tensor, weight: Weight) -> Tensor:
        """Multiply the estimate in place with its correction, each plane while it is in the cache; return it."""
        self._correct(estimate, data, weight, lambda z, found: estimate[z].mul_(found))
        return estimate

    def _correct(self, estimate: Tensor, data: Tensor, weight: Weight, take: Callable[[int, Tensor], object]) -> None:
        """Find the correction, and have `take` do with each plane of it what it likes.

        What lies beyond the block along z is not compared: no plane of it is transformed back, and none has anything to
        add.
        """
        depth, height, width = self._block
        spectrum, plane_shape = self._spectrum, self.shape[1:]

        def compare(z: int) -> None:
            blurred = torch.fft.irfft2(spectrum[z], s=plane_shape)
            expected = blurred[:height, :width].add_(self.background).clamp_(min=self.tiny)
            torch.div(data[z], expected, out=expected)
            blurred[height:].zero_()
            blurred[:height, width:].zero_()
            torch.fft.rfft2(blurred, out=spectrum[z])

        def gather(z: int) -> None:
            found: Tensor = torch.fft.irfft2(spectrum[z], s=plane_shape)
            take(z, found.clamp_(min=0).mul_(weight.inverse[z]).add_(weight.unseen[z]))

        planes = self.shape[0]
        self._transform(estimate)
        self._along_z(self.transfer, adjoint=False, read=planes, write=depth)
        self._crew.each(compare, depth)
        self._along_z(self.transfer, adjoint=True, read=depth, write=planes)
        self._crew.each(gather, planes)

    def _filtered(self, values: Tensor, response: Tensor, *, adjoint: bool = False) -> Tensor:
        spectrum, result = self._spectrum, torch.empty(self.shape)
        self._transform(values)
        self._along_z(response, adjoint, read=self.shape[0], write=self.shape[0])
        self._crew.each(lambda z: torch.fft.irfft2(spectrum[z], s=self.shape[1:], out=result[z]), self.shape[0])
        return result

    def _transform(self, values: Tensor) -> None:
        spectrum = self._spectrum
        self._crew.each(lambda z: torch.fft.rfft2(values[z], out=spectrum[z]), self.shape[0])

    def _along_z(self, response: Tensor, adjoint: bool, *, read: int, write: int) -> None:
        """Transform the planes' spectra along z, multiply them with the response, and transform them back.

        The planes from `read` on count as zero, whatever they hold; those from `write` on are left as they are.
        """
        spectrum, planes = self._spectrum, self.shape[0]

        def pass_rows(number: int) -> None:
            rows = slice(number * _ROWS, (number + 1) * _ROWS)
            columns = multiply_(torch.fft.fft(spectrum[:read, rows], n=planes, dim=0), response[:, rows], adjoint)
            spectrum[:write, rows] = torch.fft.ifft(columns, dim=0)[:write]

        self._crew.each(pass_rows, -(-self.shape[1] // _ROWS))


class _Crew:
    """Threads with one core of torch each; with one thread, the caller's own."""

    def __init__(self, count: int) -> None:
        self._pool = None if count == 1 else ThreadPoolExecutor(count)
        if self._pool is not None:
            # MKL's number of threads is one for the whole process, so that it stays at 1 until the crew goes.
            met = threading.Barrier(count)

            def settle(_: int) -> None:
                torch.set_num_threads(1)
                met.wait()

            list(self._pool.map(settle, range(count)))
        self._count = count

    def each(self, work: Callable[[int], object], count: int) -> None:
        """Do `work` for 0 to count - 1, in any order. Raises what it raises."""
        if self._pool is None:
            for number in range(count):
                work(number)
            return

        def thread_work(number: int) -> None:
            with torch.inference_mode():  # a property of each thread
                work(number)

        for _ in self._pool.map(thread_work, range(count)):
            pass

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            torch.set_num_threads(self._count)
