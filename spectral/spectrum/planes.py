"""Planes before their transform: what can be measured, DC, windows and masks, brightness; and their frequencies."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ..errors import SpectralError

Window: TypeAlias = Literal["hann", "none"]
#: Called with how many images were done since it was called last; what it raises ends the measuring.
Progress: TypeAlias = Callable[[int], object]


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


def centred_ends(size: int) -> tuple[float, float]:
    """Between which frequencies the cells of an axis lie, in cycles per pixel, once zero is in the middle.

    Those of an even size begin half a cell before −½, which stands for ½ too.
    """
    middle = (size // 2 + 0.5) / size
    return -middle, 1 - middle


def orientation(height: int, width: int) -> Tensor:
    """[height, width] direction in degrees, in [0, 180), in which the wave of each DFT coefficient runs.

    0 runs along the rows (vertical stripes), 90 down the columns (horizontal stripes), 45 from the upper left to the
    lower right. A wave at the Nyquist frequency of an axis runs both ways; its two coefficients stand for one each.
    """
    rows = torch.fft.fftfreq(height, dtype=torch.float64)
    columns = torch.fft.fftfreq(width, dtype=torch.float64)
    degrees = torch.rad2deg(torch.atan2(rows[:, None].expand(height, width), columns[None, :].expand(height, width)))
    degrees = degrees % 180.0
    return torch.where(degrees >= 180.0, torch.zeros_like(degrees), degrees)


def check(x: Tensor, window: str) -> Tensor:
    """x as it is transformed: float32, or float64 for float64.

    Raises:
        SpectralError: fewer than two axes, an empty axis, a dtype that is not floating, or an unknown window.
    """
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


def check_batch(images: Tensor, window: str) -> Tensor:
    """As `check`, and that it is a batch [B, C, H, W]."""
    images = check(images, window)
    if images.ndim != 4 or not images.shape[1]:
        raise SpectralError(f"Radial spectra need images [batch, channels, height, width], not {tuple(images.shape)}.")
    return images


def check_finite(power: Tensor) -> None:
    """Raise SpectralError for a power that is none: the images hold NaN, infinity, or numbers beyond float32."""
    if not bool(power.isfinite().all()):
        raise SpectralError(
            "The images hold numbers that are not finite (NaN or infinity), or beyond the power of single precision; "
            "leave those images out."
        )


def check_mask(mask: Tensor | None, images: Tensor) -> Tensor | None:
    """A mask as [1 or B, 1, H, W], of the images' dtype and device; None for none, and where it is one everywhere.

    Args:
        mask: [H, W], or [B, H, W] or [B, 1, H, W] with a mask for each image, in [0, 1]: 0 leaves a pixel out.
        images: [B, C, H, W].

    Raises:
        SpectralError: it has another size, or numbers beyond 0 and 1, or leaves nothing of an image.
    """
    if mask is None:
        return None
    shaped = mask[None, None] if mask.ndim == 2 else mask[:, None] if mask.ndim == 3 else mask
    wanted = (images.shape[0], 1, *images.shape[-2:])
    if shaped.ndim != 4 or shaped.shape[1:] != wanted[1:] or shaped.shape[0] not in (1, wanted[0]):
        raise SpectralError(
            f"The mask is {tuple(mask.shape)} and the images are {tuple(images.shape)}; expected one of their height "
            "and width, [height, width], or one for each of them, [batch, height, width]."
        )
    shaped = shaped.to(images)
    if not bool(((shaped >= 0) & (shaped <= 1)).all()):
        raise SpectralError("The mask holds numbers beyond 0 and 1; expected 0 where pixels are left out, 1 elsewhere.")
    if not bool(shaped.flatten(1).any(1).all()):
        raise SpectralError("The mask leaves nothing of an image; expected pixels above 0 in it.")
    return None if bool((shaped == 1).all()) else shaped


def prepare(planes: Tensor, window: Window, mask: Tensor | None, remove_dc: bool = True) -> Tensor:
    """A new tensor: the planes without their mean, under a window and a mask whose loss of power is made up for.

    Args:
        planes: [..., H, W] that passed `check`.
        mask: from `check_mask`, or None.
        remove_dc: the mean is that of what the mask leaves.
    """
    done = without_dc(planes, mask) if remove_dc else planes.clone()
    if window == "hann":
        done *= hann(*planes.shape[-2:], planes.dtype, planes.device)
    if mask is not None:
        taper = hann(*planes.shape[-2:], planes.dtype, planes.device) * mask if window == "hann" else mask
        tiny = torch.finfo(planes.dtype).tiny
        done *= mask / taper.square().mean((-2, -1), keepdim=True).clamp_min(tiny).sqrt()
    return done


def without_dc(planes: Tensor, mask: Tensor | None = None) -> Tensor:
    """The planes less their mean, in two rounds: an error of the first, once windowed, would look like a frequency."""
    if mask is None:
        flat = planes - planes.mean((-2, -1), keepdim=True)
        return flat.sub_(flat.mean((-2, -1), keepdim=True))
    share = mask / mask.sum((-2, -1), keepdim=True)
    flat = planes - (planes * share).sum((-2, -1), keepdim=True)
    return flat.sub_((flat * share).sum((-2, -1), keepdim=True))


@lru_cache(maxsize=16)
def hann(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[height, width] periodic Hann window with a mean square of 1."""
    with torch.inference_mode(False):  # cached, so it must also serve callers that need gradients
        rows = torch.hann_window(height, dtype=torch.float64)
        columns = torch.hann_window(width, dtype=torch.float64)
        window = torch.outer(rows / rows.square().mean().sqrt(), columns / columns.square().mean().sqrt())
        return window.to(device, dtype)


def accumulator(device: torch.device) -> torch.dtype:
    """What sums are kept in: float64, which Apple's GPUs do not have."""
    return torch.float32 if device.type == "mps" else torch.float64
