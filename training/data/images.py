"""Images with random access, from folders or shards, in memory or read when they are asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import numpy as np
import torch

from ...spectral.errors import SpectralError
from . import order, pictures
from .batches import Batch, Loaded, MapData
from .config import DataConfig
from .notes import most_corrupt
from .order import Order, Plan, Size
from .pictures import CorruptImageError, Framing, Pixels
from .reading import Reader
from .records import Record

T = TypeVar("T")

#: Bytes of pixels that are kept in memory without being asked to.
IN_MEMORY = 1 << 30
#: Bytes of image files of which every one counts for the digest of the data, not only their number.
DIGESTED = 1 << 28


class Images(MapData):
    """The images of folders and shards.

    Args:
        config: how they are framed.
        records: where they lie.
        source: what to call them in a sentence.
        multiple: that the sides of buckets are multiples of, in pixels.

    Raises:
        SpectralError: the configuration contradicts itself, or a shard is gone.
    """

    def __init__(self, config: DataConfig, records: Sequence[Record], source: str, multiple: int = 1) -> None:
        also = {place: record.also for place, record in enumerate(records) if record.also}
        super().__init__(config, source, [r.caption for r in records], [r.groups[-1] for r in records], also)
        self.records, self.reader = records, Reader()
        self.sizes: list[Size] = [(config.size, config.size)]
        self._corrupt: dict[int, str] = {}
        self._kept: list[Pixels | None] | None = None
        self._digest = ""
        self.buckets: list[int] | None = None
        if config.buckets:
            self.sizes = order.bucket_sizes(config.size, multiple)
            self.buckets = self._each(self._bucket, order.nearest_bucket((1, 1), self.sizes))
        pixels = 3 * config.size**2 * len(records)
        if config.cache == "memory" or (config.cache == "auto" and not config.buckets and pixels < IN_MEMORY):
            self._kept = self._each(self._prepare, None)

    @property
    def in_memory(self) -> bool:
        return self._kept is not None

    @property
    def sha256(self) -> str:
        """Of names, sizes, captions and groups; and of the image files, where they are less than 256 MiB in all."""
        if not self._digest:
            digest = hashlib.sha256()
            whole = sum(record.size for record in self.records) < DIGESTED
            for record in self.records:
                also = (record.also,) if record.also else ()
                digest.update(repr((record.key, record.size, record.caption, record.groups, *also)).encode())
                if whole:
                    digest.update(self._content(record))
            self._digest = digest.hexdigest()
        return self._digest

    def found(self) -> list[tuple[str, str]]:
        return [(self.records[index].name, reason) for index, reason in sorted(self._corrupt.items())]

    def order(self, batch_size: int, seed: int) -> Order:
        if self.buckets is None:
            return super().order(batch_size, seed)
        return order.Bucketed(self.buckets, batch_size, seed)

    def preview_samples(self, count: int) -> Batch:
        """Squares from the centres of samples from all over the data."""
        samples = []
        for place in torch.linspace(0, len(self) - 1, min(count, len(self))).long().tolist():
            with suppress(CorruptImageError):
                samples.append((place, self._sample(place, 0, Framing(), (self.config.size,) * 2, kept=False)))
        if not samples:
            raise SpectralError(f"The images of {self.source} cannot be read; check the first and the last of them.")
        return self._batch(samples)

    def load(self, plan: Plan, seed: int, mirrored: bool = True) -> Loaded:
        framing = Framing(self.config.crop, self.config.flip and mirrored, seed)
        size = self.sizes[plan.bucket]
        corrupt: list[tuple[str, str]] = []
        samples: list[tuple[int, Pixels]] = []
        for epoch, index in plan.items:
            sample = self._next_good(index, epoch, framing, size, corrupt)
            if sample is None:
                return Loaded(None, corrupt)
            samples.append(sample)
        shown = zip(plan.items, samples, strict=True)
        captions = [self.caption(index, seed, epoch) for (epoch, _), (index, _) in shown]
        return Loaded(self._batch(samples) | {"caption": captions}, corrupt)

    def key(self, index: int) -> str:
        return self.records[index].key

    def _batch(self, samples: list[tuple[int, Pixels]]) -> Batch:
        indices = [index for index, _ in samples]
        return {
            "image": torch.from_numpy(np.stack([pixels for _, pixels in samples])),
            "index": torch.tensor(indices),
            "caption": [self.captions[index] for index in indices],
            "label": [self.subgroups[index] for index in indices],
        }

    def _next_good(
        self, index: int, epoch: int, framing: Framing, size: Size, corrupt: list[tuple[str, str]]
    ) -> tuple[int, Pixels] | None:
        """The sample at `index`, or the first behind it that can be read; None where too many cannot."""
        most = most_corrupt(self.config.max_corrupt, len(self))
        for place in range(index, index + len(self)):
            place %= len(self)
            if place in self._corrupt:
                continue
            try:
                return place, self._sample(place, epoch, framing, size)
            except CorruptImageError as error:
                self._corrupt[place] = str(error)
                corrupt.append((self.records[place].name, str(error)))
            if len(self._corrupt) > most:
                return None
        return None

    def _sample(self, index: int, epoch: int, framing: Framing, size: Size, kept: bool = True) -> Pixels:
        record = self.records[index]
        pixels = self._kept[index] if kept and self._kept is not None else None
        if pixels is None:
            image = pictures.picture(self.reader.read(record), record.name)
            pixels = pictures.prepared(image, size, framing)
        return pictures.framed(pixels, size, framing, record.key, epoch)

    def _each(self, make: Callable[[Record], T], otherwise: T) -> list[T]:
        """What `make` gives for every record, by all cores; `otherwise` for what turns out to be corrupt."""

        def one(index: int) -> T:
            try:
                return make(self.records[index])
            except CorruptImageError as error:
                self._corrupt[index] = str(error)
                return otherwise

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            return list(threads.map(one, range(len(self.records))))

    def _bucket(self, record: Record) -> int:
        return order.nearest_bucket(pictures.size_of(self.reader.read(record), record.name), self.sizes)

    def _prepare(self, record: Record) -> Pixels | None:
        image = pictures.picture(self.reader.read(record), record.name)
        return pictures.prepared(image, self.sizes[0], Framing(self.config.crop))

    def _content(self, record: Record) -> bytes:
        try:
            return self.reader.read(record)
        except CorruptImageError:
            return b""
