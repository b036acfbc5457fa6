"""The energy in each wavelet band, level by level: octaves of frequency, in three directions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import wavelet as wavelets
from ..errors import SpectralError
from . import planes, power
from .planes import Progress


@dataclass(frozen=True)
class BandEnergies:
    """What each band holds of the mean square of a set of images, per pixel, mean over images and channels.

    detail: [L, 3] finest level first; horizontal (LH), vertical (HL) and diagonal (HH) structure, pywt's cH, cV, cD.
        Level l, from 1, is the octave from 2^−(l+1) to 2^−l cycles per pixel.
    low: what no level holds, the mean brightness included.
    images: how many images.

    With an orthonormal wavelet and sides that halve without a rest all of it adds up to the mean square (Parseval).
    """

    detail: Tensor
    low: float
    images: int

    @property
    def levels(self) -> int:
        return len(self.detail)

    def octave(self, level: int) -> tuple[float, float]:
        """From where to where level l, from 1, reaches in cycles per pixel."""
        return 2.0 ** -(level + 1), 2.0**-level


def band_energies(
    images: Tensor | Iterable[Tensor],
    *,
    wavelet: wavelets.Wavelet = "haar",
    mode: str = "symmetric",
    levels: int | None = None,
    gray: bool = False,
    progress: Progress | None = None,
) -> BandEnergies:
    """The energies of the bands that `pywt.wavedec2` gives, Σ coefficient² / (HW).

    Args:
        images: [B, C, H, W] of a floating dtype, or batches one after the other.
        wavelet, mode: as for `wavelet.dwt2`.
        levels: None: until the shorter side of the first batch has fewer than 4 positions, at least one.
        gray: the luma of RGB images instead of the mean over their channels.
        progress: told of the images as they are done.

    Raises:
        SpectralError: no image, an unknown wavelet or mode, no level, or a dtype that is not floating.
    """
    batches: Iterable[Tensor] = [images] if isinstance(images, Tensor) else images
    total, count = torch.zeros(0, dtype=torch.float64), 0
    for batch in batches:
        checked = planes.check_batch(batch, "none")
        if levels is None:
            levels = max(1, min(checked.shape[-2:]).bit_length() - 2)
        if not 1 <= levels <= 16:
            raise SpectralError(f"The number of wavelet levels is {levels}; expected 1 to 16.")
        if not len(total):
            total = torch.zeros(3 * levels + 1, dtype=torch.float64)
        for start, stop in power.chunks(checked):
            chunk = planes.luma(checked[start:stop]) if gray else checked[start:stop]
            total += _energies(chunk, wavelet, mode, levels)
            if progress is not None:
                progress(stop - start)
        count += len(checked)
    if not count:
        raise SpectralError("Band energies need at least one image; the set given is empty.")
    total /= count
    return BandEnergies(total[:-1].view(-1, 3), total[-1].item(), count)


def _energies(images: Tensor, wavelet: wavelets.Wavelet, mode: str, levels: int) -> Tensor:
    """[3L + 1] float64, Σ over images of Σ coefficient² / (HW), mean over channels; the low band last."""
    pixels = images.shape[-3] * images.shape[-2] * images.shape[-1]
    kind = planes.accumulator(images.device)
    found, low = [], images
    for _ in range(levels):
        low, *detail = wavelets.dwt2(low, wavelet, mode)
        found += [band.square().sum(dtype=kind) for band in detail]
    found.append(low.square().sum(dtype=kind))
    return torch.stack(found).cpu().double() / pixels
