"""The training loop that every run shares: accelerate, EMA, statistics, previews, checkpoints, exact resume.

A *task* is a module whose `forward(batch)` gives the losses of one batch: "loss" is the one that is minimised, every
other entry is logged beside it: a scalar, or a row [2] to be summed and divided, the first by the second. What a task
trains is its parameters; what it only looks at, it keeps out of them. A *batch* is what the data gives (see
`data.batches`), among it "ordinal", how many samples the run saw before each, which its random numbers hang on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import LoggerType, ProjectConfiguration, set_seed
from torch import nn

from ...spectral.errors import SpectralError
from ..data.batches import Batches, Data, batches
from ..processes import processes
from . import snapshots
from .config import RunConfig
from .ema import EMA
from .guard import Guard
from .optimizer import make_optimizer, set_learning_rate
from .progress import Progress
from .stopping import StoppedRun, stoppable


def fit(task: nn.Module, data: Data, run: RunConfig, preview: Callable[[Path], None]) -> dict[str, float]:
    """Train `task` until `run.steps`, from its last checkpoint if the folder has one. Ends with the EMA weights in it.

    Args:
        task: `task(batch)` → {"loss": scalar, …}; its parameters are trained in place.
        data: what it is trained on.
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
    with (
        stoppable() as stop_asked,
        closing(Progress(run, start, accelerator)) as progress,
        closing(_feed(data, run, start, accelerator)) as feed,
    ):
        for step in range(start, run.steps):
            set_learning_rate(optimizer, run, step)
            for _ in range(run.accumulate):
                began = time.perf_counter()
                batch = next(feed)
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
            stopping = _agreed(accelerator, stop_asked()) and step + 1 < run.steps
            with progress.paused():
                if accelerator.is_main_process and due(step + 1, run.preview_every, run.steps):
                    with ema.applied(), keep_rng(run.seed), _forgiving(step + 1):
                        preview(run.out / "previews" / f"{step + 1:06d}.png")
                if stopping or due(step + 1, run.checkpoint_every or run.steps, run.steps):
                    snapshots.save(accelerator, run.out, run.keep, step + 1, task, ema, inner, guard.skipped)
            if stopping:
                raise StoppedRun(step + 1, run.steps)
    guard.finish()
    accelerator.end_training()
    ema.keep()
    return progress.last


@contextmanager
def _forgiving(step: int) -> Iterator[None]:
    """A preview that cannot be drawn, as of weights that are noise still, does not end a run."""
    try:
        yield
    except SpectralError as error:
        print(f"Note: there is no preview of step {step}. {error}", file=sys.stderr)


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


def _feed(data: Data, run: RunConfig, start: int, accelerator: Accelerator) -> Batches:
    """This process's part of every batch from the first of step `start` on."""
    rank, world = accelerator.process_index, accelerator.num_processes
    size, used = run.batch_size // world, start * run.accumulate
    return batches(data, size, seed=run.seed, start=used, rank=rank, world=world, folder=run.out)


def _agreed(accelerator: Accelerator, asked: bool) -> bool:
    """Whether any process was asked to stop; a signal does not reach all of them at the same step."""
    if accelerator.num_processes == 1:
        return asked
    flag = torch.tensor([float(asked)], device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum").item())  # type: ignore[union-attr]


def due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every `every` steps (0: never), and at the end, happens at `step`."""
    return bool(every) and (step % every == 0 or step == last)


@contextmanager
def keep_rng(seed: int) -> Iterator[None]:
    """Within the block the random stream starts from `seed`; afterwards it goes on as if nothing had been drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
