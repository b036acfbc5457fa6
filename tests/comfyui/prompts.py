"""Prompts in API format that several tests build on."""

from __future__ import annotations

from typing import Any

from .server import Prompt

LOADER, LATENT, SAMPLER, DECODE, SAVE = "loader", "latent", "sampler", "decode", "save"
Link = list[str | int]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """One node of a prompt."""
    return {"class_type": class_type, "inputs": inputs}


def generate(kind: str, *, seed: int = 1, steps: int = 4, text: str = "a red apple", **size: int) -> Prompt:
    """Load a tiny checkpoint, sample it with KSampler, decode and save.

    Args:
        kind: name of the checkpoint, without its extension; "text" and "half" are conditioned on `text`.
        size: width, height, batch_size of Empty Latent.
    """
    model: Link = [LOADER, 0]
    if kind in ("text", "half"):
        positive = node("CLIPTextEncode", clip=[LOADER, 1], text=text)
    elif kind == "class":
        positive = node("SpectralDiffusionClassLabel", model=model, label=3)
    else:
        positive = node("SpectralDiffusionUnconditional", model=model)
    size = {"width": 0, "height": 0, "batch_size": 1, **size}
    return {
        LOADER: node("SpectralDiffusionLoadCheckpoint", checkpoint=f"{kind}.safetensors"),
        "positive": positive,
        "negative": node("SpectralDiffusionUnconditional", model=model),
        LATENT: node("SpectralDiffusionEmptyLatent", model=model, **size),
        SAMPLER: node(
            "KSampler",
            model=model,
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=[LATENT, 0],
            seed=seed,
            steps=steps,
            cfg=2.0,
            sampler_name="ddim",
            scheduler="ddim_uniform",
            denoise=1.0,
        ),
        DECODE: node("VAEDecode", samples=[SAMPLER, 0], vae=[LOADER, 2]),
        SAVE: node("SaveImage", images=[DECODE, 0], filename_prefix="test"),
    }


def numbered(prompt: Prompt) -> Prompt:
    """The same with numbers for names, as the page wants them."""
    numbers = {name: str(index) for index, name in enumerate(prompt, 1)}
    return {
        numbers[name]: node(
            one["class_type"],
            **{
                key: [numbers[value[0]], value[1]] if isinstance(value, list) else value
                for key, value in one["inputs"].items()
            },
        )
        for name, one in prompt.items()
    }


def patched(prompt: Prompt, *nodes: dict[str, Any], **others: dict[str, Any]) -> Prompt:
    """The prompt with nodes that patch a MODEL in a row before its sampler, `patch 0` first; and with other nodes."""
    made = {**prompt, **others, SAMPLER: {**prompt[SAMPLER], "inputs": {**prompt[SAMPLER]["inputs"]}}}
    model: Link = [LOADER, 0]
    for index, one in enumerate(nodes):
        made[f"patch {index}"] = {**one, "inputs": {**one["inputs"], "model": model}}
        model = [f"patch {index}", 0]
    made[SAMPLER]["inputs"]["model"] = model
    return made
