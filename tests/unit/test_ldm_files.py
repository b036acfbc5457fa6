"""Checkpoints of latent-diffusion and Stable Diffusion: what is in them is found by names and shapes alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spectral_diffusion.spectral import checkpoint, presets
from spectral_diffusion.spectral.config import ConditioningConfig, FirstStageConfig, ScheduleConfig, UNetConfig
from spectral_diffusion.spectral.diffusion import Schedule
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.formats import ldm
from spectral_diffusion.spectral.formats.source import ReadOptions, Source

from . import ldm_files
from .ldm_files import CLASSES, CLIP, CONDITIONED, KL, LDM_TEXT, OPEN_CLIP, UNCONDITIONAL, VQ, VQ_ATTENDING, Parts

MANIFESTS = Path(__file__).parents[1] / "manifests"
TEACHERS = sorted(path.stem for path in MANIFESTS.glob("*.json") if path.stem != "architectures")


def manifest(name: str) -> dict[str, Any]:
    return json.loads((MANIFESTS / f"{name}.json").read_text())  # type: ignore[no-any-return]


def published(name: str) -> dict[str, Tensor]:
    """Every tensor of a published checkpoint, with its name and shape and without numbers."""
    about = manifest(name)
    tensors = {key: torch.empty(shape, device="meta") for key, shape in about["keys"].items()}
    stage = about["config"]["cond_stage"]
    if isinstance(stage, dict) and stage["target"] == "ClassEmbedder":
        rows = stage.get("n_classes", 1000)
        tensors["cond_stage_model.embedding.weight"] = torch.empty(rows, stage["embed_dim"], device="meta")
    return tensors


def read(name: str, tensors: dict[str, Tensor], **options: Any) -> Source:
    source = ldm.read(Path(f"{name}.ckpt"), tensors, {}, ReadOptions(**options))
    for prefix, module in checkpoint._modules(source.config).items():
        part = {key.removeprefix(prefix): value for key, value in source.tensors.items() if key.startswith(prefix)}
        checkpoint.match(module, part, prefix)
    return source


@pytest.mark.parametrize("name", TEACHERS)
def test_every_published_manifest_is_read_key_for_key(name: str) -> None:
    config, original = read(name, published(name)).config, manifest(name)["config"]
    assert config.unet is not None and config.first_stage is not None
    for key, value in original["unet"].items():
        if key not in ("use_checkpoint", "legacy"):
            assert json.loads(json.dumps(getattr(config.unet, key))) == value, key
    for key, value in original["first_stage"]["ddconfig"].items():
        if key not in ("double_z", "dropout"):
            assert json.loads(json.dumps(getattr(config.first_stage, key))) == value, key
    assert config.first_stage.embed_dim == original["first_stage"]["embed_dim"]
    assert config.first_stage.n_embed == original["first_stage"].get("n_embed")
    assert (config.schedule.linear_start, config.schedule.linear_end) == (
        original["linear_start"],
        original["linear_end"],
    )


@pytest.mark.parametrize("name", TEACHERS)
def test_averages_buffers_and_the_discriminator_do_not_disturb(name: str) -> None:
    tensors = published(name)
    unet = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    tensors |= {"model_ema." + key.replace(".", ""): value for key, value in unet.items()}
    tensors |= ldm_files.buffers(0.0015, 0.0155, scale=0.23)
    tensors["first_stage_model.loss.discriminator.main.0.weight"] = torch.empty(64, 3, 4, 4, device="meta")
    config = read(name, tensors).config
    assert config.schedule == ScheduleConfig(0.0015, 0.0155) and config.scale_factor == pytest.approx(0.23)


@pytest.mark.parametrize(("name", "rows", "null"), [("cin256", 1000, False), ("cin256_v2", 1001, True)])
def test_class_embeddings(name: str, rows: int, null: bool) -> None:
    expected = ConditioningConfig("class", width=512, n_classes=rows, null_class=null)
    assert read(name, published(name)).config.conditioning == expected


ARCHITECTURES: dict[str, tuple[UNetConfig, FirstStageConfig, ConditioningConfig]] = {
    "unconditional-vq": (UNCONDITIONAL, VQ, ConditioningConfig()),
    "updown": (
        replace(UNCONDITIONAL, num_heads=8, num_head_channels=-1, use_scale_shift_norm=True, resblock_updown=True),
        VQ,
        ConditioningConfig(),
    ),
    "no-attention-but-in-the-middle": (replace(UNCONDITIONAL, attention_resolutions=()), VQ, ConditioningConfig()),
    "one-level": (
        replace(UNCONDITIONAL, channel_mult=(1,), attention_resolutions=(1,), num_res_blocks=3),
        VQ,
        ConditioningConfig(),
    ),
    "three-levels": (
        replace(UNCONDITIONAL, channel_mult=(1, 2, 3), attention_resolutions=(4, 1), num_res_blocks=2),
        VQ,
        ConditioningConfig(),
    ),
    "class": (CONDITIONED, KL, CLASSES),
    "class-vq-attending": (CONDITIONED, VQ_ATTENDING, replace(CLASSES, n_classes=1000, null_class=False)),
    "clip": (CONDITIONED, KL, CLIP),
    "open-clip": (
        replace(CONDITIONED, use_linear_in_transformer=True, num_heads=-1, num_head_channels=32),
        KL,
        OPEN_CLIP,
    ),
    "ldm-text-deep": (replace(CONDITIONED, transformer_depth=2), KL, LDM_TEXT),
}


def in_files_names(state: dict[str, Tensor], condition: ConditioningConfig) -> dict[str, Tensor]:
    """OpenCLIP's tower under OpenCLIP's names; for LDM's the rows of logits, for CLIP the numbers of places."""
    if condition.tower == "ldm":
        return state | {"cond_stage_model.transformer.to_logits.weight": torch.zeros(100, 64)}
    if condition.kind != "text" or condition.activation == "quick_gelu":
        places = torch.arange(77)[None]
        return state | {"cond_stage_model.transformer.text_model.embeddings.position_ids": places}
    prefix, text = "cond_stage_model.", "cond_stage_model.transformer.text_model."
    renamed = {key: value for key, value in state.items() if not key.startswith(prefix)}
    renamed[prefix + "model.logit_scale"] = torch.tensor(4.6)
    renamed[prefix + "model.text_projection"] = state[prefix + "transformer.text_projection.weight"].T
    renamed[prefix + "model.token_embedding.weight"] = state[text + "embeddings.token_embedding.weight"]
    renamed[prefix + "model.positional_embedding"] = state[text + "embeddings.position_embedding.weight"]
    for kind in ("weight", "bias"):
        renamed[f"{prefix}model.ln_final.{kind}"] = state[f"{text}final_layer_norm.{kind}"]
        for layer in range(condition.layers):
            old, new = f"{text}encoder.layers.{layer}.", f"{prefix}model.transformer.resblocks.{layer}."
            qkv = [state[f"{old}self_attn.{name}_proj.{kind}"] for name in "qkv"]
            renamed[f"{new}attn.in_proj_{kind}"] = torch.cat(qkv)
            names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
            for theirs, ours in {**names, "attn.out_proj": "self_attn.out_proj"}.items():
                renamed[f"{new}{theirs}.{kind}"] = state[f"{old}{ours}.{kind}"]
    return renamed


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_whole_models_come_back_as_they_went(kind: str, suffix: str, tmp_path: Path) -> None:
    unet, stage, condition = ARCHITECTURES[kind]
    parts = Parts.make(unet, stage, condition)
    state = in_files_names(parts.state(), condition) | ldm_files.buffers(scale=0.5)
    options = ReadOptions(
        heads=max(unet.num_heads, 0) or None,
        head_channels=max(unet.num_head_channels, 0) or None,
        image_size=unet.image_size,
    )
    opened = checkpoint.load(ldm_files.write(tmp_path / f"some model{suffix}", state), options=options)
    expected = replace(unet, attention_resolutions=tuple(sorted(unet.attention_resolutions, reverse=True)))
    assert opened.config.unet == expected
    assert (opened.config.first_stage, opened.config.conditioning) == (stage, condition)
    assert (opened.config.schedule, opened.config.scale_factor) == (ScheduleConfig(), 0.5)
    for module, original in (
        (opened.unet, parts.unet),
        (opened.first_stage, parts.first_stage),
        (opened.conditioner, parts.conditioner),
    ):
        loaded = module.state_dict() if module is not None else {}
        for key, value in (original.state_dict() if original is not None else {}).items():
            assert torch.equal(loaded[key], value), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", ""])
