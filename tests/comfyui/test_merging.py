"""Core's merges of two students: what they sample is what their weights, added by hand, sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .prompts import LOADER, SAMPLER, node
from .results import latents, models_folder, sample, succeed
from .server import ComfyServer, Prompt

UNET, TEXT = "model.diffusion_model.", "cond_stage_model.transformer.text_model."
Weights = dict[str, Tensor]
#: Adds up one weight of two models; the name is without its prefix.
Mix = Callable[[str, Tensor, Tensor], Tensor]


@pytest.fixture(scope="module", params=["text", "none"])
def kind(request: pytest.FixtureRequest, comfy: ComfyServer) -> Iterator[str]:
    """With transformers ("text") and with plain self-attention ("none"); a second student of each lies beside it."""
    name = str(request.param)
    path = models_folder(comfy) / f"{name}.safetensors"
    generator = torch.Generator().manual_seed(8)
    weights = {
        key: tensor + 0.05 * torch.randn(tensor.shape, generator=generator) for key, tensor in load_file(path).items()
    }
    write(path, "second.safetensors", weights)
    yield name
    path.with_name("second.safetensors").unlink()


def write(like: Path, name: str, weights: Weights) -> None:
    """A file of the same description as `like`."""
    with safe_open(like, "pt") as file:
        metadata = file.metadata()
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, like.with_name(name), metadata)


def mixed(comfy: ComfyServer, kind: str, mix: Mix, prefix: str = UNET) -> Tensor:
    """The latent of the first student with its weights under `prefix` mixed with the second's."""
    path = models_folder(comfy) / f"{kind}.safetensors"
    first, second = load_file(path), load_file(path.with_name("second.safetensors"))
    name = f"mixed-{prefix[:5]}.safetensors"
    write(
        path,
        name,
        {
            key: mix(key.removeprefix(prefix), one, second[key]) if key.startswith(prefix) else one
            for key, one in first.items()
        },
    )
    made = sample(kind)
    made[LOADER]["inputs"]["checkpoint"] = name
    try:
        return latents(comfy, made)[0]
    finally:
        path.with_name(name).unlink()


def merging(kind: str, class_type: str, **ratios: float) -> Prompt:
    """Both students, merged by one of core's nodes, then sampled."""
    made = sample(kind, class_type)
    made["second"] = node("SpectralDiffusionLoadCheckpoint", checkpoint="second.safetensors")
    made[class_type] = node(class_type, model1=[LOADER, 0], model2=["second", 0], **ratios)
    return made


def by_block(name: str, one: Tensor, other: Tensor) -> Tensor:
    """As Model Merge Blocks below: what names no block goes with the input blocks."""
    ratio = 0.5 if name.startswith("middle") else 0.9 if name.startswith("out") else 0.2
    return ratio * one + (1 - ratio) * other


MERGES: dict[str, tuple[dict[str, float], Mix]] = {
    "ModelMergeSimple": ({"ratio": 0.3}, lambda _name, one, other: 0.3 * one + 0.7 * other),
    "ModelMergeBlocks": ({"input": 0.2, "middle": 0.5, "out": 0.9}, by_block),
    "ModelMergeAdd": ({}, lambda _name, one, other: one + other),
    "ModelMergeSubtract": ({"multiplier": 0.5}, lambda _name, one, other: 0.5 * one - 0.5 * other),
}


@pytest.mark.parametrize("class_type", MERGES)
def test_merges_of_unets_are_sums_of_weights(comfy: ComfyServer, kind: str, class_type: str) -> None:
    ratios, mix = MERGES[class_type]
    (found,) = latents(comfy, merging(kind, class_type, **ratios))
    torch.testing.assert_close(found, mixed(comfy, kind, mix), rtol=1e-4, atol=1e-4)
    (first,) = latents(comfy, sample(kind))
    assert (found - first).abs().max() > 1e-2
    assert "SHAPE MISMATCH" not in comfy.log.read_text(errors="replace")


@pytest.mark.parametrize("kind", ["text"], indirect=True)
def test_a_merge_of_text_towers(comfy: ComfyServer, kind: str) -> None:
    made = sample(kind, clip=("CLIPMergeSimple", 0))
    made["second"] = node("SpectralDiffusionLoadCheckpoint", checkpoint="second.safetensors")
    made["CLIPMergeSimple"] = node("CLIPMergeSimple", clip1=[LOADER, 1], clip2=["second", 1], ratio=0.3)
    (found,) = latents(comfy, made)
    expected = mixed(comfy, kind, lambda _name, one, other: 0.3 * one + 0.7 * other, TEXT)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_merge_of_merges(comfy: ComfyServer, kind: str) -> None:
    """The second merge takes over the patches of the first."""
    made = merging(kind, "ModelMergeSimple", ratio=0.5)
    made["again"] = node("ModelMergeSimple", model1=[LOADER, 0], model2=["ModelMergeSimple", 0], ratio=0.5)
    made["sampler"]["inputs"]["model"] = ["again", 0]
    expected = mixed(comfy, kind, lambda _name, one, other: 0.75 * one + 0.25 * other)
    torch.testing.assert_close(latents(comfy, made)[0], expected, rtol=1e-4, atol=1e-4)


def test_students_of_other_shapes_run_with_what_fits(comfy: ComfyServer) -> None:
    """Core leaves out, with a line in the log, what has another shape; the prompt goes through, the page is told."""
    made = sample("text", "merge")
    made["second"] = node("SpectralDiffusionLoadCheckpoint", checkpoint="vq.safetensors")
    made["merge"] = node("ModelMergeSimple", model1=[LOADER, 0], model2=["second", 0], ratio=0.9)
    saved = {**made, "saved": node("SaveLatent", samples=[SAMPLER, 0], filename_prefix="test")}
    (notice,) = succeed(comfy, saved).notices
    assert "merge models of one architecture" in notice["detail"] and "diffusion_model." in notice["detail"]
    (found,) = latents(comfy, made)
    assert torch.isfinite(found).all() and found.shape[1] == 4
