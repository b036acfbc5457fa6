"""The first stage alone: data encoded and decoded again, what a perfect model of its latents would come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...spectral.checkpoint import Checkpoint
from ...spectral.errors import SpectralError
from ..data.images import Images
from ..processes import device, is_main
from . import samples, scoring
from .config import EvaluationConfig
from .measures import Measured, Networks
from .reference import stand_in
from .scoring import Subject

NAME = "first stage"


def settings_of(data: Images, config: EvaluationConfig, **files: str | None) -> dict[str, Any]:
    """Everything that picture i depends on.

    Args:
        files: SHA-256 of the files that the first stage may be in.
    """
    return {**files, "data": data.sha256, "seed": config.seed, "size": data.config.size}


def evaluate(
    opened: Checkpoint,
    data: Images,
    order: Sequence[int],
    prompts: Sequence[str],
    out: Path,
    config: EvaluationConfig,
    networks: Networks,
    *,
    digest: str | None = None,
    reference: Callable[[], Measured] | None = None,
) -> dict[str, Any] | None:
    """Encode and decode images of the data, and measure them as `evaluate.evaluate` does samples.

    Every process of a launch calls this. What is there already, pictures or the whole report, is not made again.

    Args:
        opened: with a first stage; its U-Net is not asked.
        data: at a size that is a multiple of the first stage's factor.
        order: the image of the data that each picture is made of; the next one where it cannot be read.
        prompts: what is said of each.
        out: the folder of the pictures and the report.
        digest: SHA-256 of the file that the first stage was taken from, where that is not the checkpoint's.
        reference: gives what `networks` saw in the data, where that is known already.

    Returns:
        The report; None in all processes but the main one.

    Raises:
        SpectralError: the folder holds other pictures, there is no first stage, or too much of the data cannot be read.
    """
    stage, file = opened.first_stage, opened.file
    if stage is None:
        raise SpectralError(f"{file.path.name} holds no first stage; give a whole checkpoint.")

    @torch.no_grad()
    def made(indices: Sequence[int]) -> Tensor:
        images = stand_in(data, [order[index] for index in indices]).to(device())
        return (stage.decode(stage.encode(2 * images - 1)).clamp(-1, 1).cpu().float() + 1) / 2

    settings = settings_of(data, config, checkpoint=file.sha256, first_stage=digest)
    filled = samples.complete(out, len(order), config.batch, settings, made, said="decoding")
    if not is_main():
        return None
    model = scoring.about_checkpoint(opened)
    model |= {"kind": NAME, "title": f"First stage of {model['title'] or file.path.name}"}
    pictures = [samples.path_of(out, index) for index in range(len(order))]
    captioned = opened.config.conditioning.kind == "text"
    about = {"checkpoint": model, "sampling": settings}
    subject = Subject(NAME, pictures, list(order), list(prompts), captioned, about=about)
    return scoring.score_once(subject, data, out, config, networks, fresh=filled.made > 0, reference=reference)
