"""What the probes of a model share: its checkpoint, clean latents of images, and where along its schedule to look."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ...spectral import checkpoint
from ...spectral.checkpoint import Checkpoint
from ...spectral.diffusion import Schedule
from ...spectral.errors import SpectralError
from .. import cli
from ..data.config import DataConfig
from ..evaluation.reference import open_reference, pick
from ..processes import device
from ..sample import image_side
from ..teachers import assemble

BATCH = 16  # images through a first stage at a time


def open_model(path: Path, arguments: argparse.Namespace) -> Checkpoint:
    """A checkpoint as modules, with the parts and settings that the options of the command line name.

    Raises:
        SpectralError: as `assemble` and `checkpoint.build`; or it holds no U-Net.
    """
    options = cli.read_options(arguments)
    file = assemble(path, options, getattr(arguments, "first_stage", None), getattr(arguments, "text_encoder", None))
    if file.config.unet is None:
        raise SpectralError(f"{path} holds no U-Net to probe; give a student, Lite or teacher checkpoint.")
    opened = checkpoint.build(file, device=device())
    cli.say_assumed(file.notes)
    return opened


def add_image_options(parser: argparse.ArgumentParser, images: str | None, count: int) -> None:
    """The options that say of which images latents are made."""
    kinds = "a folder, .tar shards, or emoji64"
    parser.add_argument("--images", default=images, help=f"whose latents are probed: {kinds}")
    parser.add_argument("--subgroups", nargs="+", default=(), help="of the images, only these; a * at the end matches")
    parser.add_argument("--count", type=int, default=count, help="images at most, from all over the set")


def clean_latents(opened: Checkpoint, path: str, count: int, subgroups: Sequence[str] = ()) -> Tensor:
    """Latents [N, C, h, w] of images as the U-Net's x_0 are scaled: squares of the training size, from the centres.

    Args:
        path: as `data.path` of a run.
        count: at most so many images, evenly spaced in the set.

    Raises:
        SpectralError: no first stage, no images, or a count below 1.
    """
    stage = opened.first_stage
    if stage is None:
        raise SpectralError(f"{opened.file.path.name} has no first stage to encode images; give one to --first-stage.")
    if count < 1:
        raise SpectralError(f"--count is {count}; at least 1 image is needed.")
    data = open_reference(DataConfig(path, subgroups=tuple(subgroups)), image_side(opened.config))
    chosen = torch.linspace(0, len(data) - 1, min(count, len(data))).long().tolist()
    latents = []
    with tqdm(total=len(chosen), desc="encoding", unit="image", dynamic_ncols=True, disable=None) as bar:
        for start in range(0, len(chosen), BATCH):
            images, _ = pick(data, chosen[start : start + BATCH])
            with torch.no_grad():
                latents.append(stage.encode((2 * images - 1).to(next(stage.parameters()))).float())
            bar.update(len(images))
    return torch.cat(latents) * opened.config.scale_factor


def time_steps(schedule: Schedule, given: Sequence[int] | None, count: int) -> Tensor:
    """The time steps that were asked for, ascending; else so many, in the middles of equal parts of the schedule.

    Raises:
        SpectralError: a step that the schedule does not have.
    """
    if given:
        steps = torch.tensor(sorted(set(given)))
        if int(steps[0]) < 0 or int(steps[-1]) >= schedule.steps:
            raise SpectralError(f"--at holds {list(given)}; the schedule has the time steps 0 to {schedule.steps - 1}.")
        return steps
    count = min(count, schedule.steps)
    return ((torch.arange(count).double() + 0.5) * (schedule.steps / count)).long()


def plain(values: Tensor) -> Any:
    """A tensor as nested lists for JSON; numbers that do not exist are None."""

    def known(value: Any) -> Any:
        if isinstance(value, list):
            return [known(each) for each in value]
        return value if not isinstance(value, float) or math.isfinite(value) else None

    return known(values.tolist())
