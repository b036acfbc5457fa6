"""The multi-stage process of f-DM (Gu et al., "f-DM: A Multi-stage Diffusion Model via Progressive Signal
Transformation", 2022): what a signal is at every step, how much noise it has there, and what a network is asked.

Stage k lasts from boundary τ_k to τ_{k+1}; τ_0 = 0 and τ_{K+1} is the end of the schedule. x^0 = x and
x^{k+1} = f_{k+1}(x^k). Inside of stage k the signal goes in a line from x^k to x̂^k = g(x^{k+1}):

    x_t = [(t − τ_k) x̂^k + (τ_{k+1} − t) x^k] / (τ_{k+1} − τ_k),    z_t = α_t x_t + σ_t ε,

and in the last stage it stays x^K. The network predicts ε (or the velocity) and δ_t = x^k − x_t, either as it is or as
the detail x^k − x̂^k, of which it is the share (t − τ_k)/(τ_{k+1} − τ_k). With every boundary α²/σ² grows by d^p γ, so
that a stage's schedule is the base schedule with its log-SNR shifted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import StagesConfig
from ..diffusion import Schedule
from ..errors import SpectralError
from . import transforms
from .packets import Fresh
from .transforms import Size, Transform


class Point(NamedTuple):
    """Signals somewhere in a stage, all [B, C, H, W].

    Args:
        x: x_t.
        delta: δ_t = x^k − x_t.
        detail: x^k − x̂^k, all that the stage has and the next one lacks; 0 where the signal does not move.
    """

    x: Tensor
    delta: Tensor
    detail: Tensor


class Read(NamedTuple):
    """What a network's outputs stand for, all [B, C, H, W].

    Args:
        x: x_θ, the signal x_t.
        noise: ε_θ.
        delta: δ_θ.
    """

    x: Tensor
    noise: Tensor
    delta: Tensor


class Process:
    """Stages over a base schedule.

    Args:
        schedule: of the first stage, and of all but for the shift.
        config: the boundaries.
        pairs: first stages of the boundaries whose transform is "vae", by the boundary's index.

    Attributes:
        boundaries: first steps of the stages, 0 = b_0 < b_1 < … < b_K, and the schedule's number of steps.
        transforms: K of them, f_{k+1} and g_{k+1} at [k].
        growth: of α²/σ² at every boundary, K numbers: d^p γ, or 1 without the shift.
        ratios: how much greater than the base schedule's α²/σ² is in every stage, K + 1 numbers, the first of them 1.

    Raises:
        SpectralError: a boundary that cannot be, two that are less than a step apart, or one at the very end.
    """

    def __init__(self, schedule: Schedule, config: StagesConfig, pairs: Mapping[int, nn.Module] | None = None) -> None:
        check(config, schedule.steps)
        self.schedule, self.config = schedule, config
        self.boundaries = tuple(_steps(config, schedule.steps))
        self.transforms: list[Transform] = [
            transforms.build(boundary, (pairs or {}).get(index)) for index, boundary in enumerate(config.boundaries)
        ]
        self.growth = _growth(config, self.transforms)
        self.ratios = _ratios(self.growth)
        alphas = schedule.alphas_cumprod
        # The first row is the table itself: one stage is plain diffusion to the last bit.
        shifted = [ratio * alphas / (ratio * alphas + (1.0 - alphas)) for ratio in self.ratios[1:]]
        self.alphas_cumprod = torch.stack([alphas, *shifted])
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @property
    def last(self) -> int:
        """K, the index of the stage that sampling begins in."""
        return len(self.transforms)

    def stage_of(self, t: Tensor) -> Tensor:
        """The stages that steps [B] int64 belong to, [B] int64; a boundary belongs to the stage above it."""
        starts = torch.tensor(self.boundaries[1:-1], device=t.device)
        return torch.bucketize(t, starts, right=True)

    def moves(self, stage: int) -> bool:
        """Whether the signal changes within a stage, so that δ means something."""
        return stage < self.last and self.config.interpolate

    def coefficients(self, stage: int, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """α_t and σ_t of a stage, for steps t [B], ready to multiply with `like` [B, …]."""
        key = (like.device, like.dtype)
        if key not in self._tables:
            alphas = self.alphas_cumprod
            self._tables[key] = (alphas.sqrt().to(like), (1.0 - alphas).sqrt().to(like))
        signal, sigma = self._tables[key]
        index, shape = t.to(like.device), (-1, *[1] * (like.dim() - 1))
        return signal[stage][index].view(shape), sigma[stage][index].view(shape)

    def shapes(self, channels: int, size: Size) -> list[tuple[int, int, int]]:
        """(C, H, W) of the signal in every stage, for latents of so many channels and cells."""
        found = [(channels, *size)]
        for transform in self.transforms:
            found.append((transform.channels(found[-1][0]), *transform.size((found[-1][1], found[-1][2]))))
        return found

    def signal(self, x_0: Tensor, stage: int) -> Tensor:
        """x^k of latents x_0 [B, C, H, W]."""
        for transform in self.transforms[:stage]:
            x_0 = transform.forth(x_0)
        return x_0

    def point(self, x_0: Tensor, t: Tensor, stage: int) -> Point:
        """x_t and δ_t of latents x_0 [B, C, H, W] at steps t [B] within one stage, its end included."""
        x_k = self.signal(x_0, stage)
        if not self.moves(stage):
            return Point(x_k, torch.zeros_like(x_k), torch.zeros_like(x_k))
        transform = self.transforms[stage]
        detail = x_k - transform.back(transform.forth(x_k), _size(x_k))
        delta = self.share(stage, t, x_k) * detail
        return Point(x_k - delta, delta, detail)

    def share(self, stage: int, t: Tensor, like: Tensor) -> Tensor:
        """(t − τ_k)/(τ_{k+1} − τ_k) for steps t [B] of a stage, ready to multiply with `like` [B, …]."""
        start, end = self.boundaries[stage : stage + 2]
        return ((t - start).to(like) / (end - start)).view(-1, *[1] * (like.dim() - 1))

    def delta(self, second: Tensor, t: Tensor, stage: int) -> Tensor:
        """δ_θ of a network's second output [B, C, H, W] at steps t [B]."""
        if self.config.predicts == "delta" or not self.moves(stage):
            return second
        return self.share(stage, t, second) * second

    def noised(self, x_t: Tensor, t: Tensor, stage: int, noise: Tensor) -> Tensor:
        """z_t = α_t x_t + σ_t ε for x_t and noise [B, C, H, W] of a stage and steps t [B] within it."""
        signal, sigma = self.coefficients(stage, t, x_t)
        return signal * x_t + sigma * noise

    def restrict(self, noise: Tensor, stage: int, fresh: Fresh) -> Tensor:
        """White noise of the latents' shape as white noise of a stage's; see `transforms`."""
        for transform in self.transforms[:stage]:
            noise = transform.restrict(noise, fresh)
        return noise

    def target(self, point: Point, t: Tensor, stage: int, noise: Tensor) -> Tensor:
        """What the network should say at z_t, [B, 2C, H, W]: the noise or velocity, and δ_t or the detail."""
        first = noise
        if self.schedule.prediction == "v":
            signal, sigma = self.coefficients(stage, t, noise)
            first = signal * noise - sigma * point.x
        return torch.cat([first, self.second(point)], dim=1)

    def second(self, point: Point) -> Tensor:
        """What the network's second output should be, [B, C, H, W]."""
        return point.detail if self.config.predicts == "detail" else point.delta

    def read(self, z: Tensor, t: Tensor, stage: int, output: Tensor) -> Read:
        """What the outputs [B, 2C, H, W] of a network at z [B, C, H, W] stand for."""
        prediction, second = output.chunk(2, dim=1)
        delta = self.delta(second, t, stage)
        signal, sigma = self.coefficients(stage, t, z)
        if self.schedule.prediction == "eps":
            return Read((z - sigma * prediction) / signal, prediction, delta)
        return Read(signal * z - sigma * prediction, sigma * z + signal * prediction, delta)

    def finished(self, read: Read, stage: int) -> Tensor:
        """The x^k that a network's outputs stand for."""
        return read.x + read.delta if self.moves(stage) else read.x

    def upwards(self, signal: Tensor, stage: int, sizes: Sequence[Size]) -> Tensor:
        """A signal of a stage as a latent: brought back through all stages below, for previews.

        Args:
            sizes: (H, W) of every stage.
        """
        for below in reversed(range(stage)):
            signal = self.transforms[below].back(signal, sizes[below])
        return signal


