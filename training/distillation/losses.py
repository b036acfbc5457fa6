"""The distillation losses of Section 5.2: spatial (Eq. 9) and spectrum-aware (Eqs. 10 and 11)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from . import transforms
from .objectives import half_plane

#: Weights of frequencies: (powers |F_s − F_t|² [B, C, H, W // 2 + 1], size (H, W)) → weights that multiply them.
Weigh = Callable[[Tensor, tuple[int, int]], Tensor]


def spectrum_weights(x_0: Tensor, size: tuple[int, int], alpha: float, floor: float = 1e-3) -> Tensor:
    """ω = |F(x_0 resized)|^α (Eq. 10), one weight per frequency, float32 [B, 1, H, W], unshifted.

    Args:
        x_0: clean (scaled) latents [B, C, h, w]; magnitudes are averaged over the channels.
        size: (H, W) of the features that are compared. Down-sampling averages areas; the DFT is orthonormal.
        alpha: the exponent; −1 in the paper.
        floor: magnitudes below this share of the image's mean magnitude count as this.

    The weights of every image have mean 1, so that α changes where an error counts and not how much.
    """
    resized = x_0.float()
    if resized.shape[2:] != size:
        resized = F.interpolate(resized, size=size, mode="area")
    magnitude = torch.fft.fft2(resized, norm="ortho").abs().mean(1, keepdim=True)
    magnitude = torch.maximum(magnitude, floor * magnitude.mean((2, 3), keepdim=True) + 1e-12)
    weights = magnitude**alpha
    return weights / weights.mean((2, 3), keepdim=True)


def spatial_errors(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean square of the difference of two feature maps [B, C, H, W] (Eq. 9) of every sample, float32 [B]."""
    return (student.float() - teacher.float()).square().mean((1, 2, 3))


def spatial_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean of `spatial_errors`, scalar float32."""
    return F.mse_loss(student.float(), teacher.float())


def frequency_errors(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Mean of ω |F(student) − F(teacher)|² (Eq. 11) of every sample, float32 [B]; the DFT is one of the difference.

    With all weights 1 this is `spatial_errors`, by Parseval's theorem.
    """
    spectrum = torch.fft.fft2(student.float() - teacher.float(), norm="ortho")
    return (weights * (spectrum.real.square() + spectrum.imag.square())).mean((1, 2, 3))


def frequency_loss(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """The mean of `frequency_errors`, scalar float32."""
    return frequency_errors(student, teacher, weights).mean()


class Pair(NamedTuple):
    """Two feature maps [B, C, H, W] that are compared, and what their losses are divided by (a number, or one for each
    sample, [B, 1, 1, 1])."""

    student: Tensor
    teacher: Tensor
    scale: Tensor | float = 1.0


class Distances(NamedTuple):
    """The distillation losses of every sample, [B] float32, summed over the pairs; all 0 where not asked for.

    Args:
        spatial, frequency: L_spatial and L_freq.
        spatial_high, frequency_high: what part of them lies in the high band (see `objectives.HIGH_BAND`), without
            gradient.
    """

    spatial: Tensor
    frequency: Tensor
    spatial_high: Tensor
    frequency_high: Tensor


def distances(pairs: Sequence[Pair], weigh: Weigh | None) -> Distances:
    """What `spatial_errors` and `frequency_errors` sum up to, with one real transform for each size of features.

    Pairs of one size are joined along their channels, each divided by √(channels · scale), so that the sum over all
    channels is the sum of the means over each pair's.

    Args:
        weigh: weights of the frequencies; None leaves L_freq and all transforms out.
    """
    sizes: dict[tuple[int, int], list[Tensor]] = {}
    for student, teacher, scale in pairs:
        _, channels, height, width = student.shape
        gap = (student.float() - teacher.float()).mul_((channels * torch.as_tensor(scale)) ** -0.5)
        sizes.setdefault((height, width), []).append(gap)
    zero = torch.zeros(len(pairs[0].student), device=pairs[0].student.device)
    total = Distances(zero, zero, zero, zero)
    for size, gaps in sizes.items():
        found = _distances(torch.cat(gaps, dim=1) if len(gaps) > 1 else gaps[0], size, weigh)
        total = Distances(*(mine + more for mine, more in zip(total, found, strict=True)))
    return total


def _distances(gap: Tensor, size: tuple[int, int], weigh: Weigh | None) -> Distances:
    """`distances` of one difference, summed over its channels."""
    if weigh is None:
        spatial = gap.square().sum((1, 2, 3)) / (size[0] * size[1])
        zero = torch.zeros_like(spatial)
        return Distances(spatial, zero, zero, zero)
    return Distances(*_InFrequencies.apply(gap, weigh))  # type: ignore[no-untyped-call]


class _InFrequencies(torch.autograd.Function):
    """`Distances` of a difference [B, C, H, W] float32, by one real transform forward and one back.

    Both losses are Σ w |F|² / (H W) over all frequencies, the spatial one with w = 1 by Parseval's theorem. So their
    gradients are 2 F⁻¹(w F) / (H W), and one inverse transform gives the sum of both.
    """

    @staticmethod
    def forward(ctx: Any, gap: Tensor, weigh: Weigh) -> tuple[Tensor, ...]:
        size = (gap.shape[2], gap.shape[3])
        spectrum = transforms.forward(gap)
        powers = spectrum.real.square() + spectrum.imag.square()
        weights = weigh(powers, size)
        ctx.save_for_backward(spectrum, weights)
        ctx.size = size
        # The weights of Eq. 10 are the same for every channel, so that the channels are summed first.
        plain = powers.sum(1)
        weighted = plain * weights.squeeze(1) if weights.shape[1] == 1 else (powers * weights).sum(1)
        count, high = half_plane(size, gap.device)
        share = count / math.prod(size)
        found = [(loss * share).sum((1, 2)) for loss in (plain, weighted)]
        found += [(loss * (share * high)).sum((1, 2)) for loss in (plain, weighted)]
        ctx.mark_non_differentiable(*found[2:])
        return tuple(found)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, spatial: Tensor, frequency: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        spectrum, weights = ctx.saved_tensors
        factors = spatial[:, None, None, None] + frequency[:, None, None, None] * weights
        return transforms.backward(spectrum * (factors * (2.0 / math.prod(ctx.size))), ctx.size), None


def half(weights: Tensor) -> Tensor:
    """Weights of all frequencies [B, 1, H, W] for those of a real transform, [B, 1, H, W // 2 + 1]."""
    return weights[..., : weights.shape[-1] // 2 + 1]
