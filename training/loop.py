"""The training loop that every run shares: accelerate, EMA, statistics, previews, checkpoints, exact resume.

A *task* is a module whose `forward(batch)` gives the losses of one batch: "loss" is the one that is minimised, every
other entry is logged beside it. What a task trains is its parameters; what it only looks at, it keeps out of them. A
*batch* is a dict of tensors that at least has "index", which samples of the data these are, and "ordinal", how many
samples the run saw before each (see `randomness`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import LoggerType, ProjectConfiguration, set_seed
from torch import nn

from ..spectral.errors import SpectralError
from . import snapshots
from .batches import Batches
from .ema import EMA
from .guard import Guard
from .progress import Progress
from .run import processes
from .stopping import StoppedRun, stoppable


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
        compile: let torch.compile translate the task; the first steps take minutes.
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
        for name in ("steps", "batch_size", "accumulate", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise SpectralError(f"run.{name} is {getattr(self, name)}; expected at least 1.")
        if self.batch_size > 65536:
            raise SpectralError(f"run.batch_size is {self.batch_size}; expected at most 65536 images a step.")
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


def fit(task: nn.Module, data: Batches, run: RunConfig, preview: Callable[[Path], None]) -> dict[str, float]:
    """Train `task` until `run.steps`, from its last checkpoint if the folder has one. Ends with the EMA weights in it.

    Args:
        task: `task(batch)` → {"loss": scalar, …}; its parameters are trained in place.
        data: the batches.
        preview: draws pictures of the current (averaged) weights into the path that it is given.

    Returns:
        The last logged statistics.

    Raises:
        SpectralError: the checkpoint in the folder is damaged or belongs to another model, or one cannot be written; or
            the loss diverges.
        StoppedRun: a signal asked for the end; a checkpoint of the step that was done then is in the folder.
    """
    accelerator = _accelerator(run)
    task.to(accelerator.device)
    inner = make_optimizer(run, task)
    prepared, optimizer = accelerator.prepare(task, inner)
    ema = EMA(task, run.ema)
    start, skipped = snapshots.restore(accelerator, run.out, task, ema, inner)
    guard = Guard(accelerator, run.out, run.max_skipped, skipped)
    accelerator.init_trackers("spectral-diffusion", init_kwargs={"tensorboard": {"purge_step": start + 1}})
    if run.compile:
        task.compile()
    batches = data.batches(start * run.accumulate, accelerator.process_index, accelerator.num_processes)
    with stoppable() as stop_asked, closing(Progress(run, start, accelerator)) as progress:
        for step in range(start, run.steps):
            set_learning_rate(optimizer, run, step)
            for _ in range(run.accumulate):
                began = time.perf_counter()
                batch = next(batches)
                waited = time.perf_counter() - began
                with accelerator.accumulate(prepared):
                    losses = prepared(batch)
                    accelerator.backward(losses["loss"])
                    guard.add(batch, losses, waited)
                    if accelerator.sync_gradients:
                        norm = accelerator.clip_grad_norm_(prepared.parameters(), run.clip)
                        accepted = guard.accepts(step, norm, progress)
                        if accepted or accelerator.scaler is not None:  # which then leaves the weights, and scales down
                            optimizer.step()
                        if accepted:
                            ema.update()
                    optimizer.zero_grad()
            progress.step(step + 1, due(step + 1, run.log_every, run.steps))
            if accelerator.is_main_process and due(step + 1, run.preview_every, run.steps):
                with ema.applied(), keep_rng(run.seed):
                    preview(run.out / "previews" / f"{step + 1:06d}.png")
            stopping = _agreed(accelerator, stop_asked()) and step + 1 < run.steps
            if stopping or due(step + 1, run.checkpoint_every or run.steps, run.steps):
                snapshots.save(accelerator, run.out, run.keep, step + 1, task, ema, inner, guard.skipped)
            if stopping:
                raise StoppedRun(step + 1, run.steps)
    accelerator.end_training()
    ema.keep()
    return progress.last


def _accelerator(run: RunConfig) -> Accelerator:
    """The devices that `accelerate launch` gives, or the one that is there."""
    folders = ProjectConfiguration(str(run.out), str(run.out / "tensorboard"))
    state = processes()
    if run.batch_size % state.num_processes:
        raise SpectralError(
            f"run.batch_size is {run.batch_size}, for {state.num_processes} processes; expected a multiple of that."
        )
    accelerator = Accelerator(
        cpu=state.device.type == "cpu",
        mixed_precision=run.precision,
        gradient_accumulation_steps=run.accumulate,
        log_with=list(run.trackers),
        project_config=folders,
    )
    for name in run.trackers:
        if LoggerType(name) not in accelerator.log_with:
            raise SpectralError(f"run.trackers names {name}, which is not installed here; install it, or leave it out.")
    set_seed(run.seed)
    return accelerator


def make_optimizer(run: RunConfig, task: nn.Module) -> torch.optim.Optimizer:
    """AdamW over what the task trains.

    Raises:
        SpectralError: the 8-bit one is asked for and its package is not there.
    """
    trained = [p for p in task.parameters() if p.requires_grad]
    settings: dict[str, Any] = {"lr": run.lr, "weight_decay": run.weight_decay, "betas": (0.9, 0.99)}
    if run.optimizer == "adamw":
        return torch.optim.AdamW(trained, fused=True, **settings)
    try:
        from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]
    except ImportError as error:
        raise SpectralError(
            "run.optimizer is adamw8bit, which needs the package bitsandbytes; install it, or set adamw."
        ) from error
    return AdamW8bit(trained, **settings)  # type: ignore[no-any-return]


def _agreed(accelerator: Accelerator, asked: bool) -> bool:
    """Whether any process was asked to stop; a signal does not reach all of them at the same step."""
    if accelerator.num_processes == 1:
        return asked
    flag = torch.tensor([float(asked)], device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum").item())  # type: ignore[union-attr]


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


def due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every `every` steps (0: never), and at the end, happens at `step`."""
    return bool(every) and (step % every == 0 or step == last)


def set_learning_rate(optimizer: torch.optim.Optimizer, run: RunConfig, step: int) -> None:
    """Warm-up, then the chosen decay."""
    done = min(1.0, max(0.0, (step - run.warmup) / max(1, run.steps - run.warmup)))
    factor = {"linear": 1.0 - done, "cosine": 0.5 + 0.5 * math.cos(math.pi * done), "constant": 1.0}[run.decay]
    for group in optimizer.param_groups:
        group["lr"] = run.lr * factor * min(1.0, (step + 1) / max(1, run.warmup))


@contextmanager
def keep_rng(seed: int) -> Iterator[None]:
    """Within the block the random stream starts from `seed`; afterwards it goes on as if nothing had been drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
