"""Batches of a run in an order that one process, many processes and a resumed run share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

#: Tensors by name, all of the same length: "index" and "ordinal" (see `loop`), and what else the data holds.
Batch = dict[str, Tensor]


class Batches(Protocol):
    """What a run learns from."""

    def batches(self, start: int, rank: int, world: int) -> Iterator[Batch]:
        """The part of process `rank` of `world` in every batch from number `start` on, endlessly."""


class ShuffledIndices:
    """Indices into data that is in memory: a fresh permutation every epoch, a pure function of (seed, epoch).

    Batches run across the ends of epochs, so that all have the same size; processes share every batch.

    Args:
        length: number of items.
        batch_size: items per batch, a multiple of the number of processes.
        seed: of the permutations.
    """

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed

    def batches(self, start: int, rank: int, world: int) -> Iterator[Batch]:
        """Endless batches {"index", "ordinal"}, each [batch_size / world] int64."""
        size = self.batch_size // world
        number = start * world + rank
        epoch, order = -1, torch.empty(0, dtype=torch.int64)
        while True:
            ordinals = torch.arange(number * size, (number + 1) * size)
            index = torch.empty_like(ordinals)
            for needed in (ordinals // self.length).unique().tolist():
                if needed != epoch:
                    epoch, order = needed, self._permutation(needed)
                here = ordinals // self.length == needed
                index[here] = order[ordinals[here] % self.length]
            yield {"index": index, "ordinal": ordinals}
            number += world

    def _permutation(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.length, generator=generator)
