"""Small networks as diffusers describes them and as we do, their weights, and how results are compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectral_diffusion.spectral import autoencoder, conditioning
from spectral_diffusion.spectral.config import (
    ConditioningConfig,
    FirstStageConfig,
    ModelConfig,
    ScheduleConfig,
    UNetConfig,
)
from spectral_diffusion.spectral.formats.source import CONDITIONER, FIRST_STAGE, UNET, ReadOptions, Source
from spectral_diffusion.spectral.unet import UNet

from . import tiny

AS_SAID = ReadOptions()
PREFIXES = {"unet": UNET, "first_stage": FIRST_STAGE, "conditioner": CONDITIONER}

# --- small networks as diffusers describes them ---

_SMALL = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": [32, 64, 64]}
UNETS: dict[str, tuple[str, dict[str, Any]]] = {
    "ffhq": (
        "UNet2DModel",
        {
            **_SMALL,
            "layers_per_block": 2,
            "block_out_channels": [32, 64, 96],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": 16,
        },
    ),
    "one head, 16 groups": (
        "UNet2DModel",
        {
            **_SMALL,
            "down_block_types": ["AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D"],
            "attention_head_dim": None,
            "norm_num_groups": 16,
        },
    ),
    "churches": (
        "UNet2DModel",
        {
            **_SMALL,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ["AttnDownBlock2D", "ResnetDownsampleBlock2D", "DownBlock2D"],
            "up_block_types": ["ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D", "AttnUpBlock2D"],
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "resnet_time_scale_shift": "scale_shift",
            "attn_norm_num_groups": 32,
            "attention_head_dim": 8,
        },
    ),
    "stable diffusion 1": (
        "UNet2DConditionModel",
        {
            **_SMALL,
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "attention_head_dim": 2,
            "cross_attention_dim": 24,
        },
    ),
    "stable diffusion 2": (
        "UNet2DConditionModel",
        {
            **_SMALL,
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "attention_head_dim": [2, 4, 4],
            "cross_attention_dim": 24,
            "use_linear_projection": True,
            "upcast_attention": True,
        },
    ),
    "cin, two deep, scale and shift": (
        "UNet2DConditionModel",
        {
            **_SMALL,
            "down_block_types": ["CrossAttnDownBlock2D"] * 3,
            "up_block_types": ["CrossAttnUpBlock2D"] * 3,
            "attention_head_dim": [1, 2, 2],
            "cross_attention_dim": 24,
            "transformer_layers_per_block": 2,
            "resnet_time_scale_shift": "scale_shift",
        },
    ),
}
STAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "vq-f4": (
        "VQModel",
        {
            "block_out_channels": [32, 64, 128],
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3,
            "layers_per_block": 2,
            "num_vq_embeddings": 64,
            "sample_size": 16,
            "scaling_factor": 1.0,
        },
    ),
    "vq with attention": (
        "VQModel",
        {
            "block_out_channels": [32, 64, 64],
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
            "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
            "latent_channels": 4,
            "vq_embed_dim": 3,
            "num_vq_embeddings": 64,
            "scaling_factor": 1.0,
        },
    ),
    "kl-f4 in 8 groups": (
        "AutoencoderKL",
        {
            "block_out_channels": [32, 64, 64],
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3,
            "latent_channels": 4,
            "norm_num_groups": 8,
            "sample_size": 16,
            "scaling_factor": 0.5,
        },
    ),
    "kl-f8": (
        "AutoencoderKL",
        {
            "block_out_channels": [32, 64, 64, 64],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "layers_per_block": 2,
            "sample_size": 64,
            "scaling_factor": 0.18215,
        },
    ),
}


# --- whole folders ---

SCHEDULE = ScheduleConfig(0.00085, 0.012, prediction="v")
UNIT = UNetConfig(3, 3, 32, (2,), 1, (1, 2), image_size=8, num_head_channels=16)
CROSS = replace(UNIT, in_channels=4, out_channels=4, use_spatial_transformer=True, context_dim=32)
VQ = FirstStageConfig("vq", embed_dim=3, z_channels=3, ch=32, ch_mult=(1, 2), num_res_blocks=1, n_embed=32)
KL = replace(tiny.FIRST_STAGE, ch_mult=(1, 1, 1, 1))
CLIP = ConditioningConfig("text", width=32, layers=2, heads=2)
SECOND_CLIP = replace(CLIP, activation="gelu", pad_token=0)
BERT = ConditioningConfig("text", width=32, layers=2, heads=8, tower="ldm", vocabulary=99, pad_token=0)
CLASSES = ConditioningConfig("class", width=32, n_classes=4, null_class=False, class_names=("a", "b"))
MODELS = {
    "unconditional": ModelConfig("teacher", UNIT, VQ),
    "unconditional, KL": ModelConfig(
        "teacher",
        replace(UNIT, in_channels=4, out_channels=4, use_scale_shift_norm=True, resblock_updown=True),
        KL,
        scale_factor=0.5,
    ),
    "one head": ModelConfig("teacher", replace(UNIT, num_heads=1, num_head_channels=-1), VQ),
    "clip": ModelConfig("teacher", replace(CROSS, num_heads=4, num_head_channels=-1), KL, CLIP, SCHEDULE, 0.18215),
    "second clip": ModelConfig(
        "teacher", replace(CROSS, use_linear_in_transformer=True), KL, SECOND_CLIP, SCHEDULE, 0.18215
    ),
    "ldm": ModelConfig("teacher", CROSS, KL, BERT, scale_factor=0.18215),
    "class": ModelConfig("teacher", replace(CROSS, in_channels=3, out_channels=3), VQ, CLASSES),
    "external": ModelConfig("teacher", CROSS, KL, ConditioningConfig("external", width=32)),
    "autoencoder": ModelConfig("autoencoder", None, replace(VQ, attn_resolutions=(128,)), scale_factor=2.0),
}


def modules(config: ModelConfig) -> dict[str, Any]:
    made: dict[str, nn.Module | None] = {
        "unet": UNet(config.unet) if config.unet else None,
        "first_stage": autoencoder.build(config.first_stage) if config.first_stage else None,
        "conditioner": conditioning.build(config.conditioning),
    }
    return {
        part: tiny.randomized(module, 3).eval().requires_grad_(False)
        for part, module in made.items()
        if module is not None
    }


def theirs(diffusers: Any, described: tuple[str, dict[str, Any]], seed: int = 0) -> Any:
    """A network of diffusers with random weights."""
    name, settings = described
    return tiny.randomized(getattr(diffusers, name)(**settings), seed).eval().requires_grad_(False)


def built(source: Source, part: str) -> Any:
    """One of our modules with the tensors that a folder gave, key for key."""
    config = source.config
    made: dict[str, Any] = {
        "unet": lambda: UNet(config.unet),  # type: ignore[arg-type]
        "first_stage": lambda: autoencoder.build(config.first_stage),  # type: ignore[arg-type]
        "conditioner": lambda: conditioning.build(config.conditioning),
    }
    prefix = PREFIXES[part]
    module: nn.Module = made[part]()
    found = {name[len(prefix) :]: value for name, value in source.tensors.items() if name.startswith(prefix)}
    module.load_state_dict(found)
    return module.eval().requires_grad_(False)


def in_ldm(**modules: nn.Module) -> dict[str, Tensor]:
    """The tensors of our modules under their prefixes."""
    return {
        PREFIXES[part] + name: tensor
        for part, module in modules.items()
        for name, tensor in module.state_dict().items()
    }


def drawn(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(ours: Tensor, other: Tensor) -> None:
    assert ours.shape == other.shape and other.std() > 1e-3
    assert (ours - other).abs().max() <= 1e-4 * other.abs().max()


def same_unet(ours: UNet, other: Any) -> None:
    x, steps = drawn(2, ours.config.in_channels, 8, 8), torch.tensor([3, 700])
    context = drawn(2, 5, ours.config.context_dim) if ours.config.context_dim else None
    extra = {} if context is None else {"encoder_hidden_states": context}
    close(ours(x, steps, context), other(x, steps, **extra).sample)


def same_stage(ours: Any, other: Any) -> None:
    image = drawn(2, 3, 16, 16)
    encoded = other.encode(image)
    latent = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    close(ours.encode(image), latent)
    close(ours.decode(latent), other.decode(latent).sample)


def edit(file: Path, **settings: Any) -> None:
    """Change settings of a config.json; ... takes one away."""
    data = {**json.loads(file.read_text()), **settings}
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


def strictly(kind: Any, folder: Path) -> Any:
    """What `from_pretrained` opens, once it has found every tensor and no other."""
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()
