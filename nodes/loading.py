"""Load Checkpoint: one file → MODEL, CLIP, VAE and a text that says what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..spectral import checkpoint, conditioning
from ..spectral.checkpoint import CheckpointFile
from ..spectral.config import ModelConfig
from ..spectral.errors import SpectralError
from ..spectral.formats.source import CONDITIONER, UNET
from . import clip, files, model, vae

TEXT = CONDITIONER + "transformer."
CLASSES = CONDITIONER + "embedding.weight"


class LoadCheckpoint:
    """A student, a Lite model or an LDM teacher, recognised by its metadata and keys, as native ComfyUI objects."""

    CATEGORY = "spectral diffusion"
    DESCRIPTION = (
        "Loads a Spectral Diffusion student, a Lite model or a latent diffusion (LDM) teacher from one file. The file "
        "is recognised by what is in it, not by its name. MODEL works with KSampler and everything else in ComfyUI."
    )
    SEARCH_ALIASES = ("load spectral diffusion", "load student", "load ldm", "latent diffusion loader", "load model")
    RETURN_TYPES = ("MODEL", "CLIP", "VAE", "STRING")
    RETURN_NAMES = ("MODEL", "CLIP", "VAE", "info")
    OUTPUT_TOOLTIPS = (
        "The U-Net, for KSampler.",
        "The text encoder, for CLIP Text Encode. Only text-conditional checkpoints have one.",
        "The first stage, for VAE Decode and VAE Encode.",
        "What the file holds: architecture, size, latent, conditioning, how it was trained.",
    )
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = (
            "The models that come with this pack, then all .safetensors files in models/spectral_diffusion "
            "and models/checkpoints."
        )
        return {"required": {"checkpoint": (files.names(), {"tooltip": tooltip})}}

    @classmethod
    def VALIDATE_INPUTS(cls, checkpoint: str) -> bool | str:
        try:
            files.find(checkpoint)
        except SpectralError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, checkpoint: str) -> str:
        return files.sha256(files.find(checkpoint))

    def load(self, checkpoint: str) -> tuple[Any, Any, Any, str]:
        return load(files.find(checkpoint))


def load(path: Path) -> tuple[Any, Any, Any, str]:
    """MODEL, CLIP, VAE and the text about the checkpoint at `path`.

    Raises:
        SpectralError: the file cannot be read, or holds no diffusion model.
    """
    file = checkpoint.read(path)
    config = file.config
    if config.unet is None:
        raise SpectralError(
            f"{path.name} holds only an autoencoder, no diffusion model; choose a student, Lite or teacher checkpoint."
        )
    with torch.device("meta"):
        conditioner = conditioning.build(config.conditioning)
    checkpoint.match(conditioner, file.part(CONDITIONER), f"{path.name}: {CONDITIONER}")
    text = file.part(TEXT)
    tower = clip.build(config.conditioning, text) if text and config.conditioning.kind == "text" else None
    first_stage, rgb = vae.MissingVae(path.name), None
    if config.first_stage is not None:
        stage = vae.load_first_stage(file, config.first_stage)
        rgb = vae.rgb_factors(stage, config.scale_factor)
        first_stage = vae.build(stage)
    classes = file.tensors.get(CLASSES)
    companions = model.Companions(config, None if classes is None else classes.float().cpu(), tower)
    unet = model.build(file, companions, rgb)
    return unet, tower or clip.MissingClip(_without_clip(path.name, config)), first_stage, describe(file)


def describe(file: CheckpointFile) -> str:
    """A few lines about a checkpoint, for a person."""
    config = file.config
    assert config.unet is not None
    unet, stage = config.unet, config.first_stage
    weights = sum(tensor.numel() for tensor in file.part(UNET).values())
    lines = [
        f"{file.path.name}: {config.kind}" + (f" of preset {config.preset}" if config.preset else ""),
        f"U-Net: {weights / 1e6:.1f} million parameters, {unet.model_channels} channels × {unet.channel_mult}, "
        + ("wavelet-gated" if unet.resampler == "wavelet" else "convolutional")
        + " resampling",
        f"Latent: {unet.image_size}×{unet.image_size}, {unet.in_channels} channels, scale {config.scale_factor:.4g}",
    ]
    if stage is not None:
        side = unet.image_size * stage.downscale
        lines.append(f"Image: {side}×{side} pixels, {stage.kind.upper()} first stage, {stage.downscale} pixels a cell")
    lines.append(f"Conditioning: {config.conditioning.kind}")
    lines += [f"{key}: {value}" for key, value in config.training.items() if isinstance(value, (str, int, float))]
    return "\n".join(lines)


def _without_clip(name: str, config: ModelConfig) -> str:
    """What to do about a checkpoint that has no text encoder ComfyUI can run."""
    if config.conditioning.kind == "class":
        return f"{name} is conditioned on classes, not on text; use Class Label (Spectral Diffusion) with its MODEL."
    if config.conditioning.kind == "none":
        return f"{name} is unconditional; use Unconditional (Spectral Diffusion) with its MODEL."
    return f"{name} holds no CLIP text encoder that ComfyUI can run."
