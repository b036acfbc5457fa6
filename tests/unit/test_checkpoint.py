"""Checkpoints: what is saved opens again bit for bit, says what it is, and is never left half-written."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spectral_diffusion.spectral import checkpoint, conditioning
from spectral_diffusion.spectral.autoencoder import build
from spectral_diffusion.spectral.config import ModelConfig, ScheduleConfig, from_dict, to_dict
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.formats import spectral_file, writing
from spectral_diffusion.spectral.formats.source import UNET
from spectral_diffusion.spectral.unet import UNet

from . import tiny

CONFIGS = {
    "student-with-text": ModelConfig(
        "student",
        tiny.CONDITIONED,
        tiny.FIRST_STAGE,
        tiny.TEXT,
        ScheduleConfig(0.00085, 0.012, prediction="v"),
        scale_factor=0.5,
        teacher_sha256="0" * 64,
        training={"command": "spectral-diffusion distill", "statistics": {"loss": 0.1}},
    ),
    "teacher-with-classes": ModelConfig(
        "teacher", replace(tiny.CONDITIONED, resampler="conv"), tiny.FIRST_STAGE, tiny.CLASSES
    ),
    "unconditional-lite": ModelConfig("lite", replace(tiny.UNCONDITIONAL, resampler="conv"), tiny.FIRST_STAGE),
    "unet-alone": ModelConfig("student", tiny.UNCONDITIONAL),
    "autoencoder-alone": ModelConfig("autoencoder", first_stage=tiny.FIRST_STAGE, scale_factor=1.25),
    "vq-autoencoder-alone": ModelConfig(
        "autoencoder", first_stage=replace(tiny.FIRST_STAGE, kind="vq", n_embed=16, attn_resolutions=(8,))
    ),
}
every_config = pytest.mark.parametrize("config", [pytest.param(config, id=name) for name, config in CONFIGS.items()])


def modules(config: ModelConfig) -> dict[str, nn.Module | None]:
    """Random modules for every part that `config` describes."""
    conditioner = conditioning.build(config.conditioning)
    return {
        "unet": tiny.randomized(UNet(config.unet), 1) if config.unet else None,
        "first_stage": tiny.randomized(build(config.first_stage), 2) if config.first_stage else None,
        "conditioner": tiny.randomized(conditioner, 3) if conditioner else None,
    }


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


@every_config
def test_what_is_saved_opens_again_bit_for_bit(config: ModelConfig, tmp_path: Path) -> None:
    parts = modules(config)
    path = checkpoint.save(tmp_path / "model.safetensors", config, **parts)  # type: ignore[arg-type]
    opened = checkpoint.load(path)
    assert opened.config == config
    assert vars(opened.schedule)["prediction"] == config.schedule.prediction
    for name, module in parts.items():
        found = getattr(opened, name)
        assert (found is None) == (module is None)
        if module is None:
            continue
        assert not found.training and not any(p.requires_grad for p in found.parameters())
        state = found.state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in module.state_dict().items())
        assert len(state) == len(module.state_dict())


def test_an_opened_student_computes_what_the_saved_one_did(tmp_path: Path) -> None:
    config = CONFIGS["student-with-text"]
    parts = modules(config)
    opened = checkpoint.load(checkpoint.save(tmp_path / "model.safetensors", config, **parts))  # type: ignore[arg-type]
    x, t, tokens = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randint(49408, (2, 77))

    def predict(unet: Any, conditioner: Any) -> Tensor:
        with torch.no_grad():
            return unet(x, t, conditioner(tokens))  # type: ignore[no-any-return]

    assert torch.equal(predict(opened.unet, opened.conditioner), predict(parts["unet"], parts["conditioner"]))


def test_names_are_ldms_and_stable_diffusions(tmp_path: Path) -> None:
    file = checkpoint.read(tiny.write(tmp_path / "model.safetensors", CONFIGS["student-with-text"]))
    for name in (
        "model.diffusion_model.time_embed.0.weight",
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
        "first_stage_model.encoder.down.0.block.0.conv1.weight",
        "first_stage_model.post_quant_conv.bias",
        "cond_stage_model.transformer.text_model.encoder.layers.1.self_attn.q_proj.bias",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    ):
        assert name in file.tensors


@every_config
def test_metadata_says_what_the_file_is(config: ModelConfig, tmp_path: Path) -> None:
    parts = modules(config)
    path = tmp_path / "some-model.safetensors"
    checkpoint.save(path, config, **parts, license="MIT", extra={"modelspec.tags": "emoji"})  # type: ignore[arg-type]
    said = metadata(path)
    description = json.loads(said["spectral_diffusion"])
    assert description["version"] == 1 and description["kind"] == config.kind
    assert replace(from_dict(ModelConfig, description), version=config.version) == config
    assert said["modelspec.title"] == "some-model" and said["modelspec.license"] == "MIT"
    assert said["modelspec.tags"] == "emoji" and said["modelspec.sai_model_spec"] == "1.0.1"
    assert said["modelspec.architecture"].startswith("spectral-diffusion")
    assert said["modelspec.prediction_type"] == ("v" if config.schedule.prediction == "v" else "epsilon")
    assert said.get("modelspec.resolution") == ("16x16" if config.first_stage else None)
    assert {"modelspec.author", "modelspec.date", "modelspec.implementation"} <= set(said)


@every_config
def test_a_tensor_says_what_the_file_is_where_the_metadata_are_another_s(config: ModelConfig, tmp_path: Path) -> None:
    """As ComfyUI saves: metadata of its own, and marks beside the weights."""
    path = tmp_path / "saved.safetensors"
    checkpoint.save(path, config, **modules(config))  # type: ignore[arg-type]
    original = checkpoint.read(path)
    marks = {"v_pred": torch.zeros(0), "spectral_diffusion": spectral_file.as_tensor(config)}
    save_file({**load_file(path), **marks}, path, {"prompt": "{}"})
    again = checkpoint.read(path)
    assert again.config == original.config == config
    assert again.tensors.keys() == original.tensors.keys()
    checkpoint.load(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_stored_in_half_it_opens_in_float32_with_those_values(dtype: torch.dtype, tmp_path: Path) -> None:
    config = CONFIGS["teacher-with-classes"]
    path = tiny.write(tmp_path / "model.safetensors", config, dtype)
    stored = checkpoint.read(path).part(UNET)
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    unet = checkpoint.load(path).unet
    assert unet is not None
    assert all(torch.equal(tensor, stored[key].float()) for key, tensor in unet.state_dict().items())
    half = checkpoint.load(path, dtype=dtype).unet
    assert half is not None and {p.dtype for p in half.parameters()} == {dtype}


def test_sha256_is_of_the_whole_file(tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "model.safetensors", CONFIGS["unet-alone"])
    assert checkpoint.read(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], ids=oct)
def test_the_files_mode_follows_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        path = tiny.write(tmp_path / "model.safetensors", CONFIGS["unet-alone"])
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_folders_are_made_and_an_older_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "model.safetensors"
    tiny.write(path, CONFIGS["unet-alone"])
    tiny.write(path, CONFIGS["autoencoder-alone"])
    assert checkpoint.load(path).config.kind == "autoencoder"
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def breaks_at_once(*_: Any) -> None:
    raise SafetensorError("I/O error: No space left on device")


def breaks_half_way(tensors: Any, path: Path, metadata: Any) -> None:
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("failure", [breaks_at_once, breaks_half_way])
def test_a_failing_write_leaves_the_older_file_and_nothing_else(
    failure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.write(tmp_path / "model.safetensors", CONFIGS["unet-alone"])
    before = path.read_bytes()
    monkeypatch.setattr(writing, "save_file", failure)
    with pytest.raises(SpectralError, match=r"model\.safetensors could not be written.*No space left"):
        tiny.write(path, CONFIGS["autoencoder-alone"])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_may_not_be_written_to_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the refusal is played."""

    def refuse(path: Path, **_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(SpectralError, match=r"model\.safetensors could not be written.*Permission denied"):
        tiny.write(tmp_path / "model.safetensors", CONFIGS["unet-alone"])
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(SpectralError, match=r"taken.model\.safetensors could not be written"):
        tiny.write(tmp_path / "taken" / "model.safetensors", CONFIGS["unet-alone"])


def test_a_folder_in_the_place_of_the_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(SpectralError, match="could not be written"):
        tiny.write(tmp_path / "model.safetensors", CONFIGS["unet-alone"])
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


@every_config
def test_a_description_survives_json(config: ModelConfig) -> None:
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(config)))) == config
