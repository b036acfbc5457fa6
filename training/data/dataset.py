"""Opens whatever `data.path` names."""

from __future__ import annotations

from pathlib import Path

from ...spectral.autoencoder import FirstStage
from ...spectral.errors import SpectralError
from ..decoding import SUFFIXES
from ..processes import is_main
from . import records, shards
from .batches import Data, corrupt_log
from .config import DataConfig
from .images import Images
from .latents import HeldLatents
from .latents_folder import CachedLatents, is_cache
from .records import Record
from .streams import Stream

#: The emoji that ship with the kit (see `datasets/emoji.py` for how they are made).
EMOJI64 = Path(__file__).parent.parent / "datasets" / "emoji64.tar"
#: Groups that a sentence names.
MOST_GROUPS = 20


def open_data(config: DataConfig, *, multiple: int = 1) -> Data:
    """The samples that `config` names, in the order of their names.

    Args:
        config: where they are and how they are framed.
        multiple: that the sides of buckets are multiples of, in pixels: the first stage's × the U-Net's reduction.

    Raises:
        SpectralError: the path does not exist, is not readable, or nothing is left to train on.
    """
    if config.path.startswith("pipe:"):
        commands = shards.expand(config.path.removeprefix("pipe:").strip(), lists=False)
        return Stream(config, commands, config.path, multiple)
    if is_cache(Path(config.path)):
        return CachedLatents(config, Path(config.path))
    return open_images(config, multiple)


def as_latents(data: Data, first_stage: FirstStage, name: str, folder: Path | None = None) -> Data:
    """The same data as latents where they fit into memory; otherwise every batch is encoded when it comes.

    Args:
        data: as `open_data` gives it.
        first_stage: makes the latents, on its device.
        name: of its file, for the sentence.
        folder: of the run, where what cannot be read is named; None names it nowhere.

    Raises:
        SpectralError: the data are latents of another first stage, or too many of the images cannot be read.
    """
    if isinstance(data, CachedLatents):
        data.check_first_stage(first_stage, name)
    corrupt_log(data, folder, is_main())
    if isinstance(data, Images) and data.in_memory and data.config.crop == "centre" and data.buckets is None:
        return HeldLatents(data, first_stage)
    return data


def open_images(config: DataConfig, multiple: int = 1) -> Images:
    """The images of a folder, or of the shards that a path stands for; raises as `open_data`."""
    if config.path.startswith("pipe:"):
        raise SpectralError(f"{config.path} is a stream; expected a folder, shards on this machine, or emoji64.")
    if is_cache(Path(config.path)):
        raise SpectralError(
            f"{config.path} holds cached latents; expected images: a folder, shards on this machine, or emoji64."
        )
    path = EMOJI64 if config.path == "emoji64" else Path(config.path)
    found = records.in_folder(path) if path.is_dir() else shards.in_shards(shards.named(str(path)))
    kept = [record for record in found if records.chosen(record.groups, config.subgroups)]
    if not kept:
        raise SpectralError(_nothing(config, path, found))
    return Images(config, kept, str(path), multiple)


def _nothing(config: DataConfig, path: Path, found: list[Record]) -> str:
    """The sentence where no image is left."""
    if found:
        groups = sorted({group for record in found for group in record.groups})
        told = ", ".join(groups[:MOST_GROUPS]) + ", …" * (len(groups) > MOST_GROUPS)
        return f"{path} holds no images in the groups {', '.join(config.subgroups)}; its groups are {told}."
    if path.is_dir() and any(path.glob("*.tar")):
        return f"{path} holds no images: for the shards in it set data.path to {path}/*.tar."
    return f"{path} holds no images: expected {', '.join(sorted(SUFFIXES))} files."
