"""The toy run with its weights cut into shards: `torchrun --nproc_per_node 2 sharded_toy.py RUN STEPS`.

accelerate cuts weights on GPUs only; here the same function of torch does it on CPUs, in accelerate's place.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from toy import Numbers, Quiet, config

from spectral_diffusion.training import cli
from spectral_diffusion.training.loop.fit import fit
from spectral_diffusion.training.processes import is_main


def prepare(accelerator: Accelerator, task: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """As accelerate's FSDP 2 does: cut the parameters, and let the optimizer have the new ones."""
    fully_shard(task)
    optimizer.param_groups[0]["params"] = list(task.parameters())
    return task, accelerator.prepare_optimizer(optimizer)


def main(out: Path, steps: int) -> None:
    Accelerator.prepare = prepare
    task = Quiet()

    def preview(path: Path) -> None:
        assert all(isinstance(parameter, DTensor) for parameter in task.parameters())
        task({"index": torch.tensor([0]), "ordinal": torch.tensor([0])})
        if is_main():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("drawn")

    fit(task, Numbers(), config(out, steps=steps), preview)
    assert not any(isinstance(parameter, DTensor) for parameter in task.parameters())
    if is_main():
        torch.save(task.state_dict(), out / "final.pt")


if __name__ == "__main__":
    code = cli.run(lambda argv: main(Path(argv[0]), int(argv[1])))
    # Shards over gloo, which only this test has, keep a thread of torch's that may abort the end of the interpreter.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
