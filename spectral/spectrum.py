"""Power spectra of images and latents, their radial profile, its power law, and the error between two sets.

Frequencies are in cycles per pixel: f = √(f_x² + f_y²), 0.5 the Nyquist frequency along an axis, 1/√2 that of the
corner; the radius r = √2 · f runs over [0, 1]. The spectrum (DC removed, Hann window, |DFT|²/(HW)) and its azimuthal
mean, the reduced spectrum, are drawn as in the literature on spectral bias of generative models; natural images follow
A/f^α with α ≈ 2; band errors are those of Table 1 of "Diffusion Probabilistic Model Made Slim".
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from .errors import SpectralError

Window: TypeAlias = Literal["hann", "none"]

SAMPLES_PER_CHUNK = 2**20  # float32 samples transformed at once: 4 MB, so that a chunk stays in the cache
RELATIVE_FLOOR = 1e-12  # powers below this fraction of the largest are rounding noise of a float32 transform


@dataclass(frozen=True)
class RadialSpectrum:
    """Azimuthal mean of the power spectrum of a set of images, a row per ring that holds a frequency, DC left out.

    frequency: [R] mean frequency of the ring in cycles per pixel, float64, increasing.
    power: [R] mean over images, channels and ring of |DFT|²/(HW), float64.
    std: [R] standard deviation of that power between images; None for a single image.
    count: [R] DFT frequencies in the ring, int64 (the mean over images where sizes differ); beyond 0.5 they get fewer.
    images: how many images.
    size: (height, width) in pixels (the mean over images).
    """

    frequency: Tensor
    power: Tensor
    std: Tensor | None
    count: Tensor
    images: int
    size: tuple[float, float]

    @property
    def radius(self) -> Tensor:
        """[R] the ring's place in [0, 1]: 1 is the corner, 1/√2 the Nyquist frequency of an axis."""
        return self.frequency * math.sqrt(2)

    @property
    def side(self) -> float:
        """The shorter side in pixels: cycles per image = frequency · side."""
        return min(self.size)


@dataclass(frozen=True)
class PowerLaw:
    """power ≈ exp(log_amplitude) / frequency^alpha between `low` and `high` cycles per pixel.

    alpha_error is the standard error that follows from the scatter about the line; NaN for two rings.
    """

    alpha: float
    alpha_error: float
    log_amplitude: float
    low: float
    high: float


@dataclass(frozen=True)
class BandErrors:
    """Mean |ln(power / reference power)| below and above `cutoff` cycles per image: 0 equal, 0.69 a factor of two."""

    low: float
    high: float
    cutoff: float


def luma(images: Tensor) -> Tensor:
    """[..., 3, H, W] RGB → [..., 1, H, W] brightness with the weights of ITU-R BT.601 (Pillow's "L")."""
    if images.ndim < 3 or images.shape[-3] != 3:
        raise SpectralError(
            f"Luma needs RGB images [..., 3, height, width], not {tuple(images.shape)}; use all channels."
        )
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=images.dtype, device=images.device)
    return torch.einsum("...chw,c->...hw", images, weights).unsqueeze(-3)


def radial_frequency(height: int, width: int, *, device: torch.device | str | None = None) -> Tensor:
    """[height, width] frequency in cycles per pixel of each DFT coefficient, DC first (`torch.fft` order), float64."""
    rows = torch.fft.fftfreq(height, dtype=torch.float64, device=device)
    columns = torch.fft.fftfreq(width, dtype=torch.float64, device=device)
    return torch.hypot(rows[:, None], columns[None, :])


def power_spectrum(
    x: Tensor,
    *,
    window: Window = "hann",
    remove_dc: bool = True,
    normalize: bool = False,
    log: bool = False,
    center: bool = False,
) -> Tensor:
    """The 2D power spectrum |DFT|²/(HW) of every plane.

    Args:
        x: [..., H, W], images in [0, 1] or latents, any size; float16 and bfloat16 are transformed in float32.
        window: "hann" (periodic, against leakage from the border) or "none". A window's loss of power is made up for,
            so that white noise of variance v has the mean power v either way.
        remove_dc: subtract the plane's mean first. Without window and removal, Σ power = Σ x² (Parseval).
        normalize: divide each plane by its maximum.
        log: log10 of the power, so that a normalised plane has its maximum at 0.
        center: move DC from [0, 0] to [H//2, W//2], for display.

    Returns:
        [..., H, W], float32, or float64 for float64 input.

    Raises:
        SpectralError: fewer than two axes, an empty axis, a dtype that is not floating, or an unknown window.
    """
    x = _check(x, window)
    if remove_dc:
        x = _without_dc(x)
    height, width = x.shape[-2:]
    if window == "hann":
        x = x * _hann(height, width, x.dtype, x.device)
    power: Tensor = torch.fft.fft2(x).abs().square() / (height * width)
    tiny = torch.finfo(power.dtype).tiny
    if normalize:
        power = power / power.amax((-2, -1), keepdim=True).clamp_min(tiny)
    if log:
        power = power.clamp_min(tiny).log10()
    return torch.fft.fftshift(power, dim=(-2, -1)) if center else power


