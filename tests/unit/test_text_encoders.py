"""Text encoders from local files: every layout gives the tower whose states the library that wrote it makes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.conditioning import build
from spectral_diffusion.spectral.config import ConditioningConfig, ModelConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.formats import text_keys
from spectral_diffusion.training import text_encoders
from spectral_diffusion.training.text_encoders import open_text_encoder
from spectral_diffusion.training.tokens import tokenize

from . import clip, tiny
from .ldm_files import CLIP, CONDITIONED, KL, OPEN_CLIP, Parts

LDM = ConditioningConfig("text", width=32, layers=2, heads=2, tower="ldm", vocabulary=50, pad_token=0)
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def whole() -> Weights:
    """An OpenCLIP model, pictures and all."""
    return {name: tensor.contiguous() for name, tensor in clip.in_open_clip().state_dict().items()}


@pytest.fixture(scope="module")
def expected() -> Tensor:
    return clip.states(clip.in_open_clip(), tokenize(["a red apple"]))


def without_pictures(weights: Weights) -> Weights:
    return {name: tensor for name, tensor in weights.items() if not name.startswith("visual.")}


def in_transformers(weights: Weights) -> Weights:
    return text_keys.to_transformers(text_keys.from_open_clip(without_pictures(weights)))


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


def states(config: ConditioningConfig, weights: Weights, tokens: Tensor) -> Tensor:
    encoder = build(config)
    assert encoder is not None
    encoder.load_state_dict(weights)
    return encoder.eval().requires_grad_(False)(tokens)  # type: ignore[no-any-return]


def written(path: Path, weights: Weights) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    else:
        torch.save({"state_dict": weights} if path.suffix == ".ckpt" else weights, path)
    return path


SIZES = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77), "vocab_size": torch.tensor(49408)}
UNET = {"model.diffusion_model.out.0.weight": torch.zeros(3), "first_stage_model.quant_conv.bias": torch.zeros(3)}
LAYOUTS: dict[str, Callable[[Weights], Weights]] = {
    "open_clip": lambda weights: weights,
    "open_clip-training": lambda weights: prefixed("module.", weights),
    "open_clip-custom": lambda weights: {
        name if name.startswith(("visual.", "logit")) else f"text.{name}": tensor for name, tensor in weights.items()
    },
    "openai": lambda weights: weights | SIZES,
    "transformers": lambda weights: (
        in_transformers(weights)
        | {"logit_scale": torch.ones(()), "visual_projection.weight": torch.ones(2, 2)}
        | {"vision_model.embeddings.class_embedding": torch.ones(2)}
    ),
    "transformers-text": lambda weights: {
        name.removeprefix("text_model."): tensor
        for name, tensor in in_transformers(weights).items()
        if name != "text_projection.weight"
    },
    "stable-diffusion-1": lambda weights: (
        UNET
        | prefixed("cond_stage_model.transformer.", in_transformers(weights))
        | {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}
    ),
    "stable-diffusion-2": lambda weights: UNET | prefixed("cond_stage_model.model.", without_pictures(weights)),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".pt", ".bin"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_states(
    layout: str, suffix: str, whole: Weights, expected: Tensor, tmp_path: Path
) -> None:
    path = written(tmp_path / f"encoder{suffix}", LAYOUTS[layout](whole))
    config, weights = open_text_encoder(path, 128, activation="gelu", skip_last=0)
    assert (config.kind, config.tower, config.layers, config.heads, config.skip_last) == ("text", "clip", 3, 2, 0)
    assert config.projection == (layout != "transformers-text")
    torch.testing.assert_close(states(config, weights, tokenize(["a red apple"])), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("sizes", "layout", "found"),
    [
        ({"width": 768, "layers": 1}, "open_clip", ("quick_gelu", 12, 0, 49407)),
        ({"width": 1024, "layers": 24}, "open_clip", ("gelu", 16, 1, 0)),
        ({"width": 1024, "layers": 23}, "transformers", ("gelu", 16, 0, 0)),
        ({"width": 128, "layers": 1}, "openai", ("quick_gelu", 2, 0, 49407)),
        ({"width": 128, "layers": 1}, "open_clip", ("gelu", 2, 0, 0)),
        ({"width": 128, "layers": 2}, "open_clip", ("gelu", 2, 1, 0)),
    ],
    ids=["vit-l", "vit-h", "vit-h-of-a-diffusers-folder", "openai", "of-one-layer", "others"],
)
def test_what_weights_do_not_tell_is_as_stable_diffusion_has_it(
    sizes: dict[str, int], layout: str, found: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Towers of the published sizes, as names and shapes without numbers."""
    config = ConditioningConfig("text", heads=sizes["width"] // 64, projection=True, **sizes)  # type: ignore[arg-type]
    with torch.device("meta"):
        ours = build(config).state_dict()  # type: ignore[union-attr]
    theirs = text_keys.to_transformers(ours) if layout == "transformers" else text_keys.to_open_clip(ours)
    stored = theirs | (SIZES if layout == "openai" else {})
    monkeypatch.setattr(text_encoders, "open_tensors", lambda _path: (stored, {}))
    opened, _ = open_text_encoder(Path("encoder.pt"))
    assert (opened.activation, opened.heads, opened.skip_last, opened.pad_token) == found


def test_arguments_come_before_what_is_assumed(whole: Weights, tmp_path: Path) -> None:
    path = written(tmp_path / "encoder.safetensors", whole)
    config, _ = open_text_encoder(path, activation="quick_gelu", skip_last=2)
    assert (config.activation, config.skip_last, config.pad_token) == ("quick_gelu", 2, 49407)
    assert open_text_encoder(path)[0].activation == "gelu"


def test_ldms_encoder_opens_without_its_logits(tmp_path: Path) -> None:
    encoder = build(LDM)
    assert encoder is not None
    stored = tiny.randomized(encoder, 2).state_dict()
    logits = {"transformer.to_logits.weight": torch.zeros(50, 32), "transformer.to_logits.bias": torch.zeros(50)}
    path = written(tmp_path / "ldm.ckpt", UNET | prefixed("cond_stage_model.", stored | logits))
    config, weights = open_text_encoder(path, 32)
    tokens = torch.tensor([[2, 7, 3]])
    assert config == LDM and torch.equal(states(config, weights, tokens), encoder(tokens))


def test_our_own_checkpoint_says_what_it_holds(tmp_path: Path) -> None:
    """A tower of 32 channels and 2 heads, which nothing but its description tells."""
    unet = tiny.CONDITIONED
    config = replace(tiny.TEXT, activation="gelu", skip_last=1)
    path = tiny.write(tmp_path / "own.safetensors", ModelConfig("student", unet, tiny.FIRST_STAGE, config))
    opened, weights = open_text_encoder(path)
    assert opened == config and states(opened, weights, tokenize(["a"])).shape == (1, 77, 32)
    classes = tiny.write(tmp_path / "class.safetensors", ModelConfig("student", unet, tiny.FIRST_STAGE, tiny.CLASSES))
    with pytest.raises(SpectralError, match=r"class\.safetensors holds no text encoder: its conditioning is class"):
        open_text_encoder(classes)


def test_a_projection_to_another_width_is_left_out(tmp_path: Path) -> None:
    """As in OpenAI's ResNet-50, whose text tower is of 512 channels and projects to 1024."""
    model = clip.in_open_clip(projected=64)
    path = written(tmp_path / "encoder.safetensors", model.state_dict())
    config, weights = open_text_encoder(path, skip_last=0)
    assert not config.projection
    tokens = tokenize(["a red apple"])
    torch.testing.assert_close(states(config, weights, tokens), clip.states(model, tokens), rtol=1e-4, atol=1e-4)


def test_another_width_is_refused(whole: Weights, tmp_path: Path) -> None:
    path = written(tmp_path / "encoder.safetensors", whole)
    with pytest.raises(SpectralError, match="width 128; expected 768, the U-Net's context_dim"):
        open_text_encoder(path, 768)


def test_a_torchscript_archive_is_refused_with_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "ViT-L-14.pt"
    torch.jit.script(nn.Linear(2, 2)).save(str(path))
    with pytest.raises(SpectralError, match=r"TorchScript archive.*torch\.save\(torch\.jit\.load\('ViT-L-14\.pt'"):
        open_text_encoder(path)


def test_files_without_a_text_encoder_are_refused(whole: Weights, tmp_path: Path) -> None:
    pictures = {name: tensor for name, tensor in whole.items() if name.startswith("visual.")}
    for name, weights in (("pictures.safetensors", pictures), ("unet.ckpt", UNET), ("one.pt", {"a": torch.ones(2)})):
        with pytest.raises(SpectralError, match=rf"{name} holds no text encoder in a layout known here"):
            open_text_encoder(written(tmp_path / name, weights))
    lacking = {name: tensor for name, tensor in whole.items() if name != "ln_final.weight"}
    with pytest.raises(SpectralError, match=r"lacking\.safetensors lacks .*final_layer_norm\.weight"):
        open_text_encoder(written(tmp_path / "lacking.safetensors", lacking))
    with pytest.raises(SpectralError, match="check the path"):
        open_text_encoder(tmp_path / "missing.safetensors")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "encoder.pt")
    with pytest.raises(SpectralError, match="neither a file nor a folder"):
        open_text_encoder(tmp_path / "encoder.pt")


