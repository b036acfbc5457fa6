"""Views of charts about spectra: maps over both frequencies, power along the axes, by direction and by octave."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..spectral.errors import SpectralError
from ..spectral.spectrum import BandEnergies, OrientedSpectrum, PowerLaw, RadialSpectrum, centred_ends
from . import measured
from .charts import Axis, Map, Unit, View
from .plot import Series
from .plot_axes import Array

#: The longest side of a map in the page: more cells than a node has room for.
MAP_SIDE = 80
#: Powers below this fraction of the largest are rounding noise of a float32 transform.
FLOOR = 1e-12


def law_line(radial: RadialSpectrum, law: PowerLaw) -> Series:
    fitted = radial.frequency[(radial.frequency >= law.low) & (radial.frequency <= law.high)]
    return Series("power law", fitted.numpy(), law.at(fitted).numpy(), dashed=True, colour="#D55E00")


def frequency_map(
    values: Tensor,
    size: tuple[int, int],
    label: str,
    low: float,
    high: float,
    unit: str = "pixel",
    *,
    diverging: bool = False,
) -> Map:
    """A map over both frequencies, zero in the middle.

    Args:
        values: [h, w], centred, from `reduced`.
        size: height and width of what they were reduced from.
        low, high: of the colours.
    """
    height, width = (centred_ends(side) for side in size)
    x = _frequency("horizontal", unit, *width)
    y = _frequency("vertical", unit, -height[1], -height[0])  # the first row, the lowest frequency, is on top
    return Map(values.numpy(), label, x, y, low, max(high, low + 1e-6), diverging)


def _frequency(name: str, unit: str, low: float, high: float) -> Axis:
    label = f"{name} frequency (cycles per {unit})"
    nyquist = Unit("of Nyquist", f"{name} frequency (fraction of the Nyquist frequency)", 2.0)
    return Axis(label, low=low, high=high, units=(Unit(f"per {unit}", label, 1.0), nyquist))


def reduced(power: Tensor) -> Tensor:
    """Centred values [H, W] at MAP_SIDE at most, each cell the mean of what it stands for."""
    size = (min(power.shape[0], MAP_SIDE), min(power.shape[1], MAP_SIDE))
    return torch.nn.functional.adaptive_avg_pool2d(power[None], size)[0]


def power_map(power: Tensor, normalized: bool, log: bool, unit: str) -> Map:
    """The map of a mean spectrum [H, W], DC first; upwards on it are waves that run upwards in the image."""
    centred = reduced(torch.fft.fftshift(power))
    label = "power / largest power" if normalized else "power"
    if not log:
        return frequency_map(centred, (power.shape[0], power.shape[1]), label, 0.0, float(centred.max()), unit)
    values = centred.clamp_min(float(centred.max()) * FLOOR + 1e-30).log10()
    low = float(np.percentile(values.numpy(), 1))
    return frequency_map(values, (power.shape[0], power.shape[1]), f"{label}, log10", low, float(values.max()), unit)


def axis_lines(power: Tensor) -> list[Series]:
    lines = {name: line for name, line in (("horizontal", power[0]), ("vertical", power[:, 0]))}
    return [
        Series(
            f"{name} frequencies",
            (np.arange(1, len(line) // 2 + 1) / len(line)),
            line[1 : len(line) // 2 + 1].numpy(),
            colour=colour,
        )
        for (name, line), colour in zip(lines.items(), ("#0072B2", "#D55E00"), strict=True)
        if len(line) > 1
    ]


def axis_rows(power: Tensor) -> Iterator[tuple[float | str, ...]]:
    """The spectrum along its two axes, from the lowest frequency up."""
    for name, line in (("horizontal", power[0]), ("vertical", power[:, 0])):
        for index in range(1, len(line) // 2 + 1):
            yield name, index / len(line), float(line[index])


DIRECTIONS_HEADER = ("degrees", "alpha", "alpha_error", "log_A", "log_A_error", "mean_power")


def laws_of(directions: OrientedSpectrum) -> list[PowerLaw] | None:
    """The power law of each direction; None where the images are too small or too flat for one."""
    try:
        return directions.fits()
    except SpectralError:
        return None


def direction_rows(directions: OrientedSpectrum, laws: list[PowerLaw] | None) -> Iterator[tuple[float, ...]]:
    mean = _mean_power(directions)
    for index, angle in enumerate(directions.angle.tolist()):
        law = laws[index] if laws else None
        fit = (law.alpha, law.alpha_error, law.log_amplitude, law.log_amplitude_error) if law else (np.nan,) * 4
        yield angle, *fit, float(mean[index])


def _mean_power(directions: OrientedSpectrum) -> Tensor:
    """[S] mean power of each direction, every frequency counting the same."""
    total = (directions.power.nan_to_num() * directions.count).sum(1)
    return total / directions.count.sum(1).clamp_min(1)


def direction_views(directions: OrientedSpectrum, laws: list[PowerLaw] | None) -> list[View]:
    angle = directions.angle.numpy()
    x = Axis("direction of the waves (degrees; 0: vertical stripes, 90: horizontal ones)", low=0.0, high=180.0)
    if laws is None:
        mean = Series("mean power", angle, _mean_power(directions).numpy())
        return [View(("directions",), [mean], x=x, y=measured.power_axis("mean power"))]
    made = []
    for name, label, found in (
        ("alpha by direction", "alpha (error bars as a band: 1 standard error)", _with_errors(laws, "alpha")),
        ("A by direction", "ln A, the power law at 1 cycle per pixel", _with_errors(laws, "log_amplitude")),
    ):
        value, error = found
        line = Series(name.split()[0], angle, value, value - error, value + error, colour="#009E73")
        made.append(View((name,), [line], x=x, y=Axis(label)))
    return made


def _with_errors(laws: list[PowerLaw], name: str) -> tuple[Array, Array]:
    value, error = (np.array([getattr(law, key) for law in laws]) for key in (name, f"{name}_error"))
    return value, error


BANDS_HEADER = ("level", "low_cycles_per_pixel", "high_cycles_per_pixel", "horizontal", "vertical", "diagonal")


def band_rows(bands: BandEnergies) -> Iterator[tuple[float | str, ...]]:
    for level in range(1, bands.levels + 1):
        yield level, *bands.octave(level), *bands.detail[level - 1].tolist()
    yield "low", 0.0, bands.octave(bands.levels)[0], bands.low, "", ""


def band_view(bands: BandEnergies) -> View:
    level = np.arange(1, bands.levels + 1, dtype=float)
    names = ("horizontal edges", "vertical edges", "diagonals")
    lines = [
        Series(name, level, bands.detail[:, index].numpy(), colour=colour)
        for index, (name, colour) in enumerate(zip(names, ("#0072B2", "#D55E00", "#009E73"), strict=True))
    ]
    x = Axis(
        "wavelet level (1: the finest, 1/4 to 1/2 cycles per pixel; each next an octave lower)",
        low=0.5,
        high=bands.levels + 0.5,
    )
    return View(("wavelet bands",), lines, x=x, y=measured.power_axis("energy per pixel (Haar)"))
