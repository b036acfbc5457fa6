"""Checkpoints written in the layout of latent-diffusion and Stable Diffusion, for other programs to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..config import ModelConfig
from ..diffusion import Schedule
from ..errors import SpectralError
from . import text_keys
from .source import CONDITIONER
from .spectral_file import modelspec
from .writing import stored, whole, write_safetensors


def write(path: Path, config: ModelConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write a model as `.safetensors`, or as `.ckpt` with its tensors under "state_dict".

    Args:
        config: of a network with LDM's resamplers.
        tensors: as `Source.tensors`.
        dtype: of the stored tensors; None keeps their own.

    Raises:
        SpectralError: the layout has no place for the model, the name ends in neither, or it cannot be written.
    """
    if config.unet is not None and config.unet.resampler != "conv":
        raise SpectralError(
            f"{path.name}: a wavelet-gated U-Net has no place in LDM's layout; write it in the spectral layout."
        )
    if config.unet is not None and config.unet.stages is not None:
        raise SpectralError(
            f"{path.name}: a U-Net of stages has no place in LDM's layout; write it in the spectral layout."
        )
    for part in (config.unet, config.first_stage):
        if part is not None and part.norm_groups != 32:
            raise SpectralError(
                f"{path.name}: normalisation in {part.norm_groups} groups has no place in LDM's layout, which has 32; "
                "write it in the spectral layout."
            )
    if path.suffix not in (".safetensors", ".ckpt"):
        raise SpectralError(f"{path} is no name for a checkpoint; expected .safetensors or .ckpt at its end.")
    content = {**stored(_named(config, tensors), dtype), **(_buffers(config) if config.unet is not None else {})}
    if path.suffix == ".safetensors":
        write_safetensors(path, content, modelspec(path, config, None, None))
        return
    with whole(path) as partial:
        torch.save({"state_dict": content}, partial)


def _named(config: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under LDM's names: OpenCLIP's tower goes back into OpenCLIP's layout."""
    condition = config.conditioning
    if condition.kind != "text" or condition.tower != "clip" or condition.activation != "gelu":
        return dict(tensors)
    tower = {name.removeprefix(CONDITIONER): tensor for name, tensor in tensors.items() if name.startswith(CONDITIONER)}
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(CONDITIONER)}
    if condition.skip_last < text_keys.unused_layers(condition.width, condition.layers):
        tower |= text_keys.with_one_more_layer(tower, condition.layers)
    return rest | {f"{CONDITIONER}model.{name}": tensor for name, tensor in text_keys.to_open_clip(tower).items()}


def _buffers(config: ModelConfig) -> dict[str, Tensor]:
    """The numbers that LDM registers beside the weights: the schedule, and the latents' scale.

    `v_pred` and `ztsnr` are the empty marks of other programs for a network that predicts the velocity, and for a
    schedule that they rescale to zero terminal SNR themselves: the numbers here are those before.
    """
    schedule = Schedule.from_config(replace(config.schedule, zero_terminal_snr=False))
    buffers = {
        "betas": schedule.betas.float(),
        "alphas_cumprod": schedule.alphas_cumprod.float(),
        "scale_factor": torch.tensor(config.scale_factor),
    }
    marks = {"v_pred": config.schedule.prediction == "v", "ztsnr": config.schedule.zero_terminal_snr}
    return buffers | {name: torch.zeros(0) for name, holds in marks.items() if holds}
