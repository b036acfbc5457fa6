"""Core's Save Checkpoint and Model Save: what they write of our MODEL, our loader reads, to the same samples."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.config import ConditioningConfig, ModelConfig
from spectral_diffusion.spectral.presets import STABLE_SCALE
from spectral_diffusion.training.cli import main

from ..unit import ldm_files
from ..unit.ldm_files import Parts
from . import test_lora
from .prompts import LOADER, SAMPLER, node
from .results import latents, models_folder, sample, succeed
from .server import ComfyServer, Prompt
from .test_parity import CORE, OURS, loader, results, sampled
from .test_teachers import LDM_TEXT, WORDS

WHOLE = "CheckpointSave"
ALONE = "ModelSave"


@pytest.fixture
def alone(object_info: dict[str, Any]) -> None:
    """Only where core can save a U-Net alone."""
    if ALONE not in object_info:
        pytest.skip("this version of ComfyUI has no Model Save")


@pytest.fixture
def saved(comfy: ComfyServer) -> Iterator[Path]:
    """A place among the server's checkpoints; what is there at the end is removed."""
    path = comfy.distribution.base / "models" / "checkpoints" / "saved.safetensors"
    yield path
    path.unlink(missing_ok=True)


def save(comfy: ComfyServer, prompt: Prompt, path: Path, model: str = LOADER, clip: str = LOADER) -> None:
    """Save MODEL, CLIP and VAE, where the loader's are not changed by other nodes, and move the file to `path`."""
    vae = [LOADER, 2]
    saver = node(WHOLE, model=[model, 0], clip=[clip, 1], vae=vae, filename_prefix="whole/model")
    move(comfy, {**prompt, "save": saver}, path, "whole")


def save_alone(comfy: ComfyServer, prompt: Prompt, path: Path, model: str = LOADER) -> None:
    """Save MODEL alone, and move the file to `path`."""
    move(comfy, {**prompt, "save": node(ALONE, model=[model, 0], filename_prefix="alone/model")}, path, "alone")


def move(comfy: ComfyServer, prompt: Prompt, path: Path, folder: str) -> None:
    output = comfy.distribution.base / "output" / folder
    shutil.rmtree(output, ignore_errors=True)
    succeed(comfy, prompt)
    (written,) = output.iterdir()
    shutil.move(written, path)


def reload(prompt: Prompt, path: Path) -> Prompt:
    """The same, from the saved file."""
    made = {**prompt, LOADER: node("SpectralDiffusionLoadCheckpoint", checkpoint=path.name)}
    return {name: one for name, one in made.items() if name != "save"}


