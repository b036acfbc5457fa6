"""Train a small latent diffusion teacher on the latents of a frozen first stage, its text tower or classes jointly."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..spectral import checkpoint, conditioning
from ..spectral.config import ConditioningConfig, FirstStageConfig, ModelConfig, ScheduleConfig, UNetConfig
from ..spectral.diffusion import Schedule
from ..spectral.errors import SpectralError
from ..spectral.unet import UNet, check
from . import cli
from .batches import Batch, ShuffledIndices
from .conditions import Conditions
from .images import DataConfig, ImageSet, latents, load
from .loop import RunConfig, check_dropout, fit
from .randomness import SampleRandom
from .run import begin, device, is_main, summary
from .sample import preview_rows


@dataclass(frozen=True)
class TeacherConfig:
    """Configuration of `train-teacher`.

    Args:
        run: steps, batch size, output folder and the like.
        autoencoder: a file of `train-autoencoder`, or any checkpoint with a first stage.
        unet: the architecture; conv-resampled, as LDM's.
        data: the images.
        conditioning: "none", "class" (subgroups), or "text" (captions; the tower is trained along).
        schedule: of the noise.
        dropout: how often the condition is replaced by the null one, for classifier-free guidance.
        title: of the exported file.
    """

    run: RunConfig
    autoencoder: Path
    unet: UNetConfig
    data: DataConfig = field(default_factory=DataConfig)
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    dropout: float = 0.1
    title: str = "Small LDM teacher"

    def __post_init__(self) -> None:
        check_dropout(self.dropout)


class DenoisingTask(nn.Module):
    """L_DDPM (Eq. 3) of one batch of latents, through a U-Net and its conditioner."""

    def __init__(self, config: TeacherConfig, x_0: Tensor, conditions: Conditions) -> None:
        super().__init__()
        self.x_0, self.conditions, self.seed = x_0, conditions, config.run.seed
        self.schedule = Schedule.from_config(config.schedule)
        self.unet = UNet(config.unet)
        self.conditioner = conditioning.build(config.conditioning)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        device = next(self.parameters()).device
        random = SampleRandom(self.seed, batch["ordinal"], device)
        x_0 = self.x_0[batch["index"]].to(device)
        t, noise = random.integers(self.schedule.steps), random.normal(tuple(x_0.shape[1:]))
        context = self.conditions.context(self.conditioner, batch["index"], random.uniform())
        prediction = self.unet(self.schedule.q_sample(x_0, t, noise), t, context)
        return {"loss": F.mse_loss(prediction.float(), self.schedule.target(x_0, t, noise))}


def open_first_stage(path: Path) -> checkpoint.Checkpoint:
    """A checkpoint that has a first stage.

    Raises:
        SpectralError: it has none, or the file cannot be read.
    """
    opened = checkpoint.load(path, device=device())
    if opened.first_stage is None:
        raise SpectralError(f"{path} holds no first stage; give a file of train-autoencoder, or a whole checkpoint.")
    return opened


def train(config: TeacherConfig) -> dict[str, Any]:
    """Train, and export `RUN/teacher.safetensors`; returns its path and the last statistics.

    Raises:
        SpectralError: the configuration does not fit the first stage or the data.
    """
    base = open_first_stage(config.autoencoder)
    assert base.first_stage is not None and base.config.first_stage is not None
    data = load(config.data)
    config = replace(config, conditioning=with_classes(config.conditioning, data))
    check_fit(config, base.config.first_stage)
    conditions = Conditions(config.conditioning, data, config.dropout)
    begin(config, autoencoder=base.file.sha256, data=data.sha256)
    x_0 = latents(base.first_stage, data, device()) * base.config.scale_factor
    task = DenoisingTask(config, x_0, conditions)
    about = ModelConfig(
        "teacher", config.unet, base.config.first_stage, config.conditioning, config.schedule, base.config.scale_factor
    )

    def preview(path: Path) -> None:
        preview_rows(about, task.unet, base.first_stage, task.conditioner, data, path)

    statistics = fit(task, ShuffledIndices(len(data), config.run.batch_size, config.run.seed), config.run, preview)
    path = config.run.out / "teacher.safetensors"
    training = summary(config, statistics, len(data)) | {"autoencoder": base.config.training}
    about = replace(about, training=training)
    if is_main():
        checkpoint.save(
            path,
            about,
            unet=task.unet,
            first_stage=base.first_stage,
            conditioner=task.conditioner,
            dtype=torch.float16,
            title=config.title,
        )
    return {"path": str(path), **statistics}


def check_fit(config: TeacherConfig, first_stage: FirstStageConfig) -> None:
    """That U-Net, conditioning and schedule can be built, and go together with the data and the first stage.

    Raises:
        SpectralError: names the setting, or the two that do not go together.
    """
    if config.conditioning.kind == "external":
        raise SpectralError("conditioning.kind external has nothing to train with; set it to none, class or text.")
    check(config.unet)
    conditioning.check(config.conditioning)
    Schedule.from_config(config.schedule)
    unet, conditioned = config.unet, config.conditioning.kind != "none"
    channels, downscale = first_stage.embed_dim, first_stage.downscale
    if (unet.in_channels, unet.out_channels) != (channels, channels):
        raise SpectralError(
            f"The first stage has {channels} latent channels; set unet.in_channels and out_channels to it."
        )
    if config.data.size != unet.image_size * downscale:
        raise SpectralError(
            f"Images of {config.data.size} pixels make latents of {config.data.size / downscale:g} cells, but "
            f"unet.image_size is {unet.image_size}; change it or data.size."
        )
    if unet.use_spatial_transformer != conditioned:
        raise SpectralError(
            f"conditioning.kind is {config.conditioning.kind}, but unet.use_spatial_transformer is "
            f"{unet.use_spatial_transformer}; a U-Net attends to a context exactly when it is conditioned."
        )
    if conditioned and unet.context_dim != config.conditioning.width:
        raise SpectralError(
            f"unet.context_dim is {unet.context_dim}, but conditioning.width {config.conditioning.width}; "
            "set both to one value."
        )


def with_classes(config: ConditioningConfig, data: ImageSet) -> ConditioningConfig:
    """For classes: the data's subgroups as names, and one more class for "none of them" where there is to be one."""
    if config.kind != "class" or config.class_names:
        return config
    names = tuple(sorted(set(data.subgroups)))
    return replace(config, class_names=names, n_classes=len(names) + config.null_class)


def main(argv: Sequence[str]) -> None:
    """The command `train-teacher`."""
    config, as_json = cli.parse_config(TeacherConfig, argv, "train-teacher", __doc__)
    cli.report(train(config), as_json)


if __name__ == "__main__":
    sys.exit(cli.run(main))
