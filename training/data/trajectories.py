"""What a student of few steps learns from: the states that its teacher passes on the way from noise to a sample.

The student takes S steps of DDIM, trailing ones (Lin et al., 2023, Table 2), on the teacher's schedule with zero
terminal SNR. So it begins at noise alone, and the states are those at its steps' noise levels, on the teacher's own way
of many steps: inside a step DDIM is a straight line between the step's x_0 and its noise, so that nothing is estimated.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...spectral.config import ScheduleConfig
from ...spectral.diffusion import Schedule


def few_step_schedule(teacher: ScheduleConfig) -> ScheduleConfig:
    """The schedule of a student of few steps: the teacher's, with zero terminal SNR, and a student that predicts v."""
    return replace(teacher, prediction="v", zero_terminal_snr=True)


class Recorder:
    """A callback of DDIM that keeps the states at S noise levels.

    Args:
        teacher: its schedule.
        steps: that it takes.
        count: S.
    """

    def __init__(self, teacher: ScheduleConfig, steps: int, count: int) -> None:
        own, few = Schedule.from_config(teacher), Schedule.from_config(few_step_schedule(teacher))
        after = own.alphas_cumprod[own.ddim_timesteps(steps)].flip(0)
        #: ᾱ before the first step, and after each.
        self.first, self.after = float(after[0]), [*after[1:].tolist(), own.alphas_cumprod[0].item()]
        #: Those to stop at, but for the first, which is noise alone.
        self.wanted = few.alphas_cumprod[few.ddim_timesteps(count)].flip(0)[1:].tolist()
        self.found: list[Tensor] = []

    def __call__(self, index: int, x: Tensor, x_0: Tensor) -> None:
        """After step `index` of DDIM (η = 0): x is the state, x_0 what the step took for the picture."""
        end = self.after[index]
        noise = (x - end**0.5 * x_0) / (1.0 - end) ** 0.5
        if index == 0:  # what DDIM started from, and took for a state of its first step's ᾱ
            self.found.append(_at(self.first, x_0, noise))
        while len(self.found) <= len(self.wanted) and self.wanted[len(self.found) - 1] <= end:
            self.found.append(_at(self.wanted[len(self.found) - 1], x_0, noise))

    def states(self) -> Tensor:
        """[B, S, C, h, w], from noise on; each is where one of the student's steps begins."""
        assert len(self.found) == len(self.wanted) + 1
        return torch.stack(self.found, dim=1)


def _at(alpha: float, x_0: Tensor, noise: Tensor) -> Tensor:
    return alpha**0.5 * x_0 + (1.0 - alpha) ** 0.5 * noise
