"""Wavelet-gated resamplers against other libraries' transforms with the same gates, and against a copy of memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...spectral.gated_haar import gated_down, gated_up
from ...spectral.layers import ordered
from ..processes import device
from .peers import missing, ptwt_resamplers, pytorch_wavelets_resamplers
from .timing import Settings, in_turn, overhead, speed

#: Channels and side of the features that the ffhq256 student's first WG-Down and last WG-Up take.
DOWN, UP = (64, 64), (128, 32)
PEERS = {"pytorch_wavelets": pytorch_wavelets_resamplers, "ptwt": ptwt_resamplers}


def measure(settings: Settings) -> dict[str, float]:
    """`gated_down_vs_copy`, `gated_down_vs_pytorch_wavelets` and so on, and the same for `gated_up`, without gradients.

    Going up stops before the 1×1 convolution. The copy is of the larger of input and output, into memory that is there.
    """
    batch = settings.of_batch(cpu=8)
    result: dict[str, float] = {}
    for name, way, (channels, side) in (("gated_down", 0, DOWN), ("gated_up", 1, UP)):
        calls = _calls(way, torch.Size((batch, channels, side, side)), settings)
        with torch.inference_mode():
            times = in_turn(calls, settings.rounds(cpu=20, quick=10), warm=3, repeats=5)
        result |= overhead(f"{name}_vs_copy", times, "mine", "copy", batch)
        for peer in calls.keys() & PEERS.keys():
            result |= speed(f"{name}_vs_{peer}", times, "mine", peer, batch)
    return result


def _calls(way: int, shape: torch.Size, settings: Settings) -> dict[str, Callable[[], Tensor]]:
    """One resampler by everybody, down (0) or up (1), and the copy."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device(), settings.dtype)
    gates = torch.rand(shape[0], 4, shape[1] // (4 if way else 1), generator=generator).to(x)
    mine, copy = ordered(x), torch.empty_like(x)
    calls: dict[str, Callable[[], Tensor]] = {
        "mine": lambda: (gated_up if way else gated_down)(mine, gates),
        "copy": lambda: copy.copy_(x),
    }
    for name, make in PEERS.items():
        try:
            calls[name] = make(x, gates)[way]
        except ImportError as error:
            missing(error, "the comparison with it")
    return calls
