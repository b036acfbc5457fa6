"""Distil a wavelet-gated student from a latent diffusion teacher (Section 5.2).

L = L_DDPM + λ_s L_spatial + λ_f L_freq. With both λ at 0 and `resampler: conv` this trains Lite-LDM, the baseline.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..spectral import checkpoint, presets
from ..spectral.config import ModelConfig, ScheduleConfig, UNetConfig
from ..spectral.diffusion import Schedule
from ..spectral.errors import SpectralError
from ..spectral.formats.source import ReadOptions
from ..spectral.unet import Tap, UNet, check
from ..spectral.wordpiece import find_vocabulary
from . import cli
from .batches import Batch, ShuffledIndices
from .conditions import Conditions
from .images import DataConfig, latents, load
from .initialise import check as check_initial
from .initialise import student_from_teacher
from .loop import RunConfig, check_dropout, check_weight, fit
from .losses import Distances, Pair, distances, half, spectrum_weights
from .objectives import focal_weights, high_band, min_snr_weights, rows
from .randomness import SampleRandom
from .run import begin, device, is_main, summary
from .sample import preview_rows
from .teachers import open_teacher
from .wordpiece import ADVICE


@dataclass(frozen=True)
class TapConfig:
    """Which features the student is compared at, besides the output.

    Args:
        down, middle, up: the last block of every resolution on the way down, the middle block, and the last block of
            every resolution on the way up.
        normalize: divide each sample's losses by the mean square of the teacher's features there, so that no layer
            outweighs the others by its scale alone.
    """

    down: bool = True
    middle: bool = True
    up: bool = True
    normalize: bool = True


@dataclass(frozen=True)
class LossConfig:
    """Weights of the distillation terms.

    Args:
        spatial: λ_s of Eq. 9; 0 turns the term off.
        frequency: λ_f of Eq. 11; 0 turns the term off.
        alpha: exponent of the spectrum weights (Eq. 10).
        taps: which features are compared.
        frequency_weights: "spectrum" (Eq. 10), or, beyond the paper, "focal": what is far off counts most (Jiang et
            al., "Focal Frequency Loss", 2021); `alpha` then means nothing.
        focal_alpha: exponent of the focal weights; 1 in their article.
        min_snr: γ of the min-SNR weighting of L_DDPM (Hang et al., 2023; there 5), beyond the paper; 0 is off.
    """

    spatial: float = 0.1
    frequency: float = 0.1
    alpha: float = -1.0
    taps: TapConfig = field(default_factory=TapConfig)
    frequency_weights: Literal["spectrum", "focal"] = "spectrum"
    focal_alpha: float = 1.0
    min_snr: float = 0.0

    def __post_init__(self) -> None:
        check_weight("loss.spatial", self.spatial)
        check_weight("loss.frequency", self.frequency)
        if not abs(self.alpha) <= 8:
            raise SpectralError(f"loss.alpha is {self.alpha}; expected an exponent between -8 and 8.")
        if not 0 < self.focal_alpha <= 8:
            raise SpectralError(f"loss.focal_alpha is {self.focal_alpha}; expected an exponent above 0, up to 8.")
        check_weight("loss.min_snr", self.min_snr)


@dataclass(frozen=True)
class DistillConfig:
    """Configuration of `distill`.

    Args:
        run: steps, batch size, output folder and the like.
        teacher: the checkpoint to learn from (.safetensors, .ckpt, or a diffusers folder); its first stage and
            conditioner go into the student's file unchanged.
        read: what to assume of the teacher where its file is silent; `--no-ema` is short for `--read.ema false`.
        first_stage: a file with the first stage, for a teacher whose own file lacks it.
        text_encoder: a file with the text encoder, likewise: CLIP of OpenAI, OpenCLIP or transformers, or LDM's.
        model_channels: the student's width; everything else is the teacher's.
        resampler: "wavelet" (the paper's gating) or "conv" (LDM's own, for comparisons).
        wavelet: filter bank of the gating, by PyWavelets' name.
        norm_groups: groups of the student's normalisations; fewer than LDM's 32 below 64 channels (see UNetConfig).
        data: the images.
        loss: weights and features of the distillation.
        dropout: how often the condition is replaced by the null one; 0 for a teacher that has none.
        prediction: what the student says: as its "teacher" does, noise ("eps") or velocity ("v"). Where the two differ,
            their outputs are compared as noise, in which neither's errors grow without bound.
        zero_terminal_snr: the student's last step is noise alone (Lin et al., 2023); it has to predict "v". The teacher
            is asked at its own step of the nearest noise, its last one for noise beyond that.
        init: where the student's weights start: "random", or the "teacher"'s, thinned out (see `initialise`).
        teacher_bf16: ask the teacher in bfloat16 on devices that have it; the CPU computes as `run.precision` says.
        recompute: keep no activations of the student's blocks for the backward pass, but compute them again (activation
            checkpointing): less memory, a third more time, the same numbers.
        vocabulary: BERT's vocab.txt, for a teacher with LDM's own text encoder.
        title: of the exported file.
        license: of the exported file.
    """

    run: RunConfig
    teacher: Path
    read: ReadOptions = field(default_factory=ReadOptions)
    first_stage: Path | None = None
    text_encoder: Path | None = None
    model_channels: int = 64
    resampler: Literal["wavelet", "conv"] = "wavelet"
    wavelet: str = "haar"
    norm_groups: int = 32
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    dropout: float = 0.1
    prediction: Literal["teacher", "eps", "v"] = "teacher"
    zero_terminal_snr: bool = False
    init: Literal["random", "teacher"] = "random"
    teacher_bf16: bool = True
    recompute: bool = False
    vocabulary: Path | None = None
    title: str = "Spectral Diffusion student"
    license: str = "Apache-2.0"

    def __post_init__(self) -> None:
        check_dropout(self.dropout)


class DistillTask(nn.Module):
    """The three losses of one batch of latents. The student and the aligning 1×1 convolutions A_i are trained.

    `forward` gives "loss" and its terms as scalars. With `detailed` it adds rows [2] to be summed over batches and
    divided, the first by the second: "ddpm/t0" … "ddpm/t3" is the squared error in each quarter of the steps,
    "ddpm/high/t0" … the part of it in the high band (see `objectives`), "ddpm/high" that of all steps; likewise for
    "spatial" and "frequency". A row ending in 0 says that the batch had nothing there.
    """

    detailed = False
    teacher_steps: Tensor
    step_weights: Tensor | None

    def __init__(
        self,
        student: UNetConfig,
        teacher: checkpoint.Checkpoint,
        x_0: Tensor,
        conditions: Conditions,
        config: DistillConfig,
    ) -> None:
        super().__init__()
        assert teacher.unet is not None
        self.x_0, self.conditions, self.weights, self.seed = x_0, conditions, config.loss, config.run.seed
        self.schedule = Schedule.from_config(schedule_of(config, teacher.config.schedule))
        self.student = UNet(student)
        self.student.recompute = config.recompute
        if config.init == "teacher":
            student_from_teacher(self.student, teacher.unet)
        # In a tuple, and so out of the parameters: what is frozen is neither trained, averaged nor saved.
        self._frozen: tuple[UNet, nn.Module | None] = (teacher.unet, teacher.conditioner)
        self._teacher_schedule, self._teacher_bf16 = teacher.schedule, config.teacher_bf16
        self.register_buffer("teacher_steps", teacher.schedule.nearest_steps(self.schedule), persistent=False)
        weights = step_weights(self.schedule, config.loss.min_snr) if config.loss.min_snr else None
        self.register_buffer("step_weights", weights, persistent=False)
        self.distils = config.loss.spatial > 0 or config.loss.frequency > 0
        widths = teacher.unet.tap_channels() if self.distils else {}
        self.taps = [tap for tap in widths if getattr(config.loss.taps, tap.path)]
        own = self.student.tap_channels()
        self.align = nn.ModuleList(nn.Conv2d(own[tap], widths[tap], 1) for tap in self.taps)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        device = next(self.parameters()).device
        random = SampleRandom(self.seed, batch["ordinal"], device)
        x_0 = self.x_0[batch["index"]].to(device)
        t, noise = random.integers(self.schedule.steps), random.normal(tuple(x_0.shape[1:]))
        x_t = self.schedule.q_sample(x_0, t, noise)
        with torch.no_grad():
            context = self.conditions.context(self._frozen[1], batch["index"], random.uniform())
        known: dict[Tap, Tensor] = {}
        said = self.ask(x_t, t, context, known) if self.distils else None
        seen: dict[Tap, Tensor] = {}
        prediction = self.student(x_t, t, context, features=seen)
        error = prediction.float() - self.schedule.target(x_0, t, noise)
        ddpm = self.ddpm(error, t)
        losses = {"loss": ddpm, "ddpm": ddpm}
        apart = None
        if said is not None:
            output = self.comparable(prediction, said, x_t, t)
            apart = self.distillation(x_0, self.pairs(*output, seen, known))
            spatial, frequency = apart.spatial.mean(), apart.frequency.mean()
            loss = ddpm + self.weights.spatial * spatial + self.weights.frequency * frequency
            losses = {"loss": loss, "ddpm": ddpm, "spatial": spatial, "frequency": frequency}
        return losses | (self.details(error.detach(), apart, t) if self.detailed else {})

    def ask(self, x_t: Tensor, t: Tensor, context: Tensor | None, known: dict[Tap, Tensor]) -> Tensor:
        """The teacher's prediction; `known` receives its features. Both are tensors of inference mode."""
        kind = x_t.device.type
        fast = self._teacher_bf16 and kind == "cuda" and torch.cuda.is_bf16_supported()
        precision = torch.autocast(kind, torch.bfloat16) if fast else nullcontext()
        with torch.inference_mode(), precision:
            return self._frozen[0](x_t, self.teacher_steps[t], context, features=known)

    def ddpm(self, error: Tensor, t: Tensor) -> Tensor:
        """L_DDPM (Eq. 3), its steps weighted where min-SNR is on."""
        if self.step_weights is None:
            return error.square().mean()
        return (self.step_weights[t] * error.square().mean((1, 2, 3))).mean()

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
        found = [Pair(prediction, target)]
        for align, tap in zip(self.align, self.taps, strict=True):
            teacher = known[tap].float()
            scale = teacher.square().mean((1, 2, 3), keepdim=True) if self.weights.taps.normalize else 1.0
            found.append(Pair(align(seen[tap]), teacher, scale))
        return found

    def distillation(self, x_0: Tensor, pairs: list[Pair]) -> Distances:
        """L_spatial (Eq. 9) and L_freq (Eq. 11) of every sample, each summed over the pairs."""
        if self.weights.frequency <= 0:
            return distances(pairs, None)
        if self.weights.frequency_weights == "focal":
            return distances(pairs, lambda powers, size: focal_weights(powers, self.weights.focal_alpha))
        return distances(pairs, lambda powers, size: half(spectrum_weights(x_0, size, self.weights.alpha)))

    @torch.no_grad()
    def details(self, error: Tensor, apart: Distances | None, t: Tensor) -> dict[str, Tensor]:
        """The terms in each quarter of the steps, and how much of them lies in the high band."""
        high, whole = high_band(error)
        cells = error[0].numel()
        terms: dict[str, tuple[Tensor, Tensor | None]] = {"ddpm": (whole / cells, high / cells)}
        if apart is not None:
            transformed = self.weights.frequency > 0
            terms["spatial"] = apart.spatial, apart.spatial_high if transformed else None
            if transformed:
                terms["frequency"] = apart.frequency, apart.frequency_high
        return rows(terms, t, self.schedule.steps)


