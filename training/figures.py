"""Figures of the kit: radial spectra of several models on one plot, and labelled grids of their images."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..spectral.colours import model_in, of_names
from ..spectral.errors import SpectralError
from ..spectral.spectrum import RadialSpectrum
from .files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
GRID_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

#: Beside the colours of `spectral.colours`, for print in grey.
MODEL_STYLES = {"lite": (0, (5, 1.5))}
SMALLEST_DRAWN = 1e-9  # of the largest power: deeper is float32 rounding


def check_figure_path(path: Path) -> None:
    """Raise SpectralError where a figure cannot be written to `path`, before the work that it would show."""
    _check_suffix(path, FIGURE_SUFFIXES)


def plot_radial_spectra(
    named: Mapping[str, RadialSpectrum],
    path: Path,
    *,
    cutoff: float | None = None,
    title: str = "Radial power spectrum",
) -> None:
    """Draw radial spectra over cycles per pixel; for two or more sets also their ratio to the first one.

    Shaded bands are 95 % confidence intervals of the mean.

    Args:
        named: the sets in the order of the legend, the reference first.
        path: .png, .svg or .pdf; its folder is made.
        cutoff: marked where it lies for the first set, in cycles per image.
        title: above the plot.

    Raises:
        SpectralError: no set, or a suffix that is not one of these.
    """
    check_figure_path(path)
    if not named:
        raise SpectralError("A plot of spectra needs at least one set; none was given.")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    two = len(named) > 1
    figure = Figure(figsize=(7.2, 6.4 if two else 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2 if two else 1, 1, sharex=True, squeeze=False, height_ratios=[2.2, 1] if two else [1])
    top, bottom = panels[0, 0], panels[-1, 0]
    _draw_spectra(top, named)
    if two:
        _draw_ratios(bottom, named)
    reference = next(iter(named.values()))
    for axes in panels[:, 0]:
        _draw_marks(axes, None if cutoff is None else cutoff / reference.side)
    _label_marks(top, cutoff, reference.side)
    bottom.set_xlabel("spatial frequency (cycles per pixel)")
    figure.suptitle(title, fontsize=12)
    handles, labels = top.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(named)), frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower())
    _write(path, content)


def save_grid(rows: Mapping[str, Tensor], path: Path, scale: int = 2) -> None:
    """Write images as a grid, a labelled row for each entry.

    Args:
        rows: label, of one line or several → [N, 3, H, W] in [0, 1] (values outside are clipped); N may differ, H and W
            may not.
        path: .png, .jpg or .webp; its folder is made.
        scale: enlargement, each pixel a block of scale × scale.

    Raises:
        SpectralError: no images, rows of different shapes, a scale below 1, or a suffix that is not one of these.
    """
    _check_suffix(path, GRID_SUFFIXES)
    _check_rows(rows)
    if scale < 1:
        raise SpectralError(f"The scale of an image grid is {scale}: expected a whole number from 1.")
    height, width = (side * scale for side in next(iter(rows.values())).shape[-2:])
    gap = max(2, width // 32)
    font = ImageFont.load_default(size=max(12, min(22, height // 6)))
    written = [line for name in rows for line in name.split("\n")]
    label = 2 * gap + math.ceil(max(map(font.getlength, written))) + 2 * gap
    columns = max(len(images) for images in rows.values())
    sheet = Image.new("RGB", (label + columns * (width + gap), gap + len(rows) * (height + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, images) in enumerate(rows.items()):
        y = gap + row * (height + gap)
        draw.text((2 * gap, y + height / 2), name, fill="black", font=font, anchor="lm")
        for column, image in enumerate(images):
            picture = _to_picture(image).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (label + column * (width + gap), y))
    content = io.BytesIO()
    sheet.save(content, format={"jpg": "jpeg"}.get(path.suffix[1:].lower(), path.suffix[1:].lower()), quality=92)
    _write(path, content)


def beside(left: Path, right: Path, path: Path) -> None:
    """Write two pictures beside each other over white, the right one no higher than the left one: PNG, or .jpg."""
    first, second = (Image.open(file).convert("RGB") for file in (left, right))
    second.thumbnail((second.width, first.height), Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", (first.width + second.width, first.height), "white")
    sheet.paste(first, (0, 0))
    sheet.paste(second, (first.width, 0))
    content = io.BytesIO()
    sheet.save(content, format="JPEG" if path.suffix == ".jpg" else "PNG", optimize=True, quality=90)
    _write(path, content)


def _draw_spectra(axes: Axes, named: Mapping[str, RadialSpectrum]) -> None:
    largest = max(rings.power.max().item() for rings in named.values())
    floor = SMALLEST_DRAWN * largest or SMALLEST_DRAWN
    first = next(iter(named))
    for name, colour in of_names(named).items():
        rings = named[name]
        power = rings.power.clamp_min(floor)
        width = 3.4 if name == first and len(named) > 1 else 1.6  # a curve on top of the reference hides it no more
        axes.plot(rings.frequency, power, color=colour, linestyle=_style(name), linewidth=width, label=name)
        low, high = (edge.clamp_min(floor) for edge in rings.interval())
        axes.fill_between(rings.frequency, low, high, color=colour, alpha=0.18, linewidth=0)
    lowest = min(rings.frequency[0].item() for rings in named.values())
    axes.set_xscale("log")
    axes.set_xlim(0.92 * lowest, 1.04 * math.sqrt(0.5))
    axes.set_yscale("log")
    # The curves' own range: an uncertain last ring would stretch the axis by decades.
    powers = torch.cat([rings.power.clamp_min(floor) for rings in named.values()])
    axes.set_ylim(0.5 * powers.min().item(), 2 * powers.max().item())
    axes.set_ylabel("power (|DFT|² / number of pixels)")
    axes.text(0.01, 0.02, "shaded: 95 % confidence", transform=axes.transAxes, fontsize=8, color="#444444")


def _draw_ratios(axes: Axes, named: Mapping[str, RadialSpectrum]) -> None:
    """Power over that of the first set, where both have the frequency."""
    import numpy as np
    from matplotlib.ticker import LogLocator, NullFormatter

    first, reference = next(iter(named.items()))
    floor = SMALLEST_DRAWN * reference.power.max().item() or SMALLEST_DRAWN
    known = np.log(reference.power.clamp_min(floor).numpy())
    axes.axhline(1, color=of_names(named)[first], linewidth=3.4)
    low, high = 0.45, 2.2
    for name, colour in list(of_names(named).items())[1:]:
        rings = named[name]
        inside = (rings.frequency >= reference.frequency[0]) & (rings.frequency <= reference.frequency[-1])
        frequency = rings.frequency[inside].numpy()
        expected = np.exp(np.interp(np.log(frequency), np.log(reference.frequency.numpy()), known))
        ratio = rings.power[inside].clamp_min(floor).numpy() / expected
        low, high = min(low, 0.9 * ratio.min()), max(high, 1.1 * ratio.max())
        axes.plot(frequency, ratio, color=colour, linestyle=_style(name), linewidth=1.6)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(f"power / {first}")


def _draw_marks(axes: Axes, cutoff: float | None) -> None:
    """The axis Nyquist frequency, beyond which only the corners of the spectrum are left, and the cut-off."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.axvline(0.5, color="#666666", linestyle=":", linewidth=1.2)
    axes.axvspan(0.5, axes.get_xlim()[1], color="#000000", alpha=0.05, linewidth=0)
    if cutoff is not None:
        axes.axvline(cutoff, color="#666666", linestyle="--", linewidth=1.0)
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _label_marks(axes: Axes, cutoff: float | None, side: float) -> None:
    """Names of the two vertical lines, above the axes, where no curve runs."""
    place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "fontsize": 9, "color": "#444444", "va": "bottom"}
    axes.text(0.5, 1.01, " Nyquist", ha="left", **place)
    if cutoff is not None:
        axes.text(cutoff / side, 1.01, f"cut-off, {cutoff:g} cycles per image ", ha="right", **place)


