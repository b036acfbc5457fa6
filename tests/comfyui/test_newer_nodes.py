"""Nodes that core has since 2025: LoRAs by hooks, extracted and trained inside ComfyUI, torch.compile."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from . import test_lora
from .patching import filled
from .prompts import LATENT, LOADER, SAMPLER, Link, node
from .results import latents, models_folder, sample, succeed
from .server import ComfyServer
from .test_merging import write

KINDS = ("text", "none")


@pytest.fixture
def needs(object_info: dict[str, Any]) -> Any:
    """Skips where the version has no node of a name."""

    def check(name: str) -> None:
        if name not in object_info:
            pytest.skip(f"this version of ComfyUI has no {name}")

    return check


@pytest.fixture(scope="module")
def lora(comfy: ComfyServer) -> str:
    weights = load_file(models_folder(comfy) / "text.safetensors")
    unet = test_lora.factors(weights, test_lora.UNET, test_lora.PLACES)
    return test_lora.save_lora(comfy, "newer.safetensors", test_lora.kohya(unet, {}))


def test_a_lora_by_hooks_is_the_lora(comfy: ComfyServer, needs: Any, lora: str) -> None:
    """On both conditions, which are then sampled with hooked weights: as Load LoRA gives it."""
    needs("CreateHookLoraModelOnly")
    made = sample("text")
    made["hook"] = node("CreateHookLoraModelOnly", lora_name=lora, strength_model=0.7)
    for name in ("positive", "negative"):
        hooked: dict[str, Link] = {"cond_NEW": [name, 0], "hooks": ["hook", 0]}
        made[f"hooked {name}"] = node("ConditioningSetProperties", **hooked, strength=1.0, set_cond_area="default")
    links = {"positive": ["hooked positive", 0], "negative": ["hooked negative", 0]}
    made["by hooks"] = node("KSampler", **{**made[SAMPLER]["inputs"], **links})
    made["lora"] = node("LoraLoaderModelOnly", model=[LOADER, 0], lora_name=lora, strength_model=0.7)
    made["loaded"] = node("KSampler", **{**made[SAMPLER]["inputs"], "model": ["lora", 0]})
    by_hooks, loaded, plain = latents(comfy, made, ("by hooks", "loaded", SAMPLER))
    torch.testing.assert_close(by_hooks, loaded, rtol=1e-4, atol=1e-4)
    assert (by_hooks - plain).abs().max() > 1e-2


def test_guidance_of_a_kept_norm_knows_our_network(comfy: ComfyServer, needs: Any) -> None:
    needs("RenormCFG")
    made = sample("text", "renorm")
    made["renorm"] = node("RenormCFG", model=[LOADER, 0], cfg_trunc=100.0, renorm_cfg=0.5)
    made["plain"] = node("KSampler", **{**made[SAMPLER]["inputs"], "model": [LOADER, 0]})
    renormed, plain = latents(comfy, made, (SAMPLER, "plain"))
    assert torch.isfinite(renormed).all() and (renormed - plain).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_an_extracted_lora_is_the_difference_of_two_students(comfy: ComfyServer, needs: Any, kind: str) -> None:
    needs("LoraSave")
    path = models_folder(comfy) / f"{kind}.safetensors"
    generator = torch.Generator().manual_seed(3)
    # Differences that float16, in which core writes them, holds without rounding.
    weights = {
        key: one + torch.randint(-8, 9, one.shape, generator=generator) / 128 for key, one in load_file(path).items()
    }
    write(path, "tuned.safetensors", weights)
    made = sample(kind)
    made["tuned"] = node("SpectralDiffusionLoadCheckpoint", checkpoint="tuned.safetensors")
    made["difference"] = node("ModelMergeSubtract", model1=["tuned", 0], model2=[LOADER, 0], multiplier=1.0)
    settings = {"rank": 8, "lora_type": "full_diff", "bias_diff": True}
    saver = node("LoraSave", filename_prefix="extracted/lora", model_diff=["difference", 0], **settings)
    succeed(comfy, {**made, "save": saver})
    name = taken_over(comfy, "extracted")
    made["lora"] = node("LoraLoaderModelOnly", model=[LOADER, 0], lora_name=name, strength_model=1.0)
    made["with lora"] = node("KSampler", **{**made[SAMPLER]["inputs"], "model": ["lora", 0]})
    made["with tuned"] = node("KSampler", **{**made[SAMPLER]["inputs"], "model": ["tuned", 0]})
    found, expected = latents(comfy, made, ("with lora", "with tuned"))
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()


def taken_over(comfy: ComfyServer, folder: str) -> str:
    """The one file that a prompt wrote into a folder of the output, now among the LoRAs."""
    (written,) = (comfy.distribution.base / "output" / folder).iterdir()
    name = f"{folder}.safetensors"
    shutil.move(written, test_lora.loras(comfy) / name)
    return name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_lora_trained_inside_comfyui(
    comfy: ComfyServer, object_info: dict[str, Any], needs: Any, kind: str, checkpointing: bool
) -> None:
    """A few steps on two pictures change what the model samples; so does the file of it, loaded again."""
    needs("TrainLoraNode")
    made = sample(kind)
    made["pixels"] = node("SpectralDiffusionExampleImages", images="emoji-64", count=2)
    made["encoded"] = node("VAEEncode", pixels=["pixels", 0], vae=[LOADER, 2])
    given = {"model": [LOADER, 0], "latents": ["encoded", 0], "positive": ["positive", 0]}
    settings = {"steps": 3, "learning_rate": 0.01, "training_dtype": "fp32", "existing_lora": "[None]"}
    made["train"] = filled(
        object_info, "TrainLoraNode", **given, **settings, gradient_checkpointing=checkpointing, lora_dtype="fp32"
    )
    made["trained"] = node("LoraModelLoader", model=[LOADER, 0], lora=["train", 1], strength_model=1.0)
    made["with lora"] = node("KSampler", **{**made[SAMPLER]["inputs"], "model": ["trained", 0]})
    found, plain = latents(comfy, made, ("with lora", SAMPLER))
    assert torch.isfinite(found).all() and (found - plain).abs().max() > 1e-3


def test_torch_compile_takes_the_model(comfy: ComfyServer, object_info: dict[str, Any], needs: Any) -> None:
    """The node alone: to compile takes minutes without a graphics card."""
    needs("TorchCompileModel")
    made = sample("text")
    made["compiled"] = filled(object_info, "TorchCompileModel", model=[LOADER, 0])
    made[LATENT]["inputs"]["model"] = ["compiled", 0]
    assert torch.isfinite(latents(comfy, made)[0]).all()
