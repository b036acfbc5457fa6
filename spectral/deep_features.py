"""Reuse of deep features between the steps of a sampling (DeepCache: Ma et al., 2023).

What the deep blocks of a U-Net make changes little from one step to the next. Every so many calls the whole network is
run; in between only its outermost blocks are, and what came up to them from below is that of the last whole call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import SpectralError


class Call(NamedTuple):
    """What a network is about to do.

    Args:
        shape: of the latent [B, C, H, W].
        stage: of a network of stages, the one that the latent belongs to.
        blocks: how many there are on the way down, and on the way up.
    """

    shape: tuple[int, ...]
    stage: int
    blocks: int


@dataclass(frozen=True)
class Reuse:
    """How much is reused.

    Args:
        every: of so many calls in a row the first runs the whole network; 1 reuses nothing.
        outer: how many of LDM's blocks, counted from the outside on either way, every call runs. 1 is the first
            convolution and the last residual block.

    Raises:
        SpectralError: either is no whole number from 1 on.
    """

    every: int
    outer: int = 1

    def __post_init__(self) -> None:
        for name, value in (("every", self.every), ("outer", self.outer)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SpectralError(f"{name} is {value!r:.30}; to reuse deep features give a whole number from 1.")


class DeepFeatures:
    """What one sampling remembers for one batch that it asks about again and again; for `Hooks.recall` and `rise`.

    For a batch of another shape or stage the whole network is run. While gradients are recorded nothing is kept.
    """

    def __init__(self, reuse: Reuse) -> None:
        self.reuse = reuse
        self._calls = 0
        self._last: Call | None = None
        self._kept: Tensor | None = None
        self._wanted: int | None = None

    def recall(self, call: Call) -> tuple[int, Tensor] | None:
        """As `Hooks.recall`; counts the calls."""
        self._wanted = None
        if self.reuse.every == 1 or self.reuse.outer >= call.blocks or torch.is_grad_enabled():
            return None
        if call != self._last:
            self._calls, self._last, self._kept = 0, call, None
        due = self._calls % self.reuse.every == 0
        self._calls += 1
        if due or self._kept is None:
            self._wanted = self.reuse.outer
            return None
        return self.reuse.outer, self._kept

    def wants(self, left: int) -> bool:
        """Whether `rise` keeps what comes up where so many blocks are left."""
        return left == self._wanted

    def rise(self, left: int, h: Tensor) -> None:
        """As `Hooks.rise`: keeps what came up to the outer blocks of a whole call."""
        if self.wants(left):
            self._kept = h
