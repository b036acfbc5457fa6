"""Tiny models with random weights, a folder of tiny pictures, and the checkpoint of a tiny teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from spectral_diffusion.spectral import autoencoder, checkpoint, conditioning
from spectral_diffusion.spectral.config import ConditioningConfig, FirstStageConfig, ModelConfig, UNetConfig
from spectral_diffusion.spectral.unet import UNet

M = TypeVar("M", bound=nn.Module)

#: 16 × 16 pixels ↔ 8 × 8 × 4 cells.
FIRST_STAGE = FirstStageConfig("kl", embed_dim=4, z_channels=4, ch=32, ch_mult=(1, 1), num_res_blocks=1, resolution=16)
UNCONDITIONAL = UNetConfig(
    4, 4, 32, (2,), num_res_blocks=1, channel_mult=(1, 2), image_size=8, num_head_channels=32, resampler="wavelet"
)
CONDITIONED = replace(UNCONDITIONAL, use_spatial_transformer=True, context_dim=32)
CLASSES = ConditioningConfig("class", width=32, n_classes=3, class_names=("blue", "red"))
TEXT = ConditioningConfig("text", width=32, layers=2, heads=2)


def randomized(module: M, seed: int = 0) -> M:
    """The module with every parameter drawn anew, also those that start at zero; signals keep their size in it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(drawn * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.1 * drawn + float(name.endswith("weight")))
    return module


def write(path: Path, config: ModelConfig, dtype: torch.dtype | None = None) -> Path:
    """A checkpoint of what `config` describes, with random weights."""
    conditioner = conditioning.build(config.conditioning)
    return checkpoint.save(
        path,
        config,
        unet=randomized(UNet(config.unet), 1) if config.unet else None,
        first_stage=randomized(autoencoder.build(config.first_stage), 2) if config.first_stage else None,
        conditioner=randomized(conditioner, 3) if conditioner else None,
        dtype=dtype,
    )


def teacher(path: Path) -> Path:
    """A conv-resampled teacher that knows the classes of `pictures`."""
    unet = replace(CONDITIONED, model_channels=64, resampler="conv")
    return write(path, ModelConfig("teacher", unet, FIRST_STAGE, CLASSES, scale_factor=0.5))


def pictures(folder: Path, count: int = 8, size: int = 16) -> Path:
    """Noisy pictures in two sub-folders, `blue` and `red`."""
    for index in range(count):
        name = ("blue", "red")[index % 2]
        (folder / name).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 100, (size, size, 3), dtype=np.uint8)
        pixels[..., 2 if name == "blue" else 0] += 150
        Image.fromarray(pixels).save(folder / name / f"{name}-{index}.png")
    return folder
