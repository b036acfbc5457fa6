"""The settings of diffusers' U-Nets as our configuration, and back.

What a setting means is as diffusers 0.42 has it; a missing one has diffusers' own default.
"""

from __future__ import annotations

from typing import Any

from ..config import UNetConfig
from .diffusers_keys import attends
from .diffusers_settings import DIFFUSERS_VERSION, Settings, inexpressible

#: By class: its down, up and middle blocks, those that attend first. Blocks named Resnet… resample in residual blocks.
_BLOCKS = {
    "UNet2DModel": (
        ("AttnDownBlock2D", "DownBlock2D", "ResnetDownsampleBlock2D"),
        ("AttnUpBlock2D", "UpBlock2D", "ResnetUpsampleBlock2D"),
        "UNetMidBlock2D",
    ),
    "UNet2DConditionModel": (
        ("CrossAttnDownBlock2D", "DownBlock2D"),
        ("CrossAttnUpBlock2D", "UpBlock2D"),
        "UNetMidBlock2DCrossAttn",
    ),
}
UNET_CLASSES = tuple(_BLOCKS)

#: What LDM's U-Nets are in every setting that diffusers has and LDM has not.
_PLAIN_UNET: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "downsample_padding": (1,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_scale_factor": (1,),
    "norm_eps": (1e-5,),
    "num_class_embeds": (None,),
    "time_embedding_type": ("positional",),
}
_PLAIN_UNCONDITIONAL: dict[str, tuple[Any, ...]] = {"add_attention": (True,)}
_PLAIN_CONDITIONED: dict[str, tuple[Any, ...]] = {
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
}


