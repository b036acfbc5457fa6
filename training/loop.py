"""The training loop that every run shares: accelerate, EMA, statistics, previews, checkpoints, exact resume.

A *task* is a module whose `forward(indices)` gives the losses of one batch: "loss" is the one that is minimised, every
other entry is logged beside it. What a task trains is its parameters; what it only looks at, it keeps out of them.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..spectral.errors import SpectralError
from .files import write_whole
from .images import ShuffledBatches


@dataclass(frozen=True)
class RunConfig:
    """How long and how a run trains, and what it leaves behind.

    Args:
        out: the run's folder: resolved configuration, statistics, previews, checkpoints and the exported model.
        steps: optimizer steps in all.
        batch_size: images per step and process.
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

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise SpectralError(f"run.{name} is {getattr(self, name)}; expected at least 1.")
        if self.batch_size > 65536:
            raise SpectralError(f"run.batch_size is {self.batch_size}; expected at most 65536 images a step.")
        for name in ("warmup", "weight_decay", "preview_every", "checkpoint_every"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SpectralError(f"run.{name} is {getattr(self, name)}; expected at least 0.")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise SpectralError(f"run.{name} is {getattr(self, name)}; expected more than 0.")
        if not 0 <= self.ema < 1:
            raise SpectralError(f"run.ema is {self.ema}; expected 0 (no averaging) up to, but not, 1.")
        check_seed(self.seed)


class EMA:
    """Exponential moving average of a module's trainable parameters, decay min(d, (1 + n) / (10 + n)) at update n."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.decay, self.updates = decay, 0

    def update(self) -> None:
        weight = 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], weight)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the module carries its averaged weights."""
        trained = [p.detach().clone() for p in self.parameters]
        torch._foreach_copy_([p.data for p in self.parameters], self.average)
        try:
            yield
        finally:
            torch._foreach_copy_([p.data for p in self.parameters], trained)

    def state(self) -> dict[str, Any]:
        return {"average": self.average, "updates": self.updates}

    def restore(self, state: dict[str, Any]) -> None:
        torch._foreach_copy_(self.average, state["average"])
        self.updates = state["updates"]


def fit(task: nn.Module, data: Dataset[int], run: RunConfig, preview: Callable[[Path], None]) -> dict[str, float]:
    """Train `task` until `run.steps`, from its last checkpoint if the folder has one. Ends with the EMA weights in it.

    Args:
        task: `task(indices)` → {"loss": scalar, …}; its parameters are trained in place.
        data: only its length and its batches of indices are used here.
        preview: draws pictures of the current (averaged) weights into the path that it is given.

    Returns:
        The last logged statistics.

    Raises:
        SpectralError: the checkpoint in the folder is damaged or belongs to another model; or the loss diverges.
    """
    accelerator = Accelerator(mixed_precision=run.precision, gradient_accumulation_steps=run.accumulate)
    set_seed(run.seed, device_specific=True)
    task.to(accelerator.device)
    trained = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=run.lr, weight_decay=run.weight_decay, betas=(0.9, 0.99), fused=True)
    ema = EMA(task, run.ema)
    start = _restore(run.out, task, ema, optimizer)
    used = start * run.accumulate * accelerator.num_processes
    sampler = ShuffledBatches(len(data), run.batch_size, run.seed, used)  # type: ignore[arg-type]
    # A generator of its own: by default a loader draws from the random stream that the checkpoint has just restored.
    batches_of = DataLoader(data, batch_sampler=sampler, generator=torch.Generator())
    prepared, optimizer, loader = accelerator.prepare(task, optimizer, batches_of)
    statistics = Statistics(run, start, accelerator.is_main_process)
    batches = iter(loader)
    for step in range(start, run.steps):
        set_learning_rate(optimizer, run, step)
        for _ in range(run.accumulate):
            with accelerator.accumulate(prepared):
                losses = prepared(next(batches))
                statistics.add(losses)
                accelerator.backward(losses["loss"])
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(prepared.parameters(), run.clip)
                optimizer.step()
                optimizer.zero_grad()
        ema.update()
        statistics.step(step + 1)
        if accelerator.is_main_process and due(step + 1, run.preview_every, run.steps):
            with ema.applied(), keep_rng(run.seed):
                preview(run.out / "previews" / f"{step + 1:06d}.png")
        if accelerator.is_main_process and due(step + 1, run.checkpoint_every or run.steps, run.steps):
            _save(run, step + 1, task, ema, optimizer)
    statistics.close()
    torch._foreach_copy_([p.data for p in ema.parameters], ema.average)
    return statistics.last


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


