"""The settings of diffusers' networks and schedulers as our configurations, and back.

What a setting means is as diffusers 0.42 has it; a missing one has diffusers' own default.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from ..config import ConditioningConfig, FirstStageConfig, ScheduleConfig, UNetConfig
from ..errors import SpectralError
from .diffusers_keys import attends
from .diffusers_settings import Settings

#: The version that the folders written here were opened with.
DIFFUSERS_VERSION = "0.42.1"

# --- the U-Net ---------------------------------------------------------------------------------------------------------

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
        attention_resolutions=tuple(2**level for level, attention in enumerate(attending) if attention),
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
    if None not in required and "attn_norm_num_groups" not in settings.data:
        settings.refuse("attn_norm_num_groups", f"{groups}, as norm_num_groups")
    key = "num_head_channels" if "num_head_channels" in settings.data else "attention_head_dim"
    alone = key in settings.data and settings.data[key] is None
    heads = {"num_heads": 1} if alone else {"num_head_channels": settings.integer(key, 8)}
    return {**heads, "resblock_updown": _resamples_in_blocks(settings, attending)}


def _resamples_in_blocks(settings: Settings, attending: list[bool]) -> bool:
    """Whether residual blocks resample; all resolutions, and both ways, must agree."""
    kinds = {"conv": False, "resnet": True}
    found: set[bool] = set()
    up_blocks = settings.get("up_block_types")[::-1]
    for level, attention in enumerate(attending):
        if level < len(attending) - 1:  # this one goes down
            plain = settings.get("down_block_types")[level] == "ResnetDownsampleBlock2D"
            found.add(settings.choice("downsample_type", kinds, "conv") if attention else plain)
        if level:
            plain = up_blocks[level] == "ResnetUpsampleBlock2D"
            found.add(settings.choice("upsample_type", kinds, "conv") if attention else plain)
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
    """UNet2DConditionModel's `attention_head_dim` is, against its name, the number of heads, of each resolution even."""
    key = "attention_head_dim" if settings.get("num_attention_heads") is None else "num_attention_heads"
    if not isinstance(settings.get(key, 8), list):
        return {"num_heads": settings.integer(key, 8)}
    heads = settings.integers(key)
    if len(heads) != len(widths):
        settings.refuse(key, f"a number for each of the {len(widths)} blocks")
    used = [level for level, attention in enumerate(attending) if attention] + [len(widths) - 1]
    if len({(widths[level] // heads[level], widths[level] % heads[level]) for level in used}) == 1:
        return {"num_head_channels": max(1, widths[-1] // heads[-1])}
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
        raise _inexpressible(f"channel_mult starts with {config.channel_mult[0]}, but diffusers' U-Nets with 1")
    count = len(config.channel_mult)
    plain = down[-1], up[-1]
    if not config.resblock_updown:
        plain = "DownBlock2D", "UpBlock2D"
    elif config.use_spatial_transformer:
        raise _inexpressible("resblock_updown together with cross-attention is none of diffusers' U-Nets")
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
        raise _inexpressible(
            f"num_heads is {config.num_heads} at several widths, but the heads of diffusers' UNet2DModel are equally "
            "wide everywhere"
        )
    return widths.pop()


def _inexpressible(reason: str) -> SpectralError:
    return SpectralError(f"A diffusers folder cannot hold this model: {reason}; keep it as .safetensors.")


# --- the first stage ---------------------------------------------------------------------------------------------------

_STAGE_KINDS: dict[str, Literal["kl", "vq"]] = {"AutoencoderKL": "kl", "VQModel": "vq"}
FIRST_STAGE_CLASSES = tuple(_STAGE_KINDS)
_STAGE_BLOCKS = ("AttnDownEncoderBlock2D", "DownEncoderBlock2D"), ("AttnUpDecoderBlock2D", "UpDecoderBlock2D")
_PLAIN_STAGE: dict[str, tuple[Any, ...]] = {"act_fn": ("silu", "swish"), "mid_block_add_attention": (True,)}
_PLAIN_KL: dict[str, tuple[Any, ...]] = {
    "latents_mean": (None,),
    "latents_std": (None,),
    "shift_factor": (None, 0),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}
_PLAIN_VQ: dict[str, tuple[Any, ...]] = {"lookup_from_codebook": (False,), "norm_type": ("group",)}


def read_first_stage(settings: Settings) -> tuple[FirstStageConfig, float]:
    """The first stage of a config.json whose class is one of `FIRST_STAGE_CLASSES`, and its scale factor.

    Raises:
        SpectralError: a setting has a value that LDM's first stages cannot have; it is named.
    """
    kind = _STAGE_KINDS[settings.get("_class_name")]
    settings.only(_PLAIN_STAGE | (_PLAIN_KL if kind == "kl" else _PLAIN_VQ) | {"norm_num_groups": (32,)})
    widths = settings.integers("block_out_channels")
    if any(width % widths[0] for width in widths):
        settings.refuse("block_out_channels", "multiples of the first one")
    down, up = (
        settings.blocks(key, options, len(widths))
        for key, options in zip(("down_block_types", "up_block_types"), _STAGE_BLOCKS, strict=True)
    )
    attending = [block == _STAGE_BLOCKS[0][0] for block in down]
    if [block == _STAGE_BLOCKS[1][0] for block in up] != attending[::-1]:
        settings.refuse("up_block_types", "attention at the same resolutions as in down_block_types")
    latent = settings.integer("latent_channels")
    codes = settings.get("vq_embed_dim") is not None and kind == "vq"
    # LDM names the attention's resolutions by their sides, which must differ.
    resolution = max(settings.side("sample_size") or 256, 2 ** (len(widths) - 1))
    config = FirstStageConfig(
        kind,
        embed_dim=settings.integer("vq_embed_dim") if codes else latent,
        z_channels=latent,
        ch=widths[0],
        ch_mult=tuple(width // widths[0] for width in widths),
        num_res_blocks=settings.integer("layers_per_block", 1),
        attn_resolutions=tuple(resolution // 2**level for level, attention in enumerate(attending) if attention),
        resolution=resolution,
        in_channels=settings.integer("in_channels", 3),
        out_ch=settings.integer("out_channels", 3),
        n_embed=settings.integer("num_vq_embeddings", 256) if kind == "vq" else None,
    )
    return config, settings.number("scaling_factor", 0.18215 if kind == "kl" else 1.0)


def write_first_stage(config: FirstStageConfig, scale_factor: float) -> dict[str, Any]:
    """The config.json of a first stage.

    Raises:
        SpectralError: diffusers has no first stage like it; the setting at fault is named.
    """
    if config.ch_mult[0] != 1:
        raise _inexpressible(f"ch_mult starts with {config.ch_mult[0]}, but diffusers' autoencoders with 1")
    if config.kind == "kl" and config.embed_dim != config.z_channels:
        raise _inexpressible(f"embed_dim {config.embed_dim} differs from z_channels {config.z_channels}")
    own: dict[str, Any] = {key: values[0] for key, values in _PLAIN_KL.items()}
    if config.kind == "vq":
        own = {key: values[0] for key, values in _PLAIN_VQ.items()}
        own |= {"num_vq_embeddings": config.n_embed, "vq_embed_dim": config.embed_dim}
    attending = [config.resolution // 2**level in config.attn_resolutions for level in range(len(config.ch_mult))]
    return {
        "_class_name": "AutoencoderKL" if config.kind == "kl" else "VQModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        **{key: values[0] for key, values in _PLAIN_STAGE.items()},
        "in_channels": config.in_channels,
        "out_channels": config.out_ch,
        "block_out_channels": [config.ch * mult for mult in config.ch_mult],
        "down_block_types": [_STAGE_BLOCKS[0][not attention] for attention in attending],
        "up_block_types": [_STAGE_BLOCKS[1][not attention] for attention in reversed(attending)],
        "layers_per_block": config.num_res_blocks,
        "latent_channels": config.z_channels,
        "norm_num_groups": 32,
        "sample_size": config.resolution,
        "scaling_factor": scale_factor,
        **own,
    }


# --- schedule and conditioners -----------------------------------------------------------------------------------------


def read_schedule(settings: Settings, prediction: Literal["eps", "v"] | None = None) -> ScheduleConfig:
    """The schedule of a scheduler_config.json; how its sampler steps is not part of the model and not read.

    Args:
        prediction: stands for `prediction_type`.

    Raises:
        SpectralError: the betas are not LDM's, or the network predicts something else.
    """
    if settings.data.get("beta_schedule", "linear") != "scaled_linear":
        settings.refuse("beta_schedule", '"scaled_linear"')
    settings.only({"trained_betas": (None,), "rescale_betas_zero_snr": (False, None)})
    kinds: dict[str, Literal["eps", "v"]] = {"epsilon": "eps", "v_prediction": "v"}
    return ScheduleConfig(
        linear_start=settings.number("beta_start", 0.0001),
        linear_end=settings.number("beta_end", 0.02),
        steps=settings.integer("num_train_timesteps", 1000),
        prediction=prediction or settings.choice("prediction_type", kinds, "epsilon"),
    )


def write_schedule(config: ScheduleConfig) -> dict[str, Any]:
    """The scheduler_config.json of DDIM as LDM steps it: never to a step beyond the first, nothing clipped."""
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "beta_start": config.linear_start,
        "beta_end": config.linear_end,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": config.steps,
        "prediction_type": "epsilon" if config.prediction == "eps" else "v_prediction",
        "trained_betas": None,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }


def read_clip(settings: Settings) -> ConditioningConfig:
    """The tower of transformers' CLIPTextModel.

    Raises:
        SpectralError: it is of another shape than Stable Diffusion's.
    """
    width = settings.integer("hidden_size")
    settings.only({"model_type": ("clip_text_model",), "intermediate_size": (4 * width,), "layer_norm_eps": (1e-5,)})
    activations: dict[str, Literal["quick_gelu", "gelu"]] = {"quick_gelu": "quick_gelu", "gelu": "gelu"}
    activation = settings.choice("hidden_act", activations, "quick_gelu")
    return ConditioningConfig(
        "text",
        width=width,
        layers=settings.integer("num_hidden_layers", 12),
        heads=settings.integer("num_attention_heads", 8),
        context_length=settings.integer("max_position_embeddings", 77),
        activation=activation,
        vocabulary=settings.integer("vocab_size", 49408),
        # OpenCLIP's towers (Stable Diffusion 2.x) fill with 0, OpenAI's with the end token.
        pad_token=0 if activation == "gelu" else 49407,
    )


def read_bert(settings: Settings) -> ConditioningConfig:
    """The tower of diffusers' LDMBertModel.

    Raises:
        SpectralError: it is of another shape than LDM's.
    """
    width = settings.integer("d_model", 1280)
    settings.only(
        {
            "model_type": ("ldmbert",),
            "head_dim": (64,),
            "encoder_ffn_dim": (4 * width,),
            "activation_function": ("gelu",),
        }
    )
    return ConditioningConfig(
        "text",
        width=width,
        layers=settings.integer("encoder_layers", 32),
        heads=settings.integer("encoder_attention_heads", 8),
        context_length=settings.integer("max_position_embeddings", 77),
        tower="ldm",
        activation="gelu",
        vocabulary=settings.integer("vocab_size", 30522),
        pad_token=settings.integer("pad_token_id", 0, least=0),
    )


def read_classes(settings: Settings) -> ConditioningConfig:
    """The class embedder of a folder that was written here; diffusers has none like it.

    Raises:
        SpectralError: a setting has a value that it cannot have.
    """
    names = settings.get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        settings.refuse("class_names", "a list of names")
    return ConditioningConfig(
        "class",
        width=settings.integer("width"),
        n_classes=settings.integer("n_classes"),
        null_class=settings.flag("null_class", True),
        class_names=tuple(names),
    )


def write_conditioner(config: ConditioningConfig) -> dict[str, Any]:
    """The config.json of a class embedder or text tower."""
    if config.kind == "class":
        return {
            "_class_name": "ClassEmbedder",
            "width": config.width,
            "n_classes": config.n_classes,
            "null_class": config.null_class,
            "class_names": list(config.class_names),
        }
    shared = {"vocab_size": config.vocabulary, "max_position_embeddings": config.context_length}
    if config.tower == "ldm":
        return shared | {
            "architectures": ["LDMBertModel"],
            "model_type": "ldmbert",
            "d_model": config.width,
            "encoder_layers": config.layers,
            "num_hidden_layers": config.layers,
            "encoder_attention_heads": config.heads,
            "head_dim": 64,
            "encoder_ffn_dim": 4 * config.width,
            "activation_function": "gelu",
            "pad_token_id": config.pad_token,
        }
    return shared | {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": config.layers - config.skip_last,
        "num_attention_heads": config.heads,
        "hidden_act": config.activation,
        "layer_norm_eps": 1e-5,
        "pad_token_id": config.pad_token,
    }


def finite(scale_factor: float) -> bool:
    """Whether a scale factor can be one."""
    return 0 < scale_factor < math.inf
