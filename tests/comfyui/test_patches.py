"""Core's nodes that patch a MODEL: on a teacher they do what they do to core's own, and they reach the students."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from . import patching, stable
from .patching import GUIDANCE, PATCHES, SILENT
from .prompts import LOADER, SAMPLER, node
from .results import latents, sample
from .server import ComfyServer, Prompt
from .test_parity import CORE, OURS, loader

CONTROL, BOX = "ControlNet", "GLIGEN"
PLAIN = "plain"
TEXT = "a red apple, blue sky, on a table"


@pytest.fixture(scope="module")
def files(comfy: ComfyServer) -> Iterator[None]:
    """A hypernetwork, a GLIGEN model, a ControlNet and its picture."""
    models = comfy.distribution.base / "models"
    patching.write_hypernetwork(models / "hypernetworks" / "hyper.pt", (32, 64, 320, 640, 768))
    patching.write_gligen(models / "gligen" / "gligen.safetensors", stable.UNET_ONE)
    (models / "controlnet").mkdir(exist_ok=True)
    patching.write_controlnet(models / "controlnet" / "control.safetensors", stable.UNET_ONE)
    Image.radial_gradient("L").resize((96, 64)).save(comfy.distribution.base / "input" / "control.png")
    yield
    (models / "gligen" / "gligen.safetensors").unlink()
    (models / "hypernetworks" / "hyper.pt").unlink()
    (models / "controlnet" / "control.safetensors").unlink()


def here(object_info: dict[str, Any]) -> list[str]:
    """The patches that this version of ComfyUI has."""
    return [name for name, (class_type, _) in PATCHES.items() if class_type in object_info]


def sampler(model: str, positive: str = "positive", negative: str = "negative") -> dict[str, Any]:
    return node(
        "KSampler",
        model=[model, 0],
        positive=[positive, 0],
        negative=[negative, 1 if negative == "controlled" else 0],
        latent_image=["latent", 0],
        seed=5,
        steps=2,
        cfg=4.0,
        sampler_name="euler",
        scheduler="normal",
        denoise=1.0,
    )


def teacher(which: str, name: str, object_info: dict[str, Any]) -> Prompt:
    """One model, 12 × 8 cells, sampled through every patch; the samplers are named for the patches."""
    made: Prompt = {
        LOADER: loader(which, name),
        "positive": node("CLIPTextEncode", clip=[LOADER, 1], text=TEXT),
        "negative": node("CLIPTextEncode", clip=[LOADER, 1], text="a tree"),
        "empty": node("CLIPTextEncode", clip=[LOADER, 1], text=""),
        "latent": node("EmptyLatentImage", width=96, height=64, batch_size=1),
        PLAIN: sampler(LOADER),
        **controlled("positive", "negative"),
        CONTROL: sampler(LOADER, "controlled", "controlled"),
        **boxed("positive"),
        BOX: sampler(LOADER, "boxed"),
    }
    for patch in here(object_info):
        made[f"patched {patch}"] = patching.patch(object_info, patch, [LOADER, 0])
        made[patch] = sampler(f"patched {patch}")
    return made


def controlled(positive: str, negative: str) -> Prompt:
    """Apply ControlNet to both conditionings."""
    conditioning = {"positive": [positive, 0], "negative": [negative, 0]}
    strength = {"strength": 0.7, "start_percent": 0.0, "end_percent": 1.0}
    net: dict[str, Any] = {"control_net": ["control", 0], "image": ["picture", 0]}
    return {
        "control": node("ControlNetLoader", control_net_name="control.safetensors"),
        "picture": node("LoadImage", image="control.png"),
        "controlled": node("ControlNetApplyAdvanced", **conditioning, **net, **strength),
    }


def boxed(positive: str) -> Prompt:
    """A text of its own in a box of the picture."""
    box = {"text": "a tree", "width": 48, "height": 40, "x": 24, "y": 8}
    parts: dict[str, Any] = {"conditioning_to": [positive, 0], "gligen_textbox_model": ["gligen", 0]}
    return {
        "gligen": node("GLIGENLoader", gligen_name="gligen.safetensors"),
        "boxed": node("GLIGENTextBoxApply", clip=[LOADER, 1], **parts, **box),
    }


@pytest.fixture(scope="module")
def teachers(
    comfy: ComfyServer, object_info: dict[str, Any], stable_one: str, files: None
) -> dict[str, tuple[Tensor, Tensor]]:
    """By patch, what core's loader and ours sample."""
    names = [PLAIN, CONTROL, BOX, *here(object_info)]
    found = [latents(comfy, teacher(which, stable_one, object_info), names) for which in (CORE, OURS)]
    return dict(zip(names, zip(*found, strict=True), strict=True))


