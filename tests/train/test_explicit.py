"""The yardstick of the loss `gain` is the Richardson-Lucy of `mrbcr evaluate`, for every patch of a batch by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mrbcr_cli.evaluation.baselines import richardson_lucy, through_gaussian
from mrbcr_cli.optics.camera import Camera
from mrbcr_cli.train.explicit import ITERATIONS, REACH_PX, Optics, deconvolve_patches
from mrbcr_cli.train.loss import LossSettings, loss_of

CAMERAS = [Camera(read_noise_e=2.0), Camera(0.6, 0.5, 20.0, 0.5, 3.0), Camera(gain_adu=1.0)]
BACKGROUNDS = [5.0, 40.0, 0.0]
TARGET_FWHM_PX = 2.0


def _optics(sigma_y: float, sigma_x: float) -> Optics:
    at = torch.arange(-REACH_PX, REACH_PX + 1).float()
    psf = torch.exp(-0.5 * ((at[:, None] / sigma_y) ** 2 + (at[None] / sigma_x) ** 2))
    return Optics(psf / psf.sum(), TARGET_FWHM_PX)


OPTICS = [_optics(1.2, 2.0), _optics(2.5, 2.5), _optics(1.0, 1.0)]


def _counts() -> torch.Tensor:
    rng = np.random.default_rng(3)
    scene = np.zeros((3, 64, 64))
    scene[np.arange(3)[:, None], rng.integers(0, 64, (3, 30)), rng.integers(0, 64, (3, 30))] = 3000
    blurred = np.stack([through_gaussian(image.astype(np.float32), 4.0) for image in scene])
    counts = [
        c.offset_adu + c.gain_adu * rng.poisson(c.quantum_efficiency * (image + b) + c.dark_e)
        for c, image, b in zip(CAMERAS, blurred, BACKGROUNDS, strict=True)
    ]
    return torch.tensor(np.stack(counts), dtype=torch.float32)


def test_it_is_the_peer_of_an_evaluation() -> None:
    counts = _counts()
    found = deconvolve_patches(counts, OPTICS, BACKGROUNDS, CAMERAS).numpy()
    for k, camera in enumerate(CAMERAS):
        electrons = (counts[k].numpy() - camera.offset_adu) / camera.gain_adu
        background = camera.quantum_efficiency * BACKGROUNDS[k] + camera.dark_e
        psf = OPTICS[k].psf_yx.double().numpy()
        wanted = richardson_lucy(electrons, psf / psf.sum(), background, [ITERATIONS], camera.read_noise_e)[0]
        shown = camera.offset_adu + camera.gain_adu * through_gaussian(wanted, TARGET_FWHM_PX)
        # At the border the one Gaussian sees the estimate beyond it, the other its mirror image.
        inner = (slice(6, -6),) * 2
        assert np.abs(found[k] - shown)[inner].max() < 2e-3 * np.ptp(shown)


def test_a_patch_does_not_see_its_neighbours_in_the_batch() -> None:
    counts = _counts()
    together = deconvolve_patches(counts, OPTICS, BACKGROUNDS, CAMERAS)
    alone = deconvolve_patches(counts[1:2], OPTICS[1:2], BACKGROUNDS[1:2], CAMERAS[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=0.01)


def test_patches_are_square_and_may_be_smaller_than_the_psf() -> None:
    small = deconvolve_patches(_counts()[:, :32, :32], OPTICS, BACKGROUNDS, CAMERAS)
    assert small.shape == (3, 32, 32) and torch.isfinite(small).all()
    flat = deconvolve_patches(torch.full((3, 32, 32), 120.0), OPTICS, BACKGROUNDS, CAMERAS)
    assert torch.isfinite(flat).all()
    with pytest.raises(ValueError, match="square"):
        deconvolve_patches(_counts()[:, :32], OPTICS, BACKGROUNDS, CAMERAS)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 3])
def test_optics_turn_with_the_piece(turns: int, mirror: bool) -> None:
    """A turned and mirrored patch, with the optics turned alike, gives the turned and mirrored estimate."""
    counts = _counts()[:1]
    skewed = OPTICS[0].psf_yx * torch.linspace(0.5, 1.5, 2 * REACH_PX + 1)
    optics = Optics(skewed / skewed.sum(), TARGET_FWHM_PX)

    def turn(image: torch.Tensor) -> torch.Tensor:
        return torch.rot90(image.flip(-1) if mirror else image, turns, (-2, -1))

    plain = deconvolve_patches(counts, [optics], BACKGROUNDS[:1], CAMERAS[:1])
    turned = deconvolve_patches(turn(counts), [optics.turned(turns, mirror)], BACKGROUNDS[:1], CAMERAS[:1])
    torch.testing.assert_close(turned, turn(plain), rtol=1e-3, atol=0.5)


def test_gain_loss_pulls_more_where_a_peer_does_better() -> None:
    """Of two outputs as far off, on inputs as far off, the one that a peer outdoes is drawn more."""
    rng = torch.Generator().manual_seed(1)
    truth = torch.rand(1, 1, 64, 64, generator=rng).repeat(2, 1, 1, 1)
    peers = truth + torch.tensor([0.01, 0.4])[:, None, None, None]
    found = (truth + 0.05).requires_grad_()
    settings = LossSettings("gain", 0.0, gain_floor=0.7)
    loss_of([found], [truth], settings, inputs=[truth + 0.5], peers=[peers])[0].backward()
    pulls = found.grad.square().mean((1, 2, 3)).sqrt()  # type: ignore[union-attr]
    assert pulls[0] > 3 * pulls[1] > 0
