"""The power law A / f^α of a spectrum: natural images have α ≈ 2, smoother ones more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..errors import SpectralError
from .radial import RadialSpectrum


@dataclass(frozen=True)
class PowerLaw:
    """power ≈ exp(log_amplitude) / frequency^alpha between `low` and `high` cycles per pixel.

    alpha_error and log_amplitude_error are the standard errors that follow from the scatter about the line; NaN for two
    rings. The amplitude is that of the line at 1 cycle per pixel, where no frequency lies.
    """

    alpha: float
    alpha_error: float
    log_amplitude: float
    low: float
    high: float
    log_amplitude_error: float = math.nan

    def at(self, frequency: Tensor) -> Tensor:
        """The law's power at frequencies in cycles per pixel."""
        return math.exp(self.log_amplitude) * frequency**-self.alpha


def fit_power_law(spectrum: RadialSpectrum, low: float | None = None, high: float = 0.375) -> PowerLaw:
    """Weighted least squares of ln power on ln frequency, a ring's weight its count: power = A / f^α.

    Args:
        spectrum: of images, a mean over many for a sharp answer.
        low, high: the range in cycles per pixel. The default leaves out what is below 4 cycles per image, where few
            frequencies and the window blur the curve, and above 3/8, where sampling bends it.

    Raises:
        SpectralError: the range is empty, or has fewer than two rings with power.
    """
    low = 4 / spectrum.side if low is None else low
    return fit_line(spectrum.frequency, spectrum.power, spectrum.count, low, high)


def fit_line(
    frequency: Tensor, power: Tensor, count: Tensor, low: float, high: float, where: str = "in these images"
) -> PowerLaw:
    """The power law of rings [R] of any kind between two frequencies, each weighted by its count.

    Args:
        frequency, power: NaN for rings that there are not.
        where: these rings lie, for the sentence of an error.

    Raises:
        SpectralError: the range is empty, or has fewer than two rings with power.
    """
    if low >= high:
        raise SpectralError(
            f"No slope between {low:.4g} and {high:.4g} cycles per pixel {where}: the range is empty. It begins at 4 "
            "cycles per image unless it is set; use larger images, or set the range."
        )
    chosen = (frequency >= low) & (frequency <= high) & (power > 0) & power.isfinite()
    if int(chosen.sum()) < 2:
        raise SpectralError(
            f"No slope between {low:.4g} and {high:.4g} cycles per pixel {where}: expected two rings with power or "
            "more there; widen the range, or use larger images that are not of one colour."
        )
    line = _line(frequency[chosen].log(), power[chosen].log(), count[chosen])
    return PowerLaw(-line.slope, line.slope_error, line.intercept, low, high, line.intercept_error)


class _Line(NamedTuple):
    slope: float
    slope_error: float
    intercept: float
    intercept_error: float


def _line(x: Tensor, y: Tensor, count: Tensor) -> _Line:
    """Weighted least squares y = intercept + slope · x of two rings or more; errors from the scatter about the line."""
    weight = count.double() / count.double().sum()
    mean_x, mean_y = (weight * x).sum(), (weight * y).sum()
    spread = (weight * (x - mean_x).square()).sum()
    slope = (weight * (x - mean_x) * (y - mean_y)).sum() / spread
    intercept = mean_y - slope * mean_x
    scatter = weight * (y - intercept - slope * x)
    return _Line(
        slope.item(),
        _error(scatter * (x - mean_x) / spread),
        intercept.item(),
        _error(scatter * (1 - mean_x * (x - mean_x) / spread)),
    )


def _error(terms: Tensor) -> float:
    """Root of the variance of Σ terms, one a ring; a Hann window makes each ring depend on its next two neighbours."""
    if len(terms) < 3:
        return math.nan
    variance = terms.square().sum()
    neighbours = (terms[1:] * terms[:-1]).sum() + (terms[2:] * terms[:-2]).sum()
    corrected = (variance + 2 * neighbours.clamp_min(0)) * len(terms) / (len(terms) - 2)
    return math.sqrt(corrected.item())
