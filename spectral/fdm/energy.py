"""What a boundary between stages does to the signal's energy, measured on data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SpectralError
from .process import Process


@dataclass(frozen=True)
class Energy:
    """One boundary, over all latents.

    Args:
        dimension_ratio: d.
        gamma: γ, mean square of x̂^k = g(x^{k+1}) over that of x^{k+1}.
        before, after: mean squares of x^k and of x^{k+1}.
        lost: mean square of x^k − x̂^k over that of x^k: what the stage below has to add.
        terminal: α²/σ² of stage k + 1 at the end of the schedule, with this γ (and the power of d in the settings).
    """

    dimension_ratio: float
    gamma: float
    before: float
    after: float
    lost: float
    terminal: float


@torch.no_grad()
def measure(process: Process, latents: Iterable[Tensor]) -> list[Energy]:
    """γ and what belongs to it, of every boundary, on batches of latents [B, C, H, W] as the U-Net sees them.

    Raises:
        SpectralError: there is no latent, a number is not finite, or nothing but zeros is left of them.
    """
    sums = torch.zeros(process.last, 4, dtype=torch.float64)
    counts = torch.zeros(process.last, 2, dtype=torch.float64)
    for x in latents:
        for index, transform in enumerate(process.transforms):
            y = transform.forth(x)
            back = transform.back(y, (x.shape[2], x.shape[3]))
            found = (x, y, back, x - back)
            sums[index] += torch.stack([one.double().square().sum().cpu() for one in found])
            counts[index] += torch.tensor([x.numel(), y.numel()])
            x = y
    alpha = float(process.schedule.alphas_cumprod[-1])
    ratio, results = alpha / (1.0 - alpha), []
    for (before, after, back, rest), (many, few), transform in zip(
        sums.tolist(), counts.tolist(), process.transforms, strict=True
    ):
        if not after > 0:
            raise SpectralError("The stages' energies need latents of finite numbers, not all of them 0; give some.")
        gamma = (back / many) / (after / few)
        ratio *= transform.dimension_ratio**process.config.dimension_power * gamma
        results.append(Energy(transform.dimension_ratio, gamma, before / many, after / few, rest / before, ratio))
    return results
