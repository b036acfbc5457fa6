"""What a prompt computes, exactly: latents and probes as tensors, instead of pictures cut to whole numbers."""

from __future__ import annotations

from safetensors.torch import load_file
from torch import Tensor

from . import prompts
from .prompts import node
from .server import ComfyServer, Prompt, Run


def ran(comfy: ComfyServer, prompt: Prompt) -> Run:
    """A prompt that must succeed."""
    run = comfy.run(prompt)
    assert run.error is None, run.message
    return run


def latent(comfy: ComfyServer, prompt: Prompt, link: prompts.Link) -> Tensor:
    """What arrives at one output of a prompt, [B, C, h, w] in the VAE's scale, by core's Save Latent."""
    run = ran(comfy, {**prompt, "latent saved": node("SaveLatent", samples=link, filename_prefix="test")})
    saved = run.outputs["latent saved"]["latents"][0]
    return load_file(comfy.distribution.base / "output" / saved["filename"])["latent_tensor"]


def probed(comfy: ComfyServer, prompt: Prompt, probe: str) -> dict[str, Tensor]:
    """The tensors that one of the probe pack's nodes wrote."""
    (name,) = ran(comfy, prompt).outputs[probe]["files"]
    return load_file(comfy.distribution.base / "output" / name)
