"""The same tensors in LDM's layout and in diffusers': one table for each kind of network, read in both directions.

LDM counts its blocks through, from input to output; diffusers counts them within each resolution. Tensors differ only
in attention: where LDM has convolutions of one cell, diffusers has linear layers, and where the unconditional U-Net has
one `qkv`, diffusers has three layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import ConditioningConfig, FirstStageConfig, UNetConfig
from ..errors import SpectralError

_BOTH = ("weight", "bias")


@dataclass(frozen=True)
class Row:
    """One tensor of LDM's layout and where diffusers has it.

    Args:
        ldm: its name there, without the prefix of its part.
        diffusers: its name; three names (q, k, v) where LDM joins them head by head.
        axes: axes of length 1 at the end of LDM's tensor that diffusers' has not.
        heads: in which q, k and v are joined.
    """

    ldm: str
    diffusers: tuple[str, ...]
    axes: int = 0
    heads: int = 1


def to_ldm(rows: Iterable[Row], tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of a diffusers file in LDM's names and shapes; views but for the joint q, k and v.

    Args:
        rows: a table below.
        tensors: by diffusers' names; attention may also have the names of older versions.
        where: the file, for the sentence.

    Raises:
        SpectralError: a tensor is missing, left over, or of a shape that no attention layer has; it is named.
    """
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    for row in rows:
        names = [name if name in tensors else former_name(name) for name in row.diffusers]
        for name, wanted in zip(names, row.diffusers, strict=True):
            if name not in tensors:
                raise SpectralError(f"{where} lacks {wanted}, which its config.json calls for; download it again.")
        used.update(names)
        parts = [tensors[name] for name in names]
        if len(parts) == 3 or row.axes:
            parts = [
                _without_axes(part, row.heads, f"{where}: {name}") for name, part in zip(names, parts, strict=True)
            ]
            if len({(part.shape, part.dtype) for part in parts}) > 1:
                raise SpectralError(f"{where}: {', '.join(names)} differ in shape or type; download it again.")
        whole = parts[0] if len(parts) == 1 else _join(parts, row.heads)
        found[row.ldm] = whole[(..., *[None] * row.axes)] if row.axes else whole
    for name in tensors:
        if name not in used:
            raise SpectralError(f"{where} holds {name[:200]!r}, which its config.json has no place for; check the two.")
    return found


