"""Small models in files as latent-diffusion and Stable Diffusion leave them, with averages and buffers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from spectral_diffusion.spectral import autoencoder, conditioning
from spectral_diffusion.spectral.autoencoder import FirstStage
from spectral_diffusion.spectral.config import ConditioningConfig, FirstStageConfig, UNetConfig
from spectral_diffusion.spectral.diffusion import Schedule
from spectral_diffusion.spectral.unet import UNet

from . import tiny

UNCONDITIONAL = UNetConfig(
    3, 3, 32, (2,), num_res_blocks=1, channel_mult=(1, 2), image_size=64, num_heads=-1, num_head_channels=32
)
CONDITIONED = UNetConfig(
    4, 4, 32, (2, 1), 1, (1, 2), image_size=32, num_heads=8, use_spatial_transformer=True, context_dim=64
)
KL = FirstStageConfig("kl", embed_dim=4, z_channels=4, ch=32, ch_mult=(1, 1, 2), num_res_blocks=1)
VQ = FirstStageConfig("vq", embed_dim=3, z_channels=3, ch=32, ch_mult=(1, 2), num_res_blocks=1, n_embed=16)
VQ_ATTENDING = replace(VQ, embed_dim=4, z_channels=4, attn_resolutions=(128,))
CLASSES = ConditioningConfig("class", width=64, n_classes=1001)
CLIP = ConditioningConfig("text", width=64, layers=2, heads=1)
OPEN_CLIP = replace(CLIP, activation="gelu", skip_last=1, projection=True, pad_token=0)
LDM_TEXT = ConditioningConfig("text", width=64, layers=2, heads=8, tower="ldm", vocabulary=100, pad_token=0)


@dataclass
class Parts:
    """What a file is made of, as modules with random weights."""

    unet: UNet
    first_stage: FirstStage
    conditioner: nn.Module | None

    @classmethod
    def make(cls, unet: UNetConfig, stage: FirstStageConfig, condition: ConditioningConfig) -> Parts:
        conditioner = conditioning.build(condition)
        return cls(
            tiny.randomized(UNet(unet), 1).eval(),
            tiny.randomized(autoencoder.build(stage), 2).eval(),
            tiny.randomized(conditioner, 3).eval() if conditioner is not None else None,
        )

    def state(self) -> dict[str, Tensor]:
        """All tensors by LDM's names."""
        state = {f"model.diffusion_model.{k}": v for k, v in self.unet.state_dict().items()}
        state |= {f"first_stage_model.{k}": v for k, v in self.first_stage.state_dict().items()}
        if self.conditioner is not None:
            state |= {f"cond_stage_model.{k}": v for k, v in self.conditioner.state_dict().items()}
        return {k: v.clone() for k, v in state.items()}


def averages(unet: nn.Module, factor: float = 0.5) -> dict[str, Tensor]:
    """The averages that LDM keeps of a U-Net's weights, here the weights × `factor`, under names without dots."""
    kept = {
        "model_ema." + f"diffusion_model.{name}".replace(".", ""): parameter * factor
        for name, parameter in unet.state_dict().items()
    }
    return kept | {
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(12345, dtype=torch.int32),
    }


def buffers(start: float = 0.0015, end: float = 0.0195, scale: float | None = None) -> dict[str, Tensor]:
    """What DDPM registers: the schedule in all its forms, and the scale of the latents."""
    schedule = Schedule(start, end)
    kept = {
        "betas": schedule.betas.float(),
        "alphas_cumprod": schedule.alphas_cumprod.float(),
        "sqrt_alphas_cumprod": schedule.alphas_cumprod.sqrt().float(),
        "posterior_variance": schedule.betas.float(),
        "logvar": torch.zeros(1000),
    }
    return kept if scale is None else kept | {"scale_factor": torch.tensor(scale)}


def write(path: Path, state: dict[str, Tensor], wrapped: bool = True) -> Path:
    """As .safetensors, or as .ckpt with what Lightning keeps beside the weights."""
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    else:
        torch.save({"epoch": 3, "global_step": 17, "state_dict": state} if wrapped else state, path)
    return path
