"""Folders of diffusers against diffusers itself: what it saves we read, what we write it opens, with equal outputs."""

from __future__ import annotations

import importlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from spectral_diffusion.spectral import autoencoder, presets
from spectral_diffusion.spectral.config import (
    ModelConfig,
)
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.formats import assumptions, diffusers_folder
from spectral_diffusion.spectral.formats.diffusers_keys import first_stage_rows, to_diffusers, unet_rows
from spectral_diffusion.spectral.formats.source import ReadOptions
from spectral_diffusion.spectral.unet import UNet

from . import tiny
from .diffusers_models import (
    AS_SAID,
    BERT,
    CLIP,
    MODELS,
    STAGES,
    UNETS,
    built,
    close,
    edit,
    in_ldm,
    modules,
    same_stage,
    same_unet,
    strictly,
    theirs,
)

# --- reading ---


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_that_diffusers_saved_computes_the_same(name: str, tmp_path: Path, diffusers: Any) -> None:
    model = theirs(diffusers, UNETS[name])
    model.save_pretrained(tmp_path / "unet")
    source = diffusers_folder.read(tmp_path, AS_SAID)
    assert diffusers_folder.is_folder(tmp_path) and source.config.kind == "teacher"
    same_unet(built(source, "unet"), model)


@pytest.mark.parametrize("name", STAGES)
def test_a_first_stage_that_diffusers_saved_computes_the_same(name: str, tmp_path: Path, diffusers: Any) -> None:
    model = theirs(diffusers, STAGES[name])
    model.save_pretrained(tmp_path / "vae")
    source = diffusers_folder.read(tmp_path, AS_SAID)
    assert source.config.kind == "autoencoder" and source.config.scale_factor == STAGES[name][1]["scaling_factor"]
    same_stage(built(source, "first_stage"), model)


@pytest.mark.parametrize(("name", "folder"), [("ffhq", "unet"), ("vq with attention", "vqvae")])
def test_attention_under_its_former_names_is_read(name: str, folder: str, tmp_path: Path, diffusers: Any) -> None:
    model = theirs(diffusers, (UNETS | STAGES)[name])
    model.save_pretrained(tmp_path / folder)
    file = tmp_path / folder / "diffusion_pytorch_model.safetensors"
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for key, tensor in load_file(file).items():
        for now, then in former.items():
            key = key.replace(now, then)
        renamed[key] = tensor
    save_file(renamed, file)
    assert any("proj_attn" in key for key in renamed)
    source = diffusers_folder.read(tmp_path, AS_SAID)
    (same_unet if folder == "unet" else same_stage)(built(source, "unet" if folder == "unet" else "first_stage"), model)


@pytest.mark.parametrize("saved", ["sharded", "fp16", "bin", "alone"])
def test_every_way_of_saving_is_read(saved: str, tmp_path: Path, diffusers: Any) -> None:
    model, folder = theirs(diffusers, UNETS["ffhq"]), tmp_path / "unet"
    options = {
        "sharded": {"max_shard_size": "500KB"},
        "fp16": {"variant": "fp16"},
        "bin": {"safe_serialization": False},
        "alone": {},
    }
    model.save_pretrained(folder, **options[saved])
    assert len(list(folder.iterdir())) == 2 or saved == "sharded"
    same_unet(built(diffusers_folder.read(folder if saved == "alone" else tmp_path, AS_SAID), "unet"), model)


def test_averaged_weights_are_taken_where_there_are_some(tmp_path: Path, diffusers: Any) -> None:
    plain, averaged = (theirs(diffusers, UNETS["ffhq"], seed) for seed in (1, 2))
    plain.save_pretrained(tmp_path / "unet")
    averaged.register_to_config(decay=0.9999, optimization_step=100, use_ema_warmup=False)
    averaged.save_pretrained(tmp_path / "unet_ema")
    source = diffusers_folder.read(tmp_path, AS_SAID)
    same_unet(built(source, "unet"), averaged)
    assert not any("ignored" in note for note in source.notes)
    same_unet(built(diffusers_folder.read(tmp_path, ReadOptions(ema=False)), "unet"), plain)


def test_options_stand_above_the_folder(tmp_path: Path, diffusers: Any) -> None:
    model = theirs(diffusers, UNETS["ffhq"])
    model.save_pretrained(tmp_path / "unet")
    theirs(diffusers, STAGES["vq-f4"]).save_pretrained(tmp_path / "vqvae")
    options = ReadOptions(head_channels=32, prediction="v", image_size=24, scale_factor=0.5)
    config = diffusers_folder.read(tmp_path, options).config
    assert config.unet is not None and config.unet.num_head_channels == 32 and config.unet.image_size == 24
    assert config.schedule.prediction == "v" and config.scale_factor == 0.5
    wider = diffusers.UNet2DModel(**{**UNETS["ffhq"][1], "attention_head_dim": 32}).eval()
    wider.load_state_dict(model.state_dict())
    same_unet(built(diffusers_folder.read(tmp_path, options), "unet"), wider)


