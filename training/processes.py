"""The processes that train together, and where each of them computes."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def processes(wait: timedelta | None = None) -> PartialState:
    """The processes that `accelerate launch` or torchrun started together, this one among them.

    On a machine without an accelerator they talk over gloo; accelerate by itself would take each for the only one.

    Args:
        wait: how long they wait for each other before they take one for dead; only the first call of a process sets
            it. None: torch's own, 10 or 30 minutes.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        signal_at_end_of_parent(signal.SIGKILL)
    if by_deepspeed():
        return PartialState()
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or (launched and not torch.accelerator.is_available())
    return PartialState(cpu=cpu, **({} if wait is None else {"timeout": wait}))


def signal_at_end_of_parent(number: signal.Signals) -> None:
    """Have this process signalled when the launcher that started it ends, which may have been killed.

    Otherwise it would go on beside those that the same command starts next. Only Linux can be asked for this.
    """
    if sys.platform == "linux":
        parent_death = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
        ctypes.CDLL(None).prctl(parent_death, number)


def join(wait: timedelta = timedelta(days=7)) -> PartialState:
    """`processes` of a command in which one has work of its own, for hours perhaps, while the others wait."""
    return processes(wait)


def by_deepspeed() -> bool:
    """Whether `accelerate launch` was told to use DeepSpeed."""
    return bool(parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"))


def device() -> torch.device:
    """Where this process trains: its own GPU, or the CPU."""
    found = processes().device
    return torch.device("cpu") if found.type == "cpu" else found


def is_main() -> bool:
    """Whether this process is the one that writes files and prints."""
    return bool(processes().is_main_process)
