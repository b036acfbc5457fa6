"""Tiny checkpoints with random weights, one of each kind that the loader must know; seconds to make, a few MB."""

from __future__ import annotations

from pathlib import Path

import torch

from spectral_diffusion.spectral import autoencoder, checkpoint, conditioning
from spectral_diffusion.spectral.config import (
    ConditioningConfig,
    FirstStageConfig,
    ModelConfig,
    ScheduleConfig,
    UNetConfig,
)
from spectral_diffusion.spectral.unet import UNet

from ..unit.tiny import randomized

KL_F4 = FirstStageConfig("kl", embed_dim=4, z_channels=4, ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, resolution=64)
VQ_F4 = FirstStageConfig(
    "vq", embed_dim=3, z_channels=3, ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, resolution=64, n_embed=64
)
WIDTH = 32

CONDITIONINGS = {
    "text": ConditioningConfig("text", width=WIDTH, layers=2, heads=2),
    "class": ConditioningConfig("class", width=WIDTH, n_classes=11),
    "none": ConditioningConfig("none"),
}


def write(path: Path, kind: str, first_stage: FirstStageConfig = KL_F4, dtype: torch.dtype = torch.float32) -> Path:
    """A wavelet-gated student conditioned on `kind` ("text", "class" or "none"), latents 16×16."""
    condition = CONDITIONINGS[kind]
    config = ModelConfig(
        "student",
        unet=unet_config(first_stage.embed_dim, condition),
        first_stage=first_stage,
        conditioning=condition,
        schedule=ScheduleConfig(0.0015, 0.0195),
        scale_factor=0.5 if first_stage.kind == "kl" else 1.0,
    )
    assert config.unet is not None
    conditioner = conditioning.build(condition)
    return checkpoint.save(
        path,
        config,
        unet=randomized(UNet(config.unet), 1),
        first_stage=randomized(autoencoder.build(first_stage), 2),
        conditioner=randomized(conditioner, 3) if conditioner is not None else None,
        dtype=dtype,
    )


def unet_config(channels: int, condition: ConditioningConfig) -> UNetConfig:
    """Three resolutions, attention in the lower two; cross-attention where there is a condition."""
    return UNetConfig(
        in_channels=channels,
        out_channels=channels,
        model_channels=32,
        attention_resolutions=(2, 4),
        num_res_blocks=1,
        channel_mult=(1, 1, 2),
        image_size=16,
        num_heads=2,
        use_spatial_transformer=condition.kind != "none",
        context_dim=condition.width or None,
        resampler="wavelet",
    )
