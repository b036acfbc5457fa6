"""Weights on the bands of a wavelet transform of several levels: analyse, multiply, put together, in two products.

Level 1 is the finest and holds ¼ to ½ cycles per pixel, level l holds 2^−(l+1) to 2^−l, whatever the size of the image:
what a weight means does not depend on the resolution. Each level has three orientations; what no level holds is `low`.

Along one axis, let P_l keep what lies below l levels (l times analysis, then l times synthesis, low-pass alone), and
P_0 = 1. A level's detail is then Q_l = P_(l−1) − P_l, because the filters reconstruct perfectly; the band of level l is
Q_l X P_lᵀ (horizontal structure), P_l X Q_lᵀ (vertical) or Q_l X Q_lᵀ (diagonal), and `low` is P_L X P_Lᵀ. Their
weighted sum is Σ_ij C_ij P_i X P_jᵀ with a small matrix C: one product for each axis, with any filter bank at any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from . import wavelet as wavelets
from .errors import SpectralError

MAX_LEVELS = 5
#: The longest axis that is computed: its matrices take 2 GB while they are made, and then 0.5 GB.
MAX_SIDE = 4096


@dataclass(frozen=True)
class BandWeights:
    """A factor for each band; 1 leaves it as it is.

    Args:
        levels: finest first, each (horizontal, vertical, diagonal), in pywt's terms (cH, cV, cD).
        low: of all that lies below the last level.

    Raises:
        SpectralError: no level, or more than MAX_LEVELS.
    """

    levels: tuple[tuple[float, float, float], ...]
    low: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= len(self.levels) <= MAX_LEVELS:
            raise SpectralError(f"Band weights have {len(self.levels)} levels; expected 1 to {MAX_LEVELS}.")

    @property
    def neutral(self) -> bool:
        """Whether they change nothing."""
        return self.low == 1 and all(weight == 1 for level in self.levels for weight in level)

    def mixing(self) -> Tensor:
        """C of the module's text with the weights less 1, [L + 1, L + 1] float64: what is added to the image."""
        last = len(self.levels)
        mixed = torch.zeros(last + 1, last + 1, dtype=torch.float64)
        for level, weights in enumerate(self.levels, start=1):
            horizontal, vertical, diagonal = (weight - 1 for weight in weights)
            fine = level - 1
            mixed[fine, fine] += diagonal
            mixed[fine, level] += horizontal - diagonal
            mixed[level, fine] += vertical - diagonal
            mixed[level, level] += diagonal - horizontal - vertical
        mixed[last, last] += self.low - 1
        return mixed


def change(x: Tensor, weights: BandWeights, wavelet: wavelets.Wavelet = "haar", mode: str = "symmetric") -> Tensor:
    """What weighting the bands of x adds to x: Σ_b (w_b − 1) B_b(x).

    Args:
        x: [..., H, W] of a floating dtype, any size from 1×1; leading axes (batch, channels, frames) are independent.
        wavelet: name of a discrete PyWavelets wavelet.
        mode: how x goes on beyond its border, one of `wavelet.MODES`.

    Returns:
        The shape and dtype of x; computed in float32, or float64 for such x. Equal to `pywt.waverec2` of the weighted
        `pywt.wavedec2` less x.

    Raises:
        SpectralError: an unknown wavelet or mode, or x without rows or columns, or with more than MAX_SIDE of them.
    """
    if x.ndim >= 2 and max(x.shape[-2:]) > MAX_SIDE:
        raise SpectralError(
            f"Wavelet bands are made of at most {MAX_SIDE} positions along an axis, and these latents have "
            f"{max(x.shape[-2:])}; make a smaller or shorter one, or take Wavelet Guidance out."
        )
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise SpectralError(f"Expected [..., height, width] with at least one row and column, not {tuple(x.shape)}.")
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    height, width = x.shape[-2:]
    count = len(weights.levels)
    across = _below(wavelet, width, count, mode, work, x.device)  # [(L + 1) W, W]
    down = _mixed_below(wavelet, height, weights, mode, work, x.device)  # [H, (L + 1) H]
    filtered = torch.matmul(across, x.to(work).mT)  # rows of P_j Xᵀ, j after j: [..., (L + 1) W, H]
    stacked = filtered.unflatten(-2, (count + 1, width)).mT.flatten(-3, -2)  # [..., (L + 1) H, W]
    return torch.matmul(down, stacked).to(x.dtype)


def weigh(x: Tensor, weights: BandWeights, wavelet: wavelets.Wavelet = "haar", mode: str = "symmetric") -> Tensor:
    """x with its bands weighted; x itself where all weights are 1. Arguments and errors as in `change`."""
    return x if weights.neutral else x + change(x, weights, wavelet, mode)


@lru_cache(maxsize=16)
def _below(
    wavelet: wavelets.Wavelet, size: int, levels: int, mode: str, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """P_0, …, P_L one under the other, [(L + 1) · size, size]."""
    with torch.inference_mode(False), torch.no_grad():
        return torch.cat(_lowpasses(wavelet, size, levels, mode)).to(device, dtype)


@lru_cache(maxsize=16)
def _mixed_below(
    wavelet: wavelets.Wavelet, size: int, weights: BandWeights, mode: str, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Σ_i C_ij P_i for each j, side by side, [size, (L + 1) · size]."""
    with torch.inference_mode(False), torch.no_grad():
        stacked = torch.stack(_lowpasses(wavelet, size, len(weights.levels), mode))
        mixed = torch.einsum("ij,iab->ajb", weights.mixing(), stacked)
        return mixed.flatten(1).to(device, dtype)


def _lowpasses(wavelet: wavelets.Wavelet, size: int, levels: int, mode: str) -> list[Tensor]:
    """P_0 … P_L, [size, size] float64 each."""
    made = [torch.eye(size, dtype=torch.float64)]
    down = up = made[0]
    for _ in range(levels):
        analysis, synthesis = wavelets.axis_matrices(wavelet, down.shape[0], mode)
        kept = len(analysis) // 2
        down, up = analysis[:kept] @ down, up @ synthesis[:, :kept]
        made.append(up @ down)
    return made
