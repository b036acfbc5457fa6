"""The distillation losses (Eqs. 9 to 11) against Parseval's theorem and numpy's FFT."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from spectral_diffusion.training.distillation import transforms
from spectral_diffusion.training.distillation.losses import (
    Pair,
    Weigh,
    distances,
    frequency_errors,
    frequency_loss,
    half,
    spatial_errors,
    spatial_loss,
    spectrum_weights,
)
from spectral_diffusion.training.distillation.objectives import focal_weights


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


def pairs(seed: int = 0) -> list[Pair]:
    """Features of three sizes, the odd one alone."""
    shapes = [(3, 8, 8), (6, 8, 8), (4, 4, 4), (5, 4, 4), (2, 5, 7)]
    return [
        Pair(normal(3, *shape, seed=2 * i), normal(3, *shape, seed=2 * i + 1), torch.tensor(0.5 + i))
        for i, shape in enumerate(shapes)
    ]


def weighing(x_0: Tensor) -> Weigh:
    return lambda powers, size: half(spectrum_weights(x_0, size, -1.0))


def test_errors_of_samples_have_the_losses_as_their_mean() -> None:
    student, teacher, weights = normal(4, 3, 8, 8), normal(4, 3, 8, 8, seed=1), normal(4, 1, 8, 8, seed=2).abs()
    torch.testing.assert_close(spatial_errors(student, teacher).mean(), spatial_loss(student, teacher))
    found, alone = frequency_errors(student, teacher, weights), []
    for index in range(4):
        one = slice(index, index + 1)
        alone.append(frequency_loss(student[one], teacher[one], weights[one]))
    torch.testing.assert_close(found, torch.stack(alone))


def test_joined_distances_are_the_sum_of_those_one_by_one() -> None:
    """Values and gradients, to 1e-6 of their size."""
    x_0, together, apart = normal(3, 4, 8, 8, seed=9), pairs(), pairs()
    for pair in (*together, *apart):
        pair.student.requires_grad_()
    found = distances(together, weighing(x_0))
    spatial = sum(spatial_errors(s, t) / k for s, t, k in apart)
    frequency = sum(
        frequency_errors(s, t, spectrum_weights(x_0, (s.shape[2], s.shape[3]), -1.0)) / k for s, t, k in apart
    )
    assert isinstance(spatial, Tensor) and isinstance(frequency, Tensor)
    torch.testing.assert_close(found.spatial, spatial, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.frequency, frequency, rtol=1e-6, atol=0)
    (found.spatial + 2 * found.frequency).sum().backward()
    (spatial + 2 * frequency).sum().backward()
    for one, other in zip(together, apart, strict=True):
        expected = other.student.grad
        assert expected is not None
        torch.testing.assert_close(one.student.grad, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("size", [(16, 16), (8, 8), (8, 4), (5, 7), (2, 2), (1, 6), (3, 1), (1, 1)], ids=str)
def test_transforms_are_numpys(size: tuple[int, int]) -> None:
    """There and back, of few cells and of many, whatever precision is on around them."""
    x = normal(2, 3, *size)
    with torch.autocast("cpu", torch.bfloat16):
        there = transforms.forward(x)
        back = transforms.backward(there, size)
    np.testing.assert_allclose(there.numpy(), np.fft.rfft2(x.numpy(), norm="ortho"), atol=3e-6)
    torch.testing.assert_close(back, x, rtol=0, atol=3e-6)
    other = torch.complex(normal(2, 3, size[0], size[1] // 2 + 1), normal(2, 3, size[0], size[1] // 2 + 1, seed=1))
    expected = np.fft.irfft2(other.numpy(), s=size, norm="ortho")
    np.testing.assert_allclose(transforms.backward(other, size).numpy(), expected, atol=3e-6)


class Transforms(TorchFunctionMode):
    """Counts the Fourier transforms that are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "fft_" in getattr(func, "__name__", "") and "freq" not in func.__name__
        return func(*args, **(kwargs or {}))


def test_one_transform_serves_all_features_of_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    x_0, sizes = normal(3, 4, 32, 32, seed=9), [(16, 16), (16, 16), (12, 10), (12, 10), (9, 9)]
    given = [Pair(normal(3, 2, *size).requires_grad_(), normal(3, 2, *size, seed=1)) for size in sizes]
    with Transforms() as counted:
        found = distances(given, weighing(x_0))
    assert counted.count == 2 * 3  # of the differences, and of x_0, in each of three sizes
    back = Mock(wraps=torch.fft.irfft2)  # modes do not reach into a backward pass
    monkeypatch.setattr(torch.fft, "irfft2", back)
    (found.spatial + found.frequency).sum().backward()
    assert back.call_count == 3  # for both losses at once
    with Transforms() as counted:
        for student, teacher, _ in given:
            frequency_loss(student, teacher, torch.ones(1))
    assert counted.count == 5
    with Transforms() as counted:
        found = distances(given, None)
    assert counted.count == 0 and not found.frequency.any() and found.spatial.all()


def test_the_high_bands_part_is_numpys() -> None:
    """Without weights both losses have the same share, that of the whole transform's frequencies above 0.25."""
    found = distances(pairs(), lambda powers, size: torch.ones(1, 1, 1, 1))
    expected = np.zeros(3)
    for student, teacher, scale in pairs():
        spectrum = np.abs(np.fft.fft2((student - teacher).numpy(), norm="ortho")) ** 2
        rows, columns = np.fft.fftfreq(student.shape[2])[:, None], np.fft.fftfreq(student.shape[3])[None]
        expected += (spectrum * (np.hypot(rows, columns) > 0.25)).mean(axis=(1, 2, 3)) / float(scale)
    np.testing.assert_allclose(found.spatial_high.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(found.frequency_high.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_focal_frequency_loss_is_the_articles(alpha: float) -> None:
    """Jiang et al., Eq. 9: the mean of w |F_s − F_t|², w = |F_s − F_t|^α over its maximum, which has no gradient."""
    student, teacher = normal(2, 3, 8, 8).requires_grad_(), normal(2, 3, 8, 8, seed=1)
    found = distances([Pair(student, teacher)], lambda powers, size: focal_weights(powers, alpha)).frequency
    gap = np.fft.fft2((student - teacher).detach().numpy(), norm="ortho")
    distance = np.abs(gap) ** alpha
    weights = distance / distance.max(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(found.detach().numpy(), (weights * np.abs(gap) ** 2).mean(axis=(1, 2, 3)), rtol=1e-4)
    found.sum().backward()
    assert student.grad is not None
    by_hand = np.fft.ifft2(2 * weights * gap, norm="ortho").real / (3 * 64)  # the transform is unitary
    np.testing.assert_allclose(student.grad.numpy(), by_hand, rtol=1e-3, atol=1e-6)
