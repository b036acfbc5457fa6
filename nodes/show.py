"""What nodes with a chart hand to the page and to the next node: picture, interactive chart, numbers, table."""

from __future__ import annotations

import csv as table_format
import io
import math
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import folder_paths
from PIL import Image
from torch import Tensor

from . import plot
from .charts import Chart

#: Longer tables, in characters, are not told to the page, which would keep them for every run.
LONGEST_TABLE = 500_000
PLOT_TOOLTIP = "The chart as an image, to save or to preview."
TABLE_TOOLTIP = "The chart's numbers as CSV text with a header line."


def chart(made: Chart, table: str, numbers: dict[str, float], *more: Any) -> dict[str, Any]:
    """The result of a node with a chart: its picture, the numbers in their order, the table, and what comes after.

    The page gets the chart to be explored, the numbers, and the table.
    """
    return {"ui": for_page(made, table, numbers), "result": (as_image(made), *numbers.values(), table, *more)}


def for_page(made: Chart, table: str, numbers: dict[str, float]) -> dict[str, Any]:
    """What the page is told of a chart."""
    told = {"spectral_chart": [finite(made.described())], "numbers": [finite(numbers)]}
    return {**told, "table": [table]} if len(table) <= LONGEST_TABLE else told


def as_image(made: Chart) -> Tensor:
    """A chart's picture as a ComfyUI IMAGE."""
    return plot.as_images([made.picture()])


def temporary(image: Tensor) -> dict[str, str]:
    """What the page asks for to see a picture [H, W, 3] in [0, 1], which is written where ComfyUI keeps previews."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    name = f"spectral_diffusion_{uuid.uuid4().hex}.png"
    pixels = (image.clamp(0, 1) * 255).round().byte().cpu().numpy()
    Image.fromarray(pixels).save(folder / name, compress_level=1)
    return {"filename": name, "subfolder": "", "type": "temp"}


def interactive(chart: Image.Image, described: dict[str, Any], table: str) -> dict[str, Any]:
    """A node's result: chart and table; `web/chart.js` draws `described` in the node, to be explored.

    Args:
        described: of these, `title`, `x`, `y` and `views` must be there; a chart of maps alone needs no `x` and `y`.

            - `title`: what it is, for people who do not see it.
            - `notes`: short lines above the plot.
            - `x`, `y`: the axes, each a `label` and perhaps `log`, `reversed`, its ends `low` and `high`, and `within`,
              two limits that are not left where the ends are rounded. A view may have axes of its own. With `toggle`
              the person may change between logarithmic and linear, and `log` is how it begins. `units`, of which the
              person picks one, each have a `name`, the axis' `label` in it, and a `factor`; all numbers of the
              description are in a unit of factor 1.
            - `views`: of which one is shown at a time. Each has `series` or a `map`, a `name`, or a list of names that
              are picked one by one, and perhaps `marks`, vertical lines with `x` and `label`, and a `picture` beside
              it: `filename`, `subfolder` and `type` as in `images`, and a `caption`. Names tell views apart.
            - series: `name`, `x` and `y`, where None breaks the line, and perhaps `colour` (place in the palette, or
              "#rrggbb"), `dashed`, and `low` and `high`, the edges of a band around the line. Those of one name are one
              in the legend.
            - map: `values`, rows from top to bottom, where None is hatched; `label`, what they are; perhaps `low` and
              `high`, the ends of the colours, which all maps of one label share otherwise; `diverging`, for colours
              around 0; `x` and `y`, axes whose `low` and `high` are the outer edges of the map, the left and right
              one, the bottom and top one, in which `low` may be the larger; and `square`, for both axes at one scale.
            - `scrub`: a `part` of the views' lists of names, counted from 0, that a slider steps through in the order
              of the views, and its `label`.

            The last description is saved with the workflow where its JSON, five digits a number, has at most 48,000
            characters.
    """
    return {"ui": {"spectral_chart": [finite(described)]}, "result": (plot.as_images([chart]), table)}


def finite(value: Any) -> Any:
    """The same with None for every number that is not finite: JSON in the page knows no NaN."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv(header: Sequence[str], rows: Iterable[Sequence[float | str]]) -> str:
    """A table as text, six digits a number."""
    written = io.StringIO()
    writer = table_format.writer(written, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([value if isinstance(value, str) else f"{value:.6g}" for value in row] for row in rows)
    return written.getvalue()
