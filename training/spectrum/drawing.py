"""What the figures of the probes share: a sheet to draw on, its frequency axes, and how it is written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...spectral import colours
from ..files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NYQUIST = 0.5  # cycles per pixel
GREY = "#666666"


def sheet(width: float, height: float) -> Figure:
    """An empty figure of a size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain_axes(axes: Axes) -> None:
    """A light grid, and no frame above and to the right."""
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def unit(latents: bool) -> str:
    """What frequencies are counted in."""
    return "cycles per latent cell" if latents else "cycles per pixel"


def plain_numbers(axis: Any) -> None:
    """Numbers 1, 2, 5, 10, … along a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def frequency_axis(axes: Axes, low: float, high: float, *, label: bool = True, unit: str = unit(False)) -> None:
    """A logarithmic axis of frequencies, with the Nyquist frequency of an axis marked where it is in sight."""
    plain_axes(axes)
    axes.set_xscale("log")
    axes.set_xlim(0.92 * low, 1.04 * high)
    plain_numbers(axes.xaxis)
    if 1.04 * high > NYQUIST:
        axes.axvline(NYQUIST, color=GREY, linestyle=":", linewidth=1.2)
        place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "va": "bottom", "ha": "center"}
        axes.text(NYQUIST, 1.01, "Nyquist", fontsize=8, color=GREY, **place)
    if label:
        axes.set_xlabel(f"spatial frequency ({unit})")


def step_colours(count: int) -> list[str]:
    """A colour for each of the steps of a course, from dark to light."""
    return colours.sequence(count)


def step_scale(figure: Figure, axes: Any, first: float, last: float, label: str) -> None:
    """A colour bar beside axes, for curves that are coloured by `step_colours` of a number between two."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    shades = LinearSegmentedColormap.from_list("steps", step_colours(64))
    low, high = min(first, last), max(first, last)
    bar = ScalarMappable(Normalize(low, high), shades if first <= last else shades.reversed())
    figure.colorbar(bar, ax=axes, pad=0.01, aspect=30).set_label(label)


def write(figure: Figure, path: Path) -> None:
    """The finished file, or none."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower())
    write_whole(path, content.getvalue())
