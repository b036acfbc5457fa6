"""The optimal linear denoiser of a power spectrum, the Wiener filter, over the steps of a diffusion (Figure 3).

At x_t = s x_0 + n ε, with ε white of variance 1 and x_0 of power P(f) = E|X_0(f)|², a diffusion's level is the pair
(s, n): (√ᾱ, √(1 − ᾱ)) for the paper's, (1 − σ, σ) for flow models. P is |DFT|²/(HW), as everywhere in this package, so
that white noise of variance 1 has P = 1 and the power of latents is comparable with that of the noise in them.

All functions compute in float64, broadcast their arguments and hold in the limits: P may be 0 or ∞, s or n may be 0.
Where there is neither signal nor noise (s² P = n² = 0), and where an infinite P meets s = 0, nothing is let through.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..diffusion import Schedule
from ..errors import SpectralError
from .comparing import interpolate_log
from .radial import RadialSpectrum


def power_law(frequency: Tensor, amplitude: float = 1.0, alpha: float = 2.0) -> Tensor:
    """A / f^α at frequencies in cycles per pixel, float64; ∞ at frequency 0 for α > 0. Figure 3 has A = 1, α = 2.

    Raises:
        SpectralError: an amplitude that is not positive.
    """
    if not amplitude > 0:
        raise SpectralError(f"The amplitude of a power law is {amplitude:g}; expected a number above 0.")
    return amplitude * frequency.double() ** -alpha


def measured_power(spectrum: RadialSpectrum, frequency: Tensor) -> Tensor:
    """A measured power at frequencies in cycles per pixel, float64: linear in the logarithms of both.

    Below the first ring and beyond the last one it is that of the ring. A single ring holds everywhere.
    """
    known = spectrum.frequency
    if len(known) < 2:
        return spectrum.power.double().expand(frequency.shape).clone()
    return interpolate_log(frequency.double().clamp(known[0].item(), known[-1].item()), known, spectrum.power.double())


def kept_share(power: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """s·G in [0, 1]: how much of the clean signal in x_t the optimal filter lets through; ½ where s² P = n²."""
    wanted, unwanted = _powers(power, signal, noise)
    total = wanted + unwanted
    share = torch.where(total > 0, wanted / total, 0.0)
    return torch.where(wanted.isinf(), 1.0, share)


def reconstruction_filter(power: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """G = s P / (s² P + n²), the linear filter that brings x_t nearest to x_0; √ᾱ / (ᾱ + (1 − ᾱ)/P) in the paper."""
    share, level = torch.broadcast_tensors(kept_share(power, signal, noise), signal.double())
    return torch.where(level > 0, share / level, 0.0)


def noise_filter(power: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """n / (s² P + n²), the linear filter that brings x_t nearest to ε; with G it gives back x_t: s G + n · this = 1."""
    wanted, unwanted = _powers(power, signal, noise)
    total = wanted + unwanted
    return torch.where(total > 0, noise.double() / total, 0.0)


def predicted_power(power: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """E|X̂_0|² = G² (s² P + n²) = s G P, the power that the optimal linear denoiser's prediction has."""
    share = kept_share(power, signal, noise)
    return torch.where(share > 0, share * power.double(), 0.0)


