"""A chart as data: drawn once as a picture (`plot`), and described once for the page (`web/chart.js`).

What a description holds says the docstring of `show.interactive`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from . import plot, plot_axes
from .plot import Series
from .plot_axes import Array, Mark

#: Digits that the page is told: more cannot be seen, and the workflow file would grow by them.
DIGITS = 5


@dataclass(frozen=True)
class Unit:
    """Another unit of an axis: its values times `factor`.

    Args:
        name: short, for the button.
        label: of the axis.
    """

    name: str
    label: str
    factor: float


@dataclass(frozen=True)
class Axis:
    """What an axis is about; where it ends follows from the data unless it is given.

    Args:
        label: with its unit.
        log: at first; with `toggle` a person at the page may change it.
        low, high: its ends.
        within: limits that round ends do not leave.
        units: others that a person at the page may choose; the first is that of the values.
        reversed: whether it runs from high to low.
    """

    label: str
    log: bool = False
    toggle: bool = False
    low: float | None = None
    high: float | None = None
    within: tuple[float, float] | None = None
    units: tuple[Unit, ...] = ()
    reversed: bool = False

    def described(self) -> dict[str, Any]:
        known: dict[str, Any] = {"label": self.label, "log": self.log, "toggle": self.toggle}
        known |= {"reversed": True} if self.reversed else {}
        known |= {name: value for name in ("low", "high") if (value := getattr(self, name)) is not None}
        known |= {"within": list(self.within)} if self.within else {}
        units = [{"name": unit.name, "label": unit.label, "factor": unit.factor} for unit in self.units]
        return known | ({"units": units} if units else {})

    def drawn(self, values: Sequence[Array]) -> plot_axes.Axis:
        """The axis of the picture around all values."""
        if self.log:
            return plot_axes.log_axis(self.label, values, self.low, self.high)
        return plot_axes.linear_axis(self.label, values, self.low, self.high, self.within, self.reversed)


@dataclass(frozen=True)
class Map:
    """A value for every place of a plane.

    Args:
        values: [H, W], the top row first; NaN where there is none.
        label: what the colours mean, with its unit.
        x, y: the axes, with their ends `low` (left, bottom) and `high`.
        low, high: the values at the ends of the colours; what is beyond is drawn as these.
        diverging: whether 0 is the middle of the colours.
        square: whether both axes have one scale.
    """

    values: Array
    label: str
    x: Axis
    y: Axis
    low: float
    high: float
    diverging: bool = False
    square: bool = True

    def described(self) -> dict[str, Any]:
        return {
            "values": rounded(self.values),
            "label": self.label,
            "low": self.low,
            "high": self.high,
            "x": self.x.described(),
            "y": self.y.described(),
            "diverging": self.diverging,
            "square": self.square,
        }


@dataclass(frozen=True)
class View:
    """What is shown at a time: lines, or a map.

    Args:
        name: its parts, one for each picker.
        x, y: axes of its own.
        picture: {"filename", "subfolder", "type"} of what belongs to it, shown beside it.
    """

    name: tuple[str, ...]
    series: Sequence[Series] = ()
    map: Map | None = None
    x: Axis | None = None
    y: Axis | None = None
    marks: Sequence[Mark] = ()
    picture: dict[str, str] | None = None


@dataclass(frozen=True)
class Chart:
    """A chart of one or more views.

    Args:
        notes: short lines above it, with the numbers that it is about.
        scrub: which part of the views' names is stepped through by a slider, and what it is called.
        drawn: indices of the views that its picture shows, side by side.
    """

    title: str
    x: Axis
    y: Axis
    views: Sequence[View]
    notes: Sequence[str] = ()
    scrub: tuple[int, str] | None = None
    drawn: Sequence[int] = (0,)

    def described(self) -> dict[str, Any]:
        """For the page."""
        made: dict[str, Any] = {
            "title": self.title,
            "x": self.x.described(),
            "y": self.y.described(),
            "notes": list(self.notes),
            "views": [_view(view) for view in self.views],
        }
        if self.scrub is not None:
            made["scrub"] = {"part": self.scrub[0], "label": self.scrub[1]}
        return made

    def picture(self) -> Image.Image:
        """As a picture."""
        return plot.grid([[self._drawn(self.views[index], place == 0) for place, index in enumerate(self.drawn)]])

    def _drawn(self, view: View, first: bool) -> Image.Image:
        name = ", ".join(part for part in view.name if part)
        title = self.title if len(self.drawn) == 1 else f"{self.title}: {name}"
        notes = self.notes if first else [""] * len(self.notes)
        if view.map is not None:
            shown = view.map
            return plot.heat_map(
                shown.values,
                shown.x.drawn([]),
                shown.y.drawn([]),
                (shown.low, shown.high),
                title=title,
                label=shown.label,
                notes=notes,
                diverging=shown.diverging,
                square=shown.square,
                size=plot.MAP if all(self.views[index].map for index in self.drawn) else plot.LINES,
            )
        x, y = view.x or self.x, view.y or self.y
        across = [one.x for one in view.series]
        up = [values for one in view.series for values in (one.y, one.low, one.high) if values is not None]
        return plot.line_chart(view.series, x.drawn(across), y.drawn(up), title=title, notes=notes, marks=view.marks)


def rounded(values: Array) -> Any:
    """Numbers as nested lists with DIGITS digits, None for what is not finite."""
    array = np.asarray(values, dtype=float)
    if array.ndim > 1:
        return [rounded(row) for row in array]
    return [float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None for value in array.tolist()]


def _view(view: View) -> dict[str, Any]:
    made: dict[str, Any] = {"name": list(view.name), "series": [_series(one) for one in view.series]}
    made |= {"map": view.map.described()} if view.map is not None else {}
    made |= {"x": view.x.described()} if view.x is not None else {}
    made |= {"y": view.y.described()} if view.y is not None else {}
    made |= {"marks": [{"x": mark.x, "label": mark.label} for mark in view.marks]} if view.marks else {}
    return made | ({"picture": view.picture} if view.picture is not None else {})


def _series(one: Series) -> dict[str, Any]:
    made: dict[str, Any] = {"name": one.label, "x": rounded(one.x), "y": rounded(one.y)}
    made |= {"dashed": True} if one.dashed else {}
    made |= {"colour": one.colour} if one.colour is not None else {}
    if one.low is not None and one.high is not None:
        made |= {"low": rounded(one.low), "high": rounded(one.high)}
    return made
