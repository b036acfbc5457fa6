"""Half precision against float32: how much faster the student's U-Net is, and how far off its predictions are."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ...spectral import checkpoint
from ...spectral.unet import UNet
from ..demo import TEACHER
from ..processes import device
from ..running import Running, fastest
from .networks import PRESET, call
from .timing import Settings, in_turn, speed

#: Steps at which the default student predicts.
STEPS = (1, 50, 250, 500, 750, 999)


def measure(settings: Settings) -> dict[str, float]:
    """`student_bf16_vs_float32` and `bf16_error`; on a GPU the same of fp16.

    An error is the root mean square of what changes, over that of the float32 prediction: the largest of all steps, of
    the default student, whose weights are trained. A CPU without instructions for bfloat16 is not measured.
    """
    halves: tuple[Literal["bf16", "fp16"], ...] = ("bf16", "fp16") if device().type == "cuda" else ("bf16",)
    if fastest(device()) == "no":
        return {}
    batch = settings.of_batch(cpu=8, quick=1)
    calls = {each: call(f"{PRESET}-student", batch, replace(settings, precision=each)) for each in ("no", *halves)}
    times = in_turn(calls, settings.rounds(cpu=15, quick=7))
    result: dict[str, float] = {}
    for half in halves:
        result |= speed(f"student_{half}_vs_float32", times, half, "no", batch)
        result[f"{half}_error"] = round(error(half), 6)
    return result


@torch.no_grad()
def error(half: Literal["bf16", "fp16"]) -> float:
    """The largest of the relative errors of the default student's predictions."""
    opened = checkpoint.load(TEACHER.with_name("emoji64-student.safetensors"), device=device())
    assert opened.unet is not None and opened.conditioner is not None
    exact, how = opened.unet, Running(half)
    rounded = copy.deepcopy(exact)
    how.prepare(rounded)
    x, context = _noise(exact), _context(exact)
    found = []
    for step in STEPS:
        t = torch.full((len(x),), step, device=device())
        one, other = exact(x, t, context), how.network(rounded, [step])(x, t, context)
        found.append(float((one - other).square().mean().sqrt() / one.square().mean().sqrt()))
    return max(found)


def _noise(unet: UNet, batch: int = 8) -> Tensor:
    side = unet.config.image_size
    shape = (batch, unet.config.in_channels, side, side)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device())


def _context(unet: UNet, batch: int = 8) -> Tensor:
    """As wide as texts, of their usual size."""
    shape = (batch, 77, unet.config.context_dim or 0)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device())
