"""A toy task for the training loop; as a program, a run that has an accident: `python toy.py RUN ACCIDENT`.

preview, checkpoint: it dies by SIGKILL, as when memory runs out, while it draws the preview of step 30 or half-way
through writing the checkpoint of step 30. full: from step 30 on no file may grow. compile: its network is to be
translated. long: it has no accident, but takes a while.
"""

from __future__ import annotations

import io
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectral_diffusion.training import cli
from spectral_diffusion.training.data.batches import Batch, Loaded, MapData
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.data.order import Plan
from spectral_diffusion.training.loop.config import RunConfig
from spectral_diffusion.training.loop.fit import fit
from spectral_diffusion.training.loop.randomness import SampleRandom


class Layers(nn.Sequential):
    """A network with a forward of its own: torch.compile leaves torch's alone."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x


class Toy(nn.Module):
    """A small network that learns to denoise ten fixed vectors; its loss depends on the batch and on fresh noise.

    Most of the noise is a sample's own; some comes from torch's generator, as from a library behind our back.
    """

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.layers = Layers(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, 4))
            self.register_buffer("data", torch.randn(10, 4))
        self.seen: list[list[int]] = []

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.seen.append(batch["index"].tolist())
        x = self.get_buffer("data")[batch["index"]]
        noise = SampleRandom(0, batch["ordinal"]).normal((4,)) + self.library()
        loss = (self.layers(x + noise) - x).square().mean()
        return {"loss": loss, "rms": loss.detach().sqrt()}

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return (self.layers,)

    def library(self) -> Tensor:
        return 0.1 * torch.randn(())


class Quiet(Toy):
    """Without the library, so that processes which take a run over from others learn the same."""

    def library(self) -> Tensor:
        return torch.zeros(())


def config(out: Path, **settings: Any) -> RunConfig:
    """Sixty steps; checkpoints every 10, previews every 15, statistics every 5."""
    usual = {"steps": 60, "batch_size": 4, "lr": 0.01, "warmup": 5, "ema": 0.9}
    often = {"log_every": 5, "preview_every": 15, "checkpoint_every": 10}
    return RunConfig(out, **{**usual, **often, **settings})


class Numbers(MapData):
    """Samples of which only the number matters."""

    in_memory = True
    sha256 = ""

    def __init__(self, length: int = 10) -> None:
        super().__init__(DataConfig(), "numbers", [""] * length, [""] * length)

    def key(self, index: int) -> str:
        return str(index)

    def load(self, plan: Plan, seed: int, mirrored: bool = True) -> Loaded:
        return Loaded({"index": torch.tensor([index for _, index in plan.items])}, [])

    def preview_samples(self, count: int) -> Batch:
        return {"index": torch.arange(count)}


def no_preview(path: Path) -> None:
    """Draw nothing."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


#: A run that writes all the time, for somebody to kill.
LONG = {"steps": 300, "checkpoint_every": 1, "log_every": 1, "preview_every": 0}


def main(out: Path, where: str) -> None:
    """Run, and have the accident at step 30."""
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
        if where == "full" and path.stem == "000030":
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))

    if where == "checkpoint":
        torch.save = save_half
    settings = {"long": LONG, "compile": {"compile": True}}.get(where, {})
    fit(Toy(), Numbers(), config(out, **settings), preview)


if __name__ == "__main__":
    sys.exit(cli.run(lambda argv: main(Path(argv[0]), argv[1])))
