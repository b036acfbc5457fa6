"""The distillation losses of Section 5.2: spatial (Eq. 9) and spectrum-aware (Eqs. 10 and 11)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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


def spatial_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean square of the difference of two feature maps [B, C, H, W] (Eq. 9), scalar float32."""
    return F.mse_loss(student.float(), teacher.float())


def frequency_loss(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Mean of ω |F(student) − F(teacher)|² (Eq. 11), scalar float32; the orthonormal 2D DFT is one of the difference.

    With all weights 1 this is `spatial_loss`, by Parseval's theorem.
    """
    spectrum = torch.fft.fft2(student.float() - teacher.float(), norm="ortho")
    return (weights * (spectrum.real.square() + spectrum.imag.square())).mean()
