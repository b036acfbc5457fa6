"""A student of few steps: each of its DDIM steps ends where its teacher's many steps would.

The states that the teacher passes are known (`data.trajectories`). One step of DDIM from a state x at ᾱ to x' at ᾱ' is
linear in the student's velocity v: x' = (√ᾱ'√ᾱ + √(1−ᾱ')√(1−ᾱ)) x + (√(1−ᾱ')√ᾱ − √ᾱ'√(1−ᾱ)) v. So there is one v* that
lands exactly on the teacher's next state, guidance and all, and the student regresses it: progressive distillation
(Salimans & Ho, 2022, Section 3) in one go. The error's spectrum counts as in Eq. 11 of the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...spectral import checkpoint
from ...spectral.config import UNetConfig
from ...spectral.diffusion import Schedule
from ...spectral.errors import SpectralError
from ...spectral.unet import UNet
from ..data.batches import Batch, Data
from ..data.contexts import Contexts
from ..data.latents_folder import CachedLatents
from ..data.trajectories import few_step_schedule
from ..loop.randomness import SampleRandom
from .config import DistillConfig
from .initialise import set_first_weights
from .losses import frequency_errors, spectrum_weights
from .objectives import bands, rows


class FewStepTask(nn.Module):
    """The loss of one batch of states: ‖v − v*‖² + λ_f L_freq of the two. Rows are as `DistillTask`'s, of "ddpm".

    Args:
        student: its architecture.
        teacher: whose states the data holds; with a U-Net and a first stage.
        contexts: what the data is conditioned on.
        config: of the losses and the rest.
    """

    def __init__(
        self, student: UNetConfig, teacher: checkpoint.Checkpoint, contexts: Contexts, config: DistillConfig
    ) -> None:
        super().__init__()
        assert teacher.unet is not None
        self.weights, self.seed = config.loss, config.run.seed
        self.scale_factor, self.contexts = teacher.config.scale_factor, contexts
        self.schedule = Schedule.from_config(few_step_schedule(teacher.config.schedule))
        self.student = UNet(student)
        self.student.recompute = config.recompute
        set_first_weights(self.student, teacher.unet, config.init)
        self._conditioner = (teacher.conditioner,)  # in a tuple, and so none of what is trained
        #: Where the student's steps begin, from noise on; and how they land: x' = keep x + turn v.
        self.times = self.schedule.ddim_timesteps(config.few_steps).flip(0)
        self.keep, self.turn = landing(self.schedule, self.times)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """What takes most of the time."""
        return (self.student,)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        device = next(self.parameters()).device
        random = SampleRandom(self.seed, batch["ordinal"], device)
        chosen = random.integers(len(self.times))
        t, x, target, x_0 = self.step(batch, chosen, device)
        kept = torch.ones(len(chosen))  # conditions are never left out: the guidance is in the states
        context = self.contexts.context(self._conditioner[0], batch, kept)
        error = self.student(x, t, context).float() - target
        loss = ddpm = error.square().mean()
        losses = {"ddpm": ddpm}
        if self.weights.frequency > 0:
            weights = spectrum_weights(x_0, (x_0.shape[2], x_0.shape[3]), self.weights.alpha)
            losses["frequency"] = frequency_errors(error, torch.zeros_like(error), weights).mean()
            loss = ddpm + self.weights.frequency * losses["frequency"]
        return {"loss": loss} | losses | rows({"ddpm": bands(error.detach())}, t, self.schedule.steps)

    @torch.no_grad()
    def step(self, batch: Batch, chosen: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the chosen step of every sample, [B] int64 on the CPU: t [B], x, v* and the sample x_0, [B, C, h, w]."""
        states = batch["states"].float()
        x_0 = self.scale_factor * batch["latent"].float()
        ends = torch.cat([states[:, 1:], x_0[:, None]], dim=1)
        places = torch.arange(len(chosen))
        keep, turn = (table[chosen].view(-1, 1, 1, 1) for table in (self.keep, self.turn))
        x = states[places, chosen]
        target = (ends[places, chosen] - keep * x) / turn
        return self.times[chosen].to(device), x.to(device), target.to(device), x_0.to(device)


def landing(schedule: Schedule, times: Tensor) -> tuple[Tensor, Tensor]:
    """Of DDIM's steps from the given times on, descending: what x and v are multiplied by, float32 [S] each."""
    alphas = schedule.alphas_cumprod[times]
    after = torch.cat([alphas[1:], schedule.alphas_cumprod[:1]])
    signal, sigma, signal_after, sigma_after = alphas.sqrt(), (1 - alphas).sqrt(), after.sqrt(), (1 - after).sqrt()
    keep = signal_after * signal + sigma_after * sigma
    return keep.float(), (sigma_after * signal - signal_after * sigma).float()


def check(config: DistillConfig, data: Data) -> None:
    """That the data holds the states which a student of few steps learns from, and nothing is asked that it cannot do.

    Raises:
        SpectralError: what is wrong, and how to mend it.
    """
    states = data.states if isinstance(data, CachedLatents) else 0
    if config.few_steps != states:
        held = f"the states of {states} steps" if states else "no states of a teacher"
        remedy = f"set few_steps to {states}" if states else "make some with: data imagine --states N"
        raise SpectralError(f"few_steps is {config.few_steps}, but {data.source} holds {held}; {remedy}.")
