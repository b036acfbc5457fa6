"""Images with captions and groups, in memory, and batches of them in an order that a resumed run repeats exactly."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..spectral.errors import SpectralError
from .decoding import SUFFIXES, decode, files_in, rgb

#: The emoji that ship with the kit (see `emoji.py` for how they are made).
EMOJI64 = Path(__file__).parent / "datasets" / "emoji64.tar"


@dataclass(frozen=True)
class DataConfig:
    """Which images a run sees.

    Args:
        path: a WebDataset shard (.tar) or a folder of images; "emoji64" is the set that ships with the kit.
        size: side of the square that images are resized and centre-cropped to, in pixels.
        subgroups: keep only images of these groups or subgroups (in a folder: sub-folders); a trailing "*" matches
            any ending; empty keeps all.
    """

    path: str = "emoji64"
    size: int = 64
    subgroups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 8192:
            raise SpectralError(f"data.size is {self.size}; expected the side of the images in pixels, 1 to 8192.")


@dataclass(frozen=True)
class ImageSet(Dataset[int]):
    """Images [N, 3, S, S] uint8 with a caption and a subgroup each. As a dataset it yields indices into itself."""

    images: Tensor
    captions: tuple[str, ...]
    subgroups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> int:
        return index

    @property
    def sha256(self) -> str:
        """Of the pixels and what is said of them, in hexadecimal."""
        digest = hashlib.sha256(self.images.numpy().tobytes())
        digest.update(json.dumps([self.captions, self.subgroups]).encode())
        return digest.hexdigest()

    def floats(self, indices: Tensor | slice = slice(None)) -> Tensor:
        """The chosen images as float32 in [−1, 1]."""
        return self.images[indices].float().div_(127.5).sub_(1.0)


def load(config: DataConfig) -> ImageSet:
    """Read the images that `config` names, in the order of their file names.

    Raises:
        SpectralError: the path does not exist, is not readable, or nothing is left to train on.
    """
    path = EMOJI64 if config.path == "emoji64" else Path(config.path)
    if not path.exists():
        raise SpectralError(f"No data at {path}: expected a folder of images, a .tar shard, or the name emoji64.")
    records = _read_shard(path) if path.is_file() else _read_folder(path)
    images, captions, subgroups = [], [], []
    for name, content, caption, groups in records:
        if config.subgroups and not any(_matches(group, config.subgroups) for group in groups):
            continue
        images.append(_to_square(content, config.size, name))
        captions.append(caption)
        subgroups.append(groups[-1])
    if not images:
        wanted = f" in the groups {', '.join(config.subgroups)}" if config.subgroups else ""
        raise SpectralError(f"{path} holds no images{wanted}: expected {', '.join(sorted(SUFFIXES))} files.")
    return ImageSet(torch.from_numpy(np.stack(images)).movedim(-1, 1).contiguous(), tuple(captions), tuple(subgroups))


def _matches(group: str, patterns: Sequence[str]) -> bool:
    return any(group == p or (p.endswith("*") and group.startswith(p[:-1])) for p in patterns)


def _to_square(content: bytes | Path, size: int, name: str) -> np.ndarray:
    """Resize and centre-crop to [size, size, 3] uint8."""
    picture = decode(lambda: io.BytesIO(content) if isinstance(content, bytes) else content.open("rb"), name, rgb)
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _read_shard(path: Path) -> Iterator[tuple[str, bytes, str, tuple[str, ...]]]:
    """(name, image file, caption, (group, subgroup)) of every sample of a WebDataset shard: NAME.webp|… + NAME.json."""
    try:
        with tarfile.open(path) as archive:
            files = {member.name: member for member in archive if member.isfile()}
            for name in sorted(files):
                if Path(name).suffix.lower() not in SUFFIXES:
                    continue
                about = {}
                if (described := files.get(str(Path(name).with_suffix(".json")))) is not None:
                    about = json.load(archive.extractfile(described))  # type: ignore[arg-type]
                    if not isinstance(about, dict):
                        raise ValueError(f"{described.name} should hold an object, not {type(about).__name__}")
                content = archive.extractfile(files[name]).read()  # type: ignore[union-attr]
                groups = (str(about.get("group", "")), str(about.get("subgroup", "")))
                yield f"{name} in {path}", content, str(about.get("caption", Path(name).stem)), groups
    except (tarfile.TarError, ValueError, OSError, EOFError) as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise SpectralError(f"{path} cannot be read as a tar shard of images ({reason}).") from error


def _read_folder(path: Path) -> Iterator[tuple[str, Path, str, tuple[str, ...]]]:
    """(name, image path, caption, (sub-folder,)): the caption is a .txt beside the image, else its name in words."""
    for file in files_in(path):
        text = file.with_suffix(".txt")
        try:
            caption = text.read_text("utf-8").strip() if text.exists() else re.sub("[_-]", " ", file.stem)
        except UnicodeDecodeError as error:
            raise SpectralError(f"{text} is no caption: expected text in UTF-8 ({error.reason}).") from error
        yield str(file), file, caption, (file.parent.name,)


@torch.no_grad()
def latents(first_stage: nn.Module, data: ImageSet, device: torch.device | str = "cpu", batch: int = 64) -> Tensor:
    """The (unscaled) latents of all images, [N, C, h, w] float32 on the CPU."""
    parts = [data.floats(slice(i, i + batch)).to(device) for i in range(0, len(data), batch)]
    return torch.cat([first_stage.encode(part).float().cpu() for part in parts])  # type: ignore[operator]
