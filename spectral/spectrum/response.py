"""What a denoiser does to each frequency: small sinusoids in, their gain out, against the Wiener optimum.

To x_t = s x_0 + n ε, made of clean latents, a sinusoid w of a frequency of the DFT is added and subtracted; what comes
out of it is (D(x_t + a w) − D(x_t − a w)) / 2a, and its coefficient at the same frequency over that of w is the complex
gain of one probe. The difference of the two sides leaves an error of second order in the amplitude a, and none for a
linear denoiser. Every channel carries a sinusoid of its own random phase and is read by itself: channels that are
filtered apart give their gains exactly, and what leaks between channels has a random phase and averages out.

The optimum is the Wiener filter of the latents' own power, channel by channel, measured without a window: of all
denoisers that weigh each coefficient of the DFT, the one with these weights has the least squared error, borders
included; a window would smear the powers of neighbours, which on a latent of 16 cells are very different.

How to read it: the mean gain of the best denoiser of all, E[x_0 | x_t], is s/n² times the error that it leaves at that
frequency (Tweedie's formula, differentiated), so that it equals the optimum for Gaussian data and lies below it where
the data hold more than their power tells: a low gain there is no fault by itself, and the teacher is the better
measure of a student. A gain above the optimum lets noise through.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..errors import SpectralError
from . import planes, radial
from .planes import Progress
from .wiener import reconstruction_filter

#: (x_t [B, C, H, W], index of the level) → prediction of x_0, shaped like x_t.
Denoiser: TypeAlias = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Response:
    """Gains of a denoiser over levels and rings, G in x̂_0 = G x_t.

    frequency: [R] mean frequency of each ring that was probed, in cycles per pixel.
    signal, noise: [L] s and n of the levels.
    gain: [L, R] complex128, mean over probes and channels; its imaginary part is a shift, near 0 for most denoisers.
    error: [L, R] standard error of the real part over the probes.
    optimum: [L, R] the Wiener filter's gain for the latents' power.
    probes: how many sinusoids for each level and ring.
    """

    frequency: Tensor
    signal: Tensor
    noise: Tensor
    gain: Tensor
    error: Tensor
    optimum: Tensor
    probes: int

    @property
    def kept(self) -> Tensor:
        """[L, R] s · Re G: the share of the clean signal in x_t that comes through, comparable between levels."""
        return self.signal[:, None] * self.gain.real

    @property
    def kept_error(self) -> Tensor:
        """[L, R] standard error of `kept`."""
        return self.signal[:, None] * self.error

    @property
    def kept_optimum(self) -> Tensor:
        """[L, R] s·G of the Wiener filter, in [0, 1]."""
        return self.signal[:, None] * self.optimum


@dataclass(frozen=True)
class _Plan:
    """The probes of one size of latents: rings, and for each the coefficients (row, column) of the DFT to probe."""

    frequency: Tensor
    coefficients: list[Tensor]
    places: list[int]


def denoiser_response(
    denoise: Denoiser,
    latents: Tensor,
    signal: Tensor,
    noise: Tensor,
    *,
    rings: int = 12,
    probes: int = 32,
    amplitude: float = 0.05,
    batch: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Response:
    """The gain of a denoiser at levels (s, n) and rings of frequencies, against the Wiener optimum.

    Probe i of a ring looks at latent i (mod N) under noise i, along direction i (mod their number) of the ring, which
    are spread evenly; noise i is the same at every level and ring, so that a curve's points have their chance in
    common, as have two denoisers of one seed. The numbers do not depend on `batch` but by rounding.

    Args:
        denoise: x_t [B, C, H, W] and the index of the level → x̂_0; B is 2 to 2 · batch. Called without gradients.
        latents: clean ones, [N, C, H, W], as the denoiser's x_0 are scaled; many, for their power is measured too.
        signal, noise: [L] s and n, n > 0 and finite.
        rings: at most so many of the rings about one cycle per image wide, spread evenly from the lowest to the corner.
        probes: sinusoids for each level and ring.
        amplitude: of a sinusoid, over the standard deviation of x_t. 0.05 keeps the curvature of trained networks below
            their scatter between probes, and is 10⁴ times what float32 rounds away.
        batch: probes at a time.
        seed: of noise and phases.
        progress: told of the probes as they are done; there are levels · rings · probes (`probe_count`).

    Raises:
        SpectralError: no latents, levels that cannot be, numbers below 1, or a denoiser whose answer has another shape
            or is not finite.
    """
    _check(latents, signal, noise, rings, probes, amplitude, batch)
    latents = latents.float()
    plan = _plan(latents.shape[-2], latents.shape[-1], rings)
    generator = torch.Generator().manual_seed(seed)
    fields = torch.randn(probes, *latents.shape[1:], generator=generator)
    phases = 2 * math.pi * torch.rand(len(plan.places), probes, latents.shape[1], generator=generator)
    gain = torch.empty(len(signal), len(plan.places), probes, dtype=torch.complex128)
    with torch.no_grad():
        for level, (s, n) in enumerate(zip(signal.tolist(), noise.tolist(), strict=True)):
            for ring, coefficients in enumerate(plan.coefficients):
                for start in range(0, probes, batch):
                    some = torch.arange(start, min(start + batch, probes))
                    noisy = s * latents[some % len(latents)] + n * fields[some].to(latents)
                    chosen = coefficients[some % len(coefficients)]
                    found = _probe(denoise, level, noisy, chosen, phases[ring, some], amplitude)
                    gain[level, ring, start : start + len(some)] = found
                    if progress is not None:
                        progress(len(some))
    return Response(
        frequency=plan.frequency,
        signal=signal.double().cpu(),
        noise=noise.double().cpu(),
        gain=gain.mean(-1),
        error=gain.real.std(-1) / math.sqrt(probes) if probes > 1 else torch.full(gain.shape[:2], math.nan),
        optimum=_optimum(latents, plan, signal.double().cpu(), noise.double().cpu()),
        probes=probes,
    )


def probe_count(size: tuple[int, int], levels: int, rings: int = 12, probes: int = 32) -> int:
    """How many probes `denoiser_response` makes of latents of a size (height, width): what `progress` adds up to."""
    return levels * len(_plan(*size, rings).places) * probes


def _probe(
    denoise: Denoiser, level: int, noisy: Tensor, coefficients: Tensor, phases: Tensor, amplitude: float
) -> Tensor:
    """[B] complex gains, each the mean over channels, of probes at x_t [B, C, H, W] along coefficients [B, 2]."""
    wave = _waves(coefficients, phases, noisy.shape[-2], noisy.shape[-1])
    sine = wave.real.to(noisy)
    step = amplitude * noisy.std((1, 2, 3), keepdim=True)
    answer = denoise(torch.cat([noisy + step * sine, noisy - step * sine]), level)
    if answer.shape != (2 * len(noisy), *noisy.shape[1:]):
        raise SpectralError(
            f"The denoiser was given {(2 * len(noisy), *noisy.shape[1:])} and answered {tuple(answer.shape)}; expected "
            "a prediction of x_0 of the same shape."
        )
    if not bool(answer.isfinite().all()):
        raise SpectralError("The denoiser's answer is not finite; its weights are damaged, or its precision too low.")
    above, below = answer.double().cpu().chunk(2)
    change = (above - below) / (2 * step.double().cpu())
    out = (change * wave.conj()).sum((-2, -1))
    put_in = (wave.real * wave.conj()).sum((-2, -1))
    return (out / put_in).mean(-1)


def _waves(coefficients: Tensor, phases: Tensor, height: int, width: int) -> Tensor:
    """[B, C, H, W] e^{i(2π(k_y y/H + k_x x/W) + φ)}; a coefficient that is its own mirror image has but a sign."""
    rows = coefficients[:, 0, None] * torch.arange(height).double() / height
    columns = coefficients[:, 1, None] * torch.arange(width).double() / width
    turns = (rows[:, :, None] + columns[:, None, :])[:, None]
    size = torch.tensor([height, width])
    own_mirror = ((2 * coefficients) % size == 0).all(-1)
    sign = math.pi * (phases > math.pi)
    phase = torch.where(own_mirror[:, None], sign, phases).double()
    angle = 2 * math.pi * turns + phase[..., None, None]
    return torch.polar(torch.ones_like(angle), angle)


def _plan(height: int, width: int, rings: int) -> _Plan:
    """At most `rings` of the rings of a size, and their coefficients, one of each pair f and −f, spread over angles."""
    ring = radial.rings(height, width, radial.default_bins(height, width))
    ring[0, 0] = -1
    there = ring[ring >= 0].unique()  # as the rows of a RadialSpectrum
    places = torch.linspace(0, len(there) - 1, min(rings, len(there))).round().long().tolist()
    frequency, coefficients = planes.radial_frequency(height, width), []
    for place in places:
        found = (ring == there[place]).nonzero()
        mirrored = (-found) % torch.tensor([height, width])
        first = found[:, 0] * width + found[:, 1] <= mirrored[:, 0] * width + mirrored[:, 1]
        half = found[first]
        by_angle = planes.orientation(height, width)[half[:, 0], half[:, 1]].argsort(stable=True)
        coefficients.append(half[by_angle][_spread(len(half))])
    mean = torch.stack([frequency[ring == there[place]].mean() for place in places])
    return _Plan(mean, coefficients, places)


def _spread(count: int) -> Tensor:
    """The numbers below `count` so that the first of them, however many, lie about evenly (golden ratio's steps)."""
    return (torch.arange(count) * ((math.sqrt(5) - 1) / 2) % 1.0).argsort().argsort()


def _optimum(latents: Tensor, plan: _Plan, signal: Tensor, noise: Tensor) -> Tensor:
    """[L, R] mean over channels of the Wiener filter of each channel's own radial power."""
    power = torch.stack(
        [radial.radial_spectrum(latents[:, c : c + 1], window="none").power for c in range(latents.shape[1])]
    )[:, plan.places]
    return reconstruction_filter(power[:, None], signal[:, None], noise[:, None]).mean(0)


def _check(
    latents: Tensor, signal: Tensor, noise: Tensor, rings: int, probes: int, amplitude: float, batch: int
) -> None:
    if latents.ndim != 4 or 0 in latents.shape or latents.shape[-2] * latents.shape[-1] < 2:
        raise SpectralError(
            f"A response needs clean latents [N, channels, height, width] of two cells or more, not "
            f"{tuple(latents.shape)}."
        )
    if signal.ndim != 1 or signal.shape != noise.shape or not len(signal):
        raise SpectralError(
            f"A response needs levels of signal and as many of noise, not {tuple(signal.shape)} and "
            f"{tuple(noise.shape)}."
        )
    if not bool(((signal >= 0) & (noise >= 0) & signal.isfinite() & noise.isfinite()).all()):
        raise SpectralError("The levels of signal and noise of a response must be 0 or more, and finite.")
    for name, value in (("rings", rings), ("probes", probes), ("batch", batch)):
        if value < 1:
            raise SpectralError(f"A response with {name} {value} is none; expected at least 1.")
    if not 0 < amplitude < math.inf:
        raise SpectralError(f"The amplitude of a response's probes is {amplitude}; expected a number above 0.")
