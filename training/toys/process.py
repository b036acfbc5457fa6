"""A diffusion process of a screen: train a network to predict the noise, and sample from it.

The schedule has 1000 steps from β = 0.0001 to 0.02 (Ho et al., "Denoising Diffusion Probabilistic Models", 2020).
Random numbers hang on the seed and on their purpose: measuring in the middle of a training changes nothing after it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ...spectral.diffusion import Denoise, Schedule, ddim
from ...spectral.errors import SpectralError

Draw = Callable[[int, torch.Generator], Tensor]  # a batch of data: (how many, random numbers) → [B, …]


def ddpm_schedule() -> Schedule:
    return Schedule(1e-4, 0.02, 1000)


def numbers(seed: int, purpose: str) -> torch.Generator:
    """The random numbers of one purpose; another seed or purpose has others."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {purpose}".encode()))


def initialised(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """What `make` returns, its random weights of this seed, and torch's own stream of random numbers as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{seed} weights".encode()))
        return make()


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: the same numbers on any number of cores, and no slower for networks of this size.

    Where other programs want the cores too, two threads are several times slower than one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def train(
    network: nn.Module,
    draw: Draw,
    schedule: Schedule,
    *,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    name: str,
    pauses: Sequence[int] = (),
    pause: Callable[[int], None] | None = None,
) -> float:
    """Minimise E‖ε − ε_θ(x_t, t)‖² (Eq. 3) with Adam, its rate falling to 0 in a straight line, with a progress bar.

    Args:
        network: (x_t, t) → ε, trained in place.
        draw: fresh data for every step.
        steps, batch, rate: how many steps of how many samples, and the first step's learning rate.
        seed: of data, time steps and noise; the same for every network that is trained with it.
        name: before the progress bar.
        pauses, pause: after these steps `pause(step)` is called.

    Returns:
        The mean loss over the last tenth of the steps.
    """
    generator = numbers(seed, "training")
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    total, tail = 0.0, max(1, steps // 10)
    with tqdm(total=steps, desc=name, unit="step", dynamic_ncols=True, disable=None) as bar:
        for step in range(1, steps + 1):
            x_0 = draw(batch, generator)
            t = torch.randint(0, schedule.steps, (batch,), generator=generator)
            noise = torch.randn(x_0.shape, generator=generator)
            loss = F.mse_loss(network(schedule.q_sample(x_0, t, noise), t), noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
            total += loss.item() if step > steps - tail else 0.0
            bar.update()
            if pause is not None and step in pauses:
                pause(step)
    return total / tail


@one_thread()
def sample(
    denoise: Denoise,
    shape: tuple[int, ...],
    schedule: Schedule,
    *,
    steps: int,
    eta: float,
    seed: int,
    limit: float | None = None,
) -> Tensor:
    """Samples [*shape] from noise of this seed, by DDIM (η = 0) or ancestral sampling (η = 1).

    Args:
        limit: the predicted x_0 is clipped to ±limit at every step, as DDPM does where data lie in [−1, 1].
    """
    generator = numbers(seed, "sampling")

    def clipped(x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        if limit is None:
            return denoise(x, t)
        signal, sigma = schedule.coefficients(t, x)
        x_0 = schedule.split(x, t, denoise(x, t))[0].clamp(-limit, limit)
        return (x - signal * x_0) / sigma

    start = torch.randn(shape, generator=generator)
    return ddim(clipped, start, schedule, steps, eta=eta, generator=generator)


def check_steps(steps: int, least: int) -> None:
    """Raise SpectralError for a number of training steps that cannot be."""
    if steps < least:
        raise SpectralError(f"--steps is {steps}; expected {least} training steps or more.")


def in_short(result: dict[str, Any]) -> dict[str, Any]:
    """What a person reads of a toy's result: its single numbers, to three digits."""
    single = {key: value for key, value in result.items() if not isinstance(value, dict)}
    return {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in single.items()}
