"""Class Label and Unconditional: CONDITIONING that fits a loaded MODEL, whatever that MODEL is conditioned on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..spectral.errors import SpectralError
from .missing import is_missing
from .model import companions_of

Conditioning = list[list[Any]]


class ClassLabel:
    """The learned embedding of one class."""

    CATEGORY = "spectral diffusion"
    DESCRIPTION = (
        "Asks for one class by its number, in the place of a prompt: for models trained with class labels, such as "
        "LDM's ImageNet models."
    )
    SEARCH_ALIASES = ("class conditioning", "imagenet class", "label")
    RETURN_TYPES = ("CONDITIONING",)
    OUTPUT_TOOLTIPS = ("The class as conditioning, for KSampler's positive input.",)
    FUNCTION = "embed"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        number = (
            "Number of the class, counted from 0 in the order of the data that the model was trained on: of ImageNet's "
            "classes, 207 is the golden retriever."
        )
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "From Load Checkpoint (Spectral Diffusion); it knows the classes."}),
                "label": (
                    "INT",
                    {"default": 0, "min": 0, "max": 99999, "tooltip": number},
                ),
            }
        }

    def embed(self, model: Any, label: int) -> tuple[Conditioning]:
        """Conditioning [1, 1, width].

        Raises:
            SpectralError: the model knows no classes, or not this one.
        """
        companions = companions_of(model)
        if companions.classes is None:
            kind = companions.config.conditioning.kind
            advice = "CLIP Text Encode" if kind in ("text", "external") else "Unconditional (Spectral Diffusion)"
            raise SpectralError(f"This model is not conditioned on classes; use {advice} instead of Class Label.")
        last = len(companions.classes) - (2 if companions.config.conditioning.null_class else 1)
        if label > last:
            raise SpectralError(f"There is no class {label}; this model knows classes 0 to {last}.")
        return (_conditioning(companions.classes[label]),)


class Unconditional:
    """What the model was given in training when it was told nothing."""

    CATEGORY = "spectral diffusion"
    DESCRIPTION = (
        "Asks for nothing in particular: the empty prompt of a text model, the null class of a class model, and what "
        "an unconditional model takes in both inputs of KSampler."
    )
    SEARCH_ALIASES = ("empty conditioning", "null class", "empty prompt", "negative")
    RETURN_TYPES = ("CONDITIONING",)
    OUTPUT_TOOLTIPS = ("For KSampler's negative input; for both inputs to sample without any condition.",)
    FUNCTION = "embed"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "From Load Checkpoint (Spectral Diffusion); what kind of model it is decides what comes out."
        return {"required": {"model": ("MODEL", {"tooltip": tooltip})}}

    def embed(self, model: Any) -> tuple[Conditioning]:
        """Conditioning [1, T, width].

        Raises:
            SpectralError: the model reads a text encoder that is not in its file or has no vocabulary; or it is a class
                model without a null class.
        """
        companions = companions_of(model)
        if is_missing(companions.clip):
            raise SpectralError(companions.clip.advice)
        if companions.clip is not None:
            tokens = companions.clip.tokenize("")
            embedding, pooled = companions.clip.encode_from_tokens(tokens, return_pooled=True)
            return ([[embedding, {"pooled_output": pooled}]],)
        if companions.classes is not None:
            if not companions.config.conditioning.null_class:
                raise SpectralError(
                    f"This model has no null class: each of its {len(companions.classes)} classes is a real one; "
                    "connect Class Label to both inputs of KSampler and set cfg to 1."
                )
            return (_conditioning(companions.classes[-1]),)
        if companions.config.conditioning.kind == "none":
            return (_conditioning(torch.zeros(1)),)
        raise SpectralError(
            "This model's text encoder is not in its file, so its empty prompt is unknown; use CLIP Text Encode with "
            "an empty text and the CLIP that belongs to the model."
        )


def _conditioning(embedding: Tensor) -> Conditioning:
    """One vector [width] as a context of one token; older samplers want a pooled output too."""
    return [[embedding.reshape(1, 1, -1).clone(), {"pooled_output": embedding.reshape(1, -1).clone()}]]
