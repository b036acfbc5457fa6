"""What stands at an output for which a checkpoint holds nothing, and explains itself when something uses it."""

from __future__ import annotations

from typing import Any, NoReturn

from ..spectral.errors import SpectralError

#: What nodes ask of a MODEL, a CLIP and a VAE first, each of its kind.
_MODEL = ("model", "clone", "add_patches", "get_model_object", "model_options", "load_device", "get_key_patches")
_CLIP = ("tokenize", "encode", "encode_from_tokens", "encode_from_tokens_scheduled", "cond_stage_model", "patcher")
_VAE = ("encode", "decode", "encode_tiled", "decode_tiled", "first_stage_model", "downscale_ratio", "latent_channels")
#: What newer versions ask of them before that.
_SINCE = ("spacial_compression_decode", "spacial_compression_encode", "temporal_compression_decode", "clip_layer")


class Missing:
    """In place of a MODEL, CLIP or VAE: whatever a node does with it raises the same sentence.

    Everything else that Python or ComfyUI may look for on an object, such as a size for a cache, is simply not there.

    Args:
        advice: what the checkpoint lacks and what to do about it.
    """

    _used = frozenset((*_MODEL, *_CLIP, *_VAE, *_SINCE, "load_model", "get_sd"))

    def __init__(self, advice: str) -> None:
        self.advice = advice

    def __getattr__(self, name: str) -> NoReturn:
        if name in Missing._used:
            raise SpectralError(self.__dict__["advice"])
        raise AttributeError(name)


class Unneeded(Missing):
    """In place of the CLIP of a model that reads no text; Save Checkpoint, which must be given one, finds it empty."""

    def load_model(self) -> Any:
        """What core loads before it saves: nothing."""
        import comfy.model_patcher  # here, for the rest of this module knows no ComfyUI
        import torch

        self.empty = comfy.model_patcher.ModelPatcher(torch.nn.Module(), torch.device("cpu"), torch.device("cpu"))
        return self.empty

    def get_sd(self) -> dict[str, Any]:
        """What core saves of it: nothing."""
        return {}


def is_missing(part: Any) -> bool:
    """Whether an output is only the explanation of its absence."""
    return isinstance(part, Missing)
