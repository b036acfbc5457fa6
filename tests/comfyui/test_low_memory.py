"""Weights that stay offloaded and are cast layer by layer: the same prediction, bit for bit.

Without a graphics card a server must be started with --cpu, which excludes --lowvram and --novram; so what these do to
a model is called here by a node, in the server.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from . import test_lora
from .prompts import LOADER, node
from .results import models_folder, sample, succeed
from .server import ComfyServer, Prompt


def probed(kind: str, part: float, model: str = LOADER) -> Prompt:
    """A prediction with `part` of the weights loaded beside one with all of them."""
    made = {key: one for key, one in sample(kind).items() if key in (LOADER, "positive")}
    probe = node("ProbeLowMemory", model=[model, 0], conditioning=["positive", 0], part=part)
    return {**made, "probe": probe}


def assert_equal(comfy: ComfyServer, made: Prompt) -> None:
    """Both predictions are equal, one of them with layers that cast; no layer was out of core's reach."""
    told = succeed(comfy, made).outputs["probe"]
    found = load_file(comfy.distribution.base / "output" / told["files"][0])
    assert torch.equal(found["whole"], found["part"]) and found["whole"].std() > 1e-2
    assert told["cast"][0] == 0 and told["cast"][1] > 5
    assert told["foreign"] == []


@pytest.mark.parametrize("kind", ["text", "class", "none", "vq"])
@pytest.mark.parametrize("part", [0.0, 0.5])
def test_a_part_of_the_weights_loaded(comfy: ComfyServer, kind: str, part: float) -> None:
    assert_equal(comfy, probed(kind, part))


def test_a_lora_on_weights_that_stay_offloaded(comfy: ComfyServer) -> None:
    weights = load_file(models_folder(comfy) / "text.safetensors")
    unet = test_lora.factors(weights, test_lora.UNET, test_lora.PLACES)
    name = test_lora.save_lora(comfy, "low-memory.safetensors", test_lora.kohya(unet, {}))
    made = probed("text", 0.0, "lora")
    made["lora"] = node("LoraLoaderModelOnly", model=[LOADER, 0], lora_name=name, strength_model=1.0)
    assert_equal(comfy, made)
