"""Train a small latent diffusion teacher on the latents of a frozen first stage, its text tower or classes jointly."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..spectral import checkpoint, conditioning, fdm
from ..spectral.config import (
    ConditioningConfig,
    FirstStageConfig,
    ModelConfig,
    ScheduleConfig,
    StagesConfig,
    UNetConfig,
)
from ..spectral.diffusion import Schedule
from ..spectral.errors import SpectralError
from ..spectral.limits import check
from ..spectral.unet import UNet
from . import cli
from .data.batches import Batch, Data
from .data.config import DataConfig
from .data.contexts import Contexts
from .data.dataset import as_latents, open_data
from .distillation.objectives import bands, rows
from .loop.config import RunConfig, check_dropout
from .loop.fit import fit
from .loop.folder import begin, summary
from .loop.stopping import stopping_in_order
from .noising import Noising
from .portable import portable
from .previews import Preview
from .processes import is_main
from .staging import StagedErrors, digest, fill_pairs, process_of, with_autoencoders
from .train_autoencoder import open_first_stage


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
        recompute: keep no activations for the backward pass, but compute them again: less memory, a third more time.
        stages: of a network that starts on a small or blurred signal (f-DM); without boundaries there are none.
        stage_autoencoders: files with the autoencoders of stages behind a "vae".
        init: a checkpoint of this architecture, whose U-Net and conditioner this teacher starts from. Its images may be
            of another size: what there is in small ones is learnt sooner.
        title: of the exported file.
    """

    run: RunConfig
    autoencoder: Path
    unet: UNetConfig
    data: DataConfig = field(default_factory=DataConfig)
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    dropout: float = 0.1
    recompute: bool = False
    stages: StagesConfig = field(default_factory=StagesConfig)
    stage_autoencoders: tuple[Path, ...] = ()
    init: Path | None = None
    title: str = "Small LDM teacher"

    def __post_init__(self) -> None:
        check_dropout(self.dropout)


class DenoisingTask(nn.Module):
    """L_DDPM (Eq. 3) of one batch of latents, through a U-Net and its conditioner."""

    def __init__(self, config: TeacherConfig, base: checkpoint.Checkpoint, contexts: Contexts) -> None:
        super().__init__()
        assert base.first_stage is not None
        self.schedule = Schedule.from_config(config.schedule)
        self.noising = Noising(
            base.first_stage,
            base.config.scale_factor,
            contexts,
            self.schedule,
            config.run.seed,
            config.data.posterior,
        )
        self.unet = UNet(config.unet)
        self.unet.recompute = config.recompute
        fill_pairs(self.unet, config.stage_autoencoders)
        self.process = process_of(self.unet, self.schedule)
        self.conditioner = conditioning.build(config.conditioning)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """What takes most of the time."""
        return (self.unet,)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        noised = self.noising(batch, self.conditioner, next(self.parameters()).device)
        x_0, t, noise, x_t, context, _ = noised
        if self.process is not None:
            errors = StagedErrors(self.process, self.unet, noised)
            told: dict[str, tuple[Tensor, Tensor | None]] = {"loss": errors.bands(0), "delta": errors.bands(1)}
            return {"loss": errors.loss(), **rows(told, t, self.schedule.steps)}
        error = self.unet(x_t, t, context).float() - self.schedule.target(x_0, t, noise)
        return {"loss": error.square().mean(), **rows({"loss": bands(error)}, t, self.schedule.steps)}


def train(config: TeacherConfig) -> dict[str, Any]:
    """Train, and export `RUN/teacher.safetensors`; returns its path and the last statistics.

    Raises:
        SpectralError: the configuration does not fit the first stage or the data.
    """
    base = open_first_stage(config.autoencoder)
    assert base.first_stage is not None and base.config.first_stage is not None
    data = open_data(config.data, multiple=base.first_stage.config.downscale << (len(config.unet.channel_mult) - 1))
    stages = with_autoencoders(config.stages, config.stage_autoencoders)
    unet = replace(config.unet, stages=stages)
    config = replace(config, unet=unet, conditioning=with_classes(config.conditioning, data))
    check_fit(config, base.config.first_stage)
    contexts = Contexts(config.conditioning, data, config.dropout)
    pairs = digest(config.stage_autoencoders)
    start = None if config.init is None else open_start(config, config.init)
    began = {} if start is None else {"init": start.file.sha256}
    begin(config, autoencoder=base.file.sha256, data=data.sha256, stage_autoencoders=pairs, **began)
    data = as_latents(data, base.first_stage, config.autoencoder.name, config.run.out)
    task = DenoisingTask(config, base, contexts)
    if start is not None:
        take(task, start)
    about = ModelConfig(
        "teacher", config.unet, base.config.first_stage, config.conditioning, config.schedule, base.config.scale_factor
    )
    preview = Preview(about, task.unet, base.first_stage, task.conditioner, data, contexts)
    statistics = fit(task, data, config.run, preview)
    path = config.run.out / "teacher.safetensors"
    training = summary(config, statistics, data.count) | {"autoencoder": portable(base.config.training)}
    if is_main():
        checkpoint.save(
            path,
            replace(about, training=training),
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
    if config.unet.stages is not None:
        fdm.check(config.unet.stages, config.schedule.steps)
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


def open_start(config: TeacherConfig, path: Path) -> checkpoint.Checkpoint:
    """The checkpoint that a teacher of this configuration starts from.

    Raises:
        SpectralError: it has no U-Net, or another architecture, condition or kind of prediction; names the setting.
    """
    start = checkpoint.load(path)
    if start.config.unet is None:
        raise SpectralError(f"init is {path}, which holds no U-Net; give the checkpoint of a teacher.")
    pairs = {"unet": (config.unet, start.config.unet), "conditioning": (config.conditioning, start.config.conditioning)}
    pairs["schedule"] = (config.schedule, start.config.schedule)
    for section, (own, other) in pairs.items():
        for name, value in vars(own).items():
            theirs = getattr(other, name)
            if value != theirs and name not in ("class_names", "image_size"):
                raise SpectralError(
                    f"{section}.{name} is {value}, but that of {path.name} is {theirs}; make them equal, or leave "
                    "init out."
                )
    return start


def take(task: DenoisingTask, start: checkpoint.Checkpoint) -> None:
    """Give a task the weights of a checkpoint of its architecture."""
    assert start.unet is not None
    task.unet.load_state_dict(start.unet.state_dict())
    if task.conditioner is not None and start.conditioner is not None:
        task.conditioner.load_state_dict(start.conditioner.state_dict())


def with_classes(config: ConditioningConfig, data: Data) -> ConditioningConfig:
    """For classes: the data's subgroups as names, and one more class for "none of them" where there is to be one.

    Raises:
        SpectralError: the data is a stream, which does not tell its subgroups beforehand.
    """
    if config.kind != "class" or config.class_names:
        return config
    if data.subgroups is None:
        raise SpectralError(f"{data.source} is a stream, whose classes nobody knows; name them in class_names.")
    names = tuple(sorted(set(data.subgroups)))
    return replace(config, class_names=names, n_classes=len(names) + config.null_class)


@stopping_in_order()
def main(argv: Sequence[str]) -> None:
    """The command `train-teacher`."""
    config, as_json = cli.parse_config(TeacherConfig, argv, "train-teacher", __doc__)
    cli.report(train(config), as_json)


if __name__ == "__main__":
    sys.exit(cli.run(main))
