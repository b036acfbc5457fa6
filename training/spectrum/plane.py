"""`spectrum power` and `spectrum difference`: spectra in two dimensions, by direction and by octave."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...spectral.colours import DIVERGING
from ...spectral.errors import SpectralError
from ...spectral.spectrum import (
    BandEnergies,
    DFTDifference,
    OrientedSpectrum,
    PowerLaw,
    Window,
    band_energies,
    by_direction,
    centred_ends,
    dft_difference,
    mean_power_spectrum,
    radial_frequency,
)
from .. import cli
from ..figures import check_figure_path
from ..files import write_whole
from . import pictures
from .drawing import plain_axes, sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def measure(
    paths: Sequence[str],
    *,
    above: float = 0.25,
    sectors: int = 12,
    window: Window = "hann",
    gray: bool = False,
    mask: Path | None = None,
    plot: Path | None = None,
) -> dict[str, Any]:
    """The mean power spectrum of images of one size, what it says about directions, and their wavelet bands.

    Args:
        paths: as for the command `spectrum`.
        above: high_share counts the power above this frequency, in cycles per pixel.
        sectors: directions of the half circle.
        window, gray, mask: as for the command `spectrum`.
        plot: draw the map, the directions and the bands into this file.

    Raises:
        SpectralError: images that cannot be read or differ in size, or a number of directions that cannot be.
    """
    if plot is not None:
        check_figure_path(plot)
    with pictures.opened(paths) as found:
        pictures.one_size(found)
        weights = pictures.mask_of(mask)
        total = torch.zeros(found[0].size(), dtype=torch.float64)
        for image in pictures.batches(found, "spectra"):
            total += mean_power_spectrum(image, window=window, gray=gray, mask=weights)
        bands = band_energies(pictures.batches(found, "wavelets"), gray=gray)
        count = len(found)
    power = total / count
    directions = by_direction(power, count, sectors=sectors, window=window)
    laws = _laws(directions)
    share = power[radial_frequency(*power.shape) > above].sum() / power.sum().clamp_min(1e-300)
    if plot is not None:
        _draw(power, directions, laws, bands, plot)
    return {
        "high_share": float(share),
        "above": above,
        "directions": _directions(directions, laws),
        "bands": {
            "level": list(range(1, bands.levels + 1)),
            "cycles_per_pixel": [list(bands.octave(level)) for level in range(1, bands.levels + 1)],
            **{
                name: bands.detail[:, index].tolist()
                for index, name in enumerate(("horizontal", "vertical", "diagonal"))
            },
            "low": bands.low,
        },
        "images": count,
        "size": list(power.shape),
    }


def compare(
    reference: str,
    other: str,
    *,
    above: float = 0.25,
    window: Window = "hann",
    gray: bool = False,
    mask: Path | None = None,
    plot: Path | None = None,
) -> dict[str, Any]:
    """Where the transforms of two sets of images of one size differ (Figure 10), in pairs where they are as many.

    Args:
        above: high_share counts the difference above this frequency, in cycles per pixel.
        window, gray, mask: as for the command `spectrum`.
        plot: draw the maps into this file.

    Raises:
        SpectralError: images that cannot be read, or sets of different sizes.
    """
    if plot is not None:
        check_figure_path(plot)
    sets = []
    for path in (reference, other):
        with pictures.opened([path]) as found:
            pictures.one_size(found)
            sets.append(torch.cat(list(pictures.batches(found, Path(path).name))))
    if sets[0].shape[1:] != sets[1].shape[1:]:
        said = [f"{one.shape[-1]}×{one.shape[-2]}" for one in sets]
        raise SpectralError(
            f"The images of {reference} have {said[0]} pixels, those of {other} {said[1]}; bring both to one size, or "
            "use spectrum --compare."
        )
    found_difference = dft_difference(*sets, window=window, gray=gray, mask=pictures.mask_of(mask))
    if plot is not None:
        _draw_difference(found_difference, plot)
    return {
        "high_share": found_difference.high_share(above),
        "above": above,
        "pairs": len(sets[0]) if found_difference.difference is not None else 0,
        "images": [len(one) for one in sets],
        "size": list(sets[0].shape[-2:]),
    }


def _laws(directions: OrientedSpectrum) -> list[PowerLaw] | None:
    """The power law of each direction; None where the images are too small or too flat for one."""
    try:
        return directions.fits()
    except SpectralError:
        return None


def _directions(directions: OrientedSpectrum, laws: list[PowerLaw] | None) -> dict[str, Any]:
    made: dict[str, Any] = {"degrees": directions.angle.tolist()}
    for key in ("alpha", "alpha_error", "log_amplitude", "log_amplitude_error"):
        values = [getattr(law, key) for law in laws] if laws else []
        made[key] = [value if math.isfinite(value) else None for value in values] if laws else None
    return made


def _draw(
    power: Tensor, directions: OrientedSpectrum, laws: list[PowerLaw] | None, bands: BandEnergies, path: Path
) -> None:
    figure = sheet(10.0, 8.0)
    panels = figure.subplots(2, 2)
    shown = torch.fft.fftshift(power / power.max().clamp_min(1e-300)).clamp_min(1e-12).log10().numpy()
    drawn = _map(panels[0, 0], shown, "viridis", float(np.percentile(shown, 1)), float(shown.max()))
    panels[0, 0].set_title("power, log10 of the largest", fontsize=10)
    figure.colorbar(drawn, ax=panels[0, 0])
    for axes, key, label in ((panels[0, 1], "alpha", "alpha"), (panels[1, 0], "log_amplitude", "ln A")):
        plain_axes(axes)
        axes.set_xlabel("direction of the waves (degrees; 0: vertical stripes)")
        axes.set_ylabel(f"{label} of A / frequency^alpha (± 1 standard error)")
        axes.set_xlim(-5, 185)
        if laws:
            value, error = (np.array([getattr(law, name) for law in laws]) for name in (key, f"{key}_error"))
            axes.errorbar(directions.angle, value, error, color="#009E73", marker="o", markersize=4, capsize=2)
    axes = panels[1, 1]
    plain_axes(axes)
    level = np.arange(1, bands.levels + 1)
    named = {"horizontal edges": "#0072B2", "vertical edges": "#D55E00", "diagonals": "#009E73"}
    for index, (name, colour) in enumerate(named.items()):
        axes.plot(level, bands.detail[:, index], color=colour, marker="o", markersize=4, label=name)
    axes.set_yscale("log")
    axes.set_xticks(level)
    axes.set_xlabel("wavelet level (1 the finest, each next an octave lower)")
    axes.set_ylabel("energy per pixel (Haar)")
    axes.legend(frameon=False, fontsize=9)
    figure.suptitle("Power spectrum in two dimensions")
    _save(figure, path)


def _draw_difference(found: DFTDifference, path: Path) -> None:
    paired = found.difference is not None
    figure = sheet(10.0 if paired else 5.6, 4.8)
    panels = figure.subplots(1, 2 if paired else 1, squeeze=False)[0]
    from matplotlib.colors import LinearSegmentedColormap

    decades = (found.ratio / math.log(10)).numpy()
    most = max(float(np.percentile(np.abs(decades), 99)), 0.05)
    colours = LinearSegmentedColormap.from_list("difference", list(DIVERGING))
    drawn = _map(panels[0], decades, colours, -most, most)
    figure.colorbar(drawn, ax=panels[0])
    panels[0].set_title("log10(power / power of the reference)", fontsize=10)
    if found.difference is not None:
        logs = found.difference.clamp_min(float(found.difference.max()) * 1e-12 + 1e-300).log10().numpy()
        drawn = _map(panels[1], logs, "viridis", float(np.percentile(logs, 1)), float(logs.max()))
        figure.colorbar(drawn, ax=panels[1])
        panels[1].set_title("power of the pairs' difference, log10", fontsize=10)
    figure.suptitle("DFT difference")
    _save(figure, path)


def _map(axes: Axes, values: Any, colours: Any, low: float, high: float) -> Any:
    """A map over both frequencies, upwards what runs upwards in the image."""
    axes.set_xlabel("horizontal frequency (cycles per pixel)")
    axes.set_ylabel("vertical frequency (cycles per pixel)")
    left, right = centred_ends(values.shape[1])
    top, bottom = centred_ends(values.shape[0])
    extent = (left, right, -bottom, -top)
    return axes.imshow(values, cmap=colours, vmin=low, vmax=max(high, low + 1e-6), extent=extent)


def _save(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower())
    write_whole(path, content.getvalue())


def _options(parser: cli.Parser) -> None:
    parser.add_argument("--above", type=float, default=0.25, help="high_share counts above it, in cycles per pixel")
    parser.add_argument("--window", choices=["hann", "none"], default="hann", help="none: for images without a seam")
    parser.add_argument("--gray", action="store_true", help="measure the luma instead of the mean over the colours")
    parser.add_argument("--mask", type=Path, help="an image of their size: white is measured, black left out")
    parser.add_argument("--plot", type=Path, help="also draw it into this .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(argv: Sequence[str]) -> None:
    """The command `spectrum power`."""
    parser = cli.Parser("spectrum power", "The mean power spectrum in two dimensions, by direction and by octave.")
    parser.add_argument("paths", nargs="+", help="images of one size: files, folders, .tar shards, or emoji64")
    parser.add_argument("--sectors", type=int, default=12, help="directions of the half circle")
    _options(parser)
    _tell(parser, argv, measure)


def main_difference(argv: Sequence[str]) -> None:
    """The command `spectrum difference`."""
    parser = cli.Parser("spectrum difference", "Where the DFTs of two sets of images of one size differ (Figure 10).")
    parser.add_argument("reference", help="images: a file, a folder, a .tar shard, or emoji64")
    parser.add_argument("other", help="as many make pairs, in the order of their names")
    _options(parser)
    _tell(parser, argv, compare)


def _tell(parser: cli.Parser, argv: Sequence[str], measure: Any) -> None:
    arguments = vars(parser.parse_args(argv))
    as_json = arguments.pop("json")
    result = measure(**arguments)
    if not as_json:
        result = {key: value for key, value in result.items() if not isinstance(value, dict)}
    cli.report(result, as_json)
