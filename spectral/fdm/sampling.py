"""Sampling through the stages of f-DM: DDIM and ancestral steps that land on boundaries, and the way across them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ..diffusion import guided
from ..errors import SpectralError
from .packets import Fresh, FreshNoise
from .process import Process, Read
from .transforms import Size

#: Where a run ends: the signal without noise.
CLEAN = -1


class StagedDenoise(Protocol):
    """A network of stages: (z [B, C, H, W], t [B], context, stage=k) → ε or velocity, and δ, [B, 2C, H, W]."""

    def __call__(self, x: Tensor, t: Tensor, context: Tensor | None = None, *, stage: int = 0) -> Tensor: ...


@dataclass(frozen=True)
class Step:
    """One question to the network, and where its answer leads.

    Args:
        stage: in which the network is asked.
        t: the step that it is asked about; the end of a stage counts as the stage's.
        to: the step of the same stage that is arrived at, or CLEAN.
        crosses: `to` is the stage's boundary, and the next step is the stage's below.
    """

    stage: int
    t: int
    to: int
    crosses: bool


def plan(process: Process, times: Sequence[int]) -> list[Step]:
    """Steps down `times`, of which those nearest to boundaries are moved onto them.

    Args:
        times: descending; the network is asked at all but the last, which is where the run ends: a step, or CLEAN.

    Raises:
        SpectralError: there are fewer questions than stages on the way.
    """
    asked, end = list(times[:-1]), times[-1]
    inner = [place for place in process.boundaries[1:-1] if max(end, 0) < place < asked[0]]
    if len(asked) <= len(inner):
        raise SpectralError(
            f"{len(asked)} steps cannot go through {len(inner) + 1} stages; expected at least one for each: "
            f"{len(inner) + 1} steps or more."
        )
    at = 0
    for left, place in zip(range(len(inner), 0, -1), reversed(inner), strict=True):
        nearest = min(range(at + 1, len(asked) - left + 1), key=lambda index: abs(asked[index] - place))
        asked[nearest], at = place, nearest
    steps = []
    stage = int(process.stage_of(torch.tensor(max(asked[0] - 1, 0))))
    for t, to in zip(asked, [*asked[1:], end], strict=True):
        crosses = stage > 0 and to == process.boundaries[stage]
        steps.append(Step(stage, t, to, crosses))
        stage -= crosses
    return steps


def plan_of(process: Process, steps: int) -> list[Step]:
    """The plan of as many of LDM's time steps, down to the end (see `sample`).

    Raises:
        SpectralError: fewer steps than stages, or more than the schedule has.
    """
    times = process.schedule.ddim_timesteps(steps).flip(0).tolist()
    if times[0] <= process.boundaries[-2]:
        times[0] = process.schedule.steps - 1
    return plan(process, [*times, 0])


@torch.no_grad()
def sample(
    denoise: StagedDenoise,
    noise: Tensor,
    process: Process,
    steps: int,
    *,
    eta: float = 0.0,
    guidance: float = 1.0,
    cond: Tensor | None = None,
    uncond: Tensor | None = None,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample at LDM's time steps through all stages; as many questions to the network as plain DDIM asks.

    Where the first of LDM's steps lies below the last stage, because steps are few or a boundary is late, the last step
    of the schedule takes its place.

    Args:
        denoise: the network.
        noise: white noise of the latents' shape, [B, C, H, W]; the first stage begins with its coarse part.
        process: the network's own.
        steps: how many, K + 1 … T.
        eta: 0 is deterministic DDIM, 1 ancestral sampling.
        guidance, cond, uncond: classifier-free guidance, of both predictions (see `diffusion.guided`).
        callback: called after each step with (index, z, predicted x_0), both as latents of the full size.
        generator: of the noise that η > 0 adds; without one it comes of `noise`, every sample's own.

    Returns:
        x_0, [B, C, H, W].

    Raises:
        SpectralError: steps, eta or guidance that cannot be.
    """
    if not 0.0 <= eta < math.inf:
        raise SpectralError(f"The sampler's eta is {eta}; expected 0 (deterministic) or more (1 is ancestral).")
    sizes = [shape[1:] for shape in process.shapes(noise.shape[1], (noise.shape[2], noise.shape[3]))]
    fresh = FreshNoise(noise)
    walk = plan_of(process, steps)
    z = process.restrict(noise, walk[0].stage, fresh)
    for index, step in enumerate(walk):
        ask = guided(_at(denoise, step.stage), guidance, cond, uncond)
        t = torch.full((len(z),), step.t, device=z.device, dtype=torch.long)
        output = ask(z, t)
        if process.last == 0 and output.shape[1] == z.shape[1]:  # a plain network has no δ
            output = torch.cat([output, torch.zeros_like(output)], dim=1)
        read = process.read(z, t, step.stage, output)
        z = advance(process, step, read, fresh, sizes, eta=eta, generator=generator)
        if callback is not None:
            landed = step.stage - step.crosses
            clean = process.upwards(process.finished(read, step.stage), step.stage, sizes)
            callback(index, process.upwards(z, landed, sizes), clean)
    return z


def advance(
    process: Process,
    step: Step,
    read: Read,
    fresh: Fresh,
    sizes: Sequence[Size],
    *,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One step: x_s = x_θ + δ_θ (t − s)/(t − τ_k), z_s = α_s x_s + √(σ_s² − σ̄²) ε_θ + σ̄ η, and across the boundary.

    Args:
        read: what the network said at z_t.
        fresh: the noise that a larger signal needs beside that of the smaller one.
        sizes: (H, W) of every stage.
        eta: σ̄ = eta · σ_s σ_{t|s} / σ_t.
        generator: of the noise η; without one it is `fresh` too, every sample's own.

    Returns:
        z_s [B, C, H, W]; where the step crosses, that of the stage below.
    """
    alphas = process.alphas_cumprod[step.stage]
    alpha, alpha_next = alphas[step.t].item(), 1.0 if step.to == CLEAN else alphas[step.to].item()
    x, noise = _towards(process, step, read), read.noise
    added = eta * ((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)) ** 0.5
    kept = max(0.0, 1 - alpha_next - added**2) ** 0.5
    if not step.crosses:
        z = alpha_next**0.5 * x + kept * noise
        return z + added * _normal(z, fresh, generator) if added > 0 else z
    if added > 0:  # what is lifted is the noise of z_s, of variance 1
        noise = (kept * noise + added * _normal(noise, fresh, generator)) / (1 - alpha_next) ** 0.5
    below = step.stage - 1
    transform, size = process.transforms[below], sizes[below]
    coarse = transform.back(x, size)
    alpha_next = process.alphas_cumprod[below][step.to].item()
    lifted = transform.lift(noise, x, process.growth[below], size, fresh)
    return alpha_next**0.5 * coarse + (1 - alpha_next) ** 0.5 * lifted


def _towards(process: Process, step: Step, read: Read) -> Tensor:
    """x_s, the signal at the step that is arrived at."""
    start, to = process.boundaries[step.stage], max(step.to, 0)
    if not process.moves(step.stage) or step.t <= start:
        return read.x
    return read.x + read.delta * ((step.t - to) / (step.t - start))


def _normal(like: Tensor, fresh: Fresh, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return fresh(tuple(like.shape[1:]))
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def _at(denoise: StagedDenoise, stage: int) -> Callable[..., Tensor]:
    """The network in one stage; in the first one it is called as every network is."""
    return denoise if stage == 0 else partial(denoise, stage=stage)