def default_bins(height: int, width: int) -> int:
    """Rings about one cycle per image wide: √(HW)/√2 of them between DC and the corner."""
    return max(1, round(math.sqrt(height * width / 2)))


def radial_profiles(images: Tensor, *, bins: int | None = None, window: Window = "hann") -> Tensor:
    """The radial power of each image: `power_spectrum` averaged over channels and rings, DC left out.

    Args:
        images: [B, C, H, W], as for `power_spectrum`.
        bins: ring i holds the radii around i / bins, i = 0 … bins; `default_bins` of the size if None.
        window: as for `power_spectrum`.

    Returns:
        [B, bins + 1] float64, NaN where a ring holds no frequency (always so for ring 0 of a square image).
    """
    images = _check(images, window)
    if images.ndim != 4:
        raise SpectralError(f"Radial spectra need images [batch, channels, height, width], not {tuple(images.shape)}.")
    height, width = images.shape[-2:]
    bins = _check_bins(bins, height, width)
    ring, weight = _half_plane_rings(height, width, bins, images.device)
    accumulate = _accumulator(images.device)
    sums = torch.zeros(images.shape[0], bins + 1, dtype=accumulate, device=images.device)
    step = max(1, SAMPLES_PER_CHUNK // images[0].numel()) if len(images) else 1
    for start in range(0, images.shape[0], step):
        power = _half_plane_power(images[start : start + step], window).to(accumulate) * weight.to(accumulate)
        sums[start : start + step].index_add_(1, ring, power)
    return sums.cpu().double() / _ring_counts(height, width, bins)


def radial_spectrum(
    images: Tensor | Iterable[Tensor], *, bins: int | None = None, window: Window = "hann", gray: bool = False
) -> RadialSpectrum:
    """The radial spectrum of a set of images; every image counts the same.

    Args:
        images: [B, C, H, W], or batches of that shape one after the other, whose sizes may differ.
        bins: as for `radial_profiles`; for batches of different sizes give the `default_bins` of the smallest, so
            that every image reaches every ring. None: that of the first batch.
        window: as for `power_spectrum`.
        gray: the luma of RGB images instead of the mean over their channels.

    Raises:
        SpectralError: no image, images of one pixel, or what `power_spectrum` raises.
    """
    batches: Iterable[Tensor] = [images] if isinstance(images, Tensor) else images
    profiles, sizes = [], []
    for batch in batches:
        planes = luma(batch) if gray else batch
        bins = default_bins(*planes.shape[-2:]) if bins is None else bins
        profiles.append(radial_profiles(planes, bins=bins, window=window))
        sizes += [(planes.shape[-2], planes.shape[-1])] * planes.shape[0]
    if not sizes or bins is None:
        raise SpectralError("A radial spectrum needs at least one image; the set given is empty.")
    return _summary(torch.cat(profiles), sizes, bins)


def fit_power_law(spectrum: RadialSpectrum, low: float | None = None, high: float = 0.375) -> PowerLaw:
    """Weighted least squares of ln power on ln frequency, a ring's weight its count: power = A / f^α.

    Args:
        spectrum: of images, a mean over many for a sharp answer.
        low, high: the range in cycles per pixel. The default leaves out what is below 4 cycles per image, where few
            frequencies and the window blur the curve, and above 3/8, where sampling bends it.

    Raises:
        SpectralError: fewer than two rings with power in the range.
    """
    low = 4 / spectrum.side if low is None else low
    if low >= high:
        raise SpectralError(
            f"No slope between {low:.4g} and {high:.4g} cycles per pixel: the range is empty. It begins at 4 cycles "
            f"per image by default, and these are {spectrum.side} pixels on the shorter side; use larger images, or "
            "set the range."
        )
    chosen = (spectrum.frequency >= low) & (spectrum.frequency <= high) & (spectrum.power > 0)
    chosen &= spectrum.power.isfinite()
    if int(chosen.sum()) < 2:
        raise SpectralError(
            f"No slope between {low:.4g} and {high:.4g} cycles per pixel: expected two rings with power or more there; "
            "widen the range, or use larger images that are not of one colour."
        )
    x, y = spectrum.frequency[chosen].log(), spectrum.power[chosen].log()
    weight = spectrum.count[chosen].double()
    weight = weight / weight.sum()
    mean_x, mean_y = (weight * x).sum(), (weight * y).sum()
    spread = (weight * (x - mean_x).square()).sum()
    slope = (weight * (x - mean_x) * (y - mean_y)).sum() / spread
    intercept = mean_y - slope * mean_x
    residual = y - intercept - slope * x
    return PowerLaw(
        alpha=-slope.item(),
        alpha_error=_slope_error(weight * (x - mean_x) * residual) / spread.item(),
        log_amplitude=intercept.item(),
        low=low,
        high=high,
    )


def _slope_error(terms: Tensor) -> float:
    """Root of the variance of Σ terms, one a ring; a Hann window makes each ring depend on its next two neighbours."""
    if len(terms) < 3:
        return math.nan
    variance = terms.square().sum()
    neighbours = (terms[1:] * terms[:-1]).sum() + (terms[2:] * terms[:-2]).sum()
    corrected = (variance + 2 * neighbours.clamp_min(0)) * len(terms) / (len(terms) - 2)
    return math.sqrt(corrected.item())


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


def _summary(profiles: Tensor, sizes: list[tuple[int, int]], bins: int) -> RadialSpectrum:
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
    )


