"""The diffusion process as LDM runs it: schedule, forward noising, DDIM, classifier-free guidance.

Notation: x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε with t in 0 … T − 1 (Eq. 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .config import ScheduleConfig
from .errors import SpectralError


class Denoise(Protocol):
    """A network: (x [B, C, H, W], t [B], context [B, T, D] or None) → its prediction, shaped like x."""

    def __call__(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor: ...


class Schedule:
    """LDM's "linear" noise schedule: β = linspace(√start, √end, steps)².

    Args:
        linear_start: β of the first step, in (0, 1).
        linear_end: β of the last step, in (0, 1).
        steps: T.
        prediction: what the network says: "eps" (noise) or "v" (√ᾱ ε − √(1 − ᾱ) x_0).
        zero_terminal_snr: √ᾱ is shifted and scaled so that it keeps its first value and ends at 0 (Lin et al., "Common
            Diffusion Noise Schedules and Sample Steps are Flawed", 2023, Algorithm 1). Noise alone says nothing about
            x_0 then, so that the network has to predict the velocity.

    Attributes:
        betas, alphas_cumprod: float64, [T]; ᾱ_t = ∏ (1 − β_s), s ≤ t.
    """

    def __init__(
        self,
        linear_start: float = 0.0015,
        linear_end: float = 0.0195,
        steps: int = 1000,
        prediction: str = "eps",
        zero_terminal_snr: bool = False,
    ) -> None:
        if not (0.0 < linear_start < 1.0 and 0.0 < linear_end < 1.0 and 1 <= steps <= 10**6):
            raise SpectralError(
                f"A schedule needs 0 < β < 1 and 1 to 1000000 steps, not {linear_start}, {linear_end}, {steps}."
            )
        if prediction not in ("eps", "v"):
            raise SpectralError(f"A network predicts 'eps' or 'v', not {prediction!r}.")
        if zero_terminal_snr and (prediction != "v" or steps < 2):
            raise SpectralError(
                f"A schedule of zero terminal SNR needs a network that predicts 'v', and 2 steps or more, not "
                f"{prediction!r} and {steps}; set prediction to v, or zero_terminal_snr to false."
            )
        self.linear_start, self.linear_end, self.steps, self.prediction = linear_start, linear_end, steps, prediction
        self.zero_terminal_snr = zero_terminal_snr
        self.betas = torch.linspace(linear_start**0.5, linear_end**0.5, steps, dtype=torch.float64) ** 2
        self.alphas_cumprod = torch.cumprod(1.0 - self.betas, dim=0)
        if zero_terminal_snr:
            signal = self.alphas_cumprod.sqrt()
            signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
            self.alphas_cumprod = signal.square()
            self.betas[1:] = 1.0 - self.alphas_cumprod[1:] / self.alphas_cumprod[:-1]
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @classmethod
    def from_config(cls, config: ScheduleConfig) -> Schedule:
        return cls(config.linear_start, config.linear_end, config.steps, config.prediction, config.zero_terminal_snr)

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1 − ᾱ_t) for integer steps t [B], ready to multiply with `like` [B, …]."""
        key = (like.device, like.dtype)
        if key not in self._tables:  # once, so that no training step waits for the other device
            alphas = self.alphas_cumprod
            self._tables[key] = (alphas.sqrt().to(like), (1.0 - alphas).sqrt().to(like))
        signal, sigma = self._tables[key]
        index, shape = t.to(like.device), (-1, *[1] * (like.dim() - 1))
        return signal[index].view(shape), sigma[index].view(shape)

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The forward process (Eq. 2): x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε, for x_0 and noise [B, …] and t [B]."""
        signal, sigma = self.coefficients(t, x_0)
        return signal * x_0 + sigma * noise

    def target(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network should say at x_t: the noise, or the velocity √ᾱ ε − √(1 − ᾱ) x_0."""
        if self.prediction == "eps":
            return noise
        signal, sigma = self.coefficients(t, x_0)
        return signal * noise - sigma * x_0

    def split(self, x_t: Tensor, t: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """(x_0, ε) that a network's prediction at x_t stands for."""
        signal, sigma = self.coefficients(t, x_t)
        if self.prediction == "eps":
            return (x_t - sigma * prediction) / signal, prediction
        return signal * x_t - sigma * prediction, sigma * x_t + signal * prediction

    def nearest_steps(self, other: Schedule) -> Tensor:
        """For every step of `other`, the one here whose √ᾱ is nearest: where a network of this schedule is at home."""
        signal = self.alphas_cumprod.sqrt().flip(0)
        places = torch.bucketize(other.alphas_cumprod.sqrt(), (signal[1:] + signal[:-1]) / 2)
        return self.steps - 1 - places

    def ddim_timesteps(self, steps: int) -> Tensor:
        """LDM's uniform choice of steps: range(0, T, T // steps) + 1, ascending.

        Where T is not a multiple of `steps` these are a few more than `steps`, as in LDM; all stay below T. LDM's never
        hold the last step, from which a schedule of zero terminal SNR has to start: that one's are
        round(T, T − T/steps, …) − 1 (Lin et al., Table 2, "trailing").

        Raises:
            SpectralError: `steps` is not in 1 … T.
        """
        if not 1 <= steps <= self.steps:
            raise SpectralError(f"DDIM can take 1 to {self.steps} steps of this schedule, not {steps}.")
        if self.zero_terminal_snr:
            return (torch.arange(1, steps + 1, dtype=torch.float64) * (self.steps / steps)).round().long() - 1
        return (torch.arange(0, self.steps, self.steps // steps) + 1).clamp_(max=self.steps - 1).unique_consecutive()


def guided(denoise: Denoise, guidance: float, cond: Tensor | None, uncond: Tensor | None) -> Denoise:
    """Classifier-free guidance, ε = ε_u + w (ε_c − ε_u), both in one batch; w = 1 asks the conditional one alone.

    Without any condition ε_u and ε_c are one, and so is ε for every w.

    Raises:
        SpectralError: w is not finite, or is not 1 and only one of the two conditions is there.
    """
    if not math.isfinite(guidance):
        raise SpectralError(f"The guidance is {guidance}; expected a number, 1 for none.")
    if guidance == 1.0 or (cond is None and uncond is None):
        return lambda x, t, context=None: denoise(x, t, cond)
    if cond is None or uncond is None:
        raise SpectralError(
            "Guidance other than 1 weighs a condition against its absence; give cond and uncond, or set guidance to 1."
        )
    both = torch.cat([uncond.expand(len(cond), -1, -1), cond])

    def denoise_both(x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        without, with_ = denoise(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return without + guidance * (with_ - without)

    return denoise_both


@torch.no_grad()
def ddim(
    denoise: Denoise,
    x_T: Tensor,
    schedule: Schedule,
    steps: int,
    *,
    eta: float = 0.0,
    guidance: float = 1.0,
    cond: Tensor | None = None,
    uncond: Tensor | None = None,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample with DDIM (Song et al.), at LDM's time steps; ᾱ "before" the first of them is ᾱ_0.

    Args:
        denoise: the network.
        x_T: the noise to start from, [B, C, H, W], unit variance.
        schedule: the network's own.
        steps: how many, 1 … T.
        eta: 0 is deterministic DDIM, 1 has the variance of ancestral sampling.
        guidance: weight w of classifier-free guidance; 1 is none.
        cond, uncond: contexts [B, T, D]; `uncond` may be a single one, [1, T, D].
        callback: called after each step with (index, x_t, predicted x_0).
        generator: of the noise that η > 0 adds.

    Returns:
        x_0, [B, C, H, W].

    Raises:
        SpectralError: steps, eta or guidance that cannot be.
    """
    if not 0.0 <= eta < math.inf:
        raise SpectralError(f"DDIM's eta is {eta}; expected 0 (deterministic) or more (1 is ancestral).")
    model = guided(denoise, guidance, cond, uncond)
    times = schedule.ddim_timesteps(steps)
    alphas = schedule.alphas_cumprod[times].tolist()
    before = [schedule.alphas_cumprod[0].item(), *alphas[:-1]]
    x = x_T
    for index, (t, alpha, alpha_next) in enumerate(reversed(list(zip(times.tolist(), alphas, before, strict=True)))):
        step = torch.full((len(x),), t, device=x.device, dtype=torch.long)
        x_0, noise = schedule.split(x, step, model(x, step))
        sigma = eta * ((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)) ** 0.5
        x = alpha_next**0.5 * x_0 + max(0.0, 1 - alpha_next - sigma**2) ** 0.5 * noise
        if sigma > 0:
            x = x + sigma * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        if callback is not None:
            callback(index, x, x_0)
    return x
