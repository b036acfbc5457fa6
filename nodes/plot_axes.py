"""The axes of charts: where a value lies, and which round numbers stand beside it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """A labelled axis from `low` to `high`, with its ticks, in the data's units; not logarithmic, it may run down."""

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = True

    def place(self, value: Array | float) -> Array:
        """Position of values along the axis, 0 to 1."""
        if self.log:
            spread = math.log(self.high / self.low)
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.asarray(np.log(np.asarray(value, dtype=float) / self.low) / spread)
        return np.asarray((np.asarray(value, dtype=float) - self.low) / (self.high - self.low))


@dataclass(frozen=True)
class Mark:
    """A vertical line at `x` with a short word beside it."""

    x: float
    label: str


def frequency_axis(low: float, high: float) -> Axis:
    """A logarithmic axis in cycles per pixel with ticks at 1, 2 and 5 of each decade."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = tuple(lead * 10.0**power for power in decades for lead in (1, 2, 5))
    return Axis("spatial frequency (cycles per pixel)", low, high, tuple(t for t in ticks if low <= t <= high))


def cycles_axis(low: float, high: float) -> Axis:
    """A logarithmic axis in cycles per image with ticks at 1, 2 and 5 of each decade."""
    return dataclasses.replace(frequency_axis(low, high), label="spatial frequency (cycles per image)")


def step_axis(first: float) -> Axis:
    """Time steps down to 0, the finished picture, from the round number at or above the first one."""
    ticks = _round_ticks(0.0, max(first, 1.0))
    if ticks[-1] < first:
        ticks = (*ticks, ticks[-1] + ticks[1])
    return Axis("time step, from noise to picture", ticks[-1], 0.0, tuple(reversed(ticks)), log=False)


def plain_axis(label: str, values: Sequence[Array], within: tuple[float, float]) -> Axis:
    """A linear axis around all values that ends at round numbers and never leaves `within`."""
    finite = np.concatenate([np.asarray(value, dtype=float).ravel() for value in values])
    finite = finite[np.isfinite(finite)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else within
    step = _round_step(max(high - low, 0.02 * (within[1] - within[0])))
    low = max(math.floor(low / step) * step, min(within[0], low))
    high = min(math.ceil(high / step) * step, max(within[1], high))
    return Axis(label, low, max(high, low + step), _round_ticks(low, max(high, low + step)), log=False)


def power_axis(label: str, values: Sequence[Array]) -> Axis:
    """A logarithmic axis in whole decades around all positive values, at most 9 decades below the largest."""
    positive = np.concatenate([np.asarray(value, dtype=float).ravel() for value in values])
    positive = positive[np.isfinite(positive) & (positive > 0)]
    top = math.ceil(math.log10(positive.max()) + 1e-9) if positive.size else 0
    bottom = math.floor(math.log10(positive.min()) - 1e-9) if positive.size else -1
    bottom = max(min(bottom, top - 1), top - 9)
    step = 1 if top - bottom <= 6 else 2
    ticks = tuple(10.0**power for power in range(bottom, top + 1, step))
    return Axis(label, 10.0**bottom, 10.0**top, ticks)


def _round_step(spread: float) -> float:
    """1, 2 or 5 times a power of ten, such that four to ten of them make the spread."""
    power = 10.0 ** math.floor(math.log10(spread / 4))
    return next(lead * power for lead in (5, 2, 1) if lead * power <= spread / 4)


def _round_ticks(low: float, high: float) -> tuple[float, ...]:
    step = _round_step(max(high - low, 1e-9))
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return tuple(round(index * step, 10) for index in range(first, last + 1))
