"""The optimizer of a run, its learning rate, and its state in checkpoints."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from . import sharding, zero
from .config import RunConfig


def make_optimizer(run: RunConfig, task: nn.Module) -> torch.optim.Optimizer:
    """AdamW over what the task trains."""
    trained = [p for p in task.parameters() if p.requires_grad]
    settings: dict[str, Any] = {"lr": run.lr, "weight_decay": run.weight_decay, "betas": (0.9, 0.99)}
    if run.optimizer == "adamw":
        return torch.optim.AdamW(trained, fused=True, **settings)
    from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]

    return AdamW8bit(trained, **settings)  # type: ignore[no-any-return]


def set_learning_rate(optimizer: torch.optim.Optimizer, run: RunConfig, step: int) -> None:
    """Warm-up, then the chosen decay."""
    done = min(1.0, max(0.0, (step - run.warmup) / max(1, run.steps - run.warmup)))
    factor = {"linear": 1.0 - done, "cosine": 0.5 + 0.5 * math.cos(math.pi * done), "constant": 1.0}[run.decay]
    for group in optimizer.param_groups:
        group["lr"] = run.lr * factor * min(1.0, (step + 1) / max(1, run.warmup))


class WholeOptimizer:
    """An optimizer's state as checkpoints have it: of whole tensors, as torch's own say it, however it is cut.

    Args:
        inner: as `make_optimizer` made it.
        prepared: what accelerate made of it.
        task: whose parameters it changes.
    """

    def __init__(self, accelerator: Accelerator, inner: torch.optim.Optimizer, prepared: Any, task: nn.Module) -> None:
        self.inner, self.prepared, self.is_zero = inner, prepared, zero.is_used(accelerator)
        self.parameters = [p for p in task.parameters() if p.requires_grad]

    def state(self) -> dict[str, Any]:
        """For a checkpoint; all processes call it."""
        if self.is_zero:
            return zero.optimizer_state(self.prepared.optimizer, self.parameters)
        return sharding.whole_optimizer_state(self.inner)

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`, when the weights have been loaded; raises what `load_state_dict` does."""
        if self.is_zero:
            zero.load_optimizer_state(self.prepared.optimizer, self.parameters, state)
        else:
            sharding.load_whole_optimizer_state(self.inner, state)
