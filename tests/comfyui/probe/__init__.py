"""For tests only: nodes that write what no core node writes, conditioning and text, into the server's output folder.

`hostile` makes what no node should have to take.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import comfy.conds
import comfy.model_sampling
import torch

from . import hostile, tooltips  # noqa: F401 - the route of tooltips is there from now on
from .files import saved
from .memory import ProbeLowMemory
from .networks import ProbeAttention, ProbeModel


class ProbeConditioning:
    """The first entry of a conditioning, with its pooled output if it has one."""

    CATEGORY = "probe"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "save"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI names it
        return {"required": {"conditioning": ("CONDITIONING",)}}

    def save(self, conditioning: list[Any]) -> dict[str, Any]:
        states, options = conditioning[0]
        pooled = options.get("pooled_output")
        tensors = {"states": states.clone()} | ({} if pooled is None else {"pooled": pooled.clone()})
        return {"ui": {"files": [saved(**tensors)]}}


class ProbeText:
    """A text, for the page and the history."""

    CATEGORY = "probe"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "show"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI names it
        return {"required": {"text": ("STRING", {"forceInput": True})}}

    def show(self, text: str) -> dict[str, Any]:
        return {"ui": {"text": [text]}}


class ProbeGuidance:
    """Calls what a MODEL does to denoised predictions, as a sampler would, with random latents of any shape.

    Several shapes, with ";" between them, are packed into one row as core packs video and sound.
    """

    CATEGORY = "probe"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "save"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI names it
        percent = ("FLOAT", {"default": 0.5, "min": 0.0, "max": 1.0})
        required = {"model": ("MODEL",), "shape": ("STRING", {}), "percent": percent, "sampling": (list(SAMPLINGS),)}
        return {"required": {**required, "negative": ("BOOLEAN", {"default": True})}}

    def save(self, model: Any, shape: str, percent: float, sampling: str, negative: bool) -> dict[str, Any]:
        sizes = [[int(side) for side in one.split(",")] for one in shape.split(";")]
        latents = [torch.randn(2, *size, generator=torch.manual_seed(7)) for size in sizes]
        packed = torch.cat([latent.reshape(2, len(latent[0]), 1, -1) for latent in latents], dim=-1)
        cond, uncond = latents[0] if len(latents) == 1 else packed
        made = SAMPLINGS[sampling]()
        if sampling == "flow":
            made.set_parameters(shift=3.0)
        args = {
            "denoised": uncond + 2 * (cond - uncond),
            "cond_denoised": cond,
            "uncond_denoised": uncond if negative else torch.zeros_like(uncond),
            "cond": [{"model_conds": {"latent_shapes": comfy.conds.CONDConstant(sizes)}}],
            "uncond": [{}] if negative else None,
            "sigma": torch.full((len(cond),), float(made.percent_to_sigma(percent))),
            "model": SimpleNamespace(model_sampling=made),
        }
        plain = args["denoised"].clone()
        for change in model.model_options.get("sampler_post_cfg_function", []):
            args["denoised"] = change(args)
        told = torch.tensor(bool(model.model_options.get("disable_cfg1_optimization", False)))
        tensors = {"plain": plain, "uncond": uncond, "changed": args["denoised"].clone(), "needs_negative": told}
        return {"ui": {"files": [saved(**tensors)]}}


SAMPLINGS = {
    "discrete": comfy.model_sampling.ModelSamplingDiscrete,
    "continuous": comfy.model_sampling.ModelSamplingContinuousEDM,
}
if hasattr(comfy.model_sampling, "ModelSamplingDiscreteFlow"):
    SAMPLINGS["flow"] = comfy.model_sampling.ModelSamplingDiscreteFlow

NODE_CLASS_MAPPINGS = {
    "ProbeAttention": ProbeAttention,
    "ProbeModel": ProbeModel,
    "ProbeGuidance": ProbeGuidance,
    "ProbeConditioning": ProbeConditioning,
    "ProbeText": ProbeText,
    "ProbeLowMemory": ProbeLowMemory,
    **hostile.NODES,
}