def to_diffusers(rows: Iterable[Row], tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of one part in diffusers' names and shapes; views but for those that were a joint q, k and v.

    Args:
        rows: a table below.
        tensors: by LDM's names, without the prefix of the part.
        where: what they are of, for the sentence.

    Raises:
        SpectralError: a tensor is missing, left over, or of a shape that no attention layer has; it is named.
    """
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    for row in rows:
        if row.ldm not in tensors:
            raise SpectralError(f"{where} lacks {row.ldm}, which its configuration calls for; get it again.")
        used.add(row.ldm)
        tensor = tensors[row.ldm]
        if row.axes or len(row.diffusers) == 3:
            heads = row.heads * (3 if len(row.diffusers) == 3 else 1)
            tensor = _without_axes(tensor, heads, f"{where}: {row.ldm}")
        parts = [tensor] if len(row.diffusers) == 1 else _split(tensor, row.heads)
        found.update(zip(row.diffusers, parts, strict=True))
    for name in tensors:
        if name not in used:
            raise SpectralError(f"{where} holds {name[:200]!r}, which its configuration has no place for; check it.")
    return found


#: The layers of an attention block, and what diffusers called them in its first year.
_FORMER = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


def former_name(name: str) -> str:
    """What older diffusers called a tensor of an attention block; other names stay as they are."""
    for now, then in _FORMER.items():
        name = name.replace(now, then)
    return name


def _without_axes(tensor: Tensor, pieces: int, where: str) -> Tensor:
    """A weight [out, in] or bias [out] without axes of length 1 behind it; `out` falls into `pieces` equal ones."""
    shape = list(tensor.shape)
    if not shape or any(size != 1 for size in shape[2:]) or not shape[0] or shape[0] % pieces:
        raise SpectralError(f"{where} has shape {shape}, which is no attention layer's; get the file again.")
    return tensor.reshape(shape[:2])


def _join(parts: list[Tensor], heads: int) -> Tensor:
    """q, k, v, each [heads · d, …] → [heads · 3 · d, …]: within each head q, k, v."""
    return torch.stack([part.unflatten(0, (heads, -1)) for part in parts], dim=1).flatten(0, 2)


def _split(joint: Tensor, heads: int) -> list[Tensor]:
    """The inverse of `_join`."""
    pieces = joint.unflatten(0, (heads, 3, -1))
    return [pieces[:, index].flatten(0, 1) for index in range(3)]


def _layers(ldm: str, diffusers: str, names: Mapping[str, str], kinds: Iterable[str] = _BOTH) -> Iterator[Row]:
    """Rows of layers that are the same in both."""
    for own, other in names.items():
        for kind in kinds:
            yield Row(f"{ldm}{own}.{kind}", (f"{diffusers}{other}.{kind}",))


# --- the U-Net ---


def unet_rows(config: UNetConfig) -> Iterator[Row]:
    """The table of a U-Net that `limits.check` passed: UNet2DConditionModel's with cross-attention, else UNet2DModel's.

    Raises:
        SpectralError: the U-Net is wavelet-gated or has stages, which no network of diffusers is.
    """
    if config.resampler != "conv":
        raise SpectralError("diffusers has no wavelet-gated U-Net; keep this model as .safetensors.")
    if config.stages is not None:
        raise SpectralError("diffusers has no U-Net of stages; keep this model as .safetensors.")
    yield from _layers("", "", {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"})
    yield from _layers("", "", {"input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out"})
    widths = [config.model_channels]
    yield from _down_rows(config, widths)
    channels = widths[-1]
    for own, other in (("0", "resnets.0"), ("2", "resnets.1")):
        yield from _residual_rows(f"middle_block.{own}.", f"mid_block.{other}.", False)
    yield from _attention_rows(config, channels, "middle_block.1.", "mid_block.attentions.0.")
    yield from _up_rows(config, widths)


def attends(config: UNetConfig, level: int) -> bool:
    """Whether attention follows each residual block of a level."""
    return 2**level in config.attention_resolutions


def _down_rows(config: UNetConfig, widths: list[int]) -> Iterator[Row]:
    """`input_blocks`; `widths` receives what each of them leaves as a skip."""
    index = 1
    for level, mult in enumerate(config.channel_mult):
        there, channels = f"down_blocks.{level}.", mult * config.model_channels
        for layer in range(config.num_res_blocks):
            yield from _residual_rows(f"input_blocks.{index}.0.", f"{there}resnets.{layer}.", widths[-1] != channels)
            if attends(config, level):
                yield from _attention_rows(config, channels, f"input_blocks.{index}.1.", f"{there}attentions.{layer}.")
            widths.append(channels)
            index += 1
        if level < len(config.channel_mult) - 1:
            yield from _resampler_rows(config, f"input_blocks.{index}.0.", f"{there}downsamplers.0.", "op")
            widths.append(channels)
            index += 1


def _up_rows(config: UNetConfig, widths: list[int]) -> Iterator[Row]:
    """`output_blocks`, each of which takes one skip off the end of `widths`."""
    index, inputs = 0, widths[-1]
    for level, mult in reversed(list(enumerate(config.channel_mult))):
        there, channels = f"up_blocks.{len(config.channel_mult) - 1 - level}.", mult * config.model_channels
        for layer in range(config.num_res_blocks + 1):
            own, other = f"output_blocks.{index}.", f"{there}resnets.{layer}."
            yield from _residual_rows(f"{own}0.", other, inputs + widths.pop() != channels)
            inputs = channels
            if attends(config, level):
                yield from _attention_rows(config, channels, f"{own}1.", f"{there}attentions.{layer}.")
            if level and layer == config.num_res_blocks:
                place = 2 if attends(config, level) else 1
                yield from _resampler_rows(config, f"{own}{place}.", f"{there}upsamplers.0.", "conv")
            index += 1


_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
}


def _residual_rows(ldm: str, diffusers: str, shortcut: bool) -> Iterator[Row]:
    yield from _layers(ldm, diffusers, _RESIDUAL)
    if shortcut:
        yield from _layers(ldm, diffusers, {"skip_connection": "conv_shortcut"})


def _resampler_rows(config: UNetConfig, ldm: str, diffusers: str, conv: str) -> Iterator[Row]:
    if config.resblock_updown:
        yield from _residual_rows(ldm, diffusers, False)
    else:
        yield from _layers(ldm, diffusers, {conv: "conv"})


def _attention_rows(config: UNetConfig, channels: int, ldm: str, diffusers: str) -> Iterator[Row]:
    if config.use_spatial_transformer:
        yield from _transformer_rows(config.transformer_depth, ldm, diffusers)
        return
    heads = config.num_heads if config.num_head_channels < 1 else channels // config.num_head_channels
    yield from _layers(ldm, diffusers, {"norm": "group_norm"})
    for kind in _BOTH:
        axes = int(kind == "weight")
        yield Row(f"{ldm}qkv.{kind}", tuple(f"{diffusers}to_{name}.{kind}" for name in "qkv"), axes, heads)
        yield Row(f"{ldm}proj_out.{kind}", (f"{diffusers}to_out.0.{kind}",), axes)


def _transformer_rows(depth: int, ldm: str, diffusers: str) -> Iterator[Row]:
    """Cross-attention has the same names in both: diffusers took it from LDM."""
    yield from _layers(ldm, diffusers, {name: name for name in ("norm", "proj_in", "proj_out")})
    for index in range(depth):
        block = f"transformer_blocks.{index}."
        inner = ["norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2", "attn1.to_out.0", "attn2.to_out.0"]
        yield from _layers(ldm + block, diffusers + block, {name: name for name in inner})
        projections = [f"{attention}.to_{name}" for attention in ("attn1", "attn2") for name in "qkv"]
        yield from _layers(ldm + block, diffusers + block, {name: name for name in projections}, ("weight",))


# --- the first stage ---


def first_stage_rows(config: FirstStageConfig) -> Iterator[Row]:
    """The table of a first stage that `autoencoder.check` passed: AutoencoderKL's or VQModel's."""
    last = len(config.ch_mult) - 1
    widths = [config.ch * mult for mult in config.ch_mult]
    for half in ("encoder.", "decoder."):
        yield from _layers(
            half, half, {"conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"} | _MIDDLE
        )
        yield from _cell_attention_rows(f"{half}mid.attn_1.", f"{half}mid_block.attentions.0.")
    for level, width in enumerate(widths):
        inputs = widths[level - 1] if level else config.ch
        own, other = f"encoder.down.{level}.", f"encoder.down_blocks.{level}."
        yield from _level_rows(config, level, own, other, config.num_res_blocks, inputs != width)
        if level < last:
            yield from _layers(own, other, {"downsample.conv": "downsamplers.0.conv"})
        inputs = widths[min(level + 1, last)]
        own, other = f"decoder.up.{level}.", f"decoder.up_blocks.{last - level}."
        yield from _level_rows(config, level, own, other, config.num_res_blocks + 1, inputs != width)
        if level:
            yield from _layers(own, other, {"upsample.conv": "upsamplers.0.conv"})
    yield from _layers("", "", {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"})
    if config.kind == "vq":
        yield from _layers("", "", {"quantize.embedding": "quantize.embedding"}, ("weight",))


_INNER = ("norm1", "conv1", "norm2", "conv2")
_MIDDLE = {f"mid.block_{index + 1}.{name}": f"mid_block.resnets.{index}.{name}" for index in (0, 1) for name in _INNER}


def _level_rows(
    config: FirstStageConfig, level: int, ldm: str, diffusers: str, blocks: int, shortcut: bool
) -> Iterator[Row]:
    for index in range(blocks):
        names = {name: name for name in _INNER} | ({"nin_shortcut": "conv_shortcut"} if shortcut and not index else {})
        yield from _layers(f"{ldm}block.{index}.", f"{diffusers}resnets.{index}.", names)
        if config.resolution // 2**level in config.attn_resolutions:
            yield from _cell_attention_rows(f"{ldm}attn.{index}.", f"{diffusers}attentions.{index}.")


def _cell_attention_rows(ldm: str, diffusers: str) -> Iterator[Row]:
    """Attention of one head, whose layers are 1×1 convolutions in LDM."""
    yield from _layers(ldm, diffusers, {"norm": "group_norm"})
    for own, other in {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}.items():
        for kind in _BOTH:
            yield Row(f"{ldm}{own}.{kind}", (f"{diffusers}{other}.{kind}",), 2 if kind == "weight" else 0)


# --- conditioners ---


def conditioner_rows(config: ConditioningConfig) -> Iterator[Row]:
    """The table of CLIPTextModel, LDMBertModel or, in a form of our own, a class embedder."""
    if config.kind == "class":
        yield from _layers("", "", {"embedding": "embedding"}, ("weight",))
    elif config.kind == "text" and config.tower == "clip":
        yield from _clip_rows(config.layers - config.skip_last)
    elif config.kind == "text":
        yield from _bert_rows(config.layers)


def _clip_rows(layers: int) -> Iterator[Row]:
    own, other = "transformer.text_model.", "text_model."
    names = [f"embeddings.{name}_embedding" for name in ("token", "position")]
    yield from _layers(own, other, {name: name for name in names}, ("weight",))
    inner = [f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
    inner += ["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"]
    for index in range(layers):
        yield from _layers(own, other, {name: name for name in (f"encoder.layers.{index}.{part}" for part in inner)})
    yield from _layers(own, other, {"final_layer_norm": "final_layer_norm"})


def _bert_rows(layers: int) -> Iterator[Row]:
    """LDM counts attention and feed-forward as layers of their own."""
    own, other = "transformer.", "model."
    names = {"token_emb": "embed_tokens", "pos_emb.emb": "embed_positions"}
    yield from _layers(own, other, names, ("weight",))
    for index in range(layers):
        there = f"{other}layers.{index}."
        attention = f"{own}attn_layers.layers.{2 * index}."
        yield from _layers(attention, there, {"0": "self_attn_layer_norm", "1.to_out": "self_attn.out_proj"})
        names = {f"1.to_{name}": f"self_attn.{name}_proj" for name in "qkv"}
        yield from _layers(attention, there, names, ("weight",))
        forward = f"{own}attn_layers.layers.{2 * index + 1}."
        yield from _layers(forward, there, {"0": "final_layer_norm", "1.net.0.0": "fc1", "1.net.2": "fc2"})
    yield from _layers(own, other, {"norm": "layer_norm"})
