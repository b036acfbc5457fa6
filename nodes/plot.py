"""Charts of nodes, drawn with Pillow alone: line charts and heat maps.

Everything is drawn at four times its size and reduced, which smooths lines and text. The colours are those of
`spectral.colours`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..spectral.colours import DIVERGING, OKABE_ITO, VIRIDIS
from .plot_axes import Array, Axis, Mark

Point = tuple[float, float]
#: Left, top, right, bottom.
Frame = tuple[float, float, float, float]

INK, GREY, GRID, PAPER = "#1b1f24", "#5b6470", "#e3e6ea", "#ffffff"
SCALE = 4
#: Width and height in pixels of charts of lines, and maps beside these; and of maps alone.
LINES, MAP = (960, 640), (720, 680)


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Args:
        label: for the legend.
        x, y: the points, [N] each; where y is not positive on a logarithmic axis the line is interrupted.
        low, high: edges of a band around the line, [N] each.
        dashed: for what is fitted or expected rather than measured.
        colour: "#rrggbb", or an index in the palette; by default the series' own place.
        in_legend: whether the legend names it.
    """

    label: str
    x: Array
    y: Array
    low: Array | None = None
    high: Array | None = None
    dashed: bool = False
    colour: int | str | None = None
    in_legend: bool = True


def grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Charts of one size side by side, row under row."""
    width, height = rows[0][0].size
    page = Image.new("RGB", (width * len(rows[0]), height * len(rows)), PAPER)
    for y, row in enumerate(rows):
        for x, chart in enumerate(row):
            page.paste(chart, (x * width, y * height))
    return page


def line_chart(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    title: str,
    notes: Sequence[str] = (),
    marks: Sequence[Mark] = (),
    size: tuple[int, int] = LINES,
) -> Image.Image:
    """A chart of lines; the legend and the notes stand above the frame, never over the data.

    Args:
        notes: short texts with the numbers that the chart is about, one a line.
        size: width and height in pixels.
    """
    sheet = _Sheet(size)
    top = sheet.head(title, notes)
    top = sheet.legend(
        [(one.label, _colour(one, index), one.dashed) for index, one in enumerate(series) if one.in_legend], top
    )
    frame = (86.0, top + 16.0, size[0] - 24.0, size[1] - 62.0)
    sheet.axes(frame, x, y, marks)
    for index, one in enumerate(series):
        if one.low is not None and one.high is not None:
            sheet.band(frame, x, y, one, _colour(one, index))
    for index, one in enumerate(series):
        sheet.line(frame, x, y, one, _colour(one, index))
    return sheet.finish()


def heat_map(
    values: Array,
    x: Axis,
    y: Axis,
    ends: tuple[float, float],
    *,
    title: str,
    label: str,
    notes: Sequence[str] = (),
    diverging: bool = False,
    square: bool = True,
    size: tuple[int, int] = MAP,
) -> Image.Image:
    """A map of values as colours, with a colour bar.

    Args:
        values: [H, W], the top row first; grey where they are not finite.
        ends: the values at both ends of the colours; what lies beyond is drawn as these.
        label: what the colours mean, with its unit.
        diverging: blue to orange around a pale middle, instead of viridis.
        square: whether the frame is.
    """
    sheet = _Sheet(size)
    top = sheet.head(title, notes)
    height = size[1] - top - 78.0
    width = min(size[0] - 200.0, height) if square else size[0] - 200.0
    frame = (86.0, top + 12.0, 86.0 + width, top + 12.0 + (width if square else height))
    low, high = ends[0], max(ends[1], ends[0] + 1e-6)
    palette = DIVERGING if diverging else VIRIDIS
    colours = _coloured(np.nan_to_num(np.clip((values - low) / (high - low), 0, 1)), palette)
    colours[~np.isfinite(values)] = 160
    sheet.picture(frame, colours)
    sheet.axes(frame, x, y, grid=False)
    sheet.colour_bar((frame[2] + 22, frame[1], frame[2] + 40, frame[3]), low, high, label, palette)
    return sheet.finish()


def as_images(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as a ComfyUI IMAGE, [B, H, W, 3] in [0, 1]."""
    return torch.stack([torch.from_numpy(np.array(picture.convert("RGB"))) for picture in pictures]).float() / 255


