"""What a batch of data becomes before a network is to denoise it: noised latents, their time steps and contexts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..spectral.autoencoder import FirstStage
from ..spectral.diffusion import Schedule
from .data.batches import Batch
from .data.contexts import Contexts
from .data.latents import encode, kind_of, latents_of
from .loop.randomness import SampleRandom


class Noised(NamedTuple):
    """A batch on the device.

    Args:
        x_0: scaled latents, [B, C, h, w].
        t: a step of every sample, [B] int64.
        noise: as x_0.
        x_t: x_0 with as much of the noise as t asks for (Eq. 1).
        context: [B, T, width], or None without conditioning.
        paired: [B] float32, 1 where the context is one that x_0 was made for, 0 where another took its place; None
            where that never happens.
    """

    x_0: Tensor
    t: Tensor
    noise: Tensor
    x_t: Tensor
    context: Tensor | None
    paired: Tensor | None = None


#: Puts other conditions in the place of samples' own: (batch, steps [B] int64 on the CPU, random numbers) → (batch,
#: whether each sample's condition is another one now, [B] bool on the CPU).
Replace = Callable[[Batch, Tensor, SampleRandom], tuple[Batch, Tensor]]


class Noising:
    """Draws steps, noise and conditions for batches; what a sample gets depends on the seed and its ordinal alone.

    Args:
        first_stage: makes latents of the images of a batch that has no latents yet; frozen, on its device.
        scale_factor: that latents are multiplied by.
        contexts: what the samples are conditioned on.
        schedule: of the noise.
        seed: of the run.
        posterior: "sample" draws latents from a KL first stage's posterior, as LDM does; "mode" takes its mean.
        replace: puts other conditions in the place of samples' own; None leaves them.
    """

    def __init__(
        self,
        first_stage: FirstStage,
        scale_factor: float,
        contexts: Contexts,
        schedule: Schedule,
        seed: int,
        posterior: str = "sample",
        replace: Replace | None = None,
    ) -> None:
        self.first_stage, self.scale_factor, self.contexts = first_stage, scale_factor, contexts
        self.schedule, self.seed, self.posterior, self.replace = schedule, seed, posterior, replace

    def __call__(self, batch: Batch, conditioner: nn.Module | None, device: torch.device) -> Noised:
        """The batch as a network on `device` sees it; gradients flow into the conditioner where it is trained."""
        random = SampleRandom(self.seed, batch["ordinal"], device)
        x_0 = self._latents(batch, random, device)
        steps, noise = random.integers(self.schedule.steps), random.normal(tuple(x_0.shape[1:]))
        drawn, t, paired = random.uniform(), steps.to(device), None
        if self.replace is not None:
            batch, replaced = self.replace(batch, steps, random)
            # What is dropped shows nothing in particular, and so does any latent.
            paired = (~replaced | self.contexts.dropped(drawn)).float().to(device)
        context = self.contexts.context(conditioner, batch, drawn)
        return Noised(x_0, t, noise, self.schedule.q_sample(x_0, t, noise), context, paired)

    @torch.no_grad()
    def _latents(self, batch: Batch, random: SampleRandom, device: torch.device) -> Tensor:
        if "image" in batch:
            batch = {kind_of(self.first_stage): encode(self.first_stage, batch["image"])}
        return self.scale_factor * latents_of(batch, device, random.normal if self.posterior == "sample" else None)
