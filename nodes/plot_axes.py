"""The axes of charts: where a value lies, and which round numbers stand beside it."""

from __future__ import annotations

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


def log_axis(label: str, values: Sequence[Array], low: float | None = None, high: float | None = None) -> Axis:
    """A logarithmic axis around all positive values, at most 9 decades below the largest.

    Over more than three decades it ends at powers of ten, which are its ticks; otherwise ticks stand at 1, 2 and 5 of
    each decade too.

    Args:
        low, high: its ends; by default of the values.
    """
    found = _finite(values)
    found = found[found > 0]
    top = high or (float(found.max()) if found.size else 1.0)
    bottom = low or max(float(found.min()) if found.size else top / 10, top * 1e-9)
    wide = math.log10(top / bottom) > 3
    if wide or top / bottom < 2:
        top = high or 10.0 ** math.ceil(math.log10(top) - 1e-9)
        bottom = low or 10.0 ** min(math.floor(math.log10(bottom) + 1e-9), math.ceil(math.log10(top)) - 1)
    elif low is None and high is None:
        top, bottom = top * 1.04, bottom / 1.04
    decades = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
    every = 1 if len(decades) <= 8 else 2
    leads = (1,) if wide else (1, 2, 5)
    ticks = tuple(lead * 10.0**power for power in decades[::every] for lead in leads)
    return Axis(label, bottom, top, tuple(t for t in ticks if bottom * (1 - 1e-9) <= t <= top * (1 + 1e-9)))


def linear_axis(
    label: str,
    values: Sequence[Array],
    low: float | None = None,
    high: float | None = None,
    within: tuple[float, float] | None = None,
    reversed: bool = False,
) -> Axis:
    """A linear axis around all values that ends at round numbers.

    Args:
        low, high: its ends; by default of the values.
        within: limits that round ends do not leave.
    """
    found = _finite(values)
    bottom, top = (float(found.min()), float(found.max())) if found.size else within or (0.0, 1.0)
    bottom, top = bottom if low is None else low, top if high is None else high
    least = 0.02 * (within[1] - within[0]) if within else 1e-3 * max(abs(bottom), abs(top)) or 1.0
    step = _round_step(max(top - bottom, least))
    start, end = math.floor(bottom / step + 1e-9) * step, math.ceil(top / step - 1e-9) * step
    if within:
        start, end = max(start, min(within[0], bottom)), min(end, max(within[1], top))
    start, end = start if low is None else low, end if high is None else high
    end = max(end, start + least)
    ticks = _round_ticks(start, end)
    return Axis(label, end, start, ticks[::-1], log=False) if reversed else Axis(label, start, end, ticks, log=False)


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


def _finite(values: Sequence[Array]) -> Array:
    every = np.concatenate([np.zeros(0), *(np.asarray(value, dtype=float).ravel() for value in values)])
    return every[np.isfinite(every)]


def _round_step(spread: float) -> float:
    """1, 2 or 5 times a power of ten, such that four to ten of them make the spread."""
    power = 10.0 ** math.floor(math.log10(spread / 4))
    return next(lead * power for lead in (5, 2, 1) if lead * power <= spread / 4)


def _round_ticks(low: float, high: float) -> tuple[float, ...]:
    step = _round_step(max(high - low, 1e-9))
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return tuple(round(index * step, 10) for index in range(first, last + 1))