class _Sheet:
    """A white page on which everything is placed in final pixels; it is SCALE times larger until it is finished."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.page = Image.new("RGB", (size[0] * SCALE, size[1] * SCALE), PAPER)
        self.draw = ImageDraw.Draw(self.page)

    def finish(self) -> Image.Image:
        return self.page.resize(self.size, Image.Resampling.LANCZOS)

    def text(self, x: float, y: float, text: str, size: int = 15, colour: str = INK, anchor: str = "la") -> float:
        """Write at (x, y) by Pillow's anchor; the width of what was written."""
        font = _font(size * SCALE)
        self.draw.text((x * SCALE, y * SCALE), text, fill=colour, font=font, anchor=anchor)
        return float(font.getlength(text)) / SCALE

    def head(self, title: str, notes: Sequence[str]) -> float:
        """Title and notes; where the next thing may begin, from the top."""
        self.text(24, 18, title, 21)
        for index, note in enumerate(notes):
            self.text(24, 50 + 21 * index, note, 15, GREY)
        return 52.0 + 21 * len(notes)

    def legend(self, entries: Sequence[tuple[str, str, bool]], top: float) -> float:
        """A row (or rows) of line samples with their labels; where the next thing may begin."""
        x, row = 24.0, top + 10
        for label, colour, dashed in entries:
            width = 40 + _font(15 * SCALE).getlength(label) / SCALE + 24
            if x > 24 and x + width > self.size[0] - 16:
                x, row = 24.0, row + 22
            self.stroke([(x, row), (x + 30, row)], colour, 3.0, dashed)
            self.text(x + 38, row, label, 15, INK, "lm")
            x += width
        return row + 12

    def axes(self, frame: Frame, x: Axis, y: Axis, marks: Sequence[Mark] = (), grid: bool = True) -> None:
        """Grid, ticks with numbers, labels, marks and the frame."""
        left, top, right, bottom = frame
        for tick in x.ticks:
            at = left + float(x.place(tick)) * (right - left)
            self.stroke([(at, top if grid else bottom), (at, bottom + 5)], GRID if grid else GREY, 1)
            self.text(at, bottom + 9, f"{tick:g}", 14, GREY, "ma")
        for tick in y.ticks:
            at = bottom - float(y.place(tick)) * (bottom - top)
            self.stroke([(left - 5, at), (right if grid else left, at)], GRID if grid else GREY, 1)
            self.number(left - 9, at, tick, y.log)
        for mark in marks:
            if x.low < mark.x < x.high:
                at = left + float(x.place(mark.x)) * (right - left)
                self.stroke([(at, top), (at, bottom)], GREY, 1, dashed=True)
                self.text(at - 5, top + 6, mark.label, 13, GREY, "ra")
        self.draw.rectangle([value * SCALE for value in frame], outline=GREY, width=SCALE)
        self.text((left + right) / 2, bottom + 32, x.label, 15, INK, "ma")
        self.upright(20, (top + bottom) / 2, y.label)

    def number(self, right: float, middle: float, value: float, log: bool) -> None:
        """A tick's number, right-aligned; powers of ten with a raised exponent."""
        if not log or 0.01 <= value <= 100 or abs(math.log10(value) % 1) > 1e-6:
            self.text(right, middle, f"{value:g}", 14, GREY, "rm")
            return
        exponent = f"{round(math.log10(value))}"
        width = _font(11 * SCALE).getlength(exponent) / SCALE
        self.text(right, middle - 6, exponent, 11, GREY, "rm")
        self.text(right - width - 1, middle, "10", 14, GREY, "rm")

    def upright(self, x: float, middle: float, text: str) -> None:
        """Text that reads from bottom to top, its left edge at x."""
        font = _font(15 * SCALE)
        box = Image.new("RGB", (round(font.getlength(text)) + 4, 22 * SCALE), PAPER)
        ImageDraw.Draw(box).text((2, 11 * SCALE), text, fill=INK, font=font, anchor="lm")
        turned = box.rotate(90, expand=True)
        self.page.paste(turned, (round(x * SCALE - turned.width / 2), round(middle * SCALE - turned.height / 2)))

    def stroke(self, points: Sequence[Point], colour: str, width: float, dashed: bool = False) -> None:
        """A line through points; dashes are 9 pixels long with gaps of 6."""
        scaled = [(px * SCALE, py * SCALE) for px, py in points]
        for piece in _dashes(scaled, 9 * SCALE, 6 * SCALE) if dashed else [scaled]:
            self.draw.line(piece, fill=colour, width=max(1, round(width * SCALE)), joint="curve")

    def line(self, frame: Frame, x: Axis, y: Axis, one: Series, colour: str) -> None:
        for points in _inside(_points(frame, x, y, one.x, one.y), frame):
            self.stroke(points, colour, 2.5, one.dashed)

    def band(self, frame: Frame, x: Axis, y: Axis, one: Series, colour: str) -> None:
        """The area between `low` and `high`, a light tint of the line's colour."""
        assert one.low is not None and one.high is not None
        left, top, right, bottom = frame
        floor = np.maximum(one.low, y.low)
        edge = [*_points(frame, x, y, one.x, one.high), *reversed(_points(frame, x, y, one.x, floor))]
        corners = [
            (min(max(px, left), right) * SCALE, min(max(py, top), bottom) * SCALE)
            for px, py in edge
            if math.isfinite(px) and math.isfinite(py)
        ]
        if len(corners) > 2:
            mask = Image.new("L", self.page.size, 0)
            ImageDraw.Draw(mask).polygon(corners, fill=46)
            self.page.paste(Image.new("RGB", self.page.size, colour), mask=mask)

    def picture(self, frame: Frame, pixels: NDArray[np.uint8]) -> None:
        left, top, right, bottom = (round(value * SCALE) for value in frame)
        drawn = Image.fromarray(pixels).resize((right - left, bottom - top), Image.Resampling.NEAREST)
        self.page.paste(drawn, (left, top))

    def colour_bar(self, frame: Frame, low: float, high: float, label: str, palette: Sequence[str]) -> None:
        """A vertical bar of the map's colours with five numbers and its label above."""
        self.picture(frame, _coloured(np.linspace(1, 0, 256)[:, None], palette))
        _, top, right, bottom = frame
        self.draw.rectangle([value * SCALE for value in frame], outline=GREY, width=SCALE)
        for part in np.linspace(0, 1, 5):
            at = bottom - float(part) * (bottom - top)
            self.stroke([(right, at), (right + 5, at)], GREY, 1)
            self.text(right + 9, at, _short(low + float(part) * (high - low), high - low), 14, GREY, "lm")
        self.upright(self.size[0] - 22, (top + bottom) / 2, label)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own scalable font, so that charts look alike everywhere; it has ±, but no ×, minus or Greek."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _colour(series: Series, index: int) -> str:
    if isinstance(series.colour, str):
        return series.colour
    return OKABE_ITO[(index if series.colour is None else series.colour) % len(OKABE_ITO)]


