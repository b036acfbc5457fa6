"""Shards that come through pipes: split among processes and workers, mixed, and taken up again at an exact position.

A stream is cut into *lanes*, each of which gives whole batches: batch b of all is of lane b modulo their number. A lane
reads a few *tracks* side by side, sample by sample in turn. A track reads whole shards, one after the other: of every
epoch's permutation of the shards, those that are its own. A shard's samples are mixed among themselves alone. So the
position of a track is a shard and a place in it, and what lies before is passed over unread where its length is known.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ...spectral.errors import SpectralError
from . import order, pictures, pipes
from .batches import Batch, Data, Loaded, make_loader
from .config import DataConfig
from .notes import ShardCounts
from .order import Permutations, Size
from .pictures import CorruptImageError, Framing, Pixels
from .pipes import Raw
from .records import drawn

#: Shards that a lane reads side by side, where there are so many.
TRACKS = 4
#: Batches that are sorted by aspect together.
BLOCK = 8
#: Corrupt images in a row, after which nothing more is expected.
MOST_CORRUPT = 1000


class Stream(Data):
    """Shards from the output of commands.

    Args:
        config: how they are mixed and framed.
        commands: one for each shard.
        source: what to call them in a sentence.
        multiple: that the sides of buckets are multiples of, in pixels.
    """

    def __init__(self, config: DataConfig, commands: Sequence[str], source: str, multiple: int = 1) -> None:
        super().__init__(config, source, None, None)
        self.commands = commands
        self.sizes = order.bucket_sizes(config.size, multiple) if config.buckets else [(config.size, config.size)]
        self.counts = ShardCounts(None)

    @property
    def sha256(self) -> str:
        """Of the shards' names; what is in them nobody knows beforehand."""
        return hashlib.sha256(repr([pipes.shard_name(command) for command in self.commands]).encode()).hexdigest()

    def preview_samples(self, count: int) -> Batch:
        """The first of the first shard."""
        raws = pipes.samples(self.commands[0], self.config.subgroups, 0)
        found: list[tuple[Raw, Pixels]] = []
        for raw in raws:
            if len(found) == count:
                break
            try:
                found.append((raw, _decoded(raw, (self.config.size,) * 2, Framing())))
            except CorruptImageError:
                continue
        if not found:
            raise SpectralError(f"No image of the first shard of {self.source} can be read; check the data.")
        return _batch(found, [raw.captions[0] for raw, _ in found])

    def recall(self, folder: Path | None) -> None:
        self.counts = ShardCounts(None if folder is None else folder / "shards.jsonl")

    def note(self, counted: Sequence[tuple[int, int]]) -> None:
        self.counts.add(counted)

    def lanes(self, world: int) -> int:
        """How many there are: a multiple of the number of processes, and the same for as many numbers as possible.

        Raises:
            SpectralError: there are more processes than shards.
        """
        if len(self.commands) < world:
            raise SpectralError(
                f"{self.source} has {len(self.commands)} shards for {world} processes; each needs one of its own: "
                "start fewer processes, or cut the data into more shards."
            )
        most = min(self.config.lanes, len(self.commands))
        parts = [count for count in range(world, most + 1, world) if self.config.lanes % count == 0]
        return max(parts, default=max(world, most // world * world))

    def loader(self, batch_size: int, seed: int, start: int, rank: int, world: int, workers: int) -> DataLoader[Loaded]:
        lanes = self.lanes(world)
        usable = [count for count in range(1, workers + 1) if lanes % (world * count) == 0]
        reading = _Reading(self, batch_size, seed, (start, rank, world), lanes)
        return make_loader(reading, usable[-1] if usable else 0)


class _Reading(IterableDataset[Loaded]):
    """The batches of one process, of which every worker gives its share."""

    def __init__(self, data: Stream, batch_size: int, seed: int, place: tuple[int, int, int], lanes: int) -> None:
        self.data, self.batch_size, self.seed, self.place, self.lanes = data, batch_size, seed, place, lanes

    def __iter__(self) -> Iterator[Loaded]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        open_lanes: dict[int, Lane] = {}
        numbers = order.numbers(*self.place)
        try:
            for turn, number in enumerate(numbers):
                if turn % workers != worker:
                    continue
                number, lane = divmod(number, self.lanes)
                if lane not in open_lanes:
                    open_lanes[lane] = Lane(self.data, self.batch_size, self.seed, lane, self.lanes, number)
                yield open_lanes[lane].load()
        except SpectralError as error:
            yield Loaded(None, [], str(error))


class Lane:
    """Batches of one lane from its batch `start` on.

    Args:
        data: the stream.
        batch_size: samples of a batch.
        seed: of order, crops and mirroring.
        number, lanes: which of how many lanes.
        start: batches of this lane that have been used.
    """

    def __init__(self, data: Stream, batch_size: int, seed: int, number: int, lanes: int, start: int) -> None:
        self.data, self.batch_size, self.seed, self.number = data, batch_size, seed, number
        self.framing = Framing(data.config.crop, data.config.flip, seed)
        block = BLOCK if data.config.buckets else 1
        self.block, within = divmod(start, block)
        self.counted: list[tuple[int, int]] = []
        first = self.block * block * batch_size
        tracks = max(1, min(TRACKS, len(data.commands) // lanes))
        self._tracks = [
            self._track(number * tracks + i, lanes * tracks, (first - i + tracks - 1) // tracks) for i in range(tracks)
        ]
        self._turn = first % tracks
        self._ahead: deque[Raw] = deque()
        self._corrupt: set[str] = set()
        self._ready = deque(list(self._next_block())[within:])

    def load(self) -> Loaded:
        """The next batch."""
        if not self._ready:
            self.block += 1
            self._ready.extend(self._next_block())
        size, raws = self._ready.popleft()
        corrupt: list[tuple[str, str]] = []
        found = [self._next_good(raws[place:], size, corrupt) for place in range(len(raws))]
        counted, self.counted = tuple(self.counted), []
        good = [sample for sample in found if sample is not None]
        if len(good) < len(found):
            return Loaded(None, corrupt, None, counted)
        return Loaded(_batch(good, [self._caption(raw) for raw, _ in good]), corrupt, None, counted)

    def _caption(self, raw: Raw) -> str:
        """What a sample is called in its epoch."""
        shown = self.data.config.captions
        captions = raw.captions[:1] if shown == "first" else raw.captions
        return drawn(captions, self.seed, raw.epoch, raw.key, shown == "half")

    def _next_block(self) -> Iterator[tuple[Size, list[Raw]]]:
        """Batches not yet decoded: one; or, with buckets, several sorted by aspect, in any order."""
        if not self.data.config.buckets:
            yield self.data.sizes[0], self._take(self.batch_size)
            return
        raws = [(_aspect(raw), raw) for raw in self._take(BLOCK * self.batch_size)]
        raws.sort(key=lambda pair: (pair[0][1] / pair[0][0], pair[1].key))
        starts = list(range(0, len(raws), self.batch_size))
        random.Random(f"{self.seed} {self.number} {self.block}").shuffle(starts)
        for start in starts:
            part = raws[start : start + self.batch_size]
            middle = part[len(part) // 2][0]
            yield self.data.sizes[order.nearest_bucket(middle, self.data.sizes)], [raw for _, raw in part]

    def _take(self, count: int) -> list[Raw]:
        return [self._ahead.popleft() if self._ahead else self._pull() for _ in range(count)]

    def _pull(self) -> Raw:
        track = self._tracks[self._turn]
        self._turn = (self._turn + 1) % len(self._tracks)
        return next(track)

    def _next_good(self, raws: list[Raw], size: Size, corrupt: list[tuple[str, str]]) -> tuple[Raw, Pixels] | None:
        """The first sample that can be read of `raws` and, if none can, of those that come after the batch."""
        for place in range(len(raws) + MOST_CORRUPT):
            if place >= len(raws) + len(self._ahead):
                self._ahead.append(self._pull())
            raw = raws[place] if place < len(raws) else self._ahead[place - len(raws)]
            try:
                return raw, _decoded(raw, size, self.framing)
            except CorruptImageError as error:
                if raw.name not in self._corrupt:
                    self._corrupt.add(raw.name)
                    corrupt.append((raw.name, str(error)))
        return None

    def _track(self, number: int, tracks: int, skip: int) -> Iterator[Raw]:
        """The samples of one track, but for the first `skip`."""
        permutations, epoch = Permutations(self.seed), 0
        while True:
            seen = 0
            for shard in permutations.of(epoch, len(self.data.commands))[number::tracks].tolist():
                known = self.data.counts.known.get(shard)
                if known is not None and known <= skip:
                    skip, seen = skip - known, seen + known
                    continue
                count = 0
                for raw in self._mixed(shard, epoch):
                    count += 1
                    if skip:
                        skip -= 1
                    else:
                        yield raw
                self.counted.append((shard, count))
                self.data.counts.known.setdefault(shard, count)
                seen += count
            if not seen:
                wanted = f" in the groups {', '.join(self.data.config.subgroups)}" * bool(self.data.config.subgroups)
                raise SpectralError(f"A part of {self.data.source} holds no images{wanted}; check the shards.")
            epoch += 1

    def _mixed(self, shard: int, epoch: int) -> Iterator[Raw]:
        """The samples of a shard, each at a random place among those that are held back."""
        chance = random.Random(f"{self.seed} {epoch} {shard}")
        held: list[Raw] = []
        for raw in pipes.samples(self.data.commands[shard], self.data.config.subgroups, epoch):
            held.append(raw)
            if len(held) * len(self._tracks) > self.data.config.shuffle:
                yield _drawn(held, chance)
        while held:
            yield _drawn(held, chance)


def _drawn(held: list[Raw], chance: random.Random) -> Raw:
    place = chance.randrange(len(held))
    held[place], held[-1] = held[-1], held[place]
    return held.pop()


def _aspect(raw: Raw) -> Size:
    """Height and width of a sample; of a corrupt one, a square's."""
    try:
        return pictures.size_of(raw.content, raw.name)
    except CorruptImageError:
        return 1, 1


def _decoded(raw: Raw, size: Size, framing: Framing) -> Pixels:
    pixels = pictures.prepared(pictures.picture(raw.content, raw.name), size, framing)
    return pictures.framed(pixels, size, framing, raw.key, raw.epoch)


def _batch(found: Sequence[tuple[Raw, Pixels]], captions: list[str]) -> Batch:
    return {
        "image": torch.from_numpy(np.stack([pixels for _, pixels in found])),
        "caption": captions,
        "label": [raw.groups[-1] for raw, _ in found],
    }
