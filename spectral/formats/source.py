"""What every format is read into: LDM's key layout and a configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..config import ModelConfig
from ..errors import SpectralError

#: Where the parts of a model lie in a file of LDM's layout, and in `Source.tensors`.
UNET, FIRST_STAGE, CONDITIONER = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."


@dataclass(frozen=True)
class ReadOptions:
    """What a file does not say about itself, and which of its weights are meant. None: as the file, or the table, says.

    Args:
        ema: take the averaged weights where the file has them.
        heads: attention heads of every layer of the U-Net; excludes `head_channels`.
        head_channels: channels of an attention head of the U-Net.
        prediction: what the U-Net predicts: noise ("eps") or velocity ("v").
        image_size: side of the latent that the U-Net was trained at, in cells.
        scale_factor: latents that the U-Net sees are first-stage latents × this.
    """

    ema: bool = True
    heads: int | None = None
    head_channels: int | None = None
    prediction: Literal["eps", "v"] | None = None
    image_size: int | None = None
    scale_factor: float | None = None

    def __post_init__(self) -> None:
        if self.heads is not None and self.head_channels is not None:
            raise SpectralError("heads and head_channels exclude each other; give one of them.")
        for name in ("heads", "head_channels", "image_size", "scale_factor"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 2**31:
                raise SpectralError(f"{name} is {value}; expected a positive number.")


@dataclass(frozen=True)
class Source:
    """A model as some format holds it.

    Args:
        path: the file or folder.
        config: what the model is.
        tensors: by LDM's names under `UNET`, `FIRST_STAGE` and `CONDITIONER`; mapped from the files, not copied.
        metadata: the texts beside the tensors.
        notes: what was assumed because the file does not say it, one sentence each, for the user.
        averaged: the U-Net's weights are the averages that were kept beside those of the last step.
    """

    path: Path
    config: ModelConfig
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    averaged: bool = False
