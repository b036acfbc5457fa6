"""What architecture the names and shapes of LDM's tensors mean. File names are never looked at.

Shapes do not tell how many heads attention has; a table of the published models does, and a rule for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from .. import presets
from ..config import FirstStageConfig, UNetConfig
from ..errors import SpectralError
from ..presets import Preset
from .source import ReadOptions

#: Reading a name with more than this many blocks or levels means that the file lies.
_MOST = 256


def unet(tensors: Mapping[str, Tensor], where: str) -> UNetConfig:
    """The architecture of a U-Net with LDM's resamplers, without heads and latent size, which shapes do not tell.

    Args:
        tensors: by LDM's names, without any prefix.
        where: how to call the file in an error.

    Raises:
        SpectralError: a tensor that every such network has is missing or has the wrong number of axes.
    """
    width, in_channels, *_ = shape(tensors, "input_blocks.0.0.weight", 4, where)
    outputs = count(tensors, "output_blocks.{}.0.in_layers.0.weight")
    blocks, inside = _resampled(tensors, outputs)
    levels, rest = divmod(outputs, blocks + 1) if blocks > 0 else (0, 0)
    if blocks < 1 or levels < 1 or rest:
        raise SpectralError(
            f"{where}: its {outputs} output blocks do not divide into levels of equally many; expected LDM's U-Net."
        )
    firsts = [1 + level * (blocks + 1) for level in range(levels)]
    widths = [shape(tensors, f"input_blocks.{first}.0.out_layers.3.weight", 4, where)[0] for first in firsts]
    if width < 1 or any(wide % width for wide in widths):
        raise SpectralError(
            f"{where}: its levels have {widths} channels, not multiples of {width}; expected LDM's U-Net."
        )
    attending = [level for level, first in enumerate(firsts) if f"input_blocks.{first}.1.norm.weight" in tensors]
    embedded = shape(tensors, "input_blocks.1.0.emb_layers.1.weight", 2, where)[0]
    config = UNetConfig(
        in_channels,
        shape(tensors, "out.2.weight", 4, where)[0],
        width,
        tuple(2**level for level in reversed(attending)),
        num_res_blocks=blocks,
        channel_mult=tuple(wide // width for wide in widths),
        use_scale_shift_norm=embedded == 2 * widths[0],
        resblock_updown=inside,
    )
    return _with_transformer(config, tensors, where)


def _resampled(tensors: Mapping[str, Tensor], outputs: int) -> tuple[int, bool]:
    """Residual blocks a level going down, and whether the resamplers lie inside residual blocks.

    A level's last output block ends with the up-sampler: a convolution, or one more residual block.
    """
    for index in range(outputs):
        for place in (1, 2):
            if f"output_blocks.{index}.{place}.conv.weight" in tensors:
                return index, False
            if f"output_blocks.{index}.{place}.in_layers.0.weight" in tensors:
                return index, True
    return outputs - 1, False


def _with_transformer(config: UNetConfig, tensors: Mapping[str, Tensor], where: str) -> UNetConfig:
    """The kind of attention, as the middle block has it."""
    attention = "middle_block.1."
    if attention + "proj_in.weight" not in tensors:
        return config
    linear = tensors[attention + "proj_in.weight"].dim() == 2
    context = shape(tensors, attention + "transformer_blocks.0.attn2.to_k.weight", 2, where)[1]
    return replace(
        config,
        use_spatial_transformer=True,
        transformer_depth=count(tensors, attention + "transformer_blocks.{}.norm1.weight"),
        context_dim=context,
        use_linear_in_transformer=linear,
    )


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


def first_stage(tensors: Mapping[str, Tensor], where: str) -> FirstStageConfig:
    """The architecture of a first stage, KL or VQ.

    Args:
        tensors: by LDM's names, without any prefix.

    Raises:
        SpectralError: a tensor that every first stage has is missing or has the wrong number of axes.
    """
    ch, in_channels, *_ = shape(tensors, "encoder.conv_in.weight", 4, where)
    levels = count(tensors, "encoder.down.{}.block.0.norm1.weight")
    widths = [shape(tensors, f"encoder.down.{level}.block.0.conv2.weight", 4, where)[0] for level in range(levels)]
    if ch < 1 or not widths or any(wide % ch for wide in widths):
        raise SpectralError(
            f"{where}: the levels of its encoder have {widths} channels, not multiples of {ch}; expected LDM's first "
            "stage."
        )
    codebook = tensors.get("quantize.embedding.weight")
    double = 1 if codebook is not None else 2
    embed_dim = shape(tensors, "post_quant_conv.weight", 4, where)[1]
    if codebook is None and shape(tensors, "quant_conv.weight", 4, where)[0] == embed_dim:
        raise SpectralError(f"{where}quantize.embedding.weight is missing from the checkpoint; it is incomplete.")
    resolution = 256
    attending = [resolution // 2**i for i in range(levels) if f"encoder.down.{i}.attn.0.norm.weight" in tensors]
    return FirstStageConfig(
        "kl" if codebook is None else "vq",
        embed_dim=embed_dim,
        z_channels=shape(tensors, "encoder.conv_out.weight", 4, where)[0] // double,
        ch=ch,
        ch_mult=tuple(wide // ch for wide in widths),
        num_res_blocks=count(tensors, "encoder.down.0.block.{}.norm1.weight"),
        attn_resolutions=tuple(attending),
        resolution=resolution,
        in_channels=in_channels,
        out_ch=shape(tensors, "decoder.conv_out.weight", 4, where)[0],
        n_embed=None if codebook is None else shape(tensors, "quantize.embedding.weight", 2, where)[0],
    )


def shape(tensors: Mapping[str, Tensor], name: str, axes: int, where: str) -> tuple[int, ...]:
    """The shape of a tensor that must be there, with so many axes.

    Raises:
        SpectralError: it is missing, or has another number of axes.
    """
    tensor = tensors.get(name)
    if tensor is None:
        raise SpectralError(f"{where}{name} is missing from the checkpoint; it is incomplete or of another kind.")
    if tensor.dim() != axes:
        raise SpectralError(f"{where}{name} has shape {list(tensor.shape)}; expected {axes} axes.")
    return tuple(tensor.shape)


def count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many tensors of a numbered row there are."""
    return next(index for index in range(_MOST + 1) if index == _MOST or pattern.format(index) not in tensors)
