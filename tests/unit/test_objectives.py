"""Weights of steps, bins, bands and focal weights against diffusers, numpy's FFT and closed forms."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral_diffusion.spectral.diffusion import Schedule
from spectral_diffusion.training.distillation.objectives import (
    BINS,
    binned,
    focal_weights,
    half_plane,
    high_band,
    min_snr_weights,
    power,
)
from spectral_diffusion.training.tokens import declare_torchvision_operators


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_weights_are_the_formulas_with_diffusers_snr(prediction: str, gamma: float) -> None:
    """min(SNR, γ) / SNR for the noise, min(SNR, γ) / (SNR + 1) for the velocity."""
    declare_torchvision_operators()
    from diffusers.training_utils import compute_snr

    schedule, t = Schedule(0.00085, 0.012), torch.arange(1000)
    snr = compute_snr(SimpleNamespace(alphas_cumprod=schedule.alphas_cumprod), t).numpy()
    expected = np.minimum(snr, gamma) / (snr if prediction == "eps" else snr + 1)
    found = min_snr_weights(schedule.alphas_cumprod, t, gamma, prediction)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_min_snr_weighs_one_and_the_same_error_of_x_0() -> None:
    """Noise and velocity that are off because x_0 is off by d cost min(SNR, γ) d²."""
    schedule, t, gamma = Schedule(), torch.tensor([0, 100, 400, 800]), 5.0
    alpha = schedule.alphas_cumprod[t]
    of_noise, of_velocity = alpha / (1 - alpha), 1 / (1 - alpha)  # squared errors for d = 1, at a fixed x_t
    expected = (alpha / (1 - alpha)).clamp(max=gamma).float()
    for prediction, error in (("eps", of_noise), ("v", of_velocity)):
        weights = min_snr_weights(schedule.alphas_cumprod, t, gamma, prediction)
        torch.testing.assert_close(weights * error.float(), expected)


def test_min_snr_weights_are_finite_where_the_snr_is_not_or_is_zero() -> None:
    alphas, t = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64), torch.arange(3)
    assert min_snr_weights(alphas, t, 5.0, "eps").tolist() == [0.0, 1.0, 1.0]
    assert min_snr_weights(alphas[1:], t[:2], 5.0, "v").tolist() == [0.5, 0.0]
    least = min_snr_weights(alphas[1:], t[:2], 5.0, "v", least=0.25)
    torch.testing.assert_close(least, torch.tensor([0.5, 0.2]))


def test_bins_hold_the_sums_of_their_quarter_and_add_up() -> None:
    t = torch.tensor([0, 249, 250, 600, 999, 100])
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    found = binned(values, t, 1000)
    assert found.tolist() == [[35.0, 3.0], [4.0, 1.0], [8.0, 1.0], [16.0, 1.0]]
    apart = binned(values[:2], t[:2], 1000) + binned(values[2:], t[2:], 1000)
    assert torch.equal(apart, found)
    assert binned(values[:2], t[:2], 1000)[1:].tolist() == [[0.0, 0.0]] * (BINS - 1)


@pytest.mark.parametrize("steps", [4, 7, 1000])
def test_bins_are_equal_parts_of_all_steps(steps: int) -> None:
    counts = binned(torch.ones(steps), torch.arange(steps), steps)[:, 1]
    assert counts.sum() == steps and counts.max() - counts.min() <= 1


def test_shares_are_weighed_by_what_they_are_a_part_of() -> None:
    """One sample of error 3, a third of it high, and one of error 1, all high: half of the error of both is high."""
    found = binned(torch.tensor([1.0, 1.0]), torch.zeros(2, dtype=torch.long), 10, of=torch.tensor([3.0, 1.0]))
    assert (found[0, 0] / found[0, 1]).item() == 0.5


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (4, 6), (1, 4), (5, 1)], ids=str)
def test_a_real_transform_counts_every_frequency_once(size: tuple[int, int]) -> None:
    """Oracle: numpy's whole transform."""
    x = normal(2, 3, *size)
    count, high = half_plane(size)
    whole = np.abs(np.fft.fft2(x.numpy(), norm="ortho")) ** 2
    radius = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])[None])
    half = power(x)
    np.testing.assert_allclose((half * count).sum((2, 3)).numpy(), whole.sum((2, 3)), rtol=1e-5)
    np.testing.assert_allclose(
        (half * count * high).sum((2, 3)).numpy(), (whole * (radius > 0.25)).sum((2, 3)), rtol=1e-5, atol=1e-6
    )
    parts, total = high_band(x)
    np.testing.assert_allclose(total.numpy(), x.square().sum((1, 2, 3)).numpy(), rtol=1e-5)  # Parseval
    np.testing.assert_allclose(parts.numpy(), (whole * (radius > 0.25)).sum((1, 2, 3)), rtol=1e-5, atol=1e-6)


def test_the_high_band_begins_in_the_middle_of_the_axes() -> None:
    """Waves of 1, 4 and 5 cycles over 16 cells: 0.0625, 0.25 (still low) and 0.3125 cycles per cell."""
    x = torch.arange(16)
    waves = torch.stack([torch.cos(2 * torch.pi * k * x / 16).expand(1, 16, 16) for k in (1, 4, 5)])
    high, total = high_band(waves)
    torch.testing.assert_close(high / total, torch.tensor([0.0, 0.0, 1.0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_focal_weights_are_the_distance_over_its_maximum(alpha: float) -> None:
    """Jiang et al., Eq. 8, of every channel by numpy."""
    gap = normal(2, 3, 8, 8)
    distance = np.abs(np.fft.fft2(gap.numpy(), norm="ortho")) ** alpha
    expected = (distance / distance.max(axis=(2, 3), keepdims=True))[..., :5]
    np.testing.assert_allclose(focal_weights(power(gap), alpha).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_focal_weights_have_no_gradient_and_take_no_error_for_an_answer() -> None:
    gap = torch.zeros(1, 2, 4, 4, requires_grad=True)
    weights = focal_weights(power(gap), 1.0)
    assert not weights.requires_grad and weights.tolist() == torch.zeros(1, 2, 4, 3).tolist()
