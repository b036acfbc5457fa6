"""DeepSpeed's ZeRO, stages 1 and 2: every process has all weights, and its own part of the optimizer's state.

Checkpoints hold the optimizer's state whole, as torch's optimizers say it, so that a run may go on without DeepSpeed,
or with another number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from ...spectral.errors import SpectralError
from .config import RunConfig


def is_used(accelerator: Accelerator) -> bool:
    """Whether the processes were started with DeepSpeed."""
    return bool(accelerator.distributed_type == DistributedType.DEEPSPEED)


def configure(accelerator: Accelerator, run: RunConfig) -> None:
    """Tell DeepSpeed what the run's configuration says; nothing happens without it.

    Raises:
        SpectralError: the weights themselves are to be cut (stage 3), or computed in float16.
    """
    if not is_used(accelerator):
        return
    settings = accelerator.state.deepspeed_plugin.deepspeed_config
    if settings.get("zero_optimization", {}).get("stage") == 3:
        raise SpectralError(
            "DeepSpeed's ZeRO stage 3 cuts the weights, which their average and the previews need; set zero_stage to "
            "2, or use FSDP (training/configs/accelerate/fsdp.yaml)."
        )
    if run.precision == "fp16":
        raise SpectralError("run.precision is fp16, which this kit does not train in with DeepSpeed; set it to bf16.")
    size = run.batch_size // accelerator.num_processes
    settings["train_micro_batch_size_per_gpu"] = size
    settings["gradient_accumulation_steps"] = run.accumulate
    settings["train_batch_size"] = run.batch_size * run.accumulate
    settings["gradient_clipping"] = run.clip
    settings["zero_allow_untested_optimizer"] = True


def optimizer_state(zero: Any, parameters: Sequence[Tensor]) -> dict[str, Any]:
    """The state of the optimizer inside DeepSpeed's, as torch's would give it; all processes call it.

    Args:
        zero: DeepSpeed's optimizer.
        parameters: what it changes, in their order.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    inner = zero.optimizer
    names = [name for name, value in _first(inner).items() if isinstance(value, Tensor) and value.dim()]
    step = torch.as_tensor(_first(inner)["step"], dtype=torch.float32).cpu()
    entries = {
        index: {
            "step": step.clone(),
            **{name: safe_get_full_optimizer_state(parameter, name).cpu().clone() for name in names},
        }
        for index, parameter in enumerate(parameters)
    }
    groups = [{**group, "params": list(range(len(parameters)))} for group in inner.state_dict()["param_groups"][:1]]
    return {"state": entries, "param_groups": groups}


def load_optimizer_state(zero: Any, parameters: Sequence[Tensor], state: dict[str, Any]) -> None:
    """What `optimizer_state`, or an optimizer of torch, gave back into DeepSpeed's, and the weights that it changes."""
    from deepspeed.utils import safe_set_full_optimizer_state

    zero.refresh_fp32_params()
    known = state["state"][0]
    for part in zero.single_partition_of_fp32_groups:  # what the first step would have made
        entry = zero.optimizer.state[part]
        entry["step"] = torch.as_tensor(known["step"]).clone()
        entry |= {name: torch.zeros_like(part) for name in known if name != "step"}
    zero._lazy_init_hp_params_optimizer_state()
    for index, parameter in enumerate(parameters):
        for name, value in state["state"][index].items():
            if name != "step":
                safe_set_full_optimizer_state(parameter, value.to(parameter.device), name)


def _first(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of any of an optimizer's parameters; all have as many steps."""
    return next(iter(optimizer.state.values()))