def test_a_setting_that_nobody_knows_is_told_of(tmp_path: Path, diffusers: Any) -> None:
    theirs(diffusers, UNETS["ffhq"]).save_pretrained(tmp_path / "unet")
    edit(tmp_path / "unet" / "config.json", sparkle=3, sample_size=None)
    source = diffusers_folder.read(tmp_path, AS_SAID)
    assert [word for word in ("sparkle", "sample_size", "scheduler") if word in " ".join(source.notes)] == [
        "sparkle",
        "sample_size",
        "scheduler",
    ]


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read_again_bit_for_bit(name: str, tmp_path: Path) -> None:
    config = MODELS[name]
    tensors = in_ldm(**modules(config))
    folder = diffusers_folder.write(tmp_path / "new" / "folder", config, tensors)
    assert [item.name for item in folder.parent.iterdir()] == ["folder"]
    source = diffusers_folder.read(folder, AS_SAID)
    expected = (assumptions.WITHOUT_CONDITIONER,) if name == "external" else ()
    assert source.config == config and source.notes == expected
    assert set(source.tensors) == set(tensors)
    assert all(torch.equal(source.tensors[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_diffusers_opens_and_computes_the_same(name: str, tmp_path: Path, diffusers: Any) -> None:
    config = MODELS[name]
    ours = modules(config)
    folder = diffusers_folder.write(tmp_path / "folder", config, in_ldm(**ours))
    if config.unet is not None:
        kind = diffusers.UNet2DConditionModel if config.unet.use_spatial_transformer else diffusers.UNet2DModel
        same_unet(ours["unet"], strictly(kind, folder / "unet"))
        scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
        betas = torch.linspace(config.schedule.linear_start**0.5, config.schedule.linear_end**0.5, 1000) ** 2
        torch.testing.assert_close(scheduler.betas, betas)
        assert scheduler.final_alpha_cumprod == scheduler.alphas_cumprod[0]
    assert config.first_stage is not None
    kind = diffusers.AutoencoderKL if config.first_stage.kind == "kl" else diffusers.VQModel
    (part,) = (folder / part for part in ("vae", "vqvae") if (folder / part).exists())
    other = strictly(kind, part)
    same_stage(ours["first_stage"], other)
    assert other.config.scaling_factor == config.scale_factor


@pytest.mark.parametrize("name", ["unconditional", "unconditional, KL"])
def test_the_unconditional_pipeline_runs(name: str, tmp_path: Path, diffusers: Any) -> None:
    config = MODELS[name]
    folder = diffusers_folder.write(tmp_path / "folder", config, in_ldm(**modules(config)))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    assert type(pipeline) is diffusers.LDMPipeline
    pipeline.set_progress_bar_config(disable=True)
    (image,) = pipeline(num_inference_steps=2, output_type="numpy").images
    side = 8 * config.first_stage.downscale  # type: ignore[union-attr]
    assert image.shape == (side, side, 3) and image.std() > 0.01


def test_the_text_pipeline_runs_with_a_tokenizer_from_elsewhere(tmp_path: Path, diffusers: Any) -> None:
    config = MODELS["clip"]
    ours = modules(config)
    folder = diffusers_folder.write(tmp_path / "folder", config, in_ldm(**ours))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, tokenizer=None)
    assert type(pipeline) is diffusers.StableDiffusionPipeline
    pipeline.set_progress_bar_config(disable=True)
    tokens = torch.randint(0, 49408, (1, 77), generator=torch.Generator().manual_seed(0))
    states = pipeline.text_encoder(tokens)[0].detach()
    close(ours["conditioner"](tokens), states)
    (image,) = pipeline(
        prompt_embeds=states,
        negative_prompt_embeds=0 * states,
        num_inference_steps=2,
        height=64,
        width=64,
        output_type="np",
    ).images
    assert image.shape == (64, 64, 3) and image.std() > 0.01


def test_ldms_own_text_pipeline_opens(tmp_path: Path, diffusers: Any) -> None:
    config = MODELS["ldm"]
    ours = modules(config)
    folder = diffusers_folder.write(tmp_path / "folder", config, in_ldm(**ours))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, tokenizer=None)
    assert type(pipeline) is diffusers.LDMTextToImagePipeline
    tokens = torch.randint(0, 99, (2, 77), generator=torch.Generator().manual_seed(0))
    close(ours["conditioner"](tokens), pipeline.bert(tokens)[0].detach())


# --- text encoders ---


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("prefix", ["", "text_model."], ids=["transformers 5", "transformers 4"])
def test_clip_computes_as_in_transformers(activation: str, prefix: str, tmp_path: Path, transformers: Any) -> None:
    settings = transformers.CLIPTextConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, hidden_act=activation
    )
    model = tiny.randomized(transformers.CLIPTextModel(settings), 5).eval().requires_grad_(False)
    folder = diffusers_folder.write(tmp_path / "folder", MODELS["clip"], in_ldm(**modules(MODELS["clip"])))
    shutil.rmtree(folder / "text_encoder")
    model.save_pretrained(folder / "text_encoder")
    file = folder / "text_encoder" / "model.safetensors"
    saved = {prefix + name.removeprefix("text_model."): tensor for name, tensor in load_file(file).items()}
    saved[f"{prefix}embeddings.position_ids"] = torch.arange(77)[None]  # as transformers before 4.31 saved them
    save_file(saved, file)
    source = diffusers_folder.read(folder, AS_SAID)
    condition = source.config.conditioning
    assert condition.pad_token == (0 if activation == "gelu" else 49407) and condition.activation == activation
    tokens = torch.randint(0, 49408, (2, 77), generator=torch.Generator().manual_seed(0))
    close(built(source, "conditioner")(tokens), model(tokens).last_hidden_state)