def _powers(power: Tensor, signal: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Powers of signal and noise in x_t: s² P, 0 at s = 0, and n²."""
    power, level = torch.broadcast_tensors(power.double(), signal.double())
    return torch.where(level == 0, 0.0, level.square() * power), noise.double().square()


@dataclass(frozen=True)
class WienerTable:
    """The optimal linear denoiser over levels and frequencies.

    frequency: [F] cycles per pixel, increasing.
    power: [F] of x_0.
    signal, noise: [S] s and n of the levels, in the order given.
    step: [S] what the levels are called: time steps of a schedule, or their places 0, 1, …
    """

    frequency: Tensor
    power: Tensor
    signal: Tensor
    noise: Tensor
    step: Tensor

    @cached_property
    def reconstruction(self) -> Tensor:
        """[S, F] G, from x_t to x_0."""
        return reconstruction_filter(*self._arguments)

    @cached_property
    def noise_prediction(self) -> Tensor:
        """[S, F] the filter from x_t to ε."""
        return noise_filter(*self._arguments)

    @cached_property
    def kept(self) -> Tensor:
        """[S, F] s·G, in [0, 1]."""
        return kept_share(*self._arguments)

    @cached_property
    def predicted(self) -> Tensor:
        """[S, F] power of the prediction."""
        return predicted_power(*self._arguments)

    @cached_property
    def bandwidth(self) -> Tensor:
        """[S] the frequency where s·G first falls through ½, where signal and noise are equally strong.

        Between two frequencies ln P is taken as linear in ln f, which is exact for a power law. 0 where not even the
        lowest frequency is half kept, the highest frequency where all are.
        """
        positive = self.frequency > 0
        frequency = self.frequency[positive].double()
        ratio = self._log_ratio[:, positive]
        return torch.stack([_falls_through(row, frequency) for row in ratio])

    @property
    def _arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.power[None], self.signal[:, None], self.noise[:, None]

    @property
    def _log_ratio(self) -> Tensor:
        """[S, F] ln(s² P / n²), −∞ where nothing is kept and +∞ where all is."""
        wanted, unwanted = _powers(*self._arguments)
        ratio = wanted.log() - unwanted.log()
        return torch.where(wanted == 0, -torch.inf, ratio)


def _falls_through(ratio: Tensor, frequency: Tensor) -> Tensor:
    """Where ln(s² P / n²) [F] first falls below 0, linear in ln f between the last above and the first below."""
    below = ratio < 0
    if not below.any():
        return frequency[-1]
    after = int(below.int().argmax())
    if after == 0:
        return torch.zeros((), dtype=torch.float64)
    high, low = ratio[after - 1], ratio[after]
    if high.isinf() or low.isinf():  # a step: nothing lies between the two
        return frequency[after - 1]
    start, stop = frequency[after - 1].log(), frequency[after].log()
    return (start + (stop - start) * high / (high - low)).exp()


def wiener_table(
    frequency: Tensor, power: Tensor, signal: Tensor, noise: Tensor, step: Tensor | None = None
) -> WienerTable:
    """The optimal linear denoiser at levels (s, n) and frequencies.

    Args:
        frequency: [F] cycles per pixel, increasing, 0 or more.
        power: [F] of x_0, `power_law` or `measured_power` at them; 0 to ∞.
        signal, noise: [S] s and n; 0 or more.
        step: [S] names of the levels; 0, 1, … if None.

    Raises:
        SpectralError: nothing given, shapes that do not go together, frequencies in another order, or negative numbers.
    """
    step = torch.arange(len(signal)) if step is None else step
    if frequency.ndim != 1 or frequency.shape != power.shape or not len(frequency):
        raise SpectralError(
            f"A Wiener filter needs frequencies and as many powers, not {tuple(frequency.shape)} and "
            f"{tuple(power.shape)}."
        )
    if signal.ndim != 1 or signal.shape != noise.shape or signal.shape != step.shape or not len(signal):
        raise SpectralError(
            f"A Wiener filter needs levels of signal, as many of noise and as many steps, not {tuple(signal.shape)}, "
            f"{tuple(noise.shape)} and {tuple(step.shape)}."
        )
    if bool((frequency.diff() <= 0).any()) or not bool((frequency >= 0).all()):
        raise SpectralError("The frequencies of a Wiener filter must be 0 or more, each above the one before it.")
    if not all(bool((values >= 0).all()) for values in (power, signal, noise)):
        raise SpectralError("The power, signal and noise of a Wiener filter must be 0 or more, and no NaN.")
    return WienerTable(frequency.double(), power.double(), signal.double(), noise.double(), step)


def schedule_levels(schedule: Schedule, steps: Tensor) -> tuple[Tensor, Tensor]:
    """s = √ᾱ_t and n = √(1 − ᾱ_t), float64 [S], at time steps [S] of a schedule.

    Raises:
        SpectralError: a step that the schedule does not have.
    """
    if not len(steps) or int(steps.min()) < 0 or int(steps.max()) >= schedule.steps:
        raise SpectralError(f"The time steps are {steps.tolist()}; expected some of 0 to {schedule.steps - 1}.")
    alphas = schedule.alphas_cumprod[steps.long()]
    return alphas.sqrt(), (1 - alphas).clamp_min(0).sqrt()