@pytest.mark.parametrize("kind", ["text", "class", "none", "vq", "half"])
def test_a_saved_checkpoint_samples_the_same(comfy: ComfyServer, saved: Path, kind: str) -> None:
    made = sample(kind)
    made["decode"] = node("VAEDecode", samples=[SAMPLER, 0], vae=[LOADER, 2])
    made["again"] = node("VAEEncode", pixels=["decode", 0], vae=[LOADER, 2])
    before = latents(comfy, made, (SAMPLER, "again"))
    save(comfy, made, saved)
    for one, other in zip(before, latents(comfy, reload(made, saved), (SAMPLER, "again")), strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("alone")
def test_what_model_save_leaves_in_its_own_place_is_in_the_list(comfy: ComfyServer) -> None:
    made = sample("none")
    succeed(comfy, {**made, "save": node(ALONE, model=[LOADER, 0], filename_prefix="diffusion_models/own")})
    (written,) = (comfy.distribution.base / "output" / "diffusion_models").glob("own*")
    for one, other in zip(latents(comfy, made), latents(comfy, reload(made, written)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["text", "none"])
def test_the_file_is_the_one_that_was_loaded(comfy: ComfyServer, saved: Path, kind: str) -> None:
    save(comfy, sample(kind), saved)
    original = checkpoint.read(models_folder(comfy) / f"{kind}.safetensors")
    again = checkpoint.read(saved)
    assert again.config == original.config
    assert again.tensors.keys() == original.tensors.keys()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in original.tensors.items())
    checkpoint.load(saved)


def test_a_merge_with_a_lora_is_saved_with_what_they_changed(comfy: ComfyServer, saved: Path) -> None:
    made = sample("text", "lora", ("lora", 1))
    other = models_folder(comfy) / "other.safetensors"
    weights = load_file(models_folder(comfy) / "text.safetensors")
    write_like(models_folder(comfy) / "text.safetensors", other, {name: one * 1.1 for name, one in weights.items()})
    unet = test_lora.factors(weights, test_lora.UNET, test_lora.PLACES)
    text = test_lora.factors(weights, test_lora.TEXT, test_lora.TEXT_PLACES)
    name = test_lora.save_lora(comfy, "for-saving.safetensors", test_lora.kohya(unet, text))
    made["other"] = node("SpectralDiffusionLoadCheckpoint", checkpoint=other.name)
    made["merge"] = node("ModelMergeSimple", model1=[LOADER, 0], model2=["other", 0], ratio=0.5)
    strengths = {"lora_name": name, "strength_model": 1.0, "strength_clip": 1.0}
    made["lora"] = node("LoraLoader", model=["merge", 0], clip=[LOADER, 1], **strengths)
    (before,) = latents(comfy, made)
    save(comfy, made, saved, "lora", "lora")
    (after,) = latents(comfy, reload(sample("text"), saved))
    assert torch.equal(before, after)
    assert (after - latents(comfy, sample("text"))[0]).abs().max() > 1e-2


@pytest.fixture
def vocabulary(comfy: ComfyServer) -> Iterator[None]:
    """What LDM's own text encoder needs beside the model."""
    path = models_folder(comfy) / "bert-base-uncased" / "vocab.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(WORDS) + "\n")
    yield
    path.unlink()


@pytest.mark.usefixtures("vocabulary")
@pytest.mark.parametrize(
    "condition",
    [ldm_files.CLIP, replace(ldm_files.CLIP, projection=True), ldm_files.OPEN_CLIP, LDM_TEXT],
    ids=["openai", "projecting", "openclip", "ldm"],
)
def test_every_text_encoder_is_saved_as_it_was(comfy: ComfyServer, saved: Path, condition: ConditioningConfig) -> None:
    parts = Parts.make(ldm_files.CONDITIONED, ldm_files.KL, condition)
    config = ModelConfig("teacher", ldm_files.CONDITIONED, ldm_files.KL, condition)
    path = saved.with_name("tower-to-save.safetensors")
    checkpoint.save(path, config, unet=parts.unet, first_stage=parts.first_stage, conditioner=parts.conditioner)
    save(comfy, {LOADER: loader(OURS, path.name)}, saved)
    original, again = checkpoint.read(path), checkpoint.read(saved)
    assert again.config == original.config and again.tensors.keys() == original.tensors.keys()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in original.tensors.items())
    path.unlink()


def write_like(path: Path, target: Path, weights: dict[str, torch.Tensor]) -> None:
    with safe_open(path, "pt") as file:
        save_file(weights, target, file.metadata())


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", ["text", "class", "none", "vq"])
def test_a_unet_saved_alone_runs_with_the_rest_of_the_original(comfy: ComfyServer, saved: Path, kind: str) -> None:
    (before,) = latents(comfy, sample(kind))
    save_alone(comfy, sample(kind), saved)
    made = reload(sample(kind), saved)
    if kind == "text":
        made["original"] = node("SpectralDiffusionLoadCheckpoint", checkpoint="text.safetensors")
        for name in ("positive", "negative"):
            made[name]["inputs"]["clip"] = ["original", 1]
    made["latent"] |= {"inputs": {"model": [LOADER, 0], "width": 128, "height": 128, "batch_size": 1}}
    (after,) = latents(comfy, made)
    assert torch.equal(before, after)