def test_a_unet_alone_in_any_precision(prefix: str, suffix: str, dtype: torch.dtype, tmp_path: Path) -> None:
    parts = Parts.make(CONDITIONED, KL, ConditioningConfig())
    state = {prefix + key: value.to(dtype) for key, value in parts.unet.state_dict().items()}
    path = ldm_files.write(tmp_path / f"unet{suffix}", state, wrapped=False)
    opened = checkpoint.load(path, options=ReadOptions(heads=8, image_size=32))
    assert opened.first_stage is None and opened.conditioner is None and opened.unet is not None
    assert opened.config.conditioning == ConditioningConfig("external", width=64)
    parts.unet.load_state_dict({key.removeprefix(prefix): value.float() for key, value in state.items()})
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 5, 64)
    with torch.no_grad():
        assert torch.equal(opened.unet(x, t, context), parts.unet(x, t, context))


@pytest.mark.parametrize("prefix", ["first_stage_model.", ""])
def test_a_first_stage_alone(prefix: str, tmp_path: Path) -> None:
    parts = Parts.make(UNCONDITIONAL, KL, ConditioningConfig())
    state = {prefix + key: value for key, value in parts.first_stage.state_dict().items()}
    state[f"{prefix}loss.logvar"] = torch.zeros(())
    opened = checkpoint.load(ldm_files.write(tmp_path / "kl.ckpt", state))
    assert (opened.config.kind, opened.config.first_stage, opened.unet) == ("autoencoder", KL, None)


