"""A MODEL as a small graphics card has it: most weights stay where they are offloaded, and are cast layer by layer."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch

from .files import saved


class ProbeLowMemory:
    """One prediction with all weights loaded, and one with room for a part of them."""

    CATEGORY = "probe"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "compare"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI names it
        part = ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0})
        return {"required": {"model": ("MODEL",), "conditioning": ("CONDITIONING",), "part": part}}

    def compare(self, model: Any, conditioning: list[Any], part: float) -> dict[str, Any]:
        comfy.model_management.unload_all_models()
        memory = max(1, int(part * model.model_size()))
        whole, cast_whole = predicted(model.clone(), conditioning[0][0], 0)
        cut, cast_cut = predicted(model.clone(), conditioning[0][0], memory)
        told = {
            "files": [saved(whole=whole, part=cut)],
            "cast": [cast_whole, cast_cut],
            "foreign": foreign(model.model.diffusion_model),
        }
        return {"ui": told}


def predicted(patcher: Any, states: torch.Tensor, memory: int) -> tuple[torch.Tensor, int]:
    """What the network says to noise, with as many bytes of weights loaded (0: all); and how many layers cast."""
    device = patcher.load_device
    if memory and hasattr(patcher, "patch_model_lowvram"):  # before the middle of 2024
        patcher.patch_model_lowvram(device, memory)
    elif memory:
        patcher.patch_model(device, lowvram_model_memory=memory)
    else:
        patcher.patch_model(device)
    layers = patcher.model.diffusion_model.modules()
    cast = sum(hasattr(layer, "prev_comfy_cast_weights") for layer in layers)
    x = torch.randn(2, patcher.model.latent_format.latent_channels, 9, 14, generator=torch.Generator().manual_seed(1))
    context = states.expand(2, -1, -1).to(device)
    try:
        with torch.no_grad():
            found = patcher.model.apply_model(x.to(device), torch.full((2,), 3.0, device=device), c_crossattn=context)
    finally:
        patcher.unpatch_model(patcher.offload_device)
    return found.cpu(), cast


def foreign(network: torch.nn.Module) -> list[str]:
    """Layers with weights that core could not cast."""
    return [
        name
        for name, layer in network.named_modules()
        if next(layer.parameters(recurse=False), None) is not None and not hasattr(layer, "comfy_cast_weights")
    ]
