"""For tests only: nodes that make what no well-behaved node makes, so that ours can be given it."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import torch
from torch import Tensor


class AnyType(str):
    """A type that every version of ComfyUI lets into any input, as packs of helpers have it."""

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


class _Probe:
    CATEGORY = "probe"
    FUNCTION = "make"
    WIDGETS: ClassVar[dict[str, str]]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI names it
        return {"required": {name: ("STRING", {"default": default}) for name, default in cls.WIDGETS.items()}}


class ProbeValue(_Probe):
    """Any value that Python's JSON knows, NaN and Infinity among them, for any input."""

    RETURN_TYPES = (AnyType("*"),)
    WIDGETS: ClassVar[dict[str, str]] = {"value": "null"}

    def make(self, value: str) -> tuple[Any]:
        return (json.loads(value),)


class ProbeImage(_Probe):
    """An image of any shape and content."""

    RETURN_TYPES = ("IMAGE",)
    WIDGETS: ClassVar[dict[str, str]] = {"shape": "1,64,64,3", "fill": "noise"}

    def make(self, shape: str, fill: str) -> tuple[Tensor]:
        return (_tensor(shape, fill),)


class ProbeLatent(_Probe):
    """A latent of any shape and content."""

    RETURN_TYPES = ("LATENT",)
    WIDGETS: ClassVar[dict[str, str]] = {"shape": "1,4,16,16", "fill": "noise"}

    def make(self, shape: str, fill: str) -> tuple[dict[str, Tensor]]:
        return ({"samples": _tensor(shape, fill)},)


class ProbeContext(_Probe):
    """A conditioning of any shape and content; without a shape an empty list."""

    RETURN_TYPES = ("CONDITIONING",)
    WIDGETS: ClassVar[dict[str, str]] = {"shape": "1,1,32", "fill": "noise"}

    def make(self, shape: str, fill: str) -> tuple[list[Any]]:
        return ([[_tensor(shape, fill), {}]] if shape else [],)


class ProbeCoreModel(_Probe):
    """A MODEL as core's own loader makes it: Stable Diffusion 1.x with a slim U-Net and weights of zero."""

    RETURN_TYPES = ("MODEL",)
    WIDGETS: ClassVar[dict[str, str]] = {}

    def make(self) -> tuple[Any]:
        described = comfy.supported_models.SD15(
            {
                "image_size": 32,
                "in_channels": 4,
                "out_channels": 4,
                "model_channels": 32,
                "num_res_blocks": [1],
                "channel_mult": (1,),
                "num_heads": 1,
                "num_head_channels": -1,
                "use_spatial_transformer": True,
                "context_dim": 768,
                "transformer_depth": [1],
                "transformer_depth_output": [1, 1],
                "transformer_depth_middle": 1,
                "use_linear_in_transformer": False,
                "legacy": False,
            }
        )
        described.manual_cast_dtype = None
        described.unet_config["dtype"] = torch.float32
        model = comfy.model_base.BaseModel(described, device=torch.device("cpu"))
        device = torch.device("cpu")
        return (comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device),)


def _tensor(shape: str, fill: str) -> Tensor:
    """Of uniform noise, or of one number ("0.5", "nan", "inf"); "nan once" is noise with a single NaN in it."""
    sizes = tuple(int(size) for size in shape.split(","))
    if fill.startswith("noise") or fill == "nan once":
        made = torch.rand(sizes, generator=torch.Generator().manual_seed(1))
        if fill == "nan once":
            made.view(-1)[made.numel() // 2] = torch.nan
        return made
    if fill == "uint8":
        return torch.zeros(sizes, dtype=torch.uint8)
    return torch.full(sizes, float(fill))


NODES = {kind.__name__: kind for kind in (ProbeValue, ProbeImage, ProbeLatent, ProbeContext, ProbeCoreModel)}
