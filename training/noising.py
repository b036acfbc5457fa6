"""What a batch of data becomes before a network is to denoise it: noised latents, their time steps and contexts."""

from __future__ import annotations

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
    """

    x_0: Tensor
    t: Tensor
    noise: Tensor
    x_t: Tensor
    context: Tensor | None


class Noising:
    """Draws steps, noise and conditions for batches; what a sample gets depends on the seed and its ordinal alone.

    Args:
        first_stage: makes latents of the images of a batch that has no latents yet; frozen, on its device.
        scale_factor: that latents are multiplied by.
        contexts: what the samples are conditioned on.
        schedule: of the noise.
        seed: of the run.
        posterior: "sample" draws latents from a KL first stage's posterior, as LDM does; "mode" takes its mean.
    """

    def __init__(
        self,
        first_stage: FirstStage,
        scale_factor: float,
        contexts: Contexts,
        schedule: Schedule,
        seed: int,
        posterior: str = "sample",
    ) -> None:
        self.first_stage, self.scale_factor, self.contexts = first_stage, scale_factor, contexts
        self.schedule, self.seed, self.posterior = schedule, seed, posterior

    def __call__(self, batch: Batch, conditioner: nn.Module | None, device: torch.device) -> Noised:
        """The batch as a network on `device` sees it; gradients flow into the conditioner where it is trained."""
        random = SampleRandom(self.seed, batch["ordinal"], device)
        x_0 = self._latents(batch, random, device)
        t, noise = random.integers(self.schedule.steps), random.normal(tuple(x_0.shape[1:]))
        context = self.contexts.context(conditioner, batch, random.uniform())
        return Noised(x_0, t, noise, self.schedule.q_sample(x_0, t, noise), context)

    @torch.no_grad()
    def _latents(self, batch: Batch, random: SampleRandom, device: torch.device) -> Tensor:
        if "image" in batch:
            batch = {kind_of(self.first_stage): encode(self.first_stage, batch["image"])}
        return self.scale_factor * latents_of(batch, device, random.normal if self.posterior == "sample" else None)