def schedule_of(config: DistillConfig, teacher: ScheduleConfig) -> ScheduleConfig:
    """The student's schedule: the teacher's, but for what the configuration changes.

    Raises:
        SpectralError: zero terminal SNR for a student that predicts noise.
    """
    prediction = teacher.prediction if config.prediction == "teacher" else config.prediction
    rescaled = teacher.zero_terminal_snr or config.zero_terminal_snr
    if rescaled and prediction != "v":
        raise SpectralError(
            "zero_terminal_snr needs a student that predicts velocity, for noise alone says nothing about the image; "
            "set prediction to v."
        )
    return replace(teacher, prediction=prediction, zero_terminal_snr=rescaled)


def step_weights(schedule: Schedule, gamma: float) -> Tensor:
    """Min-SNR-γ weights of all steps, [T]; with zero terminal SNR, the least SNR is that of the schedule before."""
    least = 0.0
    if schedule.zero_terminal_snr:
        alpha = float(Schedule(schedule.linear_start, schedule.linear_end, schedule.steps).alphas_cumprod[-1])
        least = alpha / (1.0 - alpha)
    return min_snr_weights(schedule.alphas_cumprod, torch.arange(schedule.steps), gamma, schedule.prediction, least)


def train(config: DistillConfig) -> dict[str, Any]:
    """Train, and export `RUN/student.safetensors` (`lite.safetensors` for conv); returns its path and statistics.

    Raises:
        SpectralError: the teacher, the data or the configuration cannot be used.
    """
    teacher = open_teacher(config.teacher, config.read, config.first_stage, config.text_encoder)
    assert teacher.config.unet is not None and teacher.first_stage is not None
    data = load(config.data)
    size = teacher.config.unet.image_size * teacher.first_stage.config.downscale
    if config.data.size != size:
        raise SpectralError(
            f"The teacher was trained at {size} pixels, data.size is {config.data.size}; set it to {size}."
        )
    unet = replace(
        presets.slim(teacher.config.unet, config.model_channels, config.resampler),
        wavelet=config.wavelet,
        norm_groups=config.norm_groups,
    )
    check(unet)
    if config.init == "teacher":
        check_initial(unet, teacher.config.unet)
    schedule = schedule_of(config, teacher.config.schedule)
    conditions = Conditions(teacher.config.conditioning, data, config.dropout, config.vocabulary)
    begin(config, teacher=teacher.file.sha256, data=data.sha256, **_parts(config, teacher.config))
    if is_main():
        cli.say_assumed(teacher.file.notes)
    x_0 = latents(teacher.first_stage, data, device()) * teacher.config.scale_factor
    task = DistillTask(unet, teacher, x_0, conditions, config)
    kind: Literal["student", "lite"] = "student" if config.resampler == "wavelet" else "lite"
    about = replace(
        teacher.config, kind=kind, unet=unet, schedule=schedule, preset=None, teacher_sha256=teacher.file.sha256
    )

    def preview(path: Path) -> None:
        preview_rows(
            about, task.student, teacher.first_stage, teacher.conditioner, data, path, vocabulary=config.vocabulary
        )

    statistics = fit(task, ShuffledIndices(len(data), config.run.batch_size, config.run.seed), config.run, preview)
    training = summary(config, statistics, len(data)) | {"teacher": teacher.config.training}
    training |= {"assumed": list(teacher.file.notes)} if teacher.file.notes else {}
    about = replace(about, training=training)
    path = config.run.out / f"{kind}.safetensors"
    if is_main():
        export(path, about, task.student, teacher, config)
    return {"path": str(path), **statistics, "assumed": list(teacher.file.notes)}