def _nanstd(x: Tensor) -> Tensor:
    known = (~x.isnan()).sum(0)
    return ((x - x.nanmean(0)).square().nansum(0) / (known - 1).clamp_min(1)).sqrt()


def _half_plane_power(images: Tensor, window: Window) -> Tensor:
    """[B, C, H, W] → [B, H·(W//2 + 1)]: |DFT|²/(HW) without DC, averaged over channels, on the half plane of rfft2."""
    height, width = images.shape[-2:]
    planes = _without_dc(images)
    if window == "hann":
        planes *= _hann(height, width, planes.dtype, planes.device)
    transform = torch.fft.rfft2(planes)
    power: Tensor = transform.real.square().add_(transform.imag.square()).sum(1)
    return power.flatten(1) / (height * width * images.shape[1])


def _without_dc(planes: Tensor) -> Tensor:
    """The mean in float64: a float32 rounding error, once windowed, would look like a lowest frequency."""
    return planes - planes.mean((-2, -1), keepdim=True, dtype=_accumulator(planes.device)).to(planes.dtype)


def _accumulator(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


@lru_cache(maxsize=16)
def _half_plane_rings(height: int, width: int, bins: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ring and multiplicity (0 for DC, 2 where rfft2 leaves the mirror image out) of each half-plane coefficient."""
    half = width // 2 + 1
    with torch.inference_mode(False):
        weight = torch.full((height, half), 2.0)
        weight[:, 0] = 1.0
        if width % 2 == 0:
            weight[:, -1] = 1.0
        weight[0, 0] = 0.0
        return _rings(height, width, bins)[:, :half].flatten().to(device), weight.flatten().to(device)


def _rings(height: int, width: int, bins: int) -> Tensor:
    """[height, width] index i of the ring whose radius i / bins is nearest to the coefficient's."""
    return (radial_frequency(height, width) * math.sqrt(2) * bins + 0.5).floor().long()


@lru_cache(maxsize=64)
def _ring_counts(height: int, width: int, bins: int) -> Tensor:
    """[bins + 1] how many DFT frequencies other than DC each ring holds."""
    return torch.bincount(_rings(height, width, bins).flatten()[1:], minlength=bins + 1)


@lru_cache(maxsize=64)
def _ring_frequencies(height: int, width: int, bins: int) -> Tensor:
    """[bins + 1] mean frequency of each ring in cycles per pixel, NaN where it is empty."""
    frequency = radial_frequency(height, width).flatten()[1:]
    sums = torch.bincount(_rings(height, width, bins).flatten()[1:], weights=frequency, minlength=bins + 1)
    return sums / _ring_counts(height, width, bins)


@lru_cache(maxsize=16)
def _hann(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[height, width] periodic Hann window with a mean square of 1."""
    with torch.inference_mode(False):  # cached, so it must also serve callers that need gradients
        rows = torch.hann_window(height, dtype=torch.float64)
        columns = torch.hann_window(width, dtype=torch.float64)
        window = torch.outer(rows / rows.square().mean().sqrt(), columns / columns.square().mean().sqrt())
        return window.to(device, dtype)


def _check(x: Tensor, window: str) -> Tensor:
    if window not in ("hann", "none"):
        raise SpectralError(f"Unknown window {window!r}: expected 'hann' or 'none'.")
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise SpectralError(
            f"A spectrum needs planes [..., height, width] with at least one row and column, not {tuple(x.shape)}."
        )
    if not x.is_floating_point():
        raise SpectralError(
            f"A spectrum needs floating values, not {x.dtype}; convert 8-bit images with x.float() / 255."
        )
    return x if x.dtype == torch.float64 else x.float()


def _check_bins(bins: int | None, height: int, width: int) -> int:
    bins = default_bins(height, width) if bins is None else bins
    if bins < 1:
        raise SpectralError(f"The number of rings is {bins}: expected at least 1, or None for one a cycle per image.")
    return bins
