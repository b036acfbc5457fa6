"""The power spectrum in two dimensions, of every plane or averaged over a set of images."""

from __future__ import annotations

import torch
from torch import Tensor

from . import planes
from .planes import Progress, Window

SAMPLES_PER_CHUNK = 2**20  # float32 samples transformed at once: 4 MB, so that a chunk stays in the cache


def power_spectrum(
    x: Tensor,
    *,
    window: Window = "hann",
    remove_dc: bool = True,
    normalize: bool = False,
    log: bool = False,
    center: bool = False,
    mask: Tensor | None = None,
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
        mask: for x [B, C, H, W] alone: [H, W], or [B, H, W] with one for each image, in [0, 1], 0 for pixels that are
            left out. Its loss of power is made up for as the window's is; what remains is blurred by its transform.

    Returns:
        [..., H, W], float32, or float64 for float64 input.

    Raises:
        SpectralError: fewer than two axes, an empty axis, a dtype that is not floating, an unknown window, or a mask
            that does not fit.
    """
    x = planes.check(x, window)
    masked = planes.check_mask(mask, planes.check_batch(x, window)) if mask is not None else None
    height, width = x.shape[-2:]
    prepared = planes.prepare(x, window, masked, remove_dc)
    power: Tensor = torch.fft.fft2(prepared).abs().square() / (height * width)
    tiny = torch.finfo(power.dtype).tiny
    if normalize:
        power = power / power.amax((-2, -1), keepdim=True).clamp_min(tiny)
    if log:
        power = power.clamp_min(tiny).log10()
    return torch.fft.fftshift(power, dim=(-2, -1)) if center else power


def mean_power_spectrum(
    images: Tensor,
    *,
    window: Window = "hann",
    remove_dc: bool = True,
    gray: bool = False,
    mask: Tensor | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """The power spectrum averaged over the images of a batch and their channels, a chunk in memory at a time.

    Args:
        images: [B, C, H, W], one or more, as for `power_spectrum`.
        window, remove_dc, mask: as for `power_spectrum`.
        gray: the luma of RGB images instead of the mean over their channels.
        progress: told of the images as they are done.

    Returns:
        [H, W] float64, DC first.

    Raises:
        SpectralError: as `power_spectrum`.
    """
    images = planes.check_batch(images, window)
    mask = planes.check_mask(mask, images)
    height, width = images.shape[-2:]
    half = torch.zeros(height, width // 2 + 1, dtype=planes.accumulator(images.device), device=images.device)
    for start, stop in chunks(images):
        chunk = planes.luma(images[start:stop]) if gray else images[start:stop]
        half += half_plane_power(chunk, window, part(mask, start, stop), remove_dc).sum(0)
        if progress is not None:
            progress(stop - start)
    planes.check_finite(half)
    half = half.cpu().double() / max(len(images), 1)
    whole = torch.empty(height, width, dtype=torch.float64)
    whole[:, : half.shape[1]] = half
    mirrored = torch.arange(half.shape[1], width)  # the power at −f is that at f
    rows = -torch.arange(height) % height
    whole[:, half.shape[1] :] = half[rows][:, width - mirrored]
    return whole


def chunks(images: Tensor) -> list[tuple[int, int]]:
    """From where to where a batch [B, C, H, W] is cut, so that a chunk stays in the cache."""
    if not len(images):
        return []
    step = max(1, SAMPLES_PER_CHUNK // images[0].numel())
    return [(start, min(start + step, len(images))) for start in range(0, len(images), step)]


def part(mask: Tensor | None, start: int, stop: int) -> Tensor | None:
    """The masks of a chunk, from `planes.check_mask`: one for all, or one for each image."""
    return mask if mask is None or len(mask) == 1 else mask[start:stop]


def half_plane_power(images: Tensor, window: Window, mask: Tensor | None = None, remove_dc: bool = True) -> Tensor:
    """[B, C, H, W] → [B, H, W//2 + 1]: |DFT|²/(HW) averaged over channels, on the half plane of rfft2."""
    height, width = images.shape[-2:]
    transform = torch.fft.rfft2(planes.prepare(images.contiguous(), window, mask, remove_dc))
    power: Tensor = transform.real.square().add_(transform.imag.square()).sum(1)
    return power / (height * width * images.shape[1])