def _parts(config: DistillConfig, teacher: ModelConfig) -> dict[str, str | None]:
    """SHA-256 of the other files that the teacher is put together from, and of the vocabulary that it reads."""
    given = {"first_stage": config.first_stage, "text_encoder": config.text_encoder}
    if teacher.conditioning.kind == "text" and teacher.conditioning.tower == "ldm":
        given["vocabulary"] = find_vocabulary(ADVICE, config.vocabulary)
    return {name: None if path is None else checkpoint.sha256(path) for name, path in given.items()}


def export(
    path: Path, about: ModelConfig, student: nn.Module, teacher: checkpoint.Checkpoint, config: DistillConfig
) -> None:
    """Write the student's file, in float16, with the teacher's first stage and conditioner beside its U-Net."""
    checkpoint.save(
        path,
        about,
        unet=student,
        first_stage=teacher.first_stage,
        conditioner=teacher.conditioner,
        dtype=torch.float16,
        title=config.title,
        license=config.license,
    )


def main(argv: Sequence[str]) -> None:
    """The command `distill`."""
    config, as_json = cli.parse_config(DistillConfig, argv, "distill", __doc__)
    result = train(config)
    cli.report(result if as_json else {key: value for key, value in result.items() if key != "assumed"}, as_json)


if __name__ == "__main__":
    sys.exit(cli.run(main))
