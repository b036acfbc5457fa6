"""Two spectra against each other: band errors (Table 1), their distance, and where their DFTs differ (Figure 10)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SpectralError
from .radial import RadialSpectrum

RELATIVE_FLOOR = 1e-12  # powers below this fraction of the largest are rounding noise of a float32 transform


@dataclass(frozen=True)
class BandErrors:
    """Mean |ln(power / reference power)| below and above `cutoff` cycles per image: 0 equal, 0.69 a factor of two."""

    low: float
    high: float
    cutoff: float


def band_errors(reference: RadialSpectrum, other: RadialSpectrum, cutoff: float = 28.0) -> BandErrors:
    """How far two mean spectra are apart below and above a cut-off (Table 1).

    The error of a band is the mean of |ln(P_other / P_reference)| over its frequencies, each ring counting the same.
    P is the squared amplitude of a Fourier coefficient, |DFT/(HW)|², as a function of cycles per image: the same
    pictures at another size (properly filtered) have the same P, so the error depends neither on the resolution nor
    on the scale of the pixels. Sets of different sizes are compared where both have frequencies.

    Args:
        reference: real images, or the teacher's.
        other: generated images.
        cutoff: in cycles per image, along the shorter side; a frequency at the cut-off belongs to the high band.

    Raises:
        SpectralError: a band without a common frequency.
    """
    cycles, expected = _cycles_and_amplitude(reference)
    other_cycles, found = _cycles_and_amplitude(other)
    if not torch.equal(cycles, other_cycles):
        if other_cycles[-1] < cycles[-1]:
            cycles, other_cycles, expected, found = other_cycles, cycles, found, expected
        inside = cycles >= other_cycles[0]
        if not inside.any():
            raise SpectralError(
                f"The two sets have no frequency in common: one ends at {cycles[-1].item():.3g} cycles per image, the "
                f"other begins at {other_cycles[0].item():.3g}; use larger images."
            )
        cycles, expected = cycles[inside], expected[inside]
        found = _interpolate_log(cycles, other_cycles, found)
    floor = RELATIVE_FLOOR * max(expected.max().item(), found.max().item(), torch.finfo(torch.float64).tiny)
    distance = (found.clamp_min(floor) / expected.clamp_min(floor)).log().abs()
    below = cycles < cutoff
    if not below.any() or below.all():
        raise SpectralError(
            f"The cut-off of {cutoff:g} cycles per image leaves a band empty; for these images choose one "
            f"between {cycles[0].item():.3g} and {cycles[-1].item():.3g}."
        )
    return BandErrors(low=distance[below].mean().item(), high=distance[~below].mean().item(), cutoff=cutoff)


def _cycles_and_amplitude(spectrum: RadialSpectrum) -> tuple[Tensor, Tensor]:
    """Frequency in cycles per image along the shorter side, and squared Fourier amplitude |DFT/(HW)|²."""
    return spectrum.frequency * spectrum.side, spectrum.power / math.prod(spectrum.size)


def _interpolate_log(x: Tensor, known_x: Tensor, known_y: Tensor) -> Tensor:
    """known_y at x, linear in the logarithms of both; x lies within known_x."""
    tiny = torch.finfo(torch.float64).tiny
    right = torch.searchsorted(known_x, x).clamp(1, len(known_x) - 1)
    left = right - 1
    log_x, log_y = known_x.log(), known_y.clamp_min(tiny).log()
    share = (x.log() - log_x[left]) / (log_x[right] - log_x[left])
    return torch.lerp(log_y[left], log_y[right], share).exp()
