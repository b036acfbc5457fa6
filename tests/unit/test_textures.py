"""The strength of textures in small windows, against white noise, numpy and pictures whose ratio is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spectral_diffusion.training.textures import FLOOR, RINGS, WINDOW, local_rings, texture_distance


def noise(deviation: float, seed: int = 0, size: int = 64) -> torch.Tensor:
    return deviation * torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_white_noise_has_its_variance_in_every_ring() -> None:
    """Oracle: the mean of three exponential variables of mean v has the expected logarithm ln v + ψ(3) − ln 3."""
    rings = local_rings(noise(0.3))
    assert rings.shape == (8, 7, 7, RINGS)
    mean = rings.mean((0, 1, 2))
    # the first ring lies in the lobe of the mean, which is left out
    expected = torch.log(torch.tensor(0.09)) + torch.digamma(torch.tensor(3.0)) - torch.log(torch.tensor(3.0))
    torch.testing.assert_close(mean[1:], expected.expand(RINGS - 1), atol=0.04, rtol=0)


def test_a_chequerboard_does_not_stand_in_for_noise() -> None:
    """A pattern of two pixels' period may have a ring's power, but it lies at one frequency."""
    data = noise(0.1)
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(32, 32).expand(8, 3, 64, 64)
    far = texture_distance(torch.zeros_like(data), data)
    assert texture_distance(0.1 * board, data) > 0.8 * far


def test_rings_are_those_of_a_whole_transform() -> None:
    """Oracle: numpy's full DFT of one window, every frequency by its rounded radius."""
    image = noise(0.5, size=WINDOW)[:1]
    hann = np.hanning(WINDOW + 1)[:-1]
    window = np.outer(hann, hann)
    window /= np.sqrt((window**2).mean())
    pixels = image[0].double().numpy()
    spectrum = np.fft.fft2((pixels - pixels.mean((1, 2), keepdims=True)) * window, norm="ortho")
    power = (np.abs(spectrum) ** 2).mean(0)
    side = np.fft.fftfreq(WINDOW, 1 / WINDOW)
    ring = np.minimum(np.round(np.hypot(side[:, None], side)).astype(int), RINGS)
    expected = [np.log(power[ring == number] + FLOOR).mean() for number in range(1, RINGS + 1)]
    np.testing.assert_allclose(local_rings(image)[0, 0, 0], expected, atol=1e-3)


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_the_distance_is_the_logarithm_of_the_ratio_of_powers(ratio: float) -> None:
    """Whatever the phases are: noise of another seed and the same strength is near."""
    data = noise(0.5)
    assert texture_distance(data, data) == 0
    assert texture_distance(ratio * data, data).item() == pytest.approx(2 * abs(np.log(ratio)), rel=0.02)
    other = noise(0.5, seed=1)
    assert texture_distance(other, data) < 0.5 * texture_distance(0.3 * data, data)


def test_what_is_flat_stays_flat() -> None:
    """Power below the floor counts as none, and a speckle on white is far from white."""
    white = torch.ones(1, 3, 32, 32)
    assert texture_distance(white + noise(1e-4, size=32)[:1], white) < 2e-3
    assert texture_distance(white + noise(0.1, size=32)[:1], white) > np.log(0.5 * 0.01 / FLOOR)


def test_gradients_reach_flat_pictures() -> None:
    """A flat picture has no phase to begin with; its gradient is finite."""
    flat = torch.zeros(1, 3, 32, 32, requires_grad=True)
    texture_distance(flat, noise(0.2, size=32)[:1]).backward()
    assert flat.grad is not None and flat.grad.isfinite().all()
