"""Random numbers that belong to samples: distributed as they should, and the same wherever a sample is seen."""

from __future__ import annotations

import torch
from scipy import stats

from spectral_diffusion.training.loop.randomness import SampleRandom

MANY = torch.arange(4000)


def test_numbers_are_uniform_and_normal() -> None:
    random = SampleRandom(0, MANY)
    assert stats.kstest(random.uniform().numpy(), "uniform").pvalue > 0.01
    assert stats.chisquare(torch.bincount(random.integers(10), minlength=10).numpy()).pvalue > 0.01
    noise = random.normal((3, 4))
    assert noise.dtype == torch.float32 and noise.shape == (4000, 3, 4)
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.01


def test_neighbours_know_nothing_of_each_other() -> None:
    noise = SampleRandom(0, MANY).normal((64,))
    correlation = torch.corrcoef(noise[:200]).fill_diagonal_(0)
    assert correlation.abs().max() < 0.65  # of 19900 pairs of 64 numbers, about 5 standard errors
    other = SampleRandom(1, MANY).normal((64,))
    assert abs(torch.corrcoef(torch.stack((noise.flatten(), other.flatten())))[0, 1]) < 0.01


def test_a_sample_meets_the_same_whoever_sees_it() -> None:
    whole, parts = SampleRandom(7, torch.arange(8)), [SampleRandom(7, part) for part in torch.arange(8).split(3)]
    for draw in (lambda r: r.uniform(), lambda r: r.integers(1000), lambda r: r.normal((2, 3)), lambda r: r.uniform()):
        assert torch.equal(draw(whole), torch.cat([draw(part) for part in parts]))


def test_the_stream_of_the_process_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    SampleRandom(3, MANY[:5]).normal((2, 2))
    assert torch.equal(torch.rand(3), expected)
