"""Spectral Diffusion: where ComfyUI finds the nodes; installed with pip, the package `spectral_diffusion`.

Importing it costs nothing: the nodes, and PyTorch with them, are loaded when ComfyUI asks for their mappings.
"""

from __future__ import annotations

from typing import Any

#: Scripts, help pages and pictures that ComfyUI serves to the page.
WEB_DIRECTORY = "./nodes/web"

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]


def __getattr__(name: str) -> Any:
    if name in ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"):
        from . import nodes

        return getattr(nodes, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
