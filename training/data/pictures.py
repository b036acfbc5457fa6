"""Image files as pixels: decoded, resized, cropped and mirrored, the same way whenever the same epoch comes again."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ...spectral.errors import SpectralError
from ..decoding import decode, rgb

Pixels = npt.NDArray[np.uint8]


class CorruptImageError(SpectralError):
    """An image that cannot be read, where others may be."""


@dataclass(frozen=True)
class Framing:
    """How images become equal in size.

    Args:
        crop: "centre", or "random": which part of an image that is too long.
        flip: mirror half of the images.
        seed: of both.
    """

    crop: Literal["centre", "random"] = "centre"
    flip: bool = False
    seed: int = 0

    def draw(self, key: str, epoch: int) -> tuple[float, bool]:
        """Where the crop of a sample lies, 0 (left or top) to 1, and whether it is mirrored: a pure function."""
        numbers = random.Random(f"{self.seed} {epoch} {key}")
        place, mirrored = numbers.random(), numbers.random() < 0.5
        return (place if self.crop == "random" else 0.5), self.flip and mirrored


def picture(content: bytes, name: str) -> Image.Image:
    """The picture in a file's content: upright, RGB, transparent parts over white.

    Raises:
        CorruptImageError: it is none.
    """
    try:
        return decode(lambda: io.BytesIO(content), name, rgb)
    except SpectralError as error:
        raise CorruptImageError(str(error)) from error
    except Exception as error:  # Pillow's readers let through what their parsing meets: struct.error, zlib.error, …
        raise CorruptImageError(f"{name} cannot be read as an image ({error}); remove it or replace it.") from error


def size_of(content: bytes, name: str) -> tuple[int, int]:
    """(height, width) of the upright picture in a file's content, from its header alone.

    Raises:
        CorruptImageError: it is none.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:  # as above
        raise CorruptImageError(f"{name} cannot be read as an image ({error}); remove it or replace it.") from error


def covering(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resized to the least size that covers (height, width), its aspect kept."""
    height, width = size
    scale = max(height / image.height, width / image.width)
    wanted = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    return image if image.size == wanted else image.resize(wanted, Image.Resampling.LANCZOS)


def _channels_first(image: Image.Image) -> Pixels:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def prepared(image: Image.Image, size: tuple[int, int], framing: Framing) -> Pixels:
    """What can be kept of an image for every epoch: all that `framed` may choose from, [3, H, W] uint8."""
    if framing.crop == "random":
        return _channels_first(covering(image, size))
    height, width = size
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return _channels_first(image)


def framed(pixels: Pixels, size: tuple[int, int], framing: Framing, key: str, epoch: int) -> Pixels:
    """The sample of one epoch, [3, H, W] uint8, from what `prepared` kept."""
    place, mirrored = framing.draw(key, epoch)
    cut = _window(pixels, size, place)
    return cut[..., ::-1] if mirrored else cut


def _window(pixels: Pixels, size: tuple[int, int], place: float) -> Pixels:
    """The part (height, width) of [3, H, W] at `place`, 0 (left and top) to 1 (right and bottom), to the pixel."""
    top, left = (
        min(int(place * (whole - part + 1)), whole - part) for whole, part in zip(pixels.shape[1:], size, strict=True)
    )
    return pixels[:, top : top + size[0], left : left + size[1]]
