"""What does not change from step to step of a sampling, computed once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from .attention import CrossAttention
from .deep_features import Call, DeepFeatures, Reuse
from .hooks import Attending, Hooks, Shifted, TimeEmbedding
from .unet import ResBlock


class OneContext(Hooks):
    """Keys and values of a context are kept as long as the network is called with that very tensor, unchanged.

    One object serves one sampling, with one network whose weights do not change. The numbers are the same to the last
    bit. While gradients are recorded nothing is kept.
    """

    def __init__(self) -> None:
        self._context: Tensor | None = None
        self._version = 0
        self._made: dict[Attending, tuple[Tensor, Tensor]] = {}

    def attention(
        self, layer: Attending, name: Literal["attn1", "attn2"], depth: int, x: Tensor, context: Tensor
    ) -> Tensor:
        if context is x or torch.is_grad_enabled() or not isinstance(layer, CrossAttention):
            return super().attention(layer, name, depth, x, context)
        if context is not self._context or _version(context) != self._version:
            self._context, self._version, self._made = context, _version(context), {}
        if layer in self._made:
            q, (k, v) = layer.to_q(x), self._made[layer]
        else:
            q, k, v = layer.project(x, context, context)
            self._made[layer] = k, v
        return layer.output(layer.attend(q, k, v))


class Reusing(Hooks):
    """Deep features are reused from one call to the next.

    One object serves one sampling. With None the whole network is run at every call.
    """

    def __init__(self, reuse: Reuse | None) -> None:
        self._deep = None if reuse is None else DeepFeatures(reuse)

    def recall(self, call: Call) -> tuple[int, Tensor] | None:
        return None if self._deep is None else self._deep.recall(call)

    def rise(self, left: int, h: Tensor) -> None:
        if self._deep is not None:
            self._deep.rise(left, h)


class OneSampling(OneContext, Reusing):
    """`OneContext` and `Reusing`; and what the residual blocks add for the time is computed once for all steps.

    The time embedding of all steps is one batch, so that the last bits may differ from those of a step alone.

    Args:
        steps: all that the network will be asked about; of any other it would make NaN.
        reuse: of deep features from one step to the next; None runs the whole network at every step.
    """

    def __init__(self, steps: Iterable[int], reuse: Reuse | None = None) -> None:
        OneContext.__init__(self)
        Reusing.__init__(self, reuse)
        self._steps = sorted(set(steps))
        self._table: Tensor | None = None
        self._rows = torch.empty(0)
        self._spans: dict[Shifted, tuple[int, int]] = {}

    def time(self, network: TimeEmbedding, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """The sums of all blocks side by side, a row for every sample."""
        if torch.is_grad_enabled():
            return super().time(network, timesteps, dtype)
        if self._table is None:
            self._table = self._compute(network, timesteps.device, dtype)
        return self._table[self._rows[timesteps]]

    def shift(self, block: Shifted, embedding: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().shift(block, embedding)
        start, stop = self._spans[block]
        return embedding[:, start:stop]

    def _compute(self, network: TimeEmbedding, device: torch.device, dtype: torch.dtype) -> Tensor:
        """[steps + 1, outputs of all blocks]; the last row is for steps that were not announced."""
        steps = torch.tensor(self._steps, device=device)
        self._rows = torch.full((self._steps[-1] + 1,), len(steps), device=device)
        self._rows[steps] = torch.arange(len(steps), device=device)
        embedding = self.embedding(network.embed(steps, dtype))
        sums, at = [], 0
        for block in network.modules():
            if isinstance(block, ResBlock):
                sums.append(super().shift(block, embedding))
                self._spans[block] = at, at + sums[-1].shape[1]
                at = self._spans[block][1]
        table = torch.cat(sums, dim=1)
        return torch.cat([table, table.new_full((1, at), math.nan)])


def _version(tensor: Tensor) -> int:
    """Rises when a tensor is written to; tensors of inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version