def test_a_bare_state_dict_and_a_wrapped_one_are_alike(tmp_path: Path) -> None:
    state = Parts.make(UNCONDITIONAL, VQ, ConditioningConfig()).state()
    bare = checkpoint.read(ldm_files.write(tmp_path / "bare.ckpt", state, wrapped=False))
    wrapped = checkpoint.read(ldm_files.write(tmp_path / "wrapped.ckpt", state))
    assert bare.config == wrapped.config and bare.tensors.keys() == wrapped.tensors.keys()


@pytest.fixture
def averaged() -> dict[str, Tensor]:
    parts = Parts.make(UNCONDITIONAL, VQ, ConditioningConfig())
    return parts.state() | ldm_files.averages(parts.unet)


KEY = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
AVERAGE = "model_ema.diffusion_modelinput_blocks10in_layers2weight"


def test_averages_are_used_unless_they_are_turned_off(averaged: dict[str, Tensor], tmp_path: Path) -> None:
    path = ldm_files.write(tmp_path / "model.ckpt", averaged)
    assert torch.equal(checkpoint.read(path).tensors[KEY], averaged[KEY] * 0.5)
    assert torch.equal(checkpoint.read(path, ReadOptions(ema=False)).tensors[KEY], averaged[KEY])


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_averages_and_buffers_beside_a_bare_unet(prefix: str, tmp_path: Path) -> None:
    unet = Parts.make(UNCONDITIONAL, VQ, ConditioningConfig()).unet
    state = {prefix + key: value for key, value in unet.state_dict().items()}
    path = ldm_files.write(tmp_path / "unet.ckpt", state | ldm_files.averages(unet) | ldm_files.buffers(0.001, 0.02))
    file = checkpoint.read(path)
    assert torch.equal(file.tensors[KEY], unet.state_dict()[KEY.removeprefix("model.diffusion_model.")] * 0.5)
    assert file.config.schedule == ScheduleConfig(0.001, 0.02)


