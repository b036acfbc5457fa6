"""Distil a wavelet-gated student from a latent diffusion teacher (Section 5.2).

L = L_DDPM + λ_s L_spatial + λ_f L_freq. With both λ at 0 and `resampler: conv` this trains Lite-LDM, the baseline.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..spectral import checkpoint, presets
from ..spectral.config import ModelConfig, UNetConfig
from ..spectral.diffusion import Schedule
from ..spectral.errors import SpectralError
from ..spectral.formats.source import ReadOptions
from ..spectral.unet import Tap, UNet, check
from ..spectral.wordpiece import find_vocabulary
from . import cli
from .batches import Batch, ShuffledIndices
from .conditions import Conditions
from .images import DataConfig, latents, load
from .loop import RunConfig, check_dropout, check_weight, fit
from .losses import frequency_loss, spatial_loss, spectrum_weights
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
        normalize: divide each pair's losses by the mean square of the teacher's features, so that no layer outweighs
            the others by its scale alone.
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
    """

    spatial: float = 0.1
    frequency: float = 0.1
    alpha: float = -1.0
    taps: TapConfig = field(default_factory=TapConfig)

    def __post_init__(self) -> None:
        check_weight("loss.spatial", self.spatial)
        check_weight("loss.frequency", self.frequency)
        if not abs(self.alpha) <= 8:
            raise SpectralError(f"loss.alpha is {self.alpha}; expected an exponent between -8 and 8.")


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
    vocabulary: Path | None = None
    title: str = "Spectral Diffusion student"
    license: str = "Apache-2.0"

    def __post_init__(self) -> None:
        check_dropout(self.dropout)


class DistillTask(nn.Module):
    """The three losses of one batch of latents. The student and the aligning 1×1 convolutions A_i are trained."""

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
        self.schedule: Schedule = teacher.schedule
        self.student = UNet(student)
        # In a tuple, and so out of the parameters: what is frozen is neither trained, averaged nor saved.
        self._frozen: tuple[UNet, nn.Module | None] = (teacher.unet, teacher.conditioner)
        self.distils = config.loss.spatial > 0 or config.loss.frequency > 0
        widths = teacher.unet.tap_channels() if self.distils else {}
        self.taps = [tap for tap in widths if getattr(config.loss.taps, tap.path)]
        own = self.student.tap_channels()
        self.align = nn.ModuleList(nn.Conv2d(own[tap], widths[tap], 1) for tap in self.taps)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        device = next(self.parameters()).device
        teacher, conditioner = self._frozen
        random = SampleRandom(self.seed, batch["ordinal"], device)
        x_0 = self.x_0[batch["index"]].to(device)
        t, noise = random.integers(self.schedule.steps), random.normal(tuple(x_0.shape[1:]))
        x_t = self.schedule.q_sample(x_0, t, noise)
        known: dict[Tap, Tensor] = {}
        with torch.no_grad():
            context = self.conditions.context(conditioner, batch["index"], random.uniform())
            target = teacher(x_t, t, context, features=known) if self.distils else None
        seen: dict[Tap, Tensor] = {}
        prediction = self.student(x_t, t, context, features=seen)
        ddpm = F.mse_loss(prediction.float(), self.schedule.target(x_0, t, noise))
        if target is None:
            return {"loss": ddpm, "ddpm": ddpm}
        spatial, frequency = self.distillation(x_0, self.pairs(prediction, target, seen, known))
        loss = ddpm + self.weights.spatial * spatial + self.weights.frequency * frequency
        return {"loss": loss, "ddpm": ddpm, "spatial": spatial, "frequency": frequency}

    def pairs(
        self, prediction: Tensor, target: Tensor, seen: dict[Tap, Tensor], known: dict[Tap, Tensor]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(A_i X_S, X_T, scale) of every compared place; outputs have the same channels and need no A."""
        found = [(prediction, target, torch.ones((), device=target.device))]
        for align, tap in zip(self.align, self.taps, strict=True):
            teacher = known[tap].float()
            scale = teacher.square().mean() if self.weights.taps.normalize else torch.ones((), device=teacher.device)
            found.append((align(seen[tap]), teacher, scale))
        return found

    def distillation(self, x_0: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """L_spatial (Eq. 9) and L_freq (Eq. 11), each summed over the pairs."""
        spatial = frequency = torch.zeros((), device=x_0.device)
        weights: dict[torch.Size, Tensor] = {}
        for student, teacher, scale in pairs:
            spatial = spatial + spatial_loss(student, teacher) / scale
            if self.weights.frequency > 0:
                size = student.shape[2:]
                if size not in weights:
                    weights[size] = spectrum_weights(x_0, (size[0], size[1]), self.weights.alpha)
                frequency = frequency + frequency_loss(student, teacher, weights[size]) / scale
        return spatial, frequency


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
    conditions = Conditions(teacher.config.conditioning, data, config.dropout, config.vocabulary)
    begin(config, teacher=teacher.file.sha256, data=data.sha256, **_parts(config, teacher.config))
    if is_main():
        cli.say_assumed(teacher.file.notes)
    x_0 = latents(teacher.first_stage, data, device()) * teacher.config.scale_factor
    task = DistillTask(unet, teacher, x_0, conditions, config)
    kind: Literal["student", "lite"] = "student" if config.resampler == "wavelet" else "lite"
    about = replace(teacher.config, kind=kind, unet=unet, preset=None, teacher_sha256=teacher.file.sha256)

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
