"""What a prompt made, exactly: latents and probes as tensors, instead of pictures cut to whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from . import prompts
from .prompts import LOADER, SAMPLER, node
from .server import ComfyServer, Prompt, Run


def succeed(comfy: ComfyServer, prompt: Prompt) -> Run:
    """Run a prompt that must work."""
    run = comfy.run(prompt)
    assert run.error is None, run.message
    return run


def latents(comfy: ComfyServer, prompt: Prompt, nodes: Sequence[str] = (SAMPLER,)) -> list[Tensor]:
    """What the first output of each of these nodes holds, [B, C, h, w] in the VAE's scale."""
    saving = {f"saved {name}": node("SaveLatent", samples=[name, 0], filename_prefix=name) for name in nodes}
    run = succeed(comfy, {**prompt, **saving})
    return [_read(comfy, run, f"saved {name}") for name in nodes]


def latent(comfy: ComfyServer, prompt: Prompt, link: prompts.Link) -> Tensor:
    """What arrives at one output of a prompt, [B, C, h, w] in the VAE's scale."""
    run = succeed(comfy, {**prompt, "saved": node("SaveLatent", samples=link, filename_prefix="test")})
    return _read(comfy, run, "saved")


def probed(comfy: ComfyServer, prompt: Prompt, probe: str) -> dict[str, Tensor]:
    """The tensors that one of the probe pack's nodes wrote."""
    (name,) = succeed(comfy, prompt).outputs[probe]["files"]
    return load_file(comfy.distribution.base / "output" / name)


def _read(comfy: ComfyServer, run: Run, saver: str) -> Tensor:
    assert saver in run.outputs, f"the server refused what leads to {saver!r}"
    file = run.outputs[saver]["latents"][0]
    return load_file(comfy.distribution.base / "output" / file["subfolder"] / file["filename"])["latent_tensor"]


def sample(kind: str, model: str = LOADER, clip: Sequence[str | int] = (LOADER, 1), steps: int = 2) -> Prompt:
    """`prompts.generate` up to the latent.

    Args:
        model: the node whose first output is sampled.
        clip: the output that texts are encoded with.
    """
    made = prompts.generate(kind, steps=steps)
    del made[prompts.DECODE], made[prompts.SAVE]
    made[SAMPLER]["inputs"]["model"] = [model, 0]
    if kind == "text":
        for name, text in (("positive", "a red apple"), ("negative", "")):
            made[name] = node("CLIPTextEncode", clip=list(clip), text=text)
    return made


def models_folder(comfy: ComfyServer) -> Path:
    """models/spectral_diffusion of the server."""
    return comfy.distribution.base / "models" / "spectral_diffusion"
