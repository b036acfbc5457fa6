"""CLIP's text tower, OpenAI's and OpenCLIP's, in the layout of Stable Diffusion 1.x files.

That layout is what ComfyUI's own CLIP classes read; `formats.text_keys` translates the others into it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import ConditioningConfig

#: CLIP's vocabulary. A text is START, its tokens, END; what is left of the 77 places is filled with END in Stable
#: Diffusion 1.x, with token 0 in 2.x.
VOCABULARY, START, END = 49408, 49406, 49407


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of GELU, x · sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class TextAttention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class TextMLP(nn.Module):
    """Feed-forward of four times the width."""

    def __init__(self, config: ConditioningConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.fc1 = nn.Linear(config.width, 4 * config.width)
        self.fc2 = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class TextLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: ConditioningConfig) -> None:
        super().__init__()
        self.self_attn = TextAttention(config.width, config.heads)
        self.layer_norm1 = nn.LayerNorm(config.width)
        self.mlp = TextMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class TextEmbeddings(nn.Module):
    """Token plus position."""

    def __init__(self, config: ConditioningConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.context_length, config.width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]


class TextModel(nn.Module):
    """Embeddings, layers (all but the last `skip_last`), final normalisation."""

    def __init__(self, config: ConditioningConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(TextLayer(config) for _ in range(config.layers))})
        self.depth = config.layers - config.skip_last
        self.final_layer_norm = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embeddings(tokens)
        for layer in islice(self.encoder["layers"].children(), self.depth):
            x = layer(x)
        return self.final_layer_norm(x)


class TextTower(nn.Module):
    """Token ids [B, T] → states after the final normalisation, [B, T, width].

    The nesting is that of the files: `transformer.text_model.{embeddings,encoder,final_layer_norm}`, and
    `transformer.text_projection` [width, width] where the configuration has one. The projection is kept for ComfyUI,
    which makes its pooled output with it; the states do not go through it.
    """

    def __init__(self, config: ConditioningConfig) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict({"text_model": TextModel(config)})
        if config.projection:
            self.transformer["text_projection"] = nn.Linear(config.width, config.width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.transformer["text_model"](tokens)