@pytest.mark.long
@pytest.mark.parametrize("name", [PLAIN, CONTROL, BOX, *PATCHES])
def test_a_patched_teacher_is_what_core_makes_of_it(teachers: dict[str, tuple[Tensor, Tensor]], name: str) -> None:
    if name not in teachers:
        pytest.skip("this version of ComfyUI has no such node")
    core, ours = teachers[name]
    difference = float((core - ours).abs().max() / core.abs().max())
    print(f"\n{name}: ours against core's {difference:.2g}")
    assert difference < 1e-4
    if name != PLAIN and name not in SILENT:
        assert float((core - teachers[PLAIN][0]).abs().max() / core.abs().max()) > 1e-3


def student(kind: str, object_info: dict[str, Any], columns: int, rows: int) -> Prompt:
    """A student, a latent of so many cells, sampled through every patch."""
    made = sample(kind)
    made["latent"]["inputs"] |= {"width": 4 * columns, "height": 4 * rows}
    made["empty"] = node("SpectralDiffusionUnconditional", model=[LOADER, 0])
    if kind == "text":
        made["negative"]["inputs"]["text"] = "a tree"
    del made[SAMPLER]
    made[PLAIN] = sampler(LOADER)
    for patch in here(object_info):
        made[f"patched {patch}"] = patching.patch(object_info, patch, [LOADER, 0])
        made[patch] = sampler(f"patched {patch}")
    return made


#: Students attend at half the resolution and below, where core merges no tokens; and one of plain self-attention has no
#: layers by the names that these look for.
IDLE = {"text": {"TomePatchModel"}, "none": {"TomePatchModel", *(name for name in PATCHES if name.startswith("UNet"))}}


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("kind", ["text", "none"])
@pytest.mark.parametrize(("columns", "rows"), [(16, 16), (10, 7)], ids=["even", "odd"])
def test_patches_reach_the_students(
    comfy: ComfyServer, object_info: dict[str, Any], kind: str, columns: int, rows: int
) -> None:
    # Perp-Neg divides by what the condition changes, which is nothing in an unconditional model.
    names = [PLAIN, *(name for name in here(object_info) if (kind, name) != ("none", "PerpNeg"))]
    found = dict(zip(names, latents(comfy, student(kind, object_info, columns, rows), names), strict=True))
    for name, latent in found.items():
        assert latent.shape[2:] == (rows, columns) and torch.isfinite(latent).all(), name
    same = {name for name in names if torch.equal(found[name], found[PLAIN])} - {PLAIN}
    odd = {"HyperTile"} if rows % 2 else set()  # which looks for sizes that halve without a rest
    possible = set(names) - SILENT - (GUIDANCE if kind == "none" else set())
    assert same & possible == (IDLE[kind] | odd) & possible


@pytest.mark.parametrize("name", ["EasyCache", "LazyCache"])
def test_a_cache_wraps_the_network(comfy: ComfyServer, object_info: dict[str, Any], name: str) -> None:
    """With a threshold that high, most of many steps take over what an earlier one computed."""
    if name not in object_info:
        pytest.skip("this version of ComfyUI has no such node")
    made = sample("text", steps=12)
    made[PLAIN] = made[SAMPLER]
    made[name] = patching.filled(object_info, name, model=[LOADER, 0], reuse_threshold=3.0)
    made[SAMPLER] = {**made[PLAIN], "inputs": {**made[PLAIN]["inputs"], "model": [name, 0]}}
    cached, plain = latents(comfy, made, (SAMPLER, PLAIN))
    assert torch.isfinite(cached).all() and (cached - plain).abs().max() > 1e-2


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("kind", "reads"), [("text", "conditioning of width 768, this one has 4 and 32"), ("vq", "this one has 3 and 0")]
)
def test_a_controlnet_of_another_model_is_a_sentence(comfy: ComfyServer, kind: str, reads: str) -> None:
    made = sample(kind) | controlled("positive", "negative")
    made["picture saved"] = node("SaveLatent", samples=[SAMPLER, 0], filename_prefix="none")
    made[SAMPLER]["inputs"] |= {"positive": ["controlled", 0], "negative": ["controlled", 1]}
    message = comfy.run(made).message
    assert (
        message.startswith("The ControlNet is made for another model: it reads latents of 4 channels")
        and reads in message
    )
    assert "Disconnect Apply ControlNet" in message


@pytest.mark.usefixtures("files")
def test_gligen_of_another_model_is_a_sentence(comfy: ComfyServer) -> None:
    made = sample("text") | boxed("positive")
    made[SAMPLER]["inputs"]["positive"] = ["boxed", 0]
    made["saved"] = node("SaveLatent", samples=[SAMPLER, 0], filename_prefix="none")
    message = comfy.run(made).message
    assert message.startswith("GLIGEN is made for another model: it has layers for transformers of 320 (×3), 640 (×4)")
    assert "this one has transformers of 32 (×3), 64 (×4)" in message
