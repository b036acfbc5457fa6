"""What arrives at a node, looked at before the node works with it: one sentence instead of what Python would say.

Core compares widgets with their limits, but lets NaN pass, optional widgets too before 2025, and whatever comes over a
link of any type; what is in an image or a latent it leaves to the nodes.
"""

from __future__ import annotations

import functools
import inspect
import math
import reprlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..spectral.errors import SpectralError

#: What a connected object must have, and what says so in a sentence.
_OBJECTS = {
    "MODEL": ("model", "a MODEL, such as that of Load Checkpoint (Spectral Diffusion)"),
    "CLIP": ("cond_stage_model", "a CLIP, such as that of Load Checkpoint (Spectral Diffusion)"),
    "VAE": ("decode", "a VAE, such as that of Load Checkpoint (Spectral Diffusion)"),
    "SPECTRAL_GATES": ("runs", "the gates of a Gate Trace"),
    "SPECTRAL_EVOLUTION": ("runs", "the evolution of a Spectrum Trace"),
    "WAVELET_BANDS": ("levels", "the bands of a Wavelet Bands"),
}
#: Where numbers of an image or a latent that are not finite come from.
_NOT_FINITE = (
    "hold numbers that are not finite (NaN or infinity); take away what makes them, such as a LoRA, a very high cfg, "
    "or half precision (ComfyUI's option --force-fp32)."
)


def guard(kind: Any, title: str) -> None:
    """Make a node compare all inputs with its own INPUT_TYPES before its function sees them.

    Args:
        kind: the class of a node that takes its inputs one by one (not INPUT_IS_LIST).
        title: its name in the page.
    """
    function = getattr(kind, kind.FUNCTION)

    @functools.wraps(function)
    def guarded(self: Any, **inputs: Any) -> Any:
        return function(self, **check(kind, title, inputs))

    setattr(kind, kind.FUNCTION, guarded)


