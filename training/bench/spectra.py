"""The radial spectrum against the transforms that it cannot do without."""

from __future__ import annotations

import torch

from ...spectral.spectrum import radial_spectrum
from ..processes import device
from .timing import Settings, in_turn, overhead


def measure(settings: Settings) -> dict[str, float]:
    """`radial_spectrum_vs_fft`: of a batch of RGB images of 512×512 pixels, over rfft2 of the same."""
    batch = settings.of_batch(cpu=32)
    images = torch.rand(batch, 3, 512, 512, generator=torch.Generator().manual_seed(0)).to(device())
    calls = {"spectrum": lambda: radial_spectrum(images), "transforms": lambda: torch.fft.rfft2(images)}
    times = in_turn(calls, settings.rounds(cpu=20, quick=5), warm=3)
    return overhead("radial_spectrum_vs_fft", times, "spectrum", "transforms", batch)
