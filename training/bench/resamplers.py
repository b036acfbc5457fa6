"""Wavelet-gated resamplers against other libraries' transforms with the same gates, and against a copy of memory.

On CUDA, where Triton is installed, also the Triton form of the gated transforms against the form in torch's operations.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ...spectral.gated_haar import gated_down, gated_up, using
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
    On CUDA with Triton also what `forms` gives.
    """
    batch = settings.of_batch(cpu=8)
    result: dict[str, float] = {}
    for name, way, (channels, side) in (("gated_down", 0, DOWN), ("gated_up", 1, UP)):
        shape = torch.Size((batch, channels, side, side))
        calls = _calls(way, shape, settings)
        with torch.inference_mode():
            times = in_turn(calls, settings.rounds(cpu=30, quick=20), warm=3, repeats=5)
        result |= overhead(f"{name}_vs_copy", times, "mine", "copy", batch)
        for peer in (name for name in PEERS if name in calls):
            result |= speed(f"{name}_vs_{peer}", times, "mine", peer, batch)
        if device().type == "cuda" and importlib.util.find_spec("triton") is not None:
            result |= forms(name, way, shape, settings)
    return result


def forms(name: str, way: int, shape: torch.Size, settings: Settings) -> dict[str, float]:
    """How many times faster Triton's form is than torch's, as `gated_down_triton_vs_torch` and, forward and backward,
    `gated_down_training_triton_vs_torch`, going down (way 0); `gated_up…` going up (1)."""
    x, gates = _inputs(way, shape, settings)
    x, gates = ordered(x).requires_grad_(), gates.requires_grad_()
    function = gated_up if way else gated_down
    with torch.no_grad():
        dy = torch.randn_like(function(x, gates))

    def forward(form: Literal["torch", "triton"]) -> None:
        with using(form), torch.inference_mode():
            function(x, gates)

    def both(form: Literal["torch", "triton"]) -> None:
        with using(form):
            torch.autograd.grad(function(x, gates), (x, gates), dy)

    result: dict[str, float] = {}
    for kind, call in (("", forward), ("training_", both)):
        calls = {"triton": partial(call, "triton"), "torch": partial(call, "torch")}
        times = in_turn(calls, settings.rounds(cpu=20, quick=10), warm=3, repeats=5)
        result |= speed(f"{name}_{kind}triton_vs_torch", times, "triton", "torch", shape[0])
    return result


def _inputs(way: int, shape: torch.Size, settings: Settings) -> tuple[Tensor, Tensor]:
    """Features, and gates for going down (0) or up (1)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device(), settings.dtype)
    return x, torch.rand(shape[0], 4, shape[1] // (4 if way else 1), generator=generator).to(x)


def _calls(way: int, shape: torch.Size, settings: Settings) -> dict[str, Callable[[], Tensor]]:
    """One resampler by everybody, down (0) or up (1), and the copy."""
    x, gates = _inputs(way, shape, settings)
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
