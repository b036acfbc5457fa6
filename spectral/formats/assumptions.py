"""What a file does not say of its model: taken from the table of published ones, else assumed by a rule, and aloud.

Every function gives what it found, and a sentence for each thing that had to be assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from torch import Tensor

from .. import presets
from ..config import FirstStageConfig, ModelConfig, ScheduleConfig, UNetConfig
from ..presets import Preset
from .source import ReadOptions

#: Of a file whose U-Net attends to a context that nothing in it makes.
WITHOUT_CONDITIONER = "The file holds no conditioner; a text model needs its text encoder from another file."

#: Of two models whose networks are alike, the one that people have.
_PREFERRED = (presets.PRESETS["stable_diffusion_1"],)


def signature(found: UNetConfig) -> Preset | None:
    """The published model that has this architecture."""
    for preset in (*_PREFERRED, *presets.PRESETS.values()):
        known = preset.unet
        seen = replace(
            found,
            num_heads=known.num_heads,
            num_head_channels=known.num_head_channels,
            image_size=known.image_size,
            attention_resolutions=known.attention_resolutions,
        )
        if seen == known and set(found.attention_resolutions) == set(known.attention_resolutions):
            return preset
    return None


def completed(
    found: UNetConfig, known: Preset | None, stage: FirstStageConfig | None, options: ReadOptions
) -> tuple[UNetConfig, list[str]]:
    """The architecture with what shapes do not tell, and a sentence for everything that had to be assumed."""
    notes: list[str] = []
    if options.heads or options.head_channels:
        found = replace(found, num_heads=options.heads or -1, num_head_channels=options.head_channels or -1)
    elif known is not None:
        found = replace(found, num_heads=known.unet.num_heads, num_head_channels=known.unet.num_head_channels)
    else:
        heads, width = _usual_heads(found)
        found = replace(found, num_heads=heads, num_head_channels=width)
        said = f"{heads} attention heads" if heads > 0 else f"attention heads of {width} channels"
        notes.append(f"The file does not tell its attention heads; {said} are assumed (set heads if that is wrong).")
    if options.image_size:
        return replace(found, image_size=options.image_size), notes
    if known is not None:
        known_size = known.unet.image_size
        return replace(found, image_size=known_size, attention_resolutions=known.unet.attention_resolutions), notes
    side = 256 // stage.downscale if stage is not None else (64 if found.in_channels == 3 else 32)
    notes.append(f"The file does not tell its latent size; {side} × {side} is assumed (set image_size to change it).")
    return replace(found, image_size=max(1, side)), notes


def _usual_heads(found: UNetConfig) -> tuple[int, int]:
    """num_heads and num_head_channels that LDM's authors use with this kind of attention."""
    if found.use_linear_in_transformer:
        return -1, 64
    if found.use_spatial_transformer or found.resblock_updown:
        return 8, -1
    return -1, 32


def schedule(unet: UNetConfig, known: Preset | None) -> tuple[ScheduleConfig, list[str]]:
    """The noise schedule that models of this architecture were trained with."""
    if known is not None:
        return replace(known.schedule, prediction="eps"), []
    usual = presets.STABLE if unet.in_channels == 4 and unet.use_spatial_transformer else presets.LINEAR
    said = f"β from {usual.linear_start} to {usual.linear_end} is assumed"
    return usual, [f"The file does not tell its noise schedule; {said}."]


def prediction(weights: Mapping[str, Tensor], unet: UNetConfig) -> Literal["eps", "v"]:
    """Whether the U-Net predicts noise or velocity, as is seen in Stable Diffusion 2.x's weights.

    The bias of one normalisation is spread wider in the velocity model than in the base model; ComfyUI looks there too.
    """
    bias = weights.get("output_blocks.11.1.transformer_blocks.0.norm1.bias")
    if bias is None or unet.context_dim != 1024 or not unet.use_linear_in_transformer:
        return "eps"
    return "v" if bias.dim() == 1 and len(bias) > 1 and float(bias.float().std(correction=0)) > 0.09 else "eps"


def scale_factor(
    stage: FirstStageConfig | None, known: Preset | None, options: ReadOptions, beside: ModelConfig | None
) -> tuple[float, list[str]]:
    """What first-stage latents are multiplied with: as asked for, as the published model has it, or as the first stage
    from another file is used with.

    Args:
        beside: of the file that the first stage comes from.
    """
    if options.scale_factor:
        return options.scale_factor, []
    if known is not None and known.unet != presets.PRESETS["lsun_churches256"].unet:
        return known.scale_factor, []
    if beside is not None:
        said = f"{beside.scale_factor:.7g}, of the first stage's file, is assumed"
        return beside.scale_factor, [
            f"The file does not tell its scale_factor; {said} (set scale_factor to change it)."
        ]
    scale = presets.STABLE_SCALE if stage is not None and stage.kind == "kl" else 1.0
    return scale, [f"The file does not tell its scale_factor; {scale} is assumed (set scale_factor to change it)."]
