"""Settings of diffusers folders: published ones are understood, foreign ones refused in one sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spectral_diffusion.spectral import presets
from spectral_diffusion.spectral.config import ConditioningConfig, ScheduleConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.formats import diffusers_folder
from spectral_diffusion.spectral.formats.diffusers_config import read_clip, read_first_stage, read_schedule
from spectral_diffusion.spectral.formats.diffusers_settings import Settings
from spectral_diffusion.spectral.formats.diffusers_unet import read_unet
from spectral_diffusion.spectral.formats.source import ReadOptions

from .diffusers_models import AS_SAID, MODELS, edit, in_ldm, modules

# --- what is published ---

CELEBAHQ = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.1.2",
    "act_fn": "silu",
    "block_out_channels": [224, 448, 672, 896],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_head_channels": 32,
    "out_channels": 3,
    "sample_size": 64,
    "time_embedding_type": "positional",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
STABLE_DIFFUSION = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
SECOND_STABLE_DIFFUSION = STABLE_DIFFUSION | {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
VQVAE = {
    "_class_name": "VQModel",
    "_diffusers_version": "0.1.2",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "in_channels": 3,
    "latent_channels": 3,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "num_vq_embeddings": 8192,
    "out_channels": 3,
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}


def said(folder: Path, data: dict[str, Any]) -> Settings:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(data))
    return Settings(folder / "config.json")


def test_published_unets_are_those_of_the_preset_table(tmp_path: Path) -> None:
    assert read_unet(said(tmp_path, CELEBAHQ)) == presets.PRESETS["celebahq256"].unet
    stable = replace(presets.PRESETS["text_to_image"].unet, image_size=64)
    assert read_unet(said(tmp_path, STABLE_DIFFUSION)) == stable
    second = replace(
        stable, image_size=96, num_heads=-1, num_head_channels=64, context_dim=1024, use_linear_in_transformer=True
    )
    assert read_unet(said(tmp_path, SECOND_STABLE_DIFFUSION)) == second


def test_published_first_stages_are_those_of_the_preset_table(tmp_path: Path) -> None:
    assert read_first_stage(said(tmp_path, VAE)) == (replace(presets.KL_F8, resolution=512), 0.18215)
    assert read_first_stage(said(tmp_path, VQVAE)) == (presets.VQ_F4, 1.0)


def test_published_schedules_and_towers_are_understood(tmp_path: Path) -> None:
    pndm = {
        "_class_name": "PNDMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    }
    assert read_schedule(said(tmp_path, pndm)) == ScheduleConfig(0.00085, 0.012)
    clip = {
        "_name_or_path": "openai/clip-vit-large-patch14",
        "architectures": ["CLIPTextModel"],
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "vocab_size": 49408,
    }
    assert read_clip(said(tmp_path, clip)) == ConditioningConfig("text", width=768, layers=12, heads=12)
    second = clip | {"hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    assert read_clip(said(tmp_path, second | {"num_hidden_layers": 23})) == ConditioningConfig(
        "text", width=1024, layers=23, heads=16, activation="gelu", pad_token=0
    )


# --- what LDM's layout cannot hold ---


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return diffusers_folder.write(tmp_path / "model", MODELS["clip"], in_ldm(**modules(MODELS["clip"])))


FOREIGN_UNETS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "other class": (CELEBAHQ, {"_class_name": "UNet3DConditionModel"}, "_class_name"),
    "class embedding": (CELEBAHQ, {"class_embed_type": "timestep"}, "class_embed_type"),
    "class table": (STABLE_DIFFUSION, {"num_class_embeds": 1000}, "num_class_embeds"),
    "Stable Diffusion XL": (STABLE_DIFFUSION, {"addition_embed_type": "text_time"}, "addition_embed_type"),
    "depths": (STABLE_DIFFUSION, {"transformer_layers_per_block": [1, 2, 10, 10]}, "transformer_layers_per_block"),
    "dual": (STABLE_DIFFUSION, {"dual_cross_attention": True}, "dual_cross_attention"),
    "only cross": (STABLE_DIFFUSION, {"only_cross_attention": [False, True, True, False]}, "only_cross_attention"),
    "blocks": (CELEBAHQ, {"down_block_types": ["SkipDownBlock2D"] * 4}, "down_block_types"),
    "simple cross": (STABLE_DIFFUSION, {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type"),
    "no middle": (CELEBAHQ, {"mid_block_type": None}, "mid_block_type"),
    "attention differs": (CELEBAHQ, {"up_block_types": ["UpBlock2D"] * 4}, "up_block_types"),
    "block count": (CELEBAHQ, {"down_block_types": ["DownBlock2D"]}, "down_block_types"),
    "resampling differs": (CELEBAHQ, {"downsample_type": "resnet"}, "down_block_types"),
    "no norm": (
        CELEBAHQ,
        {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": ...},
        "attn_norm_num_groups",
    ),
    "groups": (CELEBAHQ, {"norm_num_groups": None}, "norm_num_groups"),
    "padding": (CELEBAHQ, {"downsample_padding": 0}, "downsample_padding"),
    "shift": (CELEBAHQ, {"freq_shift": 1}, "freq_shift"),
    "sines first": (CELEBAHQ, {"flip_sin_to_cos": False}, "flip_sin_to_cos"),
    "fourier": (CELEBAHQ, {"time_embedding_type": "fourier"}, "time_embedding_type"),
    "widths": (CELEBAHQ, {"block_out_channels": [224, 300, 672, 896]}, "block_out_channels"),
    "heads": (STABLE_DIFFUSION, {"attention_head_dim": [5, 8, 20, 20]}, "attention_head_dim"),
    "uneven heads": (STABLE_DIFFUSION, {"attention_head_dim": [7, 7, 7, 7]}, "attention_head_dim"),
    "oblong": (CELEBAHQ, {"sample_size": [64, 48]}, "sample_size"),
    "layers": (STABLE_DIFFUSION, {"layers_per_block": [1, 2, 2, 2]}, "layers_per_block"),
}


@pytest.mark.parametrize("name", FOREIGN_UNETS)
def test_a_unet_that_ldm_has_not_is_refused_by_its_setting(name: str, tmp_path: Path) -> None:
    base, changes, named = FOREIGN_UNETS[name]
    said(tmp_path / "unet", {key: value for key, value in (base | changes).items() if value is not ...})
    with pytest.raises(SpectralError, match=f"^unet/config.json: {named} is .*; expected .*, so choose another"):
        diffusers_folder.read(tmp_path, AS_SAID)


@pytest.mark.parametrize(
    ("base", "changes", "named"),
    [
        (VAE, {"use_quant_conv": False}, "use_quant_conv"),
        (VAE, {"shift_factor": 0.1}, "shift_factor"),
        (VAE, {"latents_mean": [0.0]}, "latents_mean"),
        (VAE, {"mid_block_add_attention": False}, "mid_block_add_attention"),
        (VAE, {"norm_num_groups": 48}, "norm_num_groups"),
        (VAE, {"norm_num_groups": 0}, "norm_num_groups"),
        (VAE, {"scaling_factor": 0}, "scaling_factor"),
        (VAE, {"act_fn": "gelu"}, "act_fn"),
        (VAE, {"_class_name": "AutoencoderTiny"}, "_class_name"),
        (VQVAE, {"norm_type": "spatial"}, "norm_type"),
        (VQVAE, {"num_vq_embeddings": 0}, "num_vq_embeddings"),
        (VQVAE, {"up_block_types": ["AttnUpDecoderBlock2D"] * 3}, "up_block_types"),
    ],
)
def test_a_first_stage_that_ldm_has_not_is_refused(
    base: dict[str, Any], changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    said(tmp_path / "vae", base | changes)
    with pytest.raises(SpectralError, match=f"^vae/config.json: {named} is .*; expected "):
        diffusers_folder.read(tmp_path, AS_SAID)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"beta_schedule": "linear"}, "beta_schedule"),
        ({"beta_schedule": ...}, "beta_schedule"),
        ({"rescale_betas_zero_snr": "yes"}, "rescale_betas_zero_snr"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"prediction_type": "sample"}, "prediction_type"),
        ({"beta_end": "much"}, "beta_end"),
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
    ],
)
def test_a_schedule_that_ldm_has_not_is_refused(changes: dict[str, Any], named: str, whole: Path) -> None:
    edit(whole / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(SpectralError, match=f"^scheduler/scheduler_config.json: {named} is .*; expected "):
        diffusers_folder.read(whole, AS_SAID)


def test_the_prediction_that_a_user_names_needs_no_known_one_in_the_file(whole: Path) -> None:
    edit(whole / "scheduler" / "scheduler_config.json", prediction_type="sample")
    assert diffusers_folder.read(whole, ReadOptions(prediction="eps")).config.schedule.prediction == "eps"


@pytest.mark.parametrize("changes", [{"hidden_act": "relu"}, {"intermediate_size": 100}, {"model_type": "roberta"}])
def test_a_tower_that_is_not_clips_is_refused(changes: dict[str, Any], whole: Path) -> None:
    edit(whole / "text_encoder" / "config.json", **changes)
    with pytest.raises(SpectralError, match=f"^text_encoder/config.json: {next(iter(changes))} is .*; expected "):
        diffusers_folder.read(whole, AS_SAID)
