"""Example 1 of the paper: a small network forgets the rare frequency, a large one does not (Figure 4).

Signals are f(x) = cos(2π a x) at 16 places of [0, 1), a = 3 with probability 0.2 and a = 5 with 0.8. Two-layer networks
of 64 and 1024 hidden units learn them from the same 10000 batches; each then makes 2000 signals in 1000 steps.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...spectral.unet import timestep_embedding
from .. import cli
from ..figures import check_figure_path
from .process import check_steps, ddpm_schedule, in_short, initialised, numbers, sample, train

POINTS = 16  # the places of a signal; with 64 of them the small network's hidden layer cannot even pass the noise on
RARE, FREQUENT = 3, 5  # cycles per signal
HIDDEN = {"small": 64, "large": 1024}
EMBEDDING = 32  # numbers that stand for the time step
BATCH, RATE = 128, 1e-3
SAMPLES = 2000  # a standard error of 0.009 for a share of 0.2
CLEAN = 0.9  # of its power in one line makes a sample a sinusoid


class TwoLayers(nn.Module):
    """(x_t [B, 16], t [B]) → ε [B, 16] through one hidden layer of ReLU, which reads t as its embedding beside x_t."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(POINTS + EMBEDDING, hidden), nn.ReLU(), nn.Linear(hidden, POINTS))

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        prediction: Tensor = self.layers(torch.cat([x, timestep_embedding(t, EMBEDDING)], dim=1))
        return prediction


def signals(count: int, generator: torch.Generator, share: float = 0.2) -> Tensor:
    """[count, 16] waves cos(2π a x), a = 3 for about a `share` of them and a = 5 for the others."""
    cycles = torch.where(torch.rand(count, 1, generator=generator) < share, float(RARE), float(FREQUENT))
    return torch.cos(2 * math.pi * cycles * torch.arange(POINTS) / POINTS)


def magnitudes(x: Tensor) -> Tensor:
    """[B, 16] signals → [B, 9] amplitude of the sinusoid at 0 … 8 cycles per signal; a wave of the data has one 1."""
    scale = torch.full((POINTS // 2 + 1,), 2 / POINTS)
    scale[[0, -1]] = 1 / POINTS
    return torch.fft.rfft(x).abs() * scale


def run(steps: int = 10000, seed: int = 0, out: Path | None = None, share: float = 0.2) -> dict[str, Any]:
    """Train both networks, compare what they make with the data, and draw it.

    Args:
        steps: of training, the same for both networks.
        seed: of data, weights and samples.
        out: the figure; None draws none.
        share: of the waves of 3 cycles. 0.8 makes those of 5 cycles rare, a control: what is missed is what is rare.

    Returns:
        For data, small and large NAME: `cycles_3_NAME`, `cycles_5_NAME`, the shares of samples that are that sinusoid
        (90 % of their power); `beside_NAME`, the mean power beside the two lines over that of a wave of the data;
        `mean_magnitude`, lists at 0 … 8 cycles per signal; `loss`, `seconds`, `steps`, `seed`.

    Raises:
        SpectralError: a number of steps below 1.
    """
    check_steps(steps, 1)
    began, schedule = time.perf_counter(), ddpm_schedule()
    made = {"data": signals(SAMPLES, numbers(seed, "data"), share)}
    losses = {}
    for name, hidden in HIDDEN.items():
        network = initialised(lambda hidden=hidden: TwoLayers(hidden), seed)  # type: ignore[misc]
        losses[name] = train(
            network,
            lambda count, generator: signals(count, generator, share),
            schedule,
            steps=steps,
            batch=BATCH,
            rate=RATE,
            seed=seed,
            name=f"hidden {hidden}",
        )
        made[name] = sample(
            network.eval(), (SAMPLES, POINTS), schedule, steps=schedule.steps, eta=1.0, seed=seed, limit=1.0
        )
    result: dict[str, Any] = {}
    for name, x in made.items():
        result |= {f"{key}_{name}": value for key, value in measure(x).items()}
    result |= {"loss": losses, "mean_magnitude": {name: magnitudes(x).mean(0).tolist() for name, x in made.items()}}
    result |= {"seconds": round(time.perf_counter() - began, 1), "steps": steps, "seed": seed}
    if out is not None:
        from .figures import draw_toy_1d

        draw_toy_1d(made, result, out)
    return result


def measure(x: Tensor) -> dict[str, float]:
    """The shares of signals [B, 16] that are one of the two sinusoids, and the power beside their lines."""
    power = magnitudes(x).square()
    shares = power / power.sum(1, keepdim=True).clamp_min(1e-12)
    beside = power[:, [line for line in range(power.shape[1]) if line not in (RARE, FREQUENT)]].sum(1)
    return {
        "cycles_3": (shares[:, RARE] >= CLEAN).double().mean().item(),
        "cycles_5": (shares[:, FREQUENT] >= CLEAN).double().mean().item(),
        "beside": beside.mean().item(),
    }


def main(argv: Sequence[str]) -> None:
    """The command `spectrum toy-1d`."""
    parser = cli.Parser("spectrum toy-1d", __doc__)
    parser.add_argument("--out", type=Path, default=Path("toy-1d.png"), help="the figure: .png, .svg or .pdf")
    parser.add_argument("--steps", type=int, default=10000, help="training steps of each network")
    parser.add_argument("--seed", type=int, default=0, help="of data, weights and samples")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    check_figure_path(arguments.out)
    result = run(arguments.steps, arguments.seed, arguments.out) | {"figure": str(arguments.out)}
    cli.report(result if arguments.json else in_short(result), arguments.json)


if __name__ == "__main__":
    sys.exit(cli.run(main))