def test_clip_is_written_without_the_layers_that_are_not_run(tmp_path: Path, transformers: Any) -> None:
    condition = replace(CLIP, layers=3, skip_last=1, activation="gelu", pad_token=0, projection=True)
    config = replace(MODELS["clip"], conditioning=condition)
    ours = modules(config)
    folder = diffusers_folder.write(tmp_path / "folder", config, in_ldm(**ours))
    other = strictly(transformers.CLIPTextModel, folder / "text_encoder")
    assert other.config.num_hidden_layers == 2
    tokens = torch.randint(0, 49408, (2, 77), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        close(ours["conditioner"](tokens), other(tokens).last_hidden_state)
    again = diffusers_folder.read(folder, AS_SAID).config.conditioning
    assert again == replace(condition, layers=2, skip_last=0, projection=False)


def test_ldms_encoder_that_diffusers_saved_computes_the_same(tmp_path: Path, diffusers: Any) -> None:
    family = importlib.import_module("diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion")
    settings = family.LDMBertConfig(vocab_size=99, encoder_layers=2, encoder_ffn_dim=128, d_model=32)
    model = tiny.randomized(family.LDMBertModel(settings), 5).eval().requires_grad_(False)
    folder = diffusers_folder.write(tmp_path / "folder", MODELS["ldm"], in_ldm(**modules(MODELS["ldm"])))
    shutil.rmtree(folder / "bert")
    model.save_pretrained(folder / "bert")
    assert "to_logits.weight" in load_file(folder / "bert" / "model.safetensors")
    source = diffusers_folder.read(folder, AS_SAID)
    assert source.config.conditioning == BERT
    tokens = torch.randint(0, 99, (2, 77), generator=torch.Generator().manual_seed(0))
    close(built(source, "conditioner")(tokens), model(tokens)[0])


# --- the published models ---

#: The one whose heads diffusers cannot describe, with heads that it can: shapes are the same.
_HEADS = {"lsun_churches256": {"num_heads": -1, "num_head_channels": 24}}


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_teacher_has_the_names_and_shapes_that_diffusers_builds(
    name: str, diffusers: Any, tmp_path: Path
) -> None:
    preset = presets.PRESETS[name]
    unet = replace(preset.unet, **_HEADS.get(name, {}))  # type: ignore[arg-type]
    with torch.device("meta"):
        networks = {"unet": UNet(unet), "first_stage": autoencoder.build(preset.first_stage)}
    rows = {"unet": unet_rows(unet), "first_stage": first_stage_rows(preset.first_stage)}
    writer = importlib.import_module("spectral_diffusion.spectral.formats.diffusers_writer")
    settings = writer._settings(ModelConfig("teacher", unet, preset.first_stage, preset.conditioning))
    for file, described in settings.items():
        part = {"unet": "unet", "vae": "first_stage", "vqvae": "first_stage"}.get(file.partition("/")[0])
        if part is None:
            continue
        with torch.device("meta"):
            other = getattr(diffusers, described["_class_name"]).from_config(described)
        written = to_diffusers(rows[part], networks[part].state_dict(), name)
        expected = {key: value.shape for key, value in other.state_dict().items()}
        assert {key: value.shape for key, value in written.items()} == expected


def test_eight_heads_of_several_widths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpectralError, match="num_heads is 8 at several widths"):
        config = presets.config("lsun_churches256-teacher")
        with torch.device("meta"):
            unet = UNet(config.unet)  # type: ignore[arg-type]
        diffusers_folder.write(tmp_path / "x", replace(config, first_stage=None), in_ldm(unet=unet))
    assert not list(tmp_path.iterdir())
