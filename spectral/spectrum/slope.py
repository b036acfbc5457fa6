"""The power law A / f^α of a spectrum: natural images have α ≈ 2, smoother ones more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SpectralError
from .planes import Window
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
    return fit_line(spectrum.frequency, spectrum.power, spectrum.count, low, high, spectrum.window, spectrum.size)


def fit_line(
    frequency: Tensor,
    power: Tensor,
    count: Tensor,
    low: float,
    high: float,
    window: Window,
    size: tuple[float, float],
    where: str = "in these images",
) -> PowerLaw:
    """The power law of rings [R] of any kind between two frequencies, each weighted by its count.

    A Hann window blurs the spectrum, by a variance of 1/(3 H²) and 1/(3 W²) along its axes: where the law is steep, a
    ring gets more power from below than it loses. By the Laplacian of f^−α that is the factor
    1 + α² (1/H² + 1/W²) / (12 f²), which the fit takes out.

    Args:
        frequency, power: NaN for rings that there are not.
        window, size: what the spectrum was measured with, and of what height and width.
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
    f, logs = frequency[chosen], power[chosen].log()
    blur = (size[0] ** -2 + size[1] ** -2) / 12 / f.square() if window == "hann" else torch.zeros_like(f)
    line = _line(f.log(), logs, count[chosen], window)
    for _ in range(_ROUNDS if window == "hann" else 0):
        line = _line(f.log(), logs - torch.log1p(line.slope**2 * blur), count[chosen], window)
    return PowerLaw(-line.slope, line.slope_error, line.intercept, low, high, line.intercept_error)


#: After so many rounds the window's blur is that of the slope which is found without it.
_ROUNDS = 6
#: How the powers of rings go together with those of the next ring and the one after, under a Hann window.
_NEIGHBOURS = {"none": (0.0, 0.0), "hann": (0.46, 0.06)}


class _Line(NamedTuple):
    slope: float
    slope_error: float
    intercept: float
    intercept_error: float


def _line(x: Tensor, y: Tensor, count: Tensor, window: Window) -> _Line:
    """Weighted least squares y = intercept + slope · x of two rings or more; errors from the scatter about the line."""
    weight = count.double() / count.double().sum()
    mean_x, mean_y = (weight * x).sum(), (weight * y).sum()
    spread = (weight * (x - mean_x).square()).sum()
    slope = (weight * (x - mean_x) * (y - mean_y)).sum() / spread
    intercept = mean_y - slope * mean_x
    scatter = weight * (y - intercept - slope * x)
    return _Line(
        slope.item(),
        _error(scatter * (x - mean_x) / spread, window),
        intercept.item(),
        _error(scatter * (1 - mean_x * (x - mean_x) / spread), window),
    )


def _error(terms: Tensor, window: Window) -> float:
    """Root of the variance of Σ terms, one a ring, which go together with their next two neighbours.

    By as much as the window makes them, or as is found among them, whichever is more.
    """
    if len(terms) < 3:
        return math.nan
    own = terms.square().sum()
    found = (terms[1:] * terms[:-1]).sum() + (terms[2:] * terms[:-2]).sum()
    known = sum(_NEIGHBOURS[window]) * own
    corrected = (own + 2 * torch.maximum(found, known)) * len(terms) / (len(terms) - 2)
    return math.sqrt(corrected.item())
