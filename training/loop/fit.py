"""The training loop that every run shares: accelerate, EMA, statistics, previews, checkpoints, exact resume.

A *task* is a module whose `forward(batch)` gives the losses of one batch: "loss" is the one that is minimised, every
other entry is logged beside it: a scalar, or a row [2] to be summed and divided, the first by the second. What a task
trains is its parameters; what it only looks at, it keeps out of them. A *batch* is what the data gives (see
`data.batches`), among it "ordinal", how many samples the run saw before each, which its random numbers hang on. What
torch.compile may translate are the task's `networks`, if it names any.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from torch import Tensor, nn

from ...spectral.errors import SpectralError
from ..data.batches import Batches, Data, batches, dead_workers_told
from ..processes import by_deepspeed, processes
from ..running import translating
from . import snapshots, zero
from .alone import alone
from .config import RunConfig
from .ema import EMA
from .guard import Guard
from .optimizer import WholeOptimizer, make_optimizer, set_learning_rate
from .progress import Progress
from .sharding import gather_, is_sharded, whole
from .stopping import StoppedRun, stoppable


def fit(task: nn.Module, data: Data, run: RunConfig, preview: Callable[[Path], None]) -> dict[str, float]:
    """Train `task` until `run.steps`, from its last checkpoint if the folder has one. Ends with the EMA weights in it.

    Args:
        task: `task(batch)` → {"loss": scalar, …}; its parameters are trained in place.
        data: what it is trained on.
        preview: draws pictures of the current (averaged) weights; in the main process it leaves them in the path that
            it is given. The others call it only where the weights are cut into shards.

    Returns:
        The last logged statistics.

    Raises:
        SpectralError: the checkpoint in the folder is damaged or belongs to another model, or one cannot be written;
            the loss diverges; or another process trains in the folder.
        StoppedRun: a signal asked for the end; a checkpoint of the step that was done then is in the folder.
    """
    trainer = Trainer(task, run)
    with alone(run.out, trainer.accelerator.is_main_process):
        return _train(trainer, data, preview)


def _train(trainer: Trainer, data: Data, preview: Callable[[Path], None]) -> dict[str, float]:
    """The loop of `fit`."""
    run, accelerator = trainer.run, trainer.accelerator
    start = trainer.restore()
    accelerator.init_trackers("spectral-diffusion", init_kwargs={"tensorboard": {"purge_step": start + 1}})
    with (
        stoppable() as stop_asked,
        closing(Progress(run, start, accelerator, trainer.sums)) as progress,
        closing(trainer.feed(data, start)) as feed,
        dead_workers_told(),
    ):
        for step in range(start, run.steps):
            trainer.step(step, feed, progress)
            progress.step(step + 1, due(step + 1, run.log_every, run.steps))
            stopping = _agreed(accelerator, stop_asked()) and step + 1 < run.steps
            with progress.paused():
                if trainer.draws and due(step + 1, run.preview_every, run.steps):
                    with trainer.ema.applied(), keep_rng(run.seed), _forgiving(step + 1):
                        preview(run.out / "previews" / f"{step + 1:06d}.png")
                if stopping or due(step + 1, run.checkpoint_every or run.steps, run.steps):
                    trainer.save(step + 1, progress)
            if stopping:
                raise StoppedRun(f"Stopped after step {step + 1} of {run.steps}; the same command goes on from there.")
    trainer.guard.finish()
    trainer.ema.keep()
    gather_(trainer.task)
    for tracker in accelerator.trackers:  # not end_training, which parts the processes: another run may follow
        tracker.finish()
    return progress.last


class Trainer:
    """What learns in a run: the task on its device or devices, its optimizer, its average, its guard."""

    def __init__(self, task: nn.Module, run: RunConfig) -> None:
        self.task, self.run, self.accelerator = task, run, _accelerator(run)
        task.to(self.accelerator.device)
        zero.configure(self.accelerator, run)
        inner = make_optimizer(run, task)
        self.prepared, self.optimizer = self.accelerator.prepare(task, inner)
        self.trained = [p for p in self.prepared.parameters() if p.requires_grad]
        self._whole_optimizer = WholeOptimizer(self.accelerator, inner, self.optimizer, task)
        self.ema = EMA(task, run.ema)
        self.guard = Guard(self.accelerator, run.out, run.max_skipped)
        self.sums: dict[str, Tensor] = {}
        if run.compile:
            for network in getattr(task, "networks", (task,)):
                network.compile()

    @property
    def draws(self) -> bool:
        """Whether previews are this process's business too: the main one's, or everybody's, where weights are cut."""
        return bool(self.accelerator.is_main_process) or is_sharded(self.task)

    def restore(self) -> int:
        """Go on from the folder's last checkpoint, if there is one: the steps that it had done."""
        start, self.guard.skipped, self.sums = snapshots.restore(
            self.accelerator, self.run.out, self.task, self.ema, self._whole_optimizer
        )
        return start

    def save(self, done: int, progress: Progress) -> None:
        """Write a checkpoint of so many steps; all processes call it."""
        extras = {"skipped": self.guard.skipped, "sums": progress.totals()}
        run = self.run
        snapshots.save(self.accelerator, run.out, run.keep, done, self.task, self.ema, self._whole_optimizer, extras)

    def feed(self, data: Data, start: int) -> Batches:
        """This process's part of every batch from the first of step `start` on."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        size, used = self.run.batch_size // world, start * self.run.accumulate
        return batches(data, size, seed=self.run.seed, start=used, rank=rank, world=world, folder=self.run.out)

    def step(self, step: int, feed: Batches, progress: Progress) -> None:
        """One optimizer step, of `run.accumulate` batches."""
        set_learning_rate(self.optimizer, self.run, step)
        for _ in range(self.run.accumulate):
            began = time.perf_counter()
            batch = next(feed)
            waited = time.perf_counter() - began
            with self.accelerator.accumulate(self.prepared):
                with self._autocast(), translating("set run.compile to false"):
                    losses = self.prepared(batch)
                self.accelerator.backward(losses["loss"])
                self.guard.add(batch, losses, waited)
                if self.accelerator.sync_gradients:
                    norm = self._clipped_norm()
                    accepted = self.guard.accepts(step, norm, progress)
                    if accepted or self.accelerator.scaler is not None:  # it leaves the weights then, and scales down
                        self.optimizer.step()
                    if accepted:
                        self.ema.update()
                self.optimizer.zero_grad()

    def _autocast(self) -> AbstractContextManager[Any]:
        """bf16 under DeepSpeed, whose own way would keep the weights themselves in it."""
        lower = zero.is_used(self.accelerator) and self.run.precision == "bf16"
        return torch.autocast(self.accelerator.device.type, torch.bfloat16) if lower else nullcontext()

    def _clipped_norm(self) -> Tensor:
        """Of the gradients of all processes, before they were clipped to `run.clip`."""
        if zero.is_used(self.accelerator):
            return torch.as_tensor(self.accelerator.clip_grad_norm_(self.prepared.parameters(), self.run.clip))
        self.accelerator.unscale_gradients()
        trained = [p for p in self.trained if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in trained])
        if whole(norm) > self.run.clip:  # most steps need no change, and none of it is read or written then
            nn.utils.clip_grads_with_norm_(trained, self.run.clip, norm)
        return whole(norm)


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
        cpu=state.device.type == "cpu" and not by_deepspeed(),
        mixed_precision="no" if by_deepspeed() else run.precision,
        gradient_accumulation_steps=run.accumulate,
        log_with=list(run.trackers) or None,
        project_config=folders,
    )
    set_seed(run.seed)
    return accelerator


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
