"""Picture files as pixels: upright, transparent parts over white, 16-bit grey understood; one sentence where not."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from ..spectral.errors import SpectralError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
T = TypeVar("T")


def files_in(folder: Path) -> list[Path]:
    """Every picture in a folder and the folders inside it, sorted.

    Raises:
        SpectralError: a folder that may not be read.
    """

    def refuse(error: OSError) -> None:
        raise SpectralError(f"{error.filename} cannot be read ({error.strerror}); check its permissions.") from error

    walked = os.walk(folder, onerror=refuse)
    return sorted(
        Path(here, name) for here, _, names in walked for name in names if Path(name).suffix.lower() in SUFFIXES
    )


def decode(open_file: Callable[[], IO[bytes]], name: str, read: Callable[[Image.Image], T]) -> T:
    """What `read` makes of the picture that `open_file` gives, turned upright as its EXIF data says.

    Raises:
        SpectralError: the file cannot be opened or read as a picture; `name` says which.
    """
    try:
        with open_file() as file, Image.open(file) as image:
            return read(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, tarfile.TarError) as error:
        reason = "its format is unknown" if isinstance(error, UnidentifiedImageError) else str(error)
        raise SpectralError(f"{name} cannot be read as an image ({reason}); remove it or replace it.") from error


def rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, transparent parts over white."""
    if _is_deep(image):
        return Image.fromarray((_deep(image) * 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def floats(image: Image.Image) -> npt.NDArray[np.float32]:
    """[H, W, 3] float32 in [0, 1], transparent parts over white; 16-bit grey keeps its 16 bits, floats their values."""
    if image.mode == "F":
        values: npt.NDArray[np.float32] = np.asarray(image, dtype=np.float32)
        if not np.isfinite(values).all():
            raise ValueError("it holds NaN or infinity")
        return np.repeat(values[..., None], 3, axis=-1)
    if _is_deep(image):
        return np.repeat(_deep(image)[..., None], 3, axis=-1)
    colours: npt.NDArray[np.float32] = np.asarray(rgb(image), dtype=np.float32)
    return colours / np.float32(255)


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I;16")


def _deep(image: Image.Image) -> npt.NDArray[np.float32]:
    """16-bit grey in [0, 1]."""
    values: npt.NDArray[np.float32] = np.asarray(image, dtype=np.float32)
    return values / np.float32(65535)