@pytest.mark.usefixtures("alone")
def test_a_unet_saved_alone_says_what_it_lacks(comfy: ComfyServer, saved: Path) -> None:
    save_alone(comfy, sample("text"), saved)
    made = reload(sample("text"), saved)
    made["decode"] = node("VAEDecode", samples=["latent", 0], vae=[LOADER, 2])
    made["picture"] = node("PreviewImage", images=["decode", 0])
    assert "holds no first stage; load the VAE that its latents belong to" in comfy.run(made).message
    made = reload(sample("text"), saved)
    made["states"] = node("ProbeConditioning", conditioning=["positive", 0])
    assert "holds no text encoder; load one of width 32 with Load CLIP" in comfy.run(made).message


@pytest.mark.usefixtures("alone")
def test_newer_versions_offer_it_where_core_saves_it(comfy: ComfyServer) -> None:
    """In output/checkpoints, which is one of their model folders."""
    saver = node(WHOLE, model=[LOADER, 0], clip=[LOADER, 1], vae=[LOADER, 2], filename_prefix="checkpoints/offered")
    succeed(comfy, {**sample("none"), "save": saver})
    made = sample("none")
    made[LOADER]["inputs"]["checkpoint"] = "offered_00001_.safetensors"
    assert torch.equal(latents(comfy, made)[0], latents(comfy, sample("none"))[0])


def test_parts_of_another_model_are_a_sentence(comfy: ComfyServer, saved: Path) -> None:
    made = {
        LOADER: node("SpectralDiffusionLoadCheckpoint", checkpoint="class.safetensors"),
        "text": node("SpectralDiffusionLoadCheckpoint", checkpoint="text.safetensors"),
        "vq": node("SpectralDiffusionLoadCheckpoint", checkpoint="vq.safetensors"),
        "save": node(WHOLE, model=[LOADER, 0], clip=["text", 1], vae=[LOADER, 2], filename_prefix="whole/model"),
    }
    assert "This model reads no text" in comfy.run(made).message
    made["save"]["inputs"] |= {"model": ["text", 0], "vae": ["vq", 2]}
    assert "takes latents of 4 channels, its first stage makes 3" in comfy.run(made).message


def test_the_command_line_inspects_and_converts_it(
    comfy: ComfyServer, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(comfy, sample("class"), saved)
    main(["inspect", str(saved)])
    assert "student" in capsys.readouterr().out
    main(["convert", str(saved), str(tmp_path / "class.safetensors")])
    original = checkpoint.read(models_folder(comfy) / "class.safetensors")
    again = checkpoint.read(tmp_path / "class.safetensors")
    assert again.config == original.config and again.tensors.keys() == original.tensors.keys()


@pytest.mark.long
def test_a_unet_with_core_s_clip_and_vae_is_a_file_of_stable_diffusion(
    comfy: ComfyServer, stable_one: str, saved: Path
) -> None:
    """A U-Net alone, by our loader; what core saves of it with its own CLIP and VAE, core and we read alike."""
    folder = comfy.distribution.base / "models" / "checkpoints"
    weights = {name: one for name, one in load_file(folder / stable_one).items() if name.startswith(test_lora.UNET)}
    save_file(weights, folder / "unet.safetensors")
    parts: Prompt = {LOADER: loader(CORE, stable_one), "unet": loader(OURS, "unet.safetensors")}
    parts["unet"]["inputs"]["scale_factor"] = STABLE_SCALE  # which a U-Net alone does not tell
    save(comfy, parts, saved, "unet")
    (folder / "unet.safetensors").unlink()
    original, again = checkpoint.read(folder / stable_one).config, checkpoint.read(saved).config
    assert replace(again, preset=original.preset) == original
    before = results(comfy, sampled(CORE, stable_one))
    for which in (CORE, OURS):
        after = results(comfy, sampled(which, saved.name))
        for key in ("states", "latent"):
            assert (after[key] - before[key]).abs().max() < 1e-4 * before[key].abs().max()
