"""The distillation losses (Eqs. 9 to 11) against Parseval's theorem and numpy's FFT."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral_diffusion.training.losses import frequency_loss, spatial_loss, spectrum_weights


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pink(count: int, channels: int, side: int, alpha: float = 2.0) -> Tensor:
    """Images whose power falls as 1/f^α."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    frequency[0, 0] = 1 / side
    white = np.fft.fft2(np.random.default_rng(0).standard_normal((count, channels, side, side)))
    return torch.from_numpy(np.fft.ifft2(white * frequency ** (-alpha / 2)).real).float()


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 5, 7, 9), (3, 1, 1, 4)], ids=str)
def test_unweighted_frequency_loss_is_the_spatial_one(shape: tuple[int, ...]) -> None:
    """Parseval's theorem for the orthonormal transform."""
    student, teacher = normal(*shape), normal(*shape, seed=1)
    weights = torch.ones(shape[0], 1, *shape[2:])
    torch.testing.assert_close(frequency_loss(student, teacher, weights), spatial_loss(student, teacher))


def test_spatial_loss_is_the_mean_square() -> None:
    student, teacher = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    expected = np.mean((student.numpy() - teacher.numpy()) ** 2)
    assert spatial_loss(student, teacher).item() == pytest.approx(float(expected))


@pytest.mark.parametrize("size", [(8, 8), (4, 4), (8, 2)], ids=str)
@pytest.mark.parametrize("alpha", [-1.0, -0.5, 1.0])
def test_frequency_loss_equals_numpys(size: tuple[int, int], alpha: float) -> None:
    """ω = |F(x_0)|^α with mean 1, x_0 averaged down to the features; the loss is the mean of ω |F(S) − F(T)|²."""
    x_0, student, teacher = normal(2, 3, 8, 8), normal(2, 6, *size, seed=1), normal(2, 6, *size, seed=2)
    small = x_0.numpy().reshape(2, 3, size[0], 8 // size[0], size[1], 8 // size[1]).mean(axis=(3, 5))
    weights = np.abs(np.fft.fft2(small, norm="ortho")).mean(axis=1, keepdims=True) ** alpha
    weights = weights / weights.mean(axis=(2, 3), keepdims=True)
    found = spectrum_weights(x_0, size, alpha)
    np.testing.assert_allclose(found.numpy(), weights, rtol=2e-4)
    gap = np.fft.fft2(student.numpy(), norm="ortho") - np.fft.fft2(teacher.numpy(), norm="ortho")
    expected = float(np.mean(weights * np.abs(gap) ** 2))
    assert frequency_loss(student, teacher, found).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("alpha", [-2.0, -1.0, 0.5])
@pytest.mark.parametrize(
    "x_0", [normal(3, 4, 16, 16), 100 * pink(3, 4, 16), torch.zeros(3, 4, 16, 16)], ids=["white", "pink", "zero"]
)
def test_weights_of_every_image_have_mean_one(x_0: Tensor, alpha: float) -> None:
    weights = spectrum_weights(x_0, (16, 16), alpha)
    assert weights.shape == (3, 1, 16, 16) and weights.isfinite().all() and (weights > 0).all()
    torch.testing.assert_close(weights.mean((1, 2, 3)), torch.ones(3))


def test_alpha_zero_weighs_nothing() -> None:
    torch.testing.assert_close(spectrum_weights(pink(2, 3, 8), (8, 8), 0.0), torch.ones(2, 1, 8, 8))


def test_high_frequencies_of_a_natural_spectrum_weigh_more() -> None:
    """Magnitude 1/f makes weights ∝ f: the mean above a quarter of the sampling rate to that below is as of f."""
    weights = spectrum_weights(pink(16, 4, 32), (32, 32), -1.0).mean(dim=(0, 1))
    frequency = torch.from_numpy(np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32)[None]))
    high, low = weights[frequency > 0.25].mean(), weights[(frequency > 0) & (frequency <= 0.25)].mean()
    expected = frequency[frequency > 0.25].mean() / frequency[(frequency > 0) & (frequency <= 0.25)].mean()
    assert (high / low).item() == pytest.approx(expected.item(), rel=0.1)


def test_an_error_in_the_high_band_costs_more_than_the_same_one_in_the_low() -> None:
    weights, teacher = spectrum_weights(pink(4, 4, 16), (16, 16), -1.0), normal(4, 8, 16, 16)
    x = torch.arange(16)
    slow, fast = (torch.cos(2 * torch.pi * k * x / 16).expand(4, 8, 16, 16) for k in (1, 7))
    assert spatial_loss(teacher + slow, teacher).item() == pytest.approx(spatial_loss(teacher + fast, teacher).item())
    assert frequency_loss(teacher + fast, teacher, weights) > 3 * frequency_loss(teacher + slow, teacher, weights)


def test_a_vanishing_frequency_does_not_take_all_the_weight() -> None:
    """The floor: a thousandth of the image's mean magnitude."""
    ramp = torch.cos(2 * torch.pi * torch.arange(16) / 16).expand(1, 1, 16, 16)
    weights = spectrum_weights(ramp, (16, 16), -1.0)
    assert weights.max() < 1.1 and weights.min() > 0


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32], ids=["float16", "bfloat16", "float32"]
)
def test_losses_are_float32_and_have_gradients(dtype: torch.dtype) -> None:
    student, teacher = normal(2, 3, 8, 8).to(dtype).requires_grad_(), normal(2, 3, 8, 8, seed=1).to(dtype)
    weights = spectrum_weights(normal(2, 4, 8, 8, seed=2).to(dtype), (8, 8), -1.0)
    loss = spatial_loss(student, teacher) + frequency_loss(student, teacher, weights)
    assert loss.dtype == weights.dtype == torch.float32
    loss.backward()
    assert student.grad is not None and student.grad.isfinite().all() and student.grad.any()
