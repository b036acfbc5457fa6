"""ControlNets and GLIGEN on our U-Net: what they add to its features, or a sentence: they are made for one model."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor, nn

from ..spectral.attention import SpatialTransformer
from ..spectral.errors import SpectralError
from ..spectral.hooks import Part

#: What ControlNets add, by part of the network; taken from the end.
Additions = dict[str, list[Tensor | None]]
ADVICE = "Disconnect Apply ControlNet, or use one that is made for this model."


def check(control: Any, channels: int, width: int) -> None:
    """Before sampling: that a ControlNet, and those chained to it, can read what this model reads.

    Args:
        control: core's ControlBase, or None.
        channels: of this model's latents.
        width: of its conditioning.

    Raises:
        SpectralError: it reads something else.
    """
    while control is not None:
        network = getattr(control, "control_model", None)
        weights = {} if network is None else dict(network.named_parameters())
        first, keys = weights.get("input_blocks.0.0.weight"), _ending(weights, ".attn2.to_k.weight")
        if first is not None and keys is not None and (first.shape[1], keys.shape[1]) != (channels, width):
            raise SpectralError(
                f"The ControlNet is made for another model: it reads latents of {first.shape[1]} channels and "
                f"conditioning of width {keys.shape[1]}, this one has {channels} and {width}. {ADVICE}"
            )
        if getattr(network, "num_classes", None) is not None:
            raise SpectralError(f"The ControlNet is made for Stable Diffusion XL, which this model is not. {ADVICE}")
        control = getattr(control, "previous_controlnet", None)


def check_gligen(gligen: Any, network: nn.Module) -> None:
    """Before sampling: that GLIGEN has a layer for each of the network's transformers, as wide as that is.

    Args:
        gligen: what core keeps in a conditioning: (kind, patcher of the model, boxes); or None.

    Raises:
        SpectralError: it has others.
    """
    layers = None if gligen is None else getattr(getattr(gligen[1], "model", None), "module_list", None)
    if layers is None:
        return
    transformers = [module for module in network.modules() if isinstance(module, SpatialTransformer)]
    own = [int(transformer.norm.weight.shape[0]) for transformer in transformers]  # type: ignore[union-attr,index]
    made_for = [int(layer.linear.weight.shape[0]) for layer in layers]
    if made_for != own:
        raise SpectralError(
            f"GLIGEN is made for another model: it has layers for transformers of {_listed(made_for)} channels, this "
            f"one has transformers of {_listed(own)}. Disconnect GLIGEN Textbox Apply, or use a GLIGEN model that is "
            "made for this one."
        )


def _listed(widths: list[int]) -> str:
    """Different widths and how often each is there, for a person."""
    return ", ".join(f"{width} (×{widths.count(width)})" for width in sorted(set(widths))) or "no"


def added(h: Tensor, additions: Additions | None, part: Part) -> Tensor:
    """Features [B, C, H, W] with what ControlNets add at this place.

    Features of another size, as when another node shrinks them on the way, stay as they are: core does the same.

    Raises:
        SpectralError: it is of another width, for a network of another shape.
    """
    remaining = None if additions is None else additions.get(part)
    addition = remaining.pop() if remaining else None
    if addition is None:
        return h
    if addition.shape[1] != h.shape[1]:
        raise SpectralError(
            f"The ControlNet is made for another model: it adds features of {addition.shape[1]} channels where this "
            f"one has {h.shape[1]}. {ADVICE}"
        )
    if addition.shape[2:] != h.shape[2:]:
        logging.warning("ControlNet: %s cannot be added to %s", list(addition.shape), list(h.shape))
        return h
    return h + addition


def skip(additions: Additions | None, blocks: int) -> None:
    """Leave out what ControlNets add to the middle, and to the output blocks that come first, for they are not run."""
    if additions is not None and blocks > 0:
        del additions.get("output", [])[-blocks:]


def _ending(weights: dict[str, Any], end: str) -> Any:
    """The first weight whose name ends so, or None."""
    return next((weight for name, weight in weights.items() if name.endswith(end)), None)