def test_folders_say_what_weights_do_not(tmp_path: Path) -> None:
    """A pipeline's folder and its sub-folder, whatever that is called; the activation is as config.json says."""
    parts = Parts.make(CONDITIONED, KL, replace(CLIP, activation="gelu", pad_token=0))
    config = ModelConfig("teacher", CONDITIONED, KL, replace(CLIP, activation="gelu", pad_token=0))
    assert parts.conditioner is not None
    checkpoint.save(
        tmp_path / "x.safetensors",
        config,
        unet=parts.unet,
        first_stage=parts.first_stage,
        conditioner=parts.conditioner,
    )
    checkpoint.convert(checkpoint.read(tmp_path / "x.safetensors"), tmp_path / "folder", "diffusers")
    shutil.copytree(tmp_path / "folder" / "text_encoder", tmp_path / "another name")
    expected = parts.conditioner.state_dict()
    for folder in (tmp_path / "folder", tmp_path / "folder" / "text_encoder", tmp_path / "another name"):
        described, weights = open_text_encoder(folder, 64)
        assert described == config.conditioning and weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    file = tmp_path / "folder" / "text_encoder" / "model.safetensors"
    assert open_text_encoder(file, 64)[0] == config.conditioning  # as the config.json beside it says
    with pytest.raises(SpectralError, match="width 64; expected 768"):
        open_text_encoder(tmp_path / "folder", 768)
    with pytest.raises(SpectralError, match="unet is a folder without a text encoder"):
        open_text_encoder(tmp_path / "folder" / "unet")


