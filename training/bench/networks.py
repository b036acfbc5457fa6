"""U-Nets of one latent shape: the student against Lite, the teacher, and what a user would run instead."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ...spectral import presets
from ...spectral.layers import memory_order
from ..processes import device
from .peers import diffusers_unet, missing
from .timing import Settings, in_turn, speed

#: The paper's Figure 6 is about this one.
PRESET = "ffhq256"


def measure(settings: Settings) -> dict[str, float]:
    """The student against Lite, the teacher, and diffusers' networks of their shapes; our teacher against diffusers'.

    `student_vs_lite`, `student_vs_diffusers_lite`, `student_vs_teacher`, `student_vs_diffusers_ldm` and
    `teacher_vs_diffusers`.
    """
    batch = settings.of_batch(cpu=8, quick=1)
    calls = {kind: call(f"{PRESET}-{kind}", batch, settings) for kind in ("student", "lite")}
    calls |= _diffusers("lite", batch, settings)
    times = in_turn(calls, settings.rounds(cpu=15, quick=7))
    result = speed("student_vs_lite", times, "student", "lite", batch)
    if "diffusers" in calls:
        result |= speed("student_vs_diffusers_lite", times, "student", "diffusers", batch)
    calls = {"student": calls["student"], "teacher": call(f"{PRESET}-teacher", batch, settings)}
    calls |= _diffusers("teacher", batch, settings)
    times = in_turn(calls, settings.rounds(cpu=5, quick=3))
    result |= speed("student_vs_teacher", times, "student", "teacher", batch)
    if "diffusers" in calls:
        result |= speed("student_vs_diffusers_ldm", times, "student", "diffusers", batch)
        result |= speed("teacher_vs_diffusers", times, "teacher", "diffusers", batch)
    return result


def call(preset: str, batch: int, settings: Settings) -> Callable[[], Tensor]:
    """One prediction of a preset's U-Net."""
    network = loaded(preset, settings)
    x, t = inputs(batch, settings)
    return torch.inference_mode()(partial(network, x, t))  # type: ignore[no-any-return]


def loaded(preset: str, settings: Settings) -> nn.Module:
    """A preset's U-Net, laid out as the loader lays it out."""
    network = filled(partial(presets.build, preset), settings.dtype)
    return network.to(memory_format=memory_order(device()))  # type: ignore[call-overload, no-any-return]


def _diffusers(kind: str, batch: int, settings: Settings) -> dict[str, Callable[[], Tensor]]:
    """One prediction of diffusers' U-Net of the shape of our teacher or Lite; empty where it is not installed."""
    try:
        network = filled(partial(diffusers_unet, f"{PRESET}-{kind}"), settings.dtype)
    except ImportError as error:
        missing(error, f"the comparison with its U-Net of the {kind}'s shape")
        return {}
    x, t = inputs(batch, settings)
    return {"diffusers": torch.inference_mode()(lambda: network(x, t).sample)}


def inputs(batch: int, settings: Settings) -> tuple[Tensor, Tensor]:
    """Latents of the preset, and their steps."""
    unet = presets.config(f"{PRESET}-teacher").unet
    assert unet is not None
    x = torch.randn(
        batch, unet.in_channels, unet.image_size, unet.image_size, generator=torch.Generator().manual_seed(0)
    )
    return x.to(device(), settings.dtype), torch.full((batch,), 500.0, device=device())


def filled(make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """A network with weights of the usual size, none of them 0 as in a fresh one, and no time lost to choose them."""
    with torch.device("meta"):
        network = make()
    network = network.to(dtype).to_empty(device=device()).eval().requires_grad_(False)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.02) if weight.dim() > 1 else nn.init.ones_(weight)
    return network
