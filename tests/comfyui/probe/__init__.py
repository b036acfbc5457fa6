"""For tests only: nodes that write what no core node writes, conditioning and text, into the server's output folder."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import folder_paths
from safetensors.torch import save_file

from .memory import ProbeLowMemory


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
        path = Path(folder_paths.get_output_directory(), f"{uuid.uuid4().hex}.safetensors")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        return {"ui": {"files": [path.name]}}


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


NODE_CLASS_MAPPINGS = {
    "ProbeConditioning": ProbeConditioning,
    "ProbeText": ProbeText,
    "ProbeLowMemory": ProbeLowMemory,
}
