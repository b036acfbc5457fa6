"""CLIP models of other libraries with small picture towers and random weights, to compare text towers with."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from spectral_diffusion.training.tokens import declare_torchvision_operators

from . import tiny

PICTURES = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
SMALL = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 3}


def open_clip() -> Any:
    """The library; it imports a torchvision whose compiled operators may be missing."""
    declare_torchvision_operators()
    return importlib.import_module("open_clip")


def in_open_clip(
    text: dict[str, Any] | None = None, projected: int | None = None, quick_gelu: bool = False
) -> nn.Module:
    """An OpenCLIP model (OpenAI's has the same names) with a text tower of these sizes."""
    text = text or SMALL
    model = open_clip().model.CLIP(projected or text["width"], PICTURES, text, quick_gelu=quick_gelu)
    return tiny.randomized(model, 5).eval().requires_grad_(False)  # type: ignore[no-any-return]


def published(name: str, layers: int, quick_gelu: bool) -> nn.Module:
    """The text tower of a published model at its full width, with fewer layers."""
    text = open_clip().get_model_config(name)["text_cfg"]
    return in_open_clip(text | {"layers": layers}, quick_gelu=quick_gelu)


def in_transformers(activation: str = "gelu") -> nn.Module:
    """A CLIPModel of transformers."""
    from transformers import CLIPConfig, CLIPModel

    text = {
        "hidden_size": SMALL["width"],
        "intermediate_size": 4 * SMALL["width"],
        "num_hidden_layers": SMALL["layers"],
        "num_attention_heads": SMALL["heads"],
        "projection_dim": SMALL["width"],
        "hidden_act": activation,
        "eos_token_id": 49407,
    }
    pictures = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    pictures |= {"image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=text, vision_config=pictures, projection_dim=SMALL["width"])
    return tiny.randomized(CLIPModel(config), 6).eval().requires_grad_(False)


def states(model: Any, tokens: torch.Tensor, skip_last: int = 0) -> torch.Tensor:
    """The states of an OpenCLIP model's text tower behind all but the last layers, normalised: open_clip's own way."""
    found = model.forward_intermediates(
        text=tokens, text_indices=skip_last + 1, normalize_intermediates=True, intermediates_only=True
    )
    return found["text_intermediates"][0]  # type: ignore[no-any-return]
