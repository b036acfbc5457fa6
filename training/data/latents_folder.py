"""A folder of cached latents, as `data cache` writes it of images, and `data imagine` of what a teacher makes.

`latents-00000.safetensors`, … with `index` [n] int64 (a sample's place in the data) and either `moments` [n, 2C, h, w]
(KL: mean, and log-variance in [−30, 20]) or `latent` [n, C, h, w] (VQ, before quantising), and the same of the mirrored
images as `moments_flipped` or `latent_flipped` where asked for; `states` [n, S, C, h, w], scaled, for a student of S
steps where asked for (see `trajectories`); `latents-00000.jsonl`, … with a line {"key", "caption", "groups"}, and
"captions" where there are several, for each row; and `index.json`, what all of it was made from. Latents are the first
stage's, not scaled.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...spectral.errors import SpectralError
from ...spectral.formats.tensor_files import open_tensors
from . import order
from .batches import Batch
from .config import DataConfig
from .images import IN_MEMORY
from .latents import Latents, first_stage_sha256
from .order import Order
from .records import chosen

FORMAT, VERSION, INDEX = "spectral_diffusion latents", 1, "index.json"


class Line(NamedTuple):
    """A sample's name, and what is said of it; as `records.Record`."""

    key: str
    caption: str
    groups: tuple[str, ...]
    also: tuple[str, ...] = ()


class CachedLatents(Latents):
    """The latents in a folder, mapped from its shards.

    Args:
        config: of the run; what contradicts the folder is refused.
        folder: that `data cache` or `data imagine` wrote.

    Raises:
        SpectralError: it is unfinished, damaged, from a newer version, or not what the configuration asks for.
    """

    def __init__(self, config: DataConfig, folder: Path) -> None:
        self.folder, self.about = folder, read_index(folder)
        _check_settings(config, self.about, folder)
        self.kind = str(self.about["kind"])
        #: S, of how many steps a student is that can learn from the states in the folder; 0 where there are none.
        self.states = int(self.about["settings"].get("states", 0))
        self.made_by = self.about["teacher"]["sha256"] if "teacher" in self.about else None
        self._shards: list[dict[str, Tensor]] | None = None
        self._sizes = [int(shard["bucket"]) for shard in self.about["shards"]]
        found = []
        for number, shard in enumerate(self.about["shards"]):
            lines, places = read_lines(folder, shard), self._tensors()[number]["index"].tolist()
            if len(lines) != len(places):
                raise SpectralError(f"{folder / described(shard['file'])} is not of {shard['file']}; cache it again.")
            found += [(place, number, row, *line) for row, (place, line) in enumerate(zip(places, lines, strict=True))]
        found = [entry for entry in sorted(found) if chosen(entry[5], config.subgroups)]
        if not found:
            raise SpectralError(f"{folder} holds no latents in the groups {', '.join(config.subgroups)}.")
        self._places = [(number, row) for _, number, row, *_ in found]
        self._keys = [entry[3] for entry in found]
        also = {place: entry[6] for place, entry in enumerate(found) if entry[6]}
        super().__init__(config, str(folder), [entry[4] for entry in found], [entry[5][-1] for entry in found], also)
        self._bytes = sum(t.nbytes for shard in self._tensors() for t in shard.values())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": None}

    @property
    def in_memory(self) -> bool:
        """Mapped; but what fits into memory is there after the first epoch."""
        return self.config.cache == "memory" or (self.config.cache == "auto" and self._bytes < IN_MEMORY)

    @property
    def sha256(self) -> str:
        said = {key: self.about[key] for key in ("data", "first_stage", "settings", "corrupt")}
        said |= {"teacher": self.made_by} if self.made_by else {}
        said["kept"] = [place for place in self._places] if self.config.subgroups else []
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def order(self, batch_size: int, seed: int) -> Order:
        if not self.config.buckets:
            return super().order(batch_size, seed)
        return order.Bucketed([self._sizes[shard] for shard, _ in self._places], batch_size, seed, join=False)

    def check_first_stage(self, first_stage: nn.Module, name: str) -> None:
        """That these are the latents of a first stage.

        Args:
            name: of its file, for the sentence.

        Raises:
            SpectralError: they are another one's.
        """
        made, given = self.about["first_stage"]["sha256"], first_stage_sha256(first_stage)
        again = "--teacher" if self.made_by else "--first-stage"
        if made != given:
            raise SpectralError(
                f"{self.folder} holds latents of another first stage ({made[:12]}…) than that of {name} "
                f"({given[:12]}…); make them again with: data {maker(self.about)} {again} {name}"
            )

    def key(self, index: int) -> str:
        return self._keys[index]

    def row(self, index: int, flipped: bool) -> Tensor:
        shard, row = self._places[index]
        return self._tensors()[shard][f"{self.kind}_flipped" if flipped else self.kind][row]

    def _batch(self, indices: list[int], rows: list[Tensor]) -> Batch:
        batch = super()._batch(indices, rows)
        if self.states:
            places = [self._places[index] for index in indices]
            batch["states"] = torch.stack([self._tensors()[shard]["states"][row] for shard, row in places])
        return batch

    def _tensors(self) -> list[dict[str, Tensor]]:
        """The mapped tensors of all shards."""
        if self._shards is None:
            self._shards = [open_shard(self.folder, shard, self.about) for shard in self.about["shards"]]
        return self._shards


