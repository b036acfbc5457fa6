"""The losses of a student's batches: L_DDPM + λ_s L_spatial + λ_f L_freq (Section 5.2)."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...spectral import checkpoint
from ...spectral.config import ScheduleConfig, UNetConfig
from ...spectral.diffusion import Schedule
from ...spectral.errors import SpectralError
from ...spectral.fdm import Process
from ...spectral.unet import Tap, UNet
from ..data.batches import Batch
from ..data.contexts import Contexts
from ..data.trajectories import few_step_schedule
from ..noising import Noised, Noising
from ..staging import process_of
from .answers import Answers
from .conditions import RandomConditions
from .config import DistillConfig, TapConfig
from .initialise import set_first_weights
from .losses import Distances, Pair, distances, half, spectrum_weights
from .objectives import bands, focal_weights, min_snr_weights, rows


class DistillTask(nn.Module):
    """The three losses of one batch of latents. The student and the aligning 1×1 convolutions A_i are trained.

    `forward` gives "loss" and its terms as scalars, and rows [2] to be summed over batches and divided, the first by
    the second: "ddpm/t0" … "ddpm/t3" is the squared error in each quarter of the steps, "ddpm/high/t0" … the part of it
    in the high band (see `objectives`), "ddpm/high" that of all steps; likewise for "spatial" and "frequency". A row
    ending in 0 says that the batch had nothing there. With random conditions, "replaced" is the share of the samples
    that were given others; they count as 0 in "ddpm", and not at all in its rows.

    Args:
        student: its architecture.
        teacher: with a U-Net and a first stage.
        contexts: what the data is conditioned on.
        config: of the losses and the rest.

    Attributes:
        answers: where the teacher's are looked up and kept; None asks it every time.
    """

    teacher_steps: Tensor
    step_weights: Tensor | None
    _null: Tensor | None

    def __init__(
        self,
        student: UNetConfig,
        teacher: checkpoint.Checkpoint,
        contexts: Contexts,
        config: DistillConfig,
    ) -> None:
        super().__init__()
        assert teacher.unet is not None and teacher.first_stage is not None
        self.weights = config.loss
        self.answers: Answers | None = None
        self.schedule = Schedule.from_config(schedule_of(config, teacher.config.schedule))
        self.noising = Noising(
            teacher.first_stage,
            teacher.config.scale_factor,
            contexts,
            self.schedule,
            config.run.seed,
            config.data.posterior,
            random_conditions(config, contexts, self.schedule),
        )
        self.student = UNet(student)
        self.student.recompute = config.recompute
        self.process = process_of(self.student, self.schedule)
        set_first_weights(self.student, teacher.unet, config.init)
        # In a tuple, and so out of the parameters: what is frozen is neither trained, averaged nor saved.
        self._frozen: tuple[UNet, nn.Module | None] = (teacher.unet, teacher.conditioner)
        self._teacher_schedule, self._teacher_precision = teacher.schedule, config.teacher_precision
        self._guidance, self._null = config.teacher_guidance, None
        self.register_buffer("teacher_steps", teacher.schedule.nearest_steps(self.schedule), persistent=False)
        weights = step_weights(self.schedule, config.loss.min_snr, self.process) if config.loss.min_snr else None
        self.register_buffer("step_weights", weights, persistent=False)
        widths = teacher.unet.tap_channels()
        self.taps = compared(teacher.unet, config.loss.taps) if self.weights.distils else []
        own = self.student.tap_channels()
        self.align = nn.ModuleList(nn.Conv2d(own[tap], widths[tap], 1) for tap in self.taps)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        noised = self.inputs(batch)
        x_0, t, noise, x_t, context, paired = noised
        known: dict[Tap, Tensor] = {}
        said = self.answer(batch, noised, known) if self.weights.distils else None
        seen: dict[Tap, Tensor] = {}
        prediction = self.student(x_t, t, context, features=seen)
        error = prediction.float() - self.schedule.target(x_0, t, noise)
        ddpm = self.ddpm(error, t, paired)
        loss = self.weights.ddpm * ddpm
        losses = {"loss": loss, "ddpm": ddpm}
        apart = None
        if said is not None:
            output = self.comparable(prediction, said, x_t, t)
            apart = self.distillation(x_0, self.pairs(*output, seen, known))
            spatial, frequency = apart.spatial.mean(), apart.frequency.mean()
            loss = loss + self.weights.spatial * spatial + self.weights.frequency * frequency
            losses = {"loss": loss, "ddpm": ddpm, "spatial": spatial, "frequency": frequency}
        if paired is not None:
            losses["replaced"] = 1.0 - paired.mean()
        return losses | self.details(error.detach(), apart, t, paired)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """What takes most of the time."""
        return (self.student, self._frozen[0]) if self.weights.distils else (self.student,)

    @torch.no_grad()
    def inputs(self, batch: Batch) -> Noised:
        """What both networks see of a batch."""
        return self.noising(batch, self._frozen[1], next(self.parameters()).device)

    def answer(self, batch: Batch, noised: Noised, known: dict[Tap, Tensor]) -> Tensor:
        """What the teacher predicts, asked or remembered; `known` receives its features that are compared."""
        remembered = None if self.answers is None else self.answers.recall(batch["ordinal"])
        if remembered is not None:
            said, *features = (part.to(noised.x_t.device) for part in remembered)
            known.update(zip(self.taps, features, strict=True))
            return said
        said = self.ask(noised.x_t, noised.t, noised.context, known)
        if self.answers is not None:
            self.answers.keep(batch["ordinal"], [said, *(known[tap] for tap in self.taps)])
        return said

    def ask(self, x_t: Tensor, t: Tensor, context: Tensor | None, known: dict[Tap, Tensor]) -> Tensor:
        """The teacher's prediction; `known` receives its features. Both are tensors of inference mode."""
        kind = x_t.device.type
        asked = self._teacher_precision
        fast = asked == "bf16" or (asked == "auto" and kind == "cuda" and torch.cuda.is_bf16_supported())
        precision = torch.autocast(kind, torch.bfloat16) if fast else nullcontext()
        unet, steps, null = self._frozen[0], self.teacher_steps[t], self._null_for(context)
        with torch.inference_mode(), precision:
            said = unet(x_t, steps, context, features=known)
            if null is None:
                return said
            return said.lerp(unet(x_t, steps, null), 1.0 - self._guidance)

    @torch.no_grad()
    def _null_for(self, context: Tensor | None) -> Tensor | None:
        """The null context in the shape of `context`, in the precision that this has; None without guidance."""
        if self._guidance == 1.0:
            return None
        if self._null is None:  # it does not change, for its encoder is frozen
            self._null = self.noising.contexts.unconditional(self._frozen[1])
        assert self._null is not None and context is not None  # `distill.guidance_learnt` sees to it
        return self._null.expand_as(context)

    def ddpm(self, error: Tensor, t: Tensor, paired: Tensor | None = None) -> Tensor:
        """L_DDPM (Eq. 3), its steps weighted where min-SNR is on; samples with random conditions count as 0.

        The mean is over all samples, so that it is that of the means over parts: processes learn what one does.
        """
        if self.step_weights is None and paired is None:
            return error.square().mean()
        each = error.square().mean((1, 2, 3))
        each = each if self.step_weights is None else self.step_weights[t] * each
        return (each if paired is None else paired * each).mean()

    def comparable(self, prediction: Tensor, said: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Both networks' outputs, as noise where they predict different things.

        The noise that a velocity stands for is √(1 − ᾱ) x_t + √ᾱ v; the velocity that noise stands for would be
        (ε − √(1 − ᾱ) x_t) / √ᾱ, which makes the least error of ε a large one where ᾱ is small.
        """
        if self.schedule.prediction == self._teacher_schedule.prediction:
            return prediction, said
        own = self.schedule.split(x_t, t, prediction.float())[1]
        return own, self._teacher_schedule.split(x_t, self.teacher_steps[t], said.float())[1]

    def pairs(
        self, prediction: Tensor, target: Tensor, seen: dict[Tap, Tensor], known: dict[Tap, Tensor]
    ) -> list[Pair]:
        """A_i X_S and X_T of every compared place; outputs have the same channels and need no A."""
        return [Pair(prediction, target), *self.features(seen, known)]

    def features(self, seen: dict[Tap, Tensor], known: dict[Tap, Tensor]) -> list[Pair]:
        """Those of the compared places that the student has passed."""
        found = []
        for align, tap in zip(self.align, self.taps, strict=True):
            if tap not in seen:
                continue
            teacher = known[tap].float()
            scale = teacher.square().mean((1, 2, 3), keepdim=True) if self.weights.taps.normalize else 1.0
            found.append(Pair(align(seen[tap]), teacher, scale / self.weights.taps.weight))
        return found

    def distillation(self, x_0: Tensor, pairs: list[Pair]) -> Distances:
        """L_spatial (Eq. 9) and L_freq (Eq. 11) of every sample, each summed over the pairs."""
        if self.weights.frequency <= 0:
            return distances(pairs, None)
        if self.weights.frequency_weights == "focal":
            return distances(pairs, lambda powers, size: focal_weights(powers, self.weights.focal_alpha))
        return distances(pairs, lambda powers, size: half(spectrum_weights(x_0, size, self.weights.alpha)))

    @torch.no_grad()
    def details(self, error: Tensor, apart: Distances | None, t: Tensor, paired: Tensor | None) -> dict[str, Tensor]:
        """The terms in each quarter of the steps, and how much of them lies in the high band."""
        found = rows({"ddpm": bands(error)}, t, self.schedule.steps, paired)
        return found | rows(self.terms(apart), t, self.schedule.steps)

    def terms(self, apart: Distances | None) -> dict[str, tuple[Tensor, Tensor | None]]:
        """The distillation terms that are on, by name: of every sample, and how much of each lies in the high band."""
        terms: dict[str, tuple[Tensor, Tensor | None]] = {}
        if apart is not None:
            transformed = self.weights.frequency > 0
            terms["spatial"] = apart.spatial, apart.spatial_high if transformed else None
            if transformed:
                terms["frequency"] = apart.frequency, apart.frequency_high
        return terms


def compared(teacher: UNet, taps: TapConfig) -> list[Tap]:
    """The places whose features are compared."""
    return [tap for tap in teacher.tap_channels() if getattr(taps, tap.path)]


def random_conditions(config: DistillConfig, contexts: Contexts, schedule: Schedule) -> RandomConditions | None:
    """What draws other conditions, where that is on; raises as `RandomConditions`."""
    given = config.random_conditions
    return RandomConditions(given, contexts, schedule.steps) if given.share else None


def schedule_of(config: DistillConfig, teacher: ScheduleConfig) -> ScheduleConfig:
    """The student's schedule: the teacher's, but for what the configuration changes, or few steps need.

    Raises:
        SpectralError: zero terminal SNR for a student that predicts noise.
    """
    if config.few_steps:
        return few_step_schedule(teacher)
    prediction = teacher.prediction if config.prediction == "teacher" else config.prediction
    rescaled = teacher.zero_terminal_snr or config.zero_terminal_snr
    if rescaled and prediction != "v":
        raise SpectralError(
            "zero_terminal_snr needs a student that predicts velocity, for noise alone says nothing about the image; "
            "set prediction to v."
        )
    return replace(teacher, prediction=prediction, zero_terminal_snr=rescaled)


def step_weights(schedule: Schedule, gamma: float, process: Process | None = None) -> Tensor:
    """Min-SNR-γ weights of all steps, [T]; with zero terminal SNR, the least SNR is that of the schedule before.

    Args:
        process: stages, whose steps have another SNR.
    """
    least = 0.0
    if schedule.zero_terminal_snr:
        alpha = float(Schedule(schedule.linear_start, schedule.linear_end, schedule.steps).alphas_cumprod[-1])
        least = alpha / (1.0 - alpha)
    alphas, steps = schedule.alphas_cumprod, torch.arange(schedule.steps)
    if process is not None:
        alphas = process.alphas_cumprod[process.stage_of(steps), steps]
    return min_snr_weights(alphas, steps, gamma, schedule.prediction, least)