class Statistics:
    """Means of every loss since the last line, as a progress bar, a JSON line and TensorBoard scalars."""

    def __init__(self, run: RunConfig, start: int, active: bool) -> None:
        self.run, self.active = run, active
        self.sums: dict[str, Tensor] = {}
        self.count, self.since = 0, time.perf_counter()
        self.last: dict[str, float] = {}
        if active:
            from torch.utils.tensorboard import SummaryWriter

            run.out.mkdir(parents=True, exist_ok=True)
            self.last = self._rewind(start)
            self.writer = SummaryWriter(str(run.out / "tensorboard"), purge_step=start + 1)
            self.bar = tqdm(total=run.steps, initial=start, unit="step", dynamic_ncols=True)

    def _rewind(self, start: int) -> dict[str, float]:
        """Drop the lines behind step `start`, which will come again, and a cut one; returns the last that is kept."""
        path = self.run.out / "statistics.jsonl"
        kept: list[dict[str, float]] = []
        for text in path.read_text().splitlines() if path.exists() else ():
            with suppress(json.JSONDecodeError):
                line = json.loads(text)
                kept += [line] if line["step"] <= start else []
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
        return {name: value for name, value in kept[-1].items() if name != "step"} if kept else {}

    def add(self, losses: dict[str, Tensor]) -> None:
        """Count the losses of one batch."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.detach()
        self.count += 1

    def step(self, step: int) -> None:
        """Count an optimizer step; write a line where one is due."""
        if self.active:
            self.bar.update()
        if due(step, self.run.log_every, self.run.steps):
            self._write(step)

    def _write(self, step: int) -> None:
        seconds = time.perf_counter() - self.since
        line = {name: round((value / self.count).item(), 6) for name, value in self.sums.items()}
        line["images_per_s"] = round(self.count * self.run.batch_size / seconds, 2)
        if not math.isfinite(line["loss"]):
            raise SpectralError(f"The loss is {line['loss']} at step {step}; start anew with a lower run.lr.")
        self.last = line
        self.sums, self.count, self.since = {}, 0, time.perf_counter()
        if not self.active:
            return
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in line.items()}, refresh=False)
        with open(self.run.out / "statistics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, **line}) + "\n")
        for name, value in line.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self.active:
            self.bar.close()
            self.writer.close()


def _save(run: RunConfig, step: int, task: nn.Module, ema: EMA, optimizer: Any) -> None:
    """Write a checkpoint beside its place, flush it to disk, move it there; then drop the oldest."""
    folder = run.out / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    if not all(bool(torch.isfinite(p).all()) for p in ema.parameters):
        raise SpectralError(f"The weights are not finite at step {step}; start anew with a lower run.lr.")
    inner = getattr(optimizer, "optimizer", optimizer)
    state = {
        "step": step,
        "task": task.state_dict(),
        "ema": ema.state(),
        "optimizer": inner.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    partial = folder / "writing.partial"
    with open(partial, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / f"{step:08d}.pt")
    for old in sorted(folder.glob("[0-9]*.pt"))[: -run.keep]:
        old.unlink()


def _restore(out: Path, task: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer) -> int:
    """Load the newest checkpoint of the folder, if any, and say how many steps it had."""
    files = sorted((out / "checkpoints").glob("[0-9]*.pt"))
    if not files:
        return 0
    try:
        state = torch.load(files[-1], map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not {"step", "task", "ema", "optimizer", "rng", "cuda_rng"} <= set(state):
            raise ValueError("not what this kit writes")
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, pickle.UnpicklingError) as error:
        raise SpectralError(
            f"{files[-1]} cannot be read as a checkpoint; remove it, and the run goes on from the one before it."
        ) from error
    try:
        task.load_state_dict(state["task"])
        ema.restore(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise SpectralError(
            f"{files[-1]} is a checkpoint of another model ({reason}); choose another output folder or remove it."
        ) from error
    torch.set_rng_state(state["rng"])
    if state["cuda_rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    return int(state["step"])
