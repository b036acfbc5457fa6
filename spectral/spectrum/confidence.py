"""How far a measured power can be trusted: confidence intervals of means over images, and of a single image's rings."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: DFT frequencies for each independent value of power, in rings about one cycle per image wide: under a Hann window
#: neighbours along the ring go together, by the squares of the correlations 2/3 and 1/6 of their amplitudes.
FREQUENCIES_PER_VALUE = {"none": 1.0, "hann": 1 + 2 * (2 / 3) ** 2 + 2 * (1 / 6) ** 2}
_ROUNDS = 60


def of_means(mean: Tensor, error: Tensor, freedom: int, level: float) -> tuple[Tensor, Tensor]:
    """Of positive means with standard errors: mean · exp(± t · error / mean), Student's t with `freedom` degrees."""
    reach = (student_t(0.5 + level / 2, freedom) * error / mean.clamp_min(torch.finfo(mean.dtype).tiny)).clamp_max(50)
    return mean * torch.exp(-reach), mean * torch.exp(reach)


def of_powers(power: Tensor, freedom: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Of powers of a Gaussian field: power · ν / χ²_ν, ν the degrees of freedom that each was averaged over."""
    freedom = freedom.double().clamp_min(1.0)
    high = chi_squared(torch.full_like(freedom, 0.5 + level / 2), freedom)
    low = chi_squared(torch.full_like(freedom, 0.5 - level / 2), freedom)
    return power * freedom / high, power * freedom / low


def chi_squared(probability: Tensor, freedom: Tensor) -> Tensor:
    """Where the χ² distribution reaches a probability, by bisection of its distribution function."""
    low = torch.zeros_like(freedom)
    high = freedom + 20 * (2 * freedom).sqrt() + 60
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        below = torch.special.gammainc(freedom / 2, middle / 2) < probability
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def student_t(probability: float, freedom: int) -> float:
    """Where Student's t distribution reaches a probability above ½; the normal distribution's from 1000 degrees on."""
    if freedom >= 1000:
        return float(torch.special.ndtri(torch.tensor(probability, dtype=torch.float64)))
    low, high = 0.0, 1e6
    for _ in range(_ROUNDS + 20):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_below(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _student_below(t: float, freedom: int) -> float:
    """P(T < t), t ≥ 0, by the finite sums for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(odd, freedom - 1, 2):
        total += term
        term *= cosine * cosine * (k + 1) / (k + 2)
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + within / 2
