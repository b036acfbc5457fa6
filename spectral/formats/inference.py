"""What architecture the names and shapes of LDM's tensors mean. File names are never looked at.

Shapes do not tell how many heads attention has, nor the size that a network was trained at: see `assumptions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ..config import FirstStageConfig, UNetConfig
from ..errors import SpectralError
from .evidence import Evidence, most_common


def unet(tensors: Mapping[str, Tensor], where: str) -> UNetConfig:
    """The architecture of a U-Net with LDM's resamplers, without heads and latent size, which shapes do not tell.

    Args:
        tensors: by LDM's names, without any prefix.
        where: how to call the file in an error.

    Raises:
        SpectralError: tensors that every such network has are missing, are empty, or make no such network together.
    """
    seen = Evidence(tensors, where)
    seen.refuse_empty()
    width = seen.agreed(("input_blocks.0.0.weight", 0), ("time_embed.0.weight", 1), ("out.0.weight", 0))
    in_channels = seen.agreed(("input_blocks.0.0.weight", 1), ("out.2.weight", 0), ("out.2.bias", 0))
    outputs = seen.count("output_blocks.{}.")
    blocks, inside = _resampled(seen, outputs)
    levels, rest = divmod(outputs, blocks + 1) if blocks > 0 else (0, 0)
    if blocks < 1 or levels < 1 or rest:
        raise SpectralError(
            f"{where}output_blocks are {outputs}, which do not divide into levels of equally many; expected LDM's "
            "U-Net."
        )
    firsts = [1 + level * (blocks + 1) for level in range(levels)]
    widths = [_width(seen, f"input_blocks.{first}.0.") for first in firsts]
    for first, wide in zip(firsts, widths, strict=True):
        if wide % width:
            raise SpectralError(
                f"{where}input_blocks.{first}.0.out_layers.3.weight makes {wide} channels, no multiple of {width}; "
                "expected LDM's U-Net."
            )
    attending = [level for level, first in enumerate(firsts) if seen.has(f"input_blocks.{first}.1.")]
    config = UNetConfig(
        in_channels,
        seen.agreed(("out.2.weight", 0), ("out.2.bias", 0), ("input_blocks.0.0.weight", 1)),
        width,
        tuple(2**level for level in reversed(attending)),
        num_res_blocks=blocks,
        channel_mult=tuple(wide // width for wide in widths),
        use_scale_shift_norm=_embedded(seen, outputs) == 2 * widths[0],
        resblock_updown=inside,
    )
    return _with_transformer(config, seen)


def _width(seen: Evidence, block: str) -> int:
    """Channels that a residual block makes."""
    norm, convolution = block + "out_layers.0.", block + "out_layers.3."
    return seen.agreed((convolution + "weight", 0), (convolution + "bias", 0), (norm + "weight", 0))


def _embedded(seen: Evidence, outputs: int) -> int:
    """Channels that the time embedding becomes in the blocks of the first level, one of which is the last output."""
    first, last = "input_blocks.1.0.emb_layers.1.", f"output_blocks.{outputs - 1}.0.emb_layers.1."
    return seen.agreed((first + "weight", 0), (first + "bias", 0), (last + "weight", 0))


def _resampled(seen: Evidence, outputs: int) -> tuple[int, bool]:
    """Residual blocks a level going down, and whether the resamplers lie inside residual blocks.

    A level's last output block ends with the up-sampler: a convolution, or one more residual block.
    """
    for index in range(outputs):
        for place in (1, 2):
            if seen.has(f"output_blocks.{index}.{place}.conv.", at_least=1):
                return index, False
            if seen.has(f"output_blocks.{index}.{place}.in_layers."):
                return index, True
    return outputs - 1, False


def _with_transformer(config: UNetConfig, seen: Evidence) -> UNetConfig:
    """The kind of attention, as the middle block and others have it."""
    attention = "middle_block.1."
    if not seen.has(attention + "transformer_blocks."):
        return config
    axes = most_common((seen.tensors[name].dim() for name in seen.ending(".proj_in.weight")), default=4)
    contexts = (seen.tensors[name] for name in seen.ending(".attn2.to_k.weight", ".attn2.to_v.weight"))
    context = most_common((weight.shape[1] for weight in contexts if weight.dim() == 2), default=0)
    if context < 1:
        raise seen.missing(attention + "transformer_blocks.0.attn2.to_k.weight")
    return replace(
        config,
        use_spatial_transformer=True,
        transformer_depth=seen.count(attention + "transformer_blocks.{}."),
        context_dim=context,
        use_linear_in_transformer=axes == 2,
    )


def first_stage(tensors: Mapping[str, Tensor], where: str) -> FirstStageConfig:
    """The architecture of a first stage, KL or VQ.

    Args:
        tensors: by LDM's names, without any prefix.

    Raises:
        SpectralError: tensors that every first stage has are missing, are empty, or make no first stage together.
    """
    seen = Evidence(tensors, where)
    seen.refuse_empty()
    ch = seen.agreed(
        ("encoder.conv_in.weight", 0), ("encoder.conv_in.bias", 0), ("encoder.down.0.block.0.norm1.weight", 0)
    )
    levels = seen.count("encoder.down.{}.")
    widths = [_made(seen, f"encoder.down.{level}.block.0.") for level in range(levels)]
    for level, wide in enumerate(widths):
        if wide % ch:
            raise SpectralError(
                f"{where}encoder.down.{level}.block.0.conv2.weight makes {wide} channels, no multiple of {ch}; "
                "expected LDM's first stage."
            )
    if not widths:
        raise seen.missing("encoder.down.0.block.0.norm1.weight")
    resolution = 256
    attending = [resolution // 2**level for level in range(levels) if seen.has(f"encoder.down.{level}.attn.0.")]
    embed_dim, codebook = _latent(seen)
    return FirstStageConfig(
        "kl" if codebook is None else "vq",
        embed_dim=embed_dim,
        z_channels=seen.agreed(
            ("post_quant_conv.weight", 0), ("post_quant_conv.bias", 0), ("decoder.conv_in.weight", 1)
        ),
        ch=ch,
        ch_mult=tuple(wide // ch for wide in widths),
        num_res_blocks=seen.count("encoder.down.0.block.{}."),
        attn_resolutions=tuple(attending),
        resolution=resolution,
        in_channels=seen.agreed(("encoder.conv_in.weight", 1), ("decoder.conv_out.weight", 0)),
        out_ch=seen.agreed(("decoder.conv_out.weight", 0), ("decoder.conv_out.bias", 0), ("encoder.conv_in.weight", 1)),
        n_embed=codebook,
    )


def _made(seen: Evidence, block: str) -> int:
    """Channels that a residual block of a first stage makes."""
    return seen.agreed((block + "conv2.weight", 0), (block + "conv1.weight", 0), (block + "norm2.weight", 0))


def _latent(seen: Evidence) -> tuple[int, int | None]:
    """Channels of the latent, and entries of the codebook that a VQ first stage has.

    Raises:
        SpectralError: the tensors between encoder and decoder are those of neither kind.
    """
    codebook = "quantize.embedding.weight"
    if codebook in seen.tensors:
        n_embed = seen.agreed((codebook, 0))
        return seen.agreed(("post_quant_conv.weight", 1), ("quant_conv.weight", 0), (codebook, 1)), n_embed
    embed_dim = seen.agreed(("post_quant_conv.weight", 1))
    moments = seen.agreed(("quant_conv.weight", 0), ("quant_conv.bias", 0))
    if moments == embed_dim:
        raise seen.missing(codebook)
    return embed_dim, None