def test_open_clips_tower_is_the_same_from_wherever_it_is_taken(tmp_path: Path) -> None:
    """In a checkpoint, by itself, and through a diffusers folder and back, where a layer that is not run gets lost."""
    tower = replace(OPEN_CLIP, layers=3)
    parts = Parts.make(CONDITIONED, KL, tower)
    tokens = tokenize(["a red apple"], pad=0)
    assert parts.conditioner is not None
    config = ModelConfig("teacher", CONDITIONED, KL, tower)
    own = checkpoint.save(
        tmp_path / "own.safetensors",
        config,
        unet=parts.unet,
        first_stage=parts.first_stage,
        conditioner=parts.conditioner,
    )
    states = [parts.conditioner(tokens)]
    for name, layout in (
        ("ldm.ckpt", "ldm"),
        ("folder", "diffusers"),
        ("back.safetensors", "ldm"),
        ("end", "diffusers"),
    ):
        assert not any(
            "skip_last" in said for said in checkpoint.convert(checkpoint.read(own), tmp_path / name, layout)
        )
        own = tmp_path / name
        opened = checkpoint.load(own)
        assert opened.conditioner is not None
        states.append(opened.conditioner(tokens))
        described, weights = open_text_encoder(own)
        module = build(described)
        assert module is not None
        module.load_state_dict(weights)
        states.append(module(tokens))
    assert all(torch.allclose(state, states[0], atol=1e-5) for state in states)


def test_a_damaged_archive_is_refused(whole: Weights, tmp_path: Path) -> None:
    path = written(tmp_path / "encoder.pt", whole)
    shutil.copyfile(path, tmp_path / "cut.pt")
    with open(tmp_path / "cut.pt", "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(SpectralError, match=r"cut\.pt is damaged"):
        open_text_encoder(tmp_path / "cut.pt")