def _style(name: str) -> Any:
    return MODEL_STYLES.get(model_in(name) or "", "-")


def _check_rows(rows: Mapping[str, Tensor]) -> None:
    shapes = {name: tuple(images.shape) for name, images in rows.items()}
    if not rows or any(len(shape) != 4 or shape[1] != 3 or 0 in shape for shape in shapes.values()):
        raise SpectralError(f"An image grid needs rows of images [N, 3, height, width], not {shapes}.")
    if len({shape[2:] for shape in shapes.values()}) > 1:
        raise SpectralError(f"The rows of an image grid have images of different sizes, {shapes}; resize them first.")


def _to_picture(image: Tensor) -> Image.Image:
    pixels = image.detach().float().clamp(0, 1).mul(255).round().byte().cpu()
    return Image.fromarray(pixels.movedim(0, -1).contiguous().numpy())


def _check_suffix(path: Path, suffixes: tuple[str, ...]) -> None:
    if path.suffix.lower() not in suffixes:
        raise SpectralError(f"{path} cannot be written: expected a name that ends in {', '.join(suffixes)}.")


def _write(path: Path, content: io.BytesIO) -> None:
    """The finished file or none: a figure that fails half way leaves nothing behind."""
    try:
        write_whole(path, content.getvalue())
    except OSError as error:
        raise SpectralError(f"{path} cannot be written ({error}); choose another place.") from error
