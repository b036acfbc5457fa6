"""Random numbers that belong to a sample and not to a process: the same on one device, on many, and after a stop."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class SampleRandom:
    """The random numbers of the samples of one batch; each sample has a stream of its own.

    A stream is numpy's Philox (Salmon et al., 2011: a generator that counts under a key), keyed by the run's seed and
    the sample's ordinal: how many samples the run has seen before it. So neither the number of processes, nor their
    order, nor a stop changes what a sample meets, and nothing of it has to be saved.

    Args:
        seed: of the run.
        ordinals: [B] int64, different for every sample of the run.
        device: where `normal` draws; normal numbers differ between kinds of devices, the others do not.
    """

    def __init__(self, seed: int, ordinals: Tensor, device: torch.device | str = "cpu") -> None:
        keys = ordinals.tolist()
        self.streams = [np.random.Generator(np.random.Philox(key=[seed, key])) for key in keys]
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device)

    def uniform(self) -> Tensor:
        """[B] float64 in [0, 1), on the CPU."""
        return torch.tensor([stream.random() for stream in self.streams], dtype=torch.float64)

    def integers(self, high: int) -> Tensor:
        """[B] int64 from 0 to `high` − 1, on the CPU."""
        return torch.tensor([int(stream.integers(high)) for stream in self.streams])

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """[B, *shape] float32 of mean 0 and variance 1, on the device."""
        drawn = torch.empty(len(self.streams), *shape, device=self.device)
        for row, stream in zip(drawn, self.streams, strict=True):
            self.generator.manual_seed(int(stream.integers(2**63)))
            torch.randn(shape, generator=self.generator, device=self.device, out=row)
        return drawn
