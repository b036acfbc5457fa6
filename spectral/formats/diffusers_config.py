"""The settings of diffusers' first stages, schedulers and text encoders as our configurations, and back.

What a setting means is as diffusers 0.42 and transformers 5 have it; a missing one has their own default.
"""

from __future__ import annotations

from typing import Any, Literal

from ..config import ConditioningConfig, FirstStageConfig, ScheduleConfig
from .diffusers_settings import DIFFUSERS_VERSION, Settings, inexpressible

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
    settings.only(_PLAIN_STAGE | (_PLAIN_KL if kind == "kl" else _PLAIN_VQ))
    widths = settings.integers("block_out_channels")
    if any(width % widths[0] for width in widths):
        settings.refuse("block_out_channels", "multiples of the first one")
    groups = settings.integer("norm_num_groups", 32)
    if widths[0] % groups:
        settings.refuse("norm_num_groups", f"a divisor of the first of block_out_channels, {widths[0]}")
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
        norm_groups=groups,
    )
    return config, settings.number("scaling_factor", 0.18215 if kind == "kl" else 1.0)


def write_first_stage(config: FirstStageConfig, scale_factor: float) -> dict[str, Any]:
    """The config.json of a first stage.

    Raises:
        SpectralError: diffusers has no first stage like it; the setting at fault is named.
    """
    if config.ch_mult[0] != 1:
        raise inexpressible(f"ch_mult starts with {config.ch_mult[0]}, but diffusers' autoencoders with 1")
    if config.kind == "kl" and config.embed_dim != config.z_channels:
        raise inexpressible(f"embed_dim {config.embed_dim} differs from z_channels {config.z_channels}")
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
        "norm_num_groups": config.norm_groups,
        "sample_size": config.resolution,
        "scaling_factor": scale_factor,
        **own,
    }


_PREDICTIONS: dict[str, Literal["eps", "v"]] = {"epsilon": "eps", "v_prediction": "v"}


def read_schedule(settings: Settings, prediction: Literal["eps", "v"] | None = None) -> ScheduleConfig:
    """The schedule of a scheduler_config.json; how its sampler steps is not part of the model and not read.

    Args:
        prediction: stands for `prediction_type`.

    Raises:
        SpectralError: the betas are not LDM's, or the network predicts something else.
    """
    if settings.get("beta_schedule", "linear") != "scaled_linear":
        settings.refuse("beta_schedule", '"scaled_linear"')
    settings.only({"trained_betas": (None,)})
    said = settings.choice("prediction_type", _PREDICTIONS, "epsilon") if prediction is None else prediction
    return ScheduleConfig(
        linear_start=settings.number("beta_start", 0.0001),
        linear_end=settings.number("beta_end", 0.02),
        steps=settings.integer("num_train_timesteps", 1000),
        prediction=said,
        zero_terminal_snr=settings.flag("rescale_betas_zero_snr"),
    )


def write_schedule(config: ScheduleConfig) -> dict[str, Any]:
    """The scheduler_config.json of DDIM as LDM steps it: from step 1 on, to the β of step 0 last, nothing clipped.

    With zero terminal SNR it starts from the last step instead, as `Schedule.ddim_timesteps` says.
    """
    rescaled = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
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
        **(rescaled if config.zero_terminal_snr else {}),
    }


_ACTIVATIONS: dict[str, Literal["quick_gelu", "gelu"]] = {"quick_gelu": "quick_gelu", "gelu": "gelu"}


def read_clip(settings: Settings) -> ConditioningConfig:
    """The tower of transformers' CLIPTextModel.

    Raises:
        SpectralError: it is of another shape than Stable Diffusion's.
    """
    width = settings.integer("hidden_size")
    settings.only({"model_type": ("clip_text_model",), "intermediate_size": (4 * width,), "layer_norm_eps": (1e-5,)})
    activation = settings.choice("hidden_act", _ACTIVATIONS, "quick_gelu")
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
