"""Core's nodes that patch a MODEL, and the prompts that sample one model through each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from spectral_diffusion.spectral.attention import (
    CrossAttention,
    FeedForward,
    SpatialTransformer,
    scaled_dot_product_attention,
)
from spectral_diffusion.spectral.config import UNetConfig
from spectral_diffusion.spectral.layers import Layers
from spectral_diffusion.spectral.unet import UNet

from ..unit.tiny import randomized
from .prompts import Link, node

#: By a name of ours: the node, what it is given besides MODEL; all else is as the server's defaults say.
PATCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "FreeU": ("FreeU", {}),
    "FreeU_V2": ("FreeU_V2", {}),
    "SelfAttentionGuidance": ("SelfAttentionGuidance", {"scale": 2.0}),
    "PerturbedAttentionGuidance": ("PerturbedAttentionGuidance", {}),
    "HyperTile": ("HyperTile", {"tile_size": 32, "max_depth": 3}),
    "deep shrink": ("PatchModelAddDownscale", {"end_percent": 1.0, "block_number": 2}),
    "deep shrink, skip too": (
        "PatchModelAddDownscale",
        {"end_percent": 1.0, "block_number": 1, "downscale_factor": 1.5, "downscale_after_skip": False},
    ),
    "UNetSelfAttentionMultiply": ("UNetSelfAttentionMultiply", {"q": 1.3, "k": 0.8, "v": 1.2, "out": 0.9}),
    "UNetCrossAttentionMultiply": ("UNetCrossAttentionMultiply", {"q": 1.3, "k": 0.8, "v": 1.2, "out": 0.9}),
    "UNetTemporalAttentionMultiply": (
        "UNetTemporalAttentionMultiply",
        {"self_structural": 1.2, "cross_structural": 0.8},
    ),
    "TomePatchModel": ("TomePatchModel", {"ratio": 0.5}),
    "PerpNeg": ("PerpNeg", {"empty_conditioning": ["empty", 0]}),
    "RescaleCFG": ("RescaleCFG", {}),
    "v prediction": ("ModelSamplingDiscrete", {"sampling": "v_prediction"}),
    "zsnr": ("ModelSamplingDiscrete", {"zsnr": True}),
    "EDM": ("ModelSamplingContinuousEDM", {}),
    "Hypernetwork": ("HypernetworkLoader", {"hypernetwork_name": "hyper.pt"}),
    "EasyCache": ("EasyCache", {"reuse_threshold": 0.5}),
    "LazyCache": ("LazyCache", {"reuse_threshold": 0.5}),
    "FreSca": ("FreSca", {"freq_cutoff": 2, "scale_high": 2.0}),
    "Mahiro": ("Mahiro", {}),
    "CFGZeroStar": ("CFGZeroStar", {}),
    "APG": ("APG", {}),
    "TCFG": ("TCFG", {}),
    "EpsilonScaling": ("Epsilon Scaling", {}),
    "DifferentialDiffusion": ("DifferentialDiffusion", {}),
}
#: Those whose work shows only with a mask, or after more steps than the tests take.
SILENT = {"DifferentialDiffusion", "EasyCache", "LazyCache"}
#: Those that change what a condition adds, which is nothing in an unconditional model.
GUIDANCE = {"RescaleCFG", "FreSca", "Mahiro", "CFGZeroStar", "APG", "TCFG"}


def patch(object_info: dict[str, Any], name: str, model: Link) -> dict[str, Any]:
    """The node called `name` in PATCHES, on a MODEL."""
    class_type, given = PATCHES[name]
    return filled(object_info, class_type, model=model, **given)


def filled(object_info: dict[str, Any], class_type: str, **given: Any) -> dict[str, Any]:
    """A node with the server's defaults for every widget that is not given."""
    inputs = {}
    for key, declared in object_info[class_type]["input"].get("required", {}).items():
        options = declared[1] if len(declared) > 1 else {}
        choices = declared[0] if isinstance(declared[0], list) else options.get("options")
        if key in given:
            inputs[key] = given[key]
        elif "default" in options:
            inputs[key] = options["default"]
        else:
            inputs[key] = choices[0] if choices else None
    return node(class_type, **{**inputs, **given})


