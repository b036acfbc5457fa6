"""Reuse of deep features between the steps of a sampling (DeepCache: Ma et al., 2023).

What the deep blocks of a U-Net make changes little from one step to the next. Every so many calls the whole network is
run; in between only its outermost blocks are, and what came up to them from below is that of the last whole call.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .errors import SpectralError


@dataclass(frozen=True)
class Reuse:
    """How much is reused.

    Args:
        every: of so many calls in a row the first runs the whole network; 1 reuses nothing.
        outer: how many of LDM's blocks, counted from the outside on either way, every call runs. 1 is the first
            convolution and the last residual block.

    Raises:
        SpectralError: either is less than 1.
    """

    every: int
    outer: int = 1

    def __post_init__(self) -> None:
        for name, value in (("every", self.every), ("outer", self.outer)):
            if not isinstance(value, int) or value < 1:
                raise SpectralError(f"{name} is {value!r:.30}; to reuse deep features give a whole number from 1.")


class DeepFeatures:
    """What one sampling remembers for one batch that it asks about again and again; for `Hooks.recall` and `rise`.

    Where a batch of another shape comes, the whole network is run.
    """

    def __init__(self, reuse: Reuse) -> None:
        self.reuse = reuse
        self._calls = 0
        self._shape: tuple[int, ...] = ()
        self._kept: Tensor | None = None

    def recall(self, shape: tuple[int, ...], blocks: int) -> tuple[int, Tensor] | None:
        """As `Hooks.recall`; counts the calls."""
        if self.reuse.every == 1 or self.reuse.outer >= blocks:
            return None
        if shape != self._shape:
            self._calls, self._shape, self._kept = 0, shape, None
        again = self._kept is not None and self._calls % self.reuse.every != 0
        self._calls += 1
        return (self.reuse.outer, self._kept) if again and self._kept is not None else None

    def rise(self, left: int, h: Tensor) -> None:
        """As `Hooks.rise`: keeps what came up to the outer blocks."""
        if self.reuse.every > 1 and left == self.reuse.outer:
            self._kept = h
