"""The evolution of the prediction's spectrum against the closed form of the Wiener filter on Gaussian data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral_diffusion.spectral import diffusion
from spectral_diffusion.spectral.diffusion import Schedule
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.spectrum import Evolution, radial_frequency

SIDE = 32


def law() -> Tensor:
    """[SIDE, SIDE] power 0.05 / f², without a mean."""
    power = 0.05 / radial_frequency(SIDE, SIDE) ** 2
    power[0, 0] = 0
    return power


def filtered(x: Tensor, transfer: Tensor) -> Tensor:
    return torch.fft.ifft2(torch.fft.fft2(x.double()) * transfer).real


def ring_means(power: Tensor) -> np.ndarray:
    """[…, SIDE, SIDE] → […, 23]: the means over the coefficients whose radius is nearest to 1, 2, … of 23."""
    rings = np.floor(radial_frequency(SIDE, SIDE).numpy() * math.sqrt(2) * 23 + 0.5)
    return np.stack([power.numpy()[..., rings == ring].mean(-1) for ring in range(1, 24)], axis=-1)


def test_spectra_of_a_wiener_denoiser_are_its_closed_form() -> None:
    """At each level fresh noise: E|X̂_0|² = ᾱ P² / (ᾱ P + 1 − ᾱ), ring by ring."""
    generator = torch.Generator().manual_seed(0)
    alphas = Schedule().alphas_cumprod[[999, 600, 300, 100, 0]].tolist()
    evolution, power = Evolution(window="none"), law()
    clean = filtered(torch.randn(300, 1, SIDE, SIDE, generator=generator), power.sqrt())
    expected = []
    for alpha in alphas:
        noisy = alpha**0.5 * clean + (1 - alpha) ** 0.5 * torch.randn(clean.shape, generator=generator)
        total = alpha * power + 1 - alpha
        evolution.add(alpha, filtered(noisy, alpha**0.5 * power / total))
        expected.append(alpha * power**2 / total)
    by_ring = ring_means(torch.stack(expected))
    assert evolution.power.shape == by_ring.shape
    np.testing.assert_allclose(evolution.power, by_ring, rtol=0.17)
    np.testing.assert_allclose(evolution.power.sum(1), by_ring.sum(1), rtol=0.08)
    assert evolution.steps == alphas


def test_bands_come_one_after_the_other_along_ddim() -> None:
    """A ring of power P is within a factor of two of its end once ᾱ P² / (ᾱ P + 1 − ᾱ) is; DDIM is linear here.

    With η = 0 and the optimal filter each coefficient's x̂_0 is a real multiple of its first noise, so that its whole
    course is a product of known factors.
    """
    schedule, power, steps = Schedule(), law(), 50
    alphas = schedule.alphas_cumprod

    def denoise(x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        alpha = alphas[t[0]]
        return filtered(x, (1 - alpha).sqrt() / (alpha * power + 1 - alpha)).float()

    evolution = Evolution(window="none", pictures=4)
    noise = torch.randn(400, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    diffusion.ddim(denoise, noise, schedule, steps, callback=evolution.callback)

    factor, course = torch.ones_like(power), []
    times = schedule.ddim_timesteps(steps).tolist()
    for now, after in zip(reversed(times), [*reversed(times[:-1]), 0], strict=True):
        total = alphas[now] * power + 1 - alphas[now]
        guess = alphas[now].sqrt() * power / total * factor
        course.append(guess**2)
        factor = alphas[after].sqrt() * guess + (1 - alphas[after]).sqrt() * (1 - alphas[now]).sqrt() / total * factor
    expected = ring_means(torch.stack(course))
    np.testing.assert_allclose(evolution.power, expected, rtol=0.25)
    first = [
        next(i for i in range(50) if all(0.5 <= p / ring[-1] <= 2 for p in ring[i:])) for ring in expected.T.tolist()
    ]
    settled = evolution.settled()
    assert bool(((settled - torch.tensor(first)).abs() <= 1).all())
    assert bool((settled.diff() >= 0).all()) and int(settled[-1]) > int(settled[0]) + 5
    assert evolution.steps == list(range(50))
    assert torch.equal(evolution.final.power, evolution.power[-1])


def test_a_ring_is_there_once_it_stays_there() -> None:
    """Powers of a wave 8, 1, 3, 1, 1.5, 2 (times its amplitude's square): near the end of 2 from the fourth on."""
    wave = torch.cos(2 * math.pi * torch.arange(16) / 16).expand(1, 1, 16, 16)
    evolution = Evolution(window="none")
    for power in (8, 1, 5, 1.01, 1.5, 2):
        evolution.add(power, math.sqrt(power) * wave)
    assert evolution.settled()[0] == 3
    assert evolution.settled(3)[0] == 1
    assert evolution.settled(1.2)[0] == 5
    assert evolution.settled(5)[0] == 0
    with pytest.raises(SpectralError, match="factor above 1"):
        evolution.settled(1)


@pytest.mark.parametrize("steps", [1, 5, 16, 17, 100])
def test_pictures_are_few_evenly_spaced_and_the_last(steps: int) -> None:
    evolution = Evolution(pictures=8)
    for step in range(steps):
        evolution.add(10 * step, torch.full((2, 1, 4, 4), float(step)) + torch.arange(2)[:, None, None, None])
    places = [place for place, _ in evolution.pictures]
    assert all(bool((picture == place).all()) for place, picture in evolution.pictures)
    assert places[0] == 0 and places[-1] == steps - 1
    assert min(steps, 4) <= len(places) <= 9
    assert len(set(np.diff(places[:-1]))) <= 1


def test_runs_of_two_sizes_and_empty_ones_are_refused() -> None:
    evolution = Evolution()
    with pytest.raises(SpectralError, match="Nothing was recorded"):
        evolution.power  # noqa: B018
    evolution.add(0, torch.rand(1, 3, 8, 8))
    with pytest.raises(SpectralError, match="by itself"):
        evolution.add(1, torch.rand(1, 3, 8, 16))
    assert evolution.steps == [0] and evolution.power.shape[0] == 1
    with pytest.raises(SpectralError, match="at least 1"):
        Evolution(pictures=0)
