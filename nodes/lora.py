"""Load LoRA: core's functions, and a report of how many of the file's keys fit the model."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.sd
import folder_paths
from torch import Tensor

from ..spectral import memory
from ..spectral.errors import SpectralError
from ..spectral.formats.tensor_files import open_tensors
from . import files, lora_shapes, notices
from .missing import Missing

#: How PEFT names the two factors, and how every version of ComfyUI does.
_PEFT = re.compile(r"\.lora_([AB])(\.default)?\.weight$")
_FACTORS = {"A": ".lora_down.weight", "B": ".lora_up.weight"}
UNET = "diffusion_model."
#: Unmatched keys that the report names.
NAMED = 5


class LoadLora:
    """A LoRA on a MODEL and its CLIP, with what became of its keys."""

    CATEGORY = "spectral diffusion"
    DESCRIPTION = (
        "Applies a LoRA to MODEL and CLIP as core's Load LoRA does, and reports how many of its keys fit the model. "
        "Reads kohya's and diffusers' formats in every version of ComfyUI."
    )
    SEARCH_ALIASES = ("load lora", "lora loader", "lora report", "lora keys")
    RETURN_TYPES = ("MODEL", "CLIP", "STRING")
    RETURN_NAMES = ("MODEL", "CLIP", "report")
    OUTPUT_TOOLTIPS = (
        "The model with the LoRA.",
        "The text encoder with the LoRA, when one is connected.",
        "How many of the LoRA's keys matched, how many weights they change, and the keys that did not match.",
    )
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        strength = {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01}
        unet, text = (f"How strongly it changes {part}: 1 in full, 0 not at all." for part in ("MODEL", "CLIP"))
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model that the LoRA changes: from this pack or any other."}),
                "lora_name": (
                    folder_paths.get_filename_list("loras"),
                    {"tooltip": "A file in models/loras; refresh the page (R) after you have added one."},
                ),
                "strength_model": ("FLOAT", {**strength, "tooltip": unet}),
                "strength_clip": ("FLOAT", {**strength, "tooltip": text}),
            },
            "optional": {
                "clip": (
                    "CLIP",
                    {"tooltip": "The text encoder of the same model, where the LoRA is to change that too."},
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, lora_name: str | None = None) -> bool | str:
        try:
            if lora_name is not None:  # a name that comes over a link is looked at when it arrives
                _find(lora_name)
        except SpectralError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, lora_name: str | None = None, **_inputs: Any) -> str:
        # A name that comes over a link is not known yet: it may be that of any file.
        chosen = folder_paths.get_filename_list("loras") if lora_name is None else [lora_name]
        return files.fingerprint(*map(_find, chosen))

    def load(
        self, model: Any, lora_name: str, strength_model: float, strength_clip: float, clip: Any = None
    ) -> tuple[Any, Any, str]:
        """Patched clones of both, and the report.

        Raises:
            SpectralError: the file cannot be read, holds a number that is not finite, or lacks one of the two factors
                of a weight.
        """
        path = _find(lora_name)
        # Copied, for the file may be replaced while the patches live.
        tensors = {plain(key): tensor.clone() for key, tensor in open_tensors(path)[0].items()}
        for key, tensor in tensors.items():
            if tensor.is_floating_point() and tensor.itemsize > 1:
                memory.check_finite(tensor, f"{path.name}: {key}")
        match = compare(tensors, targets_of(model, clip))
        report = match.report(path.name)
        if match.matched:
            logging.info(report)
            fitting = {name: tensors[key] for key, name in match.renamed.items()}
            try:
                model, clip = comfy.sd.load_lora_for_models(model, clip, fitting, strength_model, strength_clip)
            except KeyError as error:
                raise SpectralError(f"{path.name} lacks {error}; it is incomplete, get it again.") from error
        else:
            notices.warn("LoRA without effect", report)
        return model, clip or Missing("Load LoRA has no CLIP to give; connect one to its input clip."), report


@dataclass(frozen=True)
class Match:
    """What became of a LoRA's keys.

    Args:
        renamed: keys that matched, and the names under which core finds them.
        misfits: keys whose weight is in the model, in another shape.
        unknown: keys that name nothing in the model.
        unet: weights of the U-Net that are changed.
        text: weights of the text encoder that are changed.
    """

    renamed: dict[str, str]
    misfits: tuple[str, ...]
    unknown: tuple[str, ...]
    unet: int
    text: int

    @property
    def matched(self) -> int:
        return len(self.renamed)

    def report(self, name: str) -> str:
        """Some lines for a person; `name` is the file's."""
        total = self.matched + len(self.misfits) + len(self.unknown)
        lines = [f"{name}: {self.matched} of {total} keys matched"]
        if self.matched:
            lines[0] += f", changing {self.unet} weights of the U-Net and {self.text} of the text encoder"
        else:
            lines[0] += ", so it changes nothing; it is made for another model"
        lines += [f"{said}: {_some(keys)}" for said, keys in self._left() if keys]
        return "\n".join(f"{line}." for line in lines)

    def _left(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        yield "Not in this model", self.unknown
        yield "Of another size than in this model, or than what belongs to them", self.misfits


@dataclass(frozen=True)
class Target:
    """A weight of a model that a LoRA may change.

    Args:
        name: under which core looks for it in a LoRA.
        weight: its name in the model.
        shape: its shape there.
    """

    name: str
    weight: str
    shape: tuple[int, ...]


def compare(tensors: Mapping[str, Tensor], targets: Mapping[str, Target]) -> Match:
    """Which keys of a LoRA fit a model.

    Args:
        tensors: the LoRA's, by `plain` keys.
        targets: by every name that LoRAs use; see `targets_of`.
    """
    homes = {key: home for key in tensors if (home := _home(key, targets))}
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, home in homes.items():
        parts[home][key.rpartition(home)[2]] = tensors[key]
    wrong = {home for home, found in parts.items() if not lora_shapes.fit(found, targets[home].shape)}
    renamed = {key: targets[home].name + key[len(home) :] for key, home in homes.items() if home not in wrong}
    changed = {targets[home].weight for home in homes.values() if home not in wrong}
    unet = sum(weight.startswith(UNET) for weight in changed)
    return Match(
        renamed,
        tuple(key for key, home in homes.items() if home in wrong),
        tuple(key for key in tensors if key not in homes),
        unet,
        len(changed) - unet,
    )


def targets_of(model: Any, clip: Any) -> dict[str, Target]:
    """By every name that LoRAs use for it, each weight of MODEL and CLIP (may be None) that they can change."""
    maps = [(model.model, comfy.lora.model_lora_keys_unet(model.model, {}))]
    if clip is not None:
        maps.append((clip.cond_stage_model, comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})))
    targets = {}
    for module, names in maps:
        state = module.state_dict()
        for name, weight in names.items():
            if isinstance(weight, str) and weight in state:
                targets[name] = Target(name, weight, tuple(state[weight].shape))
    # PEFT names the layers of attention as the module has them; core, as diffusers did before.
    for name in [name for name in targets if ".processor.to_" in name]:
        plain_name = name.replace(".processor.to_", ".to_")
        targets[plain_name + ".0" if plain_name.endswith(".to_out") else plain_name] = targets[name]
    return targets


def plain(key: str) -> str:
    """A LoRA's key with PEFT's names for its parts replaced by those that every version of ComfyUI knows."""
    key = key.removeprefix("base_model.model.")
    return _PEFT.sub(lambda found: _FACTORS[found[1]], key)


def _home(key: str, targets: Mapping[str, Target]) -> str:
    """The longest beginning of a key that names a weight; "" where none does."""
    for end in reversed([found.start() for found in re.finditer(r"\.", key)]):
        stem = key[:end]
        for name in (stem, stem.removesuffix("_lora")):
            if name in targets:
                return name
    return ""


def _some(keys: tuple[str, ...]) -> str:
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(keys[:NAMED]) + more


def _find(name: str) -> Path:
    """The file of models/loras by this name.

    Raises:
        SpectralError: there is none.
    """
    clean = files.inside(name)
    found = folder_paths.get_full_path("loras", clean) if clean else None
    if found is None:
        raise SpectralError(
            f"There is no LoRA {name!r}; put the file into models/loras of ComfyUI, then refresh the page (R) and "
            "choose it again."
        )
    return Path(found)