def check(kind: Any, title: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a node, numbers as numbers.

    Raises:
        SpectralError: one of them is of another type than the node declares, or beyond its limits.
    """
    validate = getattr(kind, "VALIDATE_INPUTS", None)
    validated = inspect.signature(validate).parameters if validate else ()
    declared = kind.INPUT_TYPES()
    checked = dict(inputs)
    for group in ("required", "optional"):
        for name, (type_, *options) in declared.get(group, {}).items():
            absent = group == "optional" and inputs.get(name) is None
            if absent:
                checked.pop(name, None)  # its default then holds
            elif name in inputs and name not in validated:
                limits = options[0] if options else {}
                checked[name] = _input(inputs[name], type_, limits, f"{name} of {title}")
    return checked


def images(value: Any, where: str, *, smallest: int = 1, channels: int = 1) -> Tensor:
    """ComfyUI's IMAGE [B, H, W, C] as it is.

    Args:
        where: how to call it in a sentence.
        smallest: pixels that each side has at least.
        channels: that there are at least.

    Raises:
        SpectralError: it is something else, is empty or smaller, or holds a number that is not finite.
    """
    if not isinstance(value, Tensor) or value.ndim != 4 or not value.is_floating_point():
        raise SpectralError(f"{where} is {shown(value)}; expected images [batch, height, width, channels].")
    count, height, width, depth = value.shape
    if not count or min(height, width) < smallest or depth < channels:
        raise SpectralError(
            f"{where}: {count} of {width} x {height} pixels and {depth} channels; expected one or more, each of at "
            f"least {smallest} pixel{'s' * (smallest > 1)} a side and {channels} channel{'s' * (channels > 1)}."
        )
    return finite(value, f"{where}: these images")


def latents(value: Any, taker: str, channels: int, advice: str) -> Tensor:
    """Latents [B, C, h, w] as they are.

    Args:
        taker: what they go into, the beginning of a sentence.
        channels: that they must have.
        advice: where to get such ones, the end of a sentence.

    Raises:
        SpectralError: it is something else, is empty, of other channels, or holds a number that is not finite.
    """
    if not isinstance(value, Tensor):
        raise SpectralError(f"{taker} takes latents, the connected one is {shown(value)}; {advice}.")
    latent_shape(value.shape, taker, channels, advice)
    return finite(value, "The connected latents")


def latent_shape(shape: Sequence[int], taker: str, channels: int, advice: str) -> None:
    """As `latents`, of the shape alone.

    Raises:
        SpectralError: it is none of images, or of other channels.
    """
    if len(shape) != 4 or 0 in shape:
        found = "is empty" if 0 in shape else f"has {len(shape)} axes"
        raise SpectralError(
            f"{taker} takes latents [batch, {channels}, height, width], each at least 1; the connected one {found}; "
            f"{advice}."
        )
    if shape[1] != channels:
        raise SpectralError(
            f"{taker} takes latents of {channels} channels, the connected one has {shape[1]}; {advice}."
        )


def context(value: Any, width: int, advice: str) -> Tensor:
    """What a MODEL is conditioned on, [B, T, width], as it is.

    Args:
        advice: where to get one that fits, the end of a sentence.

    Raises:
        SpectralError: there is none, it is of another width or shape, or holds a number that is not finite.
    """
    if value is None or (isinstance(value, Tensor) and value.ndim and value.shape[-1] != width):
        found = "there is none" if value is None else f"this one has {value.shape[-1]}"
        raise SpectralError(f"This model reads conditioning of width {width}, but {found}; {advice}.")
    if not isinstance(value, Tensor) or value.ndim != 3 or not value.numel():
        raise SpectralError(
            f"This model reads conditioning [batch, tokens, {width}], each at least 1, the connected one is "
            f"{shown(value)}; {advice}."
        )
    return finite(value, "The connected conditionings")


def area(value: Sequence[Any], latent: Sequence[int]) -> None:
    """Look at the area of a conditioning.

    Args:
        value: height, width, y and x in cells of the latent.
        latent: its shape, [B, C, H, W].

    Raises:
        SpectralError: nothing of it is inside of the picture.
    """
    if len(value) != 4 or len(latent) != 4:
        return
    height, width, y, x = value
    if not (height > 0 and width > 0 and y < latent[2] and x < latent[3]):
        raise SpectralError(
            f"A conditioning is for an area of {width} x {height} latent cells at x {x}, y {y}, and the picture has "
            f"{latent[3]} x {latent[2]}; move the area into the picture at Conditioning (Set Area)."
        )


def finite(value: Tensor, what: str) -> Tensor:
    """A tensor as it is.

    Args:
        what: it is, in the plural, the beginning of a sentence.

    Raises:
        SpectralError: it holds a number that is not finite.
    """
    if not bool(torch.isfinite(value).all()):
        raise SpectralError(f"{what} {_NOT_FINITE}")
    return value


def _input(value: Any, type_: Any, options: dict[str, Any], where: str) -> Any:
    """One input by its declared type; types that are not known here pass."""
    if isinstance(type_, list):
        if value not in type_:
            raise SpectralError(f"{where} is {shown(value)}; expected one of {reprlib.repr(type_)}.")
        return value
    if type_ in ("INT", "FLOAT"):
        return _number(value, type_, options, where)
    if type_ == "BOOLEAN":
        if not isinstance(value, (bool, int, float, str)):
            raise SpectralError(f"{where} is {shown(value)}; expected yes or no.")
        return bool(value)
    if isinstance(type_, str) and "," in type_:
        return value  # one of several types, which the node tells apart itself
    if type_ == "IMAGE":
        return images(value, where)
    attribute, expected = _OBJECTS.get(type_, ("", ""))
    if attribute and not hasattr(value, attribute):
        raise SpectralError(f"{where} is {shown(value)}; connect {expected}.")
    if type_ == "CONDITIONING" and not (isinstance(value, list) and value):
        raise SpectralError(f"{where} is {shown(value)}; connect a CONDITIONING that is not empty.")
    if type_ == "LATENT" and not (isinstance(value, dict) and isinstance(value.get("samples"), Tensor)):
        raise SpectralError(f"{where} is {shown(value)}; connect a LATENT.")
    if type_ == "STRING" and not isinstance(value, str):
        raise SpectralError(f"{where} is {shown(value)}; expected a text.")
    return value


def _number(value: Any, type_: str, options: dict[str, Any], where: str) -> float:
    """A number within its limits, converted as core converts the widgets that it looks at."""
    low, high = options.get("min", -math.inf), options.get("max", math.inf)
    try:
        number = int(value) if type_ == "INT" else float(value)
        fits = low <= number <= high and math.isfinite(number)
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        kind = "whole number" if type_ == "INT" else "number"
        raise SpectralError(f"{where} is {shown(value)}; expected a {kind} from {low:g} to {high:g}.")
    return number


def shown(value: Any) -> str:
    """A value as a sentence shows it: short, and of large things the kind alone."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if value is None:
        return "nothing"
    return reprlib.repr(value) if isinstance(value, (bool, int, float, str)) else f"a {type(value).__name__}"
