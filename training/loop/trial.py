"""How long a run will take, from a step that changes nothing; what does not fit is known before the run begins."""

from __future__ import annotations

import time
from contextlib import closing

import torch
from torch import nn

from ...spectral.errors import SpectralError
from ..data.batches import Batch, Data, batches
from ..processes import device, processes
from .config import RunConfig


def seconds_per_step(task: nn.Module, data: Data, run: RunConfig) -> float:
    """The time of a step's passes forward and backward on this process's device, the second of two.

    Raises:
        SpectralError: there is not enough memory for a batch, or no batch of data.
    """
    size = run.batch_size // processes().num_processes
    with closing(batches(data, size, seed=run.seed, workers=0, folder=run.out)) as feed:
        batch = next(feed)
    task.to(device())
    try:
        _pass(task, batch, run)
        began = time.perf_counter()
        _pass(task, batch, run)
    except torch.OutOfMemoryError as error:
        raise SpectralError(
            f"{size} images at a time do not fit into the memory of {torch.cuda.get_device_name()}; lower "
            "run.batch_size and raise run.accumulate by the same factor, or set recompute, if there is such a setting."
        ) from error
    finally:
        task.zero_grad(set_to_none=True)
    return (time.perf_counter() - began) * run.accumulate


def _pass(task: nn.Module, batch: Batch, run: RunConfig) -> None:
    """Forward and backward, as `fit` does but for the scaling of fp16."""
    kind = device().type
    lower = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[run.precision]
    with torch.autocast(kind, lower, enabled=lower is not None):
        loss = task(dict(batch))["loss"]
    loss.backward()
    if kind == "cuda":
        torch.cuda.synchronize()


def spoken(seconds: float) -> str:
    """A duration for people, such as "51 min"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