def write_hypernetwork(path: Path, widths: tuple[int, ...]) -> None:
    """Two linear layers for the keys and values of each width."""
    generator = torch.Generator().manual_seed(6)

    def layer(width: int) -> dict[str, Tensor]:
        weight = torch.randn(width, width, generator=generator) * width**-0.5
        return {"linear.0.weight": weight, "linear.0.bias": torch.zeros(width)}

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({width: (layer(width), layer(width)) for width in widths}, path)


def write_controlnet(path: Path, unet: UNetConfig) -> None:
    """A ControlNet of Stable Diffusion for a U-Net of this shape, with random weights (its last layers too)."""
    encoder = randomized(UNet(unet), 7)
    half = {
        f"control_model.{name}": tensor.half()
        for name, tensor in encoder.state_dict().items()
        if name.startswith(("time_embed.", "input_blocks.", "middle_block."))
    }
    extra = nn.ModuleDict({"input_hint_block": _hint(unet.model_channels), "zero_convs": nn.ModuleList()})
    for block in encoder.input_blocks:
        width = _width(block, unet)
        extra["zero_convs"].append(nn.ModuleList([nn.Conv2d(width, width, 1)]))  # type: ignore[union-attr]
    width = unet.model_channels * unet.channel_mult[-1]
    extra["middle_block_out"] = nn.ModuleList([nn.Conv2d(width, width, 1)])
    added = {f"control_model.{name}": one.half() for name, one in randomized(extra, 8).state_dict().items()}
    save_file({**half, **added}, path)


def _width(block: nn.Module, unet: UNetConfig) -> int:
    """Channels that an input block leaves."""
    convolutions = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
    widths = [module.out_channels for module in convolutions if module.out_channels % unet.model_channels == 0]
    return widths[-1]


def _hint(width: int) -> nn.Sequential:
    """What turns the picture into features: three of its convolutions halve it."""
    layers: list[nn.Module] = []
    sizes = ((3, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 96, 2), (96, 96, 1), (96, 256, 2))
    for inputs, outputs, stride in sizes:
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(256, width, 3, 1, 1))


def write_gligen(path: Path, unet: UNetConfig, key_width: int = 768) -> None:
    """GLIGEN for text boxes: a gated self-attention in each transformer of a U-Net of this shape, random and open."""
    make = Layers(nn, scaled_dot_product_attention, 32, None, None)
    state: dict[str, Tensor] = {}
    for name, module in UNet(unet).named_modules():
        if isinstance(module, SpatialTransformer):
            width = len(module.norm.weight)
            fuser = nn.ModuleDict({"linear": nn.Linear(key_width, width), "ff": FeedForward(width, make)})
            fuser["attn"] = CrossAttention(width, width, 8, make)
            fuser["norm1"], fuser["norm2"] = nn.LayerNorm(width), nn.LayerNorm(width)
            gates = {"alpha_attn": torch.tensor(0.5), "alpha_dense": torch.tensor(0.5)}
            inside = {**randomized(fuser, len(state)).state_dict(), **gates}
            state |= {f"{name}.transformer_blocks.0.fuser.{key}": tensor for key, tensor in inside.items()}
    layers = (nn.Linear(key_width + 64, 512), nn.SiLU(), nn.Linear(512, 512), nn.SiLU(), nn.Linear(512, key_width))
    boxes = randomized(nn.Sequential(*layers), 5).state_dict()
    state |= {f"position_net.linears.{key}": tensor for key, tensor in boxes.items()}
    for name, width in (("positive", key_width), ("position", 64)):
        state[f"position_net.null_{name}_feature"] = torch.zeros(width)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
