"""The spectrum by direction: E|X(f, θ)|² = A(θ) / f^α(θ), the orientation-resolved power law of natural images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import SpectralError
from . import planes, power, radial
from .planes import Progress, Window
from .slope import PowerLaw, fit_line

#: Fewer sectors do not tell the axes from the diagonals; more leave a sector of a small image without frequencies.
SECTORS = (4, 180)


@dataclass(frozen=True)
class OrientedSpectrum:
    """The mean power of a set of images by direction and ring, DC left out.

    angle: [S] middle of each sector in degrees, from 0 on: the direction in which waves run, 0 along the rows (vertical
        stripes), 90 down the columns (horizontal stripes), 45 from the upper left to the lower right.
    frequency: [S, R] mean frequency in cycles per pixel, NaN where a sector's ring holds none.
    power: [S, R] mean over images, channels and those frequencies of |DFT|²/(HW), NaN there.
    count: [S, R] DFT frequencies, int64 (of the first batch).
    images: how many images.
    size: (height, width) in pixels (the mean over images).
    window: that it was measured with.
    """

    angle: Tensor
    frequency: Tensor
    power: Tensor
    count: Tensor
    images: int
    size: tuple[float, float]
    window: Window = "hann"

    def fits(self, low: float | None = None, high: float = 0.375) -> list[PowerLaw]:
        """The power law of each sector; its amplitude A(θ) is exp(log_amplitude), both with errors.

        Args:
            low, high: the range in cycles per pixel; by default as `fit_power_law`.

        Raises:
            SpectralError: a sector has fewer than two rings with power in the range.
        """
        low = 4 / min(self.size) if low is None else low
        return [
            fit_line(
                frequency, found, count, low, high, self.window, self.size, f"in the direction of {angle:.4g} degrees"
            )
            for angle, frequency, found, count in zip(
                self.angle.tolist(), self.frequency, self.power, self.count, strict=True
            )
        ]


def oriented_spectrum(
    images: Tensor | Iterable[Tensor],
    *,
    sectors: int = 12,
    bins: int | None = None,
    window: Window = "hann",
    gray: bool = False,
    mask: Tensor | None = None,
    progress: Progress | None = None,
) -> OrientedSpectrum:
    """The spectrum of a set of images by direction and frequency.

    Args:
        images, bins, window, gray, mask, progress: as for `radial_spectrum`.
        sectors: of the half circle; the first is around 0 degrees, so that both axes are in the middle of one where
            the number is even.

    Raises:
        SpectralError: as `radial_spectrum`, or a number of sectors that cannot be.
    """
    _check_sectors(sectors)
    batches: Iterable[Tensor] = [images] if isinstance(images, Tensor) else images
    found: list[OrientedSpectrum] = []
    for batch in batches:
        bins = radial.default_bins(*planes.check_batch(batch, window).shape[-2:]) if bins is None else bins
        if len(batch):
            mean = power.mean_power_spectrum(batch, window=window, gray=gray, mask=mask, progress=progress)
            found.append(by_direction(mean, len(batch), sectors=sectors, bins=bins, window=window))
    if not found:
        raise SpectralError("A spectrum by direction needs at least one image; the set given is empty.")
    return _together(found)


def _together(found: list[OrientedSpectrum]) -> OrientedSpectrum:
    """The mean of several, weighted by their images; of each place over those that have frequencies there."""
    total = sum(one.images for one in found)
    weight = torch.stack([(one.count > 0) * one.images for one in found])

    def mean(values: list[Tensor]) -> Tensor:
        return (torch.stack(values).nan_to_num() * weight).sum(0) / weight.sum(0)

    return OrientedSpectrum(
        angle=found[0].angle,
        frequency=mean([one.frequency for one in found]),
        power=mean([one.power for one in found]),
        count=found[0].count,
        images=total,
        size=(sum(o.size[0] * o.images for o in found) / total, sum(o.size[1] * o.images for o in found) / total),
        window=found[0].window,
    )


def by_direction(
    power: Tensor, images: int = 1, *, sectors: int = 12, bins: int | None = None, window: Window = "hann"
) -> OrientedSpectrum:
    """The same of a power spectrum that is known.

    Args:
        power: [H, W] float64, DC first, from `mean_power_spectrum`.
        images: that it is the mean of.
        sectors, bins: as for `oriented_spectrum`.
        window: that it was measured with.

    Raises:
        SpectralError: a number of sectors or rings that cannot be, or one pixel.
    """
    _check_sectors(sectors)
    height, width = power.shape
    if height * width < 2:
        raise SpectralError("Images of one pixel have no spectrum; expected at least two pixels along an axis.")
    bins = radial.check_bins(bins, height, width)
    cell, count, moment = _cells(height, width, bins, sectors)
    sums = torch.bincount(cell, weights=power.flatten()[1:], minlength=len(count))
    shape = (sectors, bins + 1)
    frequency, mean, count = (one.view(shape) for one in (moment / count, sums / count, count))
    return OrientedSpectrum(_angles(sectors), frequency, mean, count, images, (float(height), float(width)), window)


def _check_sectors(sectors: int) -> None:
    if not SECTORS[0] <= sectors <= SECTORS[1]:
        raise SpectralError(f"The number of directions is {sectors}; expected {SECTORS[0]} to {SECTORS[1]}.")


def _angles(sectors: int) -> Tensor:
    return torch.arange(sectors, dtype=torch.float64) * (180.0 / sectors)


@lru_cache(maxsize=8)
def _cells(height: int, width: int, bins: int, sectors: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each coefficient but DC its place in [sectors · (bins + 1)]; how many one has, and the sum of those."""
    ring = radial.rings(height, width, bins).flatten()[1:]
    turned = planes.orientation(height, width).flatten()[1:] * (sectors / 180.0)
    cell = (turned + 0.5 - 1e-9).floor().long() % sectors * (bins + 1) + ring
    cells = sectors * (bins + 1)
    frequency = planes.radial_frequency(height, width).flatten()[1:]
    return cell, torch.bincount(cell, minlength=cells), torch.bincount(cell, weights=frequency, minlength=cells)
