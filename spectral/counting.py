"""How large a network is, as the paper counts it: parameters, and multiply-adds of convolutions and linear layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .config import ModelConfig
from .unet import UNet


def parameters(module: nn.Module | None) -> int:
    """Number of parameters; 0 for None."""
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, *inputs: Any, **named: Any) -> int:
    """Multiply-adds of every convolution and linear layer in one call of `module`; attention products are left out.

    Run it on the meta device: nothing is computed there.
    """
    total = 0

    def count(layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal total
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        total += output.numel() * layer.weight[0].numel()

    hooks = [
        layer.register_forward_hook(count) for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    try:
        with torch.no_grad():
            module(*inputs, **named)
    finally:
        for hook in hooks:
            hook.remove()
    return total


def unet_macs(config: ModelConfig, tokens: int | None = None, stage: int = 0) -> int:
    """Multiply-adds of one call of the U-Net at its training size, batch 1, with a context of `tokens` tokens.

    By default the context is as long as the conditioner makes it: 1 for classes, 77 for text.

    Args:
        stage: of a U-Net of stages, the one that it is called in.
    """
    unet = config.unet
    assert unet is not None
    if tokens is None:
        tokens = 1 if config.conditioning.kind == "class" else config.conditioning.context_length
    network = UNet(unet, device="meta")
    channels, side = unet.in_channels, unet.image_size
    if stage:
        channels, side = network.entries[stage].channels, -(-side // 2 ** network.entries[stage].level)
    x = torch.empty(1, channels, side, side, device="meta")
    context = torch.empty(1, tokens, unet.context_dim, device="meta") if unet.context_dim else None
    return count_macs(network, x, torch.empty(1, device="meta"), context, stage=stage)
