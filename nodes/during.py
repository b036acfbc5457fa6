"""When in the sampling a patch works: a range in percent, and a curve between its ends.

Percents are core's: of the model's schedule, 0 at pure noise and 1 at the finished picture, however many steps there
are.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from ..spectral.errors import SpectralError

#: How strong a patch is along its range: position 0 … 1 → 0 … 1.
CURVES: dict[str, Callable[[float], float]] = {
    "constant": lambda _position: 1.0,
    "rising": lambda position: position,
    "falling": lambda position: 1.0 - position,
    "rising smoothly": lambda position: 0.5 - 0.5 * math.cos(math.pi * position),
    "falling smoothly": lambda position: 0.5 + 0.5 * math.cos(math.pi * position),
    "rising and falling": lambda position: 0.5 - 0.5 * math.cos(2 * math.pi * position),
}
#: Into how many parts a model's schedule is cut where its percents are looked up.
_PARTS = 1000
_tables: WeakKeyDictionary[Any, list[float]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Range:
    """A part of the sampling.

    Args:
        start, end: percents as numbers from 0 to 1, both within the range.
        curve: one of CURVES, from start to end.

    Raises:
        SpectralError: the range ends before it starts, or there is no such curve.
    """

    start: float
    end: float
    curve: str = "constant"

    def __post_init__(self) -> None:
        numbers = all(isinstance(percent, (int, float)) for percent in (self.start, self.end))
        if not numbers or not 0 <= self.start <= self.end <= 1:
            raise SpectralError(
                f"The range goes from start_percent {self.start!r:.30} to end_percent {self.end!r:.30}; expected both "
                "between 0 and 1, and the start not after the end."
            )
        if self.curve not in CURVES:
            raise SpectralError(f"There is no curve {self.curve!r}; expected one of {', '.join(CURVES)}.")

    def strength(self, percent: float) -> float:
        """How much of the patch applies, 0 to 1; 0 outside the range."""
        if not self.start <= percent <= self.end:
            return 0.0
        length = self.end - self.start
        return CURVES[self.curve]((percent - self.start) / length if length else 0.0)


def widgets(what: str) -> dict[str, Any]:
    """The three inputs of a node that works during a part of the sampling; `what` it does then."""
    percent = {"min": 0.0, "max": 1.0, "step": 0.001, "round": 0.001}
    start = f"When {what} begins, as a part of the sampling: 0 is pure noise, 1 the finished picture."
    end = f"When {what} ends, as a part of the sampling: 0 is pure noise, 1 the finished picture."
    curve = (
        f"How strong {what} is from start_percent to end_percent. constant: full all along; rising: from nothing to "
        "full; falling: from full to nothing; smoothly: along a cosine instead of a line; rising and falling: full in "
        "the middle."
    )
    return {
        "start_percent": ("FLOAT", {**percent, "default": 0.0, "tooltip": start}),
        "end_percent": ("FLOAT", {**percent, "default": 1.0, "tooltip": end}),
        "curve": (list(CURVES), {"default": "constant", "tooltip": curve}),
    }


def validate(start_percent: float | None, end_percent: float | None) -> bool | str:
    """For VALIDATE_INPUTS: True, or the sentence about a range that cannot be; None is what a link will bring later."""
    if start_percent is None or end_percent is None:
        return True
    try:
        Range(start_percent, end_percent)
    except SpectralError as error:
        return str(error)
    return True


def percent_of(sampling: Any, sigma: Tensor | float) -> float:
    """Where in the sampling a noise level lies, 0 to 1; the inverse of core's `percent_to_sigma`.

    Args:
        sampling: the `model_sampling` of a MODEL of any kind.
        sigma: the noise level, of which the largest counts.
    """
    level = float(sigma.max()) if isinstance(sigma, Tensor) else float(sigma)
    table = _tables.get(sampling)
    if table is None:
        # From the end to the start, so that noise levels grow; the very ends are infinite and 0 by core's convention.
        levels = [float(sampling.percent_to_sigma(1 - part / _PARTS)) for part in range(1, _PARTS)]
        table = _tables[sampling] = levels
    above = bisect_left(table, level)
    if above == 0:
        return 1.0 if level < table[0] else 1 - 1 / _PARTS
    if above == len(table):
        return 0.0
    low, high = table[above - 1], table[above]
    part = above + (level - low) / (high - low) if high > low else above + 1.0
    return 1 - part / _PARTS
