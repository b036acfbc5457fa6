"""What every run is configured with: how long and how it trains, and what it leaves behind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from ...spectral.errors import SpectralError


@dataclass(frozen=True)
class RunConfig:
    """How long and how a run trains, and what it leaves behind.

    Args:
        out: the run's folder: resolved configuration, statistics, previews, checkpoints and the exported model.
        steps: optimizer steps in all.
        batch_size: images per batch, shared by all processes; a step has `accumulate` batches.
        lr: peak learning rate of AdamW.
        warmup: steps over which the learning rate rises from 0.
        decay: how it falls afterwards: "linear" to 0 (the paper), "cosine" to 0, or "constant".
        weight_decay: AdamW's.
        clip: largest gradient norm.
        ema: decay of the averaged weights; the average warms up over the first steps.
        seed: of the weights, the data order, the noise and the previews.
        precision: "no" is float32; "bf16" and "fp16" are accelerate's mixed precision.
        accumulate: batches per optimizer step.
        log_every: steps between lines in statistics.jsonl and TensorBoard.
        preview_every: steps between preview grids; 0 makes none.
        checkpoint_every: steps between checkpoints; 0 makes one at the end alone.
        keep: how many checkpoints stay on disk.
        optimizer: "adamw", or "adamw8bit" of the package bitsandbytes, whose state takes a quarter of the memory.
        compile: let torch.compile translate the networks; the first steps take minutes.
        max_skipped: steps that may be skipped in all because a loss was not finite.
        trackers: programs that the statistics go to, by accelerate's names: tensorboard, wandb, mlflow, …
    """

    out: Path
    steps: int
    batch_size: int = 32
    lr: float = 5e-4
    warmup: int = 100
    decay: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    accumulate: int = 1
    log_every: int = 20
    preview_every: int = 500
    checkpoint_every: int = 200
    keep: int = 2
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    compile: bool = False
    max_skipped: int = 20
    trackers: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        if self.out == Path():
            raise SpectralError("run.out is empty; expected the folder of the run.")
        for name in ("steps", "batch_size", "accumulate", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise SpectralError(f"run.{name} is {getattr(self, name)}; expected at least 1.")
        for name, what in (("batch_size", "images"), ("accumulate", "batches")):
            if getattr(self, name) > 65536:
                raise SpectralError(f"run.{name} is {getattr(self, name)}; expected at most 65536 {what} a step.")
        for name in ("warmup", "weight_decay", "preview_every", "checkpoint_every", "max_skipped"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SpectralError(f"run.{name} is {getattr(self, name)}; expected at least 0.")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise SpectralError(f"run.{name} is {getattr(self, name)}; expected more than 0.")
        if not 0 <= self.ema < 1:
            raise SpectralError(f"run.ema is {self.ema}; expected 0 (no averaging) up to, but not, 1.")
        check_seed(self.seed)
        known = [str(kind) for kind in LoggerType if kind != LoggerType.ALL]
        for name in self.trackers:
            if name not in known:
                raise SpectralError(f"run.trackers names {name!r}; expected some of {', '.join(known)}.")


def check_installed(run: RunConfig) -> None:
    """That the packages which a run asks for by name are there.

    Raises:
        SpectralError: one is not.
    """
    for name in run.trackers:
        if LoggerType(name) not in get_available_trackers():
            raise SpectralError(f"run.trackers names {name}, which is not installed here; install it, or leave it out.")
    if run.optimizer == "adamw8bit" and find_spec("bitsandbytes") is None:
        raise SpectralError(
            "run.optimizer is adamw8bit, which needs the package bitsandbytes; install it, or set adamw."
        )


def check_seed(seed: int) -> None:
    """Raise SpectralError where `seed` is none that every generator takes."""
    if not 0 <= seed < 2**32:
        raise SpectralError(f"The seed is {seed}; expected 0 to {2**32 - 1}.")


def check_dropout(share: float) -> None:
    """Raise SpectralError where `share` is no share of captions or classes to leave out."""
    if not 0.0 <= share <= 1.0:
        raise SpectralError(f"dropout is {share}; expected the share of conditions to leave out, 0 to 1.")


def check_weight(name: str, weight: float) -> None:
    """Raise SpectralError where `weight` is none that a term of a loss can have."""
    if not 0.0 <= weight < math.inf:
        raise SpectralError(f"{name} is {weight}; expected a weight of 0 (off) or more.")
