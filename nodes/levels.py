"""Noise levels of any MODEL as signal and noise: x_t = s x_0 + n ε with s² + n² = 1, or a flow's 1 − σ and σ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_sampling
import torch
from torch import Tensor

#: Flow models, which ComfyUI of 2024-03 did not know.
_FLOW = tuple(
    getattr(comfy.model_sampling, name) for name in ("CONST", "IMG_TO_IMG") if hasattr(comfy.model_sampling, name)
)


@dataclass(frozen=True)
class Levels:
    """Noise levels of a schedule, from noise to picture.

    sigma: [L] ComfyUI's σ.
    timestep: [L] what the network is told.
    signal, noise: [L] s and n.
    flow: whether the model is one of flows, whose x_t is (1 − σ) x_0 + σ ε instead of x_0 + σ ε in ComfyUI.
    """

    sigma: Tensor
    timestep: Tensor
    signal: Tensor
    noise: Tensor
    flow: bool

    def names(self) -> list[str]:
        """What each level is called."""
        steps = [f"{step:.4g}" for step in self.timestep.tolist()]
        return [f"time step {step}" for step in steps]

    def as_sampled(self, x_t: Tensor, index: int) -> Tensor:
        """x_t in the scale in which ComfyUI's samplers hold it."""
        return x_t if self.flow else x_t / float(self.signal[index])


def levels_of(model: Any, count: int) -> Levels:
    """So many noise levels of a MODEL, evenly over its schedule, both ends left out: there is nothing to see there.

    Args:
        model: any MODEL.
        count: of levels, from 1.
    """
    sampling = model.model.model_sampling
    percents = [(index + 0.5) / count for index in range(count)]
    sigma = torch.tensor([float(sampling.percent_to_sigma(percent)) for percent in percents], dtype=torch.float64)
    flow = isinstance(sampling, _FLOW)
    scale = (1 + sigma.square()).sqrt()
    return Levels(
        sigma=sigma,
        timestep=torch.stack([sampling.timestep(one).double().reshape(()).cpu() for one in sigma.float()]),
        signal=1 - sigma if flow else 1 / scale,
        noise=sigma if flow else sigma / scale,
        flow=flow,
    )
