"""Which samples every batch holds: a pure function of the seed and the batch's number, so that a run goes on anywhere.

Batches are numbered over all processes: of `world` processes, process `rank` uses the batches rank, rank + world, …
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch

from ...spectral.errors import SpectralError

Size = tuple[int, int]


class Plan(NamedTuple):
    """A batch to be loaded: (epoch, index) of every sample, and the bucket that all of them belong to."""

    items: list[tuple[int, int]]
    bucket: int = 0


class Order(Protocol):
    """The sequence of all batches."""

    def plan(self, number: int) -> Plan:
        """The batch with this number."""


class Shuffled:
    """A fresh permutation of the data every epoch; batches run across the ends of epochs, so that all are full.

    Args:
        length: number of samples.
        batch_size: samples of a batch.
        seed: of the permutations.
    """

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        self.length, self.batch_size = length, batch_size
        self._permutations = Permutations(seed)

    def plan(self, number: int) -> Plan:
        """The batch with this number."""
        items: list[tuple[int, int]] = []
        while len(items) < self.batch_size:
            epoch, offset = divmod(number * self.batch_size + len(items), self.length)
            chosen = self._permutations.of(epoch, self.length)[offset : offset + self.batch_size - len(items)]
            items += [(epoch, index) for index in chosen.tolist()]
        return Plan(items)


class Permutations:
    """Permutations by epoch, the last few of which are kept."""

    def __init__(self, seed: int, keep: int = 2) -> None:
        self.seed, self.keep = seed, keep
        self._known: dict[tuple[int, int, int], torch.Tensor] = {}

    def of(self, epoch: int, length: int, stream: int = 0) -> torch.Tensor:
        """The permutation [length] int64 of an epoch; another one for every `stream`."""
        wanted = (epoch, length, stream)
        if wanted not in self._known:
            while len(self._known) >= self.keep:
                del self._known[next(iter(self._known))]
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch + (stream << 40)) % 2**63)
            self._known[wanted] = torch.randperm(length, generator=generator)
        return self._known[wanted]


class Bucketed:
    """Batches of one bucket each. An epoch holds every sample once; what is missing in the last batch of a bucket comes
    from the beginning of the bucket's order.

    A bucket of fewer samples than a batch joins its neighbour, so that no batch repeats a sample.

    Args:
        buckets: the bucket of every sample, numbered from the tallest size to the widest.
        join: whether small buckets may join; else their batches repeat samples.
        batch_size: samples of a batch.
        seed: of the permutations.
    """

    def __init__(self, buckets: Sequence[int], batch_size: int, seed: int, join: bool = True) -> None:
        joined = joined_buckets(Counter(buckets), batch_size if join else 1)
        self.members: dict[int, list[int]] = {}
        for index, bucket in enumerate(buckets):
            self.members.setdefault(joined[bucket], []).append(index)
        self.batch_size = batch_size
        self.batches = [
            (bucket, first)
            for bucket, members in sorted(self.members.items())
            for first in range(0, len(members), batch_size)
        ]
        self._permutations = Permutations(seed, keep=2 + 2 * len(self.members))

    def plan(self, number: int) -> Plan:
        """The batch with this number."""
        epoch, place = divmod(number, len(self.batches))
        bucket, first = self.batches[int(self._permutations.of(epoch, len(self.batches), 1)[place])]
        members = self.members[bucket]
        order = self._permutations.of(epoch, len(members), 2 + bucket)
        places = [(first + i) % len(members) for i in range(self.batch_size)]
        return Plan([(epoch, members[int(order[place])]) for place in places], bucket)


def joined_buckets(counts: Counter[int], least: int) -> dict[int, int]:
    """Bucket → the bucket whose batches it joins, so that all have at least `least` samples, or all are one."""
    groups = [[bucket] for bucket in sorted(counts)]
    sizes = [counts[bucket] for bucket in sorted(counts)]
    while len(groups) > 1 and min(sizes) < least:
        small = sizes.index(min(sizes))
        near = min((i for i in (small - 1, small + 1) if 0 <= i < len(groups)), key=lambda i: sizes[i])
        low, high = sorted((small, near))
        groups[low] += groups.pop(high)
        sizes[low] += sizes.pop(high)
    return {bucket: max(group, key=lambda b: counts[b]) for group in groups for bucket in group}


def bucket_sizes(size: int, multiple: int) -> list[Size]:
    """(height, width) from the tallest to the widest, aspects 1:2 to 2:1, of about size² pixels.

    Args:
        size: side of the square among them, in pixels.
        multiple: that every side is a multiple of: pixels of a latent cell × the U-Net's own reduction.

    Raises:
        SpectralError: the square is no such multiple.
    """
    if size % multiple:
        raise SpectralError(
            f"data.size is {size}; with data.buckets it must be a multiple of {multiple}, the pixels that the model "
            "reduces to one cell."
        )
    sizes = {(size, size)}
    for width in range(multiple, 2 * size, multiple):
        height = max(multiple, round(size * size / width / multiple) * multiple)
        if 0.5 <= width / height <= 2 and 0.8 <= height * width / size**2 <= 1.25:
            sizes |= {(height, width), (width, height)}
    return sorted(sizes, key=lambda pair: pair[1] / pair[0])


def nearest_bucket(size: Size, sizes: Sequence[Size]) -> int:
    """The place in `sizes` of the aspect that is nearest to that of (height, width), by ratio."""
    aspect = math.log(size[1] / size[0])
    return min(range(len(sizes)), key=lambda i: abs(aspect - math.log(sizes[i][1] / sizes[i][0])))


def numbers(start: int, rank: int, world: int) -> Iterator[int]:
    """The numbers of the batches of one process that has used `start` of them."""
    number = start * world + rank
    while True:
        yield number
        number += world