def read_index(folder: Path, finished: bool = True) -> dict[str, Any]:
    """What a folder of latents is.

    Raises:
        SpectralError: its index cannot be read, is of a newer version, or, where it has to be, it is unfinished.
    """
    path = folder / INDEX
    try:
        about = json.loads(path.read_text("utf-8"))
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise ValueError("it is no index of latents")
        if about.get("version") != VERSION:
            raise SpectralError(
                f"{path} is of version {about.get('version')} of the format, this kit reads {VERSION}; update the kit, "
                "or cache the latents again."
            )
        missing = {"first_stage", "data", "settings", "shards", "kind", "complete", "corrupt"} - set(about)
        if missing:
            raise ValueError(f"it lacks {sorted(missing)[0]}")
    except (OSError, ValueError) as error:
        if isinstance(error, SpectralError):
            raise
        raise SpectralError(f"{path} cannot be read ({error}); cache the latents again.") from error
    if finished and not about["complete"]:
        raise SpectralError(
            f"{folder} is not finished; run the same data {maker(about)} command again, and it goes on."
        )
    return about


def maker(about: dict[str, Any]) -> str:
    """The command `data …` that makes such a folder."""
    return "imagine" if "teacher" in about else "cache"


def described(shard: str) -> str:
    """The file beside a shard that says what its rows are."""
    return shard.replace(".safetensors", ".jsonl")


def read_lines(folder: Path, shard: dict[str, Any]) -> list[Line]:
    """What is said of every row of a shard.

    Raises:
        SpectralError: the file is missing or damaged.
    """
    path = folder / described(shard["file"])
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
        return [
            Line(
                str(row["key"]),
                str(row["caption"]),
                tuple(map(str, row["groups"])),
                tuple(map(str, row.get("captions", ())))[1:],
            )
            for row in rows
        ]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SpectralError(
            f"{path} is missing or damaged; remove {shard['file']}, and run the command again that made the folder."
        ) from error


def open_shard(folder: Path, shard: dict[str, Any], about: dict[str, Any]) -> dict[str, Tensor]:
    """The mapped tensors of a shard.

    Raises:
        SpectralError: it is missing, cut short, or does not hold what the index says.
    """
    path = folder / shard["file"]
    if not path.exists():
        raise SpectralError(
            f"No shard of latents at {path}; restore it, or run data {maker(about)} again to make it anew."
        )
    tensors, _ = open_tensors(path)
    names = {"index"} | {about["kind"] + ending for ending in ("", "_flipped")[: 1 + about["settings"]["flip"]]}
    names |= {"states"} if about["settings"].get("states") else set()
    rows = len(tensors.get("index", ()))
    if (set(tensors) != names and rows) or any(len(tensor) != rows for tensor in tensors.values()):
        raise SpectralError(f"{path} does not hold what its index says; remove it, and run data {maker(about)} again.")
    return tensors


def _check_settings(config: DataConfig, about: dict[str, Any], folder: Path) -> None:
    """That the run asks for what the folder holds."""
    settings = about["settings"]
    if config.size != settings["size"]:
        raise SpectralError(
            f"{folder} holds latents of images of {settings['size']} pixels, data.size is {config.size}; "
            f"set it to {settings['size']}."
        )
    if config.flip and not settings["flip"]:
        remedy = ", or cache again with --flip" if maker(about) == "cache" else ""
        raise SpectralError(f"{folder} holds no mirrored images; leave data.flip out{remedy}.")
    if config.buckets != bool(settings["buckets"]):
        held = "images of several aspects" if settings["buckets"] else "squares"
        raise SpectralError(f"{folder} holds {held}; set data.buckets to {str(bool(settings['buckets'])).lower()}.")
    if config.crop == "random":
        raise SpectralError(f"{folder} holds latents of centre crops; set data.crop to centre.")


def is_cache(path: Path) -> bool:
    """Whether a folder is one of cached latents."""
    if not os.path.isfile(path / INDEX):  # which is False, too, where one may not look
        return False
    return not any(path.glob("*.tar")) and (any(path.glob("latents-*.safetensors")) or _names_format(path / INDEX))


def _names_format(path: Path) -> bool:
    try:
        return FORMAT in path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return False
