"""Example Images: real pictures that come with the pack, so that a comparison runs on a fresh installation.

Each file in `examples/` is a sheet of square tiles; the number at the end of its name is their side in pixels.
`emoji-64.webp`: 64 of the 171 Fluent emoji that the default models draw (Microsoft, MIT), evenly spaced, over white.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FOLDER = Path(__file__).with_name("examples")


class ExampleImages:
    """A batch of the pack's own pictures."""

    CATEGORY = "spectral diffusion"
    DESCRIPTION = (
        "A batch of real images that come with this pack: what samples of the default models are compared with. Use "
        "Load Image instead for your own."
    )
    SEARCH_ALIASES = ("sample images", "emoji", "reference images", "demo data")
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The pictures as one batch.",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": (names(), {"tooltip": "Which pictures; the number is their side in pixels."}),
                "count": (
                    "INT",
                    {"default": 64, "min": 1, "max": 64, "tooltip": "How many, spread evenly over all 64 of them."},
                ),
            }
        }

    def load(self, images: str, count: int) -> tuple[Tensor]:
        """[count, side, side, 3] in [0, 1]."""
        return (_spread(FOLDER / f"{images}.webp", count),)


def names() -> list[str]:
    """The sheets that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.webp"))


def colourful(count: int) -> Tensor:
    """A few pictures of every colour, [count, 64, 64, 3] in [0, 1], for what must be fitted to some image or other."""
    return _spread(FOLDER / "emoji-64.webp", count)


def _spread(path: Path, count: int) -> Tensor:
    """`count` tiles of a sheet, evenly spread over it."""
    tiles = _tiles(path)
    return tiles[torch.linspace(0, len(tiles) - 1, min(count, len(tiles))).round().long()]


def _tiles(path: Path) -> Tensor:
    """A sheet cut into its tiles, row by row, [N, side, side, 3] in [0, 1]."""
    side = int(path.stem.rpartition("-")[2])
    with Image.open(path) as sheet:
        pixels = torch.from_numpy(np.array(sheet.convert("RGB"))).float() / 255
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    cut = pixels.reshape(rows, side, columns, side, 3).transpose(1, 2)
    return cut.reshape(rows * columns, side, side, 3)
