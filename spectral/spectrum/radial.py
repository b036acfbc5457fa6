"""The radial spectrum: power averaged over directions, ring by ring, with how far it can be trusted.

Frequencies are in cycles per pixel: f = √(f_x² + f_y²), 0.5 the Nyquist frequency along an axis, 1/√2 that of the
corner; the radius r = √2 · f runs over [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import SpectralError
from . import confidence, planes, power
from .planes import Progress, Window


@dataclass(frozen=True)
class RadialSpectrum:
    """Azimuthal mean of the power spectrum of a set of images, a row per ring that holds a frequency, DC left out.

    frequency: [R] mean frequency of the ring in cycles per pixel, float64, increasing.
    power: [R] mean over images, channels and ring of |DFT|²/(HW), float64.
    std: [R] standard deviation of that power between images; None for a single image.
    count: [R] DFT frequencies in the ring, int64 (the mean over images where sizes differ); beyond 0.5 they get fewer.
    images: how many images.
    size: (height, width) in pixels (the mean over images).
    window: that it was measured with.
    """

    frequency: Tensor
    power: Tensor
    std: Tensor | None
    count: Tensor
    images: int
    size: tuple[float, float]
    window: Window = "hann"

    @property
    def radius(self) -> Tensor:
        """[R] the ring's place in [0, 1]: 1 is the corner, 1/√2 the Nyquist frequency of an axis."""
        return self.frequency * math.sqrt(2)

    @property
    def side(self) -> float:
        """The shorter side in pixels: cycles per image = frequency · side."""
        return min(self.size)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """[R] and [R]: between which powers the expected power lies with this probability.

        Of several images, from their spread (Student's t, of the logarithm); of one, as for a Gaussian field, from how
        many independent frequencies its ring holds (χ²).
        """
        if self.std is not None:
            return confidence.of_means(self.power, self.std / math.sqrt(self.images), self.images - 1, level)
        return confidence.of_powers(self.power, self.count / confidence.FREQUENCIES_PER_VALUE[self.window], level)


def default_bins(height: int, width: int) -> int:
    """Rings about one cycle per image wide: √(HW)/√2 of them between DC and the corner."""
    return max(1, round(math.sqrt(height * width / 2)))


