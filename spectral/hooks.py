"""What a caller may read or change on the way through a U-Net, such as the patches that ComfyUI's nodes put in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from .deep_features import Call

Part = Literal["input", "middle", "output"]
Direction = Literal["down", "up"]


class Attending(Protocol):
    """An attention layer in its three parts; tensors are [B, T, width]."""

    heads: int

    def project(self, x: Tensor, context: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of x, keys of the context, values of `value`, [B, T, heads · d] each."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The weighted values [B, T, heads · d]."""
        ...

    def output(self, out: Tensor) -> Tensor:
        """The projection of the weighted values back to the features' width."""
        ...

    def whole(self, x: Tensor, context: Tensor) -> Tensor:
        """The three parts after each other."""
        ...


class TimeEmbedding(Protocol):
    """A network that hears of the time."""

    def embed(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """The time embedding of the steps [B], [B, 4 · model_channels]."""
        ...

    def modules(self) -> Iterator[nn.Module]: ...


class Shifted(Protocol):
    """A residual block that hears of the time."""

    emb_layers: nn.Sequential


class Hooks:
    """Called at every place of `UNet.forward` that a caller may want; these methods change nothing.

    Derive from it and override what is needed. One object serves one call of the network, unless it says otherwise.
    """

    def time(self, network: TimeEmbedding, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """What residual blocks are told of the steps [B]; `shift` makes of it what each adds."""
        return self.embedding(network.embed(timesteps, dtype))

    def embedding(self, embedding: Tensor) -> Tensor:
        """The time embedding [B, 4 · model_channels]."""
        return embedding

    def shift(self, block: Shifted, embedding: Tensor) -> Tensor:
        """What a residual block adds to its features for the time, or scales and shifts them by, [B, outputs]."""
        return block.emb_layers(embedding)  # type: ignore[no-any-return]

    def recall(self, call: Call) -> tuple[int, Tensor] | None:
        """How many of the outermost blocks to run, and what comes up to them from below; None runs the whole network.

        Features are then read at the taps of the outermost blocks alone.
        """
        return None

    def skipped(self, transformers: int) -> None:
        """So many places with attention are not run, between the last input block that is and the next output block."""

    def rise(self, left: int, h: Tensor) -> None:
        """The features that come up to an output block; `left` blocks are to go, this one counted.

        Unchanged as yet by `join`, which may write to them.
        """

    def enter(self, part: Part, index: int) -> None:
        """The block of LDM's list `input_blocks`, `middle_block` or `output_blocks` that comes next."""

    def leave(self, part: Part, h: Tensor) -> Tensor:
        """What an input block leaves as skip, and the middle block for the way up."""
        return h

    def go_on(self, h: Tensor) -> Tensor:
        """What an input block hands to the next one, after the skip was kept."""
        return h

    def join(self, h: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """The two that an output block is about to concatenate."""
        return h, skip

    def transform(self, shape: tuple[int, ...]) -> None:
        """Attention over features of this shape [B, C, H, W] comes next."""

    def attention(
        self, layer: Attending, name: Literal["attn1", "attn2"], depth: int, x: Tensor, context: Tensor
    ) -> Tensor:
        """What attention adds: attn1 is over the cells, attn2 to the context.

        Args:
            depth: which of the transformer blocks of one place this is.
        """
        return layer.whole(x, context)

    def between(self, x: Tensor) -> Tensor:
        """A transformer's tokens between its two attentions."""
        return x

    def gates(self, gates: Tensor, direction: Direction, level: int) -> Tensor:
        """The gates [B, 4, C] of a wavelet-gated resampler (Eq. 8), bands in the order LL, LH, HL, HH.

        Args:
            level: of the finer of its two resolutions; 0 is that of the latent.
        """
        return gates


#: Hooks that change nothing.
NO_HOOKS = Hooks()
