"""Two spectra against each other: band errors (Table 1), their distance, and where their DFTs differ (Figure 10)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SpectralError
from . import planes
from .planes import Progress, Window
from .power import mean_power_spectrum
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
    cycles, ratio = log_ratio(reference, other)
    distance = ratio.abs()
    below = cycles < cutoff
    if not below.any() or below.all():
        raise SpectralError(
            f"The cut-off of {cutoff:g} cycles per image leaves a band empty; for these images choose one "
            f"between {cycles[0].item():.3g} and {cycles[-1].item():.3g}."
        )
    return BandErrors(low=distance[below].mean().item(), high=distance[~below].mean().item(), cutoff=cutoff)


def spectral_distance(reference: RadialSpectrum, other: RadialSpectrum, low: float = 0.0, high: float = 0.5) -> float:
    """The log-spectral distance of two mean spectra in decibels: √ mean (10 log₁₀ (P_other / P_reference))².

    Each ring counts the same; P and the frequencies in common are those of `band_errors`. 0 is equal, 3 a factor of
    two.

    Args:
        low, high: the range in cycles per pixel of the reference; by default up to the Nyquist frequency.

    Raises:
        SpectralError: no common frequency in the range.
    """
    cycles, ratio = log_ratio(reference, other)
    inside = (cycles >= low * reference.side) & (cycles <= high * reference.side * (1 + 1e-9))
    if not inside.any():
        raise SpectralError(
            f"The two sets have no frequency in common between {low:g} and {high:g} cycles per pixel; widen the range."
        )
    return (10 / math.log(10)) * ratio[inside].square().mean().sqrt().item()


def log_ratio(reference: RadialSpectrum, other: RadialSpectrum) -> tuple[Tensor, Tensor]:
    """Where both sets have frequencies, these in cycles per image, and ln(P_other / P_reference) as in `band_errors`.

    Raises:
        SpectralError: the sets have no frequency in common.
    """
    sign = 1.0
    cycles, expected = _cycles_and_amplitude(reference)
    other_cycles, found = _cycles_and_amplitude(other)
    if not torch.equal(cycles, other_cycles):
        if other_cycles[-1] < cycles[-1]:
            cycles, other_cycles, expected, found, sign = other_cycles, cycles, found, expected, -1.0
        inside = cycles >= other_cycles[0]
        if not inside.any():
            raise SpectralError(
                f"The two sets have no frequency in common: one ends at {cycles[-1].item():.3g} cycles per image, the "
                f"other begins at {other_cycles[0].item():.3g}; use larger images."
            )
        cycles, expected = cycles[inside], expected[inside]
        found = interpolate_log(cycles, other_cycles, found)
    floor = RELATIVE_FLOOR * max(expected.max().item(), found.max().item(), torch.finfo(torch.float64).tiny)
    return cycles, sign * (found.clamp_min(floor) / expected.clamp_min(floor)).log()


def _cycles_and_amplitude(spectrum: RadialSpectrum) -> tuple[Tensor, Tensor]:
    """Frequency in cycles per image along the shorter side, and squared Fourier amplitude |DFT/(HW)|²."""
    return spectrum.frequency * spectrum.side, spectrum.power / math.prod(spectrum.size)


def interpolate_log(x: Tensor, known_x: Tensor, known_y: Tensor) -> Tensor:
    """known_y at x, linear in the logarithms of both; x lies within known_x."""
    tiny = torch.finfo(torch.float64).tiny
    right = torch.searchsorted(known_x, x).clamp(1, len(known_x) - 1)
    left = right - 1
    log_x, log_y = known_x.log(), known_y.clamp_min(tiny).log()
    share = (x.log() - log_x[left]) / (log_x[right] - log_x[left])
    return torch.lerp(log_y[left], log_y[right], share).exp()


@dataclass(frozen=True)
class DFTDifference:
    """Where the transforms of two sets of images differ (Figure 10), frequency zero in the middle, float64.

    ratio: [H, W] ln(mean |DFT other|² / mean |DFT reference|²): above 0 where the other has more.
    difference: [H, W] mean |DFT other − DFT reference|²/(HW) of the pairs; None for sets of different numbers. Unlike
        the ratio it sees phases: equal power at other places is a difference.
    power: [H, W] |mean power of the other − mean power of the reference|.
    """

    ratio: Tensor
    difference: Tensor | None

    power: Tensor

    def high_share(self, above: float) -> float:
        """The part of the difference, 0 to 1, that lies above a frequency in cycles per pixel.

        Of the pairs' difference, or without pairs of that between the mean powers.
        """
        found = self.power if self.difference is None else self.difference
        frequency = torch.fft.fftshift(planes.radial_frequency(*found.shape))
        return float(found[frequency > above].sum() / found.sum().clamp_min(torch.finfo(torch.float64).tiny))


def dft_difference(
    reference: Tensor,
    other: Tensor,
    *,
    window: Window = "hann",
    gray: bool = False,
    mask: Tensor | None = None,
    progress: Progress | None = None,
) -> DFTDifference:
    """Compare two sets of images of one size, frequency by frequency in two dimensions.

    Args:
        reference, other: [B, C, H, W] of one size and channels; of as many images, these are compared in pairs, such
            as samples of two models from the same noise.
        window, gray: as for `radial_spectrum`.
        mask: as for `radial_spectrum`, of both sets; one for each image only where there are pairs.
        progress: told of the images as they are done, each pass counting for itself.

    Raises:
        SpectralError: the sets are of different sizes or channels, or empty, or what `power_spectrum` raises.
    """
    if reference.shape[1:] != other.shape[1:] or not len(reference) or not len(other):
        raise SpectralError(
            f"The DFTs of images {tuple(reference.shape)} and {tuple(other.shape)} cannot be compared; expected two "
            "sets [batch, channels, height, width] of one size, so resize one of them."
        )
    first, second = (
        mean_power_spectrum(one, window=window, gray=gray, mask=mask, progress=progress) for one in (reference, other)
    )
    floor = RELATIVE_FLOOR * max(first.max().item(), second.max().item(), torch.finfo(torch.float64).tiny)
    ratio = (second.clamp_min(floor) / first.clamp_min(floor)).log()
    difference = None
    if len(reference) == len(other):
        difference = mean_power_spectrum(other - reference, window=window, gray=gray, mask=mask, progress=progress)
        difference = torch.fft.fftshift(difference)
    return DFTDifference(torch.fft.fftshift(ratio), difference, torch.fft.fftshift((second - first).abs()))
