"""Load Checkpoint: one file or folder → MODEL, CLIP, VAE and a text that says what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..spectral import checkpoint, conditioning
from ..spectral.checkpoint import CheckpointFile
from ..spectral.config import BoundaryConfig, ModelConfig, UNetConfig
from ..spectral.entries import entries
from ..spectral.errors import SpectralError
from ..spectral.formats.source import CONDITIONER, UNET, ReadOptions
from ..spectral.memory import shapes_alone
from ..spectral.wordpiece import VocabularyError
from . import bert, clip, files, ldm_clip, model, vae
from .missing import Missing, Unneeded

TEXT = CONDITIONER + "transformer."
CLASSES = CONDITIONER + "embedding.weight"
#: What a U-Net predicts, as the widget calls it and as the reader does.
PREDICTIONS: dict[str, Any] = {"auto": None, "noise (eps)": "eps", "velocity (v)": "v"}


class LoadCheckpoint:
    """A student, a Lite model or an LDM teacher, recognised by its metadata and keys, as native ComfyUI objects."""

    CATEGORY = "spectral diffusion"
    DESCRIPTION = (
        "Loads a diffusion model from one file or diffusers folder: a student of this project, or a latent diffusion "
        "(LDM) or Stable Diffusion 1.x / 2.x model. It is recognised by what is in it, not by its name. MODEL, CLIP "
        "and VAE work with KSampler and everything else in ComfyUI."
    )
    SEARCH_ALIASES = ("load spectral diffusion", "load student", "load ldm", "latent diffusion loader", "load model")
    RETURN_TYPES = ("MODEL", "CLIP", "VAE", "STRING")
    RETURN_NAMES = ("MODEL", "CLIP", "VAE", "info")
    OUTPUT_TOOLTIPS = (
        "The U-Net, for KSampler.",
        "The text encoder, for CLIP Text Encode. Only text-conditional checkpoints have one.",
        "The first stage, which makes pictures of latents; for VAE Decode and VAE Encode.",
        "What the file holds: architecture, size, latent, conditioning, schedule, and what had to be assumed.",
    )
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = (
            "The models that come with this pack, then all .safetensors and .ckpt files in models/spectral_diffusion, "
            "models/checkpoints and models/diffusion_models, and diffusers folders in the first two and in "
            "models/diffusers."
        )
        ema = (
            "Use the averaged (EMA) weights where the file has them: they draw better. Turn it off to compare with the "
            "last weights of the training."
        )
        heads = (
            "Attention heads of the U-Net, which a file of LDM does not tell. 0: as the file or a table of published "
            "models has it. Set it when info says that they were assumed and pictures are noise."
        )
        prediction = (
            "What the U-Net predicts. auto: as the file says or its weights show. Change it when pictures come out as "
            "noise or far too dark, as with a velocity model taken for a noise model."
        )
        scale = (
            "What the VAE's latents are multiplied with before the U-Net sees them. 0: as the file or the published "
            "model has it. Set it when info says that it was assumed and pictures are too pale or too harsh."
        )
        return {
            "required": {"checkpoint": (files.names(), {"tooltip": tooltip})},
            "optional": {
                "ema": ("BOOLEAN", {"default": True, "tooltip": ema}),
                "heads": ("INT", {"default": 0, "min": 0, "max": 128, "tooltip": heads}),
                "prediction": (list(PREDICTIONS), {"default": "auto", "tooltip": prediction}),
                "scale_factor": (
                    "FLOAT",
                    {"default": 0.0, "min": 0.0, "max": 100.0, "step": 0.00001, "round": 0.00001, "tooltip": scale},
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, checkpoint: str | None = None) -> bool | str:
        try:
            if checkpoint is not None:  # a name that comes over a link is looked at when it arrives
                files.find(checkpoint)
        except SpectralError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, checkpoint: str | None = None, **_options: Any) -> str:
        # A name that comes over a link is not known yet: it may be that of any file.
        chosen = files.names() if checkpoint is None else [checkpoint]
        return f"{files.fingerprint(*map(files.find, chosen))} {bert.fingerprint()}"

    def load(
        self, checkpoint: str, ema: bool = True, heads: int = 0, prediction: str = "auto", scale_factor: float = 0.0
    ) -> tuple[Any, Any, Any, str]:
        options = ReadOptions(
            ema=ema, heads=heads or None, prediction=PREDICTIONS[prediction], scale_factor=scale_factor or None
        )
        return load(files.find(checkpoint), options)


def load(path: Path, options: ReadOptions) -> tuple[Any, Any, Any, str]:
    """MODEL, CLIP, VAE and the text about the checkpoint at `path`; for what it lacks, a `Missing` that says so.

    Raises:
        SpectralError: the file cannot be read, or its tensors do not fit together.
    """
    file = checkpoint.read(path, options)
    name, config = path.name, file.config
    with shapes_alone():
        conditioner = conditioning.build(config.conditioning)
    checkpoint.match(conditioner, file.part(CONDITIONER), f"{name}: {CONDITIONER}")
    first_stage: Any = Missing(f"{name} holds no first stage; load the VAE that its latents belong to with Load VAE.")
    rgb = None
    if config.first_stage is not None:
        stage = vae.load_first_stage(file, config.first_stage)
        if config.unet is not None and not model.is_stable_latent(config):
            rgb = vae.rgb_factors(stage, config.scale_factor)
        first_stage = vae.build(stage)
    if config.unet is None:
        advice = Missing(
            f"{name} holds a first stage (VAE) alone, no diffusion model; use its VAE output, and for MODEL and CLIP "
            "another checkpoint."
        )
        return advice, advice, first_stage, describe(file)
    tower = _tower(file)
    classes = file.tensors.get(CLASSES)
    companions = model.Companions(config, None if classes is None else classes.float().cpu().clone(), tower)
    unet = model.build(file, companions, rgb)
    if tower is None:
        silent = Unneeded if config.conditioning.kind in ("class", "none") else Missing
        tower = silent(_without_clip(name, config))
    return unet, tower, first_stage, describe(file)


def _tower(file: CheckpointFile) -> Any:
    """The CLIP of a text model; an explanation where its tokens cannot be made here; None for any other model."""
    described = file.config.conditioning
    if described.kind != "text":
        return None
    if described.tower == "clip":
        return clip.build(described, file.part(TEXT))
    try:
        return ldm_clip.build(described, file.part(CONDITIONER), file.path.name)
    except VocabularyError as error:
        return Missing(str(error))


def describe(file: CheckpointFile) -> str:
    """Some lines about a checkpoint, for a person."""
    config = file.config
    lines = [f"{file.path.name}: {config.kind}" + (f" of preset {config.preset}" if config.preset else "")]
    if config.unet is not None:
        lines += _about_unet(file, config)
    stage = config.first_stage
    if stage is not None:
        scale = f", {stage.downscale} pixels a cell, {stage.embed_dim} channels"
        lines.append(f"First stage: {stage.kind.upper()}{scale}")
    lines += [f"{key}: {value}" for key, value in config.training.items() if isinstance(value, (str, int, float))]
    return "\n".join([*lines, *(f"Note: {note}" for note in file.notes)])


def _about_unet(file: CheckpointFile, config: ModelConfig) -> list[str]:
    unet, stage, schedule = config.unet, config.first_stage, config.schedule
    assert unet is not None
    weights = sum(tensor.numel() for tensor in file.part(UNET).values())
    resampling = "wavelet-gated" if unet.resampler == "wavelet" else "convolutional"
    predicts = "velocity (v)" if schedule.prediction == "v" else "noise (eps)"
    predicts += ", zero terminal SNR" if schedule.zero_terminal_snr else ""
    lines = [
        f"U-Net: {weights / 1e6:.1f} million parameters, {unet.model_channels} channels × {unet.channel_mult}, "
        f"{resampling} resampling",
        f"Latent: {unet.image_size}×{unet.image_size}, {unet.in_channels} channels, scale {config.scale_factor:.4g}",
        f"Schedule: {schedule.steps} steps, β from {schedule.linear_start:g} to {schedule.linear_end:g}; "
        f"predicts {predicts}",
        f"Conditioning: {_about_conditioning(config)}",
    ]
    if unet.stages is not None:
        lines += _about_stages(unet, schedule.steps)
    if config.few_steps is not None:
        lines.append(f"Sample it in {config.few_steps} steps, cfg 1, sampler euler or ddim, scheduler simple")
    elif config.guidance is not None:
        lines.append(f"Guidance of {config.guidance:g} is in its weights: sample it with cfg 1")
    if file.averaged:
        lines.append("Weights: the averages (EMA) of the training; ema off gives those of its last step")
    if stage is not None:
        side = unet.image_size * stage.downscale
        lines.append(f"Image: {side}×{side} pixels")
    return lines


def _about_stages(unet: UNetConfig, steps: int) -> list[str]:
    """What an f-DM student does in which part of the schedule, from noise to picture, and what to sample it with."""
    assert unet.stages is not None
    places = [*(round(boundary.at * steps) for boundary in unet.stages.boundaries), steps]
    said = ["as it is", *map(_about_transform, unet.stages.boundaries)]
    sizes = [max(1, unet.image_size >> entry.level) for entry in entries(unet)]
    starts = [0, *places]
    lines = [
        f"Stage {stage}, steps {places[stage] - 1} to {starts[stage]}: {side}×{side}, {said[stage]}"
        for stage, side in reversed(list(enumerate(sizes)))
    ]
    return ["Works in stages: sample it with f-DM Sampler and SamplerCustom, not with KSampler", *lines]


def _about_transform(boundary: BoundaryConfig) -> str:
    """How a stage's signal is made of the one of the stage after it."""
    if boundary.transform == "downsample":
        return f"means of {boundary.factor}×{boundary.factor} cells"
    if boundary.transform == "blur":
        return f"blurred ({boundary.kernel}, {boundary.width:g} cells)"
    return "coded by an autoencoder"


def _about_conditioning(config: ModelConfig) -> str:
    given = config.conditioning
    if given.kind == "class":
        null = "the last for no class" if given.null_class else "none of them for no class"
        return f"{given.n_classes} classes, {null}"
    if given.kind == "text":
        tower = "LDM's text encoder" if given.tower == "ldm" else "CLIP"
        return f"text, {tower} of {given.layers} layers, width {given.width}"
    if given.kind == "external":
        return f"a context of width {given.width}, whose encoder is not in the file"
    return "none"


def _without_clip(name: str, config: ModelConfig) -> str:
    """What to do about a checkpoint that has no text encoder."""
    kind, width = config.conditioning.kind, config.conditioning.width
    if kind == "class":
        return f"{name} is conditioned on classes, not on text; use Class Label (Spectral Diffusion) with its MODEL."
    if kind == "none":
        return f"{name} is unconditional; use Unconditional (Spectral Diffusion) with its MODEL."
    usual = {768: " (Stable Diffusion 1.x's)", 1024: " (Stable Diffusion 2.x's)"}.get(width, "")
    return f"{name} holds no text encoder; load one of width {width}{usual} with Load CLIP, and connect that."