def check(config: StagesConfig, steps: int = 10**6) -> None:
    """That the stages can be, over a schedule of so many steps; raises as `Process`."""
    for boundary in config.boundaries:
        transforms.check(boundary)
    if not 0.0 <= config.dimension_power <= 4.0:
        raise SpectralError(f"stages.dimension_power is {config.dimension_power}; expected a power from 0 to 4.")
    if len(config.boundaries) > 8:
        raise SpectralError(f"There are {len(config.boundaries)} boundaries between stages; expected at most 8.")
    places = _steps(config, steps)
    # The last stage begins after its boundary, where the one below is asked.
    if any(after <= before for before, after in pairwise(places)) or (config.boundaries and places[-2] >= steps - 1):
        told = ", ".join(f"{boundary.at:g}" for boundary in config.boundaries)
        raise SpectralError(
            f"The stages' boundaries lie at {told}; expected rising parts of the schedule, a step of its {steps} apart "
            "and two from its end."
        )


def _steps(config: StagesConfig, steps: int) -> list[int]:
    return [0, *(round(boundary.at * steps) for boundary in config.boundaries), steps]


def _growth(config: StagesConfig, found: Sequence[Transform]) -> tuple[float, ...]:
    """Growth of α²/σ² at every boundary."""
    if not config.shift:
        return (1.0,) * len(found)
    pairs = zip(config.boundaries, found, strict=True)
    return tuple(transform.dimension_ratio**config.dimension_power * boundary.gamma for boundary, transform in pairs)


def _ratios(growth: Sequence[float]) -> tuple[float, ...]:
    """Growth of α²/σ² in every stage: the product over all boundaries below."""
    grown = [1.0]
    for factor in growth:
        grown.append(grown[-1] * factor)
    if not all(0 < ratio < math.inf for ratio in grown):
        raise SpectralError("The stages' gamma and dimension_power shift the schedule beyond any number; lower them.")
    return tuple(grown)


def _size(x: Tensor) -> Size:
    return (x.shape[2], x.shape[3])
