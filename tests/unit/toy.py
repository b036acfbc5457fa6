"""A toy task for the training loop; as a program, a run that dies on the way: `python toy.py RUN preview|checkpoint`.

It dies by SIGKILL, as when memory runs out: while it draws the preview of step 30, or half-way through writing the
checkpoint of step 30.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from spectral_diffusion.training import loop


class Indices(Dataset[int]):
    """A data set of which only the length matters."""

    def __init__(self, length: int = 10) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


class Toy(nn.Module):
    """A small network that learns to denoise ten fixed vectors; its loss depends on the batch and on fresh noise."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.layers = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, 4))
            self.register_buffer("data", torch.randn(10, 4))
        self.seen: list[list[int]] = []

    def forward(self, indices: Tensor) -> dict[str, Tensor]:
        self.seen.append(indices.tolist())
        x = self.get_buffer("data")[indices]
        loss = (self.layers(x + torch.randn_like(x)) - x).square().mean()
        return {"loss": loss, "rms": loss.detach().sqrt()}


def config(out: Path, **settings: Any) -> loop.RunConfig:
    """Sixty steps; checkpoints every 10, previews every 15, statistics every 5."""
    usual = {"steps": 60, "batch_size": 4, "lr": 0.01, "warmup": 5, "ema": 0.9}
    often = {"log_every": 5, "preview_every": 15, "checkpoint_every": 10}
    return loop.RunConfig(out, **{**usual, **often, **settings})


def no_preview(path: Path) -> None:
    """Draw nothing."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(out: Path, where: str) -> None:
    """Run, and die at step 30."""
    whole = torch.save

    def save_half(state: dict[str, Any], file: io.BufferedWriter) -> None:
        whole(state, file)
        if state["step"] == 30:
            file.truncate(file.tell() // 2)
            file.flush()
            die()

    def preview(path: Path) -> None:
        if where == "preview" and path.stem == "000030":
            die()

    if where == "checkpoint":
        torch.save = save_half
    loop.fit(Toy(), Indices(), config(out), preview)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
