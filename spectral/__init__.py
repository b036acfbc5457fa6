"""The library that the ComfyUI nodes and the training kit both stand on: torch only, no ComfyUI, no accelerate.

Its rooms are imported when first asked for, so that `import spectral_diffusion.spectral` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__all__ = [
    "attention",
    "autoencoder",
    "checkpoint",
    "colours",
    "conditioning",
    "config",
    "counting",
    "diffusion",
    "errors",
    "gating",
    "presets",
    "spectrum",
    "text",
    "unet",
    "wavelet",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
