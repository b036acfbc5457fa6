"""What training minimises beyond the paper's losses, and what it logs of them: weights of steps, bands, bins of steps.

Everything here gives one value a sample, [B], so that steps can be weighed and told apart before a mean is taken.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

#: Equal parts of the time steps that losses are logged in: "t0" holds the least noise, "t3" the most.
BINS = 4
#: Where the high band begins, in cycles per cell: half of the axes' Nyquist frequency.
HIGH_BAND = 0.25


def min_snr_weights(alphas_cumprod: Tensor, t: Tensor, gamma: float, prediction: str, least: float = 0.0) -> Tensor:
    """Min-SNR-γ weights of the squared error at the steps t [B], float32 [B].

    The weight of the error of x_0 is min(SNR, γ), SNR = ᾱ / (1 − ᾱ) (Hang et al., "Efficient Diffusion Training via
    Min-SNR Weighting Strategy", 2023, Section 3.4); that of the noise, which is SNR times it, min(SNR, γ) / SNR, and
    that of the velocity, which is SNR + 1 times it, min(SNR, γ) / (SNR + 1).

    Args:
        alphas_cumprod: ᾱ, [T].
        gamma: γ, above 0; 5 in the article.
        prediction: what the error is of, "eps" or "v".
        least: SNR below this counts as this. Where ᾱ falls to 0, as the article's does not, the velocity of the last
            step would weigh nothing, and never be learnt.
    """
    alpha = alphas_cumprod.double().to(t.device)[t]
    snr = (alpha / (1.0 - alpha)).clamp(min=least)
    # min(SNR, γ) / SNR, written so that it is 1 where the SNR is 0.
    weights = gamma / snr.clamp(min=gamma) if prediction == "eps" else snr.clamp(max=gamma) / (snr + 1.0)
    return weights.float()


def binned(values: Tensor, t: Tensor, steps: int, of: Tensor | None = None) -> Tensor:
    """Sums of `values` [B] over `BINS` equal parts of the steps 0 … steps − 1, and what to divide them by: [BINS, 2].

    Rows add up over batches and processes; where the divisor is 0, nothing has been seen of that part.

    Args:
        t: the step of every sample, [B] int64.
        of: what every value is a part of, [B]; a mean over samples otherwise.
    """
    divisors = torch.ones_like(values) if of is None else of
    places = (t * BINS).div(steps, rounding_mode="floor")
    rows = torch.stack([values, divisors], dim=1).detach().float()
    return torch.zeros(BINS, 2, device=values.device).index_add_(0, places, rows)


@cache
def half_plane(size: tuple[int, int], device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """How often each frequency of a real transform [H, W // 2 + 1] stands for one of the whole, and which are high.

    Returns:
        (1 or 2, float32 [1, W // 2 + 1]; whether the radial frequency is above `HIGH_BAND`, float32
        [H, W // 2 + 1]).
    """
    height, width = size
    across = torch.fft.rfftfreq(width, device=device)
    count = torch.full_like(across, 2.0)
    count[0] = 1.0
    if width % 2 == 0:
        count[-1] = 1.0
    high = torch.hypot(torch.fft.fftfreq(height, device=device)[:, None], across) > HIGH_BAND
    return count[None], high.float()


def power(x: Tensor) -> Tensor:
    """|F(x)|² of real x [B, C, H, W], orthonormal, float32 [B, C, H, W // 2 + 1]; see `half_plane`."""
    spectrum = torch.fft.rfft2(x.float(), norm="ortho")
    return spectrum.real.square() + spectrum.imag.square()


def high_band(error: Tensor) -> tuple[Tensor, Tensor]:
    """The squared error's sum over the high band, and over all of them (Parseval), of error [B, C, H, W]; both [B]."""
    count, high = half_plane((error.shape[2], error.shape[3]), error.device)
    spectrum = power(error).sum(1) * count
    return (spectrum * high).sum((1, 2)), spectrum.sum((1, 2))


def bands(error: Tensor) -> tuple[Tensor, Tensor]:
    """The mean square of error [B, C, H, W] of every sample, and what part of it lies in the high band, [B] float32."""
    with torch.no_grad():
        high, whole = high_band(error)
        return whole / error[0].numel(), high / error[0].numel()


def focal_weights(power: Tensor, alpha: float) -> Tensor:
    """Weights of the focal frequency loss: |F_s − F_t|^α over its maximum, in [0, 1], without gradient.

    Jiang et al., "Focal Frequency Loss for Image Reconstruction and Synthesis", ICCV 2021, Eq. 8: what is far off
    counts most, whatever the image has there.

    Args:
        power: |F_s − F_t|², [B, C, H, W]; every channel has a maximum of its own.
        alpha: α; 1 in the article.
    """
    weights = power.detach() ** (alpha / 2)
    return weights / weights.amax((2, 3), keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def rows(
    terms: dict[str, tuple[Tensor, Tensor | None]], t: Tensor, steps: int, counted: Tensor | None = None
) -> dict[str, Tensor]:
    """What is logged of the terms of a loss: rows [2], to be summed over batches and divided, the first by the second.

    Args:
        terms: by name, the values of every sample [B], and how much of each lies in the high band [B], or None.
        t: the step of every sample, of `steps` in all.
        counted: 1 for the samples that count, 0 for the others, [B]; None counts all.

    Returns:
        "NAME/t0" … "NAME/t3", the mean in each quarter of the steps; where the high band is known, "NAME/high/t0" …
        its share there, and "NAME/high" that of all steps.
    """
    found: dict[str, Tensor] = {}
    for name, (values, high) in terms.items():
        if counted is not None:
            values, high = values * counted, None if high is None else high * counted
        found |= {f"{name}/t{index}": row for index, row in enumerate(binned(values, t, steps, counted))}
        if high is not None:
            shares = binned(high, t, steps, of=values)
            found |= {f"{name}/high/t{index}": row for index, row in enumerate(shares)}
            found[f"{name}/high"] = shares.sum(0)
    return found
