"""Where the U-Net's layers come from: torch.nn, or classes of the same names that cast or offload their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: (q, k, v, heads) → out; all [B, T, heads · d]. ComfyUI's own attention functions have this form.
Attention = Callable[..., Tensor]


class Layers:
    """Makes layers of one dtype on one device.

    Args:
        operations: a module or class with Linear, Conv2d, GroupNorm and LayerNorm.
        attention: what the attention layers compute with.
        groups: of every group normalisation.
    """

    def __init__(self, operations: Any, attention: Attention, groups: int, dtype: Any, device: Any) -> None:
        self.operations, self.attention, self.groups = operations, attention, groups
        self.factory = {"dtype": dtype, "device": device}

    def conv(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Module:
        made = self.operations.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, **self.factory)
        return made  # type: ignore[no-any-return]

    def linear(self, inputs: int, outputs: int, bias: bool = True) -> nn.Module:
        return self.operations.Linear(inputs, outputs, bias=bias, **self.factory)  # type: ignore[no-any-return]

    def norm(self, channels: int, eps: float = 1e-5) -> nn.Module:
        return self.operations.GroupNorm(self.groups, channels, eps=eps, **self.factory)  # type: ignore[no-any-return]

    def layer_norm(self, channels: int) -> nn.Module:
        return self.operations.LayerNorm(channels, **self.factory)  # type: ignore[no-any-return]


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with all its parameters 0: a residual branch that starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor that nobody else holds: in its own memory, unless gradients are recorded."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def added(x: Tensor, other: Tensor) -> Tensor:
    """The sum, in the memory of x, which nobody else holds, unless gradients are recorded or the types differ."""
    if torch.is_grad_enabled() or x.dtype != other.dtype:
        return x + other
    return x.add_(other)


def memory_order(device: torch.device | str) -> torch.memory_format:
    """The order of feature maps, and of the weights of 2-d convolutions, in which a device computes fastest.

    On a CPU channels come last. On CUDA torch's group normalisation would change that back each time.
    """
    return torch.channels_last if torch.device(device).type == "cpu" else torch.contiguous_format


def ordered(x: Tensor) -> Tensor:
    """A feature map [B, C, H, W] in its device's `memory_order`; the layers behind keep to it."""
    return x.contiguous(memory_format=memory_order(x.device))
