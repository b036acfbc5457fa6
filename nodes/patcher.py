"""MODEL and CLIP that say how much of a LoRA they took, whichever node it was that applied it.

Core's Load LoRA hands the same patches to both, those of the file whose names it could place; a LoRA of another model
leaves nothing to hand over, and core says so in the log alone.
"""

from __future__ import annotations

import logging
from typing import Any

import comfy.utils
from torch import Tensor

from . import notices

UNET, TEXT = "U-Net", "text encoder"
NOTHING = (
    "None of the LoRA's keys fits this model, so it changes nothing. It is made for a model of another architecture; "
    "the log names its keys. Load LoRA (Spectral Diffusion) says in its report how many match."
)

UNLIKE = (
    "The other model's {} is {}, and this one's {} {}. Merging changes only what both have in the same shape, so the "
    "result is not a mixture of the two; merge models of one architecture."
)


def counting(patcher: Any, part: str) -> Any:
    """The same patcher, which from now on tells what LoRAs change in it; so do its clones.

    Args:
        patcher: a `comfy.model_patcher.ModelPatcher`, or whatever class of it this version of ComfyUI makes.
        part: what it patches, `UNET` or `TEXT`.
    """
    base = type(patcher)
    if (base, part) not in _classes:
        _classes[base, part] = type(f"Counting{base.__name__}", (CountsLora, base), {"part": part})
    patcher.__class__ = _classes[base, part]
    return patcher


#: The class made of each that ComfyUI uses, and of the part that it patches.
_classes: dict[tuple[type, str], type] = {}


class CountsLora:
    """Mixed into a patcher class by `counting`."""

    part: str
    _told = False

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class; where that always makes a plain patcher (2024), the clone is made to count as well."""
        made = super().clone(*args, **kwargs)  # type: ignore[misc]
        return made if isinstance(made, CountsLora) else counting(made, self.part)

    def add_patches(self, patches: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As the base class; then say what it took, unless this was no LoRA but a merge of models."""
        taken = super().add_patches(patches, *args, **kwargs)  # type: ignore[misc]
        if _is_lora(patches):
            self._tell(patches, len(taken))
        elif not self._told:
            self._compare(patches)
        return taken

    def _compare(self, weights: dict[str, Any]) -> None:
        """A message in the page about the first weight of another model that has no place here."""
        for key, given in weights.items():
            name, other = _name(key), _first_tensor(given)
            ours = self._weight(name)
            if other is not None and (ours is None or ours.shape != other.shape) and not isinstance(key, tuple):
                here = "has none of this name" if ours is None else f"has {list(ours.shape)}"
                notices.warn("Models that do not go together", UNLIKE.format(name, list(other.shape), here, self.part))
                self._told = True
                return

    def _weight(self, name: str) -> Tensor | None:
        """The model's own weight by this name; None where there is none."""
        try:
            return comfy.utils.get_attr(self.model, name)  # type: ignore[attr-defined, no-any-return]
        except AttributeError:
            return None

    def _tell(self, patches: dict[str, Any], taken: int) -> None:
        """One line in the log; a message in the page when the U-Net, or nothing, was meant and nothing was hit."""
        others = any(not _name(key).startswith("diffusion_model.") for key in patches)
        if self.part == TEXT and not patches:
            return  # MODEL, which is handed the same, says it
        if taken or others or self.part == TEXT:
            logging.info("LoRA: %d weights of the %s changed", taken, self.part)
        else:
            notices.warn("LoRA without effect", NOTHING)


def _is_lora(patches: dict[str, Any]) -> bool:
    """Merges hand over whole weights, (tensor,) or [tensor, patch, …]; LoRAs hand over adapters, or nothing at all."""
    return not patches or any(
        not isinstance(patch, list) and not (isinstance(patch, tuple) and len(patch) == 1) for patch in patches.values()
    )


def _first_tensor(given: Any) -> Tensor | None:
    """The weight that a merge hands over: (tensor,), or [(tensor, conversion), patch, …] in newer versions."""
    while isinstance(given, (list, tuple)) and given:
        given = given[0]
    return given if isinstance(given, Tensor) else None


def _name(key: Any) -> str:
    """The weight that a patch is for; newer versions address a part of it by (name, offset)."""
    return key if isinstance(key, str) else str(key[0])