def radial_profiles(
    images: Tensor,
    *,
    bins: int | None = None,
    window: Window = "hann",
    gray: bool = False,
    mask: Tensor | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """The radial power of each image: `power_spectrum` averaged over channels and rings, DC left out.

    Args:
        images: [B, C, H, W], as for `power_spectrum`.
        bins: ring i holds the radii around i / bins, i = 0 … bins; `default_bins` of the size if None.
        window, mask: as for `power_spectrum`.
        gray: the luma of RGB images instead of the mean over their channels.
        progress: told of the images as they are done.

    Returns:
        [B, bins + 1] float64, NaN where a ring holds no frequency (always so for ring 0 of a square image).

    Raises:
        SpectralError: as `power_spectrum`, or no batch of images, or no ring.
    """
    images = planes.check_batch(images, window)
    mask = planes.check_mask(mask, images)
    height, width = images.shape[-2:]
    bins = check_bins(bins, height, width)
    accumulate = planes.accumulator(images.device)
    ring, weight = _half_plane_rings(height, width, bins, images.device, accumulate)
    sums = torch.zeros(images.shape[0], bins + 1, dtype=accumulate, device=images.device)
    for start, stop in power.chunks(images):
        chunk = planes.luma(images[start:stop]) if gray else images[start:stop]
        found = power.half_plane_power(chunk, window, power.part(mask, start, stop))
        sums[start:stop].index_add_(1, ring, found.flatten(1) * weight)
        if progress is not None:
            progress(stop - start)
    planes.check_finite(sums)
    return sums.cpu().double() / _ring_counts(height, width, bins)


def radial_spectrum(
    images: Tensor | Iterable[Tensor],
    *,
    bins: int | None = None,
    window: Window = "hann",
    gray: bool = False,
    mask: Tensor | None = None,
    progress: Progress | None = None,
) -> RadialSpectrum:
    """The radial spectrum of a set of images; every image counts the same.

    Args:
        images: [B, C, H, W], or batches of that shape one after the other, whose sizes may differ; one batch is in
            memory at a time.
        bins: as for `radial_profiles`; for batches of different sizes give the `default_bins` of the smallest, so
            that every image reaches every ring. None: that of the first batch.
        window: as for `power_spectrum`.
        gray: the luma of RGB images instead of the mean over their channels.
        mask: as for `power_spectrum`; of batches, for each of them.
        progress: told of the images as they are done.

    Raises:
        SpectralError: no image, images of one pixel, or what `power_spectrum` raises.
    """
    batches: Iterable[Tensor] = [images] if isinstance(images, Tensor) else images
    profiles, sizes = [], []
    for batch in batches:
        bins = default_bins(*planes.check_batch(batch, window).shape[-2:]) if bins is None else bins
        profiles.append(radial_profiles(batch, bins=bins, window=window, gray=gray, mask=mask, progress=progress))
        sizes += [(batch.shape[-2], batch.shape[-1])] * batch.shape[0]
    if not sizes or bins is None:
        raise SpectralError("A radial spectrum needs at least one image; the set given is empty.")
    return _summary(torch.cat(profiles), sizes, bins, window)


def _summary(profiles: Tensor, sizes: list[tuple[int, int]], bins: int, window: Window) -> RadialSpectrum:
    """One RadialSpectrum of the profiles [N, bins + 1] of N images of the given sizes."""
    known = {size: (_ring_counts(*size, bins), _ring_frequencies(*size, bins)) for size in set(sizes)}
    # Of one size, once: to the last bit the same for any number of images, so that such sets are compared ring by ring.
    apart = sizes if len(known) > 1 else list(known)
    count = torch.stack([known[size][0] for size in apart]).double()
    frequency = torch.stack([known[size][1] for size in apart])
    there = (count > 0).any(0)
    if not there.any():
        raise SpectralError("Images of one pixel have no spectrum; expected at least two pixels along an axis.")
    return RadialSpectrum(
        frequency=frequency[:, there].nanmean(0),
        power=profiles[:, there].nanmean(0),
        std=_nanstd(profiles[:, there]) if len(sizes) > 1 else None,
        count=count[:, there].mean(0).round().long(),
        images=len(sizes),
        size=(sum(h for h, _ in sizes) / len(sizes), sum(w for _, w in sizes) / len(sizes)),
        window=window,
    )


def _nanstd(x: Tensor) -> Tensor:
    known = (~x.isnan()).sum(0)
    return ((x - x.nanmean(0)).square().nansum(0) / (known - 1).clamp_min(1)).sqrt()


@lru_cache(maxsize=16)
def _half_plane_rings(
    height: int, width: int, bins: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Ring and multiplicity (0 for DC, 2 where rfft2 leaves the mirror image out) of each half-plane coefficient."""
    half = width // 2 + 1
    with torch.inference_mode(False):
        weight = torch.full((height, half), 2.0)
        weight[:, 0] = 1.0
        if width % 2 == 0:
            weight[:, -1] = 1.0
        weight[0, 0] = 0.0
        return rings(height, width, bins)[:, :half].flatten().to(device), weight.flatten().to(device, dtype)


def rings(height: int, width: int, bins: int) -> Tensor:
    """[height, width] index i of the ring whose radius i / bins is nearest to the coefficient's."""
    return (planes.radial_frequency(height, width) * math.sqrt(2) * bins + 0.5).floor().long()


@lru_cache(maxsize=64)
def _ring_counts(height: int, width: int, bins: int) -> Tensor:
    """[bins + 1] how many DFT frequencies other than DC each ring holds."""
    return torch.bincount(rings(height, width, bins).flatten()[1:], minlength=bins + 1)


@lru_cache(maxsize=64)
def _ring_frequencies(height: int, width: int, bins: int) -> Tensor:
    """[bins + 1] mean frequency of each ring in cycles per pixel, NaN where it is empty."""
    frequency = planes.radial_frequency(height, width).flatten()[1:]
    sums = torch.bincount(rings(height, width, bins).flatten()[1:], weights=frequency, minlength=bins + 1)
    return sums / _ring_counts(height, width, bins)


def check_bins(bins: int | None, height: int, width: int) -> int:
    bins = default_bins(height, width) if bins is None else bins
    if bins < 1:
        raise SpectralError(f"The number of rings is {bins}: expected at least 1, or None for one a cycle per image.")
    return bins
