"""Weights that FSDP 2 has cut into shards: whole ones for files, and shards of whole ones.

Files hold whole tensors, so that a run may go on with more processes, fewer, or none but one. Where nothing is cut,
everything here gives back what it gets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


def is_sharded(module: nn.Module) -> bool:
    """Whether each process holds only a part of a module's parameters."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its shards, on the CPU; all processes call it, in the same order."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process holds of tensors, without gradient: shares their memory."""
    return [t.to_local().detach() if isinstance(t, DTensor) else t.detach() for t in tensors]


def cut(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a whole tensor, cut as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state with whole tensors; all processes call it."""
    return {name: whole(tensor) for name, tensor in module.state_dict().items()}


def load_whole_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """What `whole_state` gave back into the module; raises what `load_state_dict` does."""
    own = module.state_dict()
    module.load_state_dict({name: cut(tensor, own[name]) if name in own else tensor for name, tensor in state.items()})


def whole_optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's state with whole tensors; all processes call it."""
    state = optimizer.state_dict()
    entries = {
        index: {name: whole(value) if isinstance(value, Tensor) else value for name, value in entry.items()}
        for index, entry in state["state"].items()
    }
    return {**state, "state": entries}


def load_whole_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """What `whole_optimizer_state` gave back into the optimizer; raises what its `load_state_dict` does."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries = {
        index: {
            name: cut(value, parameters[index])
            if isinstance(value, Tensor) and value.shape == parameters[index].shape
            else value
            for name, value in entry.items()
        }
        for index, entry in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": entries})


def gather_(module: nn.Module) -> None:
    """Give a module whole parameters again, when its training is over; all processes call it."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                setattr(part, name, nn.Parameter(whole(parameter.detach()), parameter.requires_grad))
