"""The same file through our loader and through core's own: same conditioning, same latent, same picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from . import stable
from .prompts import node
from .server import ComfyServer, Prompt

CORE, OURS = "core", "ours"
TEXT = "a (red:1.3) apple, ((blue sky)) and [clouds], on a table"
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def loader(which: str, name: str) -> dict[str, object]:
    """The node that loads `name`: core's or ours."""
    if which == CORE:
        return node("CheckpointLoaderSimple", ckpt_name=name)
    return node("SpectralDiffusionLoadCheckpoint", checkpoint=name)


def sampled(which: str, name: str, layer: int | None = None) -> Prompt:
    """Three steps at 64 × 64 pixels, guided by a text with weights; everything on the way is saved."""
    clip = ["loader", 1] if layer is None else ["layer", 0]
    prompt = {
        "loader": loader(which, name),
        "positive": node("CLIPTextEncode", clip=clip, text=TEXT),
        "negative": node("CLIPTextEncode", clip=clip, text=""),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sampler": node(
            "KSampler",
            model=["loader", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["empty", 0],
            seed=5,
            steps=3,
            cfg=4.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "latent": node("SaveLatent", samples=["sampler", 0], filename_prefix="parity"),
        "conditioning": node("ProbeConditioning", conditioning=["positive", 0]),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["loader", 2]),
        "image": node("SaveImage", images=["decode", 0], filename_prefix="parity"),
    }
    if layer is not None:
        prompt["layer"] = node("CLIPSetLastLayer", clip=["loader", 1], stop_at_clip_layer=layer)
    return prompt


def results(comfy: ComfyServer, prompt: Prompt) -> dict[str, Tensor]:
    """Latent, conditioning, pooled conditioning and picture of a `sampled` prompt."""
    run = comfy.run(prompt)
    assert run.error is None, run.message
    output = comfy.distribution.base / "output"
    saved = run.outputs["latent"]["latents"][0]
    found = load_file(output / saved["subfolder"] / saved["filename"])["latent_tensor"]
    picture = np.asarray(comfy.image(run.outputs["image"]["images"][0])).astype(np.float32)
    conditioning = load_file(output / run.outputs["conditioning"]["files"][0])
    return {"latent": found, "picture": torch.from_numpy(picture), **conditioning}


def compare(comfy: ComfyServer, name: str, layer: int | None = None) -> dict[str, float]:
    """The largest differences between core's and our results, relative to each result's own size."""
    core, ours = (results(comfy, sampled(which, name, layer)) for which in (CORE, OURS))
    assert core.keys() == ours.keys()
    for key, tensor in core.items():
        assert tensor.std() > 1e-3, key
        assert torch.isfinite(tensor).all(), key
    found = {key: float((core[key] - ours[key]).abs().max() / core[key].abs().max()) for key in core}
    print(f"\n{name}, layer {layer}, ours against core: {found}")
    return found


def test_stable_diffusion_1_is_what_core_makes_of_it(comfy: ComfyServer, stable_one: str) -> None:
    found = compare(comfy, stable_one)
    assert found["states"] <= 1e-6 and found["pooled"] <= 1e-6
    assert found["latent"] < 1e-4
    assert found["picture"] < 2 / 255


def test_clip_set_last_layer_on_both(comfy: ComfyServer, stable_one: str) -> None:
    found = compare(comfy, stable_one, -2)
    assert found["states"] <= 1e-6 and found["latent"] < 1e-4


def test_a_ckpt_file_is_read_as_the_safetensors_file_is(comfy: ComfyServer, stable_one: str) -> None:
    folder = comfy.distribution.base / "models" / "checkpoints"
    state = load_file(folder / stable_one)
    torch.save({"epoch": 1, "global_step": 3, "state_dict": state}, folder / "sd1.ckpt")
    try:
        found = compare(comfy, "sd1.ckpt")
    finally:
        (folder / "sd1.ckpt").unlink()
    assert found["states"] <= 1e-6 and found["latent"] < 1e-4


@pytest.mark.long
@pytest.mark.parametrize(("spread", "predicts"), [(0.2, "velocity (v)"), (0.02, "noise (eps)")])
def test_stable_diffusion_2_is_what_core_makes_of_it(comfy: ComfyServer, spread: float, predicts: str) -> None:
    path = stable.write_two(comfy.distribution.base / "models" / "checkpoints" / f"sd2-{spread}.safetensors", spread)
    try:
        for layer in (None, -1, -3):
            found = compare(comfy, path.name, layer)
            assert found["states"] <= 1e-5 and found["pooled"] <= 1e-5
            assert found["latent"] < 1e-4
        info = node("ProbeText", text=["loader", 3])
        run = comfy.run({"loader": loader(OURS, path.name), "info": info})
        assert f"predicts {predicts}" in run.outputs["info"]["text"][0]
    finally:
        path.unlink()
