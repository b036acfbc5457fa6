"""Empty Latent: zeros with the channels and the size that a loaded MODEL wants."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ..spectral.errors import SpectralError
from .model import Companions

#: What a MODEL of core is taken for: Stable Diffusion's latent, 8 pixels a cell, 64 cells a side.
CORE_DOWNSCALE, CORE_SIDE = 8, 64


class EmptyLatent:
    """A batch of empty latents that fits a MODEL."""

    CATEGORY = "spectral diffusion"
    DESCRIPTION = (
        "A batch of empty latents for KSampler, with the channels and the size that MODEL needs; core's Empty Latent "
        "Image fits Stable Diffusion alone."
    )
    SEARCH_ALIASES = ("empty latent image", "latent size", "start latent")
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("Empty latents (zeros), for KSampler's latent_image.",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 0, "min": 0, "max": 8192, "step": 4}
        rounded = "in pixels, rounded down to whole latent cells. 0: the size that the model was trained at."
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model that will sample; the latent is made to fit it."}),
                "width": ("INT", {**side, "tooltip": f"Width of the picture {rounded}"}),
                "height": ("INT", {**side, "tooltip": f"Height of the picture {rounded}"}),
                "batch_size": (
                    "INT",
                    {"default": 1, "min": 1, "max": 4096, "tooltip": "How many pictures are sampled together."},
                ),
            }
        }

    def make(self, model: Any, width: int, height: int, batch_size: int) -> tuple[dict[str, Tensor]]:
        """{"samples": zeros [batch_size, C, h, w]}.

        Raises:
            SpectralError: they take more memory than is free.
        """
        channels = getattr(model.model.latent_format, "latent_channels", 4)
        pixels, trained = _scale(model)
        rows, columns = (max(1, side // pixels) if side else trained for side in (height, width))
        device = comfy.model_management.intermediate_device()
        needed, free = 4 * batch_size * channels * rows * columns, comfy.model_management.get_free_memory(device)
        if needed > free:
            raise SpectralError(
                f"{batch_size} latents of {columns} x {rows} cells take {needed / 1e9:.0f} GB of memory, of which "
                f"{free / 1e9:.0f} GB are free; ask for fewer or smaller pictures."
            )
        return ({"samples": torch.zeros(batch_size, channels, rows, columns, device=device)},)


def _scale(model: Any) -> tuple[int, int]:
    """Pixels a cell, and the cells a side that the model was trained at."""
    companions = getattr(model.model, "spectral", None)
    if not isinstance(companions, Companions) or companions.config.unet is None:
        return CORE_DOWNSCALE, CORE_SIDE
    stage = companions.config.first_stage
    return stage.downscale if stage else CORE_DOWNSCALE, companions.config.unet.image_size