def _points(frame: Frame, x: Axis, y: Axis, xs: Array, ys: Array) -> list[Point]:
    """Data as places on the page."""
    left, top, right, bottom = frame
    across, up = left + x.place(xs) * (right - left), bottom - y.place(ys) * (bottom - top)
    return [(float(px), float(py)) for px, py in zip(across, up, strict=True)]


def _inside(points: Sequence[Point], frame: Frame) -> list[list[Point]]:
    """The runs of consecutive points that can be drawn; a line that leaves the frame ends at its edge."""
    _, top, _, bottom = frame
    runs: list[list[Point]] = [[]]
    for here, there in itertools.pairwise(points):
        piece = _cut(here, there, top, bottom)
        if piece is None:
            runs.append([])
        elif runs[-1] and runs[-1][-1] == piece[0]:
            runs[-1].append(piece[1])
        else:
            runs.append(list(piece))
    return [run for run in runs if len(run) > 1]


def _cut(here: Point, there: Point, top: float, bottom: float) -> tuple[Point, Point] | None:
    """The part of a segment between two heights, or None when there is none."""
    if not all(math.isfinite(value) for value in (*here, *there)):
        return None
    (x0, y0), (x1, y1) = here, there
    if max(y0, y1) < top or min(y0, y1) > bottom:
        return None

    def at(y: float) -> Point:
        return (x0 + (x1 - x0) * (y - y0) / (y1 - y0), y)

    ends = [point if top <= point[1] <= bottom else at(top if point[1] < top else bottom) for point in (here, there)]
    return ends[0], ends[1]


def _dashes(points: Sequence[Point], on: float, off: float) -> list[list[Point]]:
    """A polyline cut into dashes of equal length."""
    dashes: list[list[Point]] = []
    travelled, period = 0.0, on + off
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        length = math.hypot(x1 - x0, y1 - y0)
        at = 0.0
        while at < length:
            phase = (travelled + at) % period
            step = min((on if phase < on else period) - phase, length - at) or length - at
            if phase < on:
                begin, end = at / length, (at + step) / length
                dashes.append([(x0 + (x1 - x0) * part, y0 + (y1 - y0) * part) for part in (begin, end)])
            at += step
        travelled += length
    return dashes


def _coloured(values: Array, palette: Sequence[str]) -> NDArray[np.uint8]:
    """[H, W] in [0, 1] → colours [H, W, 3] between those of a palette."""
    anchors = np.array([[int(code[i : i + 2], 16) for i in (1, 3, 5)] for code in palette], dtype=float)
    grid = np.linspace(0, 1, len(anchors))
    return np.stack([np.interp(values, grid, anchors[:, channel]) for channel in range(3)], axis=-1).astype(np.uint8)


def _short(value: float, spread: float) -> str:
    """A number of a scale of this spread, with the digits that tell its ticks apart."""
    digits = max(0, 1 - math.floor(math.log10(spread / 4))) if spread > 0 else 1
    return f"{value:.{min(digits, 6)}f}"
