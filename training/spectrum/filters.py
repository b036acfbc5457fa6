"""The command `spectrum filters`: how much each convolution of a network ties neighbouring frequencies together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...spectral import colours, presets
from ...spectral.errors import SpectralError
from ...spectral.spectrum import FilterCorrelation, convolutions, filter_correlation
from ...spectral.unet import UNet
from .. import cli
from ..figures import check_figure_path


def measure(unet: UNet, size: int) -> list[FilterCorrelation]:
    """The spectral correlation of every convolution of a U-Net above 1×1, for latents of so many cells a side."""
    found = convolutions(unet, size)
    with tqdm(found, desc="filters", unit="layer", dynamic_ncols=True, disable=None) as bar:
        return [filter_correlation(each) for each in bar]


def plot(rows: list[FilterCorrelation], name: str, path: Path) -> None:
    """Draw measured correlations over those of independent taps, in the order in which the network runs."""
    from . import drawing

    figure = drawing.sheet(max(7.0, min(14.0, 2.5 + 0.16 * len(rows))), 4.6)
    axes = figure.subplots()
    drawing.plain_axes(axes)
    places = range(1, len(rows) + 1)
    free = [row.independent for row in rows]
    axes.step(places, free, where="mid", color=drawing.GREY, linewidth=1.6, label="independent taps (closed form)")
    measured = [row.measured for row in rows]
    colour = colours.of_names([name])[name]
    axes.plot(places, measured, "o", color=colour, markersize=4, label=f"{name} (measured)", clip_on=False, zorder=3)
    start = 0
    for place in range(1, len(rows) + 1):
        if place == len(rows) or rows[place].grid != rows[start].grid:
            axes.text((start + place + 1) / 2, 1.02, f"{rows[start].grid}²", ha="center", fontsize=8, color="#444444")
            if place < len(rows):
                axes.axvline(place + 0.5, color="#cccccc", linewidth=0.8)
            start = place
    known = [value for value in (*measured, *free) if value == value]
    axes.set_ylim(max(0.0, min(known) - 0.08), 1.0)
    axes.set_xlim(0.4, len(rows) + 0.6)
    axes.set_xlabel("convolution, in the order in which they run; above, the grid that each runs over")
    axes.set_ylabel("mean |corr| of diagonal neighbours")
    figure.suptitle("Spectral correlation of convolution filters", fontsize=12)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    drawing.write(figure, path)


def main(argv: Sequence[str]) -> None:
    """The command `spectrum filters`."""
    parser = cli.Parser(
        "spectrum filters",
        "Correlation between diagonally neighbouring frequencies over the filters of each convolution, against that of "
        "independent taps, sin²(πk/d) / (k² sin²(π/d)): 1 where a filter cannot tell them apart, 0 where it is free.",
    )
    parser.add_argument("checkpoint", nargs="?", type=Path, help=cli.CHECKPOINT)
    parser.add_argument("--preset", help="in place of it, a named architecture with fresh weights: ffhq256-student")
    parser.add_argument("--seed", type=int, default=0, help="of fresh weights")
    parser.add_argument("--latent-size", type=int, help="side of the latent in cells; as in training if not given")
    parser.add_argument("--plot", type=Path, help="also draw the correlations into this .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    cli.add_read_options(parser)
    arguments = parser.parse_args(argv)
    if (arguments.checkpoint is None) == (arguments.preset is None):
        raise SpectralError("spectrum filters takes one of: the path of a checkpoint, or --preset NAME.")
    if arguments.plot is not None:
        check_figure_path(arguments.plot)
    if arguments.checkpoint is None:
        torch.manual_seed(arguments.seed)
        unet, name = presets.build(arguments.preset), arguments.preset
    else:
        from .opening import open_model

        opened = open_model(arguments.checkpoint, arguments)
        assert opened.unet is not None
        unet, name = opened.unet, arguments.checkpoint.stem
    size = unet.config.image_size if arguments.latent_size is None else arguments.latent_size
    rows = measure(unet, size)
    if arguments.plot is not None:
        plot(rows, name, arguments.plot)
    cli.report(report(rows, name, size) if arguments.json else _lines(rows), arguments.json)


def report(rows: list[FilterCorrelation], name: str, size: int) -> dict[str, Any]:
    """The correlations as JSON data; one that does not exist is None."""
    return {
        "model": name,
        "latent_size": size,
        "measured": _mean([row.measured for row in rows]),
        "independent": _mean([row.independent for row in rows if row.measured == row.measured]),
        "convolutions": [
            {
                "name": row.name,
                "kernel": row.kernel,
                "grid": row.grid,
                "filters": row.filters,
                "measured": None if row.measured != row.measured else row.measured,
                "independent": row.independent,
            }
            for row in rows
        ],
    }


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else None


def _lines(rows: list[FilterCorrelation]) -> dict[str, Any]:
    width = max(len(row.name) for row in rows)
    lines = {"convolution".ljust(width): "kernel  grid  measured  independent"}
    for row in rows:
        measured = "   –    " if row.measured != row.measured else f"{row.measured:8.4f}"
        lines[row.name.ljust(width)] = (
            f"{row.kernel:>3}×{row.kernel:<2} {row.grid:>5}  {measured}  {row.independent:11.4f}"
        )
    return lines
