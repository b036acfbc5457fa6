"""What a batch becomes before a network of stages (f-DM) sees it: its samples, each in the stage of its own step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..spectral import checkpoint
from ..spectral.config import FirstStageConfig, StagesConfig
from ..spectral.diffusion import Schedule
from ..spectral.errors import SpectralError
from ..spectral.fdm import FreshNoise, Point, Process
from ..spectral.formats.source import FIRST_STAGE
from ..spectral.unet import Tap, UNet
from .distillation.objectives import bands
from .noising import Noised


class InStage(NamedTuple):
    """The samples of a batch that are in one stage, b of them.

    Args:
        stage: k.
        places: where they are in the batch, [b] int64.
        t: their steps, [b] int64.
        point: x_t and δ_t, [b, C, h, w].
        noise: ε, white, [b, C, h, w]; the coarse part of the latents' noise.
        z: z_t, what the network sees, [b, C, h, w].
        context: [b, T, width], or None without conditioning.
    """

    stage: int
    places: Tensor
    t: Tensor
    point: Point
    noise: Tensor
    z: Tensor
    context: Tensor | None


def by_stage(process: Process, noised: Noised) -> Iterator[InStage]:
    """A batch, stage by stage; stages that no sample is in are left out."""
    stages = process.stage_of(noised.t)
    for stage in range(process.last + 1):
        places = torch.nonzero(stages == stage)[:, 0]
        if not len(places):
            continue
        t, given = noised.t[places], noised.noise[places]
        context = None if noised.context is None else noised.context[places]
        noise = process.restrict(given, stage, FreshNoise(given))
        point = process.point(noised.x_0[places], t, stage)
        yield InStage(stage, places, t, point, noise, process.noised(point.x, t, stage, noise), context)


def process_of(unet: UNet, schedule: Schedule) -> Process | None:
    """The stages that a network was made for; None for plain diffusion."""
    if unet.config.stages is None:
        return None
    return Process(schedule, unet.config.stages, {int(key): pair for key, pair in unet.stage_pairs.items()})


def untouched(unet: UNet, seen: set[int]) -> Tensor:
    """0, of all parameters, where the samples of a batch leave stages out: what they did not pass has gradients too.

    Processes wait for each other's gradients, parameter by parameter.
    """
    total = torch.zeros((), device=next(unet.parameters()).device)
    if {unet.entries[stage].key for stage in seen} == {entry.key for entry in unet.entries}:
        return total
    return total + sum((0.0 * p.sum() for p in unet.parameters() if p.requires_grad), start=torch.zeros_like(total))


def with_autoencoders(stages: StagesConfig, files: Sequence[Path]) -> StagesConfig | None:
    """The stages with the autoencoders' configurations in their places; None where there are none at all.

    Args:
        files: of the boundaries whose transform is "vae", in their order.

    Raises:
        SpectralError: there are more files than such boundaries, or fewer; or one holds no first stage.
    """
    if not stages.boundaries:
        if files:
            raise SpectralError(
                "stage_autoencoders are for stages behind a vae; give stages.boundaries, or leave them out."
            )
        return None
    behind = [index for index, boundary in enumerate(stages.boundaries) if boundary.transform == "vae"]
    if len(behind) != len(files):
        raise SpectralError(
            f"{len(behind)} of the stages are behind a vae, but stage_autoencoders names {len(files)} files; give one "
            "for each, in their order."
        )
    boundaries = list(stages.boundaries)
    for index, path in zip(behind, files, strict=True):
        boundaries[index] = replace(boundaries[index], autoencoder=_first_stage(path))
    return replace(stages, boundaries=tuple(boundaries))


def digest(files: Sequence[Path]) -> str | None:
    """What tells whether the autoencoders of a run are still the same; None where there are none."""
    return " ".join(checkpoint.sha256(path) for path in files) or None


def _first_stage(path: Path) -> FirstStageConfig:
    found = checkpoint.read(path).config.first_stage
    if found is None:
        raise SpectralError(f"{path} holds no first stage; give the file of an autoencoder.")
    return found


def fill_pairs(unet: UNet, files: Sequence[Path]) -> None:
    """Give a network the autoencoders of its stages, if it has any; they are not trained."""
    if unet.config.stages is None:
        return
    for pair, path in zip(unet.stage_pairs.values(), files, strict=True):
        file = checkpoint.read(path)
        weights = file.part(FIRST_STAGE)
        checkpoint.match(pair, weights, f"{path.name}: {FIRST_STAGE}")
        pair.load_state_dict(weights)
        pair.eval().requires_grad_(False)


class StagedErrors:
    """What a network of stages says of a batch, and how far that is from the truth.

    Args:
        process: the network's own.
        unet: is asked once for every stage that samples are in.
        noised: the batch.
        features: asks for the features at every tap as well.

    Attributes:
        parts: the samples of each stage; `outputs`, what the network said of each, [b, 2C, h, w]; `seen`, its features.
    """

    def __init__(self, process: Process, unet: UNet, noised: Noised, features: bool = False) -> None:
        self.process, self.noised = process, noised
        self.parts = list(by_stage(process, noised))
        self.seen: list[dict[Tap, Tensor]] = [{} for _ in self.parts]
        self.outputs = [
            unet(part.z, part.t, part.context, stage=part.stage, features=seen if features else None)
            for part, seen in zip(self.parts, self.seen, strict=True)
        ]
        self._rest = untouched(unet, {part.stage for part in self.parts})
        self._order = torch.cat([part.places for part in self.parts]).argsort()
        self.errors: list[tuple[Tensor, Tensor]] = []
        for part, output in zip(self.parts, self.outputs, strict=True):
            error = output.float() - process.target(part.point, part.t, part.stage, part.noise)
            noise, delta = error.chunk(2, dim=1)
            self.errors.append((noise, delta if process.moves(part.stage) else torch.zeros_like(delta)))

    def loss(self, weights: Tensor | None = None) -> Tensor:
        """The mean over samples of ‖ε_θ − ε‖² + ‖δ_θ − δ‖², each a mean over cells ("double reconstruction").

        Where the network predicts the detail, δ stands for that, here and below.

        Args:
            weights: of every sample's error of the noise, [B].
        """
        noise, delta = self.each
        return ((noise if weights is None else weights * noise) + delta).mean() + self._rest

    @cached_property
    def each(self) -> tuple[Tensor, Tensor]:
        """‖ε_θ − ε‖² and ‖δ_θ − δ‖² of every sample, [B] each, in the batch's order."""
        noise, delta = ([pair[index].square().mean((1, 2, 3)) for pair in self.errors] for index in (0, 1))
        return self.ordered(noise), self.ordered(delta)

    def bands(self, which: int) -> tuple[Tensor, Tensor]:
        """`objectives.bands` of the errors of the noise (0) or of δ (1), in the batch's order."""
        whole, high = zip(*(bands(pair[which].detach()) for pair in self.errors), strict=True)
        return self.ordered(whole), self.ordered(high)

    def ordered(self, values: Sequence[Tensor]) -> Tensor:
        """Values [b] of the parts as those of the batch, [B]."""
        return torch.cat(list(values))[self._order]
