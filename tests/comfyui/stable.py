"""Files as core ComfyUI recognises them: Stable Diffusion 1.x and 2.x with slim U-Nets and random weights.

Core goes by the U-Net's width and context; its text towers and first stage have their published shapes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from spectral_diffusion.spectral import autoencoder, conditioning, presets
from spectral_diffusion.spectral.config import UNetConfig
from spectral_diffusion.spectral.formats import text_keys
from spectral_diffusion.spectral.formats.source import CONDITIONER, FIRST_STAGE, UNET
from spectral_diffusion.spectral.unet import UNet

from ..unit import ldm_files
from ..unit.tiny import randomized

ONE, TWO = presets.PRESETS["stable_diffusion_1"], presets.PRESETS["stable_diffusion_2_v"]
UNET_ONE = replace(ONE.unet, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(1, 2))
#: Core looks for the kind of prediction in output block 11, so this one has all twelve.
UNET_TWO = replace(TWO.unet, channel_mult=(1, 1, 1, 1), attention_resolutions=(1,))


def write_one(path: Path) -> Path:
    """Stable Diffusion 1.x-shaped in float16, 0.5 GB; as .ckpt with a `state_dict`, or .safetensors."""
    state = _state(UNET_ONE, ONE)
    places = torch.arange(77)[None]
    return _write(path, {**state, f"{CONDITIONER}transformer.text_model.embeddings.position_ids": places})


def write_two(path: Path, spread: float) -> Path:
    """Stable Diffusion 2.x-shaped in float16, 1.1 GB.

    Args:
        spread: of the bias by which core, and our reader, tell velocity (0.09 and above) from noise.
    """
    state = _state(UNET_TWO, TWO)
    told = state[f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"]
    told.copy_(spread * torch.randn(told.shape, generator=torch.Generator().manual_seed(9)))
    ours = {name.removeprefix(CONDITIONER): tensor for name, tensor in state.items() if name.startswith(CONDITIONER)}
    theirs = {f"{CONDITIONER}model.{name}": tensor for name, tensor in text_keys.to_open_clip(ours).items()}
    return _write(path, {**{n: t for n, t in state.items() if not n.startswith(CONDITIONER)}, **theirs})


def _state(unet: UNetConfig, preset: presets.Preset) -> dict[str, Tensor]:
    """All tensors by their names in LDM's layout, float16."""
    tower = conditioning.build(preset.conditioning)
    assert tower is not None
    parts: dict[str, nn.Module] = {UNET: UNet(unet), FIRST_STAGE: autoencoder.build(preset.first_stage)}
    parts[CONDITIONER] = tower
    return {
        prefix + name: tensor.half()
        for prefix, part in parts.items()
        for name, tensor in randomized(part, len(prefix)).state_dict().items()
    }


def _write(path: Path, state: dict[str, Tensor]) -> Path:
    return ldm_files.write(path, {**state, **ldm_files.buffers(0.00085, 0.012)})
