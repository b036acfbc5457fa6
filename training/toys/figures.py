"""The figures of the toys."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...spectral.colours import of_names
from ...spectral.spectrum import RadialSpectrum
from ..files import write_whole
from . import aliasing, toy_1d, toy_2d

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DRAWN = 300  # signals, as in Figure 4
MARK = "#666666"


def draw_toy_1d(made: Mapping[str, Tensor], result: Mapping[str, Any], path: Path) -> None:
    """Figure 4 of the paper: signals on top, DFT magnitudes of each below, and their mean as bars.

    Args:
        made: "data", "small" and "large" → signals [N, 16], of which the first 300 are drawn.
        result: of `toy_1d.run`.
        path: .png, .svg or .pdf.
    """
    figure = _figure(9.6, 9.2)
    panels = figure.subplots(3, 3, height_ratios=[1, 1, 1.1])
    titles = {name: f"hidden {toy_1d.HIDDEN[name]}" if name in toy_1d.HIDDEN else name for name in made}
    colour = of_names(titles.values())
    cycles = np.arange(toy_1d.POINTS // 2 + 1)
    for column, (name, title) in enumerate(titles.items()):
        few = made[name][:DRAWN]
        places = np.linspace(0, 1, 16 * toy_1d.POINTS + 1)
        top, middle = panels[0, column], panels[1, column]
        top.plot(places, _between(few).T.numpy(), color=colour[title], alpha=0.06, linewidth=0.8, rasterized=True)
        top.set(title=title, xlabel="x", ylim=(-1.9, 1.9), xlim=(0, 1))
        lines = toy_1d.magnitudes(few).T.numpy()
        middle.plot(cycles, lines, color=colour[title], alpha=0.06, linewidth=0.8, rasterized=True)
        said = f"{result[f'cycles_3_{name}']:.0%} are 3 cycles, {result[f'cycles_5_{name}']:.0%} are 5"
        middle.set(xlabel="frequency (cycles per signal)", ylim=(-0.03, 1.25), xlim=(0, cycles[-1]), xticks=cycles)
        middle.set_title(said, fontsize=9.5)
    panels[0, 0].set_ylabel("f(x)")
    panels[1, 0].set_ylabel("DFT magnitude of each")
    grid = panels[2, 0].get_gridspec()
    for axes in panels[2]:
        axes.remove()
    bars = figure.add_subplot(grid[2, :])
    for place, (name, title) in enumerate(titles.items()):
        height = result["mean_magnitude"][name]
        bars.bar(cycles + 0.27 * (place - 1), height, width=0.25, color=colour[title], label=title)
    bars.set(xlabel="frequency (cycles per signal)", ylabel="mean DFT magnitude", xticks=cycles)
    bars.legend(loc="upper left", frameon=False)
    for axes in figure.axes:
        _plain(axes)
    shown = min(DRAWN, len(made["data"]))
    figure.suptitle(f"Example 1: {shown} signals of the data and of two networks, after {result['steps']} steps each")
    save(figure, path)


def _between(x: Tensor) -> Tensor:
    """[N, P] samples of band-limited periodic signals → [N, 16P + 1] the curve through them."""
    spectrum = torch.fft.rfft(x)
    spectrum[:, -1] /= 2  # the Nyquist frequency is one line of P samples, and two of 16P
    fine = torch.fft.irfft(spectrum, 16 * x.shape[1]) * 16
    return torch.cat([fine, fine[:, :1]], dim=1)


def draw_toy_2d(
    made: Mapping[str, Tensor], spectra: Mapping[str, RadialSpectrum], result: Mapping[str, Any], path: Path
) -> None:
    """Radial spectra of data and networks, their ratio to the data's, the errors of the bands, and images.

    Args:
        made: "data", "early", "small", "large" and "wiener" → images [N, 1, 32, 32].
        spectra: their radial spectra.
        result: of `toy_2d.run`.
        path: .png, .svg or .pdf.
    """
    early = max(1, result["steps"] // toy_2d.EARLY)
    titles = {
        "data": "data",
        "early": f"small, after {early} steps",
        "small": f"small, {result['parameters']['small']} weights",
        "large": f"large, {result['parameters']['large']} weights",
        "wiener": "optimal denoiser (Wiener)",
    }
    colour, style = of_names(titles.values()), {"early": ":", "wiener": "--"}
    figure = _figure(10.6, 8.6)
    parts: Any = figure.subfigures(1, 2, width_ratios=[1.75, 1])
    left, right = parts
    power, ratio = left.subplots(2, 1, sharex=True, height_ratios=[1.5, 1])
    for name, title in titles.items():
        frequency = spectra[name].frequency.numpy()
        width = 3.2 if name == "data" else 1.7
        drawn: dict[str, Any] = {"color": colour[title], "linestyle": style.get(name, "-"), "linewidth": width}
        power.plot(frequency, spectra[name].power.numpy(), label=title, **drawn)
        ratio.plot(frequency, (spectra[name].power / spectra["data"].power).numpy(), **drawn)
    power.set(yscale="log", ylabel="power (|DFT|² / number of pixels)")
    _ratio_axis(ratio, [spectra[name].power / spectra["data"].power for name in ("small", "large", "wiener")])
    ratio.set(ylabel="power / data", xlabel="spatial frequency (cycles per pixel)", xlim=(0, math.sqrt(0.5)))
    for axes in (power, ratio):
        _plain(axes)
        for low, high in toy_2d.BANDS.values():
            axes.axvspan(low, high, color="#000000", alpha=0.05, linewidth=0)
        axes.axvline(0.5, color=MARK, linestyle=":", linewidth=1.2)
    for name, (low, high) in toy_2d.BANDS.items():
        _above(power, (low + min(high, math.sqrt(0.5))) / 2, {"trough": "trough"}.get(name, f"{name} peak"), "center")
    _above(power, 0.5, "Nyquist ", "right")
    handles, labels = power.get_legend_handles_labels()
    left.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    _show_images(right, {title: made[name] for name, title in titles.items()})
    said = ", ".join(f"{name} {result[f'trough_{name}']:.2f}" for name in ("small", "large", "wiener"))
    figure.suptitle(f"Two peaks and a trough: mean |ln (power / data)| in the trough: {said}")
    save(figure, path)


def _ratio_axis(axes: Axes, ratios: Iterable[Tensor]) -> None:
    """Logarithmic around 1, as far as these ratios reach; an early network may leave it."""
    from matplotlib.ticker import LogLocator, NullFormatter

    values = torch.cat(list(ratios)).clamp(1e-3, 1e3)
    axes.set_yscale("log")
    axes.set_ylim(min(0.6, 0.85 * values.min().item()), max(2.2, 1.25 * values.max().item()))
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _show_images(figure: Any, rows: Mapping[str, Tensor]) -> None:
    """Three images of each row in grey, mid-grey 0 and black and white ±3."""
    panels = figure.subplots(len(rows), 3)
    for row, (title, images) in zip(panels, rows.items(), strict=True):
        for axes, image in zip(row, images[:3, 0], strict=True):
            axes.imshow(image.numpy(), cmap="gray", vmin=-3, vmax=3, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        row[1].set_title(title, fontsize=9.5)


def draw_aliasing(
    frequency: Tensor,
    found: Tensor,
    pictures: Mapping[str, Tensor],
    spectra: Mapping[str, RadialSpectrum],
    result: Mapping[str, Any],
    path: Path,
) -> None:
    """The frequencies that waves are found at, one wave, a picture halved twice in two ways, and their spectra.

    Args:
        frequency, found: [N] in cycles per pixel.
        pictures: "scene", "filtered" and "picked" → [1, 1, H, W] in [0, 1].
        spectra: theirs.
        result: of `aliasing.run`.
        path: .png, .svg or .pdf.
    """
    figure = _figure(11.4, 9.6)
    parts: Any = figure.subfigures(3, 1, height_ratios=[1, 0.95, 1.3])
    top, middle, bottom = parts
    folding, wave = top.subplots(1, 2)
    _draw_folding(folding, frequency, found, result["largest_deviation"])
    _draw_wave(wave)
    _draw_pictures(middle, pictures)
    _draw_picture_spectra(bottom.subplots(), spectra, result)
    figure.suptitle("Aliasing: frequencies above Nyquist come back as lower ones")
    save(figure, path)


def _draw_folding(axes: Axes, frequency: Tensor, found: Tensor, deviation: float) -> None:
    name = of_names(["data", "found"])["found"]
    axes.plot(frequency, aliasing.folded(frequency), color="#000000", linewidth=3.2, label="|f − round(f)|")
    axes.plot(frequency, found, color=name, linewidth=1.4, label="found in the DFT")
    axes.axvline(0.5, color=MARK, linestyle=":", linewidth=1.2)
    _above(axes, 0.5, "Nyquist", "center")
    axes.set(xlabel="frequency of the wave (cycles per pixel)", ylabel="frequency found (cycles per pixel)")
    axes.set(xlim=(0, aliasing.HIGHEST), ylim=(0, 0.72), yticks=[0, 0.1, 0.2, 0.3, 0.4, 0.5])
    axes.legend(loc="upper right", frameon=False, ncols=2)
    _above(axes, aliasing.HIGHEST, f"largest deviation {deviation:.5f}", "right")
    _plain(axes)


def _draw_wave(axes: Axes, frequency: float = 0.9, pixels: int = 20) -> None:
    """A wave above Nyquist, its samples, and the slower wave that runs through the same samples."""
    chosen = of_names(["data", "wave", "alias"])
    alias = aliasing.folded(torch.tensor(frequency)).item()
    fine, whole = np.linspace(0, pixels, 60 * pixels + 1), np.arange(pixels + 1)
    axes.plot(
        fine, np.cos(2 * np.pi * frequency * fine), color=chosen["wave"], linewidth=1.0, label=f"f = {frequency:g}"
    )
    axes.plot(
        fine, np.cos(2 * np.pi * alias * fine), color=chosen["alias"], linewidth=2.0, label=f"alias, f = {alias:.2g}"
    )
    axes.plot(whole, np.cos(2 * np.pi * frequency * whole), "o", color=chosen["data"], markersize=4, label="samples")
    axes.set(xlabel="place (pixels)", ylabel="value", xlim=(0, pixels), xticks=whole[::4], ylim=(-1.15, 1.75))
    axes.legend(loc="upper center", ncols=3, frameon=False)
    _plain(axes)


def _draw_pictures(figure: Any, pictures: Mapping[str, Tensor]) -> None:
    """A quarter of the scene's sides, and the same part of the two small pictures."""
    names = {"scene": "scene", "picked": "every 4th pixel picked", "filtered": "filtered first (Lanczos)"}
    for axes, (name, title) in zip(figure.subplots(1, 3), names.items(), strict=True):
        image = pictures[name][0, 0]
        part = image[: math.ceil(image.shape[0] / 2), : image.shape[1]]
        axes.imshow(part.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(f"{title}, {image.shape[1]}×{image.shape[0]} pixels", fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])