def test_a_missing_average_and_one_of_nothing_are_named(averaged: dict[str, Tensor], tmp_path: Path) -> None:
    fewer = {key: value for key, value in averaged.items() if key != AVERAGE}
    with pytest.raises(SpectralError, match=rf"not {AVERAGE} .*turn ema off"):
        checkpoint.read(ldm_files.write(tmp_path / "fewer.ckpt", fewer))
    checkpoint.load(tmp_path / "fewer.ckpt", options=ReadOptions(ema=False))
    with pytest.raises(SpectralError, match="model_ema.surplus is the average of no weight"):
        checkpoint.read(ldm_files.write(tmp_path / "more.ckpt", averaged | {"model_ema.surplus": torch.ones(1)}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("start", "end"), [(0.0015, 0.0195), (0.0015, 0.0155), (0.00085, 0.012)])
def test_the_schedule_is_the_files_own(start: float, end: float, dtype: torch.dtype) -> None:
    kept = {key: value.to(dtype) for key, value in ldm_files.buffers(start, end, 0.18215).items()}
    state = Parts.make(UNCONDITIONAL, VQ, ConditioningConfig()).state() | kept
    config = ldm.read(Path("x.ckpt"), state, {}, ReadOptions()).config
    assert config.schedule == ScheduleConfig(start, end) and config.scale_factor == 0.18215


@pytest.mark.parametrize("scale", [0.178, 0.18, 0.186, 0.98, 1.02, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_scale_near_a_published_one_stays_what_it_is(scale: float, dtype: torch.dtype) -> None:
    stored = torch.tensor(scale, dtype=dtype)
    state = Parts.make(CONDITIONED, KL, CLASSES).state() | {"scale_factor": stored}
    assert ldm.read(Path("x.ckpt"), state, {}, ReadOptions()).config.scale_factor == pytest.approx(float(stored))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_rounded_published_scale_is_the_published_one(dtype: torch.dtype) -> None:
    stored = torch.tensor(0.18215).half().to(dtype) if dtype == torch.bfloat16 else torch.tensor(0.18215, dtype=dtype)
    state = Parts.make(CONDITIONED, KL, CLASSES).state() | {"scale_factor": stored}
    assert ldm.read(Path("x.ckpt"), state, {}, ReadOptions()).config.scale_factor == 0.18215


def test_an_unpublished_schedule_is_kept_and_one_of_another_form_refused() -> None:
    state = Parts.make(UNCONDITIONAL, VQ, ConditioningConfig()).state()
    own = state | {"betas": Schedule(0.001, 0.03, 500).betas.float()}
    assert ldm.read(Path("x.ckpt"), own, {}, ReadOptions()).config.schedule == ScheduleConfig(0.001, 0.03, 500)
    for betas in (torch.linspace(0.0001, 0.02, 1000), torch.zeros(1000), torch.ones(3, 3), torch.full((9,), torch.nan)):
        with pytest.raises(SpectralError, match="betas"):
            ldm.read(Path("x.ckpt"), state | {"betas": betas}, {}, ReadOptions())


def test_what_shapes_do_not_tell_is_assumed_aloud_and_can_be_set() -> None:
    state = Parts.make(CONDITIONED, KL, ConditioningConfig()).state()
    source = ldm.read(Path("x.ckpt"), state, {}, ReadOptions())
    assert source.config.unet is not None and source.config.unet.num_heads == 8
    said = " ".join(source.notes)
    assert all(word in said for word in ("8 attention heads", "latent size", "scale_factor", "noise schedule"))
    told = ReadOptions(head_channels=16, image_size=48, scale_factor=0.7, prediction="v")
    config = ldm.read(Path("x.ckpt"), state, {}, told).config
    assert config.unet is not None
    assert (config.unet.num_heads, config.unet.num_head_channels, config.unet.image_size) == (-1, 16, 48)
    assert (config.scale_factor, config.schedule.prediction) == (0.7, "v")
    for wrong in ({"heads": 0}, {"heads": 4, "head_channels": 32}, {"scale_factor": float("nan")}):
        with pytest.raises(SpectralError):
            ReadOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["stable_diffusion_1", "stable_diffusion_2"])
@pytest.mark.parametrize(("spread", "prediction"), [(0.02, "eps"), (0.2, "v")])
def test_velocity_is_seen_in_stable_diffusion_2_alone(name: str, spread: float, prediction: str) -> None:
    tensors = {
        f"model.diffusion_model.{k}": v for k, v in presets.build(f"{name}-teacher", device="meta").state_dict().items()
    }
    key = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    tensors[key] = torch.linspace(-spread, spread, 320)
    config = read(name, tensors).config
    assert config.unet == presets.PRESETS[name].unet
    assert config.schedule.prediction == (prediction if name == "stable_diffusion_2" else "eps")
    assert read(name, tensors, prediction="v").config.schedule.prediction == "v"
    said = ldm.read(Path("x"), tensors, {"modelspec.prediction_type": "v"}, ReadOptions())
    assert said.config.schedule.prediction == "v"


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.uint16])
@pytest.mark.parametrize("key", ["betas", "scale_factor", KEY])
def test_numbers_of_strange_types_are_refused(key: str, dtype: torch.dtype, tmp_path: Path) -> None:
    state = Parts.make(UNCONDITIONAL, VQ, ConditioningConfig()).state() | ldm_files.buffers(scale=0.5)
    state[key] = torch.ones_like(state[key]).to(dtype)
    with pytest.raises(SpectralError, match=rf"{key}.*{str(dtype).removeprefix('torch.')}"):
        checkpoint.load(ldm_files.write(tmp_path / "x.safetensors", state))


