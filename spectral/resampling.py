"""What a layer that changes the resolution is, and LDM's own ones; the wavelet-gated ones are in gating.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F

from .hooks import NO_HOOKS, Hooks
from .layers import Layers

#: Height and width that going up should arrive at; None is twice the size.
Size: TypeAlias = tuple[int, int] | None


class Resampler(nn.Module, ABC):
    """A layer that halves or doubles the resolution."""

    @abstractmethod
    def forward(self, x: Tensor, size: Size = None, hooks: Hooks = NO_HOOKS) -> Tensor:
        """[B, C, H, W] at the other resolution; `size` is for going up alone, `hooks` for gates."""


class ConvDown(Resampler):
    """LDM's down-sampling: a 3×3 convolution of stride 2."""

    def __init__(self, channels: int, make: Layers) -> None:
        super().__init__()
        self.op = make.conv(channels, channels, stride=2)

    def forward(self, x: Tensor, size: Size = None, hooks: Hooks = NO_HOOKS) -> Tensor:
        return self.op(x)


class ConvUp(Resampler):
    """LDM's up-sampling: nearest neighbour to twice the size (or to `size`), then a 3×3 convolution."""

    def __init__(self, channels: int, make: Layers) -> None:
        super().__init__()
        self.conv = make.conv(channels, channels)

    def forward(self, x: Tensor, size: Size = None, hooks: Hooks = NO_HOOKS) -> Tensor:
        return self.conv(_nearest(x, size))


class PoolDown(Resampler):
    """The down-sampling inside residual blocks: 2×2 average; an odd last row or column stands alone."""

    def forward(self, x: Tensor, size: Size = None, hooks: Hooks = NO_HOOKS) -> Tensor:
        return F.avg_pool2d(x, 2, ceil_mode=True)


class NearestUp(Resampler):
    """The up-sampling inside residual blocks: nearest neighbour."""

    def forward(self, x: Tensor, size: Size = None, hooks: Hooks = NO_HOOKS) -> Tensor:
        return _nearest(x, size)


def _nearest(x: Tensor, size: Size) -> Tensor:
    return F.interpolate(x, size=size or (2 * x.shape[2], 2 * x.shape[3]), mode="nearest")