def read_unet(settings: Settings, image_size: int | None = None) -> UNetConfig:
    """The U-Net of a config.json whose class is one of `UNET_CLASSES`.

    Args:
        image_size: stands for `sample_size`.

    Raises:
        SpectralError: a setting has a value that LDM's U-Nets cannot have; it is named.
    """
    name = settings.get("_class_name")
    widths = settings.integers("block_out_channels")
    attending = _levels_that_attend(settings, name, len(widths))
    if any(width % widths[0] for width in widths):
        settings.refuse("block_out_channels", "multiples of the first one")
    settings.only(_PLAIN_UNET | {"time_embedding_dim": (None, 4 * widths[0])})
    conditioned = name == "UNet2DConditionModel"
    read = _read_conditioned if conditioned else _read_unconditional
    return UNetConfig(
        in_channels=settings.integer("in_channels"),
        out_channels=settings.integer("out_channels"),
        model_channels=widths[0],
        attention_resolutions=tuple(2**level for level in reversed(range(len(widths))) if attending[level]),
        num_res_blocks=settings.repeated("layers_per_block"),
        channel_mult=tuple(width // widths[0] for width in widths),
        image_size=image_size or settings.side("sample_size") or 64,
        use_spatial_transformer=conditioned,
        use_scale_shift_norm=settings.choice("resnet_time_scale_shift", _TIME, "default"),
        norm_groups=settings.integer("norm_num_groups", 32),
        **read(settings, widths, attending),
    )


_TIME = {"default": False, "scale_shift": True}


def _levels_that_attend(settings: Settings, name: str, count: int) -> list[bool]:
    """Which resolutions have attention; going down and going up must agree."""
    down, up, middle = _BLOCKS[name]
    settings.only({"mid_block_type": (middle,)})
    going_down = [block == down[0] for block in settings.blocks("down_block_types", down, count)]
    going_up = [block == up[0] for block in settings.blocks("up_block_types", up, count)]
    if going_up != going_down[::-1]:
        settings.refuse("up_block_types", "attention at the same resolutions as in down_block_types")
    return going_down


def _read_unconditional(settings: Settings, widths: tuple[int, ...], attending: list[bool]) -> dict[str, Any]:
    """Fields of UNetConfig that UNet2DModel says in its own way: `attention_head_dim` is the width of a head."""
    settings.only(_PLAIN_UNCONDITIONAL)
    groups = settings.get("norm_num_groups", 32)
    # Without it, a middle block with scale and shift attends to what is not normalised.
    required = (groups,) if settings.get("resnet_time_scale_shift") == "scale_shift" else (None, groups)
    settings.only({"attn_norm_num_groups": required})
    if None not in required and "attn_norm_num_groups" not in settings:
        settings.refuse("attn_norm_num_groups", f"{groups}, as norm_num_groups")
    key = "num_head_channels" if "num_head_channels" in settings else "attention_head_dim"
    alone = key in settings and settings.get(key) is None
    heads = {"num_heads": 1} if alone else {"num_head_channels": settings.integer(key, 8)}
    return {**heads, "resblock_updown": _resamples_in_blocks(settings, attending)}


def _resamples_in_blocks(settings: Settings, attending: list[bool]) -> bool:
    """Whether residual blocks resample; all resolutions, and both ways, must agree."""
    kinds = {"conv": False, "resnet": True}
    down, up = settings.choice("downsample_type", kinds, "conv"), settings.choice("upsample_type", kinds, "conv")
    found: set[bool] = set()
    up_blocks = settings.get("up_block_types")[::-1]
    for level, attention in enumerate(attending):
        if level < len(attending) - 1:
            found.add(down if attention else settings.get("down_block_types")[level] == "ResnetDownsampleBlock2D")
        if level:
            found.add(up if attention else up_blocks[level] == "ResnetUpsampleBlock2D")
    if len(found) > 1:
        settings.refuse("down_block_types", "blocks that all resample in the same way, convolutions or residual blocks")
    return True in found


def _read_conditioned(settings: Settings, widths: tuple[int, ...], attending: list[bool]) -> dict[str, Any]:
    """Fields of UNetConfig that UNet2DConditionModel says in its own way."""
    settings.only(_PLAIN_CONDITIONED)
    alone = settings.get("only_cross_attention", False)
    if any(item is not False for item in (alone if isinstance(alone, list) else [alone])):
        settings.refuse("only_cross_attention", "false")
    return {
        **_read_heads(settings, widths, attending),
        "transformer_depth": settings.repeated("transformer_layers_per_block", 1),
        "context_dim": settings.repeated("cross_attention_dim"),
        "use_linear_in_transformer": settings.flag("use_linear_projection"),
    }


def _read_heads(settings: Settings, widths: tuple[int, ...], attending: list[bool]) -> dict[str, int]:
    """UNet2DConditionModel's `attention_head_dim` is, against its name, how many heads each resolution has."""
    key = "attention_head_dim" if settings.get("num_attention_heads") is None else "num_attention_heads"
    if not isinstance(settings.get(key, 8), list):
        return {"num_heads": settings.integer(key, 8)}
    heads = settings.integers(key)
    if len(heads) != len(widths):
        settings.refuse(key, f"a number for each of the {len(widths)} blocks")
    used = [level for level, attention in enumerate(attending) if attention] + [len(widths) - 1]
    if any(widths[level] % heads[level] for level in used):
        settings.refuse(key, "numbers that divide block_out_channels")
    if len({widths[level] // heads[level] for level in used}) == 1:
        return {"num_head_channels": widths[-1] // heads[-1]}
    if len({heads[level] for level in used}) == 1:
        return {"num_heads": heads[-1]}
    return settings.refuse(key, "the same number of heads, or heads of the same width, in every block")


def write_unet(config: UNetConfig) -> dict[str, Any]:
    """The config.json of a U-Net.

    Raises:
        SpectralError: diffusers has no U-Net like it; the setting at fault is named.
    """
    name = "UNet2DConditionModel" if config.use_spatial_transformer else "UNet2DModel"
    down, up, middle = _BLOCKS[name]
    if config.channel_mult[0] != 1:
        raise inexpressible(f"channel_mult starts with {config.channel_mult[0]}, but diffusers' U-Nets with 1")
    count = len(config.channel_mult)
    plain = down[-1], up[-1]
    if not config.resblock_updown:
        plain = "DownBlock2D", "UpBlock2D"
    elif config.use_spatial_transformer:
        raise inexpressible("resblock_updown together with cross-attention is none of diffusers' U-Nets")
    settings: dict[str, Any] = {
        "_class_name": name,
        "_diffusers_version": DIFFUSERS_VERSION,
        **{key: values[0] for key, values in _PLAIN_UNET.items()},
        "sample_size": config.image_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": [config.model_channels * mult for mult in config.channel_mult],
        "layers_per_block": config.num_res_blocks,
        "down_block_types": [down[0] if attends(config, level) else plain[0] for level in range(count)],
        "mid_block_type": middle,
        "up_block_types": [up[0] if attends(config, level) else plain[1] for level in reversed(range(count))],
        "norm_num_groups": config.norm_groups,
        "resnet_time_scale_shift": "scale_shift" if config.use_scale_shift_norm else "default",
    }
    return settings | (_write_conditioned if config.use_spatial_transformer else _write_unconditional)(config)


def _write_conditioned(config: UNetConfig) -> dict[str, Any]:
    heads: int | list[int] = config.num_heads
    if config.num_head_channels > 0:
        heads = [max(1, config.model_channels * mult // config.num_head_channels) for mult in config.channel_mult]
    return {
        "attention_head_dim": heads,
        "cross_attention_dim": config.context_dim,
        "transformer_layers_per_block": config.transformer_depth,
        "use_linear_projection": config.use_linear_in_transformer,
        **{key: values[0] for key, values in _PLAIN_CONDITIONED.items()},
        "only_cross_attention": False,
    }


def _write_unconditional(config: UNetConfig) -> dict[str, Any]:
    resampling = "resnet" if config.resblock_updown else "conv"
    return {
        "attention_head_dim": _head_width(config),
        "attn_norm_num_groups": config.norm_groups if config.use_scale_shift_norm else None,
        "downsample_type": resampling,
        "upsample_type": resampling,
        **{key: values[0] for key, values in _PLAIN_UNCONDITIONAL.items()},
    }


def _head_width(config: UNetConfig) -> int | None:
    """UNet2DModel knows one width of all heads; None is one head, whatever its width."""
    if config.num_head_channels > 0:
        return config.num_head_channels
    if config.num_heads == 1:
        return None
    mults = [mult for level, mult in enumerate(config.channel_mult) if attends(config, level)]
    widths = {config.model_channels * mult // config.num_heads for mult in (*mults, config.channel_mult[-1])}
    if len(widths) > 1:
        raise inexpressible(
            f"num_heads is {config.num_heads} at several widths, but the heads of diffusers' UNet2DModel are equally "
            "wide everywhere"
        )
    return widths.pop()