def test_a_codebook_that_is_missing_is_named() -> None:
    state = Parts.make(UNCONDITIONAL, VQ, ConditioningConfig()).state()
    del state["first_stage_model.quantize.embedding.weight"]
    with pytest.raises(SpectralError, match=r"quantize\.embedding\.weight is missing"):
        ldm.read(Path("x.ckpt"), state, {}, ReadOptions())


def test_long_names_and_shapes_make_no_long_sentences(tmp_path: Path) -> None:
    state = Parts.make(UNCONDITIONAL, VQ, ConditioningConfig()).state()
    for more in ({"model.diffusion_model." + "b" * 10**6: torch.ones(1)}, {KEY: torch.ones([1] * 60)}):
        with pytest.raises(SpectralError) as caught:
            checkpoint.load(ldm_files.write(tmp_path / "x.safetensors", state | more))
        assert len(str(caught.value)) < 700


OTHERS = {
    "conditioner.embedders.0.transformer.x": "Stable Diffusion XL",
    "model.diffusion_model.double_blocks.0.img_attn.qkv.weight": "Flux",
    "lora_unet_down_blocks_0.lora_up.weight": "LoRA",
    "control_model.input_hint_block.0.weight": "ControlNet",
    "down_blocks.0.resnets.0.conv1.weight": "one part of a diffusers folder",
    "encoder.down_blocks.0.resnets.0.conv1.weight": "one part of a diffusers folder",
    "text_model.embeddings.token_embedding.weight": "text encoder alone",
    "layer.0.weight": "holds no latent diffusion model",
}


@pytest.mark.parametrize(("key", "says"), OTHERS.items(), ids=OTHERS.values())
def test_other_kinds_of_files_are_called_by_their_names(key: str, says: str) -> None:
    with pytest.raises(SpectralError, match=says):
        ldm.read(Path("x.ckpt"), {key: torch.ones(1)}, {}, ReadOptions())
