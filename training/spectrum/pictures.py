"""The images that the command `spectrum` measures: found in files, folders and shards, loaded one at a time."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ...spectral.errors import SpectralError
from ...spectral.spectrum import luma
from ..data.dataset import EMOJI64
from ..decoding import SUFFIXES, T, decode, files_in, floats

SMALLEST_SIDE = 16  # pixels; below that nothing is left between 4 cycles per image and 3/8 cycles per pixel


@dataclass(frozen=True)
class Picture:
    """An image that is on disk: where it is, and how to open it."""

    name: str
    open: Callable[[], IO[bytes]]

    def size(self) -> tuple[int, int]:
        """(height, width) from the header."""
        width, height = self._decoded(lambda image: image.size)
        if min(width, height) < SMALLEST_SIDE:
            raise SpectralError(
                f"{self.name} is {width}×{height} pixels: a spectrum needs {SMALLEST_SIDE} or more on each side; "
                "leave it out."
            )
        return height, width

    def load(self) -> Tensor:
        """[1, 3, H, W] in [0, 1]."""
        return torch.from_numpy(self._decoded(floats)).movedim(-1, 0)[None]

    def _decoded(self, read: Callable[[Image.Image], T]) -> T:
        return decode(self.open, self.name, read)


@contextmanager
def opened(paths: Sequence[str]) -> Iterator[list[Picture]]:
    """Every image under the given paths: images, folders of images, .tar shards, or emoji64.

    Raises:
        SpectralError: a path that is not there, holds no image, or is a damaged shard.
    """
    with ExitStack() as archives:
        yield [picture for path in paths for picture in _find(path, archives)]


def one_size(pictures: Sequence[Picture]) -> tuple[int, int]:
    """The height and width that all of them have.

    Raises:
        SpectralError: one has another than the first; it is named.
    """
    sizes = [picture.size() for picture in pictures]
    if other := next((own for own in sizes if own != sizes[0]), None):
        (height, width), picture = other, pictures[sizes.index(other)]
        raise SpectralError(
            f"{picture.name} is {width}×{height} pixels, others of its set {sizes[0][1]}×{sizes[0][0]}; bring the "
            "images of a set to one size."
        )
    return sizes[0]


def batches(pictures: Sequence[Picture], said: str) -> Iterator[Tensor]:
    """The images one by one, [1, 3, H, W] in [0, 1], with a progress bar of that name."""
    for picture in tqdm(pictures, desc=said, unit="image", dynamic_ncols=True, disable=None, leave=False):
        yield picture.load()


def mask_of(path: Path | None) -> Tensor | None:
    """The brightness of an image as a mask [H, W]: white counts, black is left out; None for none.

    Raises:
        SpectralError: it cannot be read as an image.
    """
    if path is None:
        return None
    pixels = decode(lambda: path.open("rb"), str(path), floats)
    return luma(torch.from_numpy(pixels).movedim(-1, 0))[0].clamp(0, 1)


def _find(path: str, archives: ExitStack) -> list[Picture]:
    place = EMOJI64 if path == "emoji64" else Path(path)
    if not path or not place.exists():
        raise SpectralError(
            f"No images at {place if path else 'an empty path'}: expected an image, a folder of images or a .tar shard."
        )
    if place.is_dir():
        found = [_on_disk(file) for file in files_in(place)]
    elif place.suffix.lower() == ".tar":
        found = list(_members(place, archives))
    else:
        return [_on_disk(place)]
    if not found:
        raise SpectralError(f"{place} holds no images: expected {', '.join(sorted(SUFFIXES))} files.")
    return found


def _on_disk(file: Path) -> Picture:
    return Picture(str(file), lambda: file.open("rb"))


def _members(shard: Path, archives: ExitStack) -> Iterator[Picture]:
    try:
        archive = archives.enter_context(tarfile.open(shard, "r:"))  # noqa: SIM115
        members = sorted((m for m in archive if m.isfile()), key=lambda member: member.name)
    except (tarfile.TarError, OSError) as error:
        raise SpectralError(
            f"{shard} cannot be read as a tar shard ({error}); replace it by a complete one."
        ) from error
    for member in members:
        if Path(member.name).suffix.lower() in SUFFIXES:
            yield Picture(f"{shard}:{member.name}", partial(archive.extractfile, member))  # type: ignore[arg-type]
