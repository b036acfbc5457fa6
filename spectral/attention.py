"""Attention in the LDM U-Net: self-attention over cells, and transformers that also read a context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .hooks import NO_HOOKS, Hooks
from .layers import Layers, zeroed


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention by torch's fused kernel."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """LDM's AttentionBlock: x + proj(attention(qkv(norm(x)))) over all cells.

    The checkpoints keep `qkv` and `proj_out` as 1-d convolutions, [out, in, 1]. Here they are linear layers, and only
    the state dict has that last axis. Along `qkv`'s outputs each head has its q, k and v together.

    Attributes:
        third_axis: whether the state dict has it; ComfyUI compares state dicts with parameters.
    """

    third_axis = True

    def __init__(self, channels: int, heads: int, make: Layers) -> None:
        super().__init__()
        self.heads, self.attention = heads, make.attention
        self.norm = make.norm(channels)
        self.qkv = make.linear(channels, 3 * channels)
        self.proj_out = zeroed(make.linear(channels, channels))
        self.register_state_dict_post_hook(_add_axis)
        self.register_load_state_dict_pre_hook(_drop_axis)

    def forward(self, x: Tensor, context: Tensor | None = None, hooks: Hooks = NO_HOOKS) -> Tensor:
        """Features [B, C, H, W] of the same shape; it reads no context."""
        hooks.transform(tuple(x.shape))
        cells = self.norm(x).flatten(2).transpose(1, 2)
        out = hooks.attention(self, "attn1", 0, cells, cells)
        return x + out.transpose(1, 2).reshape(x.shape)

    def whole(self, x: Tensor, context: Tensor) -> Tensor:
        """As `hooks.Attending`; torch's kernel reads q, k and v where the product has left them."""
        if context is not x or self.attention is not scaled_dot_product_attention:
            return self.output(self.attend(*self.project(x, context, context)))
        q, k, v = self.qkv(x).unflatten(-1, (self.heads, 3, -1)).transpose(1, 2).unbind(3)
        return self.output(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def project(self, x: Tensor, context: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `hooks.Attending`; one product makes all three where they are of the same tokens."""
        made = self.qkv(x)
        of_context = made if context is x else self.qkv(context)
        of_value = made if value is x else of_context if value is context else self.qkv(value)
        q, k, v = (
            one.unflatten(-1, (self.heads, 3, -1))[:, :, :, index].flatten(2)
            for index, one in enumerate((made, of_context, of_value))
        )
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attention(q, k, v, self.heads)

    def output(self, out: Tensor) -> Tensor:
        return self.proj_out(out)


_CONVOLUTIONS = ("qkv.weight", "proj_out.weight")


def _add_axis(module: SelfAttention, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in _CONVOLUTIONS:
        if module.third_axis and prefix + name in state:
            state[prefix + name] = state[prefix + name].unsqueeze(-1)


def _drop_axis(module: SelfAttention, state: dict[str, Any], prefix: str, *others: Any) -> None:
    for name in _CONVOLUTIONS:
        weight = state.get(prefix + name)
        if weight is not None and weight.dim() == 3:
            state[prefix + name] = weight.squeeze(-1)


def as_files_have_them(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a network's state dict with the third axis of its self-attention, if they lack it."""
    shown = dict(tensors)
    for prefix, module in network.named_modules():
        if isinstance(module, SelfAttention):
            for name in (f"{prefix}.{convolution}" for convolution in _CONVOLUTIONS):
                shown[name] = shown[name].reshape(*shown[name].shape[:2], 1)
    return shown


class CrossAttention(nn.Module):
    """Multi-head attention from x to a context; its parts are those of `hooks.Attending`."""

    def __init__(self, channels: int, context_dim: int, heads: int, make: Layers) -> None:
        super().__init__()
        self.heads, self.attention = heads, make.attention
        self.to_q = make.linear(channels, channels, bias=False)
        self.to_k = make.linear(context_dim, channels, bias=False)
        self.to_v = make.linear(context_dim, channels, bias=False)
        self.to_out = nn.Sequential(make.linear(channels, channels))

    def whole(self, x: Tensor, context: Tensor) -> Tensor:
        return self.output(self.attend(*self.project(x, context, context)))

    def project(self, x: Tensor, context: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.to_q(x), self.to_k(context), self.to_v(value)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attention(q, k, v, self.heads)

    def output(self, out: Tensor) -> Tensor:
        return self.to_out(out)


class GEGLU(nn.Module):
    """Gated GELU: half of the projection times the GELU of the other half."""

    def __init__(self, channels: int, hidden: int, make: Layers) -> None:
        super().__init__()
        self.proj = make.linear(channels, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU of four times the width, and back. The Identity stands where LDM has its dropout."""

    def __init__(self, channels: int, make: Layers) -> None:
        super().__init__()
        self.net = nn.Sequential(
            GEGLU(channels, 4 * channels, make), nn.Identity(), make.linear(4 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context, feed-forward; each on a normalised input and added to it."""

    def __init__(self, channels: int, heads: int, context_dim: int | None, make: Layers) -> None:
        super().__init__()
        self.attn1 = CrossAttention(channels, channels, heads, make)
        self.ff = FeedForward(channels, make)
        self.attn2 = CrossAttention(channels, context_dim or channels, heads, make)
        self.norm1, self.norm2, self.norm3 = (make.layer_norm(channels) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor | None, hooks: Hooks = NO_HOOKS, depth: int = 0) -> Tensor:
        h = self.norm1(x)
        x = hooks.between(x + hooks.attention(self.attn1, "attn1", depth, h, h))
        h = self.norm2(x)
        x = x + hooks.attention(self.attn2, "attn2", depth, h, h if context is None else context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the cells of [B, C, H, W], with a context [B, T, context_dim], around a residual.

    Args:
        linear: the projections are linear layers (Stable Diffusion 2.x) instead of 1×1 convolutions.
    """

    def __init__(
        self, channels: int, heads: int, context_dim: int | None, depth: int, linear: bool, make: Layers
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = make.norm(channels, eps=1e-6)
        project = make.linear if linear else lambda inputs, outputs: make.conv(inputs, outputs, kernel=1)
        self.proj_in = project(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, heads, context_dim, make) for _ in range(depth)
        )
        self.proj_out = zeroed(project(channels, channels))

    def forward(self, x: Tensor, context: Tensor | None, hooks: Hooks = NO_HOOKS) -> Tensor:
        hooks.transform(tuple(x.shape))
        h = self.norm(x)
        if not self.linear:
            h = self.proj_in(h)
        h = h.flatten(2).transpose(1, 2)
        if self.linear:
            h = self.proj_in(h)
        for depth, block in enumerate(self.transformer_blocks):
            h = block(h, context, hooks, depth)
        if self.linear:
            h = self.proj_out(h)
        h = h.transpose(1, 2).reshape(x.shape)
        return x + (h if self.linear else self.proj_out(h))
