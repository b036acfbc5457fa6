"""The strength of textures: radial power spectra of small windows, compared by their logarithms.

An autoencoder cannot know the phase of grass or gravel, and one that is trained on differences of pixels alone paints
what it cannot know flat. The power in every ring of a small window it can know.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

#: Side of the windows in pixels, each half over the next.
WINDOW = 16
#: Rings of a window's frequencies, one for each cycle per window. The last ones are the corners beyond the Nyquist
#: frequency of the axes, where a decoder puts only what is asked of it.
RINGS = 10
#: Power that counts as none, of images in [−1, 1]: about what rounding to 8 bits leaves.
FLOOR = 1e-5


def texture_distance(made: Tensor, data: Tensor) -> Tensor:
    """Mean |ln ratio| of the power in the rings of all windows, a scalar: 0.69 is a factor of two.

    Args:
        made, data: images in [−1, 1], [B, C, H, W] with sides of `WINDOW` or more.
    """
    return (local_rings(made.float()) - local_rings(data.float())).abs().mean()


def local_rings(images: Tensor) -> Tensor:
    """Mean ln (power + FLOOR) of each ring of frequencies in each window, [B, rows, columns, RINGS].

    Power is the mean over the channels; that of white noise is its variance, for the transform is orthonormal and the
    Hann window has a mean square of 1. A window's mean is left out. Of logarithms the mean is taken, not the logarithm
    of the mean: a single frequency, such as a decoder's chequerboard, cannot stand in for a ring.
    """
    hann, rings = _tables(images.device)
    windows = images.unfold(2, WINDOW, WINDOW // 2).unfold(3, WINDOW, WINDOW // 2)
    windows = (windows - windows.mean((-2, -1), keepdim=True)) * hann
    spectrum = torch.fft.rfft2(windows, norm="ortho")
    power = (spectrum.real.square() + spectrum.imag.square()).mean(1)
    return power.add(FLOOR).log().flatten(-2) @ rings


@cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """The window [WINDOW, WINDOW], and the weights of its half plane's frequencies in each ring, whose sums are 1."""
    hann = torch.hann_window(WINDOW, device=device)
    window = hann[:, None] * hann
    window = window / window.square().mean().sqrt()
    down = torch.fft.fftfreq(WINDOW, 1 / WINDOW, device=device)[:, None]
    across = torch.fft.rfftfreq(WINDOW, 1 / WINDOW, device=device)
    radius = torch.hypot(down, across)
    count = torch.where((across == 0) | (across == WINDOW // 2), 1.0, 2.0).expand_as(radius)
    ring = (radius.round().long() - 1).clamp(max=RINGS - 1)
    rings = torch.zeros(RINGS, ring.numel(), device=device)
    kept = ring.flatten() >= 0
    places = torch.arange(ring.numel(), device=device)
    rings[ring.flatten()[kept], places[kept]] = count.flatten()[kept]
    return window, (rings / rings.sum(1, keepdim=True)).t().contiguous()