def _draw_picture_spectra(axes: Axes, spectra: Mapping[str, RadialSpectrum], result: Mapping[str, Any]) -> None:
    side, nyquist = spectra["scene"].side, 0.5 / aliasing.FACTOR
    chosen = of_names(["data", "picked", "filtered"])
    for name, colour in zip(("scene", "picked", "filtered"), chosen.values(), strict=True):
        frequency, amplitude = aliasing.amplitudes(spectra[name], side)
        inside = frequency <= (0.5 if name == "scene" else nyquist)
        label = name
        if name != "scene":
            low, high = (result[f"{band}_power_{name}"] for band in ("low", "high"))
            label += f": {low:.2f} of the scene's power below {nyquist / 2:g}, {high:.2f} from there to {nyquist:g}"
        width = 3.2 if name == "scene" else 1.7
        axes.plot(frequency[inside], amplitude[inside], color=colour, linewidth=width, label=label)
    axes.axvline(nyquist, color=MARK, linestyle=":", linewidth=1.2)
    _above(
        axes, nyquist, f"Nyquist of the small pictures; {result['power_above']:.1%} of the power lies above", "center"
    )
    axes.set(xscale="log", yscale="log", xlabel="spatial frequency (cycles per pixel of the scene)")
    axes.set_ylabel("power (|DFT / number of pixels|²)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.legend(loc="lower left", frameon=False)
    _plain(axes)


def _above(axes: Axes, place: float, text: str, align: str) -> None:
    """A word above the axes, where no curve runs."""
    transform = axes.get_xaxis_transform()
    axes.text(place, 1.01, text, transform=transform, ha=align, va="bottom", fontsize=9, color="#444444")


def _plain(axes: Axes) -> None:
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all; its suffix says how."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower())
    write_whole(path, content.getvalue())
